"""examples/id_protocol.py and examples/paced_broadcast.py, with clients made of sockets."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from example_modules import load
from loopback import PATIENCE, RawClient, eventually

from protoserve import WFServer
from protoserve.events import CloseReason, ConnectionClosed


def call(number: int, milliseconds: int, content: bytes) -> bytes:
    return struct.pack(">IIH", 6 + len(content), number, milliseconds) + content


def answer(client: RawClient) -> tuple[int, int, bytes]:
    """The number, status and content of the next answer."""
    head = client._file.read(9)
    assert len(head) == 9, head
    length, number, status = struct.unpack(">IIB", head)
    content = client._file.read(length - 5)
    assert len(content) == length - 5
    return number, status, content


@pytest.fixture
def numbered() -> Iterator[WFServer[Any, Any]]:
    example = load("id_protocol")
    with WFServer(example.ID_SPEC, example.process).start("127.0.0.1", 0) as server:
        yield server


def test_answers_out_of_order(numbered: WFServer[Any, Any]) -> None:
    with RawClient(numbered.address) as client:
        client.send(call(7, 300, b"slow") + call(8, 150, b"slower") + call(9, 0, b"fast"))
        assert [answer(client) for _ in range(3)] == [
            (9, 0, b"tsaf"),
            (8, 0, b"rewols"),
            (7, 0, b"wols"),
        ]


def test_many_calls_at_once(numbered: WFServer[Any, Any]) -> None:
    calls = [call(n, random.Random(n).randrange(20), b"%d" % (1000 + n)) for n in range(200)]
    with RawClient(numbered.address) as client:
        client.send(b"".join(calls))
        client.end_sending()
        got = {number: content for number, _, content in (answer(client) for _ in calls)}
        assert client.rest() == b""
    assert got == {n: (b"%d" % (1000 + n))[::-1] for n in range(200)}


def test_eight_at_a_time(numbered: WFServer[Any, Any]) -> None:
    with RawClient(numbered.address) as client:
        begun = time.monotonic()
        client.send(b"".join(call(n, 100, b"x") for n in range(16)))
        assert sorted(answer(client)[0] for _ in range(16)) == list(range(16))
        assert 0.19 < time.monotonic() - begun < 1.2  # of 1.6


def test_a_call_that_fails_and_one_that_is_none(numbered: WFServer[Any, Any]) -> None:
    with RawClient(numbered.address) as client:
        client.send(call(1, 50, b"x") + call(2, 0, b"") + struct.pack(">I", 1 << 30))
        assert answer(client) == (2, 1, b"nothing to turn round")
        assert answer(client) == (1, 0, b"x")
        assert client.rest() == b""


def test_a_broadcast_goes_at_the_pace_of_the_slowest() -> None:
    example = load("paced_broadcast")
    radio = example.Radio()
    closed: list[CloseReason] = []
    radio.subscribe(
        lambda event: closed.append(event.reason) if isinstance(event, ConnectionClosed) else None
    )
    piece = bytes(65535) + b"\n"
    sent = most = 0
    enough = threading.Event()

    def pieces() -> Iterator[bytes]:
        nonlocal sent, most
        while not enough.is_set():
            most = max([most, *(listener.pending for listener in radio.connections())])
            sent += 1
            yield piece

    with radio.start("127.0.0.1", 0):
        fast, slow, stuck = (
            RawClient(radio.address, receive_buffer=4096),
            RawClient(radio.address, receive_buffer=4096),
            RawClient(radio.address, receive_buffer=4096),
        )
        for client in (fast, slow, stuck):
            assert client._file.readline() == b"welcome\n"
        sender = threading.Thread(target=radio.broadcast, args=(pieces(),))
        sender.start()
        got = [0]

        def read() -> None:
            with contextlib.suppress(OSError):
                while len(data := fast.sock.recv(1 << 20)):
                    got[0] += len(data)

        reader = threading.Thread(target=read)
        reader.start()
        # Nobody goes on without those that do not read...
        time.sleep(0.5)
        before = sent
        time.sleep(0.3)
        assert sent == before
        # ... until one that takes nothing is cut, and another reads.
        for _ in range(20):
            assert slow._file.read(65536)[-1:] == b"\n"
        eventually(lambda: CloseReason.REPLY_NOT_TAKEN in closed)
        for _ in range(100):
            assert slow._file.read(65536) == piece
        assert sent > before
        enough.set()
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        drain = threading.Thread(target=slow.rest)
        drain.start()
        sender.join(PATIENCE)
        assert not sender.is_alive()
        radio.shutdown()
        for thread in (drain, reader):
            thread.join(PATIENCE)
        for client in (fast, slow, stuck):
            client.close()
    assert most < len(piece)  # what was sent before had been taken
    assert got[0] >= 100 * 65536


def test_a_broadcast_ends_with_the_server() -> None:
    example = load("paced_broadcast")
    with example.Radio().start("127.0.0.1", 0) as radio, RawClient(radio.address) as client:
        sender = threading.Thread(target=radio.broadcast, args=(example.ticks(),))
        sender.start()
        assert client._file.readline() == b"welcome\n"
        while not client._file.readline().startswith(b"100 "):
            pass
        time.sleep(0.6)  # longer than what a client has for a first request at a stop
        radio.shutdown()
        *_, last = client.rest().splitlines()
        assert last == b"end"
        sender.join(PATIENCE)
        assert not sender.is_alive()
