"""What the tables say of several turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.measure import Sample


def spread(values: Sequence[float], digits: int) -> str:
    """Minimum, median and maximum, as in every cell of the report."""
    low, middle, high = (f"{f(values):,.{digits}f}" for f in (min, median, max))
    return f"{low} / **{middle}** / {high}"


def good(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that count."""
    return [sample for sample in samples if not sample.faults]


def paired_ratio(
    ours: Sequence[Sample], others: Sequence[Sequence[Sample]], what: Callable[[Sample], float]
) -> list[float]:
    """Ours as a multiple of the least of the others', in each turn in which all are valid."""
    return [
        what(mine) / min(map(what, theirs))
        for mine, *theirs in zip(ours, *others, strict=False)
        if not any(sample.faults for sample in (mine, *theirs))
    ]
