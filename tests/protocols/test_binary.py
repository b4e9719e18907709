"""examples/protocols/binary, with a client made of sockets and struct."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from binary_protocol import BINARY_SPEC, process
from protocol_packages import serving

from protoserve import WFServer

PATIENCE = 10.0


@pytest.fixture(params=["threads", "loop"])
def server(request: pytest.FixtureRequest) -> Iterator[WFServer[Any, Any]]:
    with serving(BINARY_SPEC, process, request.param) as server:
        yield server


def connect(server: WFServer[Any, Any]) -> socket.socket:
    return socket.create_connection(server.address, timeout=PATIENCE)


def message(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def test_a_message_in_capitals(server: WFServer[Any, Any]) -> None:
    with connect(server) as client, client.makefile("rb") as replies:
        for body in (b"hello", b"", bytes(range(256)), b"x" * 300_000):
            client.sendall(message(body))
            (size,) = struct.unpack(">I", replies.read(4))
            assert size == len(body)
            assert replies.read(size) == body.upper()


def test_many_at_once_split_anywhere(server: WFServer[Any, Any]) -> None:
    bodies = [b"message %d" % number for number in range(100)]
    data = b"".join(map(message, bodies))
    with connect(server) as client, client.makefile("rb") as replies:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin in range(0, len(data), 7):
            client.sendall(data[begin : begin + 7])
        client.shutdown(socket.SHUT_WR)
        assert replies.read() == b"".join(message(body.upper()) for body in bodies)


def test_one_that_is_too_long_ends_the_connection(server: WFServer[Any, Any]) -> None:
    with connect(server) as client, client.makefile("rb") as replies:
        client.sendall(message(b"good") + struct.pack(">I", 1024 * 1024 - 3))
        assert replies.read() == message(b"GOOD")
