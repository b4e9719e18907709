"""Servers in memory: what moves, what time does, what the client decides."""

from __future__ import annotations

import errno
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from shouting import SHOUT, Answer, Task, shout, shout_later

from protoserve import (
    ConfigError,
    ParallelWork,
    ProtocolSpec,
    SeriesWork,
    TaskState,
    UsageError,
    WaitGroup,
    WFServer,
    coroutine,
    get_scheduler,
    go,
    timer,
)
from protoserve.events import Event
from protoserve.testing import ManualClock, MemoryPeer, MemoryServer, memory_server
from protoserve_http import HTTP_SPEC, WFHttpTask
from protoserve_redis import REDIS_SPEC, CommandTable, WFRedisServer

Handler = Callable[[Task], object]
Memory = MemoryServer[bytes, Answer]


def greeted(memory: Memory, **how: Any) -> MemoryPeer:
    client = memory.connect(**how)
    assert client.receive() == b"hello\n"
    return client


# -- serving -------------------------------------------------------------------------------


def test_a_reply_is_there_when_send_returns() -> None:
    with memory_server(SHOUT, shout) as memory:
        client = greeted(memory)
        client.send(b"one\ntw")
        assert client.receive() == b"ONE\n"
        client.send(b"o\nthree\n")
        assert client.receive(3) == b"TWO"
        assert client.receive() == b"\nTHREE\n"
        assert client.receive() == b""
        assert not client.eof
        assert client.received == b"hello\nONE\nTWO\nTHREE\n"
    assert client.closed


def test_handlers_run_in_the_calling_thread() -> None:
    threads = []

    def process(task: Task) -> None:
        def note() -> None:
            threads.append(threading.current_thread())

        note()
        task.series.push_back(timer(1, lambda _: note()))
        task.series.push_back(go(note, callback=lambda _: note()))
        task.set_callback(lambda _: note())
        shout(task)

    before = threading.active_count()
    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        memory.advance(1)
        assert client.receive() == b"A\n"
        assert threading.active_count() == before
    assert threads == [threading.current_thread()] * 5


def test_no_descriptor_is_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("no socket is needed")

    monkeypatch.setattr("socket.socket", refused)
    with memory_server(SHOUT, shout) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        assert client.receive() == b"A\n"


def test_parameters_are_the_protocol_s_with_changes() -> None:
    with memory_server(HTTP_SPEC, lambda task: task.resp.write("hi"), max_pipelined=3) as memory:
        assert memory.server.params == HTTP_SPEC.params.replace(max_pipelined=3)
        assert memory.url.startswith("http://memory:")
        client = memory.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert client.receive().endswith(b"\r\n\r\nhi")
        assert client.eof


def test_the_server_is_the_protocol_s_own() -> None:
    with memory_server(REDIS_SPEC, CommandTable()) as memory:
        assert type(memory.server) is WFRedisServer
        client = memory.connect()
        client.send(b"*1\r\n$4\r\nPING\r\n")
        assert client.receive() == b"+PONG\r\n"


def test_several_clients_have_addresses_of_their_own() -> None:
    peers = []

    def process(task: Task) -> None:
        peers.append(task.connection.peername)

    with memory_server(SHOUT, process) as memory:
        for peername in (None, None, "somebody"):
            memory.connect(peername).send(b"a\n")
        assert memory.server.conn_count == 3
    assert len({*peers}) == 3
    assert peers[0][0] == "127.0.0.1"
    assert peers[2] == "somebody"


def test_a_push_of_another_thread_is_sent() -> None:
    with memory_server(SHOUT, shout) as memory:
        client = greeted(memory)
        (conn,) = memory.server.connections()
        thread = threading.Thread(target=conn.push, args=(b"news\n",))
        thread.start()
        thread.join()
        memory.run()
        assert client.receive() == b"news\n"


# -- time ----------------------------------------------------------------------------------


def test_an_hour_takes_no_time() -> None:
    with memory_server(SHOUT, shout, keep_alive_timeout=3600) as memory:
        begun = memory.clock.now
        client = greeted(memory)
        client.send(b"a\n")
        memory.advance(3599.9)
        assert client.receive() == b"A\n"
        assert not client.eof
        memory.advance(0.2)
        assert client.receive() == b"bye: IDLE\n"
        assert client.eof
        assert memory.clock.now == begun + 3599.9 + 0.2


def test_timers_run_at_their_own_times() -> None:
    times = []

    def process(task: Task) -> None:
        def note(_: object) -> None:
            times.append(memory.clock.now - begun)

        for seconds in (5, 3):
            task.series.push_back(timer(seconds, note))
        three = (SeriesWork(timer(seconds, note)) for seconds in (3, 1, 2))
        task.series.push_back(ParallelWork(*three))
        timer(2.5, note).start()
        shout(task)

    with memory_server(SHOUT, process) as memory:
        begun = memory.clock.now
        client = greeted(memory)
        client.send(b"a\n")
        memory.advance(11)
        assert client.receive() == b"A\n"
    assert times == [2.5, 5, 8, 9, 10, 11]


def test_a_handler_may_take_its_time() -> None:
    """Time that passes in a handler runs no timers there; those are run afterwards."""
    rings = []

    def process(task: Task) -> None:
        timer(1, lambda _: rings.append(memory.clock.now - begun)).start()
        memory.advance(5)
        assert not rings
        shout(task)

    with memory_server(SHOUT, process) as memory:
        begun = memory.clock.now
        client = greeted(memory)
        client.send(b"a\n")
        assert client.receive() == b"A\n"
        assert rings == [5]


def test_servers_may_share_their_time() -> None:
    clock = ManualClock()
    with (
        memory_server(SHOUT, shout, clock=clock, keep_alive_timeout=10) as one,
        memory_server(SHOUT, shout, clock=clock, keep_alive_timeout=20) as two,
    ):
        clients = [greeted(one), greeted(two)]
        for client in clients:
            client.send(b"a\n")
        one.advance(10)
        assert [client.eof for client in clients] == [True, False]
        clock.advance(10)
        assert [client.eof for client in clients] == [True, True]


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_time_does_not_go_back(seconds: float) -> None:
    clock = ManualClock()
    with memory_server(SHOUT, shout, clock=clock):
        begun = clock.now
        with pytest.raises(ValueError, match="expected 0 seconds or more"):
            clock.advance(seconds)
        assert clock.now == begun


def test_go_with_a_limit_has_no_real_time() -> None:
    def process(task: Task) -> None:
        def done(ended: Any) -> None:
            task.resp.data = b"%d\n" % ended.result

        task.series.push_back(go(lambda: 7, limit=1, callback=done))

    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        assert client.receive() == b"7\n"
        memory.advance(10)


# -- the client's commands -----------------------------------------------------------------


def test_bytes_arrive_on_command() -> None:
    with memory_server(SHOUT, shout, receive_timeout=60, peer_response_timeout=10) as memory:
        client = greeted(memory)
        client.send(b"one\ntwo\n", deliver=2)
        assert client.undelivered == 6
        assert client.receive() == b""
        client.deliver(2)
        assert client.receive() == b"ONE\n"
        client.half_close()
        assert not client.eof, "the end is behind what is on the way"
        client.deliver()
        assert client.receive() == b"TWO\n"
        assert client.eof


def test_a_request_that_stays_away_is_timed_out() -> None:
    with memory_server(SHOUT, shout, peer_response_timeout=10) as memory:
        client = greeted(memory)
        client.send(b"one\n", deliver=2)
        memory.advance(10)
        assert client.receive() == b"bye: REQUEST_TOO_SLOW\n"
        assert client.eof


def test_more_than_there_is_cannot_arrive() -> None:
    with memory_server(SHOUT, shout) as memory:
        client = greeted(memory)
        with pytest.raises(ValueError, match="deliver 5 bytes: 3 are on the way"):
            client.send(b"abc", deliver=5)
        with pytest.raises(ValueError, match="deliver -1 bytes"):
            client.deliver(-1)


def test_byte_by_byte() -> None:
    with memory_server(SHOUT, shout) as memory:
        client = greeted(memory)
        client.send_bytewise(b"ab\nc\n")
        assert client.receive() == b"AB\nC\n"
        assert client.reads >= 5


def test_a_client_that_stalls_fills_the_buffer() -> None:
    with memory_server(SHOUT, shout, peer_response_timeout=10) as memory:
        client = greeted(memory)
        client.stall(room=3)
        client.send(b"abcdef\n")
        assert client.receive() == b"ABC"
        (conn,) = memory.server.connections()
        assert conn.pending == 4
        client.read(2)
        assert client.receive() == b"DE"
        client.read()
        assert client.receive() == b"F\n"
        assert conn.pending == 0


def test_a_client_that_goes_on_stalling_is_cut() -> None:
    with memory_server(SHOUT, shout, peer_response_timeout=10) as memory:
        client = greeted(memory)
        client.stall()
        client.send(b"abc\n")
        memory.advance(30)
        assert client.aborted
        assert client.receive() == b""


def test_a_client_may_begin_with_a_full_buffer() -> None:
    with memory_server(SHOUT, shout) as memory:
        client = memory.connect(room=2)
        assert client.receive() == b"he"
        client.read()
        assert client.receive() == b"llo\n"


def test_a_half_closed_client_still_reads() -> None:
    with memory_server(SHOUT, shout) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        client.half_close()
        assert client.receive() == b"A\n"
        assert client.eof
        with pytest.raises(UsageError, match="ended its sending side"):
            client.send(b"b\n")


def test_a_reset_is_an_error_of_the_reply() -> None:
    ends = []

    def process(task: Task) -> None:
        task.series.push_back(timer(5))
        task.set_callback(lambda task: ends.append((task.state, task.closed)))

    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        client.reset()
        assert client.closed
        memory.advance(5)
    assert ends == [(TaskState.SYS_ERROR, True)]


def test_a_client_that_closed_takes_no_reply() -> None:
    ends = []

    def process(task: Task) -> None:
        task.series.push_back(timer(5))
        task.set_callback(lambda task: ends.append((task.state, task.error)))
        shout(task)

    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        client.close()
        assert not client.closed
        memory.advance(5)
        assert client.closed
        assert client.receive() == b""
    assert ends == [(TaskState.SYS_ERROR, errno.EPIPE)]


def test_observers_see_it_all() -> None:
    seen: list[Event] = []
    with memory_server(SHOUT, shout) as memory:
        memory.server.subscribe(seen.append)
        client = greeted(memory)
        client.send(b"a\n" + b"x" * 1001)
        assert client.receive() == b"A\nTOO LONG\n"
        assert client.eof
        memory.advance(60)
    assert [type(event).__name__ for event in seen] == [
        "ConnectionOpened",
        "RequestFinished",
        "RequestRefused",
        "ConnectionClosed",
        "ListenerStopped",
    ]


# -- what cannot work ----------------------------------------------------------------------


class Awaiting:
    """A handler that is an object."""

    async def __call__(self, task: Task) -> None:
        shout(task)


@pytest.mark.parametrize("process", [shout_later, Awaiting()])
def test_coroutine_handlers_are_refused(process: Handler) -> None:
    name = "shout_later" if process is shout_later else "Awaiting"
    with (
        pytest.raises(UsageError, match=rf"the handler {name} is a coroutine.*live_server"),
        memory_server(SHOUT, process),
    ):
        raise AssertionError("it was served")


async def nothing() -> None:
    """A coroutine."""


async def pieces() -> AsyncIterator[bytes]:
    yield b"piece"


def returns_a_coroutine(task: Task) -> object:
    return nothing()


def pushes_a_coroutine(task: Task) -> None:
    task.series.push_back(coroutine(nothing()))


def replies_later(task: Task) -> None:
    task.resp.data = pieces()


@pytest.mark.parametrize("process", [returns_a_coroutine, pushes_a_coroutine, replies_later])
def test_other_coroutines_raise_where_they_came_from(process: Handler) -> None:
    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        with pytest.raises(UsageError, match="no event loop"):
            client.send(b"a\n")
        client.receive()


def test_a_start_hook_that_is_a_coroutine_is_refused() -> None:
    async def on_start(server: object) -> None:
        """Never run."""

    def process(task: Task) -> None:
        """Has hooks."""

    process.on_start = on_start  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="no event loop"), memory_server(SHOUT, process):
        raise AssertionError("it was served")
    assert not get_scheduler().running


def test_a_handler_that_waits_for_its_client_is_told() -> None:
    def process(task: Task) -> None:
        task.push(b"x" * 1000)

    with memory_server(SHOUT, process, unsent_limit=100) as memory:
        client = greeted(memory)
        client.stall()
        with pytest.raises(UsageError, match="waits for its client"):
            client.send(b"a\n")
        client.read()


def test_what_a_handler_can_wait_for() -> None:
    """A client that takes its bytes in small portions; a function of ``go``."""

    def process(task: Task) -> None:
        task.connection.push(b"x" * 100)
        task.connection.drained()
        assert task.connection.pending == 0
        group = WaitGroup(1)
        SeriesWork(go(group.done)).start()
        assert group.wait()
        shout(task)

    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        client.at_most = 7
        client.send(b"a\n")
        assert client.receive() == b"x" * 100 + b"A\n"


def test_two_threads_cannot_drive() -> None:
    errors = []

    def process(task: Task) -> None:
        def send() -> None:
            try:
                client.send(b"b\n")
            except UsageError as error:
                errors.append(str(error))

        if task.req == b"a":
            thread = threading.Thread(target=send)
            thread.start()
            thread.join()

    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        assert len(errors) == 1
        assert "drive it from one thread" in errors[0]
        client.reset()


def test_a_client_s_command_in_a_handler_follows_it() -> None:
    """The handler cannot see what it leads to; the test does."""

    def process(task: Task) -> None:
        if task.req == b"a":
            other.send(b"b\n")
            assert other.receive() == b""
        shout(task)

    with memory_server(SHOUT, process) as memory:
        client, other = greeted(memory), greeted(memory)
        client.send(b"a\n")
        assert client.receive() == b"A\n"
        assert other.receive() == b"B\n"


def test_max_connections_is_a_limit() -> None:
    with memory_server(SHOUT, shout, max_connections=1) as memory:
        client = greeted(memory)
        with pytest.raises(ConnectionRefusedError, match="max_connections=1"):
            memory.connect()
        client.half_close()
        greeted(memory)


def test_senseless_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="no field 'keepalive'"):
        memory_server(SHOUT, shout, keepalive=1).__enter__()
    with pytest.raises(ConfigError, match="must be callable"):
        memory_server(SHOUT, 7).__enter__()  # type: ignore[arg-type]


# -- the stop ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["x", None, SHOUT.message_in])
def test_what_is_served_is_a_protocol(spec: Any) -> None:
    with (
        pytest.raises(ConfigError, match="spec must be a ProtocolSpec"),
        memory_server(spec, shout),
    ):
        pass


def test_what_the_clock_is() -> None:
    clock: Any = 5
    with (
        pytest.raises(ConfigError, match="clock must be a ManualClock, or None, not int"),
        memory_server(SHOUT, shout, clock=clock),
    ):
        pass
    now: Any
    for now in ("x", None, float("nan"), float("inf"), True):
        with pytest.raises(ConfigError, match="now="):
            ManualClock(now)


@pytest.mark.parametrize(
    "seconds", [-1, float("nan"), float("inf"), 10**12, 10**400, "1", None, True]
)
def test_how_much_time_may_pass(seconds: Any) -> None:
    with memory_server(SHOUT, shout) as memory:
        before = memory.clock.now
        with pytest.raises(ConfigError, match=r"advance\(.*at most a year"):
            memory.advance(seconds)
        assert memory.clock.now == before
        memory.advance(366 * 86_400)


def test_how_many_bytes_a_client_takes() -> None:
    with memory_server(SHOUT, shout) as memory:
        client: Any = greeted(memory)
        for wrong in (-1, "a", 1.5, True):
            for command in (
                lambda size: client.stall(room=size),
                lambda size: client.read(size),
                lambda size: client.receive(size),
                lambda size: setattr(client, "room", size),
                lambda size: setattr(client, "at_most", size),
                lambda size: memory.connect(room=size),
            ):
                with pytest.raises(ConfigError, match="expected a number of bytes"):
                    command(wrong)
        with pytest.raises(ConfigError, match="at_most=0: expected a number of bytes, 1 or more"):
            client.at_most = 0
        assert client.room is None
        assert client.at_most is None
        client.send(b"one\n")
        assert client.receive() == b"ONE\n"


def test_the_stop_is_graceful() -> None:
    def process(task: Task) -> None:
        task.series.push_back(timer(10))
        shout(task)

    with memory_server(SHOUT, process, shutdown_timeout=15) as memory:
        idle, busy = greeted(memory), greeted(memory)
        busy.send(b"a\n")
        assert memory.stop() == 0
        assert idle.receive() == b"bye: SERVER_STOPPED\n"
        assert busy.receive() == b"A\nbye: SERVER_STOPPED\n"
        with pytest.raises(ConnectionRefusedError):
            memory.connect()
        assert memory.stop() == 0


def test_the_stop_cuts_what_takes_too_long() -> None:
    def process(task: Task) -> None:
        task.series.push_back(timer(16))
        shout(task)

    with memory_server(SHOUT, process, shutdown_timeout=15) as memory:
        begun = memory.clock.now
        client = greeted(memory)
        client.send(b"a\n")
        assert memory.stop() == 1
        assert memory.clock.now <= begun + 15
        assert client.receive() == b""
        assert client.closed
    assert not get_scheduler().running


def test_a_handler_may_shut_its_server_down() -> None:
    def process(task: Task) -> None:
        with pytest.raises(UsageError, match="would wait for itself"):
            task.server.stop()
        task.server.shutdown()
        shout(task)

    with memory_server(SHOUT, process) as memory:
        client = greeted(memory)
        client.send(b"a\n")
        assert client.receive() == b"A\nbye: SERVER_STOPPED\n"
        assert client.eof
        assert memory.server.stopping


def test_hooks_are_called() -> None:
    calls: list[str] = []

    def process(task: Task) -> None:
        """Has hooks."""

    process.on_start = lambda server: calls.append("start")  # type: ignore[attr-defined]
    process.on_stop = lambda server: calls.append("stop")  # type: ignore[attr-defined]
    with memory_server(SHOUT, process):
        assert calls == ["start"]
    assert calls == ["start", "stop"]


def test_a_timer_of_nobody_s_is_left_behind() -> None:
    def process(task: Task) -> None:
        timer(1000).start()

    with (
        pytest.raises(AssertionError, match=r"left behind by .*: 1 timers or tasks"),
        memory_server(SHOUT, process) as memory,
    ):
        greeted(memory).send(b"a\n")
    assert not get_scheduler().running


def test_what_the_block_raises_goes_first() -> None:
    def process(task: Task) -> None:
        timer(1000).start()

    def block(memory: Memory) -> None:
        greeted(memory).send(b"a\n")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), memory_server(SHOUT, process) as memory:
        block(memory)
    assert not get_scheduler().running


def test_a_fault_at_the_end_is_raised_when_all_is_over() -> None:
    def process(task: Task) -> None:
        task.series.push_back(timer(5))
        task.series.push_back(coroutine(nothing()))

    with (
        pytest.raises(UsageError, match="no event loop"),
        memory_server(SHOUT, process) as memory,
    ):
        greeted(memory).send(b"a\n")
    assert memory.server.unbound
    assert not get_scheduler().running


def test_it_stands_beside_a_server_on_a_port() -> None:
    with WFServer(SHOUT, shout).start("127.0.0.1", 0):
        with memory_server(SHOUT, shout) as memory:
            client = greeted(memory)
            client.send(b"a\n")
            assert client.receive() == b"A\n"
        assert get_scheduler().running
    assert not get_scheduler().running


def test_a_spec_may_be_changed_for_a_test() -> None:
    def message_out(answer: Answer) -> Iterator[bytes]:
        yield answer.data
        yield b"and more\n"

    spec: ProtocolSpec[bytes, Answer] = ProtocolSpec(
        name="more", message_in=SHOUT.message_in, message_out=message_out, response=Answer
    )
    with memory_server(spec, shout) as memory:
        client = memory.connect()
        client.send(b"a\n")
        assert client.receive() == b"A\nand more\n"


def test_a_body_that_streams_in_is_read_as_far_as_it_is_there() -> None:
    def process(task: WFHttpTask) -> None:
        task.resp.write(b"-".join(task.req.stream or ()))

    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
    with memory_server(HTTP_SPEC, process, stream_bodies=True) as memory:
        client = memory.connect()
        client.send(head + b"whole\n")
        assert client.receive().endswith(b"\r\n\r\nwhole\n")
        with pytest.raises(UsageError, match="waits for its client"):
            client.send(head + b"half")
