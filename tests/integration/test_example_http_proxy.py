"""examples/http_proxy.py, between real clients and real upstream servers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType

import httpx
import pytest
from example_modules import load
from loopback import PATIENCE, RawClient, eventually, get, post
from loops import serving

from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
RESET = struct.pack("ii", 1, 0)
MANY = 130  # more than pools of clients have by default


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        yield client


class RawUpstream:
    """A server that keeps what it gets, byte for byte, and says what the test tells it."""

    def __init__(self, reply: bytes = OK) -> None:
        self.reply = reply
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = 0
        self.release = threading.Event()
        """Replies are held back until it is set."""
        self.release.set()
        self.closes = False
        """Whether a connection ends after its reply."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._peers: list[socket.socket] = []
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> RawUpstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        for sock in (self._socket, *self._peers):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for sock in (self._socket, *self._peers):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while data := peer.recv(65536):
                held += data
                head, end, body = held.partition(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
                if not end or (length and len(body) < int(length[1])):
                    continue
                self.requests.append(held)
                held = b""
                if not self.release.is_set():
                    threading.Thread(target=self._later, args=(peer,)).start()
                    continue
                self._say(peer)
        self.ended += 1

    def _later(self, peer: socket.socket) -> None:
        self.release.wait(PATIENCE)
        with contextlib.suppress(OSError):
            self._say(peer)

    def _say(self, peer: socket.socket) -> None:
        peer.sendall(self.reply)
        if self.closes:
            peer.shutdown(socket.SHUT_RDWR)

    def fields(self, number: int = -1) -> list[bytes]:
        """The header lines of a request."""
        return self.requests[number].partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


@pytest.fixture
def raw() -> Iterator[RawUpstream]:
    with RawUpstream() as upstream:
        yield upstream


Proxy = tuple[WFHttpServer, ModuleType]


@contextlib.contextmanager
def proxying(url: str, place: str = "own uvloop", *, streams: bool = False) -> Iterator[Proxy]:
    example = load("http_proxy")
    example.UPSTREAM = url  # type: ignore[attr-defined]

    async def process(task: WFHttpTask) -> None:
        if task.req.path == "/end-of-test":  # the example's clients live as long as the loop
            pool = example.clients.pop(asyncio.get_running_loop(), None)
            if pool is not None:
                await pool.aclose()
            return
        await example.process(task)

    params = HTTP_SPEC.params.replace(stream_bodies=streams, request_size_limit=None)
    with serving(place, process, params) as front:
        try:
            yield front, example
        finally:
            with RawClient(front.address) as last:
                assert last.ask("/end-of-test").status == 200


@pytest.fixture(params=["own uvloop", "own asyncio", "running asyncio", "streams"])
def to_raw(request: pytest.FixtureRequest, raw: RawUpstream) -> Iterator[WFHttpServer]:
    streams = request.param == "streams"
    place = "own uvloop" if streams else request.param
    with proxying(raw.url, place, streams=streams) as (front, example):
        front.pools = example.clients  # type: ignore[attr-defined]
        yield front


@pytest.fixture
def front(raw: RawUpstream) -> Iterator[WFHttpServer]:
    with proxying(raw.url) as (front, _):
        yield front


# -- with a server of ours behind it -----------------------------------------------------


async def upstream(task: WFHttpTask) -> None:
    req, resp = task.req, task.resp

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(100):
            await asyncio.sleep(0)
            yield bytes([i]) * 10_000

    if req.path == "/stream":
        resp.body = pieces()
    elif req.path == "/slow":
        await asyncio.sleep(0.6)
    elif req.path == "/missing":
        resp.status = 404
    else:
        resp.headers.add("Set-Cookie", "a=1")
        resp.headers.add("Set-Cookie", "b=2")
        resp.headers["X-Hop"] = "only here"
        resp.headers["Connection"] = "X-Hop"
        resp.write(f"{req.method} {req.target} via {req.headers['Via']} ".encode() + req.body)


@pytest.fixture(params=[("own uvloop", False), ("own uvloop", True), ("running asyncio", True)])
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    place, streams = request.param
    with (
        WFHttpServer(upstream).start("127.0.0.1", 0) as server,
        proxying(server.url, place, streams=streams) as proxy,
    ):
        yield proxy


def test_proxy_passes_on(proxy: Proxy, client: httpx.Client) -> None:
    url = proxy[0].url
    reply = client.post(f"{url}/p?q=1", content=b"body")
    assert reply.text == "POST /p?q=1 via 1.1 protoserve body"
    assert reply.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert "x-hop" not in reply.headers
    assert client.get(f"{url}/missing").status_code == 404
    big = bytes(range(256)) * 8192
    assert client.post(url, content=big).content.endswith(big)
    assert client.head(url).status_code == 200
    streamed = client.get(f"{url}/stream").content
    assert streamed == b"".join(bytes([i]) * 10_000 for i in range(100))


@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1", "OPTIONS * HTTP/1.1"])
def test_proxy_without_upstream(
    proxy: Proxy, caplog: pytest.LogCaptureFixture, request_line: str
) -> None:
    front, example = proxy
    with socket.socket() as unused, RawClient(front.address) as client:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        port = unused.getsockname()[1]
        example.UPSTREAM = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        client.send(f"{request_line}\r\nHost: a\r\n\r\n".encode())
        reply = client.reply()
        assert reply.status == 502
        assert str(port).encode() not in reply.body  # which is the operator's business
    assert str(port) in caplog.text


def test_proxy_with_a_slow_upstream(
    proxy: Proxy, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, example = proxy
    monkeypatch.setitem(example.TIMEOUTS, "read", 0.2)
    assert client.get(front.url + "/slow").status_code == 504


@pytest.mark.parametrize("place", ["own uvloop", "running asyncio"])
def test_more_replies_at_once_than_a_pool_has_by_default(place: str) -> None:
    waiting = 0
    together = asyncio.Event()

    async def all_together(task: WFHttpTask) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == MANY:
            together.set()
        await together.wait()
        task.resp.write("together")

    with (
        WFHttpServer(all_together).start("127.0.0.1", 0) as server,
        proxying(server.url, place) as (front, _),
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(RawClient(front.address)) for _ in range(MANY)]
        for client in clients:
            client.send(get("/"))
        assert [client.reply().body for client in clients] == [b"together"] * MANY


# -- targets, byte for byte ----------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/", "/x?", "/?", "/a/../b", "/a/./b/.", "//double//", "/a//b", '/a"b', "/%2e%2E/%41",
        "/%zz%", "/a;b=c|d", "/{}^`\\<>", "/a?q='\"<>{}^`|\\", "/a?b?c&&=", "/?http://x/../",
        "/a:b@c", "/~!$&'()*+,;=", "/a://b",
    ],
)  # fmt: skip
def test_a_target_passes_as_it_is(front: WFHttpServer, raw: RawUpstream, target: str) -> None:
    with RawClient(front.address) as client:
        assert client.ask(target).status == 200
    assert raw.requests[0].partition(b"\r\n")[0] == f"GET {target} HTTP/1.1".encode()


def test_every_character_of_a_target(front: WFHttpServer, raw: RawUpstream) -> None:
    """What the server takes, the upstream gets."""
    passed = 0
    for code in (*range(0x21, 0x7F), 0x80, 0xE9, 0xFF):
        target = b"/-%c-?-%c-" % (code, code)
        with RawClient(front.address) as client:
            client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
            status = client.reply().status
        if status == 400 and len(raw.requests) == passed:
            continue  # by the server itself
        assert status == 200
        passed += 1
        assert raw.requests[-1].startswith(b"GET %b HTTP/1.1\r\n" % target)
    assert passed > 85


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("OPTIONS *", "OPTIONS *"),
        # RFC 9112, 3.2.4: the last proxy makes an asterisk of it.
        ("OPTIONS http://example.com", "OPTIONS *"),
        ("OPTIONS http://example.com/", "OPTIONS /"),
        ("OPTIONS http://example.com?a", "OPTIONS /?a"),
        ("OPTIONS /a//b", "OPTIONS /a//b"),
        ("GET http://example.com", "GET /"),
        ("GET http://example.com/x?", "GET /x?"),
        ("GET http://example.com/a/../b?c#".rstrip("#"), "GET /a/../b?c"),
        ("GET http://example.com?q", "GET /?q"),
    ],
)
def test_forms_of_targets(front: WFHttpServer, raw: RawUpstream, line: str, seen: str) -> None:
    with RawClient(front.address) as client:
        client.send(f"{line} HTTP/1.1\r\nHost: example.com\r\n\r\n".encode())
        assert client.reply().status == 200
    assert raw.requests[0].startswith(f"{seen} HTTP/1.1\r\nHost: example.com\r\n".encode())


@pytest.mark.parametrize("prefix", ["/base", "/base/"])
def test_an_upstream_below_a_path(raw: RawUpstream, prefix: str) -> None:
    with proxying(raw.url + prefix) as (front, _), RawClient(front.address) as client:
        client.ask("/a/../b?")
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        client.reply()
    lines = [request.partition(b"\r\n")[0] for request in raw.requests]
    assert lines == [b"GET /base/a/../b? HTTP/1.1", b"OPTIONS * HTTP/1.1"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_through_the_proxy(proxy: Proxy) -> None:
    url = proxy[0].url
    command = ["curl", "-sS", "--noproxy", "*", "--path-as-is", "--globoff"]

    def curl(*options: str) -> bytes:
        return subprocess.run([*command, *options], capture_output=True, check=True).stdout

    assert curl(url + '/a/../b"?') == b'GET /a/../b"? via 1.1 protoserve '
    expecting = ["-H", "Expect: 100-continue", "--data-binary", "body"]
    assert curl(*expecting, url).endswith(b" body")
    chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", "body"]
    assert curl(*chunked, url).endswith(b" body")
    assert curl("-X", "OPTIONS", "--request-target", "*", url).startswith(b"OPTIONS * via")
    assert curl("-0", url) == b"GET / via 1.0 protoserve "


# -- fields, byte for byte -----------------------------------------------------------------


def test_request_fields_pass_as_they_are(to_raw: WFHttpServer, raw: RawUpstream) -> None:
    fields = [
        b"Host: h:81", b"cookie: name=\xc3\xa9; x=\xe9\xff", b"X-CaSe: a", b"x-case: b",
        b"X-Case:", b"X-Inner: a \t b", b"X-Tab: \xa0", b"Accept-Encoding: zstd",
    ]  # fmt: skip
    with RawClient(to_raw.address) as client:
        client.send(b"GET / HTTP/1.1\r\n" + b"\r\n".join(fields) + b"\r\n\r\n")
        assert client.reply().status == 200
    seen = [line.rstrip(b" ") for line in raw.fields()]
    assert seen == [*fields, b"Via: 1.1 protoserve"]


def test_every_byte_of_a_request_field(front: WFHttpServer, raw: RawUpstream) -> None:
    """What the server takes, the upstream gets."""
    passed = 0
    for code in range(256):
        value = b"-%c-" % code
        with RawClient(front.address) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Byte: " + value + b"\r\n\r\n")
            status = client.reply().status
        if status == 400 and len(raw.requests) == passed:
            continue  # by the server itself
        assert status == 200
        passed += 1
        assert b"X-Byte: " + value in raw.fields()
    assert passed > 200


def test_reply_fields_pass_as_they_are(to_raw: WFHttpServer, raw: RawUpstream) -> None:
    fields = [
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT", b"Content-Length: 2", b"Set-Cookie: a=\xc3\xa9",
        b"set-cookie: b=\xe9\xff", b"X-Inner: a \t b", b"Content-Encoding: gzip", b"Server: me",
    ]  # fmt: skip
    raw.reply = b"HTTP/1.1 299 Tr\xe8s \xc3\xa9\r\n" + b"\r\n".join(fields) + b"\r\n\r\n\x1f\x8b"
    with RawClient(to_raw.address) as client:
        client.send(get("/", "Connection: close"))
        head, _, body = client.rest().partition(b"\r\n\r\n")
    line, *seen = head.split(b"\r\n")
    assert line == b"HTTP/1.1 299 Tr\xe8s \xc3\xa9"
    assert sorted(seen) == sorted([*fields, b"Connection: close"])
    cookies = [field for field in seen if field.lower().startswith(b"set-cookie")]
    assert cookies == [b"Set-Cookie: a=\xc3\xa9", b"set-cookie: b=\xe9\xff"]
    assert body == b"\x1f\x8b"


def test_every_byte_of_a_reply_field(front: WFHttpServer, raw: RawUpstream) -> None:
    """It passes, or the reply is refused as the upstream's fault."""
    passed = 0
    with RawClient(front.address) as client:
        for code in range(256):
            raw.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Byte: -%c-\r\n\r\n" % code
            reply = client.ask()
            if chr(code) not in "\t " and (code < 32 or code == 127):
                assert reply.status == 502
                continue
            assert reply.status == 200
            assert reply.headers["x-byte"] == f"-{chr(code)}-"
            passed += 1
    assert passed > 200


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 O\x01K\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_reply(front: WFHttpServer, raw: RawUpstream, reply: bytes) -> None:
    raw.reply, raw.closes = reply, True
    with RawClient(front.address) as client:
        assert client.ask().status == 502
        eventually(lambda: raw.ended == raw.connections)


def test_fields_between_neighbours_stay_there(front: WFHttpServer, raw: RawUpstream) -> None:
    raw.reply = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
        b"Connection: keep-alive, x-hop\r\nProxy-Authenticate: Basic\r\nX-End: 1\r\n\r\n"
    )
    fields = [
        "Connection: X-Hop, keep-alive, content-length", "X-Hop: 1", "Keep-Alive: timeout=9",
        "TE: trailers", "Upgrade: h2c", "Proxy-Connection: keep-alive", "X-End: 1",
    ]  # fmt: skip
    with RawClient(front.address) as client:
        client.send(post("/", b"body", *fields))
        reply = client.reply()
    assert raw.requests[0].endswith(b"\r\n\r\nbody")
    assert raw.fields() == [
        b"Host: a", b"Content-Length: 4", b"X-End: 1", b"Via: 1.1 protoserve"
    ]  # fmt: skip
    assert reply.headers["x-end"] == "1"
    assert not {"keep-alive", "x-hop", "proxy-authenticate"} & set(reply.headers)


@pytest.mark.parametrize(
    ("sent", "length"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b"0"),
        (b"PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"3"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"3"),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"0"),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
         b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"3"),
    ],
)  # fmt: skip
def test_framing_of_requests(
    front: WFHttpServer, raw: RawUpstream, sent: bytes, length: bytes | None
) -> None:
    with RawClient(front.address) as client:
        client.send(sent)
        assert client.reply().status == 200
    lengths = [line for line in raw.fields() if line.lower().startswith(b"content-length")]
    assert lengths == ([] if length is None else [b"Content-Length: " + length])
    assert raw.requests[0].partition(b"\r\n\r\n")[2] == (b"abc" if length == b"3" else b"")
    assert b"transfer-encoding" not in raw.requests[0].lower()


@pytest.fixture
def streaming(raw: RawUpstream) -> Iterator[WFHttpServer]:
    with proxying(raw.url, streams=True) as (front, _):
        yield front


@pytest.mark.parametrize(
    ("field", "body"),
    [
        (b"Content-Length: 3", b"abc"),
        (b"Transfer-Encoding: chunked", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
    ],
)
def test_framing_of_streamed_requests(
    streaming: WFHttpServer, raw: RawUpstream, field: bytes, body: bytes
) -> None:
    with RawClient(streaming.address) as client:
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n" + body)
        assert client.reply().status == 200
    assert {line for line in raw.fields(0) if line.startswith((b"Content-L", b"Tr"))} == {field}


def test_an_upload_goes_through_as_it_comes() -> None:
    """A body larger than anybody keeps, to a server that hashes it."""
    size = 64 * 1024 * 1024
    arrived = threading.Event()

    async def digest(task: WFHttpTask) -> None:
        found = hashlib.sha256()
        if task.req.stream is not None:
            async for piece in task.req.stream:
                arrived.set()
                found.update(piece)
        task.resp.write(found.hexdigest())

    params = HTTP_SPEC.params.replace(stream_bodies=True, request_size_limit=None)
    with (
        WFHttpServer(digest, params).start("127.0.0.1", 0) as server,
        proxying(server.url, streams=True) as (front, _),
        RawClient(front.address) as client,
    ):
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        client.send(bytes(size // 2))
        assert arrived.wait(PATIENCE)
        client.send(bytes(size // 2))
        assert client.reply().body == hashlib.sha256(bytes(size)).hexdigest().encode()
        assert client.ask().status == 200


def test_no_upstream_is_said_before_the_body_is_sent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with proxying(url, streams=True) as (front, _), RawClient(front.address) as client:
            client.send(
                b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            )
            reply = client.reply()
            assert (reply.status, reply.closes) == (502, True)


def test_a_client_that_leaves_in_its_body(
    streaming: WFHttpServer, raw: RawUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    with RawClient(streaming.address) as client:
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        eventually(lambda: raw.connections == 1)
    eventually(lambda: streaming.conn_count == 0 and raw.ended == 1)
    assert not [r for r in caplog.records if r.levelname == "ERROR"]
    assert raw.requests == []


def test_a_client_without_host(front: WFHttpServer, raw: RawUpstream) -> None:
    with RawClient(front.address) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.reply().status == 200
    host = raw.url.removeprefix("http://").encode()
    assert raw.fields() == [b"Host: " + host, b"Via: 1.0 protoserve"]


# -- the upstream's connections --------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("GET", OK),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK),
    ],
)
def test_a_connection_is_used_again(
    to_raw: WFHttpServer, raw: RawUpstream, client: httpx.Client, method: str, reply: bytes
) -> None:
    raw.reply = reply

    def idle() -> bool:
        return all(
            connection.is_idle()
            for pool in to_raw.pools.values()  # type: ignore[attr-defined]
            for connection in pool.connections
        )

    for _ in range(3):
        eventually(idle)
        answer = client.request(method, to_raw.url)
        assert answer.status_code == int(reply.rpartition(b"HTTP/1.1 ")[2][:3])
        if b"99" in reply:
            assert answer.headers["content-length"] == "99"
    assert raw.connections == 1


@pytest.mark.parametrize("status", [b"205 Reset Content", b"200 O\x7fK"])
def test_a_reply_that_is_not_wanted_is_let_go(
    to_raw: WFHttpServer, raw: RawUpstream, client: httpx.Client, status: bytes
) -> None:
    raw.reply = b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    assert client.get(to_raw.url).status_code in (205, 502)
    eventually(lambda: raw.ended == 1)


def test_a_reply_that_breaks_off_is_cut(to_raw: WFHttpServer, raw: RawUpstream) -> None:
    raw.closes = True
    for framing in (b"Content-Length: 99", b"Transfer-Encoding: chunked"):
        raw.reply = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nabcde\r\n"
        for version in ("1.0", "1.1"):
            with RawClient(to_raw.address) as client:
                client.send(get("/", version=version))
                with pytest.raises(ConnectionResetError):  # an end would look like the whole
                    client.rest()


# -- clients that leave ----------------------------------------------------------------------


def leave(client: RawClient) -> None:
    client.close()


def leave_with_reset(client: RawClient) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("how", [leave, leave_with_reset])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_client_that_leaves_before_the_reply(
    to_raw: WFHttpServer,
    raw: RawUpstream,
    version: str,
    how: Callable[[RawClient], None],
    earlier: int,
) -> None:
    client = RawClient(to_raw.address)
    with contextlib.closing(client):
        for _ in range(earlier):
            assert client.ask("/", "Connection: keep-alive", version=version).status == 200
        raw.release.clear()
        client.send(get("/", version=version))
        eventually(lambda: len(raw.requests) == earlier + 1)
        left = time.monotonic()
        how(client)
        eventually(lambda: raw.ended == 1)
    # At once; what would end it otherwise is a timeout of 10 seconds and more.
    assert time.monotonic() - left < PATIENCE / 2


def test_a_client_that_leaves_in_the_middle(to_raw: WFHttpServer, raw: RawUpstream) -> None:
    raw.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nbegin"
    with RawClient(to_raw.address) as client:
        client.send(get("/"))
        assert client.sock.recv(1000)
        leave_with_reset(client)
    eventually(lambda: raw.ended == 1)


def test_an_http_1_0_client_that_ends_its_sending_side(
    to_raw: WFHttpServer, raw: RawUpstream
) -> None:
    """It counts as gone: there is no interim reply in HTTP/1.0 (RFC 9110, 15.2)."""
    raw.release.clear()
    with RawClient(to_raw.address) as client:
        client.send(get("/", version="1.0"))
        eventually(lambda: len(raw.requests) == 1)
        client.end_sending()
        assert client.rest() == b""
        eventually(lambda: raw.ended == 1)
        raw.release.set()


@pytest.mark.parametrize("pipelined", [1, 3])
def test_a_client_that_only_ends_its_sending_side(
    to_raw: WFHttpServer, raw: RawUpstream, pipelined: int
) -> None:
    raw.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nreply"
    raw.release.clear()
    with RawClient(to_raw.address) as client:
        client.send(get("/") * pipelined)
        client.end_sending()
        interim = b"HTTP/1.1 102 Processing\r\n\r\n"
        assert client.sock.recv(len(interim), socket.MSG_WAITALL) == interim
        raw.release.set()
        rest = client.rest().replace(interim, b"")
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert rest.count(b"\r\n\r\nreply") == pipelined
