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


class Glob:
    """A compiled pattern; immutable, for any thread."""

    __slots__ = ("_first", "_last", "_last_size", "_middle")

    def __init__(self, pattern: bytes) -> None:
        if len(pattern) > MAX_PATTERN:
            raise RedisError(f"ERR the pattern is longer than {MAX_PATTERN} bytes")
        pieces = [(re.compile(b"".join(p), re.DOTALL), len(p)) for p in _pieces(pattern)]
        self._first = pieces[0][0]
        self._middle = [piece for piece, _ in pieces[1:-1]]
        # None: no star, and the first piece is all there is.
        self._last = pieces[-1][0] if len(pieces) > 1 else None
        self._last_size = pieces[-1][1]

    def match(self, data: bytes) -> bool:
        """Whether the whole of ``data`` matches."""
        last = self._last
        if last is None:
            return self._first.fullmatch(data) is not None
        found = self._first.match(data)
        if found is None:
            return False
        at = found.end()
        for piece in self._middle:
            found = piece.search(data, at)
            if found is None:
                return False
            at = found.end()
        start = len(data) - self._last_size
        return start >= at and last.match(data, start) is not None


@lru_cache(maxsize=256)
def glob(pattern: bytes) -> Glob:
    """``pattern`` compiled; the last 256 are remembered."""
    return Glob(pattern)


def _pieces(pattern: bytes) -> list[list[bytes]]:
    """What stands between the stars; each piece a list of expressions for one byte."""
    pieces: list[list[bytes]] = [[]]
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
            pieces[-1].append(b".")
        elif char == b"[":
            one, i = _set(pattern, i)
            pieces[-1].append(one)
        else:
            if char == b"\\" and i < size:
                char = pattern[i : i + 1]
                i += 1
            pieces[-1].append(re.escape(char))
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
