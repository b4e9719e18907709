"""``python -m benchmarks``: measure, print the report, and write it beside this file."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import blocking, blocking_report
from benchmarks.blocking import BlockingResults
from benchmarks.builds import ROOT, Build
from benchmarks.connections import COUNTS, SERVERS, counts_that_fit, measure_connections
from benchmarks.figures import good
from benchmarks.load import Load, Wrk, missing_tools
from benchmarks.machine import Others, facts
from benchmarks.measure import FAULTS, WARM_UP, Sample, measure_turn, said, standing
from benchmarks.peers import BEFORE, OURS, PURE, Peer, all_peers
from benchmarks.processes import ServerProcess
from benchmarks.report import BARS, LINES, markdown
from benchmarks.results import Journal, Results
from benchmarks.workloads import BLOCKING, SPARSE, WORKLOADS, Workload

HERE = Path(__file__).parent

ROUNDS = 5
TURNS = 3
SECONDS = 1

_AROUND = 0.6
"""Seconds that starting, checking and ending a server take, for the estimate."""

_EACH_LOAD = 0.3
"""And each load, beside the seconds that count."""

_EACH_STEP = 1.3
"""And of each step of the open connections, without its load."""

_BLOCKING_ROUND = (38.0, 31.0)
"""A round of handlers that block, each for a second: the peers, and each server of ours."""


@dataclass(frozen=True)
class Part:
    """What is alive together in a round: the servers of a workload, or, of open connections, one
    of them."""

    workload: Workload
    peers: tuple[Peer, ...]

    def seconds(self, results: Results, counts: Sequence[int]) -> float:
        """About how long it takes."""
        if self.workload is SPARSE:
            loads = len(counts) * (results.seconds_a_round + _EACH_STEP)
        else:
            figures = len(self.workload.figures())
            loads = results.turns * figures * (results.seconds + _EACH_LOAD)
        return len(self.peers) * (_AROUND + WARM_UP + loads)


def _arguments() -> argparse.Namespace:
    names = [*(workload.name for workload in WORKLOADS), SPARSE.name, BLOCKING]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=int,
        help=f"default: {ROUNDS}; of {BLOCKING!r}, which takes a minute each: {blocking.ROUNDS}",
    )  # fmt: skip
    parser.add_argument(
        "--turns", type=int, default=TURNS,
        help="how often each server is loaded in a round, one after the other; default: "
        f"%(default)s; not of {BLOCKING!r}",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=int,
        help=f"whole seconds of load in a turn; default: {SECONDS}; of {BLOCKING!r}, of each: "
        f"{blocking.SECONDS}",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", choices=names, metavar="WORKLOAD",
        help=f"one of {', '.join(names)}; may be given several times. '--only {BLOCKING}' "
        "replaces that section of RESULTS.md and leaves the rest",
    )  # fmt: skip
    parser.add_argument(
        "--peer", action="append", metavar="SERVER",
        help="a server of the report, as it is named there; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--compiled", type=Path, metavar="PYTHON", default=Path(sys.executable),
        help=f"an interpreter with the build that is named {OURS!r}; default: this one",
    )  # fmt: skip
    parser.add_argument(
        "--pure", type=Path, metavar="PYTHON", default=ROOT / ".venv-bench-pure/bin/python",
        help=f"one with the build that is named {PURE!r}; default: that of `make bench`",
    )  # fmt: skip
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT",
        help="another checkout of protoserve, which is measured beside ours, turn by turn",
    )  # fmt: skip
    parser.add_argument("--no-write", action="store_true", help="only print the report")
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", default=HERE,
        help="where the report and its pictures are written; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with a run that was cut short, from the rounds that its samples' file "
        "has as a whole",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", default=HERE / "samples.jsonl",
        help="where every measurement is kept at once; default: %(default)s",
    )  # fmt: skip
    arguments = parser.parse_args()
    numbers = (arguments.rounds, arguments.turns, arguments.seconds)
    if any(number is not None and number < 1 for number in numbers):
        parser.error("--rounds, --turns and --seconds are 1 at least")
    if arguments.before:
        arguments.before = arguments.before.resolve()
        if not (arguments.before / "protoserve").is_dir():
            parser.error(f"--before: there is no checkout of protoserve in {arguments.before}")
    # Not resolve(): a virtual environment's interpreter is a link.
    arguments.compiled, arguments.pure = arguments.compiled.absolute(), arguments.pure.absolute()
    peers = all_peers(arguments.compiled, arguments.pure, arguments.before)
    chosen = arguments.peer or [peer.name for peer in peers]
    if unknown := set(chosen) - {peer.name for peer in peers}:
        there_are = "; ".join(peer.name for peer in peers)
        parser.error(f"no such server: {'; '.join(sorted(unknown))}. There are: {there_are}")
    arguments.peers = [peer for peer in peers if peer.name in chosen]
    return arguments


def _without(workloads: Sequence[Workload], peers: Sequence[Peer]) -> dict[str, dict[str, str]]:
    """By workload, the peers that cannot serve it, and why."""
    return {
        workload.name: {
            peer.name: peer.without[workload.name]
            for peer in peers
            if workload.name in peer.without and workload.protocol == peer.protocol
        }
        for workload in workloads
    }


def _parts(workloads: Sequence[Workload], peers: Sequence[Peer]) -> Iterator[Part]:
    """One round."""
    for workload in workloads:
        if workload is SPARSE:
            yield from (Part(workload, (peer,)) for peer in peers if peer.name in SERVERS)
            continue
        fit = tuple(
            peer
            for peer in peers
            if workload.protocol == peer.protocol and workload.name not in peer.without
        )
        if fit:
            yield Part(workload, fit)


def _measure_turns(journal: Journal, number: int, part: Part) -> dict[str, str]:
    """A round of a workload; by server, in short what it gave."""
    workload, results = part.workload, journal.results
    with standing(part.peers, workload) as servers:
        alive = [server for server in servers.values() if isinstance(server, ServerProcess)]
        for turn in range(results.turns):
            others = Others(alive)
            backwards = (number + turn) % 2 == 1
            measured = measure_turn(servers, workload, results.seconds, backwards=backwards)
            journal.add_turn(number, turn, workload.name, measured, others.share())
    by_server = {
        peer.name: {
            figure: results.samples[workload.name, figure][peer.name][-results.turns :]
            for figure in workload.figures()
        }
        for peer in part.peers
    }
    return {name: _in_short(by_figure) for name, by_figure in by_server.items()}


def _measure_steps(journal: Journal, number: int, part: Part, counts: list[int]) -> dict[str, str]:
    """A round of open connections; by server, in short what it gave."""
    [peer] = part.peers
    others = Others()
    steps = measure_connections(
        peer, counts, journal.results.seconds_a_round, most_first=number % 2 == 1
    )
    journal.add_steps(number, part.workload.name, peer.name, steps, others.share())
    return {peer.name: _in_short({f"{step.count:,} open": [step.sample] for step in steps})}


def _in_short(by_figure: Mapping[str, Sequence[Sample]]) -> str:
    """The medians of each figure, and what went wrong first."""
    figures = []
    for figure, samples in by_figure.items():
        words = [figure]
        if valid := good(samples):
            rate, cpu = median(s.rate for s in valid), median(s.cpu for s in valid)
            words.append(f"{rate:,.0f}/s {cpu:.1f} µs")
        words += [sample.faults for sample in samples if sample.faults][:1]
        figures.append(" ".join(words))
    return "; ".join(figures)


def _measure_parts(
    journal: Journal, rounds: int, parts: Sequence[Part], counts: list[int]
) -> None:
    left = [
        (number, part)
        for number in range(rounds)
        for part in parts
        if not all(journal.has(number, part.workload.name, peer.name) for peer in part.peers)
    ]
    estimated = sum(part.seconds(journal.results, counts) for _, part in left)
    measurements = sum(len(part.peers) for _, part in left)
    print(f"{measurements} measurements, about {estimated / 60:.0f} minutes", file=sys.stderr)
    began, done = time.monotonic(), 0.0
    for number, part in left:
        if part.workload is SPARSE:
            figures = _measure_steps(journal, number, part, counts)
        else:
            figures = _measure_turns(journal, number, part)
        done += part.seconds(journal.results, counts)
        minutes = (time.monotonic() - began) / done * (estimated - done) / 60
        for name, short in figures.items():
            print(
                f"round {number + 1} {part.workload.name} {name}: {short} "
                f"({minutes:.0f} minutes left)",
                file=sys.stderr,
            )


def _add_stages(arguments: argparse.Namespace, results: Results) -> None:
    for build in (Build(OURS, arguments.compiled), Build(PURE, arguments.pure)):
        if any(peer.name == build.name for peer in arguments.peers):
            try:
                results.stages[build.name] = build.stages()
            except FAULTS as error:
                results.no_stages[build.name] = said(error)


def _measure_workloads(
    arguments: argparse.Namespace, workloads: Sequence[Workload]
) -> tuple[Results, str]:
    """The results, and the report."""
    rounds, seconds = arguments.rounds or ROUNDS, arguments.seconds or SECONDS
    protocols = {workload.protocol for workload in workloads}
    peers = [peer for peer in arguments.peers if peer.protocol in protocols]
    versions = {peer.name: peer.version() for peer in peers}
    peers = [peer for peer in peers if versions[peer.name] is not None]
    installed = {name: version for name, version in versions.items() if version is not None}
    results = Results(seconds, arguments.turns, installed)
    if arguments.resume and arguments.samples.exists():
        journal = Journal.resumed(arguments.samples, results)
    else:
        results.facts = facts()
        journal = Journal.started(arguments.samples, results)
    counts, left = counts_that_fit() if SPARSE in workloads else (list(COUNTS), "")
    _measure_parts(journal, rounds, list(_parts(workloads, peers)), counts)
    _add_stages(arguments, results)
    missing = [name for name, version in versions.items() if version is None]
    return results, markdown(results, missing, _without(workloads, peers), left)


def _blocking_minutes(arguments: argparse.Namespace) -> float:
    theirs, each_of_ours = _BLOCKING_ROUND
    once = theirs + each_of_ours * (3 if arguments.before else 1)
    rounds, seconds = arguments.rounds or blocking.ROUNDS, arguments.seconds or blocking.SECONDS
    return once * seconds * rounds / 60


def _measure_blocking(arguments: argparse.Namespace) -> BlockingResults:
    ours = {OURS, PURE, BEFORE} if arguments.before else {OURS}
    http = [peer for peer in arguments.peers if peer.name in ours]
    rounds = arguments.rounds or blocking.ROUNDS
    peers = http + [peer for peer in arguments.peers if peer.protocol == BLOCKING]
    versions = {peer.name: peer.version() for peer in peers}
    results = BlockingResults(
        rounds,
        arguments.seconds or blocking.SECONDS,
        {name: version or "**missing**" for name, version in versions.items()},
    )
    peers = [peer for peer in peers if versions[peer.name] is not None]
    minutes = _blocking_minutes(arguments)
    print(f"handlers that block, about {minutes:.0f} minutes", file=sys.stderr)
    for number in range(results.rounds):
        print(f"round {number + 1} of handlers that block", file=sys.stderr)
        blocking.measure_round(results, peers, results.seconds)
    return results


def _failed(results: Results) -> bool:
    """Whether a server of ours did something wrong."""
    by_server = [
        (name, sample)
        for by_peer in results.samples.values()
        for name, samples in by_peer.items()
        for sample in samples
    ]
    by_server += [
        (name, step.sample)
        for name, rounds in results.connections.items()
        for steps in rounds
        for step in steps
    ]
    return any(sample.faults for name, sample in by_server if name.startswith(OURS))


def main() -> int:
    """Returns the exit code: 2 when a tool is missing, 1 when protoserve itself failed."""
    arguments = _arguments()
    workloads = [w for w in [*WORKLOADS, SPARSE] if not arguments.only or w.name in arguments.only]
    blocks = not arguments.only or BLOCKING in arguments.only
    loads: list[Load] = [load for w in workloads for load in w.figures().values()]
    if missing := missing_tools([*loads, *[Wrk(())] * blocks]):
        print(f"needed and not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    if workloads and not arguments.no_write:
        # Before it has taken half an hour, not after.
        from benchmarks import chart
    written = arguments.into / "RESULTS.md"
    report = ""
    pictures: dict[str, str] = {}
    failed = False
    if workloads:
        results, report = _measure_workloads(arguments, workloads)
        failed = _failed(results)
        if not arguments.no_write:
            pictures = {BARS: chart.bars(results)} if results.samples else {}
            pictures |= {LINES: chart.lines(results)} if results.connections else {}
    if blocks:
        section = _measure_blocking(arguments)
        text = blocking_report.section(section)
        failed = failed or section.failed(OURS)
        print(blocking_report.put_in(report, text) if report else text)
        if not report and written.exists():
            report = written.read_text(encoding="utf-8")
        report = blocking_report.put_in(report, text)
    else:
        print(report)
    if not arguments.no_write:
        written.write_text(report, encoding="utf-8")
        for name, picture in pictures.items():
            (arguments.into / name).write_text(picture, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    # SIGTERM like Ctrl-C: by way of an exception, so that every server is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
