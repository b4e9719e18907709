"""Handlers that block: we beside servers with a pool of threads, and what others wait."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from sys import stderr

from benchmarks.load import Wrk
from benchmarks.measure import FAULTS, Sample, load, said, serving, standing
from benchmarks.peers import BEFORE, OURS, PURE, Peer
from benchmarks.processes import CLIENT_CORE, ServerProcess
from benchmarks.workloads import (
    BLOCKING,
    ECHO,
    PLAIN_ANSWER,
    Workload,
    echo_request,
    expect,
    fetch,
)

THREADS = 20
"""Handlers that each server runs at once: our default, and what the peers are told."""

CONNECTIONS = (THREADS, 10 * THREADS)
ROUNDS = 3
SECONDS = 1
_WARM_UP = 0.2

SLOW_CLIENTS = 15
"""Fewer than there are threads, so that one is left for the fast path."""

PIPELINED = 3000
_OTHERS = 4
_PAUSE = 0.001
"""Seconds from an answer to the next request of a client that is timed."""

_PATIENCE = 30.0
_OURS = (OURS, PURE, BEFORE)


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


_NOTHING, _SLOW, _COMPUTING = _get("/nothing"), _get("/sleep-4"), _get("/cpu-1")


@dataclass(frozen=True)
class Case:
    """What the handlers do. ``factor``: at least so many times the better peer's rate;
    ``as_before``: not slower than another checkout of ours; ``slowest``: seconds that
    a request takes at least; ``ours_only``: for a comparison with ourselves."""

    name: str
    requests: tuple[bytes, ...]
    slowest: float = 0.0
    factor: float | None = None
    as_before: bool = False
    ours_only: bool = False
    app: str = BLOCKING

    def workload(self, connections: int) -> Workload:
        """The case as a workload."""
        return Workload(
            self.name, self.name, self.app, Wrk(self.requests, connections), self.verify
        )

    def verify(self, port: int, peer: str) -> None:
        """Raises ``ValueError`` for an answer that is wrong, or came too early."""
        if self.app != BLOCKING:
            ECHO.verify(port, peer)
            return
        times = []
        for request in sorted(set(self.requests)):
            began = time.monotonic()
            expect(fetch(port, request), PLAIN_ANSWER)
            times.append(time.monotonic() - began)
        if max(times) < self.slowest:
            raise ValueError(f"answered after {max(times)} s instead of {self.slowest}")


def _sleeps(ms: int, factor: float) -> Case:
    return Case(f"sleeps {ms} ms", (_get(f"/sleep-{ms}"),), ms / 1000, factor)


_MIX = Case("one request in ten sleeps 4 ms", (*[_NOTHING] * 9, _SLOW), 0.004)
_COMPUTES = Case("computes for 1 ms", (_COMPUTING,), 0.001, as_before=True)
_NOTHING_DONE = Case("does nothing", (_NOTHING,), as_before=True)

CASES = [
    _sleeps(1, 1.3),
    _sleeps(3, 0.9),
    _sleeps(10, 0.9),
    _sleeps(20, 0.9),
    _MIX,
    Case("one call in ten sleeps 4 ms", (_get("/sometimes"),), ours_only=True),
    _COMPUTES,
    _NOTHING_DONE,
    Case("renders the echo page", (echo_request(),), as_before=True, ours_only=True, app="echo"),
]


@dataclass(frozen=True)
class Waits:
    """Seconds that each request of clients on the fast path took, in one round."""

    alone: Sequence[float] = ()
    beside: Sequence[float] = ()
    faults: str = ""

    def __str__(self) -> str:
        if self.faults:
            return self.faults
        alone, beside = median(self.alone) * 1e3, median(self.beside) * 1e3
        return f"median {beside:.2f} ms, worst {max(self.beside) * 1e3:.2f}; alone {alone:.2f}"


@dataclass
class BlockingResults:
    """Everything that was measured; one entry for each round, in the rounds' order."""

    rounds: int
    seconds: float
    versions: dict[str, str]
    samples: dict[tuple[Case, int], dict[str, list[Sample]]] = field(default_factory=dict)
    fast_path: dict[str, list[Waits]] = field(default_factory=dict)
    fairness: dict[str, list[Waits]] = field(default_factory=dict)

    def failed(self, name: str) -> bool:
        """Whether this server did something wrong in any round."""
        by_server = [*self.samples.values(), self.fast_path, self.fairness]
        return any(round_.faults for by_name in by_server for round_ in by_name.get(name, []))


def _pin() -> None:
    os.sched_setaffinity(0, {CLIENT_CORE})  # of the calling thread


@contextmanager
def _client_threads(number: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(number, initializer=_pin) as threads:
        yield threads


def _probe(port: int, seconds: float, done: threading.Event | None = None) -> list[float]:
    """The times of a client that asks the fast path again and again."""
    times = []
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as sock:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (done is not None and done.is_set()):
            began = time.perf_counter()
            sock.sendall(_NOTHING)
            answer = b""
            while not answer.endswith(PLAIN_ANSWER):
                data = sock.recv(4096)
                if not data:
                    raise ValueError(f"the connection ended after {answer!r}")
                answer += data
            times.append(time.perf_counter() - began)
            time.sleep(_PAUSE)
    return times


def _measure_fast_path(peer: Peer, seconds: float) -> Waits:
    """The fast path alone, and beside clients of a slow one."""
    workload = _MIX.workload(SLOW_CLIENTS)
    with serving(peer, workload, 0) as server, _client_threads(2) as threads:
        threads.submit(_probe, server.port, _WARM_UP).result()
        alone = threads.submit(_probe, server.port, seconds).result()
        # wrk takes whole seconds: the probe ends before it does.
        slow = threads.submit(Wrk([_SLOW], SLOW_CLIENTS).run, server.port, seconds + 1)
        time.sleep(0.5)
        beside = threads.submit(_probe, server.port, seconds).result()
        if faults := slow.result().faults:
            raise ValueError(f"the slow clients: {faults}")
    return Waits(alone, beside)


def _pipeline(port: int, threads: ThreadPoolExecutor, done: threading.Event) -> None:
    """Send everything at once, and take every answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as sock:
            sending = threads.submit(sock.sendall, _COMPUTING * PIPELINED)
            count, answers = 0, b""
            while count < PIPELINED:
                data = sock.recv(1 << 20)
                if not data:
                    raise ValueError(f"{count} answers of {PIPELINED}")
                *whole, answers = (answers + data).split(PLAIN_ANSWER)
                count += len(whole)
            sending.result()
    finally:
        done.set()


def _measure_fairness(peer: Peer) -> Waits:
    """The fast path beside one connection that asks for much at once."""
    done = threading.Event()
    workload = _COMPUTES.workload(1)
    with serving(peer, workload, 0) as server, _client_threads(_OTHERS + 2) as threads:
        alone = threads.submit(_probe, server.port, _WARM_UP).result()
        pipeline = threads.submit(_pipeline, server.port, threads, done)
        time.sleep(0.1)
        others = [threads.submit(_probe, server.port, _PATIENCE, done) for _ in range(_OTHERS)]
        beside = [seconds for other in others for seconds in other.result()]
        pipeline.result()
    return Waits(alone, beside)


def _load(server: ServerProcess, case: Case, seconds: float) -> list[Sample]:
    """From few connections, then from many."""
    if case.app == BLOCKING:
        with _client_threads(1) as threads:
            threads.submit(_probe, server.port, _WARM_UP).result()
    return [load(server, case.workload(number).load, seconds) for number in CONNECTIONS]


def _measure_rates(
    peer: Peer, case: Case, seconds: float, server: ServerProcess | str | None
) -> list[Sample]:
    """A sample for each number of connections: of the server, if one stands, or
    else of a fresh one. Never raises for what the server does wrong."""
    try:
        if isinstance(server, str):
            raise RuntimeError(server)
        if server is not None:
            case.verify(server.port, peer.name)
            return _load(server, case, seconds)
        with serving(peer, case.workload(1), 0) as fresh:
            return _load(fresh, case, seconds)
    except FAULTS as error:
        return [Sample(faults=said(error))] * len(CONNECTIONS)


def _guarded(measure: Callable[[], Waits]) -> Waits:
    """Never raises for what the server does wrong."""
    try:
        return measure()
    except FAULTS as error:
        return Waits(faults=said(error))


def measure_round(results: BlockingResults, peers: Sequence[Peer], seconds: float) -> None:
    """One round of everything, added to ``results``.

    Ours learns which handlers block: it is started afresh for each. The peers do not, and
    keep one server for the round.
    """
    others = [peer for peer in peers if peer.name not in _OURS]
    with standing(others, _NOTHING_DONE.workload(1), 0) as servers:
        for case in CASES:
            for peer in peers:
                if case.ours_only and peer.name not in _OURS:
                    continue
                samples = _measure_rates(peer, case, seconds, servers.get(peer.name))
                for connections, sample in zip(CONNECTIONS, samples, strict=True):
                    by_peer = results.samples.setdefault((case, connections), {})
                    by_peer.setdefault(peer.name, []).append(sample)
                    figures = f"{sample.rate:,.0f}/s p50 {sample.p50 * 1e3:.2f} ms"
                    what = f"{case.name}, {connections} connections, {peer.name}"
                    print(f"{what}: {sample.faults or figures}", file=stderr)
    for peer in peers:
        waits = _guarded(partial(_measure_fast_path, peer, seconds))
        results.fast_path.setdefault(peer.name, []).append(waits)
        print(f"fast path beside a slow one, {peer.name}: {waits}", file=stderr)
        if peer.name in _OURS:
            waits = _guarded(partial(_measure_fairness, peer))
            results.fairness.setdefault(peer.name, []).append(waits)
            print(f"beside a long pipeline, {peer.name}: {waits}", file=stderr)
