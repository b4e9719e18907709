"""The section on open connections of RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.connections import Step
from benchmarks.figures import good, paired_ratio, spread
from benchmarks.results import Results
from benchmarks.workloads import FEW, SPARSE


def by_count(rounds: Sequence[Sequence[Step]]) -> dict[int, list[Step]]:
    """The steps of every round, by the number of connections."""
    found: dict[int, list[Step]] = {}
    for steps in rounds:
        for step in steps:
            found.setdefault(step.count, []).append(step)
    return found


def _rows(server: str, rounds: Sequence[Sequence[Step]]) -> list[str]:
    steps = by_count(rounds)
    fewest = [step.sample for step in steps[min(steps)]]
    rows = []
    for count, each in steps.items():
        samples = [step.sample for step in each]
        valid = good(samples)
        if not valid:
            rows.append(f"| {server} | {count:,} | invalid | | | | |")
            continue
        ratios = paired_ratio(samples, [fewest], lambda sample: sample.cpu)
        sizes = [step.bytes_each for step in each if step.bytes_each is not None]
        rests = [step.resting * 1e3 for step in each if step.resting is not None]
        cells = [
            spread([sample.cpu for sample in valid], 1),
            spread(ratios, 2) if ratios else "",
            spread([sample.p99 * 1e3 for sample in valid], 2),
            f"{median(sizes):,.0f}" if sizes else "",
            f"{median(rests):.2f}" if rests else "",
        ]
        rows.append(f"| {server} | {count:,} | {' | '.join(cells)} |")
    return rows


def connections_section(results: Results, left: str, picture: str) -> list[str]:
    """The lines of the section; none when nothing was measured."""
    if not results.connections or SPARSE.paced is None:
        return []
    faults = dict.fromkeys(
        f"A round of {server} does not count: {steps[0].sample.faults}."
        for server, rounds in results.connections.items()
        for steps in rounds
        if steps[0].sample.faults
    )
    notes = [*faults, *([f"Measured with {left}."] if left else [])]
    return [
        "## Open connections, few of them active",
        "",
        f"The echo page, {SPARSE.paced.rate:,} requests/s from {FEW} connections; the others "
        "have had one answer and are idle. One server at a time, for all numbers of connections: "
        "from few to many and, every other round, from many to few; a sample of "
        f"{results.seconds_a_round:g} s of each in a round. Bytes are those of the server's "
        "resident memory, median; what the kernel keeps for its sockets is not in it.",
        "",
        f"* fixed rate: `{SPARSE.paced.said(results.seconds_a_round)}`",
        "",
        f"![Cost of open connections]({picture})",
        "",
        f"| server | open | CPU, µs/request | : with {FEW} open | p99, ms | bytes each idle "
        "one | CPU at rest, ms/s |",
        "|---|---|---|---|---|---|---|",
        *(row for server, rounds in results.connections.items() for row in _rows(server, rounds)),
        "",
        *(line for note in notes for line in (note, "")),
    ]
