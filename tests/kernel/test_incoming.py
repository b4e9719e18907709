"""Requests that stream in: handed over by their head, read as they arrive."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from line_service import LineService, LineSession, echo, later

from protoserve import (
    NEED_DATA,
    Arriving,
    CommConnection,
    IncomingStream,
    MessageParser,
    ProtocolError,
    TaskState,
    UsageError,
)
from protoserve.events import RequestRefused
from protoserve.kernel.deadline import RECEIVE
from protoserve.kernel.ending import DRAIN_TIME
from protoserve.kernel.incoming import ROOM
from protoserve.testing import MemoryEngine, MemoryPeer, connection_of


class Upload:
    """A request whose body is on its way."""

    def __init__(self, name: str, stream: IncomingStream) -> None:
        self.name = name
        self.stream = stream

    def encode(self) -> bytes:
        return self.name.encode()


class BodyParser(MessageParser[Any]):
    """``line`` is a request; ``name 5`` has 5 bytes after its line; ``name 5 ?`` waits for
    ``GO`` before it sends them. A body has no ``!``."""

    def __init__(self, farewell: Any = b"TIMEOUT\n") -> None:
        self.farewell = farewell
        self.held = b""
        self.stream: IncomingStream | None = None
        self.left = 0
        self.announced = False
        self.error: ProtocolError | None = None
        self.closed = 0

    def feed(self, data: bytes) -> None:
        self.held += data
        if not self.announced:
            self.take_body()

    def take_body(self) -> None:
        stream = self.stream
        if stream is None or self.error is not None:
            return
        piece, self.held = self.held[: self.left], self.held[self.left :]
        self.left -= len(piece)
        stream.feed(piece.partition(b"!")[0])
        if b"!" in piece:
            self.error = ProtocolError("nonsense", reply=b"ERR nonsense\n")
        elif not self.left:
            self.stream = None
            stream.end()

    def next_message(self) -> Any:
        if self.announced:
            self.announced = False
            assert self.stream is not None
            limit = self.stream.limit
            if limit is not None and self.left > limit:
                self.error = ProtocolError("too large", reply=b"ERR too large\n")
            else:
                self.take_body()
        if self.error is not None:
            raise self.error
        if self.stream is not None:
            return NEED_DATA
        line, end, rest = self.held.partition(b"\n")
        if not end:
            return NEED_DATA
        self.held = rest
        name, *words = line.decode().split(" ")
        if not words:
            return name
        self.left = int(words[0])
        self.stream = IncomingStream(b"GO\n" if words[1:] else b"")
        self.announced = True
        return Arriving(Upload(name, self.stream), self.stream)

    @property
    def partial(self) -> bool:
        return bool(self.held) or self.stream is not None

    def close(self) -> None:
        self.closed += 1

    def timeout_reply(self) -> bytes:
        return self.farewell  # type: ignore[no-any-return]


class BodySession(LineSession):
    """Says what became of it."""

    broken = 0
    upload: Upload | None = None

    def message_in(self, message: Any) -> None:
        if isinstance(message, Upload):
            self.upload = message
            super().message_in(message.name)
        else:
            super().message_in(message)

    def broke_off(self) -> None:
        self.service.broken += 1  # type: ignore[attr-defined]


class BodyService(LineService):
    """Hands uploads over by their head, unless it is told otherwise."""

    def __init__(
        self,
        handler: Callable[[BodySession], object] = later,  # type: ignore[assignment]
        settings: dict[str, Any] | None = None,
        **params: Any,
    ) -> None:
        super().__init__(handler, session=BodySession, parser=BodyParser, **params)  # type: ignore[arg-type]
        self.settings = settings or {}
        self.broken = 0
        self.refused: list[RequestRefused] = []
        self.subscribe(self._look)

    def _look(self, event: object) -> None:
        if isinstance(event, RequestRefused):
            self.refused.append(event)

    def new_session(self, seq: int, conn: CommConnection) -> BodySession:
        if conn.arriving is not None:
            for name, value in self.settings.items():
                setattr(conn.arriving, name, value)
        return BodySession(self, seq, conn)

    @property
    def stream(self) -> IncomingStream:
        """Of the last request."""
        upload = self.sessions[-1].upload  # type: ignore[attr-defined]
        return upload.stream  # type: ignore[no-any-return]


class Reader:
    """Reads with ``pull``, by hand."""

    def __init__(self, stream: IncomingStream) -> None:
        self.stream = stream
        self.data = b""
        self.over = False
        self.error: BaseException | None = None
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def read(self, pieces: int = -1) -> bytes:
        """So many pieces, or what there is. Returns all so far."""
        try:
            while pieces and (piece := self.stream.pull(self.wake)) is not None:
                self.data += piece
                pieces -= 1
                if not piece:
                    self.over = True
                    break
        except (OSError, ProtocolError) as error:
            self.error = error
        return self.data


def finish(engine: MemoryEngine, service: LineService) -> None:
    """Nothing but the listener keeps the service alive."""
    assert service.unbound == 0
    service.release()
    engine.run()
    assert service.unbound == 1


# -- handed over by its head -----------------------------------------------------------------


def test_a_request_is_handed_over_by_its_head(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    assert service.lines == ["put"]
    reader = Reader(service.stream)
    assert reader.read() == b"abc"
    peer.send(b"defg")
    engine.run()
    assert (reader.woken, reader.read()) == (1, b"abcdefg")
    peer.send(b"hij")
    engine.run()
    assert (reader.read(), reader.over) == (b"abcdefghij", True)
    assert service.stream.received == 10
    service.sessions[-1].reply()
    peer.send(b"next\n")
    engine.run()
    service.sessions[-1].reply()
    engine.run()
    assert peer.received == b"put\nnext\n"
    assert not peer.eof


def test_pipelined_after_a_body(engine: MemoryEngine) -> None:
    service = BodyService(
        lambda session: (session.upload and Reader(session.upload.stream).read(), session.reply())
    )
    peer = engine.connect(service)
    peer.send(b"a\nput 3\nabcb\nput 2\nxyc\n")
    engine.run()
    assert peer.received == b"a\nput\nb\nput\nc\n"
    assert not peer.eof


def test_requests_behind_the_body_wait_for_the_reply(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 3\n")
    engine.run()
    peer.send(b"abcnext\n")
    engine.run()
    assert service.lines == ["put"]
    service.sessions[-1].reply()
    engine.run()
    assert service.lines == ["put", "next"]


def test_a_body_that_came_whole_and_was_not_read_keeps_the_connection(
    engine: MemoryEngine,
) -> None:
    service = BodyService(echo)  # type: ignore[arg-type]
    peer = engine.connect(service)
    peer.send(b"put 3\nabcnext\n")
    engine.run()
    assert (peer.received, peer.eof) == (b"put\nnext\n", False)


def test_a_reply_before_the_body_ends_is_the_last(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    stream = service.stream
    service.sessions[-1].reply()
    engine.run()
    assert (peer.received, peer.eof, peer.closed) == (b"put\n", True, False)
    with pytest.raises(ConnectionResetError, match="answered before"):
        stream.read()
    peer.send(b"defghijnext\n")  # taken in for a while
    engine.run()
    assert (peer.unread, service.lines) == (0, ["put"])
    engine.advance(DRAIN_TIME + 0.01)
    assert peer.closed
    finish(engine, service)


# -- back-pressure ----------------------------------------------------------------------------


def test_reading_pauses_when_it_is_full_and_goes_on(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    size = 4 * ROOM
    peer.send(b"put %d\n" % size + bytes(size))
    engine.run()
    taken = size - peer.unread
    assert ROOM <= taken <= ROOM + 2 * 65536
    reader = Reader(service.stream)
    reader.read(1)
    engine.run()
    assert peer.unread == size - taken
    reader.read(4)
    engine.run()
    assert peer.unread < size - taken
    while not reader.over:
        reader.read()
        engine.run()
    assert len(reader.data) == size
    assert not peer.unread


def test_tiny_pieces_are_joined(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 9000\n")
    for _ in range(9000):
        peer.send(b"x")
        engine.run()
    pieces: list[bytes] = []
    while piece := service.stream.pull(lambda: None):
        pieces.append(piece)
    assert (b"".join(pieces), len(pieces)) == (b"x" * 9000, 3)


def test_a_full_output_stops_reading_too(engine: MemoryEngine) -> None:
    service = BodyService(unsent_limit=1000)
    peer = engine.connect(service, room=10)
    peer.send(b"put 1000000\n")
    engine.run()
    connection_of(service).push(bytes(2000))
    peer.send(bytes(100_000))
    engine.run()
    assert peer.unread
    assert Reader(service.stream).read() == b""
    peer.read()
    engine.run()
    assert not peer.unread


# -- time -------------------------------------------------------------------------------------


def test_a_silent_peer(engine: MemoryEngine) -> None:
    service = BodyService(peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    reader = Reader(service.stream)
    assert connection_of(service).entry.deadline.limit is RECEIVE
    engine.advance(9)
    peer.send(b"d")
    engine.advance(9.9)
    assert (reader.read(), reader.error) == (b"abcd", None)
    engine.advance(0.2)
    reader.read()
    assert isinstance(reader.error, TimeoutError)
    assert service.refused == []
    # Its handler has the last word.
    service.sessions[-1].reply(b"too slow\n")
    engine.run()
    assert (peer.received, peer.eof, peer.closed) == (b"too slow\n", True, False)
    peer.shutdown()
    engine.run()
    assert service.reasons == ["the request did not arrive in time"]
    finish(engine, service)


def test_the_whole_body_has_its_time(engine: MemoryEngine) -> None:
    service = BodyService(peer_response_timeout=10, receive_timeout=60, receive_rate=None)
    peer = engine.connect(service)
    peer.send(b"put 100\n")
    engine.run()
    reader = Reader(service.stream)
    for _ in range(7):
        assert reader.read() is not None
        assert reader.error is None
        engine.advance(9)
        peer.send(b"x")
        engine.run()
    reader.read()
    assert isinstance(reader.error, TimeoutError)


def test_no_time_passes_while_the_handler_is_waited_for(engine: MemoryEngine) -> None:
    service = BodyService(peer_response_timeout=10, receive_timeout=60, receive_rate=None)
    peer = engine.connect(service)
    size = 2 * ROOM
    peer.send(b"put %d\n" % size + bytes(size - 1))
    engine.run()
    engine.advance(3600)
    reader = Reader(service.stream)
    reader.read()
    engine.run()
    reader.read()
    assert reader.error is None
    engine.advance(9)
    peer.send(b"x")
    engine.run()
    reader.read()
    assert (reader.error, reader.over) == (None, True)


def test_time_of_one_request(engine: MemoryEngine) -> None:
    service = BodyService(
        settings={"receive_timeout": 100},
        peer_response_timeout=None,
        receive_timeout=5,
        receive_rate=None,
    )
    peer = engine.connect(service)
    peer.send(b"put 10\n")
    engine.advance(99)
    reader = Reader(service.stream)
    assert (reader.read(), reader.error) == (b"", None)
    engine.advance(1.1)
    reader.read()
    assert isinstance(reader.error, TimeoutError)


def test_no_limit_of_time_for_one_request(engine: MemoryEngine) -> None:
    service = BodyService(
        settings={"receive_timeout": None}, peer_response_timeout=None, receive_timeout=5
    )
    peer = engine.connect(service)
    peer.send(b"put 10\n")
    engine.advance(1000)
    reader = Reader(service.stream)
    assert (reader.read(), reader.error) == (b"", None)


def test_the_next_request_has_its_own_time(engine: MemoryEngine) -> None:
    service = BodyService(echo, peer_response_timeout=None, receive_timeout=60, receive_rate=None)  # type: ignore[arg-type]
    peer = engine.connect(service)
    peer.send(b"pu")
    engine.advance(50)
    service.handler = later  # type: ignore[assignment]
    peer.send(b"t 3\n")
    engine.advance(5)
    peer.send(b"abcne")
    engine.run()
    service.sessions[-1].reply()
    engine.advance(59)
    assert not peer.eof
    engine.advance(2)
    assert peer.received == b"put\nTIMEOUT\n"


def test_a_deadline_that_passed_while_input_lay_there(engine: MemoryEngine) -> None:
    service = BodyService(peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"put 10\n")
    engine.run()
    with peer._lock:
        peer._inbox += b"abc"  # the process was stopped: no event was seen
    engine.advance(10.1)
    reader = Reader(service.stream)
    assert (reader.read(), reader.error) == (b"abc", None)


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_reset_in_the_middle(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    reader = Reader(service.stream)
    reader.read()
    peer.reset()
    engine.run()
    assert reader.woken == 1
    reader.read()
    assert isinstance(reader.error, ConnectionResetError)
    assert not service.sessions[-1].reply()
    finish(engine, service)


def test_the_end_in_the_middle(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    peer.shutdown()
    engine.run()
    reader = Reader(service.stream)
    assert reader.read() == b"abc"
    assert isinstance(reader.error, ConnectionResetError)
    assert not peer.eof  # it may still read
    service.sessions[-1].reply(b"what?\n")
    engine.run()
    assert (peer.received, peer.closed) == (b"what?\n", True)
    finish(engine, service)


def test_the_end_after_the_body(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 3\nabc")
    peer.shutdown()
    engine.run()
    reader = Reader(service.stream)
    assert (reader.read(), reader.over) == (b"abc", True)
    service.sessions[-1].reply()
    engine.run()
    assert (peer.received, peer.closed) == (b"put\n", True)


def test_nonsense_is_raised_in_the_reader(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    peer.send(b"d!")
    engine.run()
    reader = Reader(service.stream)
    assert reader.read() == b"abcd"
    assert isinstance(reader.error, ProtocolError)
    service.sessions[-1].reply(b"bad\n")
    engine.run()
    assert (peer.received, peer.eof) == (b"bad\n", True)
    assert service.refused == []


def test_the_connection_closes(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    connection_of(service).close()
    reader = Reader(service.stream)
    reader.read()
    assert isinstance(reader.error, ConnectionResetError)
    assert not service.sessions[-1].reply()
    finish(engine, service)


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
def test_too_large_by_its_head(engine: MemoryEngine, streams: bool) -> None:
    service = BodyService(settings={"size_limit": 9, "streams": streams})
    peer = engine.connect(service)
    peer.send(b"before\n")
    engine.run()
    service.sessions[-1].reply()
    peer.send(b"put 10\nabc")
    engine.run()
    assert (service.lines, peer.received) == (["before"], b"before\nERR too large\n")
    assert service.broken == 1
    assert [(event.message, event.seq) for event in service.refused] == [("too large", 1)]
    engine.advance(DRAIN_TIME + 0.01)
    finish(engine, service)


def test_more_than_the_parameters_allow(engine: MemoryEngine) -> None:
    service = BodyService(request_size_limit=100, settings={"size_limit": 10**9})
    peer = engine.connect(service)
    peer.send(b"put 500000\n" + bytes(500_000) + b"next\n")
    engine.run()
    reader = Reader(service.stream)
    while not reader.over:
        reader.read()
        engine.run()
    service.sessions[-1].reply()
    engine.run()
    assert service.lines == ["put", "next"]


def test_a_client_that_leaves_after_its_large_body_is_seen(engine: MemoryEngine) -> None:
    service = BodyService(request_size_limit=100, settings={"size_limit": 10**9})
    peer = engine.connect(service)
    peer.send(b"put 100000\n" + bytes(100_000))
    engine.run()
    left: list[CommConnection] = []
    connection_of(service).on_peer_end(left.append)
    peer.shutdown()
    engine.run()
    assert len(left) == 1


# -- the peer waits for our word ------------------------------------------------------------------


def test_the_interim_answer_is_sent_to_the_first_reader(engine: MemoryEngine) -> None:
    service = BodyService(peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"put 3 ?\n")
    engine.advance(100)  # it is not the peer who is waited for
    assert peer.received == b""
    assert not service.stream.begun
    reader = Reader(service.stream)
    reader.read()
    engine.run()
    assert peer.received == b"GO\n"
    engine.advance(9)
    peer.send(b"abc")
    engine.run()
    assert (reader.read(), reader.over, reader.error) == (b"abc", True, None)
    service.sessions[-1].reply()
    engine.run()
    assert peer.received == b"GO\nput\n"


def test_no_interim_answer_where_nobody_reads(engine: MemoryEngine) -> None:
    service = BodyService(echo)  # type: ignore[arg-type]
    peer = engine.connect(service)
    peer.send(b"put 3 ?\n")
    engine.run()
    assert (peer.received, peer.eof) == (b"put\n", True)


def test_no_interim_answer_to_who_did_not_wait(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 3 ?\nab")
    engine.run()
    reader = Reader(service.stream)
    reader.read()
    peer.send(b"c")
    engine.run()
    assert (reader.read(), peer.received) == (b"abc", b"")


def test_silence_after_the_interim_answer(engine: MemoryEngine) -> None:
    service = BodyService(peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"put 3 ?\n")
    engine.advance(50)
    reader = Reader(service.stream)
    reader.read()
    engine.advance(10.1)
    reader.read()
    assert isinstance(reader.error, TimeoutError)


# -- collected ------------------------------------------------------------------------------------


class Whole(BodyService):
    """Handlers get whole bodies."""

    def __init__(self, **params: Any) -> None:
        self.bodies: list[bytes] = []
        super().__init__(self.note, {"streams": False, **params.pop("settings", {})}, **params)

    def note(self, session: BodySession) -> None:
        if session.upload is not None:
            assert session.upload.stream.over
            self.bodies.append(session.upload.stream.whole())
        session.reply()


def test_a_body_may_be_collected(engine: MemoryEngine) -> None:
    service = Whole()
    peer = engine.connect(service)
    peer.send(b"a\nput 10\nabc")
    engine.run()
    assert connection_of(service).phase == "RECEIVING"
    assert service.lines == ["a"]
    peer.send(b"defghijb\nput 2\nxyc\n")
    engine.run()
    assert service.lines == ["a", "put", "b", "put", "c"]
    assert service.bodies == [b"abcdefghij", b"xy"]
    assert peer.received == b"a\nput\nb\nput\nc\n"


def test_a_large_one(engine: MemoryEngine) -> None:
    service = Whole()
    peer = engine.connect(service)
    size = 5 * ROOM
    peer.send(b"put %d\n" % size + b"x" * size)
    engine.run()
    assert service.bodies == [b"x" * size]


def test_the_interim_answer_is_sent_at_once(engine: MemoryEngine) -> None:
    service = Whole()
    peer = engine.connect(service)
    peer.send(b"put 3 ?\n")
    engine.run()
    assert peer.received == b"GO\n"
    peer.send(b"abc")
    engine.run()
    assert (service.bodies, peer.received) == ([b"abc"], b"GO\nput\n")


def test_a_silent_peer_while_collecting(engine: MemoryEngine) -> None:
    service = Whole(peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.advance(9)
    peer.send(b"d")
    engine.advance(9.9)
    assert not peer.eof
    engine.advance(0.2)
    assert (peer.received, service.lines, service.broken) == (b"TIMEOUT\n", [], 1)
    engine.advance(DRAIN_TIME + 0.01)
    finish(engine, service)


def test_collected_late(engine: MemoryEngine) -> None:
    service = Whole(peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"put 3\n")
    engine.run()
    with peer._lock:
        peer._inbox += b"abc"  # no event was seen
    engine.advance(10.1)
    assert (service.bodies, peer.received) == ([b"abc"], b"put\n")


@pytest.mark.parametrize("leave", [MemoryPeer.shutdown, MemoryPeer.reset])
def test_a_peer_that_leaves_while_collecting(
    engine: MemoryEngine, leave: Callable[[MemoryPeer], None]
) -> None:
    service = Whole()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    leave(peer)
    engine.run()
    assert (peer.closed, service.lines, service.broken) == (True, [], 1)
    finish(engine, service)


def test_nonsense_while_collecting(engine: MemoryEngine) -> None:
    service = Whole()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    peer.send(b"!")
    engine.run()
    assert (peer.received, service.lines, service.broken) == (b"ERR nonsense\n", [], 1)
    assert len(service.refused) == 1


# -- what plugins do ------------------------------------------------------------------------------


def test_new_session_raises(engine: MemoryEngine, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(BodyService):
        def new_session(self, seq: int, conn: CommConnection) -> BodySession:
            raise ValueError("a fault of new_session")

    service = Failing()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    assert peer.eof
    assert "no session could be made" in caplog.text
    engine.advance(DRAIN_TIME + 0.01)
    finish(engine, service)


def test_closed_in_new_session(engine: MemoryEngine) -> None:
    class Closing(BodyService):
        def new_session(self, seq: int, conn: CommConnection) -> BodySession:
            conn.close()
            return BodySession(self, seq, conn)

    service = Closing()
    peer = engine.connect(service)
    peer.send(b"put 10\nabc")
    engine.run()
    assert (peer.closed, service.lines, service.broken) == (True, [], 1)
    finish(engine, service)


def test_arriving_is_seen_in_new_session_only(engine: MemoryEngine) -> None:
    seen: list[bool] = []

    class Looking(BodyService):
        def new_session(self, seq: int, conn: CommConnection) -> BodySession:
            seen.append(conn.arriving is not None)
            return super().new_session(seq, conn)

    service = Looking(echo)  # type: ignore[arg-type]
    peer = engine.connect(service)
    peer.send(b"a\nput 1\nxb\n")
    engine.run()
    assert seen == [False, True, False]
    assert connection_of(service).arriving is None


# -- the stream by itself -----------------------------------------------------------------------


def test_wake_is_called_once() -> None:
    stream = IncomingStream()
    woken: list[int] = []
    assert stream.pull(lambda: woken.append(1)) is None
    stream.feed(b"a")
    stream.feed(b"b")
    stream.end()
    assert woken == [1]
    assert stream.read() == b"ab"
    assert stream.pull(print) == b""


def test_a_reader_that_blocks() -> None:
    stream = IncomingStream()
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(stream.read()))
    thread.start()
    stream.feed(b"ab")
    stream.feed(b"c")
    stream.end()
    thread.join(10)
    assert found == [b"abc"]


def test_a_reader_that_blocks_learns_of_a_failure() -> None:
    stream = IncomingStream()
    found: list[BaseException] = []

    def read() -> None:
        try:
            stream.read()
        except ConnectionResetError as error:
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    stream.fail(ConnectionResetError(errno.ECONNRESET, "gone"))
    thread.join(10)
    assert len(found) == 1


def test_async_for() -> None:
    async def main() -> bytes:
        stream = IncomingStream()
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, stream.feed, b"ab")
        loop.call_later(0.002, stream.end)
        return await stream.aread()

    assert asyncio.run(main()) == b"ab"


def test_blocking_in_a_loop_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="async for"):
            IncomingStream().read()

    asyncio.run(main())


def test_states_of_a_request_that_streams_in(engine: MemoryEngine) -> None:
    service = BodyService()
    peer = engine.connect(service)
    peer.send(b"put 3\n")
    engine.run()
    conn = connection_of(service)
    assert (conn.phase, conn.entry.deadline.limit) == ("PROCESSING", RECEIVE)
    peer.send(b"abc")
    engine.run()
    assert (conn.phase, conn.entry.deadline.limit is RECEIVE) == ("PROCESSING", False)
    service.sessions[-1].reply()
    engine.run()
    assert conn.phase == "KEEPALIVE"
    assert service.sessions[-1].states == [(TaskState.TOREPLY, 0), (TaskState.SUCCESS, 0)]


def test_who_reads_beside_another_is_not_left_waiting() -> None:
    """They share the pieces, and both see the end."""
    stream = IncomingStream()
    woken: list[str] = []
    assert stream.pull(lambda: woken.append("a")) is None
    assert stream.pull(lambda: woken.append("b")) is None
    stream.feed(b"x")
    assert woken == ["a", "b"]
    assert stream.pull(lambda: None) == b"x"
    assert stream.pull(lambda: woken.append("b")) is None
    stream.end()
    assert woken == ["a", "b", "b"]
    assert stream.pull(lambda: None) == b""
