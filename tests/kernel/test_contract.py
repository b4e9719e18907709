"""What a protocol may say beyond requests and replies: each name of the contract, in memory."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from line_service import LineParser, LineService, LineSession, echo, later

from protoserve import (
    HOLD,
    NEED_DATA,
    Arriving,
    CloseReason,
    CommConnection,
    Feedback,
    IncomingStream,
    ProtocolError,
    TaskState,
    UsageError,
)
from protoserve.kernel.deadline import FIRST
from protoserve.kernel.ending import evict
from protoserve.kernel.readiness import GONE, HANGUP, READABLE
from protoserve.kernel.waiting import FIRST_REQUEST_TIME, stop_connection
from protoserve.testing import MemoryEngine, MemoryPeer, connection_of


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


class Service(LineService):
    """A service that says something first, and last."""

    def __init__(
        self,
        handler: Callable[[LineSession], object] = echo,
        *,
        greeting: Any = b"",
        farewell: Any = b"",
        in_flight: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(handler, **options)
        self.says_first = greeting
        self.says_last = farewell
        self.in_flight = in_flight
        self.farewells: list[CloseReason] = []

    def greeting(self, conn: CommConnection) -> Any:
        return self.says_first(conn) if callable(self.says_first) else self.says_first

    def farewell(self, conn: CommConnection, reason: CloseReason) -> Any:
        self.farewells.append(reason)
        if callable(self.says_last):
            return self.says_last(conn, reason)
        return self.says_last


def stop(service: LineService) -> None:
    """What a server does to its connections when it stops."""
    service.stopping = True
    for conn in service.connections():
        stop_connection(conn.entry)


def finish(engine: MemoryEngine, service: LineService) -> None:
    """The listener goes: nothing else may keep the service alive, or have ended it."""
    assert service.unbound == 0
    service.release()
    engine.run()
    assert service.unbound == 1


def leave(engine: MemoryEngine, peer: MemoryPeer) -> None:
    peer.shutdown()
    engine.run()
    assert peer.closed


# -- the greeting --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "sent"),
    [
        (b"hello\n", b"hello\n"),
        ([b"hel", b"", bytearray(b"lo"), memoryview(b"\n")], b"hello\n"),
        ((b"hello", b"\n"), b"hello\n"),
        (memoryview(b"hello\n"), b"hello\n"),
        (b"", b""),
        ([], b""),
        (None, b""),
    ],
)
def test_greeting(engine: MemoryEngine, word: Any, sent: bytes) -> None:
    service = Service(greeting=word)
    peer = engine.connect(service)
    assert bytes(peer.received) == sent  # before it has asked for anything
    engine.run()
    assert bytes(peer.received) == sent
    peer.send(b"a\nb\n")
    engine.run()
    assert bytes(peer.received) == sent + b"a\nb\n"
    leave(engine, peer)
    finish(engine, service)


def test_it_is_counted_and_watched_and_timed_before_it_is_greeted(engine: MemoryEngine) -> None:
    def greet(conn: CommConnection) -> bytes:
        assert conn in service.connections()
        assert conn.entry.attached
        assert conn.entry.deadline.limit is FIRST
        assert conn.phase == "CONNECTED"
        seen.append(conn)
        return b"hello\n"

    seen: list[CommConnection] = []
    service = Service(greeting=greet)
    peer = engine.connect(service)
    assert seen == service.connections()
    assert bytes(peer.received) == b"hello\n"
    engine.advance(10)
    assert service.reasons == ["no request came"]


def test_the_greeting_sets_the_state_that_requests_find(engine: MemoryEngine) -> None:
    def greet(conn: CommConnection) -> bytes:
        conn.state = {"asked": 0}
        conn.context = "the application's"
        return b"hello\n"

    def count(session: LineSession) -> None:
        state = session.connection.state
        state["asked"] += 1
        session.reply(b"%d\n" % state["asked"])

    service = Service(count, greeting=greet)
    peers = [engine.connect(service, number) for number in range(2)]
    for peer in peers:
        peer.send(b"a\nb\n")
    engine.run()
    assert [bytes(peer.received) for peer in peers] == [b"hello\n1\n2\n"] * 2
    assert {conn.context for conn in service.connections()} == {"the application's"}
    assert service.connections()[0].state is not service.connections()[1].state


def odd_greeting(what: str) -> Callable[[CommConnection], Any]:
    def greet(conn: CommConnection) -> Any:
        if what == "raises":
            raise ValueError("a fault")
        if what == "exits":
            raise SystemExit
        if what == "pushes":
            conn.push(b"hello\n")
        if what == "sets times":
            conn.set_timeout(keep_alive=5)
        if what == "waits":
            conn.drained()
        return "hello\n" if what == "text" else [b"hello\n", "text"]

    return greet


@pytest.mark.parametrize(
    "what", ["raises", "exits", "pushes", "sets times", "waits", "text", "list"]
)
def test_a_greeting_that_fails_ends_its_connection_only(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    closed: list[CommConnection] = []
    odd = odd_greeting(what)

    def greet(conn: CommConnection) -> Any:
        conn.on_close(closed.append)
        return odd(conn) if conn.peername == "odd" else b"hello\n"

    service = Service(greeting=greet)
    peer = engine.connect(service, "odd")
    peer.send(b"a\n")
    other = engine.connect(service, "other")
    other.send(b"a\n")
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"", True)
    assert bytes(other.received) == b"hello\na\n"
    peer.shutdown()
    engine.run()
    assert service.reasons == ["the protocol's own code failed: the greeting failed"]
    assert len(closed) == 1
    assert len(errors(caplog)) == 1
    assert "the greeting failed" in errors(caplog)[0]
    leave(engine, other)
    finish(engine, service)


def test_a_greeting_may_close(engine: MemoryEngine) -> None:
    def greet(conn: CommConnection) -> bytes:
        conn.close()
        return b"go away\n"

    service = Service(greeting=greet)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"go away\n", True)
    assert (service.lines, service.reasons) == ([], ["closed by the server"])
    finish(engine, service)


def test_a_greeting_that_does_not_fit_is_waited_for(engine: MemoryEngine) -> None:
    service = Service(greeting=b"hello\n", peer_response_timeout=10)
    peer = engine.connect(service, room=2)
    peer.send(b"a\n")
    engine.run()
    assert connection_of(service).pending >= 4
    engine.advance(9)
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"hello\na\n"


def test_time_for_the_first_request_begins_when_the_greeting_is_out(engine: MemoryEngine) -> None:
    service = Service(greeting=b"hello\n", peer_response_timeout=10)
    peer = engine.connect(service, room=2)
    engine.advance(9)
    peer.read()
    engine.advance(9)
    assert not peer.eof
    engine.advance(1)
    assert peer.eof
    assert service.reasons == ["no request came"]


def test_a_greeting_that_is_not_taken(engine: MemoryEngine) -> None:
    service = Service(greeting=b"hello\n", farewell=b"bye\n", peer_response_timeout=10)
    peer = engine.connect(service, room=2)
    engine.advance(10)
    assert (bytes(peer.received), peer.aborted) == (b"he", True)
    assert service.reasons == ["the peer did not take the reply in time"]
    assert service.farewells == []  # it would be taken for the rest of the greeting
    finish(engine, service)


def test_a_peer_that_resets_before_the_greeting(engine: MemoryEngine) -> None:
    class Late(Service):
        def new_connection(self, *args: Any) -> CommConnection:
            conn = super().new_connection(*args)
            conn.entry.transport.peer.reset()  # type: ignore[attr-defined]
            return conn

    service = Late(greeting=b"hello\n")
    peer = engine.connect(service)
    engine.run()
    assert peer.closed
    assert service.reasons == ["the peer is gone: Connection reset by peer"]
    finish(engine, service)


def test_nothing_that_is_pushed_comes_before_the_greeting(engine: MemoryEngine) -> None:
    """Who pushes to all connections sees one as soon as it is counted."""

    class Public(Service):
        def add_connection(self, conn: CommConnection) -> None:
            super().add_connection(conn)
            thread = threading.Thread(target=conn.push, args=(b"news\n",))
            thread.start()
            thread.join(0.05)
            self.thread = thread

    service = Public(greeting=b"hello\n")
    peer = engine.connect(service)
    service.thread.join()
    engine.run()
    assert bytes(peer.received) == b"hello\nnews\n"


def test_what_is_pushed_before_it_is_asked_for_its_greeting_is_one_that_was_held(
    engine: MemoryEngine,
) -> None:
    class Public(Service):
        def add_connection(self, conn: CommConnection) -> None:
            super().add_connection(conn)
            assert conn.push(b"hello\n")
            assert (conn.pending, closing) == (6, [])
            if closing_first:
                closing.append(conn)
                conn.close()

    closing: list[CommConnection] = []
    closing_first = False
    service = Public(greeting=HOLD)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"hello\na\n"
    leave(engine, peer)
    closing_first = True
    peer = engine.connect(service)
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"", True)
    assert closing[0].pending == 0
    finish(engine, service)


# -- a greeting that comes later -----------------------------------------------------------


def test_nothing_is_read_before_the_greeting_that_was_held(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    assert (peer.reads, service.lines, bytes(peer.received)) == (0, [], b"")
    assert connection_of(service).phase == "CONNECTED"
    assert connection_of(service).push(b"hello\n")
    engine.run()
    assert bytes(peer.received) == b"hello\na\nb\n"
    connection_of(service).push(b"news\n")
    peer.send(b"c\n")
    engine.run()
    assert bytes(peer.received) == b"hello\na\nb\nnews\nc\n"
    leave(engine, peer)
    finish(engine, service)


def test_a_held_greeting_may_be_empty(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert connection_of(service).push(b"")
    engine.run()
    assert bytes(peer.received) == b"a\n"


def test_a_push_in_new_connection_is_not_the_held_greeting(engine: MemoryEngine) -> None:
    class Early(Service):
        def new_connection(self, *args: Any) -> CommConnection:
            conn = super().new_connection(*args)
            conn.push(b"welcome\n")
            return conn

    service = Early(greeting=HOLD)
    peer = engine.connect(service, room=3)
    peer.send(b"a\n")
    engine.run()
    peer.read()
    engine.run()
    assert (peer.reads, bytes(peer.received)) == (0, b"welcome\n")
    connection_of(service).push(b"hello\n")
    engine.run()
    assert bytes(peer.received) == b"welcome\nhello\na\n"


def test_a_held_greeting_that_does_not_fit(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD)
    peer = engine.connect(service, room=2)
    peer.send(b"a\n")
    engine.run()
    connection_of(service).push(b"hello\n")
    engine.run()
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"hello\na\n"


@pytest.mark.parametrize("word", [b"", b"bye\n"])
@pytest.mark.parametrize("unread", [b"", b"a\n"])
def test_a_held_greeting_that_never_comes(
    engine: MemoryEngine, word: bytes, unread: bytes
) -> None:
    service = Service(greeting=HOLD, farewell=word, peer_response_timeout=10)
    closed: list[CommConnection] = []
    peer = engine.connect(service)
    connection_of(service).on_close(closed.append)
    peer.send(unread)
    engine.advance(9.9)
    assert not peer.eof
    engine.advance(0.1)
    assert (bytes(peer.received), peer.eof) == (word, True)
    engine.advance(2)
    assert peer.closed
    assert service.farewells == [CloseReason.NO_REQUEST]
    assert len(closed) == 1
    assert (service.lines, len(service.ends)) == ([], 1)
    finish(engine, service)


@pytest.mark.parametrize("word", [b"", b"bye\n"])
@pytest.mark.parametrize("unread", [b"", b"a\n"])
@pytest.mark.parametrize("age", [0.0, 1.0])
def test_a_stop_before_the_held_greeting(
    engine: MemoryEngine, word: bytes, unread: bytes, age: float
) -> None:
    service = Service(greeting=HOLD, farewell=word)
    peer = engine.connect(service)
    peer.send(unread)
    engine.advance(age)
    stop(service)
    engine.run()
    if age < FIRST_REQUEST_TIME:
        assert not peer.eof  # it has only just come
    engine.advance(max(0.0, FIRST_REQUEST_TIME - age))
    assert (bytes(peer.received), peer.eof) == (word, True)
    if word:
        leave(engine, peer)
    assert service.reasons == ["the server stopped"]
    assert service.farewells == [CloseReason.SERVER_STOPPED]
    finish(engine, service)


def test_a_held_greeting_that_comes_while_the_server_stops(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD, farewell=b"bye\n")
    peer = engine.connect(service)
    stop(service)
    engine.run()
    connection_of(service).push(b"hello\n")
    engine.run()
    assert bytes(peer.received) == b"hello\nbye\n"
    leave(engine, peer)
    assert service.reasons == ["the server stopped"]
    finish(engine, service)


def test_one_whose_greeting_is_held_may_make_room(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD, farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.advance(2)
    assert evict(connection_of(service).entry, None)
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"bye\n", True)
    assert service.reasons == ["made room for another"]
    finish(engine, service)


def test_a_peer_that_goes_before_the_held_greeting_is_missed(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD, farewell=b"bye\n")
    closed: list[CommConnection] = []
    peer = engine.connect(service)
    connection_of(service).on_close(closed.append)
    peer.send(b"a\n")
    engine.run()
    peer.reset()
    engine.readiness.announce(peer.fd, READABLE | HANGUP | GONE)
    engine.run()
    assert len(closed) == 1
    assert service.reasons == ["the peer is gone"]
    assert (service.lines, service.farewells) == ([], [])
    finish(engine, service)


def test_a_half_closed_client_waits_for_the_held_greeting(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    peer.shutdown()
    engine.run()
    assert not peer.closed
    connection_of(service).push(b"hello\n")
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"hello\na\nb\n", True)
    finish(engine, service)


def test_closing_instead_of_the_held_greeting(engine: MemoryEngine) -> None:
    service = Service(greeting=HOLD, farewell=b"bye\n")
    peer = engine.connect(service)
    conn = connection_of(service)
    conn.close()
    engine.run()
    assert peer.closed
    assert not conn.push(b"hello\n")
    assert (service.reasons, service.farewells) == (["closed by the server"], [])
    finish(engine, service)


class LeavingParser(LineParser):
    """Holds back after the line ``up``, after which another protocol follows."""

    up = False

    def next_message(self) -> Any:
        if self.up:
            self.up = False
            return HOLD
        message = super().next_message()
        self.up = message == "up"
        return message

    def leftover(self) -> bytes:
        return self.held[self.at :]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("rest", [b"", b"a\nb\n", b"a\nb"])
def test_a_held_greeting_after_an_upgrade(engine: MemoryEngine, slow: bool, rest: bytes) -> None:
    def process(session: LineSession) -> None:
        session.connection.entry.exchanges.upgrade = other
        if not slow:
            session.reply(b"yes\n")
        # Something comes while nobody holds the connection's lock.
        peer.send(b"")

    other = Service(greeting=HOLD)
    service = Service(process, parser=LeavingParser)
    peer = engine.connect(service)
    peer.send(b"up\n" + rest)
    engine.run()
    if slow:
        service.sessions[0].reply(b"yes\n")
    peer.send(b"c\n")
    engine.advance(1)
    assert (bytes(peer.received), other.lines) == (b"yes\n", [])
    connection_of(service).push(b"hello\n")
    engine.run()
    assert bytes(peer.received) == b"yes\nhello\n" + rest + b"c\n"


def test_the_other_protocols_held_greeting_never_comes(engine: MemoryEngine) -> None:
    def process(session: LineSession) -> None:
        session.connection.entry.exchanges.upgrade = other
        session.reply(b"yes\n")

    other = Service(greeting=HOLD, farewell=b"bye\n", keep_alive_timeout=5)
    service = Service(process, parser=LeavingParser)
    peer = engine.connect(service)
    peer.send(b"up\na\n")
    engine.run()
    peer.send(b"b\n")
    engine.advance(60)
    assert (bytes(peer.received), peer.closed) == (b"yes\nbye\n", True)
    assert (other.lines, other.farewells, peer.unread) == ([], [CloseReason.IDLE], 0)
    finish(engine, service)


# -- the farewell --------------------------------------------------------------------------


def test_farewell_when_no_request_came(engine: MemoryEngine) -> None:
    service = Service(farewell=b"bye\n", peer_response_timeout=10)
    peer = engine.connect(service)
    engine.advance(10)
    assert (bytes(peer.received), peer.eof) == (b"bye\n", True)
    leave(engine, peer)
    assert service.farewells == [CloseReason.NO_REQUEST]
    assert service.reasons == ["no request came"]
    finish(engine, service)


def test_farewell_when_idle(engine: MemoryEngine) -> None:
    service = Service(farewell=b"bye\n", keep_alive_timeout=5)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.advance(5)
    assert (bytes(peer.received), peer.eof) == (b"a\nb\nbye\n", True)
    leave(engine, peer)
    assert service.farewells == [CloseReason.IDLE]
    assert service.reasons == ["the keep-alive time has passed"]
    finish(engine, service)


@pytest.mark.parametrize("before", [b"", b"a\nb\n"])
def test_farewell_when_a_request_is_too_slow(engine: MemoryEngine, before: bytes) -> None:
    service = Service(farewell=b"bye\n", receive_timeout=5, receive_rate=None)
    peer = engine.connect(service)
    peer.send(before + b"c")
    engine.advance(5)
    assert (bytes(peer.received), peer.eof) == (before + b"bye\n", True)
    leave(engine, peer)
    assert service.farewells == [CloseReason.REQUEST_TOO_SLOW]
    assert service.reasons == ["the request did not arrive in time"]
    finish(engine, service)


@pytest.mark.parametrize("before", [b"", b"a\nb\n"])
def test_farewell_when_the_server_stops(engine: MemoryEngine, before: bytes) -> None:
    service = Service(farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(before)
    engine.advance(1)
    stop(service)
    engine.run()
    assert (bytes(peer.received), peer.eof) == (before + b"bye\n", True)
    leave(engine, peer)
    assert service.farewells == [CloseReason.SERVER_STOPPED]
    assert service.reasons == ["the server stopped"]
    finish(engine, service)


@pytest.mark.parametrize("before", [b"", b"a\nb\n"])
def test_farewell_to_make_room(engine: MemoryEngine, before: bytes) -> None:
    service = Service(farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(before)
    engine.advance(2)
    entry = connection_of(service).entry
    assert evict(entry, entry.deadline.idle_since if before else None)
    engine.run()
    assert (bytes(peer.received), peer.closed) == (before + b"bye\n", True)
    assert service.farewells == [CloseReason.MADE_ROOM]
    assert service.reasons == ["made room for another"]
    finish(engine, service)


@pytest.mark.parametrize("before", [b"", b"a\n"])
def test_one_that_has_sent_something_this_moment_does_not_make_room(
    engine: MemoryEngine, before: bytes
) -> None:
    service = Service(farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(before)
    engine.advance(2)
    entry = connection_of(service).entry
    idle_since = entry.deadline.idle_since if before else None
    peer.send(b"b\n")  # lies in the system, and nobody has looked
    assert not evict(entry, idle_since)
    engine.run()
    assert bytes(peer.received) == before + b"b\n"
    assert service.farewells == []


def test_what_came_in_time_is_served_before_the_farewell(engine: MemoryEngine) -> None:
    service = Service(farewell=b"bye\n")
    peer = engine.connect(service)
    engine.advance(1)
    stop(service)
    peer.send(b"a\nb\n")  # it crosses the stop
    engine.run()
    assert bytes(peer.received) == b"a\nb\nbye\n"
    assert service.reasons == []
    leave(engine, peer)
    assert service.reasons == ["the server stopped"]


def test_pipelined_requests_are_answered_before_the_farewell(engine: MemoryEngine) -> None:
    service = Service(later, farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\n")
    engine.advance(1)
    stop(service)
    for number in range(3):
        engine.run()
        assert service.farewells == []
        service.sessions[number].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"a\nb\nc\nbye\n", True)
    assert service.farewells == [CloseReason.SERVER_STOPPED]


def test_a_half_closed_client_gets_its_replies_and_no_farewell(engine: MemoryEngine) -> None:
    service = Service(later, farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    peer.shutdown()
    engine.advance(1)
    stop(service)
    for number in range(2):
        engine.run()
        service.sessions[number].reply()
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"a\nb\n", True)
    assert (service.farewells, service.reasons) == ([], ["the peer closed"])
    finish(engine, service)


@pytest.mark.parametrize("how", ["close", "last reply", "noreply", "protocol error", "reset"])
def test_no_farewell_where_the_server_does_not_end_it_by_itself(
    engine: MemoryEngine, how: str
) -> None:
    def process(session: LineSession) -> None:
        if how == "close":
            session.connection.close()
        if how == "last reply":
            session.keep_alive = 0
        if how == "noreply":
            session.end()
        else:
            session.reply()

    service = Service(process, farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(b"!\n" if how == "protocol error" else b"a\n")
    if how == "reset":
        peer.reset()
    engine.run()
    assert service.farewells == []
    assert not bytes(peer.received).endswith(b"bye\n")


def test_what_is_sent_after_the_farewell_is_taken_in(engine: MemoryEngine) -> None:
    service = Service(farewell=b"bye\n", keep_alive_timeout=5)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.advance(5)
    peer.send(b"b\nc\n" * 10_000)
    engine.run()
    assert (peer.unread, service.lines, peer.closed) == (0, ["a"], False)
    engine.advance(2)
    assert peer.closed
    assert not peer.aborted


def test_a_farewell_that_does_not_fit(engine: MemoryEngine) -> None:
    service = Service(farewell=b"bye\n", keep_alive_timeout=5)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    peer.read(2)
    peer.room = 2
    engine.advance(5)
    assert (bytes(peer.received), peer.eof) == (b"a\nby", False)
    peer.read()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"a\nbye\n", True)


def reason_of(engine: MemoryEngine, service: Service, reason: CloseReason) -> MemoryPeer:
    """Have a connection ended for this reason."""
    peer = engine.connect(service)
    if reason is not CloseReason.NO_REQUEST:
        peer.send(b"a\n")
    engine.advance(1)
    if reason is CloseReason.REQUEST_TOO_SLOW:
        peer.send(b"b")
    if reason is CloseReason.SERVER_STOPPED:
        stop(service)
    if reason is CloseReason.MADE_ROOM:
        entry = connection_of(service).entry
        assert evict(entry, entry.deadline.idle_since)
    engine.advance(60)
    return peer


REASONS = [
    CloseReason.NO_REQUEST,
    CloseReason.IDLE,
    CloseReason.REQUEST_TOO_SLOW,
    CloseReason.SERVER_STOPPED,
    CloseReason.MADE_ROOM,
]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("odd", ["raises", "exits", "pushes", "text", "list of text"])
def test_a_farewell_that_fails_ends_the_connection_without_a_word(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture, reason: CloseReason, odd: str
) -> None:
    def farewell(conn: CommConnection, why: CloseReason) -> Any:
        assert why is reason
        if odd == "raises":
            raise ValueError("a fault")
        if odd == "exits":
            raise SystemExit
        if odd == "pushes":
            conn.push(b"bye\n")
        return "bye\n" if odd == "text" else ["bye\n"]

    service = Service(farewell=farewell)
    peer = reason_of(engine, service, reason)
    assert peer.closed
    assert bytes(peer.received) == (b"" if reason is CloseReason.NO_REQUEST else b"a\n")
    assert service.reasons == [str(reason)]
    assert len(errors(caplog)) == 1
    assert "farewell" in errors(caplog)[0]
    finish(engine, service)


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("empty", [b"", None])
def test_no_word_at_all(engine: MemoryEngine, reason: CloseReason, empty: Any) -> None:
    service = Service(farewell=empty)
    peer = reason_of(engine, service, reason)
    assert peer.closed
    assert bytes(peer.received) == (b"" if reason is CloseReason.NO_REQUEST else b"a\n")
    assert service.reasons == [str(reason)]
    finish(engine, service)


@pytest.mark.parametrize("reason", REASONS)
def test_a_farewell_with_facts(engine: MemoryEngine, reason: CloseReason) -> None:
    seen: list[Any] = []
    word = ProtocolError("too bad", reply=b"bye\n", summary={"status": 421})
    service = Service(farewell=lambda conn, why: word)
    service.subscribe(seen.append)
    peer = reason_of(engine, service, reason)
    assert bytes(peer.received).endswith(b"bye\n")
    refused = [event for event in seen if type(event).__name__ == "RequestRefused"]
    if reason is CloseReason.REQUEST_TOO_SLOW:
        assert [(event.message, event.summary) for event in refused] == [
            ("too bad", {"status": 421})
        ]
    else:
        assert refused == []


def test_the_farewell_sees_the_state(engine: MemoryEngine) -> None:
    def greet(conn: CommConnection) -> bytes:
        conn.state = "greeted"
        return b"hello\n"

    service = Service(greeting=greet, farewell=lambda conn, why: conn.state.encode() + b"\n")
    peer = engine.connect(service)
    engine.advance(10)
    assert bytes(peer.received) == b"hello\ngreeted\n"


# -- one way, and many ---------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [b"", bytearray(), memoryview(b""), [], (), [b"", b""]])
def test_an_empty_reply_sends_nothing_and_keeps_the_order(
    engine: MemoryEngine, nothing: Any
) -> None:
    def process(session: LineSession) -> None:
        session.reply(nothing if session.line.startswith("-") else None)

    service = Service(process)
    results: list[str] = []
    service.on_result = lambda session: results.append(session.line)
    peer = engine.connect(service)
    peer.send(b"-1\na\n-2\n-3\nb\n-4\n")
    engine.run()
    assert bytes(peer.received) == b"a\nb\n"
    assert results == ["-1", "a", "-2", "-3", "b", "-4"]
    assert all(session.states[-1] == (TaskState.SUCCESS, 0) for session in service.sessions)
    peer.send(b"-5\n")
    engine.run()
    sends = peer.sends
    engine.advance(1)
    assert (results[-1], peer.sends) == ("-5", sends)
    leave(engine, peer)
    finish(engine, service)


def test_an_empty_reply_waits_for_those_before_it(engine: MemoryEngine) -> None:
    service = Service(lambda session: session.reply(b"" if session.line == "-" else None))
    results: list[str] = []
    service.on_result = lambda session: results.append(session.line)
    peer = engine.connect(service, room=1)
    peer.send(b"a\n-\n")
    engine.run()
    assert results == []
    peer.read()
    engine.run()
    assert results == ["a", "-"]


def test_only_empty_replies_keep_a_connection(engine: MemoryEngine) -> None:
    service = Service(lambda session: session.reply(b""), keep_alive_timeout=5)
    peer = engine.connect(service)
    for _ in range(10):
        engine.advance(4)
        peer.send(b"a\n")
    engine.advance(4.9)
    assert not peer.closed
    engine.advance(0.1)
    assert (peer.closed, bytes(peer.received)) == (True, b"")


def test_a_last_empty_reply_closes(engine: MemoryEngine) -> None:
    def process(session: LineSession) -> None:
        session.keep_alive = 0
        session.reply(b"")

    service = Service(process)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert peer.closed
    assert service.reasons == ["the reply was the last"]
    finish(engine, service)


def test_a_reply_of_several_messages(engine: MemoryEngine) -> None:
    def process(session: LineSession) -> None:
        session.reply([b"%d\n" % number for number in range(int(session.line))])

    service = Service(process)
    peer = engine.connect(service)
    peer.send(b"3\n0\n2\n")
    engine.run()
    assert bytes(peer.received) == b"0\n1\n2\n0\n1\n"
    assert service.ends == []


# -- HOLD ----------------------------------------------------------------------------------


class HoldingParser(LineParser):
    """After the line ``data`` it says HOLD, once; then what follows is read by the reply to
    that: a block up to a line ``.``, or lines. It knows how often it was asked too early."""

    def __init__(self, farewell: Any = b"") -> None:
        super().__init__(farewell)
        self.held_back = False
        self.asks = 0
        self.answered = False
        """Set by the handler with its reply: a block follows."""
        self.early = 0
        self.waiting = False

    def next_message(self) -> Any:
        self.asks += 1
        if self.held_back:
            self.held_back = False
            self.waiting = True
            return HOLD
        if self.waiting:
            self.waiting = False
            if not self.answered:
                self.early += 1
        if self.answered:
            end = self.held.find(b"\n.\n", self.at)
            if end < 0:
                return NEED_DATA
            block = self.held[self.at : end]
            self.at = end + 3
            self.answered = False
            return "<" + block.decode().replace("\n", "|") + ">"
        message = super().next_message()
        if message == "data":
            self.held_back = True
        return message


def give(session: LineSession) -> None:
    """The reply after which a block follows."""
    session.connection.parser.answered = True  # type: ignore[attr-defined]
    session.reply(b"go on\n")


def on_data(session: LineSession) -> None:
    if session.line == "data":
        give(session)
    else:
        session.reply()


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_hold_lets_the_reply_decide_how_the_rest_is_read(
    engine: MemoryEngine, pieces: int
) -> None:
    service = Service(on_data, parser=HoldingParser)
    peer = engine.connect(service)
    data = b"a\ndata\nx\ny\n.\nb\ndata\nz\n.\n"
    for at in range(0, len(data), max(1, len(data) // pieces)):
        peer.send(data[at : at + max(1, len(data) // pieces)])
        engine.run()
    assert bytes(peer.received) == b"a\ngo on\n<x|y>\nb\ngo on\n<z>\n"
    assert service.parsers[0].early == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_hold_with_pipelined_input_while_a_slow_handler_runs(
    engine: MemoryEngine, pieces: int
) -> None:
    service = Service(later, parser=HoldingParser)
    peer = engine.connect(service)
    data = b"data\nx\ny\n.\nb\n"
    for at in range(0, len(data), max(1, len(data) // pieces)):
        peer.send(data[at : at + max(1, len(data) // pieces)])
        engine.run()
    assert service.lines == ["data"]
    peer.send(b"c\n")
    engine.run()
    asks = service.parsers[0].asks  # type: ignore[attr-defined]
    peer.send(b"d\n")
    engine.advance(1)
    assert service.parsers[0].asks == asks  # type: ignore[attr-defined]
    give(service.sessions[0])
    engine.run()
    assert service.lines == ["data", "<x|y>"]
    for number in range(1, 5):
        service.sessions[number].reply()
        engine.run()
    assert bytes(peer.received) == b"go on\n<x|y>\nb\nc\nd\n"
    assert service.parsers[0].early == 0  # type: ignore[attr-defined]
    leave(engine, peer)
    finish(engine, service)


def test_hold_with_several_requests_before_it(engine: MemoryEngine) -> None:
    service = Service(later, parser=HoldingParser)
    peer = engine.connect(service)
    peer.send(b"a\nb\ndata\nx\n.\n")
    for number, line in enumerate(["a", "b", "data", "<x>"]):
        engine.run()
        assert service.lines[number:] == [line]
        if line == "data":
            give(service.sessions[number])
        else:
            service.sessions[number].reply()
    engine.run()
    assert bytes(peer.received) == b"a\nb\ngo on\n<x>\n"
    assert service.parsers[0].early == 0  # type: ignore[attr-defined]


def test_hold_and_a_reply_that_says_otherwise(engine: MemoryEngine) -> None:
    class Refusing(HoldingParser):
        def next_message(self) -> Any:
            message = super().next_message()
            self.early = 0
            return message

    service = Service(lambda session: session.reply(b"no\n"), parser=Refusing)
    peer = engine.connect(service)
    peer.send(b"data\nx\n.\n")
    engine.run()
    assert service.lines == ["data", "x", "."]


def test_hold_and_a_fault_after_the_reply(engine: MemoryEngine) -> None:
    service = Service(later, parser=HoldingParser)
    peer = engine.connect(service)
    peer.send(b"data\n!bad\n")
    engine.run()
    assert bytes(peer.received) == b""
    service.sessions[0].reply(b"no\n")
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"no\nERR bad\n", True)


@pytest.mark.parametrize("slow", [False, True])
def test_hold_and_a_half_closed_client(engine: MemoryEngine, slow: bool) -> None:
    service = Service(later if slow else on_data, parser=HoldingParser)
    peer = engine.connect(service)
    peer.send(b"data\nx\n.\n")
    peer.shutdown()
    engine.run()
    if slow:
        give(service.sessions[0])
        engine.run()
        service.sessions[1].reply()
        engine.run()
    assert (bytes(peer.received), peer.closed) == (b"go on\n<x>\n", True)
    finish(engine, service)


def test_hold_and_a_peer_that_resets_meanwhile(engine: MemoryEngine) -> None:
    service = Service(later, parser=HoldingParser)
    peer = engine.connect(service)
    peer.send(b"data\nx\n")
    engine.run()
    peer.reset()
    engine.readiness.announce(peer.fd, READABLE | HANGUP | GONE)
    engine.run()
    assert service.connections() == []  # while its handler runs
    assert not service.sessions[0].reply(b"go on\n")
    engine.run()
    finish(engine, service)


def test_hold_and_a_stop_meanwhile(engine: MemoryEngine) -> None:
    service = Service(later, parser=HoldingParser, farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(b"data\n")
    engine.advance(1)
    stop(service)
    engine.run()
    give(service.sessions[0])
    engine.run()
    assert bytes(peer.received) == b"go on\nbye\n"


def test_hold_and_a_close_meanwhile(engine: MemoryEngine) -> None:
    def process(session: LineSession) -> None:
        session.keep_alive = 0
        session.reply()

    service = Service(process, parser=HoldingParser)
    peer = engine.connect(service)
    peer.send(b"data\nx\n.\n")
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"data\n", True)
    assert service.lines == ["data"]
    engine.advance(2)
    finish(engine, service)


@pytest.mark.parametrize("before", [b"", b"a\n"])
def test_hold_twice_for_nothing_is_a_named_fault(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture, before: bytes
) -> None:
    class Always(LineParser):
        def next_message(self) -> Any:
            message = super().next_message()
            if message is NEED_DATA or message != "hold":
                return message
            self.at -= len(b"hold\n")
            return HOLD

    service = Service(parser=Always)
    peer = engine.connect(service)
    peer.send(before + b"hold\n")
    engine.run()
    assert (bytes(peer.received), peer.eof) == (before, True)
    (error,) = errors(caplog)
    assert "returned HOLD twice" in error
    leave(engine, peer)
    assert service.reasons == ["the protocol's own code failed: the parser failed"]
    finish(engine, service)


def test_hold_for_nothing_is_asked_again(engine: MemoryEngine) -> None:
    class Once(LineParser):
        said = False

        def next_message(self) -> Any:
            if not self.said:
                self.said = True
                return HOLD
            return super().next_message()

    service = Service(parser=Once)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"a\n"


def test_hold_and_then_a_parser_that_raises(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(HoldingParser):
        def next_message(self) -> Any:
            if self.waiting:
                raise ValueError("a fault")
            return super().next_message()

    service = Service(parser=Raises)
    peer = engine.connect(service)
    peer.send(b"data\n")
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"data\n", True)
    assert "the parser failed" in errors(caplog)[0]


@pytest.mark.parametrize("word", [None, Feedback(b"wait\n")])
def test_what_else_comes_after_hold(engine: MemoryEngine, word: Any) -> None:
    class Odd(HoldingParser):
        def next_message(self) -> Any:
            if self.waiting:
                self.waiting = False
                return word
            return super().next_message()

    service = Service(parser=Odd)
    peer = engine.connect(service)
    peer.send(b"data\nx\n")
    engine.run()
    if word is None:
        assert (bytes(peer.received), peer.eof) == (b"data\n", True)
    else:
        assert bytes(peer.received) == b"data\nwait\nx\n"


def test_hold_with_requests_in_flight_waits_for_all(engine: MemoryEngine) -> None:
    service = Service(later, parser=HoldingParser, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"a\ndata\nx\n.\n")
    engine.run()
    assert service.lines == ["a", "data"]
    give(service.sessions[1])
    engine.run()
    assert service.lines == ["a", "data"]
    service.sessions[0].reply()
    engine.run()
    assert service.lines == ["a", "data", "<x>"]
    service.sessions[2].reply()
    engine.run()
    assert bytes(peer.received) == b"go on\na\n<x>\n"
    assert service.parsers[0].early == 0  # type: ignore[attr-defined]


# -- several at once -----------------------------------------------------------------------


def test_replies_go_out_as_they_come(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=3)
    results: list[str] = []
    service.on_result = lambda session: results.append(session.line)
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\nd\ne\n")
    engine.run()
    assert service.lines == ["a", "b", "c"]
    service.sessions[1].reply()
    engine.run()
    assert bytes(peer.received) == b"b\n"
    assert service.lines == ["a", "b", "c", "d"]
    service.sessions[3].reply()
    service.sessions[0].reply()
    engine.run()
    assert service.lines == ["a", "b", "c", "d", "e"]
    service.sessions[4].reply()
    service.sessions[2].reply()
    engine.run()
    assert bytes(peer.received) == b"b\nd\na\ne\nc\n"
    assert results == ["b", "d", "a", "e", "c"]
    assert [session.seq for session in service.sessions] == [0, 1, 2, 3, 4]
    leave(engine, peer)
    finish(engine, service)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_than_so_many_are_in_flight(engine: MemoryEngine, limit: int) -> None:
    open_: list[LineSession] = []
    most = 0

    def process(session: LineSession) -> None:
        nonlocal most
        open_.append(session)
        most = max(most, len(open_))

    service = Service(process, in_flight=limit)
    peer = engine.connect(service)
    lines = [b"%d\n" % number for number in range(100)]
    peer.send(b"".join(lines))
    engine.run()
    while open_:
        open_.pop(len(open_) // 2).reply()
        engine.run()
    assert most == limit
    assert sorted(bytes(peer.received).splitlines()) == sorted(b"".join(lines).splitlines())


def test_an_answer_at_once_among_those_in_flight(engine: MemoryEngine) -> None:
    def process(session: LineSession) -> None:
        if session.line != "slow":
            session.reply(b"" if session.line == "-" else None)

    service = Service(process, in_flight=2)
    peer = engine.connect(service)
    peer.send(b"slow\na\n-\nb\n")
    engine.run()
    assert bytes(peer.received) == b"a\nb\n"
    service.sessions[0].reply()
    engine.run()
    assert bytes(peer.received) == b"a\nb\nslow\n"


def test_two_replies_to_one_of_several(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=2)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    service.sessions[0].reply()
    with pytest.raises(UsageError):
        service.sessions[0].reply()
    engine.run()
    assert bytes(peer.received) == b"a\n"


def test_a_fault_of_the_peers_waits_for_those_in_flight(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=5)
    peer = engine.connect(service)
    peer.send(b"a\nb\n!bad\nc\n")
    engine.run()
    assert service.lines == ["a", "b"]
    service.sessions[1].reply()
    engine.advance(1)
    assert (bytes(peer.received), peer.eof) == (b"b\n", False)
    service.sessions[0].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"b\na\nERR bad\n", True)
    assert service.lines == ["a", "b"]
    leave(engine, peer)
    assert service.reasons == ["protocol error: bad"]
    finish(engine, service)


@pytest.mark.parametrize("line", [b"crash\n", b"none\n"])
def test_a_fault_of_the_parsers_waits_for_those_in_flight(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    class Forgetful(LineParser):
        def next_message(self) -> Any:
            message = super().next_message()
            return None if message == "none" else message

    service = Service(later, in_flight=5, parser=Forgetful)
    peer = engine.connect(service)
    peer.send(b"a\nb\n" + line)
    engine.run()
    for session in reversed(service.sessions):
        session.reply()
        engine.run()
    assert (bytes(peer.received), peer.eof) == (b"b\na\n", True)
    leave(engine, peer)
    assert service.reasons == ["the protocol's own code failed: the parser failed"]
    assert len(errors(caplog)) == 1
    finish(engine, service)


def test_a_last_reply_lets_the_others_be_given(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\nd\n")
    engine.run()
    service.sessions[1].keep_alive = 0
    service.sessions[1].reply()
    engine.run()
    assert service.lines == ["a", "b", "c"]  # no more are taken
    assert not peer.eof
    service.sessions[2].reply()
    engine.run()
    service.sessions[0].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"b\nc\na\n", True)
    leave(engine, peer)
    assert service.reasons == ["the reply was the last"]
    finish(engine, service)


def test_one_without_a_reply_lets_the_others_be_given(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=3)
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\n")
    engine.run()
    service.sessions[1].end()
    engine.run()
    service.sessions[2].reply()
    service.sessions[0].reply()
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"c\na\n", True)
    assert service.reasons == ["closed without a reply"]
    finish(engine, service)


def test_a_reset_ends_all_in_flight(engine: MemoryEngine) -> None:
    closed: list[CommConnection] = []
    service = Service(later, in_flight=3)
    peer = engine.connect(service)
    connection_of(service).on_close(closed.append)
    peer.send(b"a\nb\nc\nd\n")
    engine.run()
    service.sessions[1].reply()
    engine.run()
    peer.reset()
    engine.run()
    assert (len(closed), service.unbound) == (1, 0)
    for number in (0, 2, 3):
        assert not service.sessions[number].reply()
    engine.run()
    assert (bytes(peer.received), len(closed), len(service.ends)) == (b"b\n", 1, 1)
    finish(engine, service)


def test_a_half_closed_client_gets_all_that_is_in_flight(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=2)
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\n")
    peer.shutdown()
    engine.run()
    service.sessions[1].reply()
    engine.run()
    assert service.lines == ["a", "b", "c"]
    service.sessions[2].reply()
    engine.run()
    assert not peer.closed
    service.sessions[0].reply()
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"b\nc\na\n", True)
    finish(engine, service)


def test_a_stop_waits_for_all_in_flight(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=2, farewell=b"bye\n")
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\n")
    engine.advance(1)
    stop(service)
    for number in (1, 0, 2):
        engine.run()
        assert service.farewells == []
        service.sessions[number].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"b\na\nc\nbye\n", True)
    leave(engine, peer)
    finish(engine, service)


def test_no_limit_runs_while_something_is_in_flight(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=2, keep_alive_timeout=5, receive_timeout=5)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    service.sessions[0].reply()
    engine.advance(1000)
    assert not peer.closed
    service.sessions[1].reply()
    engine.advance(5)
    assert peer.closed
    assert service.reasons == ["the keep-alive time has passed"]


@pytest.mark.parametrize("last", ["reply", "noreply", "last reply", "reset"])
def test_one_that_is_too_slow_beside_others_hears_the_farewell_after_their_replies(
    engine: MemoryEngine, last: str
) -> None:
    service = Service(later, in_flight=3, farewell=b"bye\n", receive_timeout=5, receive_rate=None)
    peer = engine.connect(service)
    peer.send(b"a\nb\nc")
    engine.advance(5)
    assert (bytes(peer.received), peer.eof) == (b"", False)
    assert service.farewells == [CloseReason.REQUEST_TOO_SLOW]
    peer.send(b"\nd\n")
    service.sessions[0].reply()
    engine.advance(100)
    assert (bytes(peer.received), peer.eof) == (b"a\n", False)
    if last == "noreply":
        service.sessions[1].end()
    elif last == "reset":
        peer.reset()
        engine.run()
        assert not service.sessions[1].reply()
    else:
        service.sessions[1].keep_alive = 0 if last == "last reply" else 60
        service.sessions[1].reply()
    engine.run()
    end = {"noreply": b"bye\n", "reset": b""}.get(last, b"b\nbye\n")
    assert bytes(peer.received) == b"a\n" + end
    assert service.lines == ["a", "b"]
    if last != "reset":
        leave(engine, peer)
    finish(engine, service)


def test_no_farewell_after_a_reply_that_was_cut(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(later, in_flight=3, farewell=b"bye\n", receive_timeout=5, receive_rate=None)
    peer = engine.connect(service, room=3)
    peer.send(b"a\nb\nc")
    engine.advance(5)
    service.sessions[0].reply(Pieces(b"<1", b"x" * 70_000, ValueError("a fault")))
    engine.run()
    peer.read()
    engine.run()
    assert not service.sessions[1].reply()
    engine.advance(3)
    assert (bytes(peer.received), peer.aborted) == (b"<1" + b"x" * 70_000, True)
    assert len(errors(caplog)) == 1
    finish(engine, service)


def test_peers_that_do_not_read_are_not_served_further(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=2, unsent_limit=1000, peer_response_timeout=10)
    peer = engine.connect(service, room=0)
    peer.send(b"a\nb\nc\n")
    engine.run()
    service.sessions[0].reply(bytes(2000))
    engine.run()
    assert service.lines == ["a", "b"]
    service.sessions[1].reply()
    engine.run()
    assert service.lines == ["a", "b"]
    peer.read()
    engine.run()
    assert service.lines == ["a", "b", "c"]
    assert bytes(peer.received) == bytes(2000) + b"b\n"


@pytest.mark.parametrize("where", ["new_session", "message_in", "handle"])
def test_a_session_that_fails_among_others(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    class Odd(LineSession):
        def __init__(self, service: LineService, seq: int, conn: CommConnection) -> None:
            super().__init__(service, seq, conn)
            if where == "new_session" and seq == 1:
                raise ValueError("a fault")

        def message_in(self, message: str) -> None:
            super().message_in(message)
            if where == "message_in" and self.seq == 1:
                raise ValueError("a fault")

        def handle(self, state: TaskState, error: int) -> None:
            super().handle(state, error)
            if where == "handle" and self.seq == 1:
                raise ValueError("a fault")

    service = Service(later, in_flight=5, session=Odd)
    peer = engine.connect(service)
    peer.send(b"a\nbad\nc\n")
    engine.run()
    assert not peer.eof
    service.sessions[0].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"a\n", True)
    assert len(errors(caplog)) == 1
    leave(engine, peer)
    assert [event.reason for event in service.ends] == [CloseReason.PROTOCOL_FAILED]
    finish(engine, service)


def pieces(*parts: bytes) -> Iterator[bytes]:
    yield from parts


def test_a_reply_in_pieces_has_the_connection_for_itself(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=4)
    results: list[str] = []
    service.on_result = lambda session: results.append(session.line)
    peer = engine.connect(service, room=4)
    peer.send(b"a\nb\nc\nd\ne\n")
    engine.run()
    service.sessions[1].reply(pieces(b"<1", b"x" * 100_000, b"2>\n"))
    service.sessions[3].reply()
    service.sessions[0].reply(b"")
    connection_of(service).push(b"news\n")
    engine.run()
    assert bytes(peer.received) == b"<1xx"
    assert service.lines == ["a", "b", "c", "d"]  # nor are others handed over
    assert connection_of(service).pending > 5
    with pytest.raises(UsageError):
        service.sessions[3].reply()
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"<1" + b"x" * 100_000 + b"2>\nnews\nd\n"
    assert service.lines == ["a", "b", "c", "d", "e"]
    service.sessions[2].reply()
    engine.run()
    assert bytes(peer.received).endswith(b"2>\nnews\nd\nc\n")
    assert results == ["b", "d", "a", "c"]


def test_replies_in_pieces_follow_one_another(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=4)
    peer = engine.connect(service, room=0)
    peer.send(b"a\nb\nc\nd\n")
    engine.run()
    for number in (2, 0, 3, 1):
        session = service.sessions[number]
        name = session.line.encode()
        session.reply(pieces(name + b"1", name * 70_000, name + b"2\n"))
    engine.run()
    peer.read()
    engine.run()
    assert [line[:1] * len(line) for line in bytes(peer.received).splitlines()] != []
    assert bytes(peer.received) == b"".join(
        name + b"1" + name * 70_000 + name + b"2\n" for name in (b"c", b"a", b"d", b"b")
    )
    assert all(session.states[-1] == (TaskState.SUCCESS, 0) for session in service.sessions)


def test_the_last_reply_in_the_middle_of_one_in_pieces(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=4)
    peer = engine.connect(service, room=0)
    peer.send(b"a\nb\nc\n")
    engine.run()
    service.sessions[0].reply(pieces(b"<", b"x" * 70_000, b">"))
    service.sessions[1].keep_alive = 0
    service.sessions[1].reply()
    engine.run()
    peer.read()
    engine.run()
    assert not peer.eof
    service.sessions[2].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"<" + b"x" * 70_000 + b">b\nc\n", True)


class Pieces:
    """An iterator with something to give back."""

    def __init__(self, *parts: Any) -> None:
        self.parts = iter(parts)
        self.closed = 0

    def __iter__(self) -> Pieces:
        return self

    def __next__(self) -> bytes:
        part = next(self.parts)
        if isinstance(part, BaseException):
            raise part
        return part  # type: ignore[no-any-return]

    def close(self) -> None:
        self.closed += 1


def test_a_reset_while_replies_wait_for_one_in_pieces(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=4)
    peer = engine.connect(service, room=1)
    peer.send(b"a\nb\nc\nd\n")
    engine.run()
    first, second = Pieces(b"<", b"x" * 70_000, b">"), Pieces(b"<", b">")
    service.sessions[0].reply(first)
    service.sessions[1].reply()
    service.sessions[2].reply(second)
    engine.run()
    peer.reset()
    engine.run()
    assert [session.states[1:] for session in service.sessions[:3]] == [
        [(TaskState.SYS_ERROR, errno.ECONNRESET)]
    ] * 3
    assert (first.closed, second.closed) == (1, 1)
    assert service.unbound == 0
    assert not service.sessions[3].reply()
    engine.run()
    finish(engine, service)


def test_one_that_fails_midway_takes_the_others_with_it(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(later, in_flight=5)
    peer = engine.connect(service, room=3)
    peer.send(b"a\nb\nc\nd\ne\n")
    engine.run()
    second = Pieces(b"<", b">")
    service.sessions[0].reply(Pieces(b"<1", b"x" * 70_000, ValueError("a fault")))
    service.sessions[1].reply()
    service.sessions[2].reply(second)
    engine.run()
    peer.read()
    engine.run()
    # What is cut ends with a reset, and nothing may follow it as if it were its rest.
    service.sessions[3].reply()
    engine.advance(3)
    assert bytes(peer.received) == b"<1" + b"x" * 70_000
    assert peer.aborted
    assert service.sessions[0].states[1:] == [(TaskState.SYS_ERROR, errno.EIO)]
    assert [len(session.states) for session in service.sessions[:3]] == [2, 2, 2]
    assert second.closed == 1
    assert not service.sessions[4].reply()
    engine.run()
    assert [event.reason for event in service.ends] == [CloseReason.REPLY_FAILED]
    finish(engine, service)


def test_a_waiting_reply_in_pieces_may_still_be_refused(engine: MemoryEngine) -> None:
    class Second(LineSession):
        def reply_failed(self, error: BaseException | None) -> None:
            assert isinstance(error, ValueError)
            self.reply(b"ERR\n")

    service = Service(later, in_flight=3, session=Second)
    peer = engine.connect(service, room=0)
    peer.send(b"a\nb\nc\n")
    engine.run()
    service.sessions[0].reply(pieces(b"<", b"x" * 70_000, b">\n"))
    service.sessions[1].reply(Pieces(ValueError("a fault")))
    service.sessions[2].reply(pieces(b"<c", b">\n"))
    engine.run()
    peer.read()
    engine.run()
    lines = bytes(peer.received).splitlines()
    assert lines[0] == b"<" + b"x" * 70_000 + b">"
    assert sorted(lines[1:]) == [b"<c>", b"ERR"]
    assert all(session.states[-1] == (TaskState.SUCCESS, 0) for session in service.sessions)


class BodyParser(LineParser):
    """After the line ``body N`` so many bytes follow, which are handed over as they come."""

    def __init__(self, farewell: Any = b"") -> None:
        super().__init__(farewell)
        self.stream: IncomingStream | None = None
        self.left = 0

    def next_message(self) -> Any:
        if self.stream is not None:
            data = self.held[self.at : self.at + self.left]
            self.at += len(data)
            self.left -= len(data)
            if data.startswith(b"!"):
                self.stream = None
                self.error = ProtocolError("bad body", reply=b"ERR body\n")
                raise self.error
            self.stream.feed(data)
            if self.left:
                return NEED_DATA
            self.stream.end()
            self.stream = None
        message = super().next_message()
        if isinstance(message, str) and message.startswith("body "):
            self.left = int(message[5:])
            self.stream = IncomingStream()
            request = Body(message)
            request.stream = self.stream
            arriving = Arriving(request, self.stream)
            arriving.streams = self.streams
            return arriving
        return message

    streams = True

    @property
    def partial(self) -> bool:
        return self.stream is not None or super().partial


class Body(str):
    stream: IncomingStream


def test_a_body_arrives_while_others_are_answered(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=4, parser=BodyParser)
    peer = engine.connect(service)
    peer.send(b"a\nbody 10\n12345")
    engine.run()
    assert service.lines == ["a", "body 10"]
    service.sessions[0].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"a\n", False)
    peer.send(b"67890b\n")
    engine.run()
    body = service.sessions[1]
    assert service.lines == ["a", "body 10", "b"]
    assert body.line.stream.read() == b"1234567890"  # type: ignore[attr-defined]
    service.sessions[2].reply()
    body.reply()
    engine.run()
    assert bytes(peer.received) == b"a\nb\nbody 10\n"
    leave(engine, peer)
    finish(engine, service)


def test_a_body_is_collected_while_others_are_answered(engine: MemoryEngine) -> None:
    class Collecting(BodyParser):
        streams = False

    service = Service(later, in_flight=4, parser=Collecting)
    peer = engine.connect(service)
    peer.send(b"a\nb\nbody 10\n12345")
    engine.run()
    assert service.lines == ["a", "b"]
    service.sessions[0].reply()
    engine.run()
    peer.send(b"67890c\n")
    engine.run()
    assert service.lines == ["a", "b", "body 10", "c"]
    for session in service.sessions[1:]:
        session.reply()
    engine.run()
    assert bytes(peer.received) == b"a\nb\nbody 10\nc\n"


def test_a_body_comes_at_the_pace_of_its_reader_among_others(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=4, parser=BodyParser)
    peer = engine.connect(service)
    size = 4 << 20
    peer.send(b"a\nbody %d\n" % size)
    peer.send(b"x" * size)
    engine.run()
    assert peer.unread > size // 2
    stream = service.sessions[1].line.stream  # type: ignore[attr-defined]
    read = 0
    while read < size:
        piece = stream.pull(lambda: None)
        assert piece is not None
        read += len(piece)
        engine.run()
    for session in service.sessions:
        session.reply()
    engine.run()
    assert bytes(peer.received) == b"a\nbody %d\n" % size


@pytest.mark.parametrize("fault", ["leaves", "nonsense", "slow"])
def test_a_body_that_fails_among_others(engine: MemoryEngine, fault: str) -> None:
    service = Service(later, in_flight=4, parser=BodyParser, receive_timeout=5, receive_rate=None)
    peer = engine.connect(service)
    peer.send(b"a\nbody 10\n12345")
    engine.run()
    if fault == "leaves":
        peer.shutdown()
    elif fault == "nonsense":
        peer.send(b"!")
    engine.advance(5)
    expected = {"leaves": ConnectionResetError, "nonsense": ProtocolError, "slow": TimeoutError}
    with pytest.raises(expected[fault]):
        service.sessions[1].line.stream.read()  # type: ignore[attr-defined]
    service.sessions[0].reply()
    service.sessions[1].reply(b"ERR\n")
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"a\nERR\n", True)
    leave(engine, peer) if not peer.closed else None
    finish(engine, service)


def test_an_early_answer_to_a_body_among_others_is_the_last(engine: MemoryEngine) -> None:
    service = Service(later, in_flight=4, parser=BodyParser)
    peer = engine.connect(service)
    peer.send(b"a\nbody 10\n12345")
    engine.run()
    service.sessions[1].reply(b"enough\n")
    peer.send(b"67890b\n")
    engine.run()
    assert service.lines == ["a", "body 10"]
    service.sessions[0].reply()
    engine.run()
    assert (bytes(peer.received), peer.eof) == (b"enough\na\n", True)
    leave(engine, peer)
    finish(engine, service)


# -- state, times, pace --------------------------------------------------------------------


def test_state_is_not_the_context(engine: MemoryEngine) -> None:
    service = Service()
    peer = engine.connect(service)
    conn = connection_of(service)
    assert (conn.state, conn.context) == (None, None)
    conn.state, conn.context = "protocol", "application"
    peer.send(b"a\n")
    engine.run()
    assert (conn.state, conn.context) == ("protocol", "application")
    leave(engine, peer)
    assert (conn.state, conn.context) == ("protocol", "application")


@pytest.mark.parametrize("in_flight", [1, 3])
def test_times_of_one_connection(engine: MemoryEngine, in_flight: int) -> None:
    def process(session: LineSession) -> None:
        if session.line == "mine":
            session.connection.set_timeout(keep_alive=100, receive=1)
            session.keep_alive = session.connection.keep_alive_limit
        session.reply()

    service = Service(
        process,
        farewell=b"bye\n",
        keep_alive_timeout=5,
        receive_rate=None,
        in_flight=in_flight,
    )
    mine, other = engine.connect(service, "mine"), engine.connect(service, "other")
    mine.send(b"mine\n")
    other.send(b"a\n")
    engine.advance(5)
    assert (mine.eof, other.eof) == (False, True)
    engine.advance(94)
    assert not mine.eof
    mine.send(b"b")
    engine.advance(1)
    assert bytes(mine.received) == b"mine\nbye\n"
    assert service.farewells == [CloseReason.IDLE, CloseReason.REQUEST_TOO_SLOW]


@pytest.mark.parametrize(
    "times",
    [
        {"keep_alive": 0},
        {"keep_alive": -1},
        {"receive": "soon"},
        {"receive": True},
        {"keep_alive": float("nan")},
        {"receive": float("inf")},
    ],
)
def test_times_that_make_no_sense(engine: MemoryEngine, times: dict[str, Any]) -> None:
    service = Service()
    engine.connect(service)
    with pytest.raises(ValueError, match="set_timeout"):
        connection_of(service).set_timeout(**times)


class Waiting(threading.Thread):
    """Waits until what was pushed is taken."""

    def __init__(self, conn: CommConnection) -> None:
        super().__init__(daemon=True)
        self.conn = conn
        self.start()

    def run(self) -> None:
        self.conn.drained()

    @property
    def waits(self) -> bool:
        """It has not ended, and had a moment for it."""
        self.join(0.1)
        return self.is_alive()

    @property
    def over(self) -> bool:
        """It has ended, or does now; a busy machine may take its time."""
        self.join(10)
        return not self.is_alive()


def test_pending_and_drained(engine: MemoryEngine) -> None:
    service = Service()
    peer = engine.connect(service, room=0)
    conn = connection_of(service)
    assert conn.pending == 0
    conn.drained()  # nothing to wait for
    conn.push(b"12345")
    engine.run()
    assert conn.pending == 5
    waiting = Waiting(conn)
    peer.read(3)
    engine.run()
    assert conn.pending == 2
    assert waiting.waits
    peer.read()
    engine.run()
    assert conn.pending == 0
    assert waiting.over


@pytest.mark.parametrize("end", ["reset", "close", "timeout", "too much"])
def test_drained_when_the_peer_goes(engine: MemoryEngine, end: str) -> None:
    service = Service(peer_response_timeout=10)
    peer = engine.connect(service, room=0)
    conn = connection_of(service)
    conn.push(b"12345")
    engine.run()
    waiting = [Waiting(conn) for _ in range(3)]
    assert waiting[0].waits
    if end == "reset":
        peer.reset()
    elif end == "close":
        conn.close()
    elif end == "timeout":
        engine.advance(10)
    else:
        conn.push(bytes(33 << 20))
        conn.push(b"more")
    engine.run()
    assert all(thread.over for thread in waiting)
    assert conn.closed
    assert conn.pending == 0
    conn.drained()  # at once
    finish(engine, service)


def test_what_waits_for_a_reply_in_pieces_is_pending(engine: MemoryEngine) -> None:
    service = Service(later)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    parts = Pieces(b"<", b"x" * 70_000, b">\n")
    peer.room = 10
    service.sessions[0].reply(parts)
    engine.run()
    conn = connection_of(service)
    conn.push(b"news\n")
    waiting = Waiting(conn)
    assert waiting.waits
    peer.read(70_003 - 10)
    engine.run()
    assert conn.pending == 5
    assert waiting.waits
    peer.read()
    engine.run()
    assert waiting.over
    assert bytes(peer.received).endswith(b">\nnews\n")


def test_what_is_held_counts_where_all_else_is_sent(engine: MemoryEngine) -> None:
    """The next piece of a reply is waited for, and nothing else is on its way."""
    service = Service(later, in_flight=2)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    conn = connection_of(service)
    seen: list[Any] = []

    def slowly() -> Iterator[bytes]:
        yield b"<"
        conn.push(b"news\n")
        conn.entry.lock.acquire()
        conn.entry.output.flush(conn.entry)
        conn.entry.lock.release()
        seen.append((conn.pending, Waiting(conn)))
        assert seen[0][1].waits
        yield b">\n"

    service.sessions[0].reply(slowly())
    engine.run()
    assert seen[0][0] == 5
    assert seen[0][1].over
    assert bytes(peer.received) == b"<>\nnews\n"


def test_nothing_is_pending_on_a_closed_connection(engine: MemoryEngine) -> None:
    service = Service(later)
    peer = engine.connect(service, room=1)
    peer.send(b"a\n")
    engine.run()
    service.sessions[0].reply(pieces(b"<", b"x" * 70_000, b">\n"))
    engine.run()
    conn = connection_of(service)
    conn.push(b"news\n")
    waiting = Waiting(conn)
    assert waiting.waits
    peer.reset()
    engine.run()
    assert waiting.over
    assert conn.pending == 0
    finish(engine, service)


def test_drained_in_the_middle_of_the_connections_work(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Rude(LineSession):
        def message_out(self) -> Any:
            with pytest.raises(UsageError):
                self.connection.drained()
            return super().message_out()

    service = Service(session=Rude)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"a\n"
    assert errors(caplog) == []
