"""Bad input on the wire: a complete farewell, the end, and no handler that saw it."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest
from loopback import PATIENCE, RawClient, get, post

from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

LIMIT = 64 * 1024
PARAMS = HTTP_SPEC.params.replace(
    request_size_limit=LIMIT, peer_response_timeout=5.0, receive_timeout=0.4
)
MIB = 1024 * 1024


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode()


FAULTS = {
    "400 garbage": (400, b"\x00\x01\x02\x03\r\n\r\n"),
    "400 no Host": (400, head("GET / HTTP/1.1")),
    "400 two Hosts": (400, head("GET / HTTP/1.1", "Host: a", "Host: b")),
    "400 two spaces": (400, head("GET  / HTTP/1.1", "Host: a")),
    "400 bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "400 CL and TE": (
        400,
        head("POST / HTTP/1.1", "Host: a", "Content-Length: 3", "Transfer-Encoding: chunked"),
    ),
    "400 CLs differ": (
        400,
        head("POST / HTTP/1.1", "Host: a", "Content-Length: 3", "Content-Length: 4"),
    ),
    "400 chunk size": (
        400,
        head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + b"xyz\r\n",
    ),
    "408 head": (408, b"GET / HTTP/1.1\r\nHo"),
    "408 body": (408, head("POST / HTTP/1.1", "Host: a", "Content-Length: 3") + b"ab"),
    "413 announced": (413, head("POST / HTTP/1.1", "Host: a", f"Content-Length: {LIMIT}")),
    "413 huge": (413, head("POST / HTTP/1.1", "Host: a", f"Content-Length: {10**15}")),
    "413 chunked": (
        413,
        head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked")
        + b"8000\r\n%b\r\n" % bytes(0x8000) * 2,
    ),
    "414": (414, head("GET /" + "x" * 9000 + " HTTP/1.1", "Host: a")),
    "414 unfinished": (414, b"GET /" + b"x" * 9000),
    "417": (
        417,
        head("POST / HTTP/1.1", "Host: a", "Expect: a-miracle", "Content-Length: 1") + b"x",
    ),
    "431 fields": (431, head("GET / HTTP/1.1", "Host: a", *(f"X-{i}: y" for i in range(200)))),
    "431 unfinished": (
        431,
        head("GET / HTTP/1.1", "Host: a", *(f"X-{i}: y" for i in range(200)))[:-2],
    ),
    "501 CONNECT": (501, head("CONNECT a:443 HTTP/1.1", "Host: a")),
    "501 coding": (
        501,
        head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    ),
    "505": (505, head("GET / HTTP/2.0", "Host: a")),
}


class Server(WFHttpServer):
    """Remembers what its handler saw."""

    def __init__(self) -> None:
        super().__init__(self.note, PARAMS)
        self.seen: list[str] = []

    def note(self, task: WFHttpTask) -> None:
        self.seen.append(task.req.target)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().start("127.0.0.1", 0) as server:
        yield server


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("before", [0, 2])
def test_farewell(server: Server, name: str, before: int) -> None:
    status, data = FAULTS[name]
    with RawClient(server.address) as client:
        client.send(get("/good") * before + data)
        for _ in range(before):
            assert client.reply().status == 200
        farewell = client.reply()
        assert farewell.status == status
        assert farewell.closes
        assert farewell.headers["date"].endswith("GMT")
        assert farewell.body.endswith(b"\n")
        assert client.rest() == b""
    assert server.seen == ["/good"] * before


def test_413_comes_before_the_body_is_sent(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(
            head("POST / HTTP/1.1", "Host: a", "Expect: 100-continue", f"Content-Length: {MIB}")
        )
        assert client.reply().status == 413
        assert client.rest() == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_413_is_not_lost_while_the_client_still_sends(server: Server, chunked: bool) -> None:
    if chunked:
        data = head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked")
        data += b"10000\r\n%b\r\n" % bytes(0x10000) * 96 + b"0\r\n\r\n"
    else:
        data = post("/", bytes(6 * MIB))
    with RawClient(server.address) as client:
        # A reset by the server would make this fail, or throw away the reply.
        client.send(data)
        farewell = client.reply()
        assert farewell.status == 413
        assert client.rest() == b""
    assert server.seen == []


def test_exactly_the_limit_passes(server: Server) -> None:
    request = post("/full", b"")
    size = LIMIT - len(request) - (len(str(LIMIT)) - 1)
    request = post("/full", bytes(size))
    assert len(request) == LIMIT
    with RawClient(server.address) as client:
        client.send(request)
        assert client.reply().status == 200
        client.send(post("/more", bytes(size + 1)))
        assert client.reply().status == 413
    assert server.seen == ["/full"]


def drip(client: RawClient, data: bytes) -> float:
    """Send a byte now and then until the server answers; how long that took, in seconds."""
    start = time.monotonic()
    for i in range(len(data)):
        client.send(data[i : i + 1])
        if select.select([client.sock], [], [], 0.05)[0]:
            return time.monotonic() - start
        assert time.monotonic() - start < PATIENCE
    raise AssertionError("the server took it all")


@pytest.mark.parametrize(
    "data", [get("/", "X: " + "y" * 1000), post("/", bytes(1000))], ids=["head", "body"]
)
def test_slow_loris(server: Server, data: bytes) -> None:
    body = data.find(b"\r\n\r\n") + 4
    with RawClient(server.address) as client:
        if body < len(data):
            client.send(data[:body])
            data = data[body:]
        took = drip(client, data)
        assert client.reply().status == 408
        assert client.rest() == b""
    assert 0.3 < took < 5
    assert server.seen == []


def test_client_that_keeps_sending_after_the_farewell_is_cut(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(b"garbage\r\n\r\n")
        assert client.reply().status == 400
        start = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012 - whichever of many sends
            while time.monotonic() - start < PATIENCE:
                client.send(b"x")
                time.sleep(0.02)
        # Two seconds are given to a client that is slow to notice.
        assert time.monotonic() - start < 6
    assert server.conn_count == 0
