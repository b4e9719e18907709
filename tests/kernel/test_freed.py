"""What closed is freed at once, by counting references alone."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from line_service import LineSession, echo, later
from word_service import WordService

from protoserve.testing import MemoryEngine, MemoryPeer, connection_of


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps exceptions, with their frames
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


def pieces(session: LineSession) -> None:
    session.reply(iter([b"x" * 70_000, b"y"]))


def cut(session: LineSession) -> None:
    """It fails midway."""

    def pieces() -> Iterator[bytes]:
        yield b"x"
        raise ValueError("a fault")

    session.reply(pieces())


def body(session: Any) -> None:
    if session.body is not None:
        while session.body.pull(lambda: None):
            continue


def answer_all(service: WordService) -> None:
    for session in service.sessions:
        if session.connection.entry.exchanges.awaits(session):
            session.reply()


Deed = Callable[[MemoryEngine, WordService, MemoryPeer], object]


def half(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    peer.send(b"half")
    engine.run()
    peer.reset()


def left_callbacks(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    conn = connection_of(service)
    conn.context = [conn.on_close(lambda c: None), conn.on_peer_end(lambda c: None)]
    del conn
    peer.reset()


def slow(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    peer.send(b"whole 5 a\n")
    engine.advance(1000)
    peer.shutdown()


def refused(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    peer.send(b"!no\n")
    engine.run()
    peer.shutdown()


def body_left(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    peer.send(b"body 5 a\nx")
    engine.run()
    peer.shutdown()
    engine.run()
    for session in service.sessions:
        with contextlib.suppress(ConnectionResetError):
            session.body.read()  # type: ignore[attr-defined]
    answer_all(service)


def unread_body(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    peer.send(b"body 5 a\nx")
    engine.run()
    answer_all(service)
    peer.reset()


def stopped(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    peer.send(b"a\n")
    engine.run()
    service.stopping = True
    for conn in service.connections():
        conn.close()


def unanswered(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    peer.send(b"a\nb\nc\n")
    engine.run()
    peer.reset()
    engine.run()
    answer_all(service)


def upgraded(engine: MemoryEngine, service: WordService, peer: MemoryPeer) -> None:
    connection_of(service).entry.exchanges.upgrade = other = WordService()
    peer.send(b"a\nb\n")
    engine.run()
    answer_all(service)
    engine.run()
    other.sessions.clear()
    peer.reset()


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("handler", [echo, later, pieces, cut, body])
@pytest.mark.parametrize(
    "deed",
    [half, left_callbacks, slow, refused, body_left, unread_body, stopped, unanswered, upgraded],
)
def test_a_closed_connection_is_freed_at_once(
    engine: MemoryEngine,
    deed: Deed,
    handler: Any,
    in_flight: int,
) -> None:
    if handler is not later and deed in (body_left, unread_body, unanswered):
        handler = later
    service = WordService(handler, in_flight=in_flight)
    peer = engine.connect(service)
    engine.run()
    conn = connection_of(service)
    parts = [weakref.ref(conn), weakref.ref(conn.parser)]  # the latter goes with the entry
    del conn
    deed(engine, service, peer)
    engine.run()
    engine.advance(5000)
    answer_all(service)
    engine.advance(5000)
    assert peer.closed
    service.sessions.clear()
    service.parsers.clear()
    peer._gone = None  # an error that was raised, with its frames
    assert [part() for part in parts] == [None, None]
    service.release()
    assert service.unbound == 1
