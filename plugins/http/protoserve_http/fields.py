"""Header blocks: from the bytes of a request's head to header fields and their facts.

The text that comes here was checked by llhttp first, so that it can be split plainly.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Any, Final, TypeVar

from multidict import CIMultiDict, CIMultiDictProxy, istr
from mypy_extensions import mypyc_attr

KEY = TypeVar("KEY")
VALUE = TypeVar("VALUE")

MAX_FIELDS: Final = 128  # Apache 100, Node 2000 by default, h2o 100
MAX_BLOCK: Final = 64 * 1024  # nginx 4 x 8 KiB, Node 16 KiB, aiohttp 8 KiB a field

CONNECTION: Final = istr("Connection")
CONTENT_LENGTH: Final = istr("Content-Length")
EXPECT: Final = istr("Expect")
HOST: Final = istr("Host")
KEEP_ALIVE: Final = istr("Keep-Alive")
UPGRADE: Final = istr("Upgrade")
TRANSFER_ENCODING: Final = istr("Transfer-Encoding")

_OWS: Final = " \t"
_BROWSERS: Final = ["keep-alive"]  # what they say in Connection

# RFC 3986, 3.2.2 and 3.2.3: a registered name or IPv4 address, or an IP literal in
# brackets; and a port. Empty is legal where the target has no authority.
_HOST: Final = re.compile(
    r"(?:\[(?:(?P<ipv6>[0-9A-Fa-f:.]+)|[vV][0-9A-Fa-f]+\.[\w\-.~!$&'()*+,;=:]+)\]"
    r"|(?:[\w\-.~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?",
    re.ASCII,
)
_REMEMBERED_VALUE: Final = 256  # characters; a host name has 253 at most
_LENGTH_DIGITS: Final = 18  # a longer length may be none for llhttp

_DECIDING_NAMES: Final = frozenset(
    {
        b"",  # a line without a name is for the careful way
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",  # to llhttp, close there is the end: not for the fast way
        b"transfer-encoding",
        b"upgrade",
    }
)
_COMMON: Final = (
    "Accept Accept-Charset Accept-Encoding Accept-Language Authorization Cache-Control "
    "Connection Content-Encoding Content-Length Content-Type Cookie DNT Date Expect Forwarded "
    "Host If-Match If-Modified-Since If-None-Match If-Range If-Unmodified-Since Keep-Alive Origin "
    "Pragma Priority Range Referer Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest "
    "Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User TE Transfer-Encoding Upgrade "
    "Upgrade-Insecure-Requests User-Agent Via X-Forwarded-For X-Forwarded-Host X-Forwarded-Port "
    "X-Forwarded-Proto X-Real-IP X-Request-ID X-Requested-With traceparent tracestate"
)
# As clients write them, and gateways that come from HTTP/2. A mapping need not make an istr of
# a name that is one.
_NAMES: Final[dict[str, str]] = {
    spelling: istr(spelling) for name in _COMMON.split() for spelling in (name, name.lower())
}


def is_host(value: str) -> bool:
    """Whether ``value`` may stand in a ``Host`` field (RFC 9110, 7.2)."""
    return _known_host(value) if len(value) <= _REMEMBERED_VALUE else _judge_host(value)


def _judge_host(value: str) -> bool:
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    address = match["ipv6"]
    if address is not None:
        try:
            IPv6Address(address)
        except AddressValueError:
            return False
    return True


_known_host = lru_cache(maxsize=1024)(_judge_host)


def split_fields(block: bytes) -> list[tuple[str, str]]:
    """The names and values of a block of header lines, each after CR LF."""
    return [Line(text).pair for text in block.split(b"\r\n")[1:]]


def list_tokens(values: list[str]) -> list[str]:
    """The members of a comma-separated list field, in lower case (RFC 9110, 5.6.1)."""
    tokens = [token.strip(_OWS).lower() for value in values for token in value.split(",")]
    return [token for token in tokens if token]


def _judge_connection(value: str) -> tuple[bool, bool]:
    options = list_tokens([value])
    closes = "close" in options
    return not closes, not closes and "keep-alive" in options


_known_connection = lru_cache(maxsize=256)(_judge_connection)


def persistence(values: list[str]) -> tuple[bool, bool]:
    """Whether a connection persists after a request with these ``Connection`` fields, in
    HTTP/1.1 and in HTTP/1.0: ``close`` wins in both (RFC 9112, 9.3 and 9.6)."""
    value = ",".join(values)
    if len(value) <= _REMEMBERED_VALUE:
        return _known_connection(value)
    return _judge_connection(value)


class Facts:
    """What the fields of a head that decide about the message itself say.

    Immutable: heads that repeat these lines share one.
    """

    __slots__ = (
        "keep_alive_timeout",
        "length",
        "offers_upgrade",
        "persists",
        "persists_http10",
        "plain",
    )

    def __init__(self, lines: list[bytes]) -> None:
        hosts: list[bytes] = []
        lengths: list[bytes] = []
        options: list[str] = []
        times: list[str] = []
        others = False
        self.offers_upgrade = False
        """There is an ``Upgrade`` field."""
        for line in lines:
            name, _, rest = line.partition(b":")
            value = rest.strip(b" \t")
            if name == b"host":
                hosts.append(value)
            elif name == b"content-length":
                lengths.append(value)
            elif name == b"connection":
                options.append(value.decode("latin-1"))
            elif name == b"keep-alive":
                times.append(value.decode("latin-1"))
            else:
                others = True
                self.offers_upgrade = self.offers_upgrade or name == b"upgrade"
        self.length = 0
        """Bytes of the body, where the request is plain."""
        measured = not lengths
        if len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) <= _LENGTH_DIGITS:
            self.length = int(lengths[0])
            measured = True
        self.plain = (
            not others
            and measured
            and len(hosts) == 1
            and len(hosts[0]) <= _REMEMBERED_VALUE
            and _known_host(hosts[0].decode("latin-1"))
        )
        """Nothing here needs care: one Host, at most one length, no coding, no expectation."""
        # What llhttp says of it is not asked: in HTTP/1.0 it lets keep-alive win over close,
        # and it takes Proxy-Connection for Connection, which it is not (RFC 9112, C.2.2).
        self.persists = True
        self.persists_http10 = False
        if options:
            self.persists, self.persists_http10 = persistence(options)
        self.keep_alive_timeout: float | None = None
        """The ``timeout`` of the ``Keep-Alive`` field in seconds, where there is one."""
        if times:
            self.keep_alive_timeout = _timeout(times)


def _timeout(values: list[str]) -> float | None:
    for token in list_tokens(values):
        name, _, value = token.partition("=")
        value = value.strip(_OWS).strip('"')
        # More than nine digits is no number of seconds that anybody waits.
        if name.strip(_OWS) == "timeout" and value.isdecimal() and value.isascii():
            return float(value[:9])
    return None


_SECRET_NAMES: Final = frozenset({b"authorization", b"cookie", b"proxy-authorization"})
"""Of lines that are not remembered."""

_REMEMBERED_LINE: Final = 256
"""Bytes of a line that is remembered, and of those that decide, together."""

_REMEMBERED: Final = 2048
"""Lines that are remembered at most, and as many facts: less than 3 MiB."""


class Line:
    """A header line: its name and value, and whether it ``decides``, in lower case.

    Immutable, and shared by all requests of the process that have this line.
    """

    __slots__ = ("decides", "lower", "pair", "shared", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        name, _, value = text.partition(b":")
        spelled = name.decode("latin-1")
        lower = name.lower()
        # Any, or the compiled build would make a tuple of it anew wherever it is used.
        self.pair: Any = (_NAMES.get(spelled, spelled), value.strip(b" \t").decode("latin-1"))
        self.decides = lower in _DECIDING_NAMES
        self.lower = text.lower() if self.decides else b""
        self.shared = len(text) <= _REMEMBERED_LINE and lower not in _SECRET_NAMES
        """Whether it is remembered, where it comes again."""


_KEPT_TEXT: Final = 1024
"""Bytes of the fields that a connection keeps, and of those that are remembered."""

_KEPT_LINES: Final = 32
"""Lines of the same: short ones take far more memory than their bytes."""

_KEPT_BLOCKS: Final = 512
"""Header blocks that are remembered at most: up to 2 MiB of long lines, and 6 MiB of short ones,
with the mappings that were made of them."""

_NO_LINES: Final[list[Line]] = []

# What clients repeat, by all connections; no value is ever changed.
_lines: Final[dict[bytes, Line]] = {}
_facts: Final[dict[bytes, Facts]] = {}


def remember(known: dict[KEY, VALUE], most: int, key: KEY, value: VALUE) -> None:
    """Keep what was made of ``key``, which clients repeat; where there are ``most`` already,
    all start anew. Any thread: two at once may keep a few more, or make the same twice."""
    if len(known) >= most and key not in known:
        known.clear()
    known[key] = value


_PLACES: Final = 1024  # a power of two
_seen: Final = bytearray(_PLACES)


def remember_repeated(known: dict[KEY, VALUE], most: int, key: KEY, value: VALUE) -> None:
    """The same, where ``key`` has come before, lately; rarely where it has not. What comes but
    once would push out what comes again."""
    mark = hash(key)
    place = mark & (_PLACES - 1)
    sign = mark // _PLACES & 255 | 1  # 0: nothing has come
    if _seen[place] == sign:
        remember(known, most, key, value)
    else:
        _seen[place] = sign


def _line(text: bytes) -> Line:
    found = _lines.get(text)
    if found is None:
        found = Line(text)
        if found.shared:
            remember_repeated(_lines, _REMEMBERED, text, found)
    return found


def _judge(lines: list[Line]) -> Facts:
    deciding = [line.lower for line in lines if line.decides]
    text = b"\r\n".join(deciding)
    facts = _facts.get(text)
    if facts is None:
        facts = Facts(deciding)
        if len(text) <= _REMEMBERED_LINE:
            remember(_facts, _REMEMBERED, text, facts)
    return facts


@mypyc_attr(acyclic=True, free_list_len=1)
class HeaderBlock:
    """The header fields of a request: ``text`` is what follows the request line, to the empty line
    and with it; ``lines`` the head, taken apart there; ``before`` the fields of the request
    before it on the connection.

    Immutable. Clients mostly send lines that they have sent with the request before, or others
    have: these are not read again.
    """

    __slots__ = ("_headers", "facts", "kept", "lines", "sent_again", "text")

    facts: Facts
    lines: list[Line]

    def __init__(self, text: bytes, lines: list[bytes], before: HeaderBlock | None) -> None:
        self.text = text
        self._headers: CIMultiDictProxy[str] | None = None
        self.sent_again = False
        """Whether a client has sent the same once more: then their mapping is kept, too."""
        self.kept = False
        """Whether it is remembered for all connections."""
        found: list[Line] = []
        known = _NO_LINES if before is None else before.lines
        count = len(known)
        alike = count == len(lines) - 1  # in what decides
        for index in range(1, len(lines)):
            sent = lines[index]
            if index <= count:
                line = known[index - 1]
                if line.text != sent:
                    decided = line.decides
                    line = _line(sent)
                    if decided or line.decides:
                        alike = False
            else:
                line = _line(sent)
            found.append(line)
        self.lines = found
        self.facts = _judge(found) if before is None or not alike else before.facts

    @property
    def small(self) -> bool:
        """Whether a connection may keep it while it waits for the next request."""
        return len(self.text) <= _KEPT_TEXT and len(self.lines) <= _KEPT_LINES

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """They as a mapping."""
        headers = self._headers
        if headers is None:
            headers = CIMultiDictProxy(CIMultiDict([line.pair for line in self.lines]))
            if self.kept and self.sent_again:
                self._headers = headers
        return headers


_blocks: Final[dict[bytes, HeaderBlock]] = {}


def shared(block: HeaderBlock) -> HeaderBlock:
    """The same fields, once for all connections: from now on they are remembered, unless there is
    something secret or long in them."""
    known = _blocks.get(block.text)
    if known is not None:
        known.sent_again = True
        return known
    if all(line.shared for line in block.lines):
        block.kept = True
        remember(_blocks, _KEPT_BLOCKS, block.text, block)
    return block


def repeated(block: HeaderBlock) -> HeaderBlock:
    """The same, after a client has sent them again."""
    known = shared(block)
    known.sent_again = True
    return known
