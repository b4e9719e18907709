"""examples/http_upload.py, with curl, http.client and clients that are refused."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from example_modules import EXAMPLES, load
from loopback import PATIENCE, RawClient, eventually

from protoserve_http import HTTP_SPEC, WFHttpServer

MIB = 1024 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Upload = tuple[WFHttpServer, ModuleType, Path]


@pytest.fixture
def upload(tmp_path: Path) -> Iterator[Upload]:
    example = load("http_upload")
    example.folder = tmp_path  # type: ignore[attr-defined]
    example.LARGEST = 10 * MIB  # type: ignore[attr-defined]
    params = HTTP_SPEC.params.replace(stream_bodies=True, peer_response_timeout=1)
    with example.UploadServer(example.process, params).start("127.0.0.1", 0) as server:
        yield server, example, tmp_path


def put(name: str, size: int, *fields: str) -> bytes:
    lines = [f"PUT {name} HTTP/1.1", "Host: a", f"Content-Length: {size}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def test_http_client(upload: Upload) -> None:
    server, _, folder = upload
    connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
    for name, body in (("a", b"abc"), ("b.txt", bytes(3 * MIB)), ("empty", b"")):
        connection.request("PUT", f"/{name}", body)
        reply = connection.getresponse()
        assert (reply.status, reply.read().decode()) == (
            201,
            hashlib.sha256(body).hexdigest() + "\n",
        )
        assert (folder / name).read_bytes() == body
    connection.request("PUT", "/chunks", iter([b"ab", b"c" * MIB]))
    assert connection.getresponse().read()
    assert (folder / "chunks").stat().st_size == MIB + 2
    connection.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (put("/large", 11 * MIB, "Expect: 100-continue"), 413),
        (put("/there", 5, "Expect: 100-continue"), 409),
        (put("/../x", 5, "Expect: 100-continue"), 403),
        (put("/.hidden", 5, "Expect: 100-continue"), 403),
        (put("/x", 5, "Expect: 100-continue").replace(b"PUT", b"POST"), 405),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ],
)
def test_refused_before_anything_is_sent(upload: Upload, head: bytes, status: int) -> None:
    server, _, folder = upload
    (folder / "there").write_bytes(b"")
    with RawClient(server.address) as client:
        client.send(head)
        reply = client.reply()
        assert (reply.status, reply.closes) == (status, b"Expect" in head)
    assert [path.name for path in folder.iterdir()] == ["there"]


def test_too_large_in_the_middle(upload: Upload) -> None:
    server, _, folder = upload
    with RawClient(server.address) as client:
        client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            client.send(b"100000\r\n" + bytes(MIB) + b"\r\n")
        assert client.reply().status == 413
    eventually(lambda: list(folder.iterdir()) == [])


def test_a_client_that_leaves_or_is_silent(
    upload: Upload, caplog: pytest.LogCaptureFixture
) -> None:
    server, _, folder = upload
    with RawClient(server.address) as client:
        client.send(put("/x", 100) + b"abc")
        eventually(lambda: list(folder.iterdir()))
    eventually(lambda: list(folder.iterdir()) == [])
    with RawClient(server.address) as client:
        client.send(put("/x", 100) + b"abc")
        assert client.reply().status == 408
    assert list(folder.iterdir()) == []
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_and_the_program_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "data").write_bytes(bytes(3 * MIB))
    program = subprocess.Popen(
        [sys.executable, EXAMPLES / "http_upload.py", "0", tmp_path / "in"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with program:
        try:
            assert program.stdout is not None
            url = program.stdout.readline().split()[-1]
            command = ["curl", "-sS", "-m", "10", "-w", "%{http_code}", "-T", tmp_path / "data"]
            for status in ("201", "409"):
                done = subprocess.run(
                    [*command, f"{url}/data"], capture_output=True, check=True, text=True
                )
                assert done.stdout.endswith(status)
            assert (tmp_path / "in" / "data").stat().st_size == 3 * MIB
            program.send_signal(signal.SIGTERM)
            assert program.wait(PATIENCE) == 0
        finally:
            program.kill()
