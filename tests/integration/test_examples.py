"""The examples, with real clients."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from loopback import PATIENCE, RawClient, get
from loops import serving

from protoserve_http import WFHttpServer, WFHttpTask

EXAMPLES = Path(__file__).parents[2] / "examples"
MIB = 1024 * 1024


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


# -- files -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Iterator[WFHttpServer]:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "index.html").write_bytes(b"<p>home")
    (root / "ten.txt").write_bytes(b"0123456789")
    (root / "empty").touch()
    (root / "a b.txt").write_bytes(b"space")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    os.symlink(tmp_path / "secret", root / "link")
    os.symlink(tmp_path, root / "up")
    os.symlink(root / "ten.txt", root / "inside")
    os.symlink(root / "circle", root / "circle")
    example = load("http_file")
    example.ROOT = root  # type: ignore[attr-defined]
    with WFHttpServer(example.process).start("127.0.0.1", 0) as server:
        yield server


@pytest.mark.parametrize(
    "path",
    [
        "/../secret", "/%2e%2e/secret", "/..%2fsecret", "/sub/../../secret", "/link",
        "/up/secret", "//../secret", "/%2e%2e/root2/secret", "/..\\secret", "/a%00b",
        "/sub", "/none", "/circle", "/" + "x" * 300, "/%ff",
    ],
)  # fmt: skip
def test_files_that_are_not_given_out(files: WFHttpServer, path: str) -> None:
    with RawClient(files.address) as client:
        reply = client.ask(path)
        assert reply.status == 404
        assert b"secret" not in reply.body


def test_files(files: WFHttpServer, client: httpx.Client) -> None:
    url = files.url
    assert client.get(url).text == "<p>home"
    assert client.get(url).headers["content-type"] == "text/html"
    assert client.get(f"{url}/a%20b.txt?x=y").text == "space"
    assert client.get(f"{url}/inside").text == "0123456789"
    assert client.get(f"{url}/empty").content == b""
    reply = client.head(f"{url}/ten.txt")
    assert (reply.status_code, reply.headers["content-length"]) == (200, "10")
    reply = client.post(f"{url}/ten.txt")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("value", "status", "body", "where"),
    [
        ("bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=4-", 206, "456789", "bytes 4-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=-30", 206, "0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, "89", "bytes 8-9/10"),
        ("bytes=9-9", 206, "9", "bytes 9-9/10"),
        ("bytes=10-", 416, "", "bytes */10"),
        ("bytes=-0", 416, "", "bytes */10"),
        ("bytes=5-2", 200, "0123456789", None),
        ("bytes=-", 200, "0123456789", None),
        ("bytes=0-1,3-4", 200, "0123456789", None),
        ("lines=0-1", 200, "0123456789", None),
    ],
)
def test_ranges(
    files: WFHttpServer,
    client: httpx.Client,
    value: str,
    status: int,
    body: str,
    where: str | None,
) -> None:
    reply = client.get(f"{files.url}/ten.txt", headers={"Range": value})
    assert (reply.status_code, reply.text) == (status, body)
    assert reply.headers.get("content-range") == where


def test_if_modified_since(files: WFHttpServer, client: httpx.Client) -> None:
    url = f"{files.url}/ten.txt"
    modified = client.get(url).headers["last-modified"]
    reply = client.get(url, headers={"If-Modified-Since": modified})
    assert (reply.status_code, reply.content) == (304, b"")
    for since in ("Thu, 01 Jan 1970 00:00:01 GMT", "never"):
        assert client.get(url, headers={"If-Modified-Since": since}).status_code == 200


def test_large_file_is_not_loaded(
    files: WFHttpServer, client: httpx.Client, tmp_path: Path
) -> None:
    with (tmp_path / "root" / "large").open("wb") as file:
        file.truncate(50 * MIB)
    statm = Path("/proc/self/statm")
    page = os.sysconf("SC_PAGE_SIZE")
    size, growth = 0, 0
    with client.stream("GET", f"{files.url}/large") as reply:
        before = int(statm.read_text().split()[1]) if statm.exists() else 0
        for piece in reply.iter_raw(MIB):
            size += len(piece)
            if statm.exists():
                growth = max(growth, (int(statm.read_text().split()[1]) - before) * page)
    assert size == 50 * MIB
    assert growth < 12 * MIB  # the client's own pieces are among it
