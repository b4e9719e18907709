"""Bytes before, between and in the middle of replies: task.push and connection.push."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from loops import serving

from protoserve import UsageError, timer
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
RESET = struct.pack("ii", 1, 0)
MIB = 1024 * 1024


@pytest.fixture(params=["own uvloop", "running asyncio"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_early_hints_in_a_function() -> None:
    def process(task: WFHttpTask) -> None:
        task.push(HINTS)
        task.resp.write("page")

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        for _ in range(2):
            client.send(get() * 2)
            for _ in range(2):
                assert client._file.read(len(HINTS)) == HINTS
                assert client.reply().body == b"page"


def test_early_hints_in_a_coroutine(place: str) -> None:
    async def process(task: WFHttpTask) -> None:
        await task.push(HINTS)
        await asyncio.sleep(0)
        await task.push(bytearray(HINTS))
        task.resp.write("page")

    with serving(place, process) as server, RawClient(server.address) as client:
        client.send(get() * 2)
        for _ in range(2):
            assert client._file.read(2 * len(HINTS)) == HINTS * 2
            assert client.reply().body == b"page"


def test_timed_chunks_then_noreply() -> None:
    """Acceptance case 3."""

    def process(task: WFHttpTask) -> None:
        task.push(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(3):
            chunk = b"1\r\n%d\r\n" % i
            task.series.push_back(timer(0.1, callback=lambda _, chunk=chunk: task.push(chunk)))
        task.noreply()

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        began = time.monotonic()
        client.send(get())
        assert client._file.read(47).endswith(b"\r\n\r\n")
        for i in range(3):
            assert client._file.read(6) == b"1\r\n%d\r\n" % i
            assert time.monotonic() - began >= 0.1 * (i + 1) - 0.01
        assert client.rest() == b""


def check_back_pressure(server: WFHttpServer, pushed: list[int], size: int) -> None:
    with RawClient(server.address, receive_buffer=8192) as client:
        client.send(get("/", "Connection: close"))
        eventually(lambda: pushed)
        last = -1
        while len(pushed) != last:  # until it stands still
            last = len(pushed)
            time.sleep(0.1)
        assert len(pushed) < size
        data = client.rest()
    assert len(pushed) == size
    body = data[: size * 65536]
    assert body == b"".join(bytes([i]) * 65536 for i in range(size))
    assert data[size * 65536 :].endswith(b"\r\n\r\nend")


def test_back_pressure_blocks_a_function() -> None:
    pushed: list[int] = []

    def process(task: WFHttpTask) -> None:
        for i in range(200):
            task.push(bytes([i]) * 65536)
            pushed.append(i)
        task.resp.write("end")

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        check_back_pressure(server, pushed, 200)


def test_back_pressure_is_awaited_by_a_coroutine(place: str) -> None:
    pushed: list[int] = []

    async def process(task: WFHttpTask) -> None:
        if task.req.path == "/other":
            return
        for i in range(200):
            await task.push(bytes([i]) * 65536)
            pushed.append(i)
        task.resp.write("end")

    with serving(place, process) as server:
        check_back_pressure(server, pushed, 200)


@pytest.mark.parametrize("async_", [False, True])
def test_peer_gone(async_: bool, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[BaseException] = []
    over = threading.Event()

    def function(task: WFHttpTask) -> None:
        try:
            while True:
                task.push(bytes(65536))
        except ConnectionResetError as error:
            seen.append(error)
            over.set()
            raise

    async def process(task: WFHttpTask) -> None:
        try:
            while True:
                await task.push(bytes(65536))
        except ConnectionResetError as error:
            seen.append(error)
            over.set()
            raise

    with WFHttpServer(process if async_ else function).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            client.send(get())
            client.sock.recv(1000)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert over.wait(PATIENCE)
    assert len(seen) == 1
    # The handler noticed what is nobody's fault.
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("async_", [False, True])
def test_peer_that_does_not_read_is_cut(async_: bool) -> None:
    over = threading.Event()

    def function(task: WFHttpTask) -> None:
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - one of many is refused
            while True:
                task.push(bytes(65536))
        over.set()

    async def process(task: WFHttpTask) -> None:
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - one of many is refused
            while True:
                await task.push(bytes(65536))
        over.set()

    params = HTTP_SPEC.params.replace(peer_response_timeout=0.3)
    with (
        WFHttpServer(process if async_ else function, params).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get())
        assert over.wait(PATIENCE)


def test_push_after_the_reply_is_refused() -> None:
    errors: list[BaseException] = []

    def late(task: WFHttpTask) -> None:
        try:
            task.push(b"late")
        except BaseException as error:
            errors.append(error)

    def process(task: WFHttpTask) -> None:
        task.set_callback(late)

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 200
        eventually(lambda: errors)
    assert isinstance(errors[0], UsageError)


def test_failing_after_a_push_resets(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.push(HINTS)
        raise RuntimeError("after the hints")

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get())
        assert client.rest_until_reset() == HINTS
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize("pushes", [False, True])
def test_cancelled_after_a_push_resets(place: str, pushes: bool) -> None:
    """An end would tell the client that what it has is all there is."""

    async def process(task: WFHttpTask) -> None:
        if pushes:
            await task.push(HINTS)
        this = asyncio.current_task()
        assert this is not None
        this.cancel()
        await asyncio.sleep(PATIENCE)

    with serving(place, process) as server, RawClient(server.address) as client:
        client.send(get())
        if pushes:
            assert client.rest_until_reset() == HINTS
        else:
            assert client.rest() == b""


def test_connection_push_idle_and_while_a_request_runs() -> None:
    tasks: list[WFHttpTask] = []
    go_on = threading.Event()

    def process(task: WFHttpTask) -> None:
        tasks.append(task)
        if task.req.path == "/wait":
            go_on.wait(PATIENCE)

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 200
        assert tasks[0].connection.push(b"idle")
        assert client._file.read(4) == b"idle"
        client.send(get("/wait"))
        eventually(lambda: len(tasks) == 2)
        assert tasks[1].connection.push(b"busy")
        assert client._file.read(4) == b"busy"
        go_on.set()
        assert client.reply().status == 200
        with pytest.raises(TypeError):
            tasks[1].connection.push("text")  # type: ignore[arg-type]
        assert client.ask().status == 200
    eventually(lambda: tasks[0].connection.push(b"nobody") is False)


def test_connection_push_waits_for_the_end_of_a_stream() -> None:
    go_on, begun = threading.Event(), threading.Event()
    tasks: list[WFHttpTask] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"ab"
        begun.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        yield b"cd"

    def process(task: WFHttpTask) -> None:
        tasks.append(task)
        task.resp.headers["Content-Length"] = "4"
        task.resp.body = pieces()

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get())
        assert begun.wait(PATIENCE)
        assert tasks[0].connection.push(b"held")
        go_on.set()
        assert client.reply().body == b"abcd"
        assert client._file.read(4) == b"held"


@pytest.mark.parametrize("unix", [False, True])
def test_client_leaves_before_a_delayed_reply(unix: bool, tmp_path: Path) -> None:
    """Acceptance case 4: over TCP by a reset, over a Unix socket by a plain close."""
    seen: list[object] = []
    begun, over = threading.Event(), threading.Event()

    def process(task: WFHttpTask) -> None:
        task.connection.on_close(lambda _: seen.append("on_close"))
        task.set_callback(lambda t: (seen.append((t.state.name, t.error)), over.set()))
        task.series.push_back(timer(0.3, callback=lambda _: seen.append(task.closed)))
        begun.set()

    server = WFHttpServer(process)
    with server.start(f"unix:{tmp_path}/s") if unix else server.start("127.0.0.1", 0):
        with RawClient(server.address) as client:
            client.send(get())
            assert begun.wait(PATIENCE)
            if not unix:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert over.wait(PATIENCE)
    assert seen == ["on_close", True, ("SYS_ERROR", 2)]


@pytest.mark.slow
def test_soak_of_everything_while_servers_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    import random

    from protoserve import coroutine, go

    def function(task: WFHttpTask) -> object:
        task.resp.write("x")
        match random.randrange(5):
            case 0:
                task.series.push_back(timer(0.001))
                task.series.push_back(go(len, b""))
            case 1:
                task.series.push_back(coroutine(asyncio.sleep(0.001)))
            case 2:
                return process(task)
            case 3:
                task.push(b"")
        return None

    async def process(task: WFHttpTask) -> None:
        if random.random() < 0.5:
            await asyncio.sleep(0.001)
        if random.random() < 0.3:
            await go(len, b"")
        if random.random() < 0.3:
            task.series.push_back(timer(0.001))
        task.resp.body = b"x"

    end = time.monotonic() + 3
    faults: list[BaseException] = []
    answered = [0] * 4

    def client_of(server: WFHttpServer, number: int) -> None:
        try:
            with RawClient(server.address) as client:
                while time.monotonic() < end:
                    assert client.ask().body == b"x"
                    answered[number] += 1
        except BaseException as error:
            faults.append(error)

    def come_and_go(handler: object) -> None:
        try:
            while time.monotonic() < end:
                server = WFHttpServer(handler).start("127.0.0.1", 0)  # type: ignore[arg-type]
                with contextlib.suppress(ConnectionError), RawClient(server.address) as client:
                    assert client.ask().status == 200
                assert server.stop() == 0
        except BaseException as error:
            faults.append(error)

    with (
        WFHttpServer(function).start("127.0.0.1", 0) as first,
        WFHttpServer(process).start("127.0.0.1", 0) as second,
    ):
        threads = [
            threading.Thread(target=client_of, args=((first, second)[i % 2], i)) for i in range(4)
        ]
        threads += [threading.Thread(target=come_and_go, args=(h,)) for h in (function, process)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert faults == []
    assert min(answered) > 10
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_push_that_was_not_taken_counts_as_cut_at_a_stop(taken: bool) -> None:
    """The connection is between two requests, and yet something of it is lost."""
    params = HTTP_SPEC.params.replace(shutdown_timeout=0.2)
    server = WFHttpServer(lambda task: None, params).start("127.0.0.1", 0)
    with RawClient(server.address, receive_buffer=4096) as client:
        assert client.ask().status == 200
        (conn,) = server.connections()
        eventually(lambda: conn.entry.idle)
        # More than any system holds for two ends; less than what cuts it at once.
        assert conn.push(b"x" if taken else bytes(24 * 1024 * 1024))
        assert bool(conn.entry.output.buffers) is not taken
        assert server.stop() == (0 if taken else 1)
