"""Header blocks: from the bytes of a request's head to header fields and their facts.

The text that comes here was checked by llhttp first, so that it can be split plainly.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from multidict import CIMultiDict, CIMultiDictProxy, istr

MAX_FIELDS: Final = 128  # Apache 100, Node 2000 by default, h2o 100
MAX_BLOCK: Final = 64 * 1024  # nginx 4 x 8 KiB, Node 16 KiB, aiohttp 8 KiB a field

CONNECTION: Final = istr("Connection")
CONTENT_LENGTH: Final = istr("Content-Length")
EXPECT: Final = istr("Expect")
HOST: Final = istr("Host")
KEEP_ALIVE: Final = istr("Keep-Alive")
TRANSFER_ENCODING: Final = istr("Transfer-Encoding")

_OWS: Final = " \t"

# RFC 3986, 3.2.2 and 3.2.3: a registered name or IPv4 address, or an IP literal in
# brackets; and a port. Empty is legal where the target has no authority.
_HOST: Final = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[\w\-.~!$&'()*+,;=:]+\]"
    r"|(?:[\w\-.~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?",
    re.ASCII,
)


@lru_cache(maxsize=1024)
def is_host(value: str) -> bool:
    """Whether ``value`` may stand in a ``Host`` field (RFC 9110, 7.2)."""
    return _HOST.fullmatch(value) is not None


def split_fields(block: bytes) -> list[tuple[str, str]]:
    """The names and values of a block of header lines, each ended by CR LF."""
    lines = block.decode("latin-1").split("\r\n")
    lines.pop()
    # Without an argument strip() is much faster, but takes a no-break space as well.
    whitespace = None if block.isascii() else _OWS
    fields = []
    for line in lines:
        name, _, value = line.partition(":")
        fields.append((name, value.strip(whitespace)))
    return fields


def list_tokens(values: list[str]) -> list[str]:
    """The members of a comma-separated list field, in lower case (RFC 9110, 5.6.1)."""
    tokens = [token.strip(_OWS).lower() for value in values for token in value.split(",")]
    return [token for token in tokens if token]


class HeaderBlock:
    """The header fields of one request.

    Immutable. Clients on one connection mostly repeat the block of their request before,
    byte for byte; such requests share one object.
    """

    __slots__ = ("_keep_alive", "block", "headers", "plain")

    def __init__(self, block: bytes) -> None:
        self.block = block
        fields = split_fields(block)
        headers = CIMultiDict(fields)
        self.headers = CIMultiDictProxy(headers)
        hosts = headers.getall(HOST, ())
        # Nothing here that needs care: one Host, no body, no expectation.
        self.plain = (
            len(hosts) == 1
            and is_host(hosts[0])
            and EXPECT not in headers
            and TRANSFER_ENCODING not in headers
            and CONTENT_LENGTH not in headers
            and len(fields) <= MAX_FIELDS
            and "" not in headers
        )
        self._keep_alive: float | None = None
        if KEEP_ALIVE in headers:
            self._keep_alive = self._timeout()

    @property
    def keep_alive_timeout(self) -> float | None:
        """The ``timeout`` of the ``Keep-Alive`` field in seconds, where there is one."""
        return self._keep_alive

    def _timeout(self) -> float | None:
        for token in list_tokens(self.headers.getall(KEEP_ALIVE)):
            name, _, value = token.partition("=")
            value = value.strip(_OWS).strip('"')
            # More than nine digits is no number of seconds that anybody waits.
            if name.strip(_OWS) == "timeout" and value.isdecimal() and value.isascii():
                return float(value[:9])
        return None
