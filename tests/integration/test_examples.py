"""The examples, with real clients; the larger ones have files of their own."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import httpx
import pytest
from example_modules import load
from loopback import PATIENCE, RawClient, get

from protoserve_http import HTTP_SPEC, WFHttpServer


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


def test_sse_ends_when_a_stop_begins() -> None:
    params = HTTP_SPEC.params.replace(shutdown_timeout=60)
    server = WFHttpServer(load("sse").process, params).start("127.0.0.1", 0)
    clients = [RawClient(server.address) for _ in range(3)]
    for client in clients:
        client.send(get())
        while b"data: " not in client._file.readline():
            pass
    start = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - start < 30  # of 60
    for client in clients:
        assert client.rest().endswith(b"\r\n0\r\n\r\n")
        client.close()


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
