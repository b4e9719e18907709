"""Communicator: requests in, replies out, in order, however the bytes are cut."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from line_service import LineService, LineSession, echo, later

from protoserve import ServerParams, TaskState, UsageError
from protoserve.kernel.communicator import _TURN_REQUESTS
from protoserve.kernel.ending import TURN_READS
from protoserve.kernel.intake import RECEIVE_SIZE
from protoserve.kernel.output import JOIN_SIZE
from protoserve.kernel.waiting import stop_connection
from protoserve.testing import MemoryEngine, connection_of

HIGH_WATER = ServerParams().unsent_limit
TOREPLY, SUCCESS, SYS_ERROR = TaskState.TOREPLY, TaskState.SUCCESS, TaskState.SYS_ERROR


def test_one_request(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    conn = connection_of(service)
    engine.run()
    assert conn.phase == "CONNECTED"
    peer.send(b"hello\n")
    engine.run()
    assert peer.received == b"hello\n"
    assert conn.phase == "KEEPALIVE"
    assert service.sessions[0].states == [(TOREPLY, 0), (SUCCESS, 0)]
    # One recv and one send for the event.
    assert (peer.reads, peer.sends) == (1, 1)
    assert (conn.entry.intake.bytes_in, conn.entry.output.sent, conn.seq) == (6, 6, 1)


def test_split_at_every_byte(engine: MemoryEngine) -> None:
    service = LineService()
    data = b"first\n?interim\nsecond\n"
    for cut in range(1, len(data)):
        peer = engine.connect(service)
        for piece in (data[:cut], data[cut:]):
            peer.send(piece)
            engine.run()
        assert peer.received == b"first\ninterim\nsecond\n"
    peer = engine.connect(service)
    for i in range(len(data)):
        peer.send(data[i : i + 1])
        engine.run()
    assert peer.received == b"first\ninterim\nsecond\n"


@pytest.mark.parametrize("requests", [2, 3, 50])
def test_pipelined_requests_are_answered_in_one_send(engine: MemoryEngine, requests: int) -> None:
    service = LineService()
    peer = engine.connect(service)
    data = b"".join(b"%d\n" % i for i in range(requests))
    peer.send(data)
    engine.run()
    assert peer.received == data
    assert (peer.reads, peer.sends) == (1, 1)
    assert [session.seq for session in service.sessions] == list(range(requests))


def test_many_large_replies_leave_as_vectors(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply([b"x" * 1000] * 99 + [b"\n"]))
    peer = engine.connect(service)
    peer.at_most = 7777
    peer.send(b"a\nb\n")
    engine.run()
    assert bytes(peer.received) == (b"x" * 99_000 + b"\n") * 2
    assert [session.states[-1] for session in service.sessions] == [(SUCCESS, 0)] * 2
    assert JOIN_SIZE < 2 * 99_001


@pytest.mark.parametrize("at_most", [1, 2, 3, 7])
def test_partial_writes(engine: MemoryEngine, at_most: int) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.at_most = at_most
    peer.send(b"alpha\nbeta\ngamma\n")
    engine.run()
    assert peer.received == b"alpha\nbeta\ngamma\n"
    assert connection_of(service).phase == "KEEPALIVE"


def test_success_is_told_when_the_last_byte_is_out(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service, room=7)
    peer.send(b"alpha\nbeta\n")
    engine.run()
    first, second = service.sessions
    assert peer.received == b"alpha\nb"
    assert first.states[-1] == (SUCCESS, 0)
    assert second.states == [(TOREPLY, 0)]
    assert connection_of(service).phase == "REPLYING"
    peer.read(100)
    engine.run()
    assert second.states[-1] == (SUCCESS, 0)


@pytest.mark.parametrize("answer", [b"", [], (), bytearray(), memoryview(b""), [b"", b""]])
def test_an_empty_reply_is_a_reply(engine: MemoryEngine, answer: Any) -> None:
    service = LineService(lambda session: session.reply(answer if session.seq == 0 else None))
    peer = engine.connect(service)
    peer.send(b"silent\n")
    engine.run()
    assert service.sessions[0].states == [(TOREPLY, 0), (SUCCESS, 0)]
    assert connection_of(service).phase == "KEEPALIVE"
    peer.send(b"loud\n")
    engine.run()
    assert peer.received == b"loud\n"


def test_an_empty_last_reply_succeeds(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply([]), keep_alive_timeout=0)
    peer = engine.connect(service)
    peer.send(b"bye\n")
    engine.run()
    assert service.sessions[0].states == [(TOREPLY, 0), (SUCCESS, 0)]
    assert peer.closed


def test_an_empty_reply_from_another_thread(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"silent\n")
    engine.run()
    run_in_thread(lambda: service.sessions[0].reply([]))
    assert service.sessions[0].states == [(TOREPLY, 0), (SUCCESS, 0)]


def test_every_kind_of_buffer(engine: MemoryEngine) -> None:
    words = memoryview(b"abcdefgh").cast("I")
    service = LineService(lambda session: session.reply([bytearray(b"1"), words, b"", b"\n"]))
    peer = engine.connect(service)
    peer.send(b"x\n")
    engine.run()
    assert peer.received == b"1abcdefgh\n"
    assert connection_of(service).entry.output.sent == 10


def run_in_thread(call: Any) -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def test_reply_from_another_thread(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"one\ntwo\nthree\n")
    engine.run()
    for word in ("one", "two", "three"):
        assert service.lines[-1] == word
        assert connection_of(service).phase == "PROCESSING"
        run_in_thread(service.sessions[-1].reply)
        # Sent by the thread that replied; the next request waits for a handler thread.
        assert peer.received.endswith(word.encode() + b"\n")
        engine.run()
    assert service.lines == ["one", "two", "three"]
    assert connection_of(service).phase == "KEEPALIVE"


def test_a_reply_while_its_handler_runs_is_sent_by_the_handler_thread(
    engine: MemoryEngine,
) -> None:
    sent: list[int] = []

    def handler(session: LineSession) -> None:
        run_in_thread(session.reply)
        sent.append(peer.sends)

    service = LineService(handler)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    assert sent == [0, 0]
    assert (peer.received, peer.sends) == (b"a\nb\n", 1)


class HookedLock:
    """A lock with something that happens just after it was let go, once."""

    def __init__(self, hook: Any) -> None:
        self.lock = threading.Lock()
        self.hook = hook

    def acquire(self) -> None:
        self.lock.acquire()

    def release(self) -> None:
        self.lock.release()
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


def test_a_reply_just_after_another_thread_let_go_ends_once(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"x\n")
    engine.run()
    conn = connection_of(service)
    (session,) = service.sessions
    conn.entry.lock = HookedLock(session.reply)  # type: ignore[assignment]
    engine.communicator.resume(conn.entry)
    assert peer.received == b"x\n"
    assert session.states == [(TOREPLY, 0), (SUCCESS, 0)]


def test_reply_twice(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"x\n")
    engine.run()
    with pytest.raises(UsageError, match="one reply"):
        service.sessions[0].reply()
    assert peer.received == b"x\n"


def test_a_reply_of_the_wrong_type_can_be_mended(engine: MemoryEngine) -> None:
    def handler(session: LineSession) -> None:
        for wrong in ("text", None, [b"x", "y"], 5, {b"a": 1}):
            with pytest.raises(TypeError, match="bytes-like"):
                session.reply(wrong if wrong is not None else object())
        session.reply(b"right\n")

    service = LineService(handler)
    peer = engine.connect(service)
    peer.send(b"x\n")
    engine.run()
    assert peer.received == b"right\n"
    assert connection_of(service).entry.output.sent == 6


def test_a_buffer_that_is_released_before_it_is_sent(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    view = memoryview(b"x" * 100)
    service = LineService(lambda session: session.reply(view))
    peer = engine.connect(service, room=0)
    peer.send(b"a\n")
    engine.run()
    connection_of(service).entry.output.buffers[0].release()  # type: ignore[union-attr]
    peer.read(None)
    engine.run()
    assert peer.closed
    assert service.sessions[0].states[-1] == (SYS_ERROR, errno.EIO)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("size", [0, 4, 99, 101, 200])
def test_a_buffer_that_changes_before_it_is_sent_leaves_nothing_behind(
    engine: MemoryEngine, size: int
) -> None:
    data = bytearray(b"x" * 100)
    replies: list[Any] = [data, b"next\n"]
    service = LineService(lambda session: session.reply(replies.pop(0)))
    peer = engine.connect(service, room=0)
    peer.send(b"a\n")
    engine.run()
    output = connection_of(service).entry.output
    data[:] = b"y" * size
    for step in (100, None):
        peer.read(step)
        engine.run()
    assert peer.received == b"y" * size
    assert not output.pending
    assert output.buffers == []
    assert service.sessions[0].states[-1] == (SUCCESS, 0)
    peer.send(b"b\n")
    engine.run()
    assert peer.received == b"y" * size + b"next\n"
    assert not output.pending
    assert not peer.closed


def test_what_is_sent_in_part_is_not_tried_again_at_once(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply(b"x" * 100))
    peer = engine.connect(service, room=40)
    peer.send(b"a\n")
    engine.run()
    assert (len(peer.received), peer.sends) == (40, 1)


def test_many_small_buffers_are_not_copied_with_each_send(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply([b"0123456789"] * 20_000))
    peer = engine.connect(service, room=0)
    peer.send(b"a\n")
    engine.run()
    output = connection_of(service).entry.output
    waits = output.buffers
    peer.read(1000)
    engine.run()
    assert output.buffers is waits
    peer.read(None)
    engine.run()
    assert len(peer.received) == 200_000
    assert not output.pending


def test_feedback_keeps_its_place(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\n?between\nb\n?after\n")
    engine.run()
    assert peer.received == b""
    service.sessions[0].reply()
    engine.run()
    assert peer.received == b"a\nbetween\n"
    service.sessions[1].reply()
    engine.run()
    assert peer.received == b"a\nbetween\nb\nafter\n"


# -- limits --------------------------------------------------------------------------------


def test_reading_pauses_at_max_pipelined_and_goes_on(engine: MemoryEngine) -> None:
    service = LineService(later, max_pipelined=3)
    peer = engine.connect(service)
    peer.send(b"0\n")
    engine.run()
    # Each piece is one read: reading stops once three parsed requests wait.
    piece = b"1\n" * (RECEIVE_SIZE // 2)
    peer.send(piece * 3)
    engine.run()
    conn = connection_of(service)
    assert conn.entry.intake.queue is not None
    assert len(conn.entry.intake.queue) == 3
    assert peer.unread == len(piece) * 2
    service.handler = echo
    service.sessions[0].reply()
    engine.run()
    assert peer.unread == 0
    assert bytes(peer.received) == b"0\n" + piece * 3


def test_a_peer_that_does_not_read_is_not_read(engine: MemoryEngine) -> None:
    big = b"x" * (HIGH_WATER // 4)
    service = LineService(lambda session: session.reply(big), peer_response_timeout=None)
    peer = engine.connect(service, room=0)
    peer.send(b"a\n" * 100)
    engine.run()
    assert len(service.sessions) == 4
    assert peer.reads == 1
    for _ in range(10):
        peer.send(b"b\n")
        engine.run()
    assert len(service.sessions) == 4
    assert peer.reads == 1
    peer.read(None)
    engine.run()
    assert len(service.sessions) == 110
    assert len(peer.received) == len(big) * 110


def test_back_pressure_while_a_request_waits_for_its_reply(engine: MemoryEngine) -> None:
    service = LineService(later, peer_response_timeout=None, max_pipelined=10_000)
    peer = engine.connect(service, room=0)
    peer.send(b"a\n?" + b"i" * HIGH_WATER + b"\nb\n")
    engine.run()
    service.sessions[0].reply()
    engine.run()
    # Its unsent output is over the mark: neither served nor read until it shrinks.
    assert service.lines == ["a"]
    peer.send(b"c\n")
    engine.run()
    assert peer.unread == 2
    peer.read(None)
    engine.run()
    assert service.lines == ["a", "b"]


def test_room_between_two_sends_is_not_missed(engine: MemoryEngine) -> None:
    """The peer reads just between two sends of one turn: requests are still waiting, and
    all output is gone, when the socket becomes writable."""
    service = LineService(
        lambda session: session.reply(b"x" * HIGH_WATER), peer_response_timeout=None
    )
    peer = engine.connect(service, room=0)
    sends: list[int] = []

    def before_send() -> None:
        sends.append(1)
        if len(sends) == 2:
            peer.read(None)

    peer.before_send = before_send
    peer.send(b"a\nb\nc\n")
    engine.run()
    assert service.lines == ["a", "b", "c"]
    assert len(peer.received) == 3 * HIGH_WATER


def test_a_busy_connection_gives_way_to_others(engine: MemoryEngine) -> None:
    order: list[str] = []

    def handler(session: LineSession) -> None:
        order.append(session.connection.peername)
        session.reply()

    service = LineService(handler)
    greedy = engine.connect(service, "greedy")
    modest = engine.connect(service, "modest")
    greedy.send(b"g\n" * (_TURN_REQUESTS * 3))
    modest.send(b"m\n")
    engine.run()
    assert order.index("modest") <= _TURN_REQUESTS
    assert order.count("greedy") == _TURN_REQUESTS * 3
    assert greedy.received == b"g\n" * (_TURN_REQUESTS * 3)


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize(("milliseconds", "requests"), [(3, 1), (0.7, 3)])
def test_slow_handlers_of_one_connection_give_way_to_others(
    engine: MemoryEngine, milliseconds: float, requests: int, quiet: bool
) -> None:
    """A turn of a connection ends by the time that its handlers took, too."""
    order: list[str] = []

    def handler(session: LineSession) -> None:
        order.append(session.connection.peername)
        if session.line == "slow":
            engine.clock.advance(milliseconds / 1000)
        session.reply()

    service = LineService(handler)
    service.quiet = quiet
    greedy = engine.connect(service, "greedy")
    modest = engine.connect(service, "modest")
    engine.run()
    greedy.send(b"slow\n" * 30)
    for _ in range(5):
        modest.send(b"m\n")
        order.clear()
        engine.turn()
        assert sorted(order) == ["greedy"] * requests + ["modest"]
    engine.run()
    assert greedy.received == b"slow\n" * 30


@pytest.mark.parametrize(("milliseconds", "pieces"), [(3, 1), (0.7, 3)])
def test_slow_pieces_of_one_reply_give_way_to_others(
    engine: MemoryEngine, milliseconds: float, pieces: int
) -> None:
    pulled = 0

    def reply() -> Iterator[bytes]:
        nonlocal pulled
        yield b"begun "
        for _ in range(30):
            engine.clock.advance(milliseconds / 1000)
            pulled += 1
            yield b"x"

    service = LineService(lambda session: session.reply(reply()))
    peer = engine.connect(service)
    engine.run()
    peer.send(b"a\n")
    for turn in range(1, 4):
        engine.turn()
        assert pulled == pieces * turn
    engine.run()
    assert bytes(peer.received) == b"begun " + b"x" * 30


def test_a_fast_sender_gives_way_to_others(engine: MemoryEngine) -> None:
    service = LineService()
    greedy = engine.connect(service, "greedy")
    modest = engine.connect(service, "modest")
    engine.run()
    upload = b"u" * (RECEIVE_SIZE * TURN_READS * 3)
    greedy.send(upload)
    modest.send(b"m\n")
    engine.turn()
    assert greedy.reads == TURN_READS
    assert modest.received == b"m\n"
    engine.run()
    greedy.send(b"\n")
    engine.run()
    assert bytes(greedy.received) == upload + b"\n"


def test_a_fast_sender_gives_way_while_its_request_runs(engine: MemoryEngine) -> None:
    service = LineService(later)
    greedy = engine.connect(service, "greedy")
    greedy.send(b"first\n" + b"u" * (RECEIVE_SIZE * TURN_READS * 5))
    engine.turn()
    assert greedy.reads <= 2 * TURN_READS + 1
    engine.run()
    assert greedy.unread == 0
    assert service.lines == ["first"]


# -- the peer's end ------------------------------------------------------------------------


def test_half_close_gets_its_replies(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    peer.shutdown()
    engine.run()
    for session_number in range(2):
        assert not peer.closed
        service.sessions[session_number].reply()
        engine.run()
    assert peer.received == b"a\nb\n"
    assert peer.closed
    assert service.reasons == ["the peer closed"]
    assert service.ends[0].requests == 2


def test_half_close_after_the_request_was_read(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    peer.shutdown()
    engine.run()
    assert not peer.closed
    service.sessions[0].reply()
    engine.run()
    assert peer.received == b"a\n"
    assert peer.closed


def test_half_close_and_a_slow_reader(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service, room=1)
    peer.send(b"abc\ndef\n")
    peer.shutdown()
    engine.run()
    assert not peer.closed
    for _ in range(7):
        peer.read(1)
        engine.run()
    assert peer.received == b"abc\ndef\n"
    assert peer.closed


def test_half_close_in_the_middle_of_a_request(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"whole\npart")
    peer.shutdown()
    engine.run()
    assert peer.received == b"whole\n"
    assert service.lines == ["whole"]
    assert service.reasons == ["the peer left in the middle of a request"]


def test_the_end_may_complete_a_message(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"last")
    engine.run()
    assert service.lines == []
    peer.shutdown()
    engine.run()
    assert peer.received == b"last\n"
    assert peer.closed


def test_a_peer_that_leaves_without_a_word(engine: MemoryEngine) -> None:
    service = LineService()
    engine.connect(service).shutdown()
    engine.run()
    assert service.conn_count == 0
    assert (service.ends[0].bytes_in, service.ends[0].requests) == (0, 0)


def test_the_peer_is_gone_before_the_reply(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    session = service.sessions[0]
    gone: list[object] = []
    session.connection.on_close(gone.append)
    peer.reset()
    engine.run()
    assert session.connection.closed
    assert gone == [session.connection]
    assert session.states == [(TOREPLY, 0)]
    service.release()
    assert service.unbound == 0, "a series is still alive"
    assert session.reply() is False
    assert service.unbound == 1
    assert session.states == [(TOREPLY, 0)]
    assert service.lines == ["a"]
    with pytest.raises(UsageError):
        session.reply()


def test_the_peer_is_gone_while_the_reply_is_written(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service, room=2)
    peer.send(b"abc\ndef\n")
    engine.run()
    peer.reset(errno.EPIPE)
    engine.run()
    assert [session.states[-1] for session in service.sessions] == [(SYS_ERROR, errno.EPIPE)] * 2
    assert "Broken pipe" in service.reasons[0]
    assert service.ends[0].bytes_out == 2


def test_close_tells_bytes_and_requests(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service, "somebody")
    peer.send(b"abc\ndef\n")
    engine.run()
    connection_of(service).close()
    (end,) = service.ends
    assert (end.peername, end.bytes_in, end.bytes_out, end.requests) == ("somebody", 8, 8, 2)
    assert end.reason == "closed by the server"
    assert service.parsers[0].closed == 1


# -- faults --------------------------------------------------------------------------------


def test_answers_come_before_the_farewell(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"good\nfine\n!nonsense\nnever\n")
    engine.run()
    assert peer.received == b"good\nfine\nERR nonsense\n"
    assert service.lines == ["good", "fine"]
    # The end of sending is announced; what still comes is taken in, for a while.
    assert peer.eof
    assert not peer.closed
    peer.send(b"x" * 100_000)
    engine.run()
    assert peer.unread == 0
    peer.shutdown()
    engine.run()
    assert peer.closed
    assert service.reasons == ["protocol error: nonsense"]


def test_answers_that_come_later_come_before_the_farewell(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"good\n!nonsense\n")
    engine.run()
    assert peer.received == b""
    service.sessions[0].reply()
    engine.run()
    assert peer.received == b"good\nERR nonsense\n"


def test_a_farewell_is_drained_for_a_bounded_time(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"!nonsense\n")
    engine.run()
    for _ in range(30):
        peer.send(b"more")
        engine.advance(0.1)
        if peer.closed:
            break
    assert peer.closed
    assert service.reasons == ["the peer did not close in time"]


def test_a_fault_without_a_farewell(engine: MemoryEngine) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"good\n!\n")
    engine.run()
    assert peer.received == b"good\n"
    assert peer.eof


@pytest.mark.parametrize("fault", [b"crash\n", b"!text\n"])
def test_a_parser_that_fails_after_good_requests(
    engine: MemoryEngine, fault: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"good\n" + fault)
    engine.run()
    assert peer.received.startswith(b"good\n")
    assert service.sessions[0].states[-1] == (SUCCESS, 0)
    assert peer.eof
    assert len(caplog.records) == (fault == b"crash\n")


def test_a_parser_that_fails_in_feed(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"good\n")
    peer.send(b"x\0")
    engine.run()
    assert peer.closed
    assert service.reasons == ["the protocol's own code failed: the parser failed"]
    assert len(caplog.records) == 1


def test_feed_fails_with_replies_unsent(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"good\n" + b"x" * (RECEIVE_SIZE - 5) + b"\0")
    engine.run()
    assert peer.received == b"good\n"
    assert peer.closed
    assert caplog.records


@pytest.mark.parametrize("where", ["partial", "close", "timeout_reply", "feed_eof"])
def test_a_parser_that_fails_elsewhere(
    engine: MemoryEngine, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection ends, no lock is left held, and others are served."""
    service = LineService(receive_timeout=5)
    peer = engine.connect(service)
    engine.run()
    parser = service.parsers[0]

    def fail(self: object) -> bytes:
        raise ValueError(f"a fault of the parser in {where}")

    faulty = type(
        "Faulty", (type(parser),), {where: property(fail) if where == "partial" else fail}
    )
    parser.__class__ = faulty
    peer.send(b"a\nb")
    engine.run()
    if where == "timeout_reply":
        engine.advance(10)
    peer.shutdown()
    engine.run()
    assert peer.closed
    assert service.conn_count == 0
    assert any("raised" in record.message for record in caplog.records)
    other = engine.connect(service)
    other.send(b"ok\n")
    engine.run()
    assert other.received == b"ok\n"


def test_a_farewell_of_the_wrong_type(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    service = LineService()
    service.last_word = "text"
    peer = engine.connect(service)
    peer.send(b"part")
    engine.run()
    engine.advance(100)
    assert peer.closed
    peer = engine.connect(service)
    engine.run()
    peer.send(b"good\n!bad\n")
    service.parsers[-1].next_message = wrong_reply(service)  # type: ignore[method-assign]
    engine.run()
    assert peer.eof
    assert len(caplog.records) == 2


def wrong_reply(service: LineService) -> Any:
    from protoserve import ProtocolError

    def next_message() -> None:
        raise ProtocolError("a reply that is text", reply="text")  # type: ignore[arg-type]

    return next_message


def test_feedback_of_the_wrong_type(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    from protoserve import Feedback

    service = LineService()
    peer = engine.connect(service)
    engine.run()
    service.parsers[0].next_message = lambda: Feedback("text")  # type: ignore
    peer.send(b"x\n")
    engine.run()
    assert peer.eof
    assert caplog.records


@pytest.mark.parametrize("method", ["new_session", "message_in"])
def test_no_session_can_be_made(
    engine: MemoryEngine,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = LineService()
    peer = engine.connect(service)
    peer.send(b"good\nbad\nnever\n")
    owner = LineService if method == "new_session" else LineSession
    right = getattr(owner, method)

    def fail_second(self: Any, *args: Any) -> Any:
        if "bad" in args or args[0] == 1:
            raise ValueError("a fault of the service")
        return right(self, *args)

    monkeypatch.setattr(owner, method, fail_second)
    engine.run()
    assert peer.received == b"good\n"
    assert peer.eof
    assert service.lines == ["good"]
    peer.shutdown()
    engine.run()
    assert service.reasons == ["the protocol's own code failed: no session could be made"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_session_that_raises_ends_its_connection(
    engine: MemoryEngine, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def handler(session: LineSession) -> None:
        if session.line == "good":
            session.reply()
            return
        raise error("a fault of the session")

    service = LineService(handler)
    peer = engine.connect(service)
    peer.send(b"good\nx\ny\n")
    engine.run()
    assert peer.received == b"good\n"
    assert peer.eof
    peer.shutdown()
    engine.run()
    assert peer.closed
    assert service.lines == ["good", "x"]
    assert len(caplog.records) == 1
    service.release()
    assert service.unbound == 1


def test_a_session_that_raises_after_its_connection_closed(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(session: LineSession) -> None:
        session.connection.close()
        raise ValueError("a fault of the session")

    service = LineService(handler)
    engine.connect(service).send(b"x\n")
    engine.run()
    service.release()
    assert service.unbound == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_session_that_raises_afterwards(
    engine: MemoryEngine, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def on_result(session: LineSession) -> None:
        raise error("a fault after the reply")

    service = LineService(keep_alive_timeout=0)
    service.on_result = on_result
    peer = engine.connect(service)
    peer.send(b"x\n")
    engine.run()
    assert peer.received == b"x\n"
    assert peer.closed
    service.release()
    assert service.unbound == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


# -- closing -------------------------------------------------------------------------------


def test_noreply_closes_where_the_reply_would_have_gone(engine: MemoryEngine) -> None:
    service = LineService(
        lambda session: session.end() if session.line == "end" else session.reply()
    )
    peer = engine.connect(service)
    peer.send(b"a\nend\nnever\n")
    engine.run()
    assert peer.received == b"a\n"
    assert peer.eof
    assert service.lines == ["a", "end"]
    peer.shutdown()
    engine.run()
    assert service.reasons == ["closed without a reply"]
    service.release()
    assert service.unbound == 1


def test_noreply_from_another_thread(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    run_in_thread(service.sessions[0].end)
    assert peer.closed
    service.release()
    assert service.unbound == 1


def test_keep_alive_0_closes_after_the_reply(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=0)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert peer.received == b"a\n"
    assert peer.closed
    assert not peer.aborted
    assert service.reasons == ["the reply was the last"]


def test_the_last_reply_is_not_lost_to_unread_input(engine: MemoryEngine) -> None:
    """Closing a socket with unread input makes the system send a reset."""
    service = LineService(keep_alive_timeout=0)
    peer = engine.connect(service)
    peer.send(b"a\nb\n" + b"x" * 200_000)
    engine.run()
    assert peer.received == b"a\n"
    assert peer.eof
    assert not peer.closed
    assert peer.unread == 0
    peer.shutdown()
    engine.run()
    assert peer.closed
    assert service.lines == ["a"]


def test_a_last_reply_with_nothing_left_to_read_just_closes(engine: MemoryEngine) -> None:
    """Also when a read was due: it shows that there is nothing."""
    service = LineService(later, keep_alive_timeout=0)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    connection_of(service).entry.intake.readable = True  # as stop_connection() does
    run_in_thread(service.sessions[0].reply)
    assert peer.closed


def test_events_in_order(engine: MemoryEngine) -> None:
    """A connection's last reply has ended before the connection."""
    order: list[str] = []
    service = LineService(keep_alive_timeout=0)
    service.subscribe(lambda event: order.append(type(event).__name__))
    service.on_result = lambda session: order.append("result")
    engine.connect(service).send(b"a\n")
    engine.run()
    assert order == ["ConnectionOpened", "result", "ConnectionClosed"]


def test_close_in_a_handler(engine: MemoryEngine) -> None:
    def handler(session: LineSession) -> None:
        session.connection.close()
        assert session.connection.closed
        assert session.reply() is False

    service = LineService(handler)
    peer = engine.connect(service)
    peer.send(b"a\nb\n")
    engine.run()
    assert peer.closed
    assert peer.received == b""
    assert service.lines == ["a"]
    service.release()
    assert service.unbound == 1


def test_close_from_other_threads(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    conn = connection_of(service)
    threads = [threading.Thread(target=conn.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peer.closed
    assert conn.phase == "CLOSED"
    assert len(service.ends) == 1
    assert service.sessions[0].reply() is False


def test_on_close(engine: MemoryEngine, caplog: pytest.LogCaptureFixture) -> None:
    service = LineService()
    peer = engine.connect(service)
    conn = connection_of(service)
    calls: list[str] = []

    def raising(_: object) -> None:
        calls.append("raising")
        raise ValueError("a fault of a callback")

    def exiting(_: object) -> None:
        calls.append("exiting")
        raise SystemExit

    conn.on_close(lambda c: calls.append("first"))
    conn.on_close(raising)
    conn.on_close(exiting)
    conn.on_close(lambda c: c.on_close(lambda c: calls.append("nested")))
    conn.on_close(lambda c: calls.append("last") if c is conn and c.closed else None)
    peer.shutdown()
    engine.run()
    conn.close()
    assert calls == ["first", "raising", "exiting", "nested", "last"]
    conn.on_close(lambda c: calls.append("late"))
    assert calls[-1] == "late"
    assert len(caplog.records) == 2
    service.release()
    assert service.unbound == 1


def test_on_close_may_use_the_connection(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    answered: list[bool] = []
    connection_of(service).on_close(lambda c: answered.append(service.sessions[0].reply()))
    peer.reset()
    engine.run()
    assert answered == [False]
    service.release()
    assert service.unbound == 1


def test_the_poller_refuses_a_connection(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine.readiness, "add", refuse)
    service = LineService()
    peer = engine.connect(service)
    assert peer.closed
    assert service.conn_count == 0
    service.release()
    assert service.unbound == 1


# -- the service stops ---------------------------------------------------------------------


def stop(engine: MemoryEngine, service: LineService) -> None:
    service.stopping = True
    for conn in service.connections():
        stop_connection(conn.entry)
    service.release()
    engine.run()


def test_stopping(engine: MemoryEngine) -> None:
    service = LineService(later)
    silent = engine.connect(service)
    idle, busy, half, unread = (engine.connect(service) for _ in range(4))
    for peer in (idle, busy):
        peer.send(b"a\n")
    half.send(b"ha")
    engine.advance(1)  # nobody has only just been accepted
    service.sessions[0].reply()
    engine.run()
    unread.send(b"read late\n")  # in the socket's buffer when the stop comes
    service.handler = echo
    stop(engine, service)
    assert silent.closed
    assert idle.closed
    assert (unread.received, unread.eof) == (b"read late\n", True)
    assert not busy.closed
    assert service.sessions[1].connection.closing
    assert not half.closed
    service.sessions[1].reply()
    engine.run()
    assert (busy.received, busy.eof) == (b"a\n", True)
    half.send(b"lf\n")
    assert service.unbound == 0
    engine.run()
    assert (half.received, half.eof) == (b"half\n", True)
    assert service.unbound == 0  # what these still send must not cost them the reply
    engine.advance(2)
    assert half.closed
    assert unread.closed
    assert busy.closed
    assert service.unbound == 1


def test_accepted_while_the_service_stops(engine: MemoryEngine) -> None:
    service = LineService()
    service.stopping = True
    silent, asks = engine.connect(service), engine.connect(service)
    engine.run()
    asks.send(b"a\n")  # a request that crossed the stop
    engine.advance(0.4)
    assert (asks.received, asks.eof) == (b"a\n", True)
    assert not silent.closed
    engine.advance(0.2)
    assert silent.closed


def test_accepted_a_moment_before_the_service_stops(engine: MemoryEngine) -> None:
    service = LineService()
    old = engine.connect(service)
    engine.advance(1)
    silent, asks = engine.connect(service), engine.connect(service)
    engine.run()
    stop(engine, service)
    assert old.closed
    assert not silent.closed
    asks.send(b"a\n")
    engine.run()
    assert (asks.received, asks.eof) == (b"a\n", True)
    engine.advance(0.6)
    assert silent.closed


def test_states_of_a_request(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service, room=0)
    conn = connection_of(service)
    seen = [conn.phase]
    peer.send(b"par")
    engine.run()
    seen.append(conn.phase)
    peer.send(b"tial\n")
    engine.run()
    seen.append(conn.phase)
    service.sessions[0].reply()
    seen.append(conn.phase)
    peer.read(None)
    engine.run()
    seen.append(conn.phase)
    peer.send(b"again")
    engine.run()
    seen.append(conn.phase)
    peer.reset()
    engine.run()
    seen.append(conn.phase)
    assert seen == [
        "CONNECTED",
        "RECEIVING",
        "PROCESSING",
        "REPLYING",
        "KEEPALIVE",
        "RECEIVING",
        "CLOSED",
    ]
