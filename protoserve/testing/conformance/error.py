"""ConformanceError, and how what was fed to a parser is written down."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

_SHOWN: Final = 400
"""Bytes of a piece that are shown; of more, the beginning and the end."""

_PIECES: Final = 12
"""Pieces that are shown one by one."""


class ConformanceError(AssertionError):
    """A protocol breaks its contract with the engine.

    ``check``: which property does not hold, as ``protoserve check`` lists them. ``fault``: what
    is wrong, in a sentence. ``fed``: what the parser was given, piece by piece. ``remedy``: what
    is to be done. As text it is all of that, and ``details``.
    """

    def __init__(
        self,
        fault: str,
        *,
        remedy: str,
        fed: Sequence[bytes] = (),
        details: Sequence[str] = (),
    ) -> None:
        super().__init__(fault)
        self.check = ""
        self.fault = fault
        self.remedy = remedy
        self.fed = tuple(fed)
        self.details = tuple(details)

    def __str__(self) -> str:
        lines = [f"{self.check}: {self.fault}" if self.check else self.fault]
        if self.fed:
            lines.append(f"  fed:  {pieces_as_text(self.fed)}")
        lines += [f"  {_shortened(detail)}" for detail in self.details]
        lines.append(f"  {self.remedy}")
        return "\n".join(lines)


class NotTried(Exception):  # noqa: N818 - no error
    """Raised by a check that does not apply; says why."""


def _shortened(text: str) -> str:
    """Of a long text the beginning and the end."""
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} ... {text[-_SHOWN:]}"


def bytes_as_text(data: bytes) -> str:
    """``repr``, of many bytes the first and last."""
    if len(data) <= _SHOWN:
        return repr(data)
    if not data.strip(data[:1]):
        return f"{data[:1]!r} * {len(data)}"
    half = _SHOWN // 4
    return f"{data[:half]!r} ... {data[-half:]!r} ({len(data)} bytes)"


def pieces_as_text(pieces: Sequence[bytes]) -> str:
    """What was fed, so that it can be fed again."""
    runs = [(piece, len([*same])) for piece, same in groupby(pieces)]
    if len(runs) <= _PIECES:
        return ", ".join(
            bytes_as_text(piece) if count == 1 else f"{count} times {bytes_as_text(piece)}"
            for piece, count in runs
        )
    whole = bytes_as_text(b"".join(pieces))
    if max(map(len, pieces)) == 1:
        return f"{whole}, byte by byte"
    return f"{whole}, in {len(pieces)} pieces of {', '.join(str(len(p)) for p in pieces[:24])}..."
