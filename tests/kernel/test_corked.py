"""The replies of one turn: sent together, and not late."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from line_service import LineService, LineSession

from protoserve import CloseReason, WFServerTask
from protoserve.kernel.corked import PATIENCE
from protoserve.kernel.entry import CommConnEntry
from protoserve.kernel.leader_followers import LeaderFollowers, Worker
from protoserve.testing import MemoryEngine, MemoryPeer
from protoserve_http import HttpRequest, HttpResponse, WFHttpServer

TIMEOUT = 30


class Log:
    """Who did what: a handler that was called, a client that was sent to."""

    def __init__(self, engine: MemoryEngine, then: Callable[[LineSession], object]) -> None:
        self.events: list[str] = []
        self._engine = engine
        self._then = then
        self.service = LineService(self._handle)

    def _handle(self, session: LineSession) -> None:
        self.events.append(f"handle {session.line}")
        session.reply()
        self._then(session)

    def clients(self, count: int) -> list[MemoryPeer]:
        """So many, who have sent a line each that the server has not looked at."""
        peers = [self._engine.connect(self.service) for _ in range(count)]
        self._engine.run()
        for number, peer in enumerate(peers):
            peer.before_send = lambda number=number: self.events.append(f"send {number}")
            peer.send(b"%d\n" % number)
        return peers


def nothing(session: LineSession) -> None:
    """What a handler does besides its reply."""


def test_replies_of_one_turn_are_sent_one_after_the_other(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)
    peers = log.clients(3)
    engine.turn()
    # The last one has nobody to wait for.
    assert log.events[:3] == ["handle 0", "handle 1", "handle 2"]
    assert sorted(log.events[3:]) == ["send 0", "send 1", "send 2"]
    assert [bytes(peer.received) for peer in peers] == [b"0\n", b"1\n", b"2\n"]
    assert [peer.sends for peer in peers] == [1, 1, 1]


def test_a_lone_reply_is_sent_at_once(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)
    log.clients(1)
    poller = engine.poller
    poller.wait()
    while poller.ready:
        poller.run_next()
        if log.events:
            break
    assert log.events == ["handle 0", "send 0"]


def test_a_reply_that_has_waited_long_enough_waits_for_no_other_handler(
    engine: MemoryEngine,
) -> None:
    def slow(session: LineSession) -> None:
        if session.line == "1":
            engine.clock.advance(2 * PATIENCE)

    log = Log(engine, slow)
    log.service.habits.learns = False
    peers = log.clients(4)
    # Only handler threads are told apart by how slow they are: here none is known.
    engine.turn()
    assert log.events[:4] == ["handle 0", "handle 1", "send 0", "send 1"]
    assert [bytes(peer.received) for peer in peers] == [b"0\n", b"1\n", b"2\n", b"3\n"]


def test_a_reply_waits_no_longer_for_handlers_whose_own_replies_do_not_wait(
    engine: MemoryEngine,
) -> None:
    log = Log(engine, nothing)

    def slow(session: LineSession) -> None:
        engine.clock.advance(2 * PATIENCE)
        log.events.append("slow")  # and replies later

    log.clients(1)
    service = LineService(slow)
    for peer in [engine.connect(service) for _ in range(3)]:
        peer.send(b"x\n")
    engine.run()
    assert log.events == ["handle 0", "slow", "send 0", "slow", "slow"]


def test_the_time_of_sending_is_no_handler_s(engine: MemoryEngine) -> None:
    def handler(session: LineSession) -> None:
        engine.clock.advance(0.3 * PATIENCE)

    log = Log(engine, handler)
    engine.communicator.threads = Threads(lambda: None)
    peers = log.clients(8)
    for peer in peers:
        peer.before_send = lambda: engine.clock.advance(0.3 * PATIENCE)
    engine.run()
    assert [bytes(peer.received) for peer in peers] == [b"%d\n" % n for n in range(8)]
    assert log.service.habits.known == {}


def test_no_reply_waits_for_a_handler_that_was_slow(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)
    engine.communicator.threads = Threads(lambda: None)

    def slow(session: LineSession) -> None:
        log.events.append("slow")
        session.reply()

    service = LineService(slow)
    for _ in range(2):
        service.habits.slow(None, 0.0)
    log.clients(2)
    for peer in [engine.connect(service) for _ in range(2)]:
        peer.send(b"x\n")
    engine.run()
    assert log.events == ["handle 0", "handle 1", "send 0", "send 1", "slow", "slow"]


@pytest.mark.parametrize("limit", [1024, None])
def test_a_large_reply_does_not_wait(engine: MemoryEngine, limit: int | None) -> None:
    log = Log(engine, nothing)
    reply = b"x" * (2000 if limit else 65_536)
    params = {"unsent_limit": limit} if limit else {}
    log.service = LineService(lambda session: session.reply(reply), **params)
    peers = log.clients(2)
    poller = engine.poller
    poller.wait()
    poller.run_next()
    assert peers[0].sends
    while poller.ready:
        poller.run_next()
    assert [bytes(peer.received) for peer in peers] == [reply, reply]


def test_what_is_pushed_meanwhile_follows_the_reply_that_waits(engine: MemoryEngine) -> None:
    sessions: list[LineSession] = []

    def push(session: LineSession) -> None:
        sessions.append(session)
        if session.line == "1":
            sessions[0].connection.push(b"news\n")

    log = Log(engine, push)
    peers = log.clients(2)
    engine.run()
    assert [bytes(peer.received) for peer in peers] == [b"0\nnews\n", b"1\n"]


def test_a_connection_that_ends_meanwhile_stands_in_nobodys_way(engine: MemoryEngine) -> None:
    sessions: list[LineSession] = []

    def close(session: LineSession) -> None:
        sessions.append(session)
        if session.line == "1":
            sessions[0].connection.close()

    log = Log(engine, close)
    peers = log.clients(3)
    engine.run()
    assert peers[0].closed
    assert [bytes(peer.received) for peer in peers[1:]] == [b"1\n", b"2\n"]
    assert [end.reason for end in log.service.ends] == [CloseReason.CLOSED]


def test_one_that_is_gone_stands_in_nobodys_way(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)
    peers = log.clients(3)

    def gone() -> None:
        raise BrokenPipeError(32, "gone")

    peers[0].before_send = gone
    engine.run()
    assert [bytes(peer.received) for peer in peers[1:]] == [b"1\n", b"2\n"]
    assert [end.reason for end in log.service.ends] == [CloseReason.PEER_GONE]


def test_the_last_reply_ends_its_connection(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)

    def last(session: LineSession) -> None:
        session.keep_alive = 0
        session.reply()

    service = log.service = LineService(last)
    peers = log.clients(3)
    engine.run()
    assert [bytes(peer.received) for peer in peers] == [b"0\n", b"1\n", b"2\n"]
    assert all(peer.eof for peer in peers)
    assert len(service.ends) in (0, 3)  # they linger until the client has closed, too


def test_times_go_on_after_a_reply_that_waited(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)
    service = log.service = LineService(keep_alive_timeout=5.0)
    peers = log.clients(3)
    engine.run()
    assert [bytes(peer.received) for peer in peers] == [b"0\n", b"1\n", b"2\n"]
    engine.advance(4.9)
    assert service.ends == []
    engine.advance(0.2)
    assert [end.reason for end in service.ends] == [CloseReason.IDLE] * 3


def test_a_full_peer_has_its_time_from_then_on(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)
    service = log.service = LineService(peer_response_timeout=3.0)
    peers = log.clients(2)
    peers[0].stall()
    engine.run()
    assert bytes(peers[1].received) == b"1\n"
    engine.advance(2.9)
    assert service.ends == []
    peers[0].read()
    engine.run()
    assert bytes(peers[0].received) == b"0\n"


class Threads(LeaderFollowers):
    """In the place of ``LeaderFollowers``: this thread leads, until it promotes another."""

    def __init__(self, promoted: Callable[[], object]) -> None:
        self.full = False
        self.leader = Worker()
        self.leader.ident = threading.get_ident()
        self._promoted = promoted

    def promote(self) -> None:
        self._promoted()
        self.leader = None


def test_before_another_leads_what_waits_is_sent(engine: MemoryEngine) -> None:
    log = Log(engine, nothing)
    promotions: list[list[str]] = []
    engine.communicator.threads = Threads(lambda: promotions.append(log.events.copy()))
    log.clients(2)
    slow = LineService()
    slow.habits.surprise(None)
    peers = [engine.connect(slow) for _ in range(2)]
    for peer in peers:
        peer.send(b"x\n")
    engine.run()
    assert promotions[0] == ["handle 0", "handle 1", "send 0", "send 1"]
    assert [bytes(peer.received) for peer in peers] == [b"x\n", b"x\n"]


def test_who_does_not_lead_any_more_leaves_nothing_behind(engine: MemoryEngine) -> None:
    """The leader is replaced while it puts a reply aside, and its successor waits already."""
    log = Log(engine, nothing)
    peers = log.clients(2)

    class Overtaken(Threads):
        def leader_here(self) -> Worker | None:
            leader = super().leader_here()
            self.leader = Worker()
            return leader

    engine.communicator.threads = Overtaken(lambda: None)
    poller = engine.poller
    poller.wait()
    poller.run_next()
    poller.ready.clear()  # as if the other thread had been through it before
    assert log.events == ["handle 0"]
    engine.run()
    assert bytes(peers[0].received) == b"0\n"


def test_a_reply_that_joins_others_as_the_last_of_them_is_sent_is_not_forgotten(
    engine: MemoryEngine,
) -> None:
    """A former leader sends what waits, and finds no more, while the leader adds to it."""
    log = Log(engine, nothing)
    peers = log.clients(3)
    corked = engine.communicator.corked
    ready = engine.poller.ready

    class Emptied(deque[CommConnEntry]):
        def append(self, entry: CommConnEntry) -> None:
            if self:
                ready.remove((corked.send, None, 0))  # the other thread is at it
                corked.send()
            super().append(entry)

    corked._entries = Emptied()
    engine.run()
    assert [bytes(peer.received) for peer in peers] == [b"0\n", b"1\n", b"2\n"]


def test_a_handler_that_blocks_keeps_no_reply() -> None:
    """Of three requests that are found together the first is answered while the second's
    handler blocks, until the first client has its answer."""
    answered = threading.Event()
    begin = threading.Event()
    began = threading.Semaphore(0)
    served: list[Any] = []

    def process(task: WFServerTask[HttpRequest, HttpResponse]) -> None:
        began.release()
        if task.req.target == "/wait":
            begin.wait(TIMEOUT)
            return
        served.append(task)
        if len(served) == 2:
            # The one before it is on its way, or its client could wait for ever.
            assert answered.wait(TIMEOUT)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        address = server.address
        clients = [socket.create_connection(address, TIMEOUT) for _ in range(3)]
        try:
            # A handler that keeps the leader for a moment, so that the others are found together.
            clients[0].sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            assert began.acquire(timeout=TIMEOUT)
            for client in clients[1:]:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            begin.set()
            first = threading.Event()

            def receive(client: socket.socket) -> None:
                if client.recv(4096):
                    answered.set()
                    first.set()

            readers = [threading.Thread(target=receive, args=(c,)) for c in clients[1:]]
            for reader in readers:
                reader.start()
            assert first.wait(TIMEOUT)
            for reader in readers:
                reader.join(TIMEOUT)
        finally:
            for client in clients:
                client.close()
    assert len(served) == 2
