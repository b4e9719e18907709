"""Descriptor: the number of an open file, for those who use it beside its owner."""

from __future__ import annotations

from typing import Final


class Descriptor:
    """A number that is -1 as soon as its owner closes it: the system gives it to the next who
    opens something, whose bytes must never be touched. Guarded as its owner is: for a
    connection's, by the connection's lock."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


NOWHERE: Final = Descriptor(-1)
