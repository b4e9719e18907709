"""The deadlines of connections, on a clock that is moved by hand."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest
from line_service import LineService, LineSession, echo, later

from protoserve import ServerParams, TaskState
from protoserve.kernel.ending import DRAIN_TIME
from protoserve.kernel.handing import keeps_its_thread
from protoserve.testing import MemoryEngine, MemoryPeer, connection_of

HIGH_WATER = ServerParams().unsent_limit
TIMED_OUT = (TaskState.SYS_ERROR, errno.ETIMEDOUT)


def open_for(engine: MemoryEngine, peer: MemoryPeer, seconds: float) -> None:
    """Check that the connection stays open for exactly so long."""
    engine.advance(seconds - 0.01)
    assert not peer.eof
    engine.advance(0.02)
    assert peer.eof


def test_silent_from_the_start(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service)
    open_for(engine, peer, 10)
    assert peer.received == b""
    assert service.reasons == ["no request came"]


def test_silence_between_two_reads(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service)
    for _ in range(3):
        engine.advance(9)
        peer.send(b"x")
    engine.run()
    open_for(engine, peer, 10)
    assert peer.received == b"TIMEOUT\n"
    assert service.lines == []
    engine.advance(DRAIN_TIME + 0.01)
    assert peer.closed


def test_no_farewell(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    service.last_word = b""
    peer = engine.connect(service)
    peer.send(b"x")
    open_for(engine, peer, 10)
    assert peer.closed
    assert service.reasons == ["the request did not arrive in time"]


def test_a_farewell_after_the_replies_before(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"whole\npart")
    open_for(engine, peer, 10)
    assert peer.received == b"whole\nTIMEOUT\n"


@pytest.mark.parametrize("first", [b"", b"whole\n"])
def test_a_byte_now_and_then_does_not_live_for_ever(engine: MemoryEngine, first: bytes) -> None:
    service = LineService(peer_response_timeout=10, receive_timeout=60)
    peer = engine.connect(service)
    peer.send(first + b"x")
    engine.run()
    for _ in range(6):
        engine.advance(9)
        assert not peer.eof
        peer.send(b"x")
    open_for(engine, peer, 6)
    assert peer.received == first + b"TIMEOUT\n"


def test_each_request_has_its_own_receive_timeout(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10, receive_timeout=15)
    peer = engine.connect(service)
    peer.send(b"x")
    for _ in range(10):
        engine.advance(9)
        peer.send(b"x\nx")
    engine.run()
    assert len(service.lines) == 10
    open_for(engine, peer, 10)


def test_blank_bytes_do_not_extend_a_connection(engine: MemoryEngine) -> None:
    """Input that makes no message, as a parser may drop it, is no activity."""
    service = LineService(peer_response_timeout=10, receive_timeout=20, keep_alive_timeout=60)
    peer = engine.connect(service)
    engine.run()
    service.parsers[0].feed = lambda data: None  # type: ignore[method-assign]
    peer.send(b"\r\n")
    engine.run()
    engine.advance(9)
    assert not peer.eof
    peer.send(b"\r\n")
    open_for(engine, peer, 1)


def test_a_peer_that_caught_up_with_a_push_stays(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=60, peer_response_timeout=2)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    [conn] = service.connections()
    peer.room = 0
    assert conn.push(b"x" * 1000)
    engine.advance(1)
    peer.read()
    engine.run()
    assert peer.received.endswith(b"x" * 1000)
    engine.advance(30)
    assert not peer.closed


def test_keep_alive(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=60, peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.advance(59)
    peer.send(b"b\n")
    engine.run()
    open_for(engine, peer, 60)
    assert peer.closed
    assert not peer.aborted
    assert service.reasons == ["the keep-alive time has passed"]


def test_keep_alive_of_one_reply(engine: MemoryEngine) -> None:
    def handler(session: LineSession) -> None:
        session.keep_alive = {"short": 5.0, "long": None, "last": 0.0}[session.line]
        session.reply()

    service = LineService(handler, keep_alive_timeout=60)
    peer = engine.connect(service)
    peer.send(b"long\n")
    engine.advance(1_000_000)
    assert not peer.eof
    peer.send(b"short\n")
    engine.run()
    open_for(engine, peer, 5)
    peer = engine.connect(service)
    peer.send(b"last\n")
    engine.run()
    assert peer.closed


def test_the_first_byte_ends_keep_alive(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=60, peer_response_timeout=10)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    conn = connection_of(service)
    assert conn.phase == "KEEPALIVE"
    peer.send(b"b")
    engine.run()
    assert conn.phase == "RECEIVING"
    open_for(engine, peer, 10)


def test_a_handler_may_take_as_long_as_it_wants(engine: MemoryEngine) -> None:
    service = LineService(
        later,
        peer_response_timeout=2,
        receive_timeout=2,
        keep_alive_timeout=2,
        send_timeout=2,
    )
    peer = engine.connect(service)
    peer.send(b"a\npart")
    engine.advance(100_000)
    assert not peer.eof
    service.sessions[0].reply()
    engine.run()
    assert peer.received == b"a\n"
    # The time of the next request starts now: until here nobody waited for it.
    open_for(engine, peer, 2)


def test_a_peer_that_does_not_take_the_reply(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply(b"x" * 100), peer_response_timeout=10)
    peer = engine.connect(service, room=10)
    peer.send(b"a\nb\n")
    open_for(engine, peer, 10)
    assert peer.aborted
    assert [session.states[-1] for session in service.sessions] == [TIMED_OUT] * 2
    assert service.reasons == ["the peer did not take the reply in time"]


def test_progress_extends_the_time_of_a_write(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply(b"x" * 100), peer_response_timeout=10)
    peer = engine.connect(service, room=10)
    peer.send(b"a\n")
    for _ in range(5):
        engine.advance(9)
        peer.read(10)
    engine.run()
    open_for(engine, peer, 10)
    assert len(peer.received) == 60


def test_a_slow_reader_makes_progress_unannounced(engine: MemoryEngine) -> None:
    """Linux announces room when a third of the buffer is free; a slow reader may take
    longer for that than one step may last."""
    service = LineService(
        lambda session: session.reply(b"x" * 100), peer_response_timeout=10, send_timeout=95
    )
    peer = engine.connect(service, room=10)
    peer.send(b"a\nb\n")
    engine.run()
    for _ in range(9):
        engine.advance(8)
        peer.room = 5
        engine.advance(2.1)
        assert not peer.aborted
    assert len(peer.received) == 55
    # ... but the time of the whole reply is not extended.
    peer.room = 1
    engine.advance(10)
    assert peer.aborted


def test_a_reader_that_ends_unannounced(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service, room=1)
    peer.send(b"a\nb\n")
    engine.advance(9)
    peer.room = None
    engine.advance(2)
    assert peer.received == b"a\nb\n"
    assert connection_of(service).phase == "KEEPALIVE"
    engine.advance(61)
    assert peer.closed


def test_requests_do_not_extend_the_time_of_a_write(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service, room=1)
    peer.send(b"aaaa\n")
    engine.run()
    for _ in range(4):
        engine.advance(2)
        peer.send(b"more\n")
    engine.run()
    open_for(engine, peer, 2)


def test_a_request_in_work_does_not_extend_the_time_of_a_write(engine: MemoryEngine) -> None:
    service = LineService(peer_response_timeout=10)
    peer = engine.connect(service, room=1)
    peer.send(b"aaaa\n")
    engine.advance(5)
    service.handler = later
    peer.send(b"b\n")
    engine.run()
    open_for(engine, peer, 5)


def test_input_does_not_extend_the_time_of_a_write(engine: MemoryEngine) -> None:
    service = LineService(
        lambda session: session.reply(b"x" * HIGH_WATER * 2), peer_response_timeout=10
    )
    peer = engine.connect(service, room=1)
    peer.send(b"a\n")
    for _ in range(3):
        engine.advance(3)
        peer.send(b"b")
    open_for(engine, peer, 1)


def test_send_timeout(engine: MemoryEngine) -> None:
    service = LineService(
        lambda session: session.reply(b"x" * 100), peer_response_timeout=10, send_timeout=30
    )
    peer = engine.connect(service, room=1)
    peer.send(b"a\n")
    for _ in range(5):
        engine.advance(5)
        peer.read(1)
    engine.run()
    open_for(engine, peer, 5)
    assert service.sessions[0].states[-1] == TIMED_OUT


def test_send_timeout_is_each_reply_s_own(engine: MemoryEngine) -> None:
    service = LineService(
        lambda session: session.reply(b"x" * 100), peer_response_timeout=10, send_timeout=30
    )
    peer = engine.connect(service, room=0)
    peer.send(b"a\n" * 10)
    for _ in range(9):
        engine.advance(9)
        peer.read(100)  # a reply in 9 s; all of them in 90
        engine.run()
        assert not peer.aborted
    assert len(peer.received) == 900


def test_send_timeout_starts_anew_after_a_pause(engine: MemoryEngine) -> None:
    """What the peer took while a handler ran does not count against the next reply."""
    service = LineService(later, send_timeout=30)
    peer = engine.connect(service, room=0)
    peer.send(b"a\nb\n")
    engine.run()
    conn = connection_of(service)
    service.sessions[0].reply()
    # The handler of the second request blocks, and another thread sends meanwhile.
    conn.entry.exchanges.pumping = True
    keeps_its_thread(conn.entry, True)
    engine.advance(5)
    peer.read(2)
    engine.run()
    assert peer.received == b"a\n"
    engine.advance(50)
    conn.entry.exchanges.pumping = False
    service.handler = echo
    engine.communicator.resume(conn.entry)
    engine.advance(5)
    assert not peer.aborted


def test_a_late_report_of_a_blocked_handler_changes_nothing(engine: MemoryEngine) -> None:
    """A follower may learn that a handler blocks when it has just returned."""
    service = LineService(keep_alive_timeout=60)
    peer = engine.connect(service, room=0)
    peer.send(b"a\n")
    engine.run()
    conn = connection_of(service)
    peer.read(None)
    keeps_its_thread(conn.entry, True)
    engine.run()
    assert peer.received == b"a\n"
    assert conn.phase == "KEEPALIVE"
    open_for(engine, peer, 60)


def test_no_limits(engine: MemoryEngine) -> None:
    service = LineService(
        peer_response_timeout=None, receive_timeout=None, keep_alive_timeout=None
    )
    silent, partial, idle, stalled = (engine.connect(service) for _ in range(4))
    partial.send(b"x")
    idle.send(b"x\n")
    stalled.room = 0
    stalled.send(b"x\n")
    engine.advance(10_000_000)
    assert not any(peer.eof for peer in (silent, partial, idle, stalled))
    assert not engine.poller._timers


def test_timers_do_not_multiply(engine: MemoryEngine) -> None:
    """A connection that lives long has a bounded number of timers."""
    service = LineService(keep_alive_timeout=60, peer_response_timeout=10)
    peer = engine.connect(service)
    most = 0
    for _ in range(300):
        peer.send(b"par")
        engine.advance(2)
        peer.send(b"tial\n")
        engine.advance(11)
        most = max(most, len(engine.poller._timers))
    assert not peer.eof
    assert most < 10
    engine.advance(60)
    assert peer.closed


def test_a_timer_keeps_no_connection_alive(engine: MemoryEngine) -> None:
    service = LineService(keep_alive_timeout=60)
    peer = engine.connect(service)
    peer.send(b"x\n")
    engine.run()
    reference = weakref.ref(connection_of(service))
    peer.shutdown()
    engine.run()
    service.sessions.clear()
    service.ends.clear()
    gc.collect()
    assert reference() is None
    engine.advance(100)


@pytest.mark.parametrize(("rate", "seconds"), [(1, 160), (2, 64), (None, 40)])
def test_a_whole_request_s_deadline_grows_with_what_arrives(
    engine: MemoryEngine, rate: int | None, seconds: float
) -> None:
    """Three bytes in four seconds: 40 s, and one second for each ``rate`` bytes of them."""
    service = LineService(receive_timeout=40, receive_rate=rate, peer_response_timeout=10)
    peer = engine.connect(service)
    began = engine.clock.now
    while not peer.eof:
        peer.send(b"xxx")
        engine.advance(4)
        assert engine.clock.now < began + 1000
    assert seconds - 5 < engine.clock.now - began < seconds + 9
    assert bytes(peer.received) == b"TIMEOUT\n"


def test_what_the_system_takes_for_a_stalled_peer_is_no_progress(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply(b"x" * 1000), peer_response_timeout=10)
    peer = engine.connect(service, room=100)
    peer.under_way = 100
    peer.send(b"a\n")
    engine.run()
    peer.room = 300  # the system's buffer has grown, and nobody has read
    peer.under_way = 400
    engine.advance(10.1)
    assert peer.aborted
    assert service.reasons == ["the peer did not take the reply in time"]


def test_what_a_slow_peer_takes_is_progress(engine: MemoryEngine) -> None:
    service = LineService(lambda session: session.reply(b"x" * 1000), peer_response_timeout=10)
    peer = engine.connect(service, room=100)
    peer.under_way = 100
    peer.send(b"a\n")
    engine.run()
    for _ in range(5):
        peer.room = 100
        peer.under_way = 50
        engine.advance(9.9)
        assert not peer.aborted
        engine.advance(0.2)
        assert not peer.aborted


def test_a_request_that_stalls_beside_others_in_flight(engine: MemoryEngine) -> None:
    service = LineService(later, peer_response_timeout=5)
    service.in_flight = 3
    peer = engine.connect(service)
    peer.send(b"a\nb\npart")
    engine.run()
    assert service.lines == ["a", "b"]
    engine.advance(4)
    assert connection_of(service).entry.life.rung == 0
    engine.advance(2)
    # It is told so after the others' answers.
    assert connection_of(service).closing
    for session in reversed(service.sessions):
        session.reply()
    engine.run()
    assert peer.received == b"b\na\nTIMEOUT\n"
    assert peer.eof
