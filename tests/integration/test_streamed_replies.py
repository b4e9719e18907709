"""Replies in pieces: their framing, their end, slow readers, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from loops import serving

from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

KINDS = ["generator", "iterator", "async", "async in a loop", "generator in a loop"]
CLOSABLE = [kind for kind in KINDS if kind != "iterator"]
MIB = 1024 * 1024
RESET = struct.pack("ii", 1, 0)

T = TypeVar("T")


async def later(pieces: Iterable[T]) -> AsyncIterator[T]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


def at_once(pieces: list[object]) -> Iterator[object]:
    yield from pieces


def in_place(kind: str, function: Callable[[WFHttpTask], object]) -> Callable[..., object]:
    """The handler that a kind asks for: the function, or a coroutine that calls it."""

    async def process(task: WFHttpTask) -> None:
        function(task)

    return process if kind.endswith("in a loop") else function


def process_for(kind: str, pieces: list[object], *fields: tuple[str, str], status: int = 200):  # type: ignore[no-untyped-def]
    def function(task: WFHttpTask) -> None:
        task.resp.status = status
        for name, value in fields:
            task.resp.headers[name] = value
        if kind.startswith("async"):
            task.resp.body = later(pieces)  # type: ignore[assignment]
        elif kind == "iterator":
            task.resp.body = iter(pieces)  # type: ignore[assignment]
        else:
            task.resp.body = at_once(pieces)  # type: ignore[assignment]

    return in_place(kind, function)


def split(data: bytes) -> tuple[list[bytes], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


PIECES: list[object] = ["caf\xe9", b"", b"bc", "", bytearray(b"def"), memoryview(b"ghij")]
BODY = "caf\xe9bcdefghij".encode()


def test_chunked(kind: str) -> None:
    process = process_for(kind, PIECES)
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get("/") + get("/", "Connection: close"))
        data = client.rest()
    chunked = b"5\r\ncaf\xc3\xa9\r\n2\r\nbc\r\n3\r\ndef\r\n4\r\nghij\r\n0\r\n\r\n"
    assert data.count(chunked) == 2
    head, _ = split(data)
    assert b"Transfer-Encoding: chunked" in head
    assert not [line for line in head if line.startswith(b"Content-Length")]
    assert data.endswith(chunked)


def test_counted_then_more_requests(kind: str) -> None:
    process = process_for(kind, PIECES, ("Content-Length", str(len(BODY))))
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get("/") * 20)
        for _ in range(20):
            reply = client.reply()
            assert reply.body == BODY
            assert "transfer-encoding" not in reply.headers
        assert client.ask().body == BODY


def test_http_1_0_ends_with_the_connection(kind: str) -> None:
    process = process_for(kind, PIECES)
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        for fields in ((), ("Connection: keep-alive",)):
            with RawClient(server.address) as client:
                client.send(get("/", *fields, version="1.0"))
                head, body = split(client.rest())
                assert body == BODY
                assert b"Connection: close" in head
                assert b"Transfer-Encoding: chunked" not in head


def test_http_1_0_with_a_length_stays(kind: str) -> None:
    process = process_for(kind, PIECES, ("Content-Length", str(len(BODY))))
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        for _ in range(2):
            assert client.ask("/", "Connection: keep-alive", version="1.0").body == BODY


@pytest.mark.parametrize("status", [200, 204, 304])
def test_no_body_is_sent_where_there_is_none(kind: str, status: int) -> None:
    process = process_for(kind, PIECES, status=status)
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        method = b"HEAD" if status == 200 else b"GET"
        client.send((method + b" / HTTP/1.1\r\nHost: a\r\n\r\n") * 2)
        for _ in range(2):
            assert client.reply(head_only=True).status == status
        assert client.open


class Source:
    """An async iterator that is no generator, and what was done with it."""

    def __init__(self, fault: bool = False) -> None:
        self.given = 0
        self.closed = threading.Semaphore(0)
        self.fault = fault

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        if self.given == 2:
            raise StopAsyncIteration
        self.given += 1
        return b"x"

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed.release()
        if self.fault:
            raise ValueError("a fault")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("GET", 204)])
def test_an_async_source_is_closed_once(method: str, status: int, asynchronous: bool) -> None:
    sources: list[Source] = []

    def function(task: WFHttpTask) -> None:
        sources.append(Source())
        task.resp.status = status
        task.resp.headers["Content-Length"] = "2"
        task.resp.body = sources[-1]

    async def process(task: WFHttpTask) -> None:
        function(task)

    with (
        WFHttpServer(process if asynchronous else function).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        without_body = (method, status) != ("GET", 200)
        for _ in range(2):
            client.send(get().replace(b"GET", method.encode()))
            reply = client.reply(head_only=without_body)
            assert reply.status == status
            assert sources[-1].closed.acquire(timeout=PATIENCE)
            assert sources[-1].given == (0 if without_body else 2)
        assert client.open
    assert not any(source.closed.acquire(blocking=False) for source in sources)


def test_an_async_source_that_cannot_be_closed_before_the_reply(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def process(task: WFHttpTask) -> None:
        task.resp.body = Source(fault=True)

    with serving("own uvloop", process) as server, RawClient(server.address) as client:
        client.send(get().replace(b"GET", b"HEAD"))
        assert client.reply(head_only=True).status == 500
        assert client.open
    assert "ValueError: a fault" in caplog.text


@pytest.mark.parametrize("place", ["own asyncio", "running uvloop"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_async_source_whose_client_left_a_moment_ago(place: str, method: str) -> None:
    """Before the reply has begun."""
    source = Source()
    states: list[object] = []

    async def process(task: WFHttpTask) -> None:
        await asyncio.sleep(0)
        task.resp.body = source
        task.set_callback(lambda t: states.append((t.state.name, t.error)))
        # After the handler, and before the coroutine that sends.
        asyncio.get_running_loop().call_soon(task.connection.close)

    with serving(place, process) as server, RawClient(server.address) as client:
        client.send(get().replace(b"GET", method.encode()))
        with contextlib.suppress(ConnectionError):
            assert client.rest() == b""
        assert source.closed.acquire(timeout=PATIENCE)
        eventually(lambda: states)
    assert source.given == 0
    assert states == [("SYS_ERROR", errno.ENOENT)]
    assert not source.closed.acquire(blocking=False)


def test_no_pieces_at_all(kind: str) -> None:
    process = process_for(kind, [])
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get("/", "Connection: close"))
        assert split(client.rest())[1] == b"0\r\n\r\n"


@pytest.mark.parametrize("stated", [len(BODY) - 1, len(BODY) + 1])
def test_wrong_length_is_reset(kind: str, stated: int, caplog: pytest.LogCaptureFixture) -> None:
    process = process_for(kind, PIECES, ("Content-Length", str(stated)))
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get())
        with pytest.raises(ConnectionResetError):
            client.rest()
    (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
    assert "midway" in record.getMessage()


def raising(kind: str, good: int, closed: list[str]):  # type: ignore[no-untyped-def]
    def pieces() -> Iterator[bytes]:
        try:
            for _ in range(good):
                yield b"good"
            raise LookupError("no more")
        finally:
            closed.append("closed")

    def function(task: WFHttpTask) -> None:
        if task.req.path == "/bad":
            task.resp.body = later(pieces()) if kind.startswith("async") else pieces()

    return in_place(kind, function)


def test_raising_at_the_first_piece_is_a_500(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    with (
        WFHttpServer(raising(kind, 0, closed)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get("/bad") + get())
        assert client.reply().status == 500
        assert client.reply().status == 200
    assert closed == ["closed"]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


def test_raising_midway_is_a_reset(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    with (
        WFHttpServer(raising(kind, 3, closed)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get("/bad") + get())
        with pytest.raises(ConnectionResetError):
            client.rest()
    assert closed == ["closed"]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


def test_reused_buffer(kind: str) -> None:
    def pieces() -> Iterator[bytearray]:
        buffer = bytearray(100_000)
        for i in range(60):
            buffer[:] = bytes([i]) * len(buffer)
            yield buffer

    async def async_pieces() -> AsyncIterator[bytearray]:
        for piece in pieces():
            yield piece

    def function(task: WFHttpTask) -> None:
        task.resp.headers["Content-Length"] = "6000000"
        task.resp.body = async_pieces() if kind.startswith("async") else pieces()

    with (
        WFHttpServer(in_place(kind, function)).start("127.0.0.1", 0) as server,
        RawClient(server.address, receive_buffer=8192) as client,
    ):
        client.send(get())
        eventually(lambda: client.open)
        body = client.reply().body
    assert body == b"".join(bytes([i]) * 100_000 for i in range(60))


def endless(kind: str, closed: threading.Event, begun: threading.Event) -> Callable[..., object]:
    piece = bytes(16 * 1024)

    def pieces() -> Iterator[bytes]:
        try:
            while True:
                begun.set()
                yield piece
        finally:
            closed.set()

    async def async_pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                begun.set()
                yield piece
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            closed.set()

    def function(task: WFHttpTask) -> None:
        task.resp.body = async_pieces() if kind.startswith("async") else pieces()

    return in_place(kind, function)


@pytest.mark.parametrize("kind", CLOSABLE)
@pytest.mark.parametrize("how", ["reset", "close", "close after reading"])
def test_closed_when_the_client_leaves(kind: str, how: str) -> None:
    closed, begun = threading.Event(), threading.Event()
    with WFHttpServer(endless(kind, closed, begun)).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            client.send(get())
            assert begun.wait(PATIENCE)
            if how == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif how == "close after reading":
                client.sock.recv(100_000)
        assert closed.wait(PATIENCE)
        eventually(lambda: server.conn_count == 0)


@pytest.mark.parametrize("kind", CLOSABLE)
def test_closed_when_the_server_cuts(kind: str) -> None:
    closed, begun = threading.Event(), threading.Event()
    params = HTTP_SPEC.params.replace(shutdown_timeout=0.1)
    server = WFHttpServer(endless(kind, closed, begun), params).start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        client.send(get())
        assert begun.wait(PATIENCE)
        assert server.stop() >= 1
    assert closed.is_set()


def resident() -> int:
    """The resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


READER = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
if sys.argv[2] == "read":
    size = 0
    while data := sock.recv(1 << 20):
        size += len(data)
    print(size, flush=True)
else:
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
@pytest.mark.parametrize("mode", ["read", "never"])
@pytest.mark.parametrize("async_", [False, True])
def test_memory_is_bounded(mode: str, async_: bool) -> None:
    size = (200 if mode == "read" else 64) * MIB
    piece = bytes(64 * 1024)
    ends: list[tuple[str, int]] = []
    over = threading.Event()

    def pieces() -> Iterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    async def async_pieces() -> AsyncIterator[bytes]:
        for one in pieces():
            yield one

    def note(task: WFHttpTask) -> None:
        ends.append((task.state.name, task.error))
        over.set()

    def process(task: WFHttpTask) -> None:
        task.set_callback(note)
        task.resp.headers["Content-Length"] = str(size)
        task.resp.body = async_pieces() if async_ else pieces()

    params = HTTP_SPEC.params.replace(peer_response_timeout=0.4 if mode == "never" else 10)
    with WFHttpServer(process, params).start("127.0.0.1", 0) as server:
        command = [sys.executable, "-c", READER, str(server.address[1]), mode]
        before = most = resident()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            end = time.monotonic() + 20
            while not over.wait(0.01) and time.monotonic() < end:
                most = max(most, resident())
            out, _ = client.communicate(timeout=20)
    assert most - before < 4 * MIB
    if mode == "read":
        assert ends == [("SUCCESS", 0)]
        assert int(out) > size
    else:
        (state, error), *_ = ends
        assert state == "SYS_ERROR"
        assert error == errno.ETIMEDOUT


def test_events_arrive_as_they_are_made() -> None:
    go_on = [threading.Event() for _ in range(3)]

    async def events() -> AsyncIterator[str]:
        for i, event in enumerate(go_on):
            yield f"data: {i}\n\n"
            await asyncio.to_thread(event.wait, PATIENCE)

    async def process(task: WFHttpTask) -> None:
        task.resp.headers["Content-Type"] = "text/event-stream"
        task.resp.body = events()

    with serving("own asyncio", process) as server, RawClient(server.address) as client:
        client.send(get("/", version="1.0"))
        seen = b""
        for i, event in enumerate(go_on):
            while b"data: %d\n\n" % i not in seen:
                seen += client.sock.recv(4096)
            event.set()
        assert client.rest() == b""


def test_stop_waits_for_a_stream() -> None:
    go_on, begun = threading.Event(), threading.Event()

    async def async_pieces() -> AsyncIterator[bytes]:
        yield b"a" * 10
        begun.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        yield b"b" * 10

    def process(task: WFHttpTask) -> None:
        task.resp.body = async_pieces()

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get())
        assert begun.wait(PATIENCE)
        server.shutdown()
        go_on.set()
        assert client.rest().endswith(b"a\r\na" + b"a" * 9 + b"\r\na\r\nbbbbbbbbbb\r\n0\r\n\r\n")


@pytest.mark.parametrize("kind", CLOSABLE)
def test_empty_pieces_do_not_begin_the_reply(kind: str) -> None:
    """Until there is something to send, the reply may still become another."""

    def at_last() -> Iterator[bytes]:
        yield b""
        yield b""
        raise ValueError("a fault")

    def function(task: WFHttpTask) -> None:
        if task.req.path == "/empty":
            task.resp.body = iter([b"", b""])
        else:
            task.resp.body = later(at_last()) if kind.startswith("async") else at_last()

    with (
        WFHttpServer(in_place(kind, function)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 500
        client.send(get("/empty"))
        head = client._file.readline()
        assert head == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("kind", CLOSABLE)
def test_the_replies_before_one_that_fails_midway_arrive(kind: str) -> None:
    def broken() -> Iterator[bytes]:
        yield b"begun"
        raise ValueError("a fault")

    async def broken_async() -> AsyncIterator[bytes]:
        yield b"begun"
        raise ValueError("a fault")

    def function(task: WFHttpTask) -> None:
        if task.req.path == "/broken":
            task.resp.body = broken_async() if kind.startswith("async") else broken()
        else:
            task.resp.write("good")

    with (
        WFHttpServer(in_place(kind, function)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get() + get("/broken"))
        assert client.reply().body == b"good"
        assert b"begun" in client.rest_until_reset()
