"""Connections with several requests in hand at once (``in_flight`` above 1)."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from line_service import LineSession, later
from word_service import WordService, WordSession

from protoserve import TaskState
from protoserve.testing import MemoryEngine, connection_of


def finish(engine: MemoryEngine, service: WordService) -> None:
    """Nothing keeps the service alive but its listener."""
    assert service.unbound == 0
    service.release()
    engine.run()
    assert service.unbound == 1


def test_replies_go_out_as_they_are_given(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\nd\n")
    engine.run()
    assert service.lines == ["a", "b", "c"]
    for line in ("b", "c", "d", "a"):
        service.of(line).reply()
        engine.run()
    assert bytes(peer.received) == b"b\nc\nd\na\n"
    assert connection_of(service).phase == "KEEPALIVE"


def test_a_message_in_that_raises_closes(engine: MemoryEngine) -> None:
    class Session(WordSession):
        def message_in(self, message: str) -> None:
            super().message_in(message)
            if message == "bad":
                raise ValueError("a fault")

    service = WordService(later, in_flight=3, session=Session)
    peer = engine.connect(service)
    peer.send(b"a\nbad\n")
    engine.run()
    service.of("a").reply()
    engine.run()
    assert bytes(peer.received) == b"a\n"
    engine.advance(3)
    assert peer.closed
    finish(engine, service)


def test_a_fault_after_the_reply_does_not_take_another_s_place(engine: MemoryEngine) -> None:
    """The handler has replied and then raises, while another request is handed over."""

    class Session(WordSession):
        def message_in(self, message: str) -> None:
            super().message_in(message)
            if message == "b":
                raised.append(None)

    raised: list[None] = []

    def handler(session: LineSession) -> None:
        if session.line == "a":
            session.reply()
            engine.communicator.resume(session.connection.entry)  # as another thread would
            raise ValueError("a fault")

    service = WordService(handler, in_flight=3, session=Session)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    assert raised
    service.of("b").reply()
    engine.run()
    engine.advance(3)
    assert bytes(peer.received) == b"a\nb\n"
    assert peer.closed
    finish(engine, service)


def parts(*pieces: bytes | BaseException) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, BaseException):
            raise piece
        yield piece


def test_a_reply_in_pieces_keeps_others_waiting(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    peer = engine.connect(service, room=0)
    peer.send(b"a\nb\nc\n")
    engine.run()
    service.of("a").reply(parts(b"x" * 70_000, b"y" * 70_000))
    service.of("b").reply(parts(b"b", b"bb\n"))
    service.of("c").reply()
    connection_of(service).push(b"news\n")
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"x" * 70_000 + b"y" * 70_000 + b"news\n" + b"bbb\nc\n"
    assert connection_of(service).phase == "KEEPALIVE"
    assert connection_of(service).pending == 0


def test_a_reply_that_fails_midway_ends_those_of_others(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    peer = engine.connect(service, room=10)
    peer.send(b"a\nb\nc\n")
    engine.run()
    a, b, c = service.sessions
    a.reply(parts(b"x" * 70_000, ValueError("a fault")))
    assert b.reply()
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"x" * 70_000
    assert peer.aborted
    assert a.states[-1] == b.states[-1] == (TaskState.SYS_ERROR, errno.EIO)
    assert not c.reply()
    engine.run()
    finish(engine, service)


def test_a_reply_after_another_that_failed_midway_is_not_sent(engine: MemoryEngine) -> None:
    """... while that waits to be taken: the peer would read it as a part of the other."""
    service = WordService(later, in_flight=3)
    peer = engine.connect(service, room=10)
    peer.send(b"a\nb\n")
    engine.run()
    peer.under_way = 5
    a, b = service.sessions
    a.reply(parts(b"x" * 70_000, ValueError("a fault")))
    peer.read()
    engine.run()
    assert not peer.closed
    assert not b.reply()
    peer.under_way = 0
    engine.advance(3)
    assert bytes(peer.received) == b"x" * 70_000
    assert peer.aborted
    finish(engine, service)


def test_a_reply_that_waits_is_sent_when_the_one_before_it_had_no_first_piece(
    engine: MemoryEngine,
) -> None:
    def first(session: LineSession) -> Iterator[Any]:
        service.of("b").reply()
        raise ValueError("a fault")
        yield b""

    service = WordService(later, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    a = service.of("a")
    with pytest.raises(ValueError, match="a fault"):
        a.reply(first(a))
    engine.run()
    assert bytes(peer.received) == b"b\n"
    a.reply(b"a after all\n")
    engine.run()
    assert bytes(peer.received) == b"b\na after all\n"


class Source:
    """An iterator that tells whether it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> bytes:
        return b"never"

    def close(self) -> None:
        self.closed += 1


def test_a_reply_in_pieces_that_waits_is_closed_with_its_connection(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    peer = engine.connect(service, room=0)
    peer.send(b"a\nb\nc\n")
    engine.run()
    a, b, c = service.sessions
    a.reply(parts(b"x" * 70_000, b"y"))
    source = Source()
    b.reply(source)
    c.reply()
    peer.reset()
    engine.run()
    assert source.closed == 1
    assert [s.states[1:] for s in (a, b, c)] == [[(TaskState.SYS_ERROR, errno.ECONNRESET)]] * 3
    finish(engine, service)


def test_a_handler_that_pushed_and_gave_up_ends_the_reply_of_another(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    peer = engine.connect(service, room=10)
    peer.send(b"a\nb\n")
    engine.run()
    a, b = service.sessions
    source = Source()
    a.reply(source)
    engine.run()
    engine.communicator.abandon(b)
    peer.read()
    engine.advance(3)
    assert peer.aborted
    assert source.closed == 1
    assert [state for state, _ in a.states] == [TaskState.TOREPLY, TaskState.SYS_ERROR]
    finish(engine, service)


def test_a_body_that_is_arriving_is_its_own_request_s(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"a\nbody 5 b\nx")
    engine.run()
    a, b = service.sessions
    a.reply()
    peer.send(b"yzzy")
    engine.run()
    assert bytes(peer.received) == b"a\n"
    assert not peer.eof
    assert b.body.read() == b"xyzzy"
    b.reply()
    engine.run()
    assert bytes(peer.received) == b"a\nbody 5 b\n"
    assert connection_of(service).phase == "KEEPALIVE"


def test_a_body_nobody_reads_is_not_taken_in_without_end(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3, request_size_limit=None)
    peer = engine.connect(service)
    peer.send(b"body 9000000 b\n" + b"z" * 8_000_000)
    engine.run()
    assert peer.unread > 6_000_000


def test_the_reader_of_a_body_learns_that_its_peer_left(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"body 10 b\nxyz")
    peer.shutdown()
    engine.run()
    (session,) = service.sessions
    with pytest.raises(ConnectionResetError):
        session.body.read()
    session.reply(b"no\n")
    engine.run()
    assert bytes(peer.received) == b"no\n"
    assert peer.closed
    finish(engine, service)


def test_sessions_are_told_after_their_handler(engine: MemoryEngine) -> None:
    """Never two calls of a session at once: nor one within the other."""
    within: list[str] = []

    def handler(session: LineSession) -> None:
        session.reply()
        within.extend(state.name for state, _ in session.states[1:])

    service = WordService(handler, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    assert bytes(peer.received) == b"a\nb\n"
    assert within == []
    assert all(len(session.states) == 2 for session in service.sessions)


def test_an_upgrade_waits_for_the_replies_before_it(engine: MemoryEngine) -> None:
    service = WordService(later, in_flight=3)
    other = WordService()
    peer = engine.connect(service)
    peer.send(b"a\nhold b\nc\n")
    engine.run()
    assert service.lines == ["a", "hold b"]
    connection_of(service).entry.exchanges.upgrade = other
    service.of("hold b").reply()
    engine.run()
    assert other.lines == []
    service.of("a").reply()
    engine.run()
    assert bytes(peer.received) == b"hold b\na\nc\n"
    assert other.lines == ["c"]
    peer.reset()
    engine.run()
    finish(engine, service)


def test_a_request_that_stalls_behind_one_with_a_body_runs_out_of_time(
    engine: MemoryEngine,
) -> None:
    """... whether that has been answered or not."""
    for reply in (True, False):
        service = WordService(later, in_flight=3, peer_response_timeout=10)
        peer = engine.connect(service)
        peer.send(b"body 2 a\nxyhalf")
        engine.run()
        if reply:
            service.sessions[0].reply()
        engine.advance(9)
        assert connection_of(service).entry.deadline.limit.name == "RECEIVE"
        engine.advance(2)
        if not reply:
            service.sessions[0].reply()
        engine.run()
        assert bytes(peer.received) == b"body 2 a\nTIMEOUT\n"
        engine.advance(3)
        assert peer.closed


@pytest.mark.parametrize("sent", [("b\n",), ("whole 1 b\n", "x")], ids=["plain", "collected"])
def test_a_handler_that_returns_while_another_thread_goes_on_leaves_it_the_connection(
    engine: MemoryEngine, sent: tuple[str, ...]
) -> None:
    """That one tells a session of its end, and nobody else does meanwhile."""
    telling = threading.Event()
    told = threading.Event()
    order: list[str] = []

    def on_result(session: LineSession) -> None:
        if session.line == "a":
            telling.set()
            assert told.wait(60)
        order.append(session.line)

    def handler(session: LineSession) -> None:
        if session.line == line:
            other.start()
            assert telling.wait(60)
            session.reply()

    service = WordService(handler, in_flight=3)
    service.on_result = on_result
    other = threading.Thread(target=lambda: service.of("a").reply())
    line = sent[0].strip()
    peer = engine.connect(service)
    for data in ("a\n", *sent[:-1], sent[-1] + "c\n"):
        peer.send(data.encode())
        engine.run()
    meanwhile = (service.lines, order[:])
    told.set()
    other.join()
    engine.run()
    assert meanwhile == (["a", line], [])
    assert order == ["a", line]
    assert service.lines == ["a", line, "c"]
    service.of("c").reply()
    engine.run()
    assert bytes(peer.received) == f"a\n{line}\nc\n".encode()


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("answered", [False, True])
def test_an_end_after_a_part_of_a_reply_is_a_reset(
    engine: MemoryEngine, in_flight: int, answered: bool
) -> None:
    service = WordService(later, in_flight=in_flight)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    conn = connection_of(service)
    a = service.of("a")
    assert conn.communicator.push(conn.entry, b"a part, ", a)
    if answered:
        a.reply()
    if in_flight > 1:
        service.of("b").reply()
    engine.run()
    conn.close()
    engine.run()
    assert peer.received.startswith(b"a part, ")
    assert peer.closed
    assert peer.aborted is not answered
