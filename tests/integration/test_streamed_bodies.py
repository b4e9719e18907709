"""Requests whose bodies stream in, over real sockets and with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import logging
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, eventually, get, post
from loops import PLACES, serving
from own_process import run_alone

from protoserve import (
    NEED_DATA,
    CommConnection,
    MessageParser,
    NeedData,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
    go,
)
from protoserve.events import RequestFinished, RequestRefused
from protoserve_http import HTTP_SPEC, HttpServerTask, WFHttpServer, WFHttpTask

STREAMED = HTTP_SPEC.params.replace(stream_bodies=True)
MIB = 1024 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

pytestmark = pytest.mark.timeout(30)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


def processing(server: WFHttpServer) -> int:
    """How many handlers are at work."""
    return sum(conn.phase == "PROCESSING" for conn in server.connections())


def upload(target: str, size: int, *fields: str) -> bytes:
    """The head of a request with a body of so many bytes."""
    return post(target, b"", *fields).replace(b"Length: 0", b"Length: %d" % size)


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def digest(task: WFHttpTask) -> None:
    """Its body's digest, or nothing for a request without one."""
    found = hashlib.sha256()
    for piece in task.req.stream or ():
        found.update(piece)
    task.resp.write(found.hexdigest())


async def digest_later(task: WFHttpTask) -> None:
    found = hashlib.sha256()
    if task.req.stream is not None:
        async for piece in task.req.stream:
            found.update(piece)
    task.resp.write(found.hexdigest())


def digest_in_go(task: WFHttpTask) -> None:
    """Read on a compute thread."""
    task.series.push_back(go(digest, task))


KINDS: list[Callable[[WFHttpTask], Any]] = [digest, digest_later, digest_in_go]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def server(request: pytest.FixtureRequest) -> Iterator[WFHttpServer]:
    with WFHttpServer(request.param, STREAMED).start("127.0.0.1", 0) as server:
        yield server


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


@pytest.mark.parametrize("size", [1, 70_000, 5 * MIB])
def test_uploads(server: WFHttpServer, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    with RawClient(server.address) as client:
        for _ in range(3):
            client.send(post("/", body))
            assert client.reply().body == sha(body)
        client.send(CHUNKED + chunked(body[:10], body[10:]) if size > 10 else get())
        client.reply()
        assert client.open


def test_pipelined(server: WFHttpServer) -> None:
    bodies = [b"a" * 10, b"b" * 200_000, b"", b"c"]
    with RawClient(server.address) as client:
        client.send(b"".join(post("/", body) for body in bodies) + get())
        for body in bodies:
            assert client.reply().body == sha(body)
        assert client.reply().body == sha(b"")
        assert client.open


def test_byte_by_byte(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        client.send_bytewise(post("/", b"abcdef") + CHUNKED + chunked(b"ab", b"cdef") + get())
        assert [client.reply().body for _ in range(3)] == [sha(b"abcdef")] * 2 + [sha(b"")]


def test_100_continue_when_it_is_read(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        for _ in range(2):
            client.send(upload("/", 3, "Expect: 100-continue"))
            assert client._file.read(len(CONTINUE)) == CONTINUE
            client.send(b"abc")
            assert client.reply().body == sha(b"abc")


def test_the_body_is_not_wanted(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.resp.status = 403

    with WFHttpServer(process, STREAMED).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            client.send(upload("/", 10 * MIB, "Expect: 100-continue"))
            reply = client.reply()
            assert (reply.status, reply.closes) == (403, True)
            assert client.rest() == b""
        with RawClient(server.address) as client:  # it sends all the same
            client.send(upload("/", 10 * MIB) + bytes(100_000))
            reply = client.reply()
            assert (reply.status, reply.closes) == (403, True)
            assert client.rest() == b""
        with RawClient(server.address) as client:  # a small one is there
            client.send(post("/", b"abc") + get())
            assert [client.reply().closes for _ in range(2)] == [False, False]
    assert not errors(caplog)


def test_a_handler_that_stops_in_the_middle() -> None:
    def process(task: WFHttpTask) -> None:
        assert task.req.stream is not None
        task.resp.write(next(task.req.stream)[:3])

    with (
        WFHttpServer(process, STREAMED).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(upload("/", 10 * MIB) + b"abc")
        reply = client.reply()
        assert (reply.body, reply.closes) == (b"abc", True)


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
class TestFailures:
    def test_too_large_by_its_head(self, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
        called: list[WFHttpTask] = []

        def process(task: WFHttpTask) -> Any:
            called.append(task)
            return kind(task)

        params = STREAMED.replace(request_size_limit=1000)
        with (
            WFHttpServer(process, params).start("127.0.0.1", 0) as server,
            RawClient(server.address) as client,
        ):
            client.send(upload("/", 1000, "Expect: 100-continue"))
            reply = client.reply()
            assert (reply.status, reply.closes) == (413, True)
        assert not called
        assert not errors(caplog)

    def test_too_large_in_the_middle(self, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
        facts: list[Any] = []
        params = STREAMED.replace(request_size_limit=1000)
        server = WFHttpServer(kind, params)
        server.subscribe(
            lambda e: facts.append(e.summary["status"]) if isinstance(e, RequestFinished) else None
        )
        with server.start("127.0.0.1", 0), RawClient(server.address) as client:
            client.send(CHUNKED + chunked(bytes(400), end=b""))
            eventually(lambda: processing(server))
            client.send(chunked(bytes(800), end=b""))
            reply = client.reply()
            assert (reply.status, reply.closes) == (413, True)
            assert b"larger than the server allows" in reply.body
            assert client.rest() == b""
        assert not errors(caplog)
        assert facts == [413]

    def test_nonsense_in_the_middle(self, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
        with (
            WFHttpServer(kind, STREAMED).start("127.0.0.1", 0) as server,
            RawClient(server.address) as client,
        ):
            client.send(CHUNKED + chunked(b"abc", end=b""))
            eventually(lambda: processing(server))
            client.send(b"nonsense\r\n")
            reply = client.reply()
            assert (reply.status, reply.closes) == (400, True)
        assert not errors(caplog)

    def test_too_slow(self, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
        params = STREAMED.replace(peer_response_timeout=0.2)
        with (
            WFHttpServer(kind, params).start("127.0.0.1", 0) as server,
            RawClient(server.address) as client,
        ):
            client.send(upload("/", 1000) + b"abc")
            reply = client.reply()
            assert (reply.status, reply.closes) == (408, True)
            assert client.rest() == b""
        assert not errors(caplog)

    def test_the_client_resets(self, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
        with WFHttpServer(kind, STREAMED).start("127.0.0.1", 0) as server:
            with RawClient(server.address) as client:
                client.send(upload("/", 1000) + b"abc")
                eventually(lambda: processing(server))
                client.sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            eventually(lambda: server.conn_count == 0)
        assert not errors(caplog)

    def test_the_client_ends_in_the_middle(
        self, kind: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            WFHttpServer(kind, STREAMED).start("127.0.0.1", 0) as server,
            RawClient(server.address) as client,
        ):
            client.send(upload("/", 1000) + b"abc")
            eventually(lambda: processing(server))
            client.end_sending()
            reply = client.reply()
            assert (reply.status, reply.closes) == (400, True)
        assert not errors(caplog)

    def test_the_server_stops(self, kind: Any) -> None:
        server = WFHttpServer(kind, STREAMED).start("127.0.0.1", 0)
        with RawClient(server.address) as client:
            client.send(upload("/", 6) + b"abc")
            eventually(lambda: processing(server))
            server.shutdown()
            client.send(b"def")
            reply = client.reply()
            assert (reply.body, reply.closes) == (sha(b"abcdef"), True)
        assert server.stop() == 0

    def test_the_stop_cuts(self, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
        params = STREAMED.replace(shutdown_timeout=0.1)
        server = WFHttpServer(kind, params).start("127.0.0.1", 0)
        with RawClient(server.address) as client:
            client.send(upload("/", 6) + b"abc")
            eventually(lambda: processing(server))
            assert server.stop() > 0


def test_a_handler_may_answer_to_a_failure_itself() -> None:
    def process(task: WFHttpTask) -> None:
        assert task.req.stream is not None
        try:
            task.req.stream.read()
        except ProtocolError:
            task.resp.status = 422

    params = STREAMED.replace(request_size_limit=1000)
    with (
        WFHttpServer(process, params).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(CHUNKED)
        eventually(lambda: processing(server))
        client.send(chunked(bytes(2000)))
        reply = client.reply()
        assert (reply.status, reply.closes) == (422, True)


def test_a_fault_of_the_handler_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        raise TimeoutError("of something else")

    with (
        WFHttpServer(process, STREAMED).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(upload("/", 1000))
        assert client.reply().status == 500
    assert len(errors(caplog)) == 1


# -- settings of one request ----------------------------------------------------------------------


class Choosy(WFHttpServer):
    """Its requests say by their targets how their bodies come."""

    def new_session(self, seq: int, conn: CommConnection) -> HttpServerTask:
        arriving = conn.arriving
        if arriving is not None:
            path = arriving.request.path
            arriving.streams = not path.startswith("/whole")
            if path.endswith("/small"):
                arriving.size_limit = 100
            elif path.endswith("/large"):
                arriving.size_limit = 10 * MIB
            elif path.endswith("/fast"):
                arriving.receive_timeout = 0.2
        return super().new_session(seq, conn)


def tell(task: WFHttpTask) -> None:
    stream = task.req.stream
    body = task.req.body if stream is None else stream.read()
    task.resp.write(f"{'whole' if stream is None else 'stream'} {len(body)}")


async def tell_later(task: WFHttpTask) -> None:
    stream = task.req.stream
    body = task.req.body if stream is None else await stream.aread()
    task.resp.write(f"{'whole' if stream is None else 'stream'} {len(body)}")


@pytest.mark.parametrize("process", [tell, tell_later])
def test_settings_of_one_request(process: Any) -> None:
    params = STREAMED.replace(request_size_limit=MIB)
    with Choosy(process, params).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            for target, size, says in (
                ("/whole", 500_000, b"whole 500000"),
                ("/stream", 500_000, b"stream 500000"),
                ("/whole/large", 5 * MIB, b"whole %d" % (5 * MIB)),
                ("/large", 5 * MIB, b"stream %d" % (5 * MIB)),
                ("/whole", 3, b"whole 3"),
            ):
                client.send(post(target, bytes(size)))
                assert client.reply().body == says
            client.send(get())
            assert client.reply().body == b"whole 0"
            client.send(upload("/whole", 3, "Expect: 100-continue"))
            assert client._file.read(len(CONTINUE)) == CONTINUE
            client.send(b"abc")
            assert client.reply().body == b"whole 3"
            client.send(post("/small", bytes(100)))
            assert client.reply().status == 413
        for target in ("/fast", "/whole/fast"):
            with RawClient(server.address) as client:
                client.send(upload(target, 1000) + b"abc")
                assert client.reply().status == 408


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("kind", ["large", "silent", "gone"])
def test_what_new_session_asked_for_is_dropped_with_its_request(streams: bool, kind: str) -> None:
    """A callback of a task keeps the server alive, and there will be no task."""
    called: list[WFHttpTask] = []

    class Caring(WFHttpServer):
        def new_session(self, seq: int, conn: CommConnection) -> HttpServerTask:
            task = super().new_session(seq, conn)
            task.set_callback(called.append)
            task.on_close(called.append)
            assert conn.arriving is not None
            conn.arriving.streams = streams
            return task

    params = STREAMED.replace(request_size_limit=1000, peer_response_timeout=0.2)
    server = Caring(called.append, params)
    refused: list[Any] = []
    server.subscribe(lambda event: refused.append(event))
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        if kind == "large" or streams:
            client.send(upload("/", 1000))
        else:
            client.send(upload("/", 500) + b"abc")
            eventually(lambda: [c.phase for c in server.connections()] == ["RECEIVING"])
        if kind == "gone":
            client.close()
        elif streams or kind == "large":
            assert client.reply().status == 413
        else:
            assert client.reply().status == 408
    assert not called
    assert {event.seq for event in refused if isinstance(event, RequestRefused)} <= {0}


# -- both directions ------------------------------------------------------------------------------


def echo_pieces(task: WFHttpTask) -> None:
    def pieces() -> Iterator[bytes]:
        assert task.req.stream is not None
        yield from task.req.stream

    task.resp.body = pieces()


async def echo_later(task: WFHttpTask) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        assert task.req.stream is not None
        async for piece in task.req.stream:
            yield piece

    task.resp.body = pieces()


@pytest.mark.parametrize("process", [echo_pieces, echo_later], ids=["function", "coroutine"])
def test_a_body_is_sent_back_as_it_comes(process: Any) -> None:
    size = 20 * MIB
    with (
        WFHttpServer(process, STREAMED.replace(request_size_limit=None)).start(
            "127.0.0.1", 0
        ) as server,
        RawClient(server.address) as client,
    ):
        for _ in range(2):
            sender = threading.Thread(target=client.send, args=(upload("/", size) + bytes(size),))
            sender.start()
            line = client._file.readline()
            assert line == b"HTTP/1.1 200 OK\r\n"
            fields = []
            while (field := client._file.readline()) != b"\r\n":
                fields.append(field)
            assert b"Connection: close\r\n" not in fields
            received = 0
            while number := int(client._file.readline(), 16):
                received += len(client._file.read(number))
                client._file.readline()
            client._file.readline()
            sender.join(PATIENCE)
            assert received == size
        assert client.open


@pytest.mark.parametrize("loop", [False, True], ids=["function", "coroutine"])
def test_a_reply_that_says_it_is_the_last_is(loop: bool) -> None:
    """Even where the request's body comes to its end before the reply does."""
    bodies: list[Any] = []
    arrived = threading.Event()

    def process(task: WFHttpTask) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"one"
            bodies.append(task.req.stream)
            assert arrived.wait(PATIENCE)
            yield b"two"

        task.resp.body = pieces()

    async def in_loop(task: WFHttpTask) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            bodies.append(task.req.stream)
            while not arrived.is_set():
                await asyncio.sleep(0.001)
            yield b"two"

        task.resp.body = pieces()

    with (
        WFHttpServer(in_loop if loop else process, STREAMED).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(upload("/", 5))
        eventually(lambda: len(bodies) == 1)
        client.send(b"12345" + get("/"))
        eventually(lambda: bodies[0].over)
        arrived.set()
        answer = client.rest()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


def test_a_client_that_does_not_read_is_not_read() -> None:
    with (
        WFHttpServer(echo_pieces, STREAMED.replace(request_size_limit=None)).start(
            "127.0.0.1", 0
        ) as server,
        RawClient(server.address, receive_buffer=4096) as client,
    ):
        client.send(upload("/", 1000 * MIB))
        client.sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100 * MIB:
                sent += client.sock.send(bytes(65536))
        assert sent < 50 * MIB
        (conn,) = server.connections()
        assert conn.pending < MIB
        stream = conn.entry.intake.arriving
        assert stream is not None
        assert stream._size < MIB


def test_the_interim_answer_goes_before_a_reply_in_pieces() -> None:
    with (
        WFHttpServer(echo_pieces, STREAMED).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(upload("/", 3, "Expect: 100-continue"))
        assert client._file.read(len(CONTINUE)) == CONTINUE
        client.send(b"abc")
        assert client._file.readline() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("place", PLACES)
def test_in_every_loop(place: str) -> None:
    with serving(place, digest_later, STREAMED) as server:
        body = bytes(MIB)
        with RawClient(server.address) as client:
            for _ in range(3):
                client.send(post("/", body))
                assert client.reply().body == sha(body)


def test_others_have_their_turn_while_a_coroutine_reads() -> None:
    """A body that is always there must not keep the loop."""
    reading = threading.Event()

    async def process(task: WFHttpTask) -> None:
        if task.req.stream is not None:
            async for _ in task.req.stream:
                reading.set()

    stop = threading.Event()
    with (
        WFHttpServer(process, STREAMED.replace(request_size_limit=None)).start(
            "127.0.0.1", 0
        ) as server,
        RawClient(server.address) as sender,
        RawClient(server.address) as client,
    ):

        def send() -> None:
            sender.send(upload("/", 10**12))
            while not stop.is_set():
                sender.send(bytes(MIB))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            assert reading.wait(PATIENCE)
            for _ in range(20):
                assert client.ask().status == 200
        finally:
            stop.set()
            thread.join(PATIENCE)


class LineParser(MessageParser[bytes]):
    """A line is a request."""

    def __init__(self, params: ServerParams) -> None:
        self.held = b""

    def feed(self, data: bytes) -> None:
        self.held += data

    def next_message(self) -> bytes | NeedData:
        line, end, rest = self.held.partition(b"\n")
        if not end:
            return NEED_DATA
        self.held = rest
        return line

    @property
    def partial(self) -> bool:
        return bool(self.held)


LINES: ProtocolSpec[bytes, bytearray] = ProtocolSpec(
    name="lines", message_in=LineParser, message_out=bytes, response=bytearray
)


def test_an_upgrade_after_a_body() -> None:
    def shout(task: Any) -> None:
        task.resp.extend(task.req.upper() + b"\n")

    def process(task: WFHttpTask) -> None:
        assert task.req.stream is not None
        if task.req.path == "/read":
            task.resp.headers["X-Body"] = task.req.stream.read().decode()
        task.upgrade(LINES, shout)

    fields = ("Connection: upgrade", "Upgrade: lines")
    with WFHttpServer(process, STREAMED).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            client.send(upload("/read", 3, *fields) + b"a")
            eventually(lambda: processing(server))
            client.send(b"bchello\n")
            reply = client.reply(head_only=True)
            assert (reply.status, reply.headers["x-body"]) == (101, "abc")
            assert client._file.readline() == b"HELLO\n"
        with RawClient(server.address) as client:  # what follows would be its body
            client.send(upload("/", 3, *fields))
            assert client.reply().status == 503


# -- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 20])
def test_slow_uploads_do_not_stop_others(threads: int) -> None:
    """More handlers than there are threads wait for their bodies."""
    with WFHttpServer(digest, STREAMED.replace(handler_threads=threads)).start(
        "127.0.0.1", 0
    ) as server:
        slow = [RawClient(server.address) for _ in range(threads + 5)]
        for client in slow:
            client.send(upload("/slow", 6) + b"abc")
        eventually(lambda: processing(server) == len(slow))
        with RawClient(server.address) as client:
            for _ in range(20):
                assert client.ask().body == sha(b"")
            client.send(post("/", bytes(MIB)))
            assert client.reply().body == sha(bytes(MIB))
        for client in slow:
            client.send(b"def")
        for client in slow:
            assert client.reply().body == sha(b"abcdef")
            client.close()


def test_many_uploads_at_once() -> None:
    body = bytes(range(256)) * 2048
    with WFHttpServer(digest, STREAMED).start("127.0.0.1", 0) as server:
        found: list[bytes] = []

        def send() -> None:
            with RawClient(server.address) as client:
                for _ in range(5):
                    client.send(post("/", body))
                    found.append(client.reply().body)

        threads = [threading.Thread(target=send) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert found == [sha(body)] * 150


# -- real clients ---------------------------------------------------------------------------------


def test_http_client(server: WFHttpServer) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    for _ in range(2):
        connection.request("PUT", "/", iter([b"abc", b"def"]), encode_chunked=True)
        assert connection.getresponse().read() == sha(b"abcdef")
    connection.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(server: WFHttpServer, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(bytes(3 * MIB))  # above 1 MiB curl waits for 100 Continue
    for options in ([], ["-H", "Transfer-Encoding: chunked"]):
        done = subprocess.run(
            ["curl", "-sS", "-m", "10", *options, "-T", file, server.url],
            capture_output=True,
            check=True,
        )
        assert done.stdout == sha(bytes(3 * MIB))


# -- memory ---------------------------------------------------------------------------------------

_PROGRAM = """
import resource, socket, sys, threading, time
from protoserve_http import HTTP_SPEC, WFHttpServer

size, kind = int(sys.argv[1]), sys.argv[2]

def count(task):
    task.resp.write(str(sum(map(len, task.req.stream))))

async def count_later(task):
    total = 0
    async for piece in task.req.stream:
        total += len(piece)
    task.resp.write(str(total))

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

params = HTTP_SPEC.params.replace(stream_bodies=True, request_size_limit=None)
process = count if kind == "function" else count_later
with WFHttpServer(process, params).start("127.0.0.1", 0) as server:
    with socket.create_connection(server.address) as sock:
        piece = bytes(1024 * 1024)
        for rounds in (8, size // len(piece)):
            before = rss()
            head = f"POST / HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: {rounds * len(piece)}"
            sock.sendall(head.encode() + bytes([13, 10, 13, 10]))
            most = 0
            began = time.monotonic()
            for number in range(rounds):
                sock.sendall(piece)
                if number % 16 == 0:
                    most = max(most, rss())
            reply = sock.recv(65536)
            assert reply.endswith(str(rounds * len(piece)).encode()), reply
        print(max(most, rss()) - before, time.monotonic() - began)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_memory_does_not_grow_with_the_body(kind: str) -> None:
    """256 MiB here; a whole GiB takes as little (docs/http.md)."""
    growth, _ = run_alone(_PROGRAM, str(256 * MIB), kind).out.split()
    assert int(growth) < 32 * MIB


def test_memory_of_many_readers_that_do_not_read() -> None:
    """Each connection keeps what there is room for, and no more."""
    ready = threading.Event()

    async def process(task: WFHttpTask) -> None:
        while not ready.is_set():
            await asyncio.sleep(0.01)
        assert task.req.stream is not None
        task.resp.write(str(len(await task.req.stream.aread())))

    params = STREAMED.replace(request_size_limit=None)
    with WFHttpServer(process, params).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(5)]
        body = bytes(8 * MIB)
        threads = [
            threading.Thread(target=client.send, args=(post("/", body),)) for client in clients
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        for conn in server.connections():
            assert conn.entry.intake.bytes_in < MIB
        ready.set()
        for client in clients:
            assert client.reply().body == str(len(body)).encode()
            client.close()
        for thread in threads:
            thread.join(PATIENCE)
