"""One measurement: a fresh server, checked, warmed up, loaded; and what that took."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Load
from benchmarks.peers import Peer
from benchmarks.processes import ServerProcess, free_port, running
from benchmarks.workloads import Workload

START_TIMEOUT = 15.0
WARM_UP = 0.5


@dataclass(frozen=True)
class Sample:
    """The figures of one run: requests a second, seconds, microseconds of server CPU for
    each request; ``faults`` says why they count for nothing."""

    rate: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    faults: str = ""
    p50: float = 0.0


@contextmanager
def serving(peer: Peer, workload: Workload, warm_up: float = WARM_UP) -> Iterator[ServerProcess]:
    """The peer's server, which gives the right answer and is warm after ``warm_up`` s."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        with running(peer.command(workload.app, port, where), port, where) as server:
            _await_answer(server, peer, workload)
            if warm_up:
                (workload.paced or workload.load).run(port, warm_up)
            yield server


def _await_answer(server: ServerProcess, peer: Peer, workload: Workload) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            workload.verify(server.port, peer.name)
            return
        except OSError:
            server.check()
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


FAULTS = (OSError, ValueError, RuntimeError, subprocess.TimeoutExpired)
"""What a server that does something wrong makes of a measurement."""


def said(error: BaseException) -> str:
    """In one line. A server that ended says in its last one why."""
    first, *more = str(error).strip().splitlines() or [""]
    return " ".join([f"{type(error).__name__}: {first}", *more[-1:]])


def load(server: ServerProcess, generator: Load, seconds: float) -> Sample:
    """Load a server that runs."""
    before = server.cpu_seconds()
    result = generator.run(server.port, seconds)
    spent = server.cpu_seconds() - before
    server.check()
    if result.faults:
        return Sample(faults=result.faults)
    return Sample(
        result.requests / result.seconds,
        result.p99,
        spent / result.requests * 1e6,
        p50=result.p50,
    )


def measure(peer: Peer, workload: Workload, seconds: float) -> dict[str, Sample]:
    """A fresh server under load: a sample of each figure of the workload, one after the other
    on the same server. Never raises for what the server does wrong."""
    samples: dict[str, Sample] = {}
    try:
        with serving(peer, workload) as server:
            for figure, generator in workload.figures().items():
                samples[figure] = load(server, generator, seconds)
    except FAULTS as error:
        for figure in workload.figures():
            samples.setdefault(figure, Sample(faults=said(error)))
    return samples
