"""A transport whose readiness is not its descriptor's: layers under the bytes."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

import pytest
from line_service import LineParser, LineService

from protoserve import CommConnection
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.descriptor import NOWHERE
from protoserve.kernel.intake import RECEIVE_SIZE, SMALL_SIZE, Intake
from protoserve.kernel.readiness import READABLE, WRITABLE
from protoserve.kernel.transport import SocketTransport, Transport, plain_descriptor
from protoserve.testing import MemoryEngine


def test_a_layer_says_what_the_poller_s_news_mean(engine: MemoryEngine) -> None:
    """As in a handshake: what arrives is the layer's, and a read goes on when something of the
    layer's could be written."""
    told: list[int] = []
    shaken = False

    def ready(mask: int) -> int:
        told.append(mask)
        if not shaken:
            return 0
        return mask | READABLE if mask & WRITABLE else mask

    service = LineService()
    peer = engine.connect(service, ready=ready)
    peer.send(b"a\n")
    engine.run()
    assert told
    assert peer.reads == 0  # nothing of this is for the parser yet
    shaken = True
    engine.readiness.announce(peer.fd, WRITABLE)
    engine.run()
    assert peer.received == b"a\n"


def test_a_service_may_put_layers_over_its_sockets() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = LineService().new_transport(ours)
        assert isinstance(transport, SocketTransport)
        assert transport.ready is None


@pytest.mark.parametrize(
    "close", [SocketTransport.close, SocketTransport.close_copy, SocketTransport.abort]
)
def test_a_closed_descriptor_is_nobody_s(close: Callable[[SocketTransport], None]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        transport = SocketTransport(ours)
        descriptor = plain_descriptor(transport)
        assert descriptor.number == ours.fileno()
        close(transport)
        assert descriptor.number == -1


class Counting(SocketTransport):
    """A layer of one's own."""


def test_bytes_go_by_way_of_what_was_put_in_between() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert plain_descriptor(Counting(ours)) is NOWHERE
        for name in ("recv", "send"):
            transport = SocketTransport(ours)
            setattr(transport, name, lambda _: 0)
            assert plain_descriptor(transport) is NOWHERE


@pytest.mark.parametrize("how", ["returns None", "raises"])
def test_what_is_pushed_to_a_refused_connection_reaches_nobody_else(how: str) -> None:
    refused: list[CommConnection] = []

    class Picky(LineService):
        def new_connection(
            self, communicator: Communicator, transport: Transport, peername: object
        ) -> CommConnection | None:
            connection = super().new_connection(communicator, transport, peername)
            assert connection is not None
            refused.append(connection)
            if how == "raises":
                raise LookupError
            return None

    ours, theirs = socket.socketpair()
    engine = MemoryEngine()
    service = Picky()
    service.retain()
    number = ours.fileno()
    with theirs, contextlib.suppress(LookupError):
        engine.communicator.attach(SocketTransport(ours), "peer", service)
    other, far = socket.socketpair()
    with other, far:
        if other.fileno() != number:  # who opens next has the number
            os.dup2(other.fileno(), number)
        far.setblocking(False)
        assert not refused[0].push(b"for the refused")
        with pytest.raises(BlockingIOError):
            far.recv(100)
        if other.fileno() != number:
            os.close(number)
    engine.close()


def intake_of(sock: socket.socket) -> Intake:
    transport = SocketTransport(sock)
    return Intake(transport, plain_descriptor(transport), LineParser())


@pytest.mark.parametrize("size", [1, SMALL_SIZE - 1, SMALL_SIZE, SMALL_SIZE + 1, 20_000])
def test_what_came_together_is_read_together(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        intake = intake_of(ours)
        for times in range(3):
            theirs.sendall(b"x" * size)
            data = intake.read()
            assert data == b"x" * size
            assert len(data) < intake.short_read, "that was all of it"
            assert intake.large == (size >= SMALL_SIZE), times
        with pytest.raises(BlockingIOError):
            intake.read()
        theirs.sendall(b"x" * RECEIVE_SIZE)
        theirs.close()
        read = 0
        while data := intake.read():
            read += len(data)
        assert read == RECEIVE_SIZE


def test_what_was_read_comes_before_the_fault_after_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours:
        intake = intake_of(ours)
        theirs.sendall(b"x" * SMALL_SIZE)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()  # a reset
        assert intake.read() == b"x" * SMALL_SIZE
        assert not intake.short_read, "it is to be asked again"
        with pytest.raises(ConnectionResetError):
            intake.read()
