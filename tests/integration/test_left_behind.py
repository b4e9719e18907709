"""Clients, loops and coroutines that leave at an odd moment take nothing else with them."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator

import pytest
from loopback import RawClient, eventually, get

from protoserve import (
    NEED_DATA,
    MessageParser,
    NeedData,
    ProtocolSpec,
    ResourcePool,
    ServerParams,
    UsageError,
    WaitGroup,
    WFServer,
    go,
    timer,
)
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

QUICK = HTTP_SPEC.params.replace(shutdown_timeout=0.3)


def test_awaited_tasks_whose_loop_has_closed() -> None:
    begun = WaitGroup(8)

    async def main() -> None:
        async def wait() -> None:
            await go(time.sleep, 0.1, callback=lambda _: time.sleep(0.1))

        waiting = [asyncio.ensure_future(wait()) for _ in range(8)]
        await asyncio.sleep(0.02)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())
    for _ in range(8):
        go(int, callback=lambda _: begun.done()).start()
    assert begun.wait(10)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_client_leaves_before_the_first_piece(asynchronous: bool) -> None:
    begun, closed = threading.Event(), threading.Event()

    async def events() -> AsyncIterator[str]:
        try:
            begun.set()
            await asyncio.sleep(1000)
            yield "x"
        finally:
            closed.set()

    def process(task: WFHttpTask) -> None:
        task.resp.body = events()

    async def async_process(task: WFHttpTask) -> None:
        process(task)

    with WFHttpServer(async_process if asynchronous else process).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            client.send(get())
            assert begun.wait(10)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert closed.wait(10)
        assert server.stop() == 0


def test_cancelled_waiter_of_a_pool_gives_back() -> None:
    async def main() -> None:
        pool = ResourcePool(1)
        await pool.get()

        async def hold() -> None:
            await pool.get()
            pool.post(None)

        waiting = asyncio.ensure_future(hold())
        await asyncio.sleep(0.02)
        pool.post(None)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(pool.get(), 10)  # type: ignore[arg-type]

    asyncio.run(main())


def test_current_task_cancelled_long_after() -> None:
    saved: list[asyncio.Task[object]] = []

    async def process(task: WFHttpTask) -> None:
        if task.req.path == "/wait":
            await asyncio.sleep(0.01)
            task.resp.write("ok")
        else:
            current = asyncio.current_task()
            assert current is not None
            saved.append(current)

    with WFHttpServer(process, QUICK).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            assert client.ask("/save").status == 200
            saved[0].get_loop().call_soon_threadsafe(saved[0].cancel)
            time.sleep(0.05)
            for _ in range(3):
                assert client.ask("/wait").body == b"ok"
        assert server.stop() == 0


def test_server_left_running_in_a_closed_loop() -> None:
    async def process(task: WFHttpTask) -> None:
        task.resp.write("x")

    left = WFHttpServer(process, QUICK)

    async def main() -> None:
        left.start("127.0.0.1", 0)

    asyncio.run(main())
    with WFHttpServer(lambda task: None).start("127.0.0.1", 0) as other:
        assert other.stop() == 0
    left.stop()


def test_series_cancelled_in_the_first_step() -> None:
    async def process(task: WFHttpTask) -> None:
        task.series.cancel()
        await asyncio.sleep(1000)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            client.send(get())
            assert client.rest() == b""
        assert server.stop() == 0


def test_push_of_text_is_refused_before_anything_is_sent() -> None:
    def process(task: WFHttpTask) -> None:
        task.push("text")  # type: ignore[arg-type]

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 500


def test_stop_in_a_coroutine_says_what_to_do() -> None:
    said: list[str] = []

    async def process(task: WFHttpTask) -> None:
        await timer(0)
        try:
            task.server.stop()
        except UsageError as error:
            said.append(str(error))

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 200
    assert "aclose()" in said[0]


def test_a_parser_that_never_returns_does_not_keep_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    began, over = threading.Event(), threading.Event()

    class Endless(MessageParser[bytes]):
        def __init__(self, params: ServerParams) -> None:
            pass

        def feed(self, data: bytes) -> None:
            pass

        def next_message(self) -> NeedData:
            began.set()
            over.wait()
            return NEED_DATA

        @property
        def partial(self) -> bool:
            return False

    spec = ProtocolSpec[bytes, bytearray](
        name="endless", message_in=Endless, message_out=bytes, response=bytearray
    )
    params = ServerParams(shutdown_timeout=0.3)
    server = WFServer(spec, lambda task: None, params).start("127.0.0.1", 0)
    try:
        with RawClient(server.address) as client:
            client.send(b"x")
            assert began.wait(10)
        # A leader that meets the connection is kept by it, and replaced.
        eventually(lambda: "has not returned" in caplog.text)
        assert server.stop() >= 1
    finally:
        over.set()
    eventually(lambda: not server.connections())
