"""What one request's coroutine does is not the end of the loop that serves all others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from loopback import RawClient, eventually, get
from loops import OWN, serving
from own_process import run_alone

from protoserve import coroutine
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

PROGRAM = """
import asyncio, logging, sys, threading
from loopback import RawClient
from protoserve import coroutine
from protoserve_http import HTTP_SPEC, WFHttpServer

what, leaving, kind = sys.argv[1:4]
if kind == "asyncio":
    sys.modules["uvloop"] = None
logging.basicConfig()
error = {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}.get(leaving)
waiting = threading.Event()
kept = []


async def leave():
    await asyncio.sleep(0)
    raise error("on purpose")


async def at_once():
    raise error("on purpose")


async def child(task):
    await asyncio.create_task(leave())


async def nobody_awaits(task):
    kept.append(asyncio.create_task(at_once()))
    await asyncio.sleep(0.01)
    task.resp.write("fine")


async def gathered(task):
    await asyncio.gather(leave(), leave())


async def pushed(task):
    task.series.push_back(coroutine(leave()))


async def callback(task):
    async def after(_):
        raise error("on purpose")

    task.set_callback(after)
    task.resp.write("fine")


async def call_soon(task):
    def function():
        raise error("on purpose")

    asyncio.get_running_loop().call_soon(function)
    await asyncio.sleep(0.01)
    task.resp.write("fine")


async def stop_loop(task):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    task.resp.write("fine")


async def cancel_all(task):
    for each in asyncio.all_tasks():
        each.cancel()
    await asyncio.sleep(0.01)


async def cancel_all_at_once(task):
    for each in asyncio.all_tasks():
        each.cancel()


async def process(task):
    if task.req.path == "/bad":
        await globals()[what](task)
    elif task.req.path == "/wait":
        waiting.set()
        await asyncio.sleep(0.05)
        task.resp.write("waited")
    else:
        await asyncio.sleep(0)
        task.resp.write("good")


with WFHttpServer(process).start("127.0.0.1", 0) as server:
    for _ in range(3):
        waiting.clear()
        with RawClient(server.address) as other, RawClient(server.address) as bad:
            other.send(b"GET /wait HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
            assert waiting.wait(10)
            bad.send(b"GET /bad HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
            print("bad:", bad.rest().partition(b"\\r\\n")[0].decode())
            if not what.startswith("cancel"):
                assert other.reply().body == b"waited"
        with RawClient(server.address) as good:
            assert good.ask("/good").body == b"good"
    print("stopped:", server.stop())
"""

OK, FAILED, CLOSED = "HTTP/1.1 200 OK", "HTTP/1.1 500 Internal Server Error", ""

CASES = [
    *(
        (what, leaving, expected)
        for what, expected in [
            ("child", FAILED),
            ("nobody_awaits", OK),
            ("gathered", FAILED),
            ("pushed", FAILED),
            ("callback", OK),
            ("call_soon", OK),
        ]
        for leaving in ("SystemExit", "KeyboardInterrupt")
    ),
    ("stop_loop", "", OK),
    ("cancel_all", "", CLOSED),
    ("cancel_all_at_once", "", None),
]


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
@pytest.mark.parametrize(("what", "leaving", "expected"), CASES)
def test_own_loop_goes_on(what: str, leaving: str, expected: str | None, kind: str) -> None:
    said = run_alone(PROGRAM, what, leaving, kind)
    replies = [line[5:] for line in said.lines if line.startswith("bad: ")]
    if expected is not None:
        assert replies == [expected] * 3
    assert "stopped: 0" in said.lines
    if leaving:
        assert leaving in said.log, "it is logged"
    if what == "stop_loop":
        assert "the loop was stopped" in said.log


class Leaving(BaseException):
    """What a source raises when it is ended."""


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Leaving])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_source_that_raises_when_its_client_leaves(
    error: type[BaseException], asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def pieces() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            raise error("on purpose")

    async def async_pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
                await asyncio.sleep(0)
        finally:
            raise error("on purpose")

    def process(task: WFHttpTask) -> None:
        task.resp.body = async_pieces() if asynchronous else pieces()

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with RawClient(server.address, receive_buffer=4096) as client:
            client.send(get())
            assert client.sock.recv(1000)
        eventually(lambda: server.conn_count == 0)
        with RawClient(server.address) as client:
            client.send(get("/", "Connection: close"))
            assert client.sock.recv(1000)
        assert server.stop() == 0
    assert len([r for r in caplog.records if "closing the reply" in r.getMessage()]) == 2


@pytest.mark.parametrize("place", OWN)
def test_pushed_coroutine_cancelled_before_its_first_step(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def never() -> None:
        raise AssertionError("it began")

    async def process(task: WFHttpTask) -> None:
        task.series.push_back(coroutine(never()))
        asyncio.get_running_loop().call_soon(task.series.cancel)

    with serving(place, process, HTTP_SPEC.params) as server, RawClient(server.address) as client:
        client.send(get())
        assert client.rest() == b""
        assert server.stop() == 0
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
