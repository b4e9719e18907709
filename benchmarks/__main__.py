"""``python -m benchmarks``: measure, print the report, and write it beside this file."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.idle import measure_idle
from benchmarks.load import missing_tools
from benchmarks.measure import measure
from benchmarks.peers import OURS, PEERS
from benchmarks.report import Results, chart, markdown
from benchmarks.stages import echo_stages
from benchmarks.workloads import WORKLOADS

IDLE = "idle"
HERE = Path(__file__).parent


def _arguments() -> argparse.Namespace:
    names = [workload.name for workload in WORKLOADS] + [IDLE]
    peers = ", ".join(peer.name for peer in PEERS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=int, default=3, help="whole seconds of load; default: %(default)s"
    )
    parser.add_argument(
        "--only", action="append", choices=names, metavar="WORKLOAD",
        help=f"one of {', '.join(names)}; may be given several times",
    )  # fmt: skip
    parser.add_argument("--peers", help=f"a comma-separated choice of: {peers}")
    parser.add_argument("--no-write", action="store_true", help="only print the report")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("--rounds and --seconds are 1 at least")
    chosen = arguments.peers.split(",") if arguments.peers else [peer.name for peer in PEERS]
    if unknown := set(chosen) - {peer.name for peer in PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are: {peers}")
    arguments.peers = [peer for peer in PEERS if peer.name in chosen]
    return arguments


def main() -> int:
    """Returns the exit code: 2 when a tool is missing, 1 when protoserve itself failed."""
    arguments = _arguments()
    chosen = [w for w in WORKLOADS if not arguments.only or w.name in arguments.only]
    if missing := missing_tools([workload.load for workload in WORKLOADS]):
        print(f"needed and not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    versions = {peer.name: peer.version() for peer in arguments.peers}
    peers = [peer for peer in arguments.peers if versions[peer.name] is not None]
    results = Results(
        arguments.rounds,
        arguments.seconds,
        {name: version for name, version in versions.items() if version is not None},
        [name for name, version in versions.items() if version is None],
        {
            (workload.name, peer.name): peer.without[workload.name]
            for workload in chosen
            for peer in peers
            if workload.name in peer.without and workload.protocol == peer.protocol
        },
    )
    for number in range(arguments.rounds):
        for workload in chosen:
            for peer in peers:
                if workload.protocol != peer.protocol or (
                    (workload.name, peer.name) in results.without
                ):
                    continue
                sample = measure(peer, workload, arguments.seconds)
                by_peer = results.samples.setdefault(workload, {})
                by_peer.setdefault(peer.name, []).append(sample)
                said = sample.faults or f"{sample.rate:,.0f}/s {sample.cpu:.1f} µs"
                print(f"round {number + 1} {workload.name} {peer.name}: {said}", file=sys.stderr)
        ours = next((peer for peer in peers if peer.name == OURS), None)
        if ours is not None and (not arguments.only or IDLE in arguments.only):
            echo = WORKLOADS[0]
            pair = measure_idle(ours, echo, arguments.seconds, beside_first=number % 2 == 1)
            results.idle.append(pair)
            print(f"round {number + 1} {IDLE}: {pair}", file=sys.stderr)
    if any(peer.name == OURS for peer in peers):
        results.stages = echo_stages()
    report = markdown(results)
    print(report)
    if not arguments.no_write:
        (HERE / "RESULTS.md").write_text(report, encoding="utf-8")
        (HERE / "results.svg").write_text(chart(results), encoding="utf-8")
    failed = [
        sample
        for workload, by_peer in results.samples.items()
        for sample in by_peer.get(workload.ours, [])
        if sample.faults
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    # SIGTERM like Ctrl-C: by way of an exception, so that every server is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
