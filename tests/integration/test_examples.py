"""The examples, with real clients."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from types import ModuleType

import httpx
import pytest
from example_modules import load
from loopback import PATIENCE, RawClient, get
from loops import serving

from protoserve_http import WFHttpServer, WFHttpTask


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        yield client


def test_async_reply_both_ways(client: httpx.Client) -> None:
    example = load("async_reply")
    replies = []
    for process in (example.with_tasks, example.with_coroutine):
        with WFHttpServer(process).start("127.0.0.1", 0) as server:
            replies.append(client.post(server.url, content=b"data").text)
    assert replies == [example.digest(b"data")] * 2


def test_sse() -> None:
    with (
        WFHttpServer(load("sse").process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get("/", version="1.0"))
        seen = b""
        while b"id: 1\ndata: " not in seen or not seen.endswith(b"\n\n"):
            seen += client.sock.recv(4096)
        assert b"Content-Type: text/event-stream\r\n" in seen
        # The stop waits for the client: it leaves first, so that this is seen at once.
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# -- the proxy -------------------------------------------------------------------------


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


@pytest.fixture(params=["own uvloop", "running asyncio"])
def proxy(request: pytest.FixtureRequest) -> Iterator[tuple[WFHttpServer, ModuleType]]:
    example = load("http_proxy")

    async def process(task: WFHttpTask) -> None:
        if task.req.path == "/close":  # the example's clients live as long as the loop
            await example.clients.pop(asyncio.get_running_loop()).aclose()
            return
        await example.process(task)

    with WFHttpServer(upstream).start("127.0.0.1", 0) as server:
        example.UPSTREAM = server.url  # type: ignore[attr-defined]
        with serving(request.param, process) as front:
            yield front, example
            with RawClient(front.address) as client:
                assert client.ask("/close").status == 200


def test_proxy_passes_on(proxy: tuple[WFHttpServer, ModuleType], client: httpx.Client) -> None:
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


def test_proxy_without_upstream(
    proxy: tuple[WFHttpServer, ModuleType], client: httpx.Client
) -> None:
    front, example = proxy
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        example.UPSTREAM = f"http://127.0.0.1:{unused.getsockname()[1]}"  # type: ignore[attr-defined]
        assert client.get(front.url).status_code == 502


def test_proxy_with_a_slow_upstream(
    proxy: tuple[WFHttpServer, ModuleType],
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    front, example = proxy
    make = httpx.AsyncClient
    monkeypatch.setattr(example.httpx, "AsyncClient", lambda timeout: make(timeout=0.2))
    assert client.get(front.url + "/slow").status_code == 504
