"""From results to RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.connections_report import connections_section
from benchmarks.figures import good, paired_ratio, spread
from benchmarks.load import CONNECTIONS, RATE
from benchmarks.machine import QUIET
from benchmarks.measure import WARM_UP, Sample
from benchmarks.peers import BEFORE, OURS, PURE, REDIS_BEFORE, REDIS_PURE
from benchmarks.results import Results
from benchmarks.workloads import CLOSED, ECHO, PACED, WORKLOADS, Target, Workload

BARS, LINES = "results.svg", "connections.svg"
"""The pictures, beside the report."""

_AS_BEFORE = 1.02
"""What a pure build may take of another checkout's CPU: the same, but for noise."""

_KEEPS_UP = 0.97
"""The share of a fixed rate that a server answers which keeps up with it..."""

_MAY_LAG = 0.2
"""...in all turns but this share of them."""

_AT_REST = 0.01
"""The share of a core that servers which are not loaded may take before it is said."""


def _cpu(sample: Sample) -> float:
    return sample.cpu


def measured(results: Results) -> list[Workload]:
    """The workloads that there are samples of, in their order."""
    return [workload for workload in WORKLOADS if (workload.name, CLOSED) in results.samples]


def _columns(samples: Sequence[Sample], ours: Sequence[Sample], rates: bool) -> list[str]:
    valid = good(samples)
    if not valid:
        return ["invalid" if samples else "", *[""] * (2 + rates)]
    ratios = paired_ratio(samples, [ours], _cpu)
    return [
        *[spread([sample.rate for sample in valid], 0)] * rates,
        spread([sample.p99 * 1e3 for sample in valid], 2),
        spread([sample.cpu for sample in valid], 1),
        f"{median(ratios):.2f}" if ratios else "",
    ]


def _lagged(peer: str, samples: Sequence[Sample], rate: int) -> list[str]:
    """A note, when the peer did not keep up."""
    rates = [sample.rate for sample in good(samples)]
    slow = [each for each in rates if each < _KEEPS_UP * rate]
    if len(slow) <= _MAY_LAG * len(rates):
        return []
    return [
        f"{peer} did not keep up with {rate:,}/s in {len(slow)} of {len(rates)} turns: at worst "
        f"it answered {min(slow):,.0f}."
    ]


def _table(results: Results, workload: Workload, without: Mapping[str, str]) -> list[str]:
    figures = list(workload.figures())
    rate = f"{workload.paced.rate:,}/s" if workload.paced else ""
    heads = ["requests/s", "p99, ms", "CPU, µs/request", ": ours"]
    heads += [f"{rate}: p99, ms", f"{rate}: CPU, µs/request", f"{rate}: ours"] * bool(rate)
    by_figure = [results.samples[workload.name, figure] for figure in figures]
    commands = [load.said(results.seconds) for load in workload.figures().values()]
    lines = [f"## {workload.title}", ""]
    lines += [f"* {f}: `{said}`" for f, said in zip(figures, commands, strict=True)]
    lines += ["", *([workload.note, ""] if workload.note else [])]
    lines += [f"| server | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    notes: dict[str, None] = {}
    for peer in by_figure[0]:
        cells: list[str] = []
        for figure, by_peer in zip(figures, by_figure, strict=True):
            samples, ours = by_peer.get(peer, []), by_peer.get(workload.ours, [])
            cells += _columns(samples, ours, rates=figure == CLOSED)
            notes |= {
                f"A turn of {peer}, {figure}, does not count: {sample.faults}.": None
                for sample in samples
                if sample.faults
            }
            if workload.paced and figure == PACED:
                notes |= dict.fromkeys(_lagged(peer, samples, workload.paced.rate))
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    for why in dict.fromkeys(without.values()):
        names = " and ".join(peer for peer, said in without.items() if said == why)
        notes[f"Not measured: {names} ({why})."] = None
    return [*lines, "", *(line for note in notes for line in (note, ""))]


def _targets_of(results: Results, workload: Workload) -> Iterable[Target]:
    yield from workload.targets
    pure, before = (PURE, BEFORE) if workload.ours == OURS else (REDIS_PURE, REDIS_BEFORE)
    for figure in workload.figures():
        if before in results.samples[workload.name, figure]:
            yield Target((before,), _AS_BEFORE, pure, figure)


def _targets(results: Results) -> list[str]:
    lines = []
    for workload in measured(results):
        for target in _targets_of(results, workload):
            by_peer = results.samples[workload.name, target.figure]
            peers = " or ".join(target.peers)
            best = f"the better of {peers.replace(' or ', ' and ')}"
            goal = (
                f"| {workload.name} | {target.figure} | {target.ours} ≤ {target.factor:g} × "
                f"{peers if len(target.peers) == 1 else best} |"
            )
            theirs = [by_peer.get(peer, []) for peer in target.peers]
            ratios = paired_ratio(by_peer.get(target.ours, []), theirs, _cpu)
            if not ratios:
                lines.append(f"{goal} | not measured |")
                continue
            verdict = "met" if median(ratios) <= target.factor else "**missed**"
            lines.append(f"{goal} {spread(ratios, 2)} | {verdict} |")
    if not lines:
        return []
    head = ["| workload | figure | target | measured | |", "|---|---|---|---|---|"]
    said = "CPU for each request, as a multiple of the peer's in the same turn."
    why = "Where the time goes of what was missed, and what is needed: [PROFILE.md](PROFILE.md)."
    return ["## Targets", "", said, "", *head, *lines, "", why, ""]


def _stages(results: Results) -> list[str]:
    """Where the time of an echo request goes, in order of cost."""
    by_peer = results.samples.get((ECHO.name, CLOSED), {})
    lines = []
    for name, stages in results.stages.items():
        ours = good(by_peer.get(name, []))
        if not ours or not stages:
            continue
        whole = median(sample.cpu for sample in ours)
        rest = whole - sum(stages.values())
        parts = stages | {"system calls, and what they push out of the caches": rest}
        lines += [f"| {name} | the whole request | {whole:.1f} | |"]
        lines += [
            f"| | {stage} | {micros:.1f} | {micros / whole:.0%} |"
            for stage, micros in sorted(parts.items(), key=lambda part: -part[1])
        ]
    if not lines and not results.no_stages:
        return []
    return [
        "## Where the time of an echo request goes",
        "",
        "System calls (recv, send, epoll) are what is left of the CPU measured in a closed loop; "
        "the other stages were timed in one process without sockets, with everything in the "
        "caches.",
        "",
        "| server | stage | µs | share |",
        "|---|---|---|---|",
        *lines,
        "",
        *(
            line
            for name, why in results.no_stages.items()
            for line in (f"{name} could not be taken apart: {why}.", "")
        ),
    ]


def _resting(results: Results, workload: Workload) -> list[str]:
    """What the servers took that were not loaded, when that is much: the median of the largest
    share in each turn."""
    alive: dict[str, None] = {}
    shares = []
    for figure in workload.figures():
        by_peer = results.samples.get((workload.name, figure), {})
        alive |= {peer: None for peer, samples in by_peer.items() if good(samples)}
        for turn in zip(*by_peer.values(), strict=False):
            if valid := good(turn):
                shares.append(max(sample.idle_others for sample in valid))
    if not shares or median(shares) <= _AT_REST:
        return []
    return [
        f"**Servers that were not loaded took {median(shares):.1%} of the core** while another "
        f"was loaded with {workload.name}: alive were {', '.join(alive)}"
    ]


def _caveats(results: Results) -> list[str]:
    """What the figures are worth: how quiet the machine was and servers that were not loaded were,
    and whether ours is compiled."""
    said = []
    if results.others:
        usual, worst = median(results.others), max(results.others)
        share = f"{usual:.1%} of the processors while something was measured, at worst {worst:.1%}"
        said.append(f"Others took {share}" if usual <= QUIET else f"**Others took {share}**")
    said += [line for workload in measured(results) for line in _resting(results, workload)]
    if results.versions.get(OURS, "").endswith("pure"):
        said.append(f"**{OURS} could not be compiled here**: it is measured as Python, twice")
    return said


def markdown(
    results: Results, missing: Sequence[str], without: Mapping[str, Mapping[str, str]], left: str
) -> str:
    """The report. ``missing``: peers that are not installed; ``without``: by workload, those
    that cannot serve it, and why; ``left``: why there are not more connections."""
    lines = [
        "# protoserve and its peers",
        "",
        "Made by `make bench`. Every server has one worker and its access log off, protoserve "
        "all its defaults (timeouts, limits, `Date`), as `pip install` compiles it and, "
        "under the name of pure, as Python. Each round of a workload starts all its servers "
        f"afresh, checks their answers and warms each up for at least {WARM_UP:g} s. Then, all "
        "alive together, they are loaded in turn, one directly after the other, for "
        f"{results.seconds:g} s each; turns in a round: {results.turns}, every second one in the "
        "opposite order. Cells are minimum / **median** / maximum of "
        f"{results.rounds * results.turns} samples, one for each turn of each round. CPU is that "
        "of the server's process and its children, user and system.",
        "",
        f"* In the closed loop each of {CONNECTIONS} connections (`wrk`) sends its next request "
        "when it has its answer. The server is never at rest, but for what it waits for the "
        "client, and each time that it has to be woken is in the figure: a slower handler costs "
        "more there than what was added to it.",
        f"* At a fixed rate (`h2load`) {RATE:,} requests a second are offered to every server: "
        f"one every 10 ms on each of {RATE // 100} connections, all at the same time. p99 is "
        "that of the last of so many requests. Requests and CPU are counted while the connections "
        "are open: opening and closing them is not in the figure.",
        "",
        *(f"* {fact}" for fact in [*results.facts, *_caveats(results)]),
        *(f"* {name}: {version}" for name, version in results.versions.items()),
        *(f"* {name}: **missing**, not installed here" for name in missing),
        "",
        f"![CPU per request]({BARS})",
        "",
        *_targets(results),
    ]
    for workload in measured(results):
        lines += _table(results, workload, without.get(workload.name, {}))
    lines += connections_section(results, left, LINES)
    lines += _stages(results)
    return "\n".join(lines).rstrip() + "\n"
