"""What the tests of tasks share: running one alone, or in the series of a real request."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))

import uvloop
from loopback import PATIENCE, RawClient, Reply, Together, eventually, get

from protoserve import SeriesWork, SubTask
from protoserve_http import WFHttpServer, WFHttpTask

# The first loop of a process opens a pipe that libuv keeps for good: no test's leftover.
uvloop.new_event_loop().close()

__all__ = ["PATIENCE", "RawClient", "Reply", "Together", "WFHttpServer", "WFHttpTask", "ask",
           "closed_by", "depth", "eventually", "get", "in_thread", "run", "start"]  # fmt: skip


def start(*tasks: SubTask) -> tuple[SeriesWork, threading.Event]:
    """Start the tasks in a series; the event is set when it has ended."""
    ended = threading.Event()
    series = SeriesWork(tasks[0], lambda _: ended.set())
    for task in tasks[1:]:
        series.push_back(task)
    series.start()
    return series, ended


def run(*tasks: SubTask) -> SeriesWork:
    """Run the tasks in a series to its end."""
    series, ended = start(*tasks)
    assert ended.wait(PATIENCE), "the series does not end"
    return series


def ask(process: Callable[[WFHttpTask], Any]) -> Reply:
    """The reply of a server with this handler. The connection must go on after it."""
    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        reply = c.ask()
        assert c.open
        return reply


def closed_by(process: Callable[[WFHttpTask], Any]) -> bytes:
    """All that comes from a server with this handler until the connection closes."""
    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get())
        return c.rest()


def reset_by(process: Callable[[WFHttpTask], Any]) -> bytes:
    """All that comes from a server with this handler until it resets the connection."""
    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get())
        return c.rest_until_reset()


def in_thread(call: Callable[[], object]) -> None:
    """Call it in a foreign thread, and wait."""
    failures: list[BaseException] = []

    def caught() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not failures, failures


def depth() -> int:
    """How deep the caller's stack is."""
    frame = sys._getframe()
    found = 0
    while frame.f_back is not None:
        frame = frame.f_back
        found += 1
    return found
