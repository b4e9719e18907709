"""Idle connections: what each takes, and what they cost the others."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.measure import Sample, load, serving
from benchmarks.peers import Peer
from benchmarks.workloads import Workload, echo_request

CONNECTIONS = 5000
_RESERVED = 200  # descriptors for everything else


@dataclass(frozen=True)
class IdleRound:
    """The same server without and with idle connections; bytes of each connection."""

    count: int
    bytes_each: float
    alone: Sample
    beside: Sample


def connections_that_fit() -> int:
    """``CONNECTIONS``, or as many as the system lets one process open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + _RESERVED
    limit = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return min(CONNECTIONS, limit - _RESERVED)


@contextmanager
def _held(port: int, count: int) -> Iterator[None]:
    """``count`` keep-alive connections, each of which has had one answer."""
    request = echo_request()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            sock.sendall(request)
            if not sock.recv(65536).startswith(b"HTTP/1.1 200 "):
                raise ValueError("an idle connection was refused")
        yield


def measure_idle(
    peer: Peer, workload: Workload, seconds: float, *, beside_first: bool
) -> IdleRound:
    """One pair of runs on one server, in the given order."""
    count = connections_that_fit()
    with serving(peer, workload) as server:
        alone = None if beside_first else load(server, workload.load, seconds)
        before = server.resident_bytes()
        with _held(server.port, count):
            grown = server.resident_bytes() - before
            beside = load(server, workload.load, seconds)
        if alone is None:
            alone = load(server, workload.load, seconds)
    return IdleRound(count, grown / count, alone, beside)
