"""Communicator and handler threads: what waits for a free one, and who is promoted before
something blocks. The threads are pretended, so that a test says when they are all busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from line_service import LineService, LineSession, echo

from protoserve import TaskState
from protoserve.kernel import habits as habits_module
from protoserve.kernel.habits import _SUSPICION, OTHERS
from protoserve.kernel.leader_followers import LeaderFollowers
from protoserve.kernel.poller import Callback
from protoserve.kernel.waiting import stop_connection
from protoserve.testing import MemoryEngine, MemoryPeer, connection_of

TOREPLY, SUCCESS = TaskState.TOREPLY, TaskState.SUCCESS


class Threads(LeaderFollowers):
    """In the place of ``LeaderFollowers``: ``full`` is the test's to say, and what was
    deferred runs when ``free`` is called."""

    def __init__(self) -> None:
        self.full = False
        self.promotions = 0
        self.waiting: deque[tuple[Callback, Any]] = deque()

    def defer(self, callback: Callback, argument: Any) -> bool:
        if self.full:
            self.waiting.append((callback, argument))
        return self.full

    def promote(self) -> None:
        self.promotions += 1

    def free(self) -> None:
        """A thread has become free, and the others stay so."""
        self.full = False
        while self.waiting:
            callback, argument = self.waiting.popleft()
            callback(argument, 0)


@pytest.fixture
def threads(engine: MemoryEngine) -> Threads:
    threads = Threads()
    engine.communicator.threads = threads
    return threads


def test_a_request_waits_while_all_are_busy(engine: MemoryEngine, threads: Threads) -> None:
    service = LineService()
    peer = engine.connect(service)
    threads.full = True
    peer.send(b"a\nb\n")
    engine.run()
    assert service.lines == []
    assert len(threads.waiting) == 1
    threads.free()
    engine.run()
    assert bytes(peer.received) == b"a\nb\n"


def answered_in_vain(engine: MemoryEngine, threads: Threads, service: LineService) -> MemoryPeer:
    """A connection whose reply is out, and whose session has yet to be told by a thread."""
    peer = engine.connect(service, room=0)
    peer.send(b"a\n")
    engine.run()
    threads.full = True
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"a\n"
    return peer


def test_callbacks_wait_while_all_are_busy(engine: MemoryEngine, threads: Threads) -> None:
    service = LineService()
    answered_in_vain(engine, threads, service)
    (session,) = service.sessions
    assert session.states == [(TOREPLY, 0)]
    assert len(threads.waiting) == 1
    threads.free()
    assert session.states == [(TOREPLY, 0), (SUCCESS, 0)]


def test_callbacks_of_a_closed_connection_wait_too(engine: MemoryEngine, threads: Threads) -> None:
    service = LineService()
    peer = engine.connect(service, room=0)
    peer.send(b"a\n")
    engine.run()
    (session,) = service.sessions
    threads.full = True
    peer.reset()
    engine.run()
    assert peer.closed
    assert session.states == [(TOREPLY, 0)]
    service.release()
    assert service.unbound == 0  # the service is not over before its callbacks
    threads.free()
    assert [state for state, _ in session.states] == [TOREPLY, TaskState.SYS_ERROR]
    assert service.unbound == 1


def test_a_request_behind_callbacks_that_wait_outlives_the_keep_alive_time(
    engine: MemoryEngine, threads: Threads
) -> None:
    service = LineService(keep_alive_timeout=10)
    peer = answered_in_vain(engine, threads, service)
    engine.advance(5)
    peer.send(b"in time\n")
    engine.advance(60)
    assert not peer.closed
    threads.free()
    engine.run()
    assert bytes(peer.received) == b"a\nin time\n"
    assert service.reasons == []


def test_pushes_beside_callbacks_that_wait_do_not_end_the_connection(
    engine: MemoryEngine, threads: Threads
) -> None:
    """While a server stops, a connection with nothing in hand ends: this one has something."""
    service = LineService()
    peer = answered_in_vain(engine, threads, service)
    conn = connection_of(service)
    service.stopping = True
    stop_connection(conn.entry)
    engine.run()
    assert conn.push(b"one\n")
    assert conn.push(b"two\n")
    assert bytes(peer.received) == b"a\none\ntwo\n"
    threads.free()
    assert peer.closed
    assert service.sessions[0].states[-1] == (SUCCESS, 0)


def test_a_piece_waits_while_all_are_busy(engine: MemoryEngine, threads: Threads) -> None:
    pulled: list[int] = []

    def pieces() -> Iterator[bytes]:
        for i in range(4):
            pulled.append(i)
            threads.full = i == 1  # others have begun to block
            yield b"%d" % i

    service = LineService(lambda session: session.reply(pieces()))
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert pulled == [0, 1]
    assert bytes(peer.received) == b"01"
    threads.free()
    engine.run()
    assert bytes(peer.received) == b"0123"


def test_another_leads_before_a_piece_that_is_known_to_block(
    engine: MemoryEngine, threads: Threads
) -> None:
    promotions: list[int] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(4):
            promotions.append(threads.promotions)
            if len(promotions) == 2:
                engine.clock.advance(0.003)  # slow: a habit is kept, and the turn ends
            yield b"x"

    service = LineService(lambda session: session.reply(pieces()))
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.turn()
    assert promotions == [0, 0]
    stream = connection_of(service).entry.exchanges.stream
    assert stream is not None
    assert stream.habit is not None
    stream.habit.expect_blocking()
    engine.run()
    assert bytes(peer.received) == b"xxxx"
    assert promotions == [0, 0, 1, 2]


def test_another_leads_before_a_handler_that_is_known_to_block(
    engine: MemoryEngine, threads: Threads
) -> None:
    promotions: list[int] = []

    def handler(session: LineSession) -> None:
        promotions.append(threads.promotions)
        session.reply()

    service = LineService(handler)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    service.habits.surprise(None)
    peer.send(b"b\nc\n")
    engine.run()
    assert promotions == [0, 1, 2]


@pytest.mark.parametrize("learns", [True, False])
def test_what_is_noted_of_a_slow_handler(
    engine: MemoryEngine, threads: Threads, learns: bool
) -> None:
    def slow(session: LineSession) -> None:
        engine.clock.advance(0.003)
        session.reply()

    service = LineService(slow)
    service.habits.learns = learns
    peer = engine.connect(service)
    peer.send(b"a\na\n")
    engine.run()
    assert bool(service.habits.known) == learns


def test_only_who_was_slow_is_watched(
    engine: MemoryEngine, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watching takes system calls: paths that are all different must not keep it going."""
    watched: list[float] = []

    class Keyed(LineSession):
        def handler_key(self) -> str:
            return self.line

    def handler(session: LineSession) -> None:
        if session.line == "slow":
            engine.clock.advance(0.003)
        session.reply()

    def thread_time() -> float:
        watched.append(0.0)
        return 0.0

    monkeypatch.setattr(habits_module, "thread_time", thread_time)
    service = LineService(handler, session=Keyed)
    peer = engine.connect(service)
    for _ in range(2):
        assert service.habits.known == {}
        peer.send(b"slow\n")
        engine.run()
    assert set(service.habits.known) == {"slow", OTHERS}
    for number in range(_SUSPICION - 1):
        peer.send(b"%d\n" % number)
        engine.run()
    assert len(watched) == _SUSPICION - 1  # anybody might be slow
    assert set(service.habits.known) == {"slow"}
    for number in range(100):
        peer.send(b"another%d\n" % number)
        engine.run()
    assert len(watched) == _SUSPICION - 1
    peer.send(b"slow\n")
    engine.run()
    assert len(watched) >= _SUSPICION


def test_nothing_is_noted_of_a_fast_handler(engine: MemoryEngine, threads: Threads) -> None:
    service = LineService(echo)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert service.habits.known == {}
