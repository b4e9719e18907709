"""Requests that are handed over, or made, before their body is there; and ``HOLD``."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from line_service import LineSession, later
from word_service import WordParser, WordService

from protoserve import HOLD, NEED_DATA, Arriving, ProtocolError
from protoserve.testing import MemoryEngine, connection_of


def test_the_time_of_a_body_runs_while_its_handler_does(engine: MemoryEngine) -> None:
    """The handler may be the one who waits for it, on this very thread."""
    limits: list[Any] = []

    def handler(session: Any) -> None:
        deadline = session.connection.entry.deadline
        limits.append((deadline.limit.name, deadline.at - engine.clock()))

    service = WordService(handler, peer_response_timeout=10, receive_timeout=60)
    peer = engine.connect(service)
    peer.send(b"body 5 a\nx")
    engine.run()
    assert limits == [("RECEIVE", 10)]


@pytest.mark.parametrize("kind", [b"body", b"whole"])
def test_a_body_may_have_a_time_of_its_own(engine: MemoryEngine, kind: bytes) -> None:
    service = WordService(later, peer_response_timeout=None, receive_timeout=60, receive_rate=None)

    def arrive(arriving: Arriving[Any]) -> None:
        arriving.receive_timeout = 200

    service.arrive = arrive
    peer = engine.connect(service)
    peer.send(kind + b" 5 a\nx")
    engine.advance(199)
    assert not peer.eof
    assert connection_of(service).entry.deadline.limit.name == "RECEIVE"
    engine.advance(2)
    if kind == b"body":
        with pytest.raises(TimeoutError):
            service.sessions[0].body.read()
        service.sessions[0].reply(b"too slow\n")
        engine.run()
        assert bytes(peer.received) == b"too slow\n"
    else:
        assert service.lines == []
        assert bytes(peer.received) == b"TIMEOUT\n"
    assert peer.eof


@pytest.mark.parametrize("kind", [b"body", b"whole"])
def test_head_and_body_share_the_time_of_a_request(engine: MemoryEngine, kind: bytes) -> None:
    service = WordService(later, peer_response_timeout=None, receive_timeout=60, receive_rate=None)
    peer = engine.connect(service)
    peer.send(kind)
    engine.advance(40)
    peer.send(b" 5 a\nx")
    engine.advance(19)
    assert connection_of(service).entry.deadline.limit.name == "RECEIVE"
    engine.advance(2)
    assert connection_of(service).entry.deadline.limit.name != "RECEIVE"


def test_the_last_reply_of_a_body_that_failed_is_sent(engine: MemoryEngine) -> None:
    service = WordService(later)
    peer = engine.connect(service)
    peer.send(b"body 5 a\nx")
    engine.run()
    peer.shutdown()
    engine.run()
    (session,) = service.sessions
    with pytest.raises(ConnectionResetError):
        session.body.read()
    assert not peer.eof
    assert session.reply(b"partial\n")
    engine.run()
    assert bytes(peer.received) == b"partial\n"
    assert peer.closed


def test_the_replies_before_a_body_that_its_peer_left_are_sent(engine: MemoryEngine) -> None:
    service = WordService()
    peer = engine.connect(service)
    peer.send(b"a\nwhole 5 b\nx")
    peer.shutdown()
    engine.run()
    assert bytes(peer.received) == b"a\n"
    assert not peer.aborted
    assert [len(session.states) for session in service.sessions] == [2]
    assert service.reasons == ["the peer left in the middle of a request"]


def test_who_reads_on_after_the_reply_is_told(engine: MemoryEngine) -> None:
    service = WordService(later)
    peer = engine.connect(service)
    peer.send(b"body 5 a\nx")
    engine.run()
    (session,) = service.sessions
    assert session.body.pull(lambda: None) == b"x"
    woken = threading.Event()
    assert session.body.pull(woken.set) is None
    session.reply(b"enough\n")
    assert woken.is_set()
    with pytest.raises(ConnectionResetError, match="answered before"):
        session.body.read()
    engine.run()
    assert bytes(peer.received) == b"enough\n"
    assert peer.eof


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_body_behind_another_request_waits_in_the_system(
    engine: MemoryEngine, in_flight: int
) -> None:
    service = WordService(later, in_flight=in_flight, request_size_limit=None)
    peer = engine.connect(service)
    peer.send(b"a\nbody 8000000 b\n" + b"z" * 8_000_000)
    engine.run()
    assert peer.unread > 7_000_000
    service.of("a").reply()
    engine.run()
    total = 0
    body = service.of("body 8000000 b").body
    while total < 8_000_000:
        piece = body.pull(lambda: None)
        total += len(piece or b"")
        engine.run()
    service.sessions[-1].reply(b"done\n")
    engine.run()
    assert bytes(peer.received) == b"a\ndone\n"
    assert connection_of(service).phase == "KEEPALIVE"


def test_the_time_between_requests_is_whole_after_a_body(engine: MemoryEngine) -> None:
    service = WordService(later, receive_timeout=10, keep_alive_timeout=50)
    peer = engine.connect(service)
    peer.send(b"body 2 a\nx")
    engine.advance(2)
    peer.send(b"y")
    engine.run()
    service.sessions[0].reply()
    engine.advance(49)
    assert not peer.eof
    engine.advance(2)
    assert peer.eof


# -- HOLD ----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_parser_that_holds_is_asked_when_all_is_answered(
    engine: MemoryEngine, in_flight: int
) -> None:
    asked: list[str] = []

    class Parser(WordParser):
        def next_message(self) -> Any:
            message = super().next_message()
            asked.append(repr(message))
            return message

    service = WordService(later, in_flight=in_flight, parser=Parser)
    peer = engine.connect(service)
    peer.send(b"a\nhold b\nc\n")
    engine.run()
    for _ in range(3):
        peer.send(b"d\n")
        engine.run()
    if in_flight == 1:
        service.of("a").reply()
        engine.run()
    assert service.lines == ["a", "hold b"]
    assert asked == ["'a'", "'hold b'", repr(HOLD)]
    for _ in range(3):
        peer.send(b"d\n")
        engine.run()
    assert len(asked) == 3
    if in_flight > 1:
        service.of("a").reply()
        engine.run()
        assert len(asked) == 3
    service.of("hold b").reply()
    engine.run()
    assert asked[3] == "'c'"


def test_a_parser_that_holds_for_nothing_is_a_fault(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Parser(WordParser):
        def next_message(self) -> Any:
            return HOLD

    service = WordService(parser=Parser)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert peer.eof
    assert "returned HOLD twice" in caplog.text


class Holding(WordParser):
    """Holds back after a body."""

    def next_message(self) -> Any:
        if self.stream is None or len(self.held) - self.at < self.left:
            return super().next_message()
        end = self.at + self.left
        self.held, rest = self.held[:end], self.held[end:]
        assert super().next_message() is NEED_DATA
        self.held += rest
        return HOLD


@pytest.mark.parametrize("how", ["plain", "in pieces", "collected"])
def test_the_limits_of_the_other_protocol_hold_at_once_after_an_upgrade(
    engine: MemoryEngine, how: str
) -> None:
    def handler(session: LineSession) -> None:
        session.connection.entry.exchanges.upgrade = other
        session.reply(iter([b"up", b"\n"]) if how == "in pieces" else b"up\n")

    service = WordService(handler, parser=Holding)
    other = WordService(unsent_limit=10)
    peer = engine.connect(service, room=0)
    if how == "collected":
        peer.send(b"whole 1 a\n")
        engine.run()
        peer.send(b"x" + b"b\n" * 50)
    else:
        peer.send(b"hold a\n" + b"b\n" * 50)
    engine.run()
    assert len(service.lines) == 1
    assert other.lines == ["b"] * 4
    peer.read()
    engine.run()
    assert bytes(peer.received) == b"up\n" + b"b\n" * 50


# -- time ----------------------------------------------------------------------------------


def test_interim_answers_give_a_peer_that_does_not_read_no_time(engine: MemoryEngine) -> None:
    service = WordService(peer_response_timeout=10, send_timeout=None)
    peer = engine.connect(service, room=0)
    for _ in range(6):
        peer.send(b"?x\n")
        engine.advance(4)
    assert peer.closed


class Blank(WordParser):
    """A line of nothing but dots is none."""

    def next_message(self) -> Any:
        message = super().next_message()
        while isinstance(message, str) and not message.strip("."):
            message = super().next_message()
        return message


@pytest.mark.parametrize("before", [b"", b"a\n"])
def test_what_is_no_request_gives_no_more_time(engine: MemoryEngine, before: bytes) -> None:
    service = WordService(
        parser=Blank, peer_response_timeout=10, receive_timeout=30, keep_alive_timeout=10
    )
    peer = engine.connect(service)
    peer.send(before)
    engine.run()
    for _ in range(10):
        peer.send(b".")
        engine.advance(2)
        peer.send(b"\n")
        engine.advance(2)
    assert peer.eof


def test_a_refused_body_tells_its_reader(engine: MemoryEngine) -> None:
    class Parser(WordParser):
        def next_message(self) -> Any:
            if self.stream is not None and b"#" in self.held[self.at :]:
                raise ProtocolError("nonsense", reply=b"ERR\n")
            return super().next_message()

    service = WordService(later, parser=Parser)
    peer = engine.connect(service)
    peer.send(b"body 5 a\nx")
    engine.run()
    peer.send(b"#")
    engine.run()
    session: LineSession = service.sessions[0]
    with pytest.raises(ProtocolError, match="nonsense"):
        session.body.read()  # type: ignore[attr-defined]
    assert session.reply(b"no\n")
    engine.run()
    assert bytes(peer.received) == b"no\n"
    assert peer.eof


def test_a_parser_that_fails_within_a_body_is_named(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Parser(WordParser):
        def next_message(self) -> Any:
            if self.stream is not None and b"#" in self.held[self.at :]:
                raise KeyError(1, 2, 3)
            return super().next_message()

    service = WordService(later, parser=Parser)
    peer = engine.connect(service)
    peer.send(b"body 5 a\nx")
    engine.run()
    peer.send(b"#")
    engine.run()
    session: Any = service.sessions[0]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the parser failed"):
            session.body.read()
    assert "the parser failed in the middle of a request" in caplog.text
    session.reply(b"sorry\n")
    engine.run()
    assert bytes(peer.received) == b"sorry\n"
    assert peer.eof
