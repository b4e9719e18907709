"""Fresh servers, checked, warmed up, and loaded in turn; and what that took."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.load import Clock, Load
from benchmarks.peers import Peer
from benchmarks.processes import ServerProcess, free_port, running
from benchmarks.workloads import Workload

START_TIMEOUT = 15.0
WARM_UP = 0.5


@dataclass(frozen=True)
class Sample:
    """The figures of one run: requests a second, seconds, microseconds of server CPU for
    each request; ``faults`` says why they count for nothing. ``idle_others``: the share of a core
    that the other servers took meanwhile, which were alive and not loaded."""

    rate: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    faults: str = ""
    p50: float = 0.0
    idle_others: float = 0.0


@contextmanager
def serving(peer: Peer, workload: Workload, warm_up: float = WARM_UP) -> Iterator[ServerProcess]:
    """The peer's server, which gives the right answer and is warm after ``warm_up`` s."""
    port = free_port()
    # What a server leaves there may change while it is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
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


@contextmanager
def standing(
    peers: Sequence[Peer], workload: Workload, warm_up: float = WARM_UP
) -> Iterator[dict[str, ServerProcess | str]]:
    """By name, a server of each peer, all alive together, or why there is none."""
    servers: dict[str, ServerProcess | str] = {}
    with ExitStack() as stack:
        for peer in peers:
            try:
                server = stack.enter_context(serving(peer, workload, warm_up))
            except FAULTS as error:
                servers[peer.name] = said(error)
            else:
                servers[peer.name] = server
        yield servers


def load(server: ServerProcess, generator: Load, seconds: float) -> Sample:
    """Load a server that runs."""
    server.check()
    result = generator.run(server.port, seconds, server.cpu_clock())
    server.check()
    if result.faults:
        return Sample(faults=result.faults)
    return Sample(
        result.requests / result.seconds,
        result.p99,
        result.cpu / result.requests * 1e6,
        p50=result.p50,
    )


def _load_or_fault(server: ServerProcess | str, generator: Load, seconds: float) -> Sample:
    """Never raises for what the server does wrong, or for one that there is not."""
    if isinstance(server, str):
        return Sample(faults=server)
    try:
        return load(server, generator, seconds)
    except FAULTS as error:
        return Sample(faults=said(error))


def _so_far(clock: Clock) -> float:
    """Nothing for a server that has lost a process."""
    try:
        return clock()
    except RuntimeError:
        return 0.0


def measure_turn(
    servers: Mapping[str, ServerProcess | str],
    workload: Workload,
    seconds: float,
    *,
    backwards: bool,
) -> dict[str, dict[str, Sample]]:
    """By server, a sample of each figure: for each figure, the servers are loaded one directly
    after the other, in their order or ``backwards``. Never raises for what a server does wrong."""
    clocks = {
        name: server.cpu_clock()
        for name, server in servers.items()
        if isinstance(server, ServerProcess)
    }
    samples: dict[str, dict[str, Sample]] = {name: {} for name in servers}
    order = list(reversed(samples)) if backwards else list(samples)
    for figure, generator in workload.figures().items():
        for name in order:
            idle = [clock for other, clock in clocks.items() if other != name]
            before, began = list(map(_so_far, idle)), time.monotonic()
            sample = _load_or_fault(servers[name], generator, seconds)
            took = time.monotonic() - began
            spent = (max(0.0, _so_far(c) - then) for c, then in zip(idle, before, strict=True))
            samples[name][figure] = replace(sample, idle_others=sum(spent) / took)
    return samples
