"""The sorted set: members by score, and by name where scores are equal."""

from __future__ import annotations

from bisect import bisect_left, insort


class SortedSet:
    """Members with scores. Finding a place is a binary search in a list."""

    __slots__ = ("ordered", "scores")

    def __init__(self) -> None:
        self.scores: dict[bytes, float] = {}
        self.ordered: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self.scores)

    def put(self, member: bytes, score: float) -> None:
        """Add the member, or give it another score."""
        old = self.scores.get(member)
        if old == score:
            return
        if old is not None:
            del self.ordered[self._place(old, member)]
        self.scores[member] = score
        insort(self.ordered, (score, member))

    def discard(self, member: bytes) -> bool:
        """Take the member out; False when it is none."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        del self.ordered[self._place(score, member)]
        return True

    def rank(self, member: bytes) -> int | None:
        """The member's position, from the lowest score on."""
        score = self.scores.get(member)
        return None if score is None else self._place(score, member)

    def take(self, positions: range) -> list[tuple[float, bytes]]:
        """Take out what stands there, in order."""
        taken = self.ordered[positions.start : positions.stop]
        del self.ordered[positions.start : positions.stop]
        for _, member in taken:
            del self.scores[member]
        return taken

    def first_from(self, score: float, *, exclusive: bool) -> int:
        """The position of the first member with that score or more; exclusive: with more."""
        if exclusive:
            return bisect_left(self.ordered, True, key=lambda pair: pair[0] > score)
        return bisect_left(self.ordered, score, key=lambda pair: pair[0])

    def _place(self, score: float, member: bytes) -> int:
        return bisect_left(self.ordered, (score, member))
