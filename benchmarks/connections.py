"""Open connections, few of them active: what each takes, and what it costs the others."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import FAULTS, Sample, load, said, serving
from benchmarks.peers import OURS, PURE, Peer
from benchmarks.processes import ServerProcess
from benchmarks.workloads import FEW, SPARSE, echo_request

COUNTS = (FEW, 100, 1000, 10_000)
"""Open connections, with the ``FEW`` that are active."""

SERVERS = (OURS, PURE, "uvicorn", "bjoern")
_RESERVED = 300
"""Descriptors for everything else."""

_AT_REST = 0.5
"""Seconds without a request for which the server's CPU is counted."""

_SETTLES = 0.1
"""Seconds with less than a hundredth of them spent: the server has dealt with what came."""

_PATIENCE = 5.0
_WARM_UP = 1.0


@dataclass(frozen=True)
class Step:
    """One server with ``count`` open connections.

    ``bytes_each``: of resident memory for each idle one, where it had never had more;
    ``resting``: CPU seconds in each second without a request.
    """

    count: int
    sample: Sample
    bytes_each: float | None = None
    resting: float | None = None


class _Idle:
    """Keep-alive connections that have had one answer each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []

    def keep(self, count: int) -> None:
        """Open some, or close some, until there are ``count``."""
        while len(self._sockets) > count:
            self._sockets.pop().close()
        while len(self._sockets) < count:
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=5)
            self._sockets.append(sock)
            sock.sendall(echo_request())
            answer = b""
            while not answer.endswith(b"</p>\n"):
                data = sock.recv(65536)
                if not data:
                    raise ValueError("an idle connection was refused")
                answer += data

    def check(self) -> None:
        """Raise ``ValueError`` when the server has said something, or closed one."""
        poll = select.poll()
        for sock in self._sockets:
            poll.register(sock, select.POLLIN)
        if ended := len(poll.poll(0)):
            raise ValueError(f"{ended} idle connections did not stay open")


@contextmanager
def _idle(port: int) -> Iterator[_Idle]:
    idle = _Idle(port)
    try:
        yield idle
    finally:
        idle.keep(0)


def counts_that_fit() -> tuple[list[int], str]:
    """Those of ``COUNTS`` that the system lets a process open, and why not all, or nothing.

    Raises the limit of open files for this process and the servers that it starts.
    """
    wanted = max(COUNTS) + _RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = wanted
    if soft < wanted:
        for limits in ((wanted, max(hard, wanted)), (hard, hard)):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            except (ValueError, OSError):  # only root raises the hard one
                continue
            soft = limits[0]
            break
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    fit = [n for n in COUNTS if n + _RESERVED <= soft and n + _RESERVED <= high - low]
    if len(fit) == len(COUNTS):
        return fit, ""
    return fit, (
        f"no more than {max(fit):,} connections: a process may open {soft:,} files "
        f"(`ulimit -n`), and there are {high - low:,} local ports"
    )


def measure_connections(
    peer: Peer, counts: list[int], seconds: float, *, most_first: bool
) -> list[Step]:
    """The same server with more and more connections, or with fewer and fewer. Never raises
    for what the server does wrong."""
    order = sorted(counts, reverse=most_first)
    steps: list[Step] = []
    try:
        with serving(peer, SPARSE, _WARM_UP) as server, _idle(server.port) as idle:
            before = server.resident_bytes()
            for count in order:
                idle.keep(count - FEW)
                fresh = count > FEW and (not most_first or not steps)
                steps.append(_step(server, count, seconds, before if fresh else None))
                idle.check()
    except FAULTS as error:
        fault = Sample(faults=said(error))
        steps = [Step(count, fault) for count in order]
    return sorted(steps, key=lambda step: step.count)


def _settle(server: ServerProcess) -> None:
    end = time.monotonic() + _PATIENCE
    spent = server.cpu_seconds()
    while time.monotonic() < end:
        time.sleep(_SETTLES)
        before, spent = spent, server.cpu_seconds()
        if spent - before < _SETTLES / 100:
            break


def _step(server: ServerProcess, count: int, seconds: float, before: int | None) -> Step:
    assert SPARSE.paced is not None
    _settle(server)
    bytes_each = None
    if before is not None:
        bytes_each = (server.resident_bytes() - before) / (count - FEW)
    began, spent = time.monotonic(), server.cpu_seconds()
    time.sleep(_AT_REST)
    resting = (server.cpu_seconds() - spent) / (time.monotonic() - began)
    return Step(count, load(server, SPARSE.paced, seconds), bytes_each, resting)
