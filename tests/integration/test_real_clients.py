"""Clients that others wrote: curl, httpx and http.client."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import httpx
import pytest

from protoserve_http import WFHttpServer, WFHttpTask

MIB = 1024 * 1024


def process(task: WFHttpTask) -> None:
    """Says what arrived: method, target, version, size, and how often on this connection."""
    req = task.req
    task.resp.headers["X-Seen"] = f"{req.method} {req.target} {req.version} {task.seq}"
    task.resp.headers["X-Coding"] = req.headers.get("Transfer-Encoding", "none")
    if req.path == "/echo":
        task.resp.write(req.body)
    elif req.path == "/none":
        task.resp.status = 204
    elif req.path == "/big":
        task.resp.write(bytes(3 * MIB))
    else:
        task.resp.write(f"{len(req.body)}\n")


@pytest.fixture
def server() -> Iterator[WFHttpServer]:
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        yield server


@pytest.fixture
def curl() -> str:
    path = shutil.which("curl")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("curl is missing, and this is CI: install it (apt-get install curl)")
        pytest.skip("curl is not installed")
    return path


def run(curl: str, *args: str, data: bytes = b"") -> tuple[str, str]:
    """What curl wrote, and what it said with ``-v``."""
    done = subprocess.run(
        [curl, "-q", "-sS", "-v", "--max-time", "20", "--noproxy", "*", *args],
        input=data,
        capture_output=True,
        timeout=30,
    )
    said = done.stderr.decode("latin-1")
    assert done.returncode == 0, said
    return done.stdout.decode("latin-1"), said


def test_curl_keeps_the_connection(curl: str, server: WFHttpServer) -> None:
    urls = [f"{server.url}/{i}" for i in range(5)]
    out, said = run(curl, "-w", "%{num_connects} %header{x-seen}\n", *urls)
    assert out.splitlines()[1::2] == [f"{0 if i else 1} GET /{i} 1.1 {i}" for i in range(5)]
    assert said.count("Re-using existing connection") == 4


def test_curl_expects_continue(curl: str, server: WFHttpServer, tmp_path: Path) -> None:
    body = bytes(range(256)) * 6144
    (tmp_path / "body").write_bytes(body)
    out, said = run(
        curl,
        "--data-binary", f"@{tmp_path}/body",
        "-H", "Expect: 100-continue",
        "-o", f"{tmp_path}/answer",
        f"{server.url}/echo",
    )  # fmt: skip
    assert "HTTP/1.1 100 Continue" in said
    assert "HTTP/1.1 200 OK" in said
    assert (tmp_path / "answer").read_bytes() == body
    assert out == ""


def test_curl_head(curl: str, server: WFHttpServer) -> None:
    out, _ = run(curl, "-I", f"{server.url}/big", f"{server.url}/x")
    assert f"Content-Length: {3 * MIB}\r\n" in out
    assert "X-Seen: HEAD /x 1.1 1\r\n" in out


def test_curl_http_1_0(curl: str, server: WFHttpServer) -> None:
    out, said = run(curl, "--http1.0", "-i", f"{server.url}/1", f"{server.url}/2")
    assert "X-Seen: GET /1 1.0 0\r\n" in out
    assert "X-Seen: GET /2 1.0 0\r\n" in out
    assert "Re-using" not in said


def test_curl_chunked_upload(curl: str, server: WFHttpServer) -> None:
    body = b"0123456789" * 30_000
    out, _ = run(curl, "-T", "-", "-D", "-", f"{server.url}/count", data=body)
    assert "X-Coding: chunked" in out
    assert out.endswith("\n300000\n")


def test_curl_no_content_then_more(curl: str, server: WFHttpServer) -> None:
    out, said = run(curl, "-i", f"{server.url}/none", f"{server.url}/x")
    assert out.startswith("HTTP/1.1 204 No Content\r\n")
    assert "X-Seen: GET /x 1.1 1\r\n" in out
    assert said.count("Re-using existing connection") == 1


def test_curl_unix_socket(curl: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with WFHttpServer(process).start(f"unix:{path}"):
        out, _ = run(curl, "--unix-socket", str(path), "-d", "abc", "http://x/a", "http://x/b")
    assert out == "3\n3\n"


def test_curl_parallel(curl: str, server: WFHttpServer) -> None:
    urls = [f"{server.url}/{i}" for i in range(40)]
    out, _ = run(curl, "-Z", "--parallel-immediate", "--parallel-max", "10", *urls)
    assert out == "0\n" * 40


def test_curl_big_reply(curl: str, server: WFHttpServer, tmp_path: Path) -> None:
    run(curl, "-o", f"{tmp_path}/big", f"{server.url}/big")
    assert (tmp_path / "big").stat().st_size == 3 * MIB


def test_httpx(server: WFHttpServer) -> None:
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        for seq in range(3):
            answer = client.get("/x", params={"q": "ä"})
            assert answer.headers["x-seen"] == f"GET /x?q=%C3%A4 1.1 {seq}"
        body = b"\r\n\0" * 100_000
        answer = client.post("/echo", content=body)
        assert answer.content == body
        assert answer.headers["x-seen"].endswith(" 3")


def test_httpx_streams(server: WFHttpServer) -> None:
    def pieces() -> Iterator[bytes]:
        for i in range(200):
            yield bytes([i]) * 1000

    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        answer = client.put("/echo", content=pieces())
        assert answer.headers["x-coding"] == "chunked"
        assert answer.content == b"".join(pieces())
        with client.stream("GET", "/big") as stream:
            assert sum(map(len, stream.iter_bytes())) == 3 * MIB
        assert client.head("/big").headers["content-length"] == str(3 * MIB)
        assert client.get("/none").status_code == 204
        assert client.delete("/x").headers["x-seen"] == "DELETE /x 1.1 4"


def test_httpx_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        WFHttpServer(process).start(f"unix:{path}"),
        httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client,
    ):
        assert client.post("http://x/count", content=b"12345").text == "5\n"


def answer(client: HTTPConnection) -> tuple[HTTPResponse, bytes]:
    response = client.getresponse()
    return response, response.read()


def test_http_client_methods(server: WFHttpServer) -> None:
    host, port = server.address
    client = HTTPConnection(host, port, timeout=20)
    for seq, method in enumerate(["GET", "HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "POST"]):
        client.request(method, "/m", body=b"x" if method in ("PUT", "POST") else None)
        response, body = answer(client)
        assert response.headers["X-Seen"] == f"{method} /m 1.1 {seq}"
        assert body == (
            b"" if method == "HEAD" else b"1\n" if method in ("PUT", "POST") else b"0\n"
        )
    client.close()


def test_http_client_chunked(server: WFHttpServer) -> None:
    host, port = server.address
    client = HTTPConnection(host, port, timeout=20)
    client.request("POST", "/echo", body=iter([b"ab", b"cd" * 5000]), encode_chunked=True)
    response, body = answer(client)
    assert response.headers["X-Coding"] == "chunked"
    assert body == b"ab" + b"cd" * 5000
    client.close()
