"""``python -m benchmarks``: measure, print the report, and write it beside this file."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import blocking, blocking_report
from benchmarks.blocking import BlockingResults
from benchmarks.idle import measure_idle
from benchmarks.load import Wrk, missing_tools
from benchmarks.measure import measure
from benchmarks.peers import OURS, PEERS, Peer, another_checkout
from benchmarks.report import Results, chart, markdown
from benchmarks.stages import echo_stages
from benchmarks.workloads import BLOCKING, WORKLOADS

IDLE = "idle"
HERE = Path(__file__).parent

ROUNDS = 5
SECONDS = 3


def _arguments() -> argparse.Namespace:
    names = [*(workload.name for workload in WORKLOADS), IDLE, BLOCKING]
    peers = ", ".join(peer.name for peer in PEERS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=int,
        help=f"default: {ROUNDS}; of {BLOCKING!r}, which takes a minute each: {blocking.ROUNDS}",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=int,
        help=f"whole seconds of load; default: {SECONDS}; of {BLOCKING!r}: {blocking.SECONDS}",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", choices=names, metavar="WORKLOAD",
        help=f"one of {', '.join(names)}; may be given several times. '--only {BLOCKING}' "
        "replaces that section of RESULTS.md and leaves the rest",
    )  # fmt: skip
    parser.add_argument("--peers", help=f"a comma-separated choice of: {peers}")
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT",
        help=f"another checkout of protoserve that {BLOCKING!r} is compared with, round by round",
    )  # fmt: skip
    parser.add_argument("--no-write", action="store_true", help="only print the report")
    arguments = parser.parse_args()
    if any(number is not None and number < 1 for number in (arguments.rounds, arguments.seconds)):
        parser.error("--rounds and --seconds are 1 at least")
    if arguments.before and not (arguments.before / "protoserve").is_dir():
        parser.error(f"--before: there is no checkout of protoserve in {arguments.before}")
    chosen = arguments.peers.split(",") if arguments.peers else [peer.name for peer in PEERS]
    if unknown := set(chosen) - {peer.name for peer in PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are: {peers}")
    arguments.peers = [peer for peer in PEERS if peer.name in chosen]
    return arguments


def _measure_workloads(arguments: argparse.Namespace, peers: Sequence[Peer]) -> Results:
    chosen = [w for w in WORKLOADS if not arguments.only or w.name in arguments.only]
    rounds, seconds = arguments.rounds or ROUNDS, arguments.seconds or SECONDS
    versions = {peer.name: peer.version() for peer in peers}
    peers = [peer for peer in peers if versions[peer.name] is not None]
    results = Results(
        rounds,
        seconds,
        {name: version for name, version in versions.items() if version is not None},
        [name for name, version in versions.items() if version is None],
        {
            (workload.name, peer.name): peer.without[workload.name]
            for workload in chosen
            for peer in peers
            if workload.name in peer.without and workload.protocol == peer.protocol
        },
    )
    for number in range(rounds):
        for workload in chosen:
            for peer in peers:
                if workload.protocol != peer.protocol or (
                    (workload.name, peer.name) in results.without
                ):
                    continue
                sample = measure(peer, workload, seconds)
                by_peer = results.samples.setdefault(workload, {})
                by_peer.setdefault(peer.name, []).append(sample)
                said = sample.faults or f"{sample.rate:,.0f}/s {sample.cpu:.1f} µs"
                print(f"round {number + 1} {workload.name} {peer.name}: {said}", file=sys.stderr)
        ours = next((peer for peer in peers if peer.name == OURS), None)
        if ours is not None and (not arguments.only or IDLE in arguments.only):
            echo = WORKLOADS[0]
            pair = measure_idle(ours, echo, seconds, beside_first=number % 2 == 1)
            results.idle.append(pair)
            print(f"round {number + 1} {IDLE}: {pair}", file=sys.stderr)
    if any(peer.name == OURS for peer in peers):
        results.stages = echo_stages()
    return results


def _measure_blocking(arguments: argparse.Namespace) -> BlockingResults:
    peers = [peer for peer in arguments.peers if peer.name == OURS or peer.protocol == BLOCKING]
    if arguments.before:
        peers.insert(1, another_checkout(arguments.before.resolve()))
    versions = {peer.name: peer.version() for peer in peers}
    results = BlockingResults(
        arguments.rounds or blocking.ROUNDS,
        arguments.seconds or blocking.SECONDS,
        {name: version or "**missing**" for name, version in versions.items()},
    )
    peers = [peer for peer in peers if versions[peer.name] is not None]
    for number in range(results.rounds):
        print(f"round {number + 1} of handlers that block", file=sys.stderr)
        blocking.measure_round(results, peers, results.seconds)
    return results


def main() -> int:
    """Returns the exit code: 2 when a tool is missing, 1 when protoserve itself failed."""
    arguments = _arguments()
    chosen = [w for w in WORKLOADS if not arguments.only or w.name in arguments.only]
    blocks = not arguments.only or BLOCKING in arguments.only
    loads = [*(workload.load for workload in chosen), *[Wrk(())] * blocks]
    if missing := missing_tools(loads):
        print(f"needed and not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    written = HERE / "RESULTS.md"
    report, picture = "", ""
    failed = False
    if arguments.only != [BLOCKING]:
        results = _measure_workloads(
            arguments, [peer for peer in arguments.peers if peer.protocol != BLOCKING]
        )
        report, picture = markdown(results), chart(results)
        failed = any(
            sample.faults
            for workload, by_peer in results.samples.items()
            for sample in by_peer.get(workload.ours, [])
        )
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
        if picture:
            (HERE / "results.svg").write_text(picture, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    # SIGTERM like Ctrl-C: by way of an exception, so that every server is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
