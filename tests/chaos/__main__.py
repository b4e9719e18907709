"""Races, resets and hangs: servers that are started and stopped under clients that misbehave.

``make chaos`` runs it for five minutes; it is no part of the test suite. Every client knows
what it must get. A wrong answer, something left behind, memory that grows or a hang is named
with its run, and the exit code is 1 (2 for a hang, after every thread's stack). A run is
repeated with ``--seed SEED --run NUMBER``, as far as threads let themselves be repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import sys
import threading
import time

from clients import MANNERS, STEPS
from ledger import Ledger, resident_bytes, use_one_heap
from names import NAMES
from run import STOPS, Run
from work import KINDS

RUNS = 200
SECONDS = 300
HANG = 90.0
"""Seconds without a finished run after which the process counts as hanging."""

MOST_FAULTS = 20
GROWTH = 16 << 20
"""Bytes that resident memory may grow after the first fifth of the runs; threads' stacks and
a fragmented heap take some."""

_SWITCHES = ("tight", "greeting", "refuse")


class Watchdog:
    """Ends the process with every thread's stack when nothing goes on."""

    def __init__(self, ledger: Ledger, seed: str) -> None:
        self._ledger = ledger
        self._seed = seed
        self.feed()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def feed(self) -> None:
        """Something goes on."""
        self._last = time.monotonic()
        # In case that not even the watchdog's thread runs.
        faulthandler.dump_traceback_later(HANG * 2, exit=True)

    def _watch(self) -> None:
        while time.monotonic() - self._last < HANG:
            time.sleep(1)
        print(
            f"\nHANG  {self._ledger.run}: nothing for {HANG:g} s (seed {self._seed})",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(2)


def _arguments() -> argparse.Namespace:
    names = [*KINDS, *STEPS[1:], *MANNERS, *STOPS, *_SWITCHES]
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=RUNS, help="default: %(default)s")
    parser.add_argument("--seed", help="of an earlier call; default: a new one")
    parser.add_argument("--run", type=int, metavar="NUMBER", help="only this one, again and again")
    parser.add_argument(
        "--only", action="append", choices=NAMES, help="only this server; may be repeated"
    )
    parser.add_argument(
        "--without", default="", metavar="NAMES",
        help="comma-separated: what to leave out, to look past a known fault;\n"
        f"{', '.join(names)}",
    )  # fmt: skip
    arguments = parser.parse_args()
    arguments.without = {name for name in arguments.without.split(",") if name}
    if unknown := arguments.without - {*names}:
        parser.error(f"--without: no {', '.join(sorted(unknown))}")
    if arguments.seconds <= 0 or arguments.runs < 1:
        parser.error("--seconds and --runs are above 0")
    return arguments


def main() -> int:
    """Returns the exit code."""
    arguments = _arguments()
    seed = arguments.seed or str(random.SystemRandom().randrange(10**9))
    print(f"seed {seed}", flush=True)
    use_one_heap()
    with contextlib.suppress(ImportError):
        import uvloop

        # libuv's first loop opens a pipe that the process keeps.
        uvloop.new_event_loop().close()
    sys.setswitchinterval(1e-6)
    ledger = Ledger()
    watchdog = Watchdog(ledger, seed)
    began = time.monotonic()
    warm = 0
    done = 0
    while done < arguments.runs and len(ledger.faults) < MOST_FAULTS:
        left = arguments.seconds - (time.monotonic() - began)
        number = done if arguments.run is None else arguments.run
        run = Run(ledger, seed, number, arguments.without, {*(arguments.only or NAMES)})
        run.play(max(0.02, left / (arguments.runs - done)))
        done += 1
        watchdog.feed()
        if done == max(1, arguments.runs // 5):
            warm = resident_bytes()
    faulthandler.cancel_dump_traceback_later()
    grown = resident_bytes() - warm
    if done == arguments.runs and grown > GROWTH:
        ledger.run = "at the end"
        ledger.fault(f"resident memory has grown by {grown / 2**20:.1f} MiB")
    _summarise(ledger, seed, done, time.monotonic() - began, grown)
    return 1 if ledger.faults else 0


def _summarise(ledger: Ledger, seed: str, runs: int, seconds: float, grown: int) -> None:
    print(f"\n{runs} runs in {seconds:.0f} s, memory {grown / 2**20:+.1f} MiB since the warm-up")
    for what, number in sorted(ledger.counts.items()):
        print(f"  {number:>9,}  {what}")
    if ledger.faults:
        print(f"{len(ledger.faults)} faults (seed {seed}):")
        for fault in ledger.faults:
            print(f"  {fault}")
    else:
        print("no wrong answer, no leak, no hang")


if __name__ == "__main__":
    sys.exit(main())
