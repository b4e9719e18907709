"""What tasks have in common: results, callbacks, failure, misuse, and ``await``."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flow import (
    PATIENCE,
    RawClient,
    WFHttpServer,
    WFHttpTask,
    ask,
    closed_by,
    eventually,
    get,
    in_thread,
    reset_by,
    run,
    start,
)

from protoserve import (
    MailboxTask,
    ResultTask,
    SeriesWork,
    TaskState,
    UsageError,
    coroutine,
    counter,
    dynamic,
    empty,
    go,
    graph,
    mailbox,
    parallel,
    repeater,
    timer,
)


def fail() -> None:
    raise ValueError("a fault")


async def nothing() -> None:
    """A coroutine that ends at once."""


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


MAKERS: dict[str, Callable[[], ResultTask[Any]]] = {
    "timer": lambda: timer(0),
    "go": lambda: go(str),
    "counter": lambda: counter(0),
    "parallel": lambda: parallel(empty()),
    "graph": graph,
    "dynamic": lambda: dynamic(lambda t: empty()),
    "repeater": lambda: repeater(lambda t: None),
    "empty": empty,
    "coroutine": lambda: coroutine(nothing()),
}

every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


# -- every kind ----------------------------------------------------------------------------


@every
def test_start(make: Callable[[], ResultTask[Any]]) -> None:
    task = make()
    called = threading.Event()
    task.set_callback(lambda t: called.set())
    series = task.start()
    assert task.series is series
    assert called.wait(PATIENCE)
    eventually(lambda: series.finished)
    assert task.completed
    assert task.exception is None
    assert not task.canceled


@every
def test_used_once(make: Callable[[], ResultTask[Any]]) -> None:
    task = make()
    run(task)
    for again in (
        task.start,
        lambda: SeriesWork(task),
        lambda: SeriesWork(empty()).push_back(task),
    ):
        with pytest.raises(UsageError, match="is in a series already"):
            again()


@every
def test_result_too_early(make: Callable[[], ResultTask[Any]]) -> None:
    task = make()
    if not task.completed:  # a counter to 0 has nothing to wait for
        with pytest.raises(UsageError, match="has not ended; look in its callback"):
            _ = task.result
    with pytest.raises(UsageError, match="is in no series yet"):
        _ = task.series
    assert task.exception is None
    run(task)


@every
def test_cancelled_before_its_turn(make: Callable[[], ResultTask[Any]]) -> None:
    notes: list[str] = []
    task = make()
    done = task.completed
    task.set_callback(lambda t: notes.append("callback"))
    series, ended = start(timer(60), task)
    series.cancel()
    assert ended.wait(PATIENCE)
    gc.collect()  # a coroutine that nobody closed would warn
    assert notes == []
    assert task.canceled is not done


@every
def test_awaited(make: Callable[[], ResultTask[Any]]) -> None:
    notes: list[Any] = []

    async def main() -> None:
        task = make()
        task.set_callback(lambda t: notes.append("callback"))
        await asyncio.wait_for(task, PATIENCE)
        notes.append(task.completed)

    asyncio.run(main())
    assert notes == ["callback", True]


@every
def test_callback_raises_in_a_server(
    make: Callable[[], ResultTask[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    def process(task: WFHttpTask) -> None:
        pushed = make()
        pushed.set_callback(lambda t: fail())
        task.series.push_back(pushed)
        task.series.push_back(empty(lambda t: task.resp.write("never")))

    reply = ask(process)
    assert reply.status == 500
    assert b"never" not in reply.body
    assert len(errors(caplog)) == 1


# -- callbacks -----------------------------------------------------------------------------


def test_callback_comes_before_the_next_task() -> None:
    notes: list[str] = []

    def callback(task: ResultTask[Any]) -> None:
        notes.append("callback")
        task.series.push_front(empty(lambda t: notes.append("pushed in front")))
        task.series.push_back(empty(lambda t: notes.append("pushed behind")))

    run(empty(callback), empty(lambda t: notes.append("next")))
    assert notes == ["callback", "pushed in front", "next", "pushed behind"]


def test_user_data() -> None:
    notes: list[int] = []
    task = empty(lambda t: notes.append(t.user_data))
    assert task.user_data is None
    task.user_data = 7
    run(task)
    assert notes == [7]


def test_callback_is_called_once_and_let_go() -> None:
    calls: list[int] = []
    box: MailboxTask[int] = mailbox(lambda t: calls.append(t.result))
    run_it = start(box)[1]
    box.send(1)
    box.send(2)
    assert run_it.wait(PATIENCE)
    assert calls == [1]


def test_callback_that_is_a_coroutine_function() -> None:
    notes: list[str] = []

    async def callback(task: Any) -> None:
        await asyncio.sleep(0.01)
        notes.append(f"callback {task.result}")

    run(go(str, 5, callback=callback), empty(lambda t: notes.append("next")))
    assert notes == ["callback 5", "next"]


def test_coroutine_callback_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        async def callback(t: Any) -> None:
            await asyncio.sleep(0.01)
            task.resp.write("from a coroutine")

        task.series.push_back(timer(0, callback))

    assert ask(process).body == b"from a coroutine"


@pytest.mark.parametrize("looks", [False, True])
def test_coroutine_callback_and_an_exception(
    looks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []

    async def callback(task: Any) -> None:
        await asyncio.sleep(0)
        notes.append(str(task.exception) if looks else "did not look")

    series = run(go(fail, callback=callback), empty(lambda t: notes.append("next")))
    if looks:
        assert notes == ["a fault", "next"]
        assert series.failure is None
    else:
        assert notes == ["did not look"]
        assert isinstance(series.failure, ValueError)
    assert len(errors(caplog)) == (not looks)


def test_coroutine_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def callback(task: Any) -> None:
        raise KeyError("another")

    def process(task: WFHttpTask) -> None:
        task.series.push_back(timer(0, callback))

    assert ask(process).status == 500
    assert isinstance(run(go(fail, callback=callback)).failure, KeyError)
    assert len(errors(caplog)) == 2


# -- failure -------------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["exception", "result"])
def test_an_exception_that_is_looked_at(look: str) -> None:
    notes: list[str] = []

    def callback(task: ResultTask[None]) -> None:
        try:
            found = getattr(task, look)
        except ValueError as error:
            found = error
        notes.append(str(found))

    series = run(go(fail, callback=callback), empty(lambda t: notes.append("next")))
    assert notes == ["a fault", "next"]
    assert series.failure is None


def test_a_result_that_raises_out_of_the_callback(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.series.push_back(go(fail, callback=lambda t: task.resp.write(t.result)))

    assert ask(process).status == 500
    assert len(errors(caplog)) == 1


def test_completion_without_a_turn_is_kept() -> None:
    notes: list[int] = []
    box: MailboxTask[int] = mailbox(lambda t: notes.append(t.result))
    in_thread(lambda: box.send(3))
    assert notes == []
    assert box.result == 3
    run(box)
    assert notes == [3]


def test_cancelled_coroutine_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.sleep(60)

    series, ended = start(coroutine(wait()))
    assert begun.wait(PATIENCE)
    series.cancel()
    assert ended.wait(PATIENCE)
    assert caplog.records == []


def test_cancelled_request_with_a_coroutine(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        series = task.series

        async def wait() -> None:
            series.cancel()
            await asyncio.sleep(60)

        series.push_back(coroutine(wait()))

    assert closed_by(process) == b""
    assert errors(caplog) == []


def test_the_rest_of_a_failed_series_is_dropped() -> None:
    notes: list[str] = []
    dropped = timer(60, lambda t: notes.append("never"), name="dropped")
    series = run(go(fail), dropped, coroutine(nothing()))
    gc.collect()
    assert isinstance(series.failure, ValueError)
    assert dropped.canceled
    assert notes == []


# -- await ---------------------------------------------------------------------------------


def test_await_raises_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="a fault"):
            await go(fail)
        with pytest.raises(ValueError, match="a fault"):
            await empty(lambda t: fail())
        with pytest.raises(ValueError, match="a fault"):
            await dynamic(lambda t: go(fail))
        assert await go(str, 5) == "5"

    asyncio.run(main())
    assert errors(caplog) == []


def test_failure_of_an_awaited_task_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def process(task: WFHttpTask) -> None:
        await empty(lambda t: fail())

    assert ask(process).status == 500
    assert len(errors(caplog)) == 1


def test_cancelling_the_coroutine_cancels_the_task() -> None:
    notes: list[bool] = []

    async def main() -> None:
        task = timer(60, name="awaited")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await task
        notes.append(task.canceled)

    asyncio.run(main())
    assert notes == [True]


@pytest.mark.parametrize("kind", ["repeater", "mailbox"])
def test_cancelling_the_series_of_an_awaited_task(kind: str) -> None:
    """The coroutine is told, in asyncio's own way."""

    async def main() -> None:
        task: ResultTask[Any] = mailbox()
        if kind == "repeater":
            task = repeater(lambda t: timer(60))
        waiting = asyncio.ensure_future(task)
        await asyncio.sleep(0.01)
        task.series.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_await_used_twice() -> None:
    async def main() -> None:
        task = timer(0)
        await task
        with pytest.raises(UsageError, match="is in a series already"):
            await task

    asyncio.run(main())


# -- the request's own task ----------------------------------------------------------------


def test_what_the_callback_pushes_runs_after_the_reply_and_holds_the_stop() -> None:
    notes: list[str] = []
    gate: MailboxTask[int] = mailbox(lambda t: notes.append("pushed"))

    def process(task: WFHttpTask) -> None:
        task.resp.write("reply")

        def callback(t: WFHttpTask) -> None:
            notes.append(t.state.name)
            t.series.push_back(gate)

        task.set_callback(callback)

    server = WFHttpServer(process).start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        assert client.ask().body == b"reply", "the reply does not wait for the task"
    assert not gate.completed
    server.shutdown()
    assert not server.wait_finish(0.05), "the stop waits for the task"
    gate.send(1)
    assert server.wait_finish(PATIENCE)
    assert notes == ["SUCCESS", "pushed"]


@pytest.mark.parametrize("wait", [False, True])
def test_pushing_on_the_series_of_a_finished_request(wait: bool) -> None:
    kept: list[SeriesWork] = []

    def process(task: WFHttpTask) -> None:
        kept.append(task.series)
        if wait:
            task.series.push_back(timer(0.001))

    assert ask(process).status == 200
    with pytest.raises(UsageError, match="has finished; start a series of its own"):
        kept[0].push_back(empty())


def test_asking_for_the_series_of_a_finished_request() -> None:
    kept: list[WFHttpTask] = []
    assert ask(kept.append).status == 200
    with pytest.raises(UsageError, match="request is over"):
        _ = kept[0].series
    with pytest.raises(UsageError, match="callback cannot be set"):
        kept[0].set_callback(None)
    with pytest.raises(UsageError, match="call noreply\\(\\) before"):
        kept[0].noreply()


def test_set_callback_and_noreply_in_the_callback() -> None:
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        task.set_callback(callback)

    def callback(task: WFHttpTask) -> None:
        for attempt in (task.noreply, lambda: task.set_callback(callback)):
            with pytest.raises(UsageError) as caught:
                attempt()
            notes.append(str(caught.value))

    assert ask(process).status == 200
    assert len(notes) == 2
    assert "call noreply() before" in notes[0]
    assert "cannot be set any more" in notes[1]


def test_callback_that_is_taken_back_does_not_hold_the_stop() -> None:
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        task.set_callback(lambda t: notes.append("never"))
        task.set_callback(lambda t: notes.append("second"))
        if task.seq == 0:
            task.set_callback(None)

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.ask()
        c.ask()
    assert notes == ["second"]


def test_noreply_in_a_pushed_task() -> None:
    states: list[TaskState] = []

    def process(task: WFHttpTask) -> None:
        task.set_callback(lambda t: states.append(t.state))
        task.series.push_back(timer(0.01, lambda t: task.noreply()))

    assert closed_by(process) == b""
    assert states == [TaskState.NOREPLY]


def test_the_request_s_callback_raises(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.set_callback(lambda t: fail())

    assert ask(process).status == 200
    assert len(errors(caplog)) == 1


def test_cancelled_request_calls_the_series_callback_only() -> None:
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        task.set_callback(lambda t: notes.append("task"))
        task.series.set_callback(lambda s: notes.append(f"series, canceled {s.canceled}"))
        task.series.push_back(empty(lambda t: t.series.cancel()))
        task.series.push_back(empty(lambda t: notes.append("never")))

    assert closed_by(process) == b""
    assert notes == ["series, canceled True"]


def test_failure_after_a_push_resets(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.push(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        task.series.push_back(go(fail))

    assert reset_by(process) == b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert len(errors(caplog)) == 1


def test_pushing_from_a_foreign_thread() -> None:
    def process(task: WFHttpTask) -> None:
        series = task.series
        gate: MailboxTask[int] = mailbox()
        series.push_back(gate)

        def work() -> None:
            for n in range(100):
                series.push_back(empty(lambda t, n=n: task.resp.write(f"{n} ")))  # type: ignore[misc]
            gate.send(1)

        in_thread(work)

    assert ask(process).body == "".join(f"{n} " for n in range(100)).encode()


def test_stop_in_a_callback_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        def callback(t: Any) -> None:
            with pytest.raises(UsageError, match="call shutdown"):
                task.server.stop()
            notes.append("refused")

        task.series.push_back(timer(0, callback))

    assert ask(process).status == 200
    assert notes == ["refused"]


def test_a_client_that_leaves_before_a_late_reply() -> None:
    """Acceptance case 4: the timer's callback sees it, the task's callback ENOENT."""
    notes: list[Any] = []
    gate: MailboxTask[int] = mailbox(lambda t: notes.append("the task goes on"))

    def process(task: WFHttpTask) -> None:
        task.series.push_back(gate)
        task.series.push_back(empty(lambda t: notes.append(task.closed)))
        task.set_callback(lambda t: notes.append((t.state.name, t.error)))

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        client = RawClient(server.address)
        client.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset
        client.send(get())
        eventually(lambda: gate._series is not None)
        client.close()
        eventually(lambda: server.conn_count == 0)
        gate.send(1)
    assert notes == ["the task goes on", True, ("SYS_ERROR", 2)]
