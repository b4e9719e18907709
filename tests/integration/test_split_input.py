"""The same answers however the bytes arrive: cases 5 and 6, and clients that half close."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from loopback import RawClient, get, post

from protoserve_http import WFHttpServer, WFHttpTask

CHUNKED = (
    b"PUT /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"
)
REQUESTS = get("/1") + post("/2", b"body\r\n\r\n") + CHUNKED + get("/4", "X-Long: " + "v" * 300)
GARBAGE = b"\x16\x03\x01 garbage\r\n\r\n"


def process(task: WFHttpTask) -> None:
    req = task.req
    task.resp.write(f"{req.method} {req.target} {len(req.headers)} ")
    task.resp.write(req.body)


@pytest.fixture
def server() -> Iterator[WFHttpServer]:
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        yield server


def whole(client: RawClient, data: bytes) -> None:
    client.send(data)


def bytewise(client: RawClient, data: bytes) -> None:
    client.send_bytewise(data)


def slowly(client: RawClient, data: bytes) -> None:
    for i in range(0, len(data), 60):
        client.send(data[i : i + 60])
        time.sleep(0.005)


def undated(answers: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]+", b"Date", answers)


Sender = Callable[[RawClient, bytes], None]


@pytest.mark.parametrize("send", [whole, bytewise, slowly])
def test_case_5_split_at_every_byte(server: WFHttpServer, send: Sender) -> None:
    with RawClient(server.address) as client:
        send(client, REQUESTS)
        assert client.reply().body == b"GET /1 1 "
        assert client.reply().body == b"POST /2 2 body\r\n\r\n"
        assert client.reply().body == b"PUT /chunked 2 hello world"
        assert client.reply().body == b"GET /4 2 "
        assert client.open


@pytest.mark.parametrize("send", [whole, bytewise, slowly])
def test_two_good_requests_then_garbage(server: WFHttpServer, send: Sender) -> None:
    with RawClient(server.address) as client:
        send(client, get("/1") + get("/2") + GARBAGE)
        assert client.reply().body == b"GET /1 1 "
        assert client.reply().body == b"GET /2 1 "
        farewell = client.reply()
        assert farewell.status == 400
        assert farewell.closes
        assert client.rest() == b""


def test_every_cut_in_two(server: WFHttpServer) -> None:
    data = get("/1") + post("/2", b"xy") + GARBAGE
    answers = set()
    for cut in range(len(data) + 1):
        with RawClient(server.address) as client:
            client.send(data[:cut])
            client.send(data[cut:])
            answers.add(undated(client.rest()))
    (answer,) = answers
    assert answer.count(b"HTTP/1.1 ") == 3


@pytest.mark.parametrize("count", [2, 10, 50, 500])
def test_case_6_many_requests_in_one_segment(server: WFHttpServer, count: int) -> None:
    with RawClient(server.address) as client:
        client.send(b"".join(get(f"/{i}") for i in range(count)))
        for i in range(count):
            assert client.reply().body == b"GET /%d 1 " % i


def test_many_requests_behind_one_that_blocks() -> None:
    go = threading.Event()
    order: list[int] = []

    def process(task: WFHttpTask) -> None:
        if task.seq == 0:
            assert go.wait(10)
        order.append(task.seq)
        task.resp.write(task.req.path)

    # More than max_pipelined and more than one read: reading pauses and goes on.
    count = 2000
    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        sender = threading.Thread(
            target=c.send, args=(b"".join(get(f"/{i}", "X: " + "y" * 100) for i in range(count)),)
        )
        sender.start()
        go.set()
        for i in range(count):
            assert c.reply().body == b"/%d" % i
        sender.join(10)
    assert order == list(range(count))


def test_big_replies_to_pipelined_requests_arrive_whole() -> None:
    body = bytes(range(256)) * 4096

    def process(task: WFHttpTask) -> None:
        task.resp.write(body)

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get() * 20)
        for _ in range(20):
            assert c.reply().body == body


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_half_close_still_gets_the_replies(delay: float) -> None:
    def process(task: WFHttpTask) -> None:
        time.sleep(delay)
        task.resp.write(task.req.path)

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get("/1") + get("/2") + get("/3"))
        c.end_sending()
        assert [c.reply().body for _ in range(3)] == [b"/1", b"/2", b"/3"]
        assert c.rest() == b""


def test_half_close_in_the_middle_of_a_request(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        client.send(get("/1") + b"GET /2 HT")
        client.end_sending()
        assert client.reply().body == b"GET /1 1 "
        assert client.rest() == b""


def test_half_close_of_a_silent_connection(server: WFHttpServer) -> None:
    with RawClient(server.address) as client:
        client.end_sending()
        assert client.rest() == b""


def test_big_body_arrives_whole(server: WFHttpServer) -> None:
    body = bytes(range(256)) * 8192
    with RawClient(server.address) as client:
        client.send(post("/big", body))
        answer = client.reply().body
        assert answer == b"POST /big 2 " + body
