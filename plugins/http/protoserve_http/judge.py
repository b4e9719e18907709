"""Judge: llhttp, which says whether requests are what they look like."""

from __future__ import annotations

from typing import Final

import httptools


class Judge:
    """One llhttp (httptools) for whole requests, of whichever connection: between two of them it
    remembers nothing."""

    __slots__ = ("_parser", "_whole")

    def __init__(self) -> None:
        self._whole = 0
        self._parser = httptools.HttpRequestParser(self)

    # llhttp's only callback. It has no others, so that no objects are made for them.
    def on_message_complete(self) -> None:
        """Called by httptools."""
        self._whole += 1

    def takes(self, data: bytes, count: int) -> bool:
        """Whether ``data`` are so many requests. If not, this is of no more use."""
        self._whole = 0
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return self._whole == count


_IN_TARGET: Final = b"GET /%b%ca HTTP/1.1\r\nHost: a\r\n\r\n"


def _bytes_of_targets() -> bytes:
    judge = Judge()
    found = bytearray()
    for byte in set(range(256)) - set(b"#"):  # a fragment is no part of a target
        if not all(judge.takes(_IN_TARGET % (before, byte), 1) for before in (b"", b"?a")):
            judge = Judge()
        else:
            found.append(byte)
    return bytes(found)


BYTES_OF_TARGETS: Final = _bytes_of_targets()
"""Those that llhttp takes wherever they stand in a path or a query: it was asked of each. So a
target that begins with a slash and has no others need not be put to it again."""


# Those that nobody uses: as many as there were ever threads that asked at once. A thread takes
# one out while it has it; that, and putting it back, is one step of a list.
_judges: Final[list[Judge]] = []


def are_requests(data: bytes, count: int, *, last: bool = False) -> bool:
    """Whether ``data`` are so many whole requests, and nothing else. ``last``: the last says that
    its connection ends, after which llhttp takes nothing more. Any thread."""
    try:
        judge = _judges.pop()
    except IndexError:
        judge = Judge()
    if not judge.takes(data, count):
        return False
    if not last:
        _judges.append(judge)
    return True
