"""What a protocol's own code, or the peer with its help, must not be able to do."""

from __future__ import annotations

import errno
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from line_service import LineParser, LineService, LineSession, echo, later

from protoserve import (
    NEED_DATA,
    CommConnection,
    Feedback,
    NeedData,
    ProtocolError,
    ServerParams,
    TaskState,
    UsageError,
)
from protoserve.events import LimitReached
from protoserve.kernel.ending import evict
from protoserve.kernel.readiness import GONE, READABLE
from protoserve.kernel.waiting import stop_connection
from protoserve.testing import MemoryEngine, connection_of


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


class Greeting(LineService):
    """Does something to each connection before it is attached."""

    def __init__(self, greet: Callable[[CommConnection], object], **params: Any) -> None:
        super().__init__(**params)
        self.greet = greet

    def new_connection(self, *args: Any) -> CommConnection | None:
        conn = super().new_connection(*args)
        return None if self.greet(conn) == "refuse" else conn


def finish(engine: MemoryEngine, service: LineService) -> None:
    """The listener goes: nothing else may keep the service alive, or have ended it."""
    assert service.unbound == 0
    service.release()
    engine.run()
    assert service.unbound == 1


# -- new_connection ------------------------------------------------------------------------


def test_a_client_that_resets_during_the_greeting_ends_itself_only(engine: MemoryEngine) -> None:
    closed: list[CommConnection] = []

    def greet(conn: CommConnection) -> None:
        conn.on_close(closed.append)
        conn.entry.transport.peer.reset()  # type: ignore[attr-defined]
        conn.push(b"hello\n")

    service = Greeting(greet)
    for count in range(1, 4):
        peer = engine.connect(service)
        engine.run()
        assert peer.closed
        assert service.conn_count == 0
        assert len(closed) == len(service.ends) == count
    finish(engine, service)


def test_close_and_push_in_new_connection(engine: MemoryEngine) -> None:
    def greet(conn: CommConnection) -> None:
        assert conn.push(b"go away\n")
        conn.close()
        assert not conn.push(b"more\n")

    service = Greeting(greet)
    peer = engine.connect(service)
    engine.run()
    assert (bytes(peer.received), peer.closed) == (b"go away\n", True)
    assert service.reasons == ["closed by the server"]
    finish(engine, service)


def test_a_greeting_that_does_not_fit_is_sent_when_it_does(engine: MemoryEngine) -> None:
    service = Greeting(lambda conn: conn.push(b"hello\n"), peer_response_timeout=10)
    peer = engine.connect(service, room=2)
    engine.advance(9)
    peer.read()
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"hello\na\n"


def test_none_refuses_without_a_word(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = Greeting(lambda conn: "refuse")
    peer = engine.connect(service)
    engine.run()
    assert peer.closed
    assert (service.conn_count, service.ends, caplog.records) == (0, [], [])
    finish(engine, service)


@pytest.mark.parametrize("odd", [5, "conn", object()])
def test_what_is_no_connection_is_named(engine: MemoryEngine, odd: object) -> None:
    class Odd(LineService):
        def new_connection(self, *args: Any) -> Any:
            return odd

    service = Odd()
    with pytest.raises(TypeError, match=f"not {type(odd).__name__}"):
        engine.connect(service)
    finish(engine, service)


def test_new_connection_that_raises(engine: MemoryEngine) -> None:
    def greet(conn: CommConnection) -> None:
        raise ValueError("a fault")

    service = Greeting(greet)
    with pytest.raises(ValueError, match="a fault"):
        engine.connect(service)
    finish(engine, service)


def test_a_stop_during_a_slow_new_connection_leaves_none_behind(engine: MemoryEngine) -> None:
    def greet(conn: CommConnection) -> None:
        service.stopping = True
        service.release()  # the listener
        assert service.unbound == 0

    service = Greeting(greet)
    peer = engine.connect(service)
    engine.advance(1)  # it may have sent a request
    assert peer.closed
    assert service.unbound == 1


# -- code that runs under the lock ---------------------------------------------------------


def test_message_out_that_uses_its_connection(engine: MemoryEngine) -> None:
    seen: list[Any] = []

    class Session(LineSession):
        def message_out(self) -> Any:
            conn = self.connection
            for call in (lambda: conn.push(b"x"), lambda: conn.set_timeout(keep_alive=1)):
                with pytest.raises(UsageError, match="in the middle of the connection's work"):
                    call()
            seen.append(conn.on_close(lambda c: seen.append("closed")))
            conn.on_peer_end(lambda c: seen.append("ended"))
            conn.close()
            return b"out\n"

    service = LineService(echo, session=Session)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"out\n"
    assert peer.closed
    assert seen[1:] == ["closed"]
    finish(engine, service)


def test_a_parser_that_uses_its_connection(engine: MemoryEngine) -> None:
    seen: list[str] = []

    def greet(conn: CommConnection) -> None:
        class Parser(LineParser):
            def feed(self, data: bytes) -> None:
                super().feed(data)
                with pytest.raises(UsageError, match="Feedback"):
                    conn.push(b"x")
                conn.on_close(lambda c: seen.append("closed"))
                conn.close()

        conn.entry.intake.parser = Parser()

    service = Greeting(greet)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert seen == ["closed"]
    assert peer.closed


def test_a_collected_object_that_closes_the_connection(engine: MemoryEngine) -> None:
    class Owner:
        def __init__(self, conn: CommConnection) -> None:
            self.conn = conn
            self.cycle = self

        def __del__(self) -> None:
            self.conn.close()

    class Parser(LineParser):
        def feed(self, data: bytes) -> None:
            super().feed(data)
            gc.collect()

    service = LineService(parser=Parser)
    peer = engine.connect(service)
    Owner(connection_of(service))
    peer.send(b"a\n")
    engine.run()
    assert peer.closed
    assert service.reasons == ["closed by the server"]


def test_an_on_close_callback_that_is_called_at_once_is_called_without_the_lock(
    engine: MemoryEngine,
) -> None:
    seen: list[bool] = []

    class Parser(LineParser):
        conn: CommConnection

        def close(self) -> None:
            self.conn.on_peer_end(lambda c: seen.append(c.entry.locked_here))

    def greet(conn: CommConnection) -> None:
        conn.entry.intake.parser = Parser()
        conn.parser.conn = conn

    service = Greeting(greet)
    engine.connect(service)
    connection_of(service).close()
    engine.run()
    assert seen == [False]


# -- parsers -------------------------------------------------------------------------------


class Waiting(LineParser):
    """After a line ``data`` it gives nothing until its handler has replied."""

    blocked = False

    def next_message(self) -> str | NeedData | Feedback:
        if self.blocked:
            return NEED_DATA
        message = super().next_message()
        self.blocked = message == "data"
        return message


def test_a_parser_that_waits_for_the_reply_is_asked_again(engine: MemoryEngine) -> None:
    service = LineService(later, parser=Waiting)
    peer = engine.connect(service)
    peer.send(b"data\n")
    engine.run()
    peer.send(b"next\n")  # read ahead, while the handler runs: the parser gives nothing
    engine.run()
    assert service.lines == ["data"]
    service.parsers[0].blocked = False  # type: ignore[attr-defined]
    service.sessions[0].reply()
    engine.run()
    assert service.lines == ["data", "next"]


class Once(LineParser):
    """Raises its fault one time only."""

    def next_message(self) -> str | NeedData | Feedback:
        try:
            return super().next_message()
        except ProtocolError:
            self.error = None
            self.at = len(self.held)
            raise


def test_a_fault_that_is_raised_once_while_reading_ahead(engine: MemoryEngine) -> None:
    service = LineService(later, parser=Once)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    peer.send(b"b\n!bad\n")
    engine.run()
    peer.send(b"c\n")
    engine.run()
    service.sessions[0].reply()
    engine.run()
    service.sessions[1].reply()
    engine.run()
    assert bytes(peer.received) == b"a\nb\nERR bad\n"
    assert service.lines == ["a", "b"]
    assert peer.eof


@pytest.mark.parametrize("handler", [echo, later])
def test_none_is_a_fault_that_is_named_once(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture, handler: Any
) -> None:
    class Forgetful(LineParser):
        def next_message(self) -> Any:
            message = super().next_message()
            return None if message == "forget" else message

    service = LineService(handler, parser=Forgetful)
    peer = engine.connect(service)
    peer.send(b"a\nforget\nb\n")
    engine.run()
    if handler is later:
        service.sessions[0].reply()
        engine.run()
    assert bytes(peer.received) == b"a\n"
    assert peer.eof
    assert service.lines == ["a"]
    (message,) = errors(caplog)
    assert "returned None" in message
    assert "NEED_DATA" in message


class Careless(LineParser):
    """Knows no limit, and no message either."""

    def next_message(self) -> NeedData:
        return NEED_DATA


def test_the_size_limit_holds_for_a_careless_parser(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = LineService(parser=Careless, request_size_limit=1024)
    peer = engine.connect(service)
    peer.send(b"x" * 1024)
    engine.run()
    assert not peer.eof  # exactly the limit passes
    peer.send(b"x")
    engine.run()
    assert peer.eof
    assert "request_size_limit=1024" in errors(caplog)[0]
    assert service.reasons == ["the request is larger than request_size_limit"]


def test_the_size_limit_does_not_count_what_is_no_request(engine: MemoryEngine) -> None:
    """Comments, blank lines, heartbeats: a parser takes them in and holds nothing."""

    class Comments(LineParser):
        def next_message(self) -> str | NeedData | Feedback:
            while True:
                message = super().next_message()
                if not (isinstance(message, str) and message.startswith("#")):
                    return message

    service = LineService(parser=Comments, request_size_limit=1024)
    peer = engine.connect(service)
    for _ in range(3):
        peer.send(b"a\n")
        for _ in range(10):
            peer.send(b"#" * 900 + b"\n")
            engine.run()
        peer.send(b"part of ")
        engine.run()
        peer.send(b"a line\n")
        engine.run()
    assert service.lines == ["a", "part of a line"] * 3


# -- callbacks that are taken back ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["on_close", "on_peer_end"])
def test_a_callback_can_be_taken_back(engine: MemoryEngine, kind: str) -> None:
    seen: list[str] = []
    service = LineService()
    peer = engine.connect(service)
    conn = connection_of(service)
    register = getattr(conn, kind)
    first, second, third = (register(lambda c, n=n: seen.append(n)) for n in "abc")
    assert second.cancel()
    assert not second.cancel()
    peer.shutdown()
    engine.run()
    assert seen == ["a", "c"]
    assert not first.cancel()
    assert not third.cancel()
    late = register(lambda c: seen.append("late"))
    assert seen == ["a", "c", "late"]
    assert not late.cancel()


# -- pushes --------------------------------------------------------------------------------


def test_a_push_keeps_a_connection_that_only_listens(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service)
    conn = connection_of(service)
    for _ in range(5):
        engine.advance(9)
        assert conn.push(b"news\n")
    engine.advance(9.9)
    assert not peer.eof
    engine.advance(0.2)
    assert peer.eof


def test_a_push_is_a_use_of_an_idle_connection(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=60)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    conn = connection_of(service)
    since = conn.entry.deadline.idle_since
    engine.advance(59)
    conn.push(b"news\n")
    assert conn.entry.deadline.idle_since == since + 59
    engine.advance(59)
    assert not peer.eof
    engine.advance(2)
    assert peer.eof


def test_a_push_that_waited_for_room_counts_when_it_is_out(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service, room=0)
    conn = connection_of(service)
    conn.push(b"news\n")
    engine.advance(9)
    peer.read()
    engine.advance(9)
    assert not peer.eof
    assert bytes(peer.received) == b"news\n"


def test_pushed_bytes_that_wait_are_not_idle(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service, room=2)
    peer.send(b"a\n")
    engine.run()
    conn = connection_of(service)
    conn.push(b"news\n")
    assert not conn.entry.idle
    assert not evict(conn.entry, conn.entry.deadline.idle_since)
    peer.read()
    engine.run()
    assert conn.entry.idle


def test_a_connection_without_a_request_may_get_another_time(engine: MemoryEngine) -> None:
    service = Greeting(lambda conn: conn.set_timeout(keep_alive=500), peer_response_timeout=10)
    peer = engine.connect(service)
    engine.advance(499)
    assert not peer.eof
    engine.advance(2)
    assert peer.eof


def test_times_of_one_connection(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=60, receive_timeout=60, peer_response_timeout=None)
    peer = engine.connect(service)
    conn = connection_of(service)
    conn.set_timeout(keep_alive=100, receive=5)
    engine.advance(99)
    peer.send(b"half")
    engine.advance(4.9)
    assert not peer.received
    engine.advance(0.2)
    assert bytes(peer.received) == b"TIMEOUT\n"


def test_no_limit_for_one_connection(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=1, keep_alive_timeout=1)
    peer = engine.connect(service)
    connection_of(service).set_timeout(keep_alive=None)
    engine.advance(1e6)
    assert not peer.eof


@pytest.mark.parametrize("seconds", [0, -1, True, float("nan"), 1e10, 10**400])
def test_times_that_are_none(engine: MemoryEngine, seconds: Any) -> None:
    service = LineService()
    engine.connect(service)
    with pytest.raises(ValueError, match="keep_alive="):
        connection_of(service).set_timeout(keep_alive=seconds)
    with pytest.raises(ValueError, match="receive="):
        connection_of(service).set_timeout(receive=seconds)


# -- ends ----------------------------------------------------------------------------------


def test_deadlines_go_with_their_connection(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=3600, peer_response_timeout=3600)
    for _ in range(600):
        peer = engine.connect(service)
        peer.send(b"a\n")
        engine.run()
        peer.reset()
        engine.run()
    # What is cancelled is dropped when it is most of all there is.
    assert len(engine.poller._timers) < 300
    service.sessions.clear()
    del peer  # its error has a traceback
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is CommConnection and o.service is service]


@pytest.mark.parametrize("begun", [False, True])
def test_what_came_in_time_is_read_before_a_deadline_counts(
    engine: MemoryEngine, begun: bool
) -> None:
    """The process was stopped: events are many, and some are seen after the timers."""
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service)
    engine.run()
    if begun:
        peer.send(b"he")
        engine.run()
    conn = connection_of(service)
    peer.send(b"llo\n")
    engine.readiness._edges.clear()  # not announced yet
    engine.clock.advance(11)
    engine.communicator.on_deadline(conn.entry, 0)
    engine.run()
    assert bytes(peer.received) == (b"hello\n" if begun else b"llo\n")
    assert not peer.eof


def test_a_whole_request_has_its_deadline_all_the_same(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10, receive_timeout=20)
    peer = engine.connect(service)
    for _ in range(6):
        peer.send(b"x")
        engine.advance(4)
    assert bytes(peer.received) == b"TIMEOUT\n"


def test_a_cut_reply_ends_with_a_reset(engine: MemoryEngine) -> None:
    def stream(session: LineSession) -> None:
        session.reply(iter([b"one\n", b"x" * 300_000, b"two\n"]))

    service = LineService(stream)
    peer = engine.connect(service, room=5)
    peer.send(b"a\n")
    engine.run()
    engine.communicator.close(connection_of(service).entry, "cut by the server")
    assert peer.aborted


def test_a_reply_that_is_not_all_sent_ends_with_a_reset(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service, room=1)
    peer.send(b"abc\n")
    engine.run()
    connection_of(service).close()
    assert peer.aborted


@pytest.mark.parametrize(("pushed_in", "reset"), [("a", False), ("b", True), ("", False)])
def test_a_reply_that_was_begun_by_a_push_ends_with_a_reset(
    engine: MemoryEngine, pushed_in: str, reset: bool
) -> None:
    """An end would look like that of the reply; one that was not begun may end in order,
    whatever was pushed for the request before it."""

    def handler(session: LineSession) -> None:
        if session.line == pushed_in:
            engine.communicator.push(session.connection.entry, b"part ", session)
        if session.line == "a":
            session.reply()

    service = LineService(handler)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    assert service.lines == ["a", "b"]
    assert bytes(peer.received).replace(b"part ", b"") == b"a\n"
    connection_of(service).close()
    assert peer.closed
    assert peer.aborted is reset
    engine.communicator.forget(service.sessions[1])


def test_a_connection_between_replies_ends_in_order(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"abc\n")
    engine.run()
    connection_of(service).close()
    assert peer.closed
    assert not peer.aborted


def test_a_peer_that_ended_is_probed_while_something_runs_for_it(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\n")
    peer.shutdown()
    engine.run()
    assert peer.probed
    conn = connection_of(service)
    peer.reset(errno.ETIMEDOUT)
    engine.readiness.announce(peer.fd, READABLE | GONE)
    engine.run()
    assert conn.phase == "CLOSED"
    assert not service.sessions[0].reply()


def test_many_small_replies_to_a_peer_that_does_not_read(engine: MemoryEngine) -> None:
    """They are joined into blocks, and told of as they go out."""
    service = LineService(unsent_limit=8 * 1024 * 1024)
    peer = engine.connect(service, room=0)
    for _ in range(200):
        peer.send(b"abc\n" * 500)
        engine.run()
    conn = connection_of(service)
    assert conn.pending == 400_000
    assert len(conn.entry.output.buffers) < 1000
    peer.at_most = 30_000
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"abc\n" * 100_000
    assert all(len(session.states) == 2 for session in service.sessions)


def test_params_of_a_service_reach_its_connections(engine: MemoryEngine) -> None:
    service = LineService(unsent_limit=1000)
    engine.connect(service)
    assert connection_of(service).unsent_limit == 1000
    assert ServerParams().unsent_limit == 256 * 1024


def test_a_peer_that_asks_and_does_not_read_is_told_of(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = LineService(unsent_limit=1000, peer_response_timeout=10)
    seen: list[LimitReached] = []
    service.subscribe(lambda e: seen.append(e) if isinstance(e, LimitReached) else None)
    for _ in range(3):
        peer = engine.connect(service, room=0)
        for _ in range(3):
            peer.send(b"x" * 99 + b"\n")
            peer.send((b"x" * 99 + b"\n") * 20)
            engine.run()
        conn = connection_of(service)
        assert 1000 <= conn.pending < 1200
        engine.advance(11)
        assert peer.aborted
    assert [(e.limit, e.value) for e in seen] == [("unsent_limit", 1000)] * 3
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 2  # each once a minute
    assert "limit unsent_limit=1000 reached" in warnings[0]
    assert "raise that for clients that write much before they read" in warnings[1]
    assert all("unsent_limit=1000" in end.detail for end in service.ends)


def test_a_slow_reader_that_asks_for_no_more_is_nothing_to_tell(engine: MemoryEngine) -> None:
    """... although the reply is more than the limit."""
    service = LineService(lambda session: session.reply(b"x" * 5000), unsent_limit=1000)
    seen: list[object] = []
    service.subscribe(lambda e: seen.append(e) if isinstance(e, LimitReached) else None)
    peer = engine.connect(service, room=0)
    peer.send(b"a\n")
    engine.run()
    peer.read()
    engine.run()
    assert len(peer.received) == 5000
    assert seen == []


def test_two_serialisers_that_use_each_other_s_connection_do_not_lock_each_other() -> None:
    """Each has the lock of its own connection; afterwards both go on."""
    engines = [MemoryEngine(), MemoryEngine()]
    services: list[LineService] = []
    barrier = threading.Barrier(2)

    class Session(LineSession):
        def message_out(self) -> Any:
            barrier.wait(10)
            other = connection_of(services[1 - services.index(self.service)])
            other.push(b"from the other\n")
            return b"out\n"

    services += [LineService(echo, session=Session), LineService(echo, session=Session)]
    peers = [engine.connect(service) for engine, service in zip(engines, services, strict=True)]
    for peer in peers:
        peer.send(b"a\n")
    threads = [threading.Thread(target=engine.run) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for engine in engines:
        engine.run()
        engine.close()
    for peer in peers:
        assert sorted(bytes(peer.received).splitlines()) == [b"from the other", b"out"]


def test_the_keep_alive_time_runs_after_a_push_from_a_callback(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=60)
    service.on_result = lambda session: session.connection.push(b"news\n")
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"a\nnews\n"
    assert connection_of(service).entry.idle
    engine.advance(59)
    assert not peer.eof
    engine.advance(2)
    assert peer.eof


def test_a_callback_of_closing_may_take_back_another(engine: MemoryEngine) -> None:
    seen: list[str] = []
    service = LineService()
    peer = engine.connect(service)
    conn = connection_of(service)
    conn.on_close(lambda c: seen.append(f"first {handle.cancel()}"))
    handle = conn.on_close(lambda c: seen.append("second"))
    peer.reset()
    engine.run()
    assert seen == ["first False", "second"]
    finish(engine, service)


def test_a_large_request_that_came_in_time_is_read_whole(engine: MemoryEngine) -> None:
    service = LineService(receive_timeout=10, receive_rate=None, peer_response_timeout=None)
    peer = engine.connect(service)
    peer.send(b"x")
    engine.run()
    peer.send(b"x" * 3_000_000 + b"\n")
    engine.readiness._edges.clear()  # not announced yet
    engine.clock.advance(11)
    engine.communicator.on_deadline(connection_of(service).entry, 0)
    engine.run()
    assert len(peer.received) == 3_000_002


def test_what_is_pushed_while_a_reply_that_fails_has_not_begun_is_sent(
    engine: MemoryEngine,
) -> None:
    def pieces() -> Iterator[bytes]:
        yield b""
        connection_of(service).push(b"news\n")
        raise ValueError("a fault")

    class Session(LineSession):
        def reply_failed(self, error: BaseException | None) -> None:
            self.reply(b"failed\n")

    service = LineService(lambda session: session.reply(pieces()), session=Session)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"news\nfailed\n"


def test_what_is_pushed_before_a_first_piece_that_is_none_is_sent(engine: MemoryEngine) -> None:
    def pieces() -> Iterator[Any]:
        connection_of(service).push(b"news\n")
        yield 1

    def handle(session: LineSession) -> None:
        with pytest.raises(TypeError):
            session.reply(pieces())
        session.reply(b"failed\n")

    service = LineService(handle)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"news\nfailed\n"


def test_a_broken_reply_s_reset_waits_for_what_is_under_way(engine: MemoryEngine) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise ValueError("a fault")

    service = LineService(
        lambda session: session.reply(pieces() if session.line == "broken" else b"good\n")
    )
    peer = engine.connect(service)
    peer.under_way = 5
    peer.send(b"good\nbroken\n")
    engine.run()
    assert bytes(peer.received) == b"good\nbegun"
    assert not peer.closed
    assert service.sessions[1].states[-1] == (TaskState.SYS_ERROR, errno.EIO)
    peer.under_way = 0
    engine.advance(1)
    assert peer.aborted
    assert service.reasons == ["the reply failed midway"]
    finish(engine, service)


def test_a_broken_reply_s_reset_waits_for_a_peer_that_has_ended_its_side(
    engine: MemoryEngine,
) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise ValueError("a fault")

    service = LineService(lambda session: session.reply(pieces()))
    peer = engine.connect(service)
    peer.under_way = 5
    peer.send(b"broken\n")
    peer.shutdown()
    engine.run()
    engine.advance(0.5)
    assert bytes(peer.received) == b"begun"
    assert not peer.closed
    peer.under_way = 0
    engine.advance(0.5)
    assert peer.aborted
    finish(engine, service)


def test_input_while_a_broken_reply_is_under_way_makes_no_timers(engine: MemoryEngine) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise ValueError("a fault")

    service = LineService(lambda session: session.reply(pieces()))
    peer = engine.connect(service)
    peer.under_way = 5
    peer.send(b"broken\n")
    engine.run()
    before = len(engine.poller._timers)
    for _ in range(50):
        peer.send(b"x")
        engine.run()
    assert len(engine.poller._timers) == before
    engine.advance(3)
    assert peer.aborted


@pytest.mark.parametrize("stopping", [False, True])
def test_a_stop_leaves_a_broken_reply_s_reset_its_time(
    engine: MemoryEngine, stopping: bool
) -> None:
    """Whether it comes before or after: else the reply before would be lost."""

    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise ValueError("a fault")

    service = LineService(
        lambda session: session.reply(pieces() if session.line == "broken" else b"good\n")
    )
    peer = engine.connect(service)
    peer.under_way = 10
    entry = connection_of(service).entry
    peer.send(b"good\n")
    engine.run()
    if stopping:
        service.stopping = True
    peer.send(b"broken\n")
    engine.run()
    service.stopping = True
    stop_connection(entry)
    engine.advance(1)
    assert not peer.closed
    peer.under_way = 0
    engine.advance(0.1)
    assert peer.aborted
    finish(engine, service)


def test_a_broken_reply_s_reset_does_not_wait_for_ever(engine: MemoryEngine) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise ValueError("a fault")

    service = LineService(lambda session: session.reply(pieces()))
    peer = engine.connect(service)
    peer.under_way = 5
    peer.send(b"a\n")
    engine.run()
    engine.advance(3)
    assert peer.aborted


def test_a_stop_iteration_within_a_reply_s_generator_breaks_it_off(engine: MemoryEngine) -> None:
    """``next`` of such a generator raises a RuntimeError of the interpreter's own."""

    def pieces() -> Iterator[bytes]:
        yield b"part"
        next(iter(()))
        yield b"never"

    service = LineService(lambda session: session.reply(pieces()))
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert bytes(peer.received) == b"part"
    assert peer.aborted


def test_closing_in_the_serialiser_ends_with_this_reply(engine: MemoryEngine) -> None:
    class Session(LineSession):
        def message_out(self) -> Any:
            self.connection.close()
            return b"out\n"

    service = LineService(echo, session=Session)
    peer = engine.connect(service)
    peer.send(b"a\nb\nc\n")
    engine.run()
    assert bytes(peer.received) == b"out\n"
    assert service.lines == ["a"]
    assert peer.closed
