"""A connection that goes on in another protocol, and requests that a server answers itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from example_modules import load
from loopback import PATIENCE, RawClient, eventually, get, post

from protoserve import ConfigError, UsageError, WFServer, WFServerTask
from protoserve.events import CloseReason, ConnectionClosed, RequestFinished
from protoserve_http import WFHttpServer, WFHttpTask
from protoserve_redis import REDIS_SPEC

example = load("http_upgrade")

ASK = get("/", "Connection: upgrade", "Upgrade: lines")


async def in_a_loop(task: WFHttpTask) -> None:
    example.process(task)


@pytest.fixture(params=[example.process, in_a_loop], ids=["threads", "loop"])
def server(request: pytest.FixtureRequest) -> Iterator[WFHttpServer]:
    with WFHttpServer(request.param).start("127.0.0.1", 0) as server:
        yield server


def started(server: WFHttpServer) -> WFHttpServer:
    return server.start("127.0.0.1", 0)


def read_until(client: RawClient, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = client._file.read1(4096)
        assert more, data
        data += more
    return data


def test_the_connection_goes_on_in_another_protocol(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        client.send(get("/plain"))
        assert b"also speaks lines" in client.reply().body
        client.send(ASK)
        head = read_until(client, b"hello\n")
        status, *fields, empty, greeting = head.split(b"\r\n")
        assert status == b"HTTP/1.1 101 Switching Protocols"
        assert (empty, greeting) == (b"", b"hello\n")
        assert {field for field in fields if not field.startswith(b"Date")} == {
            b"Connection: upgrade",
            b"Upgrade: lines",
        }
        for word in (b"abc", b"xyz"):
            client.send(word + b"\n")
            assert read_until(client, b"\n") == word[::-1] + b"\n"
        client.send(b"bye\n")
        assert read_until(client, b"eyb\n") == b"eyb\n"
        assert client.rest() == b""


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_what_the_client_sent_ahead_belongs_to_the_other_protocol(
    server: WFHttpServer, pieces: int
) -> None:
    data = get("/first") + ASK + b"one\ntwo\npar"
    with RawClient(server.address) as client:
        step = max(1, len(data) // pieces)
        for start in range(0, len(data), step):
            client.send(data[start : start + step])
        assert b"also" in client.reply().body
        assert read_until(client, b"owt\n").endswith(b"\r\n\r\nhello\neno\nowt\n")
        client.send(b"t\n")
        assert read_until(client, b"\n") == b"trap\n"


def test_a_body_before_the_upgrade(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        client.send(post("/", b"body", "Connection: upgrade", "Upgrade: lines") + b"abc\n")
        assert read_until(client, b"cba\n").endswith(b"hello\ncba\n")


@pytest.mark.parametrize(
    "request_",
    [
        get("/", "Upgrade: lines"),
        get("/", "Connection: upgrade"),
        get("/", "Connection: upgrade", "Upgrade: other"),
        get("/", "Connection: upgrade, keep-alive", "Upgrade: lines", version="1.0"),
    ],
)
def test_without_an_upgrade_it_goes_on_in_http(server: WFHttpServer, request_: bytes) -> None:
    with RawClient(server.address) as client:
        client.send(request_ + get("/next") + ASK + b"abc\n")
        assert client.reply().status == 200
        assert client.reply().status == 200
        assert read_until(client, b"cba\n").startswith(b"HTTP/1.1 101 ")


def test_a_request_with_close_is_not_upgraded(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        client.send(get("/", "Connection: upgrade, close", "Upgrade: lines") + b"abc\n")
        reply = client.reply()
        assert (reply.status, reply.closes) == (503, True)


def test_limits_and_times_are_the_other_protocol_s() -> None:
    def process(task: WFHttpTask) -> None:
        params = example.LINES.params.replace(keep_alive_timeout=0.2, request_size_limit=100)
        task.upgrade(example.LINES, example.answer, params)

    told: list[Any] = []
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        server.subscribe(told.append)
        with RawClient(server.address) as client:
            client.send(ASK)
            read_until(client, b"hello\n")
            assert client.rest() == b""
        with RawClient(server.address) as client:
            client.send(ASK + b"x" * 200)
            read_until(client, b"hello\n")
            assert client.rest() == b""
        eventually(lambda: len([e for e in told if isinstance(e, ConnectionClosed)]) == 2)
    reasons = [event.reason for event in told if isinstance(event, ConnectionClosed)]
    assert reasons == [CloseReason.IDLE, CloseReason.REQUEST_TOO_LARGE]


def test_requests_of_the_other_protocol_count_and_are_told(server: WFHttpServer) -> None:
    told: list[Any] = []
    server.subscribe(told.append)
    with RawClient(server.address) as client:
        client.send(ASK + b"abc\n")
        read_until(client, b"cba\n")
        assert server.conn_count == 1
        eventually(lambda: len([e for e in told if isinstance(e, RequestFinished)]) == 2)
    eventually(lambda: server.conn_count == 0)
    assert [event.seq for event in told if isinstance(event, RequestFinished)] == [0, 1]


def test_a_stop_waits_for_what_the_other_protocol_has_in_hand() -> None:
    begun: list[WFServerTask[Any, Any]] = []

    def slow(task: Any) -> None:
        begun.append(task)
        time.sleep(0.2)
        task.resp.text = "done"

    with (
        WFHttpServer(lambda task: task.upgrade(example.LINES, slow)).start(
            "127.0.0.1", 0
        ) as server,
        RawClient(server.address) as client,
    ):
        client.send(ASK + b"abc\n")
        eventually(lambda: begun)
        assert begun[0].server is server
        assert server.stop() == 0
        assert read_until(client, b"done\n")


def test_a_stop_ends_idle_ones(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        client.send(ASK)
        read_until(client, b"hello\n")
        server.shutdown()
        assert client.rest() == b""


def test_another_plugin_s_protocol(server: WFHttpServer) -> None:
    def get_and_set(task: Any) -> None:
        task.resp.value = task.req.args

    def process(task: WFHttpTask) -> None:
        task.upgrade(REDIS_SPEC, get_and_set)

    with started(WFHttpServer(process)) as other, RawClient(other.address) as client:
        client.send(ASK + b"*1\r\n$4\r\nPING\r\n")
        assert read_until(client, b"PING\r\n").endswith(b"\r\n\r\n*1\r\n$4\r\nPING\r\n")


def test_a_handler_that_fails_upgrades_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.upgrade(example.LINES, example.answer)
        raise ValueError("a fault of the handler")

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(ASK + get("/"))
        assert client.reply().status == 500
        assert client.reply().status == 500


def test_an_upgrade_that_is_wrong() -> None:
    raised: list[BaseException] = []

    def process(task: WFHttpTask) -> None:
        calls: list[Callable[[], object]] = [
            lambda: task.upgrade(example.LINES, example.answer),
            lambda: task.upgrade("lines", example.answer),  # type: ignore[arg-type]
            lambda: task.upgrade(example.LINES, None),  # type: ignore[arg-type]
        ]
        for call in calls[bool(task.req.upgrade) :]:
            try:
                call()
            except Exception as error:
                raised.append(error)

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get("/") + ASK)
        assert client.reply().status == 200
        assert client.reply().status == 200
    kinds = [type(error) for error in raised]
    assert kinds == [UsageError, UsageError, UsageError, ConfigError, ConfigError]
    assert "no upgrade" in str(raised[0])


def test_too_late() -> None:
    raised: list[BaseException] = []

    def late(task: WFHttpTask) -> None:
        try:
            task.upgrade(example.LINES, example.answer)
        except UsageError as error:
            raised.append(error)

    with (
        WFHttpServer(lambda task: task.set_callback(late)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(ASK)
        assert client.reply().status == 200
        eventually(lambda: raised)


def test_many_upgrades_while_clients_leave(server: WFHttpServer) -> None:
    for i in range(60):
        sock = socket.create_connection(server.address, PATIENCE)
        sock.sendall((ASK + b"abc\n" * 5)[: len(ASK) - 3 + i % 30])
        if i % 3 == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif i % 3 == 1:
            sock.shutdown(socket.SHUT_WR)
        sock.close()
    eventually(lambda: server.conn_count == 0)


# -- requests that a server answers itself -------------------------------------------------


class Guarded(WFHttpServer):
    """Answers what has no key."""

    def intercept(self, task: Any) -> bool:
        if task.req.target == "/crash":
            raise ValueError("a fault of intercept")
        if "X-Key" in task.req.headers:
            return False
        task.resp.status = 401
        return True


def greets(task: WFHttpTask) -> None:
    task.resp.write("welcome")


async def greets_later(task: WFHttpTask) -> None:
    task.resp.write("welcome")


def goes_on(task: WFHttpTask) -> None:
    task.upgrade(example.LINES, example.answer)


class Polite(WFServer[str, Any]):
    """Answers what does not say please."""

    def intercept(self, task: Any) -> bool:
        task.resp.text = "say please"
        return "please" not in task.req


def goes_on_politely(task: WFHttpTask) -> None:
    spec = replace(
        example.LINES, server=lambda process, params: Polite(example.LINES, process, params)
    )
    task.upgrade(spec, example.answer)


@pytest.mark.parametrize(
    ("process", "heard"),
    [(goes_on, [b"cba", b"esaelp"]), (goes_on_politely, [b"say please", b"esaelp"])],
)
def test_who_answers_before_the_handler_is_the_server_of_the_protocol(
    process: Callable[[WFHttpTask], object], heard: list[bytes]
) -> None:
    with started(Guarded(process)) as server, RawClient(server.address) as client:
        client.send(get("/", "X-Key: a", "Connection: upgrade", "Upgrade: lines"))
        read_until(client, b"hello\n")
        for word, answer in zip((b"abc", b"please"), heard, strict=True):
            client.send(word + b"\n")
            assert read_until(client, b"\n") == answer + b"\n"


@pytest.mark.parametrize("process", [greets, greets_later])
def test_a_server_class_answers_before_the_handler(
    process: Callable[[WFHttpTask], object], caplog: pytest.LogCaptureFixture
) -> None:
    with started(Guarded(process)) as server, RawClient(server.address) as client:
        client.send(get("/") + get("/", "X-Key: a") + get("/crash") + get("/", "X-Key: a"))
        assert [client.reply().status for _ in range(4)] == [401, 200, 500, 200]
    assert [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]


def test_an_upgrade_has_no_body(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.upgrade(example.LINES, example.answer)
        task.resp.write("lost")

    with started(WFHttpServer(process)) as server, RawClient(server.address) as client:
        client.send(ASK)
        assert client.reply().status == 500
    assert "an upgrade has no body" in caplog.text
