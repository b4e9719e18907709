"""Judge: llhttp, which says whether requests are what they look like."""

from __future__ import annotations

from typing import Final

import httptools


class Judge:
    """One llhttp (httptools) for whole requests, of whichever connection: when it has taken
    some, it remembers nothing of them, unless the last says that its connection ends."""

    __slots__ = ("_begun", "_parser", "_whole")

    def __init__(self) -> None:
        self._begun = 0
        self._whole = 0
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)

    # llhttp's only callbacks. It has no others, so that no objects are made for them.
    def on_message_begin(self) -> None:
        """Called by httptools."""
        self._begun += 1

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self._whole += 1

    def takes(self, data: bytes, count: int) -> bool:
        """Whether ``data`` are so many requests, and nothing is left of them. If not, this is of
        no more use."""
        self._begun = self._whole = 0
        try:
            assert self._parser is not None
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return self._begun == self._whole == count

    def drop(self) -> None:
        """It is of no more use: the two do not keep each other."""
        self._parser = None


def _takes_in_targets(characters: bytes) -> bool:
    """Whether llhttp takes each wherever it stands in a path or a query."""
    judge = Judge()
    return all(
        judge.takes(b"GET /%b%ca HTTP/1.1\r\nHost: a\r\n\r\n" % (before, character), 1)
        for character in characters
        for before in (b"", b"?a")
    )


VISIBLE: Final = bytes(character for character in range(0x21, 0x7F) if character != ord("#"))
"""The visible characters of ASCII, but for that which begins a fragment."""

TAKES_VISIBLE: Final = _takes_in_targets(VISIBLE)
"""Whether a target that begins with a slash, and has no characters but these, need not be put to
llhttp: it was asked of each."""


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
    taken = judge.takes(data, count)
    if taken and not last:
        _judges.append(judge)
    else:
        judge.drop()
    return taken
