"""The pictures of the report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import median

import matplotlib

from benchmarks.connections import Step
from benchmarks.connections_report import by_count
from benchmarks.figures import good
from benchmarks.peers import BEFORE, OURS, PURE
from benchmarks.report import measured
from benchmarks.results import Results
from benchmarks.workloads import CLOSED, PACED

matplotlib.use("svg")
# Text stays text, and the same figures make the same file.
matplotlib.rcParams |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "protoserve",
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
}

from matplotlib import pyplot  # noqa: E402
from matplotlib.artist import Artist  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

_COMPILED, _PURE, _EARLIER, _PEER = "#c1432e", "#e09a52", "#b7a99a", "#6f86a0"
_LIGHTER = 0.45
_WIDTH = 9.0
_COLOURS = {OURS: _COMPILED, PURE: _PURE, "uvicorn": "#3b6ea5", "bjoern": "#4f9a63"}


def _colour(server: str) -> str:
    if not server.startswith("protoserve"):
        return _PEER
    if server.endswith("pure"):
        return _PURE
    return _EARLIER if server.endswith("before") else _COMPILED


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _whiskers(values: Sequence[float]) -> tuple[float, list[list[float]]]:
    """The median, and how far down and up the others are."""
    middle = median(values)
    return middle, [[middle - min(values)], [max(values) - middle]]


def bars(results: Results) -> str:
    """CPU per request of every server: a panel for each workload, a bar for each figure."""
    workloads = measured(results)
    counts = [len(results.samples[workload.name, CLOSED]) for workload in workloads]
    heights = [max(counts[n : n + 2]) + 2 for n in range(0, len(counts), 2)]
    figure, panels = pyplot.subplots(
        len(heights), 2, figsize=(_WIDTH, 1 + 0.28 * sum(heights)), squeeze=False,
        layout="constrained", height_ratios=heights,
    )  # fmt: skip
    for panel, workload in zip(panels.flat, workloads, strict=False):
        figures = list(workload.figures())
        names = list(results.samples[workload.name, CLOSED])
        for row, name in enumerate(names):
            for n, kind in enumerate(figures):
                valid = good(results.samples[workload.name, kind].get(name, []))
                if not valid:
                    continue
                value, spread = _whiskers([sample.cpu for sample in valid])
                height = 0.4 if len(figures) > 1 else 0.6
                at = row + height * (n + 0.5 - len(figures) / 2)
                opaque = 1 if kind == CLOSED else _LIGHTER
                panel.barh(
                    at, value, height, color=_colour(name), alpha=opaque,
                    xerr=spread, error_kw={"lw": 1, "capsize": 2, "ecolor": "#222"},
                )  # fmt: skip
                panel.annotate(
                    f"{value:.1f}", (value + spread[1][0], at), (4, 0),
                    textcoords="offset points", va="center", fontsize=7,
                )  # fmt: skip
        panel.set_title(workload.title.split(":")[0], loc="left", fontsize=10, weight="bold")
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.margins(x=0.12)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(panels.flat)[len(workloads) :]:
        panel.set_visible(False)
    kinds = {_named(results): _COMPILED, PURE: _PURE, "its peers": _PEER}
    if any(name.endswith("before") for by_peer in results.samples.values() for name in by_peer):
        kinds[BEFORE] = _EARLIER
    legend: list[Artist] = [Patch(color=colour, label=kind) for kind, colour in kinds.items()]
    legend.append(Patch(color="#555", label=CLOSED))
    if rates := sorted({workload.paced.rate for workload in workloads if workload.paced}):
        offered = " or ".join(f"{rate:,}" for rate in rates)
        label = f"{PACED}: {offered} requests/s"
        legend.append(Patch(color="#555", alpha=_LIGHTER, label=label))
    legend.append(Line2D([], [], color="#222", lw=1, marker="|", label="minimum to maximum"))
    figure.suptitle("Microseconds of server CPU for each request, median; less is better")
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    return _svg(figure)


def _named(results: Results) -> str:
    compiled = results.versions.get(OURS, "").endswith("compiled")
    return f"{OURS}, compiled" if compiled else OURS


def _line(panel: Axes, server: str, points: Mapping[int, Sequence[float]]) -> None:
    spreads = [_whiskers(values) for values in points.values()]
    middles = [middle for middle, _ in spreads]
    whiskers = [[side[n][0] for _, side in spreads] for n in (0, 1)]
    panel.errorbar(
        list(points), middles, yerr=whiskers, label=server, color=_COLOURS.get(server, _COMPILED),
        marker="o", ms=4, lw=1.5, capsize=3,
    )  # fmt: skip


def lines(results: Results) -> str:
    """What a request and an idle connection cost with more and more open connections."""
    figure, (requests, sizes) = pyplot.subplots(1, 2, figsize=(_WIDTH, 3.6), layout="constrained")
    for server, rounds in results.connections.items():
        steps = by_count(rounds)
        cpu = {n: [step.sample.cpu for step in _valid(each)] for n, each in steps.items()}
        taken = {
            n: [step.bytes_each / 1024 for step in _valid(each) if step.bytes_each is not None]
            for n, each in steps.items()
        }
        name = _named(results) if server == OURS else server
        _line(requests, name, {n: values for n, values in cpu.items() if values})
        _line(sizes, name, {n: values for n, values in taken.items() if values})
    requests.set_title("CPU of a request, µs", loc="left", fontsize=10, weight="bold")
    sizes.set_title("Memory of an idle connection, KiB", loc="left", fontsize=10, weight="bold")
    for panel in (requests, sizes):
        panel.set_xscale("log")
        panel.set_xticks(list(by_count([s for r in results.connections.values() for s in r])))
        panel.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
        panel.set_xlabel("open connections, few of them active")
        panel.set_ylim(bottom=0)
        panel.grid(axis="y", lw=0.4)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Median, whiskers from minimum to maximum; less is better", fontsize=9)
    figure.legend(
        *requests.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return _svg(figure)


def _valid(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if not step.sample.faults]
