"""Redis' glob patterns: ``*``, ``?``, ``[a-z]``, ``[^a]`` and the backslash.

The standard library's differ in ``[^``, escapes and unfinished sets. A pattern is cut at
its stars into pieces of fixed length, each sought once from the left, so that no pattern
takes more than (length of the pattern) x (length of the data) steps.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from protoserve_redis.values import RedisError

MAX_PATTERN: Final = 1024
"""Bytes of a pattern; compiling one takes time, in which other commands wait."""


class _Literal:
    """A piece without signs, which need not be compiled: nearly all are."""

    __slots__ = ("_text", "size")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.size = len(text)

    def stands_at(self, data: bytes, at: int) -> bool:
        """Whether it matches at a place."""
        return data.startswith(self._text, at)

    def end_of_next(self, data: bytes, at: int) -> int:
        """Where its first match from a place on ends; -1 for none."""
        found = data.find(self._text, at)
        return -1 if found < 0 else found + self.size


class _Expression:
    """A piece with ``?`` or sets."""

    __slots__ = ("_expression", "size")

    def __init__(self, source: bytes, size: int) -> None:
        self._expression = re.compile(source, re.DOTALL)
        self.size = size

    def stands_at(self, data: bytes, at: int) -> bool:
        """See ``_Literal``."""
        return self._expression.match(data, at) is not None

    def end_of_next(self, data: bytes, at: int) -> int:
        """See ``_Literal``."""
        found = self._expression.search(data, at)
        return -1 if found is None else found.end()


def _compiled(piece: list[tuple[bytes, bool]]) -> _Literal | _Expression:
    if all(literal for _, literal in piece):
        return _Literal(b"".join(one for one, _ in piece))
    source = b"".join(re.escape(one) if literal else one for one, literal in piece)
    return _Expression(source, len(piece))


class Glob:
    """A compiled pattern; immutable, for any thread. Raises ``RedisError`` for one that is
    longer than ``MAX_PATTERN``."""

    __slots__ = ("_first", "_last", "_middle")

    def __init__(self, pattern: bytes) -> None:
        if len(pattern) > MAX_PATTERN:
            raise RedisError(f"ERR the pattern is longer than {MAX_PATTERN} bytes")
        pieces = [_compiled(piece) for piece in _pieces(pattern)]
        self._first = pieces[0]
        self._middle = pieces[1:-1]
        # None: no star, and the first piece is all there is.
        self._last = pieces[-1] if len(pieces) > 1 else None

    def match(self, data: bytes) -> bool:
        """Whether the whole of ``data`` matches."""
        last = self._last
        first = self._first
        if not first.stands_at(data, 0):
            return False
        at = first.size
        if last is None:
            return len(data) == at
        for piece in self._middle:
            at = piece.end_of_next(data, at)
            if at < 0:
                return False
        start = len(data) - last.size
        return start >= at and last.stands_at(data, start)


@lru_cache(maxsize=256)
def glob(pattern: bytes) -> Glob:
    """``pattern`` compiled; the last 256 are remembered."""
    return Glob(pattern)


def _pieces(pattern: bytes) -> list[list[tuple[bytes, bool]]]:
    """What stands between the stars; each piece a list of what stands for one byte, and
    whether that is itself."""
    pieces: list[list[tuple[bytes, bool]]] = [[]]
    size = len(pattern)
    i = 0
    while i < size:
        char = pattern[i : i + 1]
        i += 1
        if char == b"*":
            # Many stars are one; the first and the last piece may be empty.
            if len(pieces) == 1 or pieces[-1]:
                pieces.append([])
        elif char == b"?":
            pieces[-1].append((b".", False))
        elif char == b"[":
            one, i = _set(pattern, i)
            pieces[-1].append((one, False))
        else:
            if char == b"\\" and i < size:
                char = pattern[i : i + 1]
                i += 1
            pieces[-1].append((char, True))
    return pieces


def _set(pattern: bytes, i: int) -> tuple[bytes, int]:
    """The set that begins at ``i``, after its bracket; where the pattern goes on."""
    size = len(pattern)
    negated = pattern[i : i + 1] == b"^"
    i += negated
    members: set[int] = set()
    while i < size and pattern[i] != 0x5D:  # ]
        if pattern[i] == 0x5C and i + 1 < size:  # \
            members.add(pattern[i + 1])
            i += 2
        elif i + 2 < size and pattern[i + 1] == 0x2D:  # -
            low, high = sorted((pattern[i], pattern[i + 2]))
            members.update(range(low, high + 1))
            i += 3
        else:
            members.add(pattern[i])
            i += 1
    i += 1
    if negated:
        members = set(range(256)) - members
    if not members:
        return b"(?!).", i
    return b"[" + b"".join(_ranges(sorted(members))) + b"]", i


def _ranges(members: list[int]) -> list[bytes]:
    """Members of a set, in order, as few ranges: sets are compiled by their length."""
    ranges: list[list[int]] = []
    for member in members:
        if ranges and ranges[-1][1] == member - 1:
            ranges[-1][1] = member
        else:
            ranges.append([member, member])
    return [b"\\x%02x-\\x%02x" % (low, high) for low, high in ranges]
