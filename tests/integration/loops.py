"""Servers in every kind of event loop: their own or the caller's, with uvloop and without."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from loopback import PATIENCE

from protoserve import ServerParams
from protoserve_http import WFHttpServer

OWN = ["own uvloop", "own asyncio"]
RUNNING = ["running uvloop", "running asyncio"]
PLACES = OWN + RUNNING


@contextlib.contextmanager
def serving(
    place: str, process: Callable[[Any], object], params: ServerParams | None = None
) -> Iterator[WFHttpServer]:
    """A server in such a loop; afterwards nothing runs in the loop any more."""
    server = WFHttpServer(process, params)
    if place in OWN:
        with pytest.MonkeyPatch.context() as patch:
            if place == "own asyncio":
                patch.setitem(sys.modules, "uvloop", None)
            with server.start("127.0.0.1", 0):
                yield server
        return
    started = threading.Event()
    failures: list[BaseException] = []
    end: Callable[[], object] = started.set

    async def main() -> None:
        nonlocal end
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        end = lambda: loop.call_soon_threadsafe(over.set)  # noqa: E731
        async with server.start("127.0.0.1", 0):
            started.set()
            await over.wait()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def run() -> None:
        try:
            factory = uvloop.new_event_loop if place == "running uvloop" else None
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="the test's loop")
    thread.start()
    assert started.wait(PATIENCE)
    try:
        if not failures:
            yield server
    finally:
        with contextlib.suppress(RuntimeError):  # it failed, and the loop is closed
            end()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        if failures:
            raise failures[0]
