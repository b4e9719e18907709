"""Where the time of an echo request goes, stage by stage, without sockets.

``python -m benchmarks.stages`` prints it, with ``--json`` for the report, which has it of every
build of protoserve.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import timeit
from collections.abc import Callable
from typing import Any

from benchmarks.processes import SERVER_CORE
from benchmarks.workloads import echo_request
from examples.http_echo import process
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.poller import Poller
from protoserve.kernel.readiness import READABLE
from protoserve_http import WFHttpServer, WFHttpTask

_RUNS = 10_000
_REPEATS = 9


class _EndlessRequest:
    """A transport on which the same request arrives for ever."""

    short_read_empties = True
    ready = None

    def __init__(self, sock: socket.socket, request: bytes) -> None:
        self.fileno = sock.fileno
        self.close = sock.close
        self.recv = lambda _: request
        self.send = len
        self.sendmsg: Callable[[Any], int] = lambda buffers: sum(map(len, buffers))


def _micros(step: Callable[[], object]) -> float:
    # The least of several: everything else is the machine's noise.
    return min(timeit.repeat(step, number=_RUNS, repeat=_REPEATS)) / _RUNS * 1e6


def echo_stages() -> dict[str, float]:
    """Microseconds of each stage of one request on a connection that stays open."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        return _measure(echo_request())
    finally:
        os.sched_setaffinity(0, before)


def _measure(request: bytes) -> dict[str, float]:
    seen: list[WFHttpTask] = []
    server = WFHttpServer(lambda task: seen.append(task))
    poller = Poller()
    ours, peer = socket.socketpair()
    with ours, peer:
        communicator = Communicator(poller)
        communicator.attach(_EndlessRequest(ours, request), ("stages", 0), server)  # type: ignore[arg-type]
        [conn] = server.connections()
        communicator.on_ready(conn.entry, READABLE)
        task = seen.pop()

        server.process = process
        whole = _micros(lambda: communicator.on_ready(conn.entry, READABLE))

        def parse() -> None:
            conn.parser.feed(request)
            conn.parser.next_message()

        def handle() -> None:
            task.resp = server.spec.response()
            process(task)

        parts = {
            "parser": _micros(parse),
            "handler: the page": _micros(handle),
            "serialiser": _micros(task.message_out),
        }
        communicator.close(conn.entry)
    poller.close()
    return {**parts, "engine: states, locks, timers, task": whole - sum(parts.values())}


if __name__ == "__main__":
    stages = echo_stages()
    if sys.argv[1:] == ["--json"]:
        print(json.dumps(stages))
    else:
        for stage, micros in stages.items():
            print(f"{micros:6.2f} µs  {stage}")
