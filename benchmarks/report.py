"""From samples to RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.chart import bar_chart
from benchmarks.idle import IdleRound
from benchmarks.load import CONNECTIONS
from benchmarks.machine import facts
from benchmarks.measure import Sample
from benchmarks.peers import ASYNC, OURS
from benchmarks.workloads import REDIS, Workload


@dataclass
class Results:
    """Everything that was measured; one sample for each round, in the rounds' order."""

    rounds: int
    seconds: float
    versions: Mapping[str, str]
    missing: Sequence[str]
    without: Mapping[tuple[str, str], str]
    samples: dict[Workload, dict[str, list[Sample]]] = field(default_factory=dict)
    idle: list[IdleRound] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)


def spread(values: Sequence[float], digits: int) -> str:
    """Minimum, median and maximum, as in every cell of the report."""
    low, middle, high = (f"{f(values):,.{digits}f}" for f in (min, median, max))
    return f"{low} / **{middle}** / {high}"


def good(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that count."""
    return [sample for sample in samples if not sample.faults]


def paired_ratio(
    ours: Sequence[Sample], theirs: Sequence[Sample], what: Callable[[Sample], float]
) -> list[float]:
    """The ratio of each round in which both are valid."""
    pairs = zip(ours, theirs, strict=True)
    return [what(a) / what(b) for a, b in pairs if not a.faults and not b.faults]


def _cpu(sample: Sample) -> float:
    return sample.cpu


def _rate(sample: Sample) -> float:
    return sample.rate


def _table(results: Results, workload: Workload) -> list[str]:
    by_peer = results.samples[workload]
    ours = by_peer.get(workload.ours, [])
    lines = [
        f"## {workload.title}",
        "",
        "| server | requests/s | p99, ms | CPU, µs/request | its CPU : ours |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for peer, samples in by_peer.items():
        valid = good(samples)
        faults = sorted({sample.faults for sample in samples if sample.faults})
        notes += [f"{peer}: {fault}" for fault in faults]
        if not valid:
            lines.append(f"| {peer} | invalid | | | |")
            continue
        ratios = paired_ratio(samples, ours, _cpu) if ours else []
        ratio = f"{median(ratios):.2f}" if ratios else ""
        cells = [
            spread([sample.rate for sample in valid], 0),
            spread([sample.p99 * 1e3 for sample in valid], 2),
            spread([sample.cpu for sample in valid], 1),
        ]
        lines.append(f"| {peer} | {' | '.join(cells)} | {ratio} |")
    lines += [""] + [f"Rounds that do not count: {note}" for note in notes] + [""] * bool(notes)
    skipped = [why for (name, _), why in results.without.items() if name == workload.name]
    return lines + [f"Not measured: {'; '.join(skipped)}.", ""] * bool(skipped)


def _targets(results: Results) -> list[str]:
    lines = []
    for workload, by_peer in results.samples.items():
        for target in workload.targets:
            goal = f"| {workload.name} | {target.ours} ≤ {target.factor} × {target.peer}"
            ours, theirs = by_peer.get(target.ours), by_peer.get(target.peer)
            ratios = paired_ratio(ours, theirs, _cpu) if ours and theirs else []
            if not ratios:
                lines.append(f"{goal} | | not measured |")
                continue
            verdict = "met" if median(ratios) <= target.factor else "**missed**"
            lines.append(f"{goal} | {spread(ratios, 2)} | {verdict} |")
    if not lines:
        return []
    head = ["| workload | target | measured | |", "|---|---|---|---|"]
    said = "CPU for each request, as a multiple of the peer's in the same round."
    return ["## Targets", "", said, "", *head, *lines, ""]


def _idle(rounds: Sequence[IdleRound]) -> list[str]:
    if not rounds:
        return []
    alone, beside = [r.alone for r in rounds], [r.beside for r in rounds]
    lines = [
        f"## {rounds[0].count:,} idle keep-alive connections",
        "",
        f"Each takes {median(r.bytes_each for r in rounds) / 1024:.1f} KiB of the server's "
        "resident memory (what the kernel keeps for its sockets is not in it).",
        "",
        "| echo page | requests/s | p99, ms | CPU, µs/request |",
        "|---|---|---|---|",
    ]
    for title, samples in (("alone", alone), ("beside them", beside)):
        valid = good(samples)
        if not valid:
            lines.append(f"| {title} | invalid | | |")
            continue
        rates = spread([s.rate for s in valid], 0)
        tails = spread([s.p99 * 1e3 for s in valid], 2)
        lines.append(f"| {title} | {rates} | {tails} | {spread([s.cpu for s in valid], 1)} |")
    cpu, rate = (paired_ratio(beside, alone, what) for what in (_cpu, _rate))
    lines.append("")
    if cpu:
        base = [sample.cpu for sample in good(alone)]
        noise = (max(base) - min(base)) / median(base)
        lines += [
            f"Beside them : alone, round by round: CPU {spread(cpu, 3)}, requests/s "
            f"{spread(rate, 3)}. Noise: the runs alone differ by {noise:.1%} among themselves.",
            "",
        ]
    return lines


def _stages(results: Results) -> list[str]:
    """Where the time of an echo request goes, in order of cost."""
    echo = next((w for w in results.samples if w.name == "echo"), None)
    ours = good(results.samples[echo].get(OURS, [])) if echo else []
    if not ours or not results.stages:
        return []
    whole = median(sample.cpu for sample in ours)
    parts = dict(results.stages)
    parts["system calls (recv, send, epoll), and what they push out of the caches"] = whole - sum(
        parts.values()
    )
    return [
        f"## Where the {whole:.1f} µs of an echo request go",
        "",
        "System calls are what is left of the measured CPU; the other stages were timed in one "
        "process without sockets, with everything in the caches.",
        "",
        "| stage | µs | share |",
        "|---|---|---|",
        *(
            f"| {stage} | {micros:.1f} | {micros / whole:.0%} |"
            for stage, micros in sorted(parts.items(), key=lambda part: -part[1])
        ),
        "",
    ]


def markdown(results: Results) -> str:
    """The report."""
    lines = [
        "# protoserve and its peers",
        "",
        "Made by `make bench`. Every server has one worker and its access log off, protoserve "
        "all its defaults (timeouts, limits, `Date`). Each round starts every server afresh, "
        f"checks its answer, warms it up and loads it for {results.seconds:g} s over "
        f"{CONNECTIONS} connections. Cells are minimum / **median** / maximum of "
        f"{results.rounds} rounds. CPU is that of the server's process and its children, user "
        "and system.",
        "",
        *(f"* {fact}" for fact in facts()),
        *(f"* {name}: {version}" for name, version in results.versions.items()),
        *(f"* {name}: **missing**, not installed here" for name in results.missing),
        "",
        "![CPU per request](results.svg)",
        "",
        *_targets(results),
    ]
    for workload in results.samples:
        lines += _table(results, workload)
    lines += _idle(results.idle)
    lines += _stages(results)
    return "\n".join(lines).rstrip() + "\n"


def chart(results: Results) -> str:
    """The bar chart of the medians."""
    groups = {
        workload.title: {
            peer: median(sample.cpu for sample in valid)
            for peer, samples in by_peer.items()
            if (valid := good(samples))
        }
        for workload, by_peer in results.samples.items()
    }
    return bar_chart(groups, {OURS, ASYNC, REDIS})
