"""Framing, the guard before hiredis: where a request ends, and whether it may be that large.

The rules and the texts are those of Redis (``processMultibulkBuffer``,
``processInlineBuffer`` and ``sdssplitargs``), and stricter where it lets a peer be wrong:
LF must follow CR, also after a string, and no answer depends on how the bytes were split.
At a NUL in a line Redis waits for ever; here it ends an inline request's words.
"""

from __future__ import annotations

import re
from typing import Final

from protoserve_redis.values import INT_MAX, INT_MIN

MAX_LINE: Final = 64 * 1024  # Redis' PROTO_INLINE_MAX_SIZE
"""Bytes of an inline request, or of a line with a length, without its end."""

MAX_ARGS: Final = 1024 * 1024  # Redis before 7
"""Arguments of one request."""

UNAUTHENTICATED_ARGS: Final = 10  # Redis
UNAUTHENTICATED_BULK: Final = 16 * 1024  # Redis

_SMALLEST_ARG: Final = len(b"$0\r\n\r\n")

_LONGEST: Final = 20  # characters of a 64-bit number, with its sign

_LF: Final = ord("\n")
_STAR: Final = ord("*")
_DOLLAR: Final = ord("$")


class FramingError(Exception):
    """The peer's fault; the text is Redis', after ``Protocol error: ``."""


class Framing:
    """Walks over the requests of a connection, keeping none of their bytes but those of
    an unfinished line.

    ``limit`` bounds the bytes of one request; ``authenticated`` switches off the narrow
    limits of a peer that has still to say who it is.
    """

    __slots__ = ("_args", "_bulk", "_line", "_size", "authenticated", "inline", "limit", "line")

    def __init__(self, limit: int | None, *, authenticated: bool = True) -> None:
        self.limit = limit
        self.authenticated = authenticated
        self.inline = False
        """Whether the request that just ended was an inline one, in ``line``."""
        self.line = b""
        self._line = bytearray()  # unfinished
        self._args = 0  # strings still to come; 0 between requests
        self._bulk = -1  # bytes to come of a string and its CR LF; -1: its length is next
        self._size = 0  # bytes of the request so far

    def take(self, data: bytes, pos: int) -> tuple[int, bool]:
        """Walk from ``pos`` to the end of the request, or of ``data``. Returns where it
        stopped and whether a request ended there; raises ``FramingError``."""
        stop = len(data)
        while pos < stop:
            if self._bulk < 0:
                first = self._line[0] if self._line else data[pos]
                inline = not self._args and first != _STAR
                end = self._take_line(data, pos, inline=inline)
                if end < 0:
                    return stop, False
                pos = end
                line = bytes(self._line)
                self._line.clear()
                if inline:
                    self._size = 0
                    self.inline = True
                    self.line = line
                    return pos, True
                if not self._args:
                    self._open(line)
                    if not self._args:
                        self._size = 0
                        self.inline = True  # `*0` and `*-1` are lines without words
                        self.line = b""
                        return pos, True
                else:
                    self._open_bulk(line)
                continue
            # A string: its bytes, CR and LF. The last two are judged one by one.
            here = min(stop - pos, self._bulk)
            end = pos + here
            before = self._bulk
            self._bulk -= here
            self._size += here
            if self._bulk < 2 and (
                (before >= 2 and data[end - 2 + self._bulk] != 0x0D)
                or (self._bulk == 0 and data[end - 1] != _LF)
            ):
                raise FramingError("expected CR LF after a bulk string")
            pos = end
            if not self._bulk:
                self._bulk = -1
                self._args -= 1
                if not self._args:
                    self._size = 0
                    self.inline = False
                    return pos, True
        return pos, False

    def _take_line(self, data: bytes, pos: int, *, inline: bool) -> int:
        """Take what there is of a line, without its end; returns where it ends in
        ``data``, -1 when it does not."""
        line = self._line
        # One byte beyond the limit must still come without an end before that is said.
        room = MAX_LINE + 2 - len(line)
        end = data.find(b"\n", pos, pos + room) if inline else -1
        if not inline:
            # The first CR ends the line, and LF must follow.
            cr = data.find(b"\r", pos, pos + room)
            split = line[-1:] == b"\r"
            if split or cr >= 0:
                end = pos if split else cr + 1
                before = len(line) - 1 if split else len(line) + cr - pos
                if before > MAX_LINE or self._exceeds(before + 1):
                    raise FramingError(self._too_long(inline=inline))
                if end == len(data):
                    end = -1
                elif data[end] != _LF:
                    raise FramingError(self._invalid())
        line += data[pos : end if end >= 0 else pos + room]
        size = len(line) + (end >= 0)
        if len(line) - (line[-1:] == b"\r") > MAX_LINE or self._exceeds(size):
            raise FramingError(self._too_long(inline=inline))
        if end < 0:
            return -1
        self._size += size
        if line[-1:] == b"\r":
            del line[-1:]
        return end + 1

    def _exceeds(self, more: int) -> bool:
        return self.limit is not None and self._size + more > self.limit

    def _too_long(self, *, inline: bool) -> str:
        if inline:
            return "too big inline request"
        return "too big bulk count string" if self._args else "too big mbulk count string"

    def _invalid(self) -> str:
        return "invalid bulk length" if self._args else "invalid multibulk length"

    def _open(self, line: bytes) -> None:
        """The line that begins a request."""
        count = number(line[1:])
        if count is None or count > MAX_ARGS:
            raise FramingError("invalid multibulk length")
        if count > UNAUTHENTICATED_ARGS and not self.authenticated:
            raise FramingError("unauthenticated multibulk length")
        if self.limit is not None and self._size + count * _SMALLEST_ARG > self.limit:
            raise FramingError("invalid multibulk length")
        self._args = max(0, count)

    def _open_bulk(self, line: bytes) -> None:
        """The line that begins a string."""
        if line[:1] != b"$":
            got = line[:1].decode("latin-1") or " "
            raise FramingError(f"expected '$', got '{got}'")
        length = number(line[1:])
        if length is None or length < 0:
            raise FramingError("invalid bulk length")
        # The strings still to come have a least size, too.
        rest = length + 2 + (self._args - 1) * _SMALLEST_ARG
        if self.limit is not None and self._size + rest > self.limit:
            raise FramingError("invalid bulk length")
        if length > UNAUTHENTICATED_BULK and not self.authenticated:
            raise FramingError("unauthenticated bulk length")
        self._bulk = length + 2


def number(digits: bytes) -> int | None:
    """An integer as Redis reads it (``string2ll``), in its only spelling: 64 bits, no
    spaces, plus, or leading zeros. None for what is none."""
    # int() takes far more than Redis does; what it takes must read the same when written.
    if len(digits) <= _LONGEST:
        try:
            value = int(digits)
        except ValueError:
            return None
        if INT_MIN <= value <= INT_MAX and b"%d" % value == digits:
            return value
    return None


# Blanks before a word and after a closing quote are those of C's isspace(); a word without
# quotes is not ended by a vertical tab or a form feed.
_UNQUOTED: Final = re.compile(rb"[^ \t\r\n\"'\0]+")
_DOUBLE: Final = re.compile(rb'"((?:[^"\\\0]|\\[^\0])*)"(?=[\s\0]|\Z)', re.DOTALL)
_SINGLE: Final = re.compile(rb"'((?:[^'\\\0]|\\'|\\(?!'))*)'(?=[\s\0]|\Z)", re.DOTALL)
_PLAIN: Final = re.compile(rb"[^\"'\0\v\f]*\Z")
_ENDS: Final = (b"", b"\0", b" ", b"\t", b"\r", b"\n")
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split_inline(line: bytes) -> list[bytes]:
    """The words of an inline request, by Redis' rules of quoting: ``"..."`` with escapes,
    ``'...'`` with ``\\'`` only; a closing quote ends its word. A NUL ends the line.

    Raises ``FramingError`` for quotes without an end.
    """
    if _PLAIN.match(line):
        return line.split()
    words: list[bytes] = []
    pos = 0
    while True:
        while line[pos : pos + 1].isspace():
            pos += 1
        if line[pos : pos + 1] in (b"", b"\0"):
            return words
        word = b""
        while (first := line[pos : pos + 1]) not in _ENDS:
            if first == b'"':
                found = _DOUBLE.match(line, pos)
                text = found and _ESCAPE.sub(_unescape, found[1])
            elif first == b"'":
                found = _SINGLE.match(line, pos)
                text = found and found[1].replace(b"\\'", b"'")
            else:
                found = _UNQUOTED.match(line, pos)
                text = found and found[0]
            if found is None or text is None:
                raise FramingError("unbalanced quotes in request")
            word += text
            pos = found.end()
            if first in (b'"', b"'"):
                break
        words.append(word)


def _unescape(found: re.Match[bytes]) -> bytes:
    what: bytes = found[1]
    if len(what) == 3:
        return bytes([int(what[1:], 16)])
    return _ESCAPES.get(what, what)
