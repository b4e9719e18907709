"""What observers of a server are told."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from loopback import RawClient, eventually, get

from protoserve import ServerParams
from protoserve.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    LimitReached,
    ListenerStarted,
    ListenerStopped,
    RequestFinished,
    RequestRefused,
)
from protoserve_http import HTTP_SPEC, HttpResponse, WFHttpServer, WFHttpTask


def process(task: WFHttpTask) -> None:
    if task.req.path == "/none":
        task.noreply()
    if task.req.path == "/pieces":
        task.resp.body = iter([b"abc", b"", b"de"])
        return
    if task.req.path == "/raise":
        raise RuntimeError("on purpose")
    task.resp.write("x")


class Observed(WFHttpServer):
    """A server with the list of its events."""

    def __init__(
        self,
        params: ServerParams | None = None,
        process: Callable[[WFHttpTask], Any] = process,
    ) -> None:
        super().__init__(process, params or HTTP_SPEC.params.replace(max_connections=2))
        self.events: list[Event] = []
        self.subscribe(self.events.append)

    def wait_closed(self) -> ConnectionClosed:
        def closed() -> list[ConnectionClosed]:
            return [event for event in self.events if isinstance(event, ConnectionClosed)]

        eventually(closed)
        return closed()[0]


def test_events_of_one_connection_in_order() -> None:
    server = Observed()
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        name = client.name
        data = get("/a") + get("/raise")
        client.send(data)
        replies = [client.reply(), client.reply()]
        assert [reply.status for reply in replies] == [200, 500]
        eventually(lambda: len(server.events) == 4)
        client.close()
        closed = server.wait_closed()
    started, opened, first, second, _, stopped = server.events
    assert started == ListenerStarted(server.url)
    assert opened == ConnectionOpened(name)
    for seq, finished in enumerate((first, second)):
        assert isinstance(finished, RequestFinished)
        assert (finished.peername, finished.seq) == (name, seq)
        assert (finished.state, finished.error) == ("SUCCESS", 0)
        assert 0 <= finished.duration < 5
    assert closed == server.events[4]
    assert (closed.peername, closed.reason, closed.requests) == (name, "the peer closed", 2)
    assert closed.bytes_in == len(data)
    assert closed.bytes_out > sum(len(reply.body) for reply in replies)
    assert stopped == ListenerStopped(server.url)


def test_last_request_finishes_before_its_connection_closes() -> None:
    server = Observed()
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.ask("/", "Connection: close")
        assert client.rest() == b""
        assert server.wait_closed().reason == "the reply was the last"
    names = [type(event).__name__ for event in server.events]
    assert names[1:4] == ["ConnectionOpened", "RequestFinished", "ConnectionClosed"]


@pytest.mark.parametrize(
    ("data", "reason", "requests"),
    [
        (get("/none"), CloseReason.NO_REPLY, 1),
        (b"garbage\r\n\r\n", CloseReason.PROTOCOL_ERROR, 0),
        (b"GET / HT", CloseReason.PEER_LEFT, 0),
        (b"", CloseReason.PEER_CLOSED, 0),
    ],
)
def test_reasons_of_closing(data: bytes, reason: CloseReason, requests: int) -> None:
    server = Observed()
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(data)
        client.end_sending()
        client.rest()
        closed = server.wait_closed()
    assert closed.reason is reason
    assert closed.detail.startswith("malformed request") == (data[:1] == b"g")
    assert closed.requests == requests
    assert closed.bytes_in == len(data)


def test_stop_is_the_reason() -> None:
    server = Observed()
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.ask()
        eventually(lambda: server.connections()[0].phase == "KEEPALIVE")
        server.stop()
    assert isinstance(server.events[-2], ListenerStopped)
    closed = server.events[-1]
    assert isinstance(closed, ConnectionClosed)
    assert closed.reason == "the server stopped"


def test_limit_reached(caplog: pytest.LogCaptureFixture) -> None:
    server = Observed()
    with server.start("127.0.0.1", 0):
        clients = []
        for _ in range(3):
            client = RawClient(server.address)
            clients.append(client)
            client.ask()
            eventually(lambda: all(conn.phase == "KEEPALIVE" for conn in server.connections()))
        assert server.wait_closed().reason == "made room for another"
        for client in clients:
            client.close()
    limits = [event for event in server.events if isinstance(event, LimitReached)]
    assert limits == [
        LimitReached("max_connections", 2, "closed the least recently used idle connection")
    ]
    (record,) = caplog.records
    assert record.name == "protoserve"
    assert record.getMessage() == (
        "limit max_connections=2 reached: closed the least recently used idle connection"
    )


def test_observer_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def bad(event: Event) -> None:
        raise KeyError(type(event).__name__)

    server = Observed()
    server.subscribe(bad)
    later: list[Event] = []
    server.subscribe(later.append)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(get() * 3 + get("/", "Connection: close"))
        assert [client.reply().status for _ in range(4)] == [200] * 4
        assert client.rest() == b""
        eventually(lambda: len(later) == 7)
    assert later == server.events
    assert len(later) == 8
    assert [record.exc_info is not None for record in caplog.records] == [True] * 8


def test_unsubscribed_observers_hear_no_more() -> None:
    server = Observed()
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.ask()
        eventually(lambda: len(server.events) == 3)
        server.unsubscribe(server.events.append)
        client.ask()
    assert len(server.events) == 3


@pytest.mark.parametrize("kind", [ListenerStarted, ConnectionOpened, ConnectionClosed])
def test_observer_may_shut_the_server_down(kind: type) -> None:
    server = WFHttpServer(process)
    seen = threading.Event()

    def once(event: Event) -> None:
        if isinstance(event, kind) and not seen.is_set():
            seen.set()
            server.shutdown()

    server.subscribe(once)
    server.start("127.0.0.1", 0)
    if kind is not ListenerStarted:
        # Who comes late is refused or reset.
        with contextlib.suppress(OSError), RawClient(server.address) as client:
            client.send(get("/", "Connection: close"))
            client.end_sending()
            client.rest()
    assert seen.wait(10)
    assert server.wait_finish(5)
    assert server.stop() == 0


def test_on_close_may_shut_the_server_down_at_the_limit() -> None:
    def process(task: WFHttpTask) -> None:
        task.connection.on_close(lambda _: server.shutdown())

    server = WFHttpServer(process, HTTP_SPEC.params.replace(max_connections=1))
    with server.start("127.0.0.1", 0), RawClient(server.address) as one:
        one.ask()
        eventually(lambda: server.connections()[0].phase == "KEEPALIVE")
        with contextlib.suppress(ConnectionError), RawClient(server.address) as two:
            two.rest()
        assert one.rest() == b""
        assert server.wait_finish(5)


@pytest.mark.parametrize(
    ("data", "reason", "line", "status", "message"),
    [
        (b"garbage\r\n\r\n", CloseReason.PROTOCOL_ERROR, "", 400, "malformed request"),
        (get("/" + "x" * 9000), CloseReason.PROTOCOL_ERROR, "", 414, "target"),
        (b"GET / HTTP/2.0\r\n\r\n", CloseReason.PROTOCOL_ERROR, "", 505, "HTTP/1.1 and HTTP/1.0"),
        (b"GET / HT", CloseReason.REQUEST_TOO_SLOW, "", 408, "too long"),
        (b"GET /a HTTP/1.1\r\nHost", CloseReason.REQUEST_TOO_SLOW, "GET /a 1.1", 408, "too long"),
        (
            b"PUT /a?b HTTP/1.0\r\nContent-Length: 9\r\n\r\nx",
            CloseReason.REQUEST_TOO_SLOW, "PUT /a?b 1.0", 408, "too long",
        ),
        (
            b"POST /a HTTP/1.2\r\nHost: a\r\nContent-Length: 9999\r\n\r\n",
            CloseReason.PROTOCOL_ERROR, "POST /a 1.1", 413, "larger",
        ),
        (
            b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
            + b"A: b\r\n" * 129,
            CloseReason.PROTOCOL_ERROR, "POST /a 1.1", 431, "more than 128 trailer fields",
        ),
        (
            b"LABEL /a HTTP/1.1\r\nHost: a\r\nExpect: b\r\n\r\n",
            CloseReason.PROTOCOL_ERROR, "LABEL /a 1.1", 417, "expectation",
        ),
        (get("/a", "Host: b"), CloseReason.PROTOCOL_ERROR, "GET /a 1.1", 400, "one Host header"),
    ],
)  # fmt: skip
def test_refused_requests_are_told(
    data: bytes, reason: CloseReason, line: str, status: int, message: str
) -> None:
    params = HTTP_SPEC.params.replace(peer_response_timeout=0.1, request_size_limit=9 * 1024)
    server = Observed(params)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(get("/good") + data)
        assert client.reply().status == 200
        assert client.reply().status == status
        closed = server.wait_closed()
    (refused,) = (e for e in server.events if isinstance(e, RequestRefused))
    assert (refused.reason, refused.seq, refused.peername) == (reason, 1, client_name(closed))
    assert message in refused.message
    words = zip(("method", "target", "version"), line.split(), strict=False)
    assert list(refused.summary.items()) == [*words, ("status", status)]
    # It comes after the request before it, and before the connection's end.
    kinds = [type(e) for e in server.events]
    assert (
        kinds.index(RequestFinished) < kinds.index(RequestRefused) < kinds.index(ConnectionClosed)
    )


def client_name(closed: ConnectionClosed) -> object:
    return closed.peername


def test_the_facts_of_an_exchange() -> None:
    server = Observed()
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.ask("/some?thing")
        client.ask("/raise")
        client.send(get("/pieces"))
        while client._file.readline() != b"0\r\n":
            pass
        client._file.readline()
        client.send(get().replace(b"GET", b"HEAD"))
        assert client.reply(head_only=True).status == 200
        eventually(lambda: len([e for e in server.events if type(e) is RequestFinished]) == 4)
    facts = [e.summary for e in server.events if isinstance(e, RequestFinished)]
    assert facts == [
        {"method": "GET", "target": "/some?thing", "version": "1.1", "status": 200, "length": 1},
        {"method": "GET", "target": "/raise", "version": "1.1", "status": 500, "length": 22},
        {"method": "GET", "target": "/pieces", "version": "1.1", "status": 200, "length": 5},
        {"method": "HEAD", "target": "/", "version": "1.1", "status": 200, "length": 0},
    ]


def test_what_did_not_go_out_is_no_fact() -> None:
    page = HttpResponse(200, "a page for all")

    async def empty_pieces() -> AsyncIterator[bytes]:
        yield b""
        raise ValueError("a fault")

    async def handler(task: WFHttpTask) -> None:
        task.resp = page
        if task.req.path == "/no":
            task.noreply()
        elif task.req.path == "/odd":
            task.resp = "no response"  # type: ignore[assignment]
            task.noreply()
        elif task.req.path != "/page":
            task.resp = HttpResponse(200, "x")
            await task.push(b"HTTP/1.1 102 Processing\r\n\r\n")
            if task.req.path == "/pieces":
                task.resp.body = empty_pieces()
            else:
                raise ValueError("a fault")

    for target, state, error in (
        ("/page", "SUCCESS", 0),
        ("/no", "NOREPLY", 0),
        ("/odd", "NOREPLY", 0),
        ("/push", "SYS_ERROR", errno.EIO),
        ("/pieces", "SYS_ERROR", errno.EIO),
    ):
        server = Observed(process=handler)
        with server.start("127.0.0.1", 0), RawClient(server.address) as client:
            client.send(get(target, "Connection: close"))
            with contextlib.suppress(ConnectionError):
                client.rest()
        (event,) = (e for e in server.events if isinstance(e, RequestFinished))
        assert (event.state, event.error) == (state, error), target
        if target == "/page":
            assert (event.summary["status"], event.summary["length"]) == (200, 14)
        else:
            assert set(event.summary) <= {"method", "target", "version"}, target


def test_a_reply_to_nobody_has_no_status() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handler(task: WFHttpTask) -> None:
        task.on_close(lambda _: go_on.set())
        begun.set()
        go_on.wait(10)
        task.resp.write("x")

    server = Observed(process=handler)
    with server.start("127.0.0.1", 0):
        with RawClient(server.address) as client:
            client.send(get("/gone"))
            assert begun.wait(10)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: any(type(e) is RequestFinished for e in server.events))
    (event,) = (e for e in server.events if isinstance(e, RequestFinished))
    assert (event.state, event.error) == ("SYS_ERROR", errno.ENOENT)
    assert event.summary == {"method": "GET", "target": "/gone", "version": "1.1"}


@pytest.mark.parametrize("pieces", [False, True])
def test_a_reply_that_broke_off_has_the_length_that_is_known(pieces: bool) -> None:
    def forever() -> Iterator[bytes]:
        while True:
            yield bytes(10_000)

    def handler(task: WFHttpTask) -> None:
        task.resp.body = forever() if pieces else bytes(100_000_000)

    server = Observed(HTTP_SPEC.params.replace(peer_response_timeout=0.2), process=handler)
    with (
        server.start("127.0.0.1", 0),
        RawClient(server.address, receive_buffer=8192) as client,
    ):
        client.send(get("/large"))
        server.wait_closed()
    (event,) = (e for e in server.events if isinstance(e, RequestFinished))
    assert (event.state, event.error) == ("SYS_ERROR", errno.ETIMEDOUT)
    assert event.summary["status"] == 200
    if pieces:
        assert event.summary["length"]
    else:
        assert "length" not in event.summary


def test_a_failed_handler_is_logged_with_method_and_target(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Observed().start("127.0.0.1", 0) as server, RawClient(server.address) as client:
        assert client.ask("/raise?" + "x" * 300).status == 500
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "GET /raise?xxx" in record.getMessage()
    assert len(record.getMessage()) < 400


def test_a_summary_that_raises_is_logged_and_costs_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def summary(request: object, response: object) -> dict[str, object]:
        raise ValueError("a fault")

    server = Observed()
    server.spec = dataclasses.replace(server.spec, summary=summary)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        assert client.ask().status == 200
        eventually(lambda: any(type(e) is RequestFinished for e in server.events))
    assert "summary of 'http' raised" in caplog.text
