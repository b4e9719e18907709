"""The section "handlers that block" of RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.blocking import (
    CONNECTIONS,
    PIPELINED,
    SLOW_CLIENTS,
    THREADS,
    BlockingResults,
    Case,
    Waits,
)
from benchmarks.figures import good, spread
from benchmarks.measure import Sample
from benchmarks.peers import BEFORE, OURS, PURE

TITLE = "## Handlers that block"

_OURS = (OURS, PURE, BEFORE)
AS_BEFORE = 0.98
FAST_PATH = 2.0
FAIRNESS = 5.0
"""Milliseconds that the median may be."""


def _rate_ratios(ours: Sequence[Sample], others: Sequence[Sequence[Sample]]) -> list[float]:
    """Our rate as a multiple of the best of the others', in each round that has both."""
    ratios = []
    for mine, *theirs in zip(ours, *others, strict=True):
        rates = [sample.rate for sample in theirs if not sample.faults]
        if rates and not mine.faults:
            ratios.append(mine.rate / max(rates))
    return ratios


def _row(what: str, target: str, values: Sequence[float], digits: int, met: bool) -> str:
    if not values:
        return f"| {what} | {target} | | not measured |"
    verdict = "met" if met else "**missed**"
    return f"| {what} | {target} | {spread(values, digits)} | {verdict} |"


def _rate_targets(results: BlockingResults) -> list[str]:
    rows = []
    for (case, connections), by_peer in results.samples.items():
        what = f"{case.name}, {connections} connections"
        ours = by_peer.get(OURS, [])
        peers = [samples for name, samples in by_peer.items() if name not in _OURS]
        if case.factor is not None:
            ratios = _rate_ratios(ours, peers)
            met = bool(ratios) and median(ratios) >= case.factor
            rows.append(_row(what, f"≥ {case.factor} × the better peer", ratios, 2, met))
        if case.as_before and BEFORE in by_peer:
            ratios = _rate_ratios(by_peer.get(PURE, []), [by_peer[BEFORE]])
            met = bool(ratios) and median(ratios) >= AS_BEFORE
            rows.append(_row(what, f"pure ≥ {AS_BEFORE} × {BEFORE}", ratios, 2, met))
    return rows


def _medians(rounds: Sequence[Waits], side: str) -> list[float]:
    """The median of each round, in milliseconds."""
    return [median(getattr(waits, side)) * 1e3 for waits in rounds if not waits.faults]


def _wait_target(what: str, limit: float, rounds: Sequence[Waits]) -> str:
    medians = _medians(rounds, "beside")
    met = bool(medians) and median(medians) <= limit
    return _row(what, f"median ≤ {limit:g} ms", medians, 2, met)


def _rates(results: BlockingResults) -> list[str]:
    servers = list(dict.fromkeys(name for by in results.samples.values() for name in by))
    lines = [
        "| the handler | connections |" + "".join(f" {name} | p50, ms |" for name in servers),
        "|---|---|" + "---|---|" * len(servers),
    ]
    notes: dict[str, None] = {}
    for (case, connections), by_peer in results.samples.items():
        cells = []
        for name in servers:
            samples = by_peer.get(name, [])
            for sample in samples:
                if sample.faults:
                    notes[_said(case, connections, name, sample)] = None
            valid = good(samples)
            if valid:
                cells.append(f"{median(s.rate for s in valid):,.0f}")
                cells.append(f"{median(s.p50 for s in valid) * 1e3:.2f}")
            else:
                cells += ["invalid" if samples else "", ""]
        lines.append(f"| {case.name} | {connections} | {' | '.join(cells)} |")
    return [*lines, "", *_notes(notes)]


def _said(case: Case, connections: int, name: str, sample: Sample) -> str:
    return f"{case.name}, {connections} connections, {name}: {sample.faults}."


def _waits(by_peer: Mapping[str, Sequence[Waits]], alone: bool) -> list[str]:
    lines = [
        f"| server |{' median alone, ms |' * alone} median beside, ms | worst beside, ms |",
        f"|---|{'---|' * alone}---|---|",
    ]
    notes = []
    for name, rounds in by_peer.items():
        notes += [f"{name}: {waits.faults}." for waits in rounds if waits.faults]
        valid = [waits for waits in rounds if not waits.faults]
        if not valid:
            lines.append(f"| {name} | invalid |{' |' * alone} |")
            continue
        cells = [spread(_medians(valid, "alone"), 2)] * alone
        cells.append(spread(_medians(valid, "beside"), 2))
        cells.append(f"{max(max(waits.beside) for waits in valid) * 1e3:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *_notes(dict.fromkeys(notes))]


def _notes(notes: Iterable[str]) -> list[str]:
    lines = [f"Rounds that do not count: {note}" for note in notes]
    return lines + [""] * bool(lines)


def section(results: BlockingResults) -> str:
    """The section, from its heading on."""
    few, many = CONNECTIONS
    targets = [
        *_rate_targets(results),
        _wait_target(
            f"fast path beside {SLOW_CLIENTS} clients of a 4 ms handler",
            FAST_PATH,
            results.fast_path.get(OURS, []),
        ),
        _wait_target(
            f"others beside {PIPELINED:,} pipelined requests of 1 ms of CPU",
            FAIRNESS,
            results.fairness.get(OURS, []),
        ),
    ]
    lines = [
        TITLE,
        "",
        f"Every server has one worker and runs {THREADS} handlers at once (protoserve's default); "
        f"{few} or {many} connections for {results.seconds:g} s in each of {results.rounds} "
        "rounds. A fresh protoserve for each handler, one server of each peer for a whole round. "
        "Measured: minimum / **median** / maximum of the rounds.",
        "",
        *(f"* {name}: {version}" for name, version in results.versions.items()),
        "",
        "| | target | measured | |",
        "|---|---|---|---|",
        *targets,
        "",
        f"### Requests a second from {few} and {many} connections, and the median of their times",
        "",
        *_rates(results),
        f"### A fast path beside {SLOW_CLIENTS} clients of a 4 ms handler",
        "",
        "One client, a millisecond after each answer.",
        "",
        *_waits(results.fast_path, alone=True),
        f"### Others beside one connection that pipelines {PIPELINED:,} requests of 1 ms of CPU",
        "",
        *_waits(results.fairness, alone=False),
    ]
    return "\n".join(lines).rstrip() + "\n"


def put_in(report: str, text: str) -> str:
    """The report with the section replaced, or added before the last one."""
    parts = report.split("\n## ")
    title = TITLE.removeprefix("## ")
    fresh = text.removeprefix("## ").rstrip("\n") + "\n"
    at = next((i for i, part in enumerate(parts) if part.startswith(title + "\n")), None)
    if at is None:
        parts.insert(max(1, len(parts) - 1), fresh)
    else:
        parts[at] = fresh
    return "\n## ".join(part.rstrip("\n") + "\n" for part in parts).lstrip("\n")
