"""The life of a request's task: behaviour.md, "A task"."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from line_server import Answer, LineServer, Task, echo, encode, line_spec
from test_series import Pending, Raising, Step

from protoserve import (
    CommConnection,
    CommSession,
    Processor,
    SeriesWork,
    SubTask,
    TaskState,
    UsageError,
    WFServerTask,
)
from protoserve.events import RequestFinished
from protoserve.testing import MemoryEngine, MemoryPeer, connection_of

PATIENCE = 10.0


def ask(engine: MemoryEngine, server: LineServer, data: bytes = b"hello\n") -> MemoryPeer:
    """A new connection, with a request on its way."""
    peer = engine.connect(server)
    peer.send(data)
    engine.run()
    return peer


def in_turn(*calls: Callable[[Task], object]) -> Callable[[Task], None]:
    """A handler that makes these calls."""

    def process(task: Task) -> None:
        for call in calls:
            call(task)

    return process


def in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def ended(engine: MemoryEngine, server: LineServer) -> bool:
    """Whether nothing of the server is alive once its connections are closed."""
    for conn in server.connections():
        conn.close()
    engine.run()
    return server.alive == 1


# -- the way of one request ----------------------------------------------------------------


def test_the_article_s_order(engine: MemoryEngine) -> None:
    """handle(TOREPLY), the processor, what it pushed, the reply, handle(SUCCESS), the
    callback, the rest, the series' callback."""
    notes: list[str] = []

    class Noting(Task):
        def handle(self, state: TaskState, error: int) -> None:
            notes.append(f"handle {state.name}")
            super().handle(state, error)

        def message_out(self) -> Any:
            notes.append("message_out")
            return super().message_out()

    def callback(task: Task) -> None:
        notes.append(f"callback {task.state.name}")
        task.series.push_back(Step(notes, "rest"))

    def process(task: Task) -> None:
        notes.append(f"process {task.state.name}")
        task.series.push_back(Step(notes, "pushed"))
        task.series.set_callback(lambda series: notes.append("series callback"))
        task.set_callback(callback)
        echo(task)

    server = LineServer(process, line_spec(task=Noting))
    peer = ask(engine, server)
    assert peer.received == b"hello\n"
    assert notes == [
        "handle TOREPLY",
        "process TOREPLY",
        "pushed",
        "message_out",
        "handle SUCCESS",
        "callback SUCCESS",
        "rest",
        "series callback",
    ]
    assert ended(engine, server)


def test_what_a_task_has(engine: MemoryEngine) -> None:
    tasks: list[Task] = []

    def process(task: Task) -> None:
        tasks.append(task)
        assert task.req == "hello"
        assert isinstance(task.resp, Answer)
        assert task.state is TaskState.TOREPLY
        assert not task.closed
        assert task.timeout_reason is None
        assert task.user_data is None
        task.user_data = task.seq
        task.connection.context = (task.connection.context or 0) + 1
        echo(task)

    server = LineServer(process)
    ask(engine, server, b"hello\nhello\nhello\n")
    assert [task.seq for task in tasks] == [0, 1, 2]
    assert [task.user_data for task in tasks] == [0, 1, 2]
    (conn,) = {task.connection for task in tasks}
    assert conn.context == 3
    assert conn.peername == "peer"
    assert "SUCCESS" in repr(tasks[0])
    assert "'peer'" in repr(tasks[0])


def test_both_a_session_and_a_task() -> None:
    assert issubclass(WFServerTask, CommSession)
    assert issubclass(WFServerTask, SubTask)


def test_a_request_without_a_series_makes_none(engine: MemoryEngine) -> None:
    tasks: list[Task] = []
    server = LineServer(in_turn(echo, tasks.append))
    ask(engine, server)
    assert tasks[0]._series is None
    assert server.alive == 2  # the listener and the connection


def test_the_first_task_is_the_processor(engine: MemoryEngine) -> None:
    found: list[Any] = []
    server = LineServer(lambda task: found.append(task.series._current))
    ask(engine, server)
    assert isinstance(found[0], Processor)
    with pytest.raises(UsageError, match="runs once"):
        found[0].dispatch()


def test_pushed_tasks_delay_the_reply(engine: MemoryEngine) -> None:
    pending = Pending()

    def process(task: Task) -> None:
        task.series.push_back(pending)
        task.series.push_back(Step([], "answer", lambda: setattr(task.resp, "text", "late")))

    server = LineServer(process)
    peer = ask(engine, server)
    assert pending.dispatched.is_set()
    engine.advance(1000)
    assert peer.received == b""
    in_thread(pending.subtask_done)
    assert peer.received == b"late\n"
    engine.run()
    assert ended(engine, server)


def test_pipelined_requests_with_series_are_answered_in_order(engine: MemoryEngine) -> None:
    pendings: list[Pending] = []

    def process(task: Task) -> None:
        echo(task)
        pendings.append(Pending())
        task.series.push_back(pendings[-1])

    server = LineServer(process)
    peer = ask(engine, server, b"a\nb\nc\n")
    for word in (b"a\n", b"b\n", b"c\n"):
        assert not peer.received.endswith(word)
        in_thread(pendings[-1].subtask_done)
        assert peer.received.endswith(word)
        engine.run()
    assert len(pendings) == 3


def test_very_many_tasks_of_one_request(engine: MemoryEngine) -> None:
    count = 50_000

    def process(task: Task) -> None:
        notes: list[str] = []
        for _ in range(count):
            task.series.push_back(Step(notes, ""))
        task.series.push_back(Step(notes, "", lambda: setattr(task.resp, "text", str(len(notes)))))

    assert ask(engine, LineServer(process)).received == b"%d\n" % (count + 1)


def test_the_series_is_asked_for_by_another_thread(engine: MemoryEngine) -> None:
    found: list[SeriesWork] = []

    def process(task: Task) -> None:
        threads = [threading.Thread(target=lambda: found.append(task.series)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        echo(task)

    server = LineServer(process)
    assert ask(engine, server).received == b"hello\n"
    assert len(found) == 4
    assert len(set(map(id, found))) == 1
    assert ended(engine, server)


# -- callbacks -----------------------------------------------------------------------------


@pytest.mark.parametrize("with_series", [False, True])
def test_the_callback_runs_when_the_reply_is_out(engine: MemoryEngine, with_series: bool) -> None:
    states: list[Any] = []

    def process(task: Task) -> None:
        if with_series:
            assert task.series is not None
        task.set_callback(lambda t: states.append((t is task, t.state, t.error, peer.sends)))
        echo(task)

    server = LineServer(process)
    peer = engine.connect(server, room=3)
    peer.send(b"hello\n")
    engine.run()
    assert states == []
    peer.read(None)
    engine.run()
    assert states == [(True, TaskState.SUCCESS, 0, peer.sends)]
    assert ended(engine, server)


@pytest.mark.parametrize("with_series", [False, True])
def test_what_the_callback_pushes_runs_after_the_reply(
    engine: MemoryEngine, with_series: bool
) -> None:
    notes: list[str] = []
    pending = Pending()

    def callback(task: Task) -> None:
        notes.append(f"callback after {bytes(peer.received)!r}")
        task.series.push_back(pending)
        task.series.push_back(Step(notes, "pushed"))

    def process(task: Task) -> None:
        if with_series:
            assert task.series is not None
        if task.seq == 0:
            task.set_callback(callback)
        echo(task)

    server = LineServer(process)
    peer = engine.connect(server)
    peer.send(b"hello\n")
    engine.run()
    assert notes == ["callback after b'hello\\n'"]
    assert pending.dispatched.is_set()
    # The connection serves on; the server's end waits for the series.
    peer.send(b"next\n")
    engine.run()
    assert peer.received == b"hello\nnext\n"
    assert not ended(engine, server)
    in_thread(pending.subtask_done)
    assert notes[1] == "pushed"


def test_a_callback_holds_the_server(engine: MemoryEngine) -> None:
    alive: list[int] = []

    def process(task: Task) -> None:
        before = server.alive
        task.set_callback(lambda t: alive.append(server.alive))
        task.set_callback(lambda t: alive.append(server.alive))  # one callback, one reference
        assert server.alive == before + 1
        task.set_callback(None)
        assert server.alive == before
        task.set_callback(None)
        task.set_callback(lambda t: alive.append(server.alive))
        echo(task)

    server = LineServer(process)
    ask(engine, server)
    assert alive == [3]
    assert server.alive == 2


def test_the_callback_of_a_connection_s_last_reply_holds_the_server(
    engine: MemoryEngine,
) -> None:
    alive: list[int] = []
    server = LineServer(
        lambda task: task.set_callback(lambda t: alive.append(server.alive)),
        keep_alive_timeout=0,
    )
    ask(engine, server)
    assert alive[0] >= 2
    assert server.alive == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit])
@pytest.mark.parametrize("with_series", [False, True])
def test_a_callback_that_raises(
    engine: MemoryEngine,
    error: type[BaseException],
    with_series: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []

    def callback(task: Task) -> None:
        if with_series:
            task.series.push_back(Step(notes, "rest"))
        raise error("a fault of the callback")

    server = LineServer(in_turn(lambda task: task.set_callback(callback), echo))
    peer = ask(engine, server, b"a\nb\n")
    assert peer.received == b"a\nb\n"
    assert notes == ["rest", "rest"] * with_series
    assert len(caplog.records) == 2
    assert ended(engine, server)


def test_when_it_is_too_late(engine: MemoryEngine) -> None:
    tasks: list[Task] = []
    late: list[str] = []

    def callback(task: Task) -> None:
        for attempt in (task.noreply, lambda: task.set_callback(print)):
            with pytest.raises(UsageError) as info:
                attempt()
            late.append(str(info.value))

    def process(task: Task) -> None:
        tasks.append(task)
        echo(task)
        if task.seq == 0:
            task.set_callback(callback)

    server = LineServer(process)
    ask(engine, server, b"a\nb\n")
    assert len(late) == 2
    for task in tasks:
        with pytest.raises(UsageError, match="before"):
            task.noreply()
        with pytest.raises(UsageError, match="this request is over"):
            task.set_callback(print)
        with pytest.raises(UsageError, match="start a series of its own"):
            _ = task.series
    with pytest.raises(UsageError, match="one reply"):
        tasks[0].connection.communicator.reply(tasks[0])
    assert ended(engine, server)


# -- the reply that is none ----------------------------------------------------------------


@pytest.mark.parametrize("with_series", [False, True])
def test_noreply(engine: MemoryEngine, with_series: bool) -> None:
    notes: list[Any] = []

    def process(task: Task) -> None:
        echo(task)
        if task.req == "end":
            task.set_callback(lambda t: notes.append((t.state, t.error)))
            if with_series:
                task.series.push_back(Step(notes, "pushed"))
            task.noreply()

    server = LineServer(process)
    peer = ask(engine, server, b"a\nend\nnever\n")
    assert peer.received == b"a\n"
    assert peer.eof
    peer.shutdown()
    engine.run()
    assert peer.closed
    assert notes == ["pushed"] * with_series + [(TaskState.NOREPLY, 0)]
    assert server.alive == 1


def test_noreply_from_a_pushed_task(engine: MemoryEngine) -> None:
    def process(task: Task) -> None:
        task.series.push_back(pending)
        task.series.push_back(Step([], "", task.noreply))

    pending = Pending()
    server = LineServer(process)
    peer = ask(engine, server)
    in_thread(pending.subtask_done)
    assert peer.closed
    assert peer.received == b""
    assert server.alive == 1


def test_a_task_knows_whether_its_connection_closes(engine: MemoryEngine) -> None:
    closing: list[bool] = []

    class Knowing(Task):
        def message_out(self) -> bytes:
            closing.append(self.closing)
            return b"a reply"

    server = LineServer(echo, line_spec(task=Knowing))
    peer = engine.connect(server)
    peer.send(b"a\n")
    engine.run()
    server.stopping = True
    peer.send(b"b\n")
    engine.run()
    assert closing == [False, True]


@pytest.mark.parametrize("deferred", [False, True])
def test_cancel(engine: MemoryEngine, deferred: bool) -> None:
    notes: list[Any] = []
    pending = Pending()

    def process(task: Task) -> None:
        task.set_callback(lambda t: notes.append("the task's callback"))
        task.series.set_callback(lambda s: notes.append(s.canceled))
        if deferred:
            task.series.push_back(pending)
        task.series.push_back(Step(notes, "never"))
        if not deferred:
            task.series.cancel()
        else:
            series.append(task.series)

    series: list[SeriesWork] = []
    server = LineServer(process)
    peer = ask(engine, server)
    if deferred:
        series[0].cancel()
        assert not peer.closed
        in_thread(pending.subtask_done)
    assert peer.received == b""
    assert peer.closed
    assert notes == [True]
    assert server.alive == 1


def test_set_keep_alive(engine: MemoryEngine) -> None:
    def process(task: Task) -> None:
        echo(task)
        if task.req == "bad":
            for wrong in (-1, float("nan"), 1e10, 10**400):
                with pytest.raises(ValueError, match="expected 0, more, or None"):
                    task.set_keep_alive(wrong)
        else:
            task.set_keep_alive(None if task.req == "ever" else float(task.req))

    server = LineServer(process, keep_alive_timeout=60)
    peer = ask(engine, server, b"bad\n")
    engine.advance(59)
    assert not peer.closed
    peer.send(b"5\n")
    engine.advance(4)
    assert not peer.closed
    engine.advance(2)
    assert peer.closed
    peer = ask(engine, server, b"ever\n")
    engine.advance(1_000_000)
    assert not peer.closed
    peer.send(b"0\n")
    engine.run()
    assert peer.received == b"ever\n0\n"
    assert peer.closed
    assert server.alive == 1


# -- the peer ------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", [False, True])
def test_the_peer_is_gone_before_the_reply(engine: MemoryEngine, callback: bool) -> None:
    tasks: list[Task] = []
    notes: list[Any] = []
    pending = Pending()

    def process(task: Task) -> None:
        tasks.append(task)
        task.series.push_back(pending)
        task.series.push_back(Step(notes, "", lambda: notes.append(task.closed)))
        task.connection.on_close(lambda conn: notes.append("on_close"))
        if callback:
            task.set_callback(lambda t: notes.append((t.state, t.error, t.timeout_reason)))

    server = LineServer(process)
    peer = ask(engine, server)
    assert not tasks[0].closed
    peer.reset()
    engine.run()
    assert tasks[0].closed
    assert server.conn_count == 0
    assert server.alive > 1
    in_thread(pending.subtask_done)
    result = (TaskState.SYS_ERROR, errno.ENOENT, None)
    assert notes == ["on_close", "", True] + [result] * callback
    assert (tasks[0].state, tasks[0].error) == result[:2]
    assert server.alive == 1


def test_the_handler_closes_the_connection(engine: MemoryEngine) -> None:
    results: list[Any] = []

    def process(task: Task) -> None:
        task.set_callback(lambda t: results.append((t.state, t.error)))
        task.connection.close()

    server = LineServer(process)
    peer = ask(engine, server, b"a\nb\n")
    assert peer.closed
    assert results == [(TaskState.SYS_ERROR, errno.ENOENT)]
    assert server.alive == 1


def test_the_peer_does_not_take_the_reply(engine: MemoryEngine) -> None:
    results: list[Any] = []
    server = LineServer(
        in_turn(
            echo,
            lambda task: task.set_callback(
                lambda t: results.append((t.state, t.error, t.timeout_reason))
            ),
        ),
        peer_response_timeout=10,
    )
    peer = engine.connect(server, room=2)
    peer.send(b"a\nb\n")
    engine.advance(11)
    assert peer.aborted
    assert results == [
        (TaskState.SUCCESS, 0, None),
        (TaskState.SYS_ERROR, errno.ETIMEDOUT, "TRANSMIT"),
    ]
    assert server.alive == 1


def test_the_peer_leaves_while_the_reply_is_written(engine: MemoryEngine) -> None:
    results: list[Any] = []
    server = LineServer(
        lambda task: task.set_callback(lambda t: results.append((t.state, t.error)))
    )
    peer = engine.connect(server, room=0)
    peer.send(b"a\n")
    engine.run()
    peer.reset()
    engine.run()
    assert results == [(TaskState.SYS_ERROR, errno.ECONNRESET)]
    assert server.alive == 1


# -- failures ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("a secret"), SystemExit("a secret")])
@pytest.mark.parametrize("where", ["process", "pushed", "done", "message_out"])
def test_a_failure_gets_the_protocol_s_error_reply(
    engine: MemoryEngine,
    where: str,
    error: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    states: list[TaskState] = []

    def process(task: Task) -> None:
        task.resp.text = task.req
        if task.req != "bad":
            return
        task.set_callback(lambda t: states.append(t.state))
        if where == "process":
            raise error
        if where in ("pushed", "done"):
            task.series.push_back(Raising(error, in_done=where == "done"))
            task.series.push_back(Step([], "never"))
        else:
            task.resp.text = error

    def message_out(answer: Answer) -> bytes:
        if answer.text is error:
            raise error
        return encode(answer)

    server = LineServer(process, line_spec(message_out=message_out))
    peer = ask(engine, server, b"a\nbad\nb\n")
    assert peer.received == b"a\nERR internal error\nb\n"
    assert states == [TaskState.SUCCESS]
    # Once, with the task's facts.
    (record,) = caplog.records
    assert "seq=1" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert ended(engine, server)


def test_a_failure_in_a_series_that_ends_elsewhere(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    pending = Pending()

    def process(task: Task) -> None:
        task.series.push_back(pending)
        task.series.push_back(Raising(ValueError("a fault")))

    server = LineServer(process)
    peer = ask(engine, server)
    in_thread(pending.subtask_done)
    assert peer.received == b"ERR internal error\n"
    assert len(caplog.records) == 1
    assert ended(engine, server)


@pytest.mark.parametrize("with_series", [False, True])
@pytest.mark.parametrize("error", [ValueError, UsageError])
@pytest.mark.parametrize("again", [None, "raises", "wrong type", "not encodable"])
def test_a_failure_without_an_error_reply_closes(
    engine: MemoryEngine,
    again: str | None,
    error: type[Exception],
    with_series: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    results: list[Any] = []

    def fail(task: Task) -> None:
        if with_series:
            assert task.series is not None
        task.set_callback(lambda t: results.append((t.state, t.error)))
        task.resp.text = 5

    def error_response(request: Any, failure: BaseException) -> Any:
        if again == "raises":
            raise error("a fault of error_response")
        return Answer(5 if again == "not encodable" else 6)  # type: ignore[arg-type]

    def message_out(answer: Answer) -> Any:
        if answer.text == 5:
            raise error("cannot be encoded")
        return answer

    server = LineServer(
        fail,
        line_spec(
            message_out=message_out, error_response=None if again is None else error_response
        ),
    )
    peer = ask(engine, server, b"a\nnever\n")
    peer.shutdown()
    engine.run()
    assert peer.received == b""
    assert peer.closed
    assert results == [(TaskState.SYS_ERROR, errno.EIO)]
    assert len(caplog.records) == (1 if again is None else 2)
    assert server.alive == 1


def test_noreply_and_then_a_failure(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def process(task: Task) -> None:
        task.noreply()
        raise ValueError("a fault")

    server = LineServer(process)
    peer = ask(engine, server)
    assert peer.received == b""
    assert peer.closed
    assert len(caplog.records) == 1
    assert server.alive == 1


def test_a_handler_that_fails_after_the_peer_left(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[Any] = []

    def process(task: Task) -> None:
        task.set_callback(lambda t: results.append((t.state, t.error)))
        task.connection.close()
        raise ValueError("a fault")

    server = LineServer(process)
    ask(engine, server)
    assert results == [(TaskState.SYS_ERROR, errno.ENOENT)]
    assert server.alive == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("with_series", [False, True])
def test_answered_by_hand(
    engine: MemoryEngine, with_series: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Misuse: the reply is given once, and no connection hangs."""

    def process(task: Task) -> None:
        if with_series:
            assert task.series is not None
        echo(task)
        task.connection.communicator.reply(task)

    server = LineServer(process)
    peer = ask(engine, server)
    assert peer.received == b"hello\n"
    assert any("one reply" in (record.exc_text or "") for record in caplog.records)
    assert ended(engine, server)


# -- events and factories ------------------------------------------------------------------


def test_request_finished(engine: MemoryEngine) -> None:
    def process(task: Task) -> None:
        if task.req == "end":
            task.noreply()
        else:
            echo(task)

    server = LineServer(process)
    events: list[Any] = []
    server.subscribe(events.append)
    ask(engine, server, b"a\nb\nend\n")
    finished = [event for event in events if isinstance(event, RequestFinished)]
    finished.sort(key=lambda event: event.seq)
    assert [(event.seq, event.state, event.error) for event in finished] == [
        (0, "SUCCESS", 0),
        (1, "SUCCESS", 0),
        (2, "NOREPLY", 0),
    ]
    assert all(0 <= event.duration < 60 for event in finished)


def test_overridden_factories(engine: MemoryEngine) -> None:
    class Mine(CommConnection):
        __slots__ = ()

    class Custom(LineServer):
        def new_connection(self, communicator: Any, transport: Any, peername: Any) -> Mine:
            return Mine(self, communicator, transport, peername)

        def new_session(self, seq: int, conn: CommConnection) -> CommSession:
            session = super().new_session(seq, conn)
            session.keep_alive = 0.0 if seq == 1 else 5.0
            return session

    server = Custom(echo)
    peer = ask(engine, server, b"a\n")
    assert type(connection_of(server)) is Mine
    peer.send(b"b\n")
    engine.run()
    assert peer.received == b"a\nb\n"
    assert peer.closed


def test_a_task_that_drops_its_message_out_still_ends(engine: MemoryEngine) -> None:
    """An empty reply is a reply: the callback runs."""
    states: list[TaskState] = []
    server = LineServer(
        lambda task: task.set_callback(lambda t: states.append(t.state)),
        line_spec(message_out=lambda answer: []),
    )
    peer = ask(engine, server, b"a\nb\n")
    assert peer.received == b""
    assert states == [TaskState.SUCCESS] * 2
    assert ended(engine, server)


# -- who is told ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["handle", "done", "subtask_done"])
@pytest.mark.parametrize("with_callback", [False, True])
def test_an_overridden_method_sees_the_end_with_a_callback_or_without(
    engine: MemoryEngine, method: str, with_callback: bool
) -> None:
    seen: list[TaskState] = []

    def override(self: Any, *args: Any) -> Any:
        result = getattr(WFServerTask, method)(self, *args)
        seen.append(self.state)
        return result

    told = type("Told", (WFServerTask,), {method: override, "__slots__": ()})
    derived = type("Derived", (told,), {"__slots__": ()})

    def process(task: Task) -> None:
        if with_callback:
            task.set_callback(lambda t: None)
        task.resp.text = task.req

    server = LineServer(process, line_spec(task=derived))
    ask(engine, server, b"a\nb\n")
    assert seen.count(TaskState.SUCCESS) == 2
    assert ended(engine, server)


@pytest.mark.parametrize("kind", ["on_close", "on_peer_end"])
def test_a_task_s_own_callbacks_end_with_it(engine: MemoryEngine, kind: str) -> None:
    seen: list[int] = []
    over: list[Task] = []

    def process(task: Task) -> None:
        getattr(task, kind)(lambda t: seen.append(t.seq))
        over.append(task)
        task.resp.text = task.req

    server = LineServer(process)
    peer = engine.connect(server)
    for _ in range(100):
        peer.send(b"a\n")
        engine.run()
    (conn,) = server.connections()
    assert not conn.entry.life.callbacks
    assert not conn.entry.life.end_callbacks
    peer.shutdown()
    engine.run()
    assert seen == []
    with pytest.raises(UsageError, match="over"):
        getattr(over[0], kind)(lambda t: None)
    with pytest.raises(TypeError):
        getattr(over[0], kind)("no function")
    assert ended(engine, server)


def test_a_task_s_own_callbacks_are_called_while_it_lasts(engine: MemoryEngine) -> None:
    seen: list[tuple[str, bool]] = []
    pending = Pending()

    def process(task: Task) -> None:
        task.on_peer_end(lambda t: seen.append(("ended", t is task)))
        task.on_close(lambda t: seen.append(("closed", t is task)))
        taken_back = task.on_close(lambda t: seen.append(("never", True)))
        assert taken_back.cancel()
        task.series.push_back(pending)

    server = LineServer(process)
    peer = ask(engine, server)
    peer.shutdown()
    engine.run()
    assert seen == [("ended", True)]
    peer.reset()
    engine.run()
    conn = server.connections()[0] if server.connections() else None
    if conn is not None:
        conn.close()
    assert seen == [("ended", True), ("closed", True)]
    pending.subtask_done()
    engine.run()
    assert ended(engine, server)


@pytest.mark.parametrize("how", ["raise", "cancel", "give up"])
def test_a_reply_that_was_begun_by_pushes_ends_with_a_reset(
    engine: MemoryEngine, how: str
) -> None:
    def process(task: Task) -> None:
        task.push(b"part of ")
        if how == "raise":
            raise ValueError("a fault")
        if how == "cancel":
            task.series.cancel()
        task.resp.text = None

    server = LineServer(process)
    peer = ask(engine, server)
    assert bytes(peer.received) == b"part of "
    assert peer.aborted
    assert ended(engine, server)


def test_noreply_after_pushes_ends_in_order(engine: MemoryEngine) -> None:
    def process(task: Task) -> None:
        task.push(b"all of it")
        task.noreply()

    server = LineServer(process)
    peer = ask(engine, server)
    assert bytes(peer.received) == b"all of it"
    assert peer.closed
    assert not peer.aborted
    assert ended(engine, server)


def test_the_series_may_be_asked_for_in_new_session(engine: MemoryEngine) -> None:
    notes: list[str] = []

    class Early(LineServer):
        def new_session(self, seq: int, conn: CommConnection) -> Task:
            task = super().new_session(seq, conn)
            task.series.push_back(Step(notes, "pushed"))
            task.on_close(lambda t: notes.append("closed"))
            return task

    server = Early(echo)
    peer = ask(engine, server)
    assert bytes(peer.received) == b"hello\n"
    assert notes == ["pushed"]
    assert ended(engine, server)


def test_on_close_in_a_task_s_callback_ends_with_the_request(engine: MemoryEngine) -> None:
    pending: list[Pending] = []

    def callback(task: Task) -> None:
        task.on_close(lambda t: None)
        if task.req == "series":
            pending.append(Pending())
            task.series.push_back(pending[0])

    server = LineServer(in_turn(echo, lambda task: task.set_callback(callback)))
    peer = engine.connect(server)
    for _ in range(50):
        peer.send(b"a\n")
        engine.run()
    (conn,) = server.connections()
    assert not conn.entry.life.callbacks
    peer.send(b"series\n")
    engine.run()
    assert len(conn.entry.life.callbacks or {}) == 1  # its series runs
    pending[0].subtask_done()
    assert not conn.entry.life.callbacks
    assert ended(engine, server)


def test_on_close_is_called_before_a_task_learns_that_it_could_not_reply(
    engine: MemoryEngine,
) -> None:
    notes: list[str] = []

    def process(task: Task) -> None:
        task.on_close(lambda t: notes.append("closed"))
        task.set_callback(lambda t: notes.append(t.state.name))
        task.resp.text = "x" * 1000

    server = LineServer(process)
    peer = engine.connect(server, room=10)
    peer.send(b"a\n")
    engine.run()
    peer.reset()
    engine.run()
    assert notes == ["closed", "SYS_ERROR"]
    assert ended(engine, server)


def test_a_key_that_cannot_be_hashed_is_logged_and_not_used(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[Task] = []
    server = LineServer(in_turn(echo, tasks.append), line_spec(handler_key=lambda req: [req]))
    ask(engine, server)
    assert tasks[0].handler_key() is None
    assert "cannot be hashed" in caplog.text
    assert ended(engine, server)
