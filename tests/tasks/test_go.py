"""Go tasks: functions on the compute threads."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from typing import Any

import pytest
from flow import (
    PATIENCE,
    RawClient,
    Together,
    WFHttpServer,
    WFHttpTask,
    ask,
    depth,
    eventually,
    get,
    run,
    start,
)

from protoserve import ConfigError, GoTask, ServerParams, WaitGroup, get_scheduler, go
from protoserve.params import COMPUTE_THREADS

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


def add(*numbers: int, extra: int = 0) -> int:
    return sum(numbers) + extra


def fail() -> None:
    raise ValueError("a fault")


def test_alone() -> None:
    notes: list[Any] = []
    names: list[str] = []

    def work(n: int) -> int:
        names.append(threading.current_thread().name)
        return n

    run(go(work, 3, callback=lambda t: notes.append(t.result)))
    run(go(add, 1, 2, extra=3, callback=lambda t: notes.append(t.result)))
    assert notes == [3, 6]
    assert names[0].startswith("protoserve-compute-")


def test_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        task.series.push_back(go(add, 1, 2, callback=lambda t: task.resp.write(str(t.result))))

    assert ask(process).body == b"3"


def test_exception_looked_at() -> None:
    notes: list[Any] = []
    series = run(
        go(fail, callback=lambda t: notes.append(t.exception)),
        go(add, callback=lambda t: notes.append(t.result)),
    )
    assert isinstance(notes[0], ValueError)
    assert notes[1] == 0
    assert series.failure is None


@pytest.mark.parametrize("callback", [None, lambda task: None])
def test_exception_that_nobody_looks_at(callback: Any, caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    series = run(go(fail, callback=callback), go(notes.append, "never"))
    assert isinstance(series.failure, ValueError)
    assert notes == []
    assert len(caplog.records) == 1


@pytest.mark.parametrize("looks", [False, True])
def test_exception_in_a_server(looks: bool, caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        def callback(t: GoTask[None]) -> None:
            if looks:
                task.resp.write(str(t.exception))

        task.series.push_back(go(fail, callback=callback))

    reply = ask(process)
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    if looks:
        assert (reply.status, reply.body) == (200, b"a fault")
        assert errors == []
    else:
        assert reply.status == 500
        assert len(errors) == 1


def test_context_variables() -> None:
    notes: list[str] = []

    def work() -> None:
        notes.append(variable.get())
        variable.set("changed by the function")

    variable.set("the caller's")
    task = go(work)
    variable.set("later")
    run(task)
    assert notes == ["the caller's"]
    assert variable.get() == "later"


# -- queues --------------------------------------------------------------------------------


class Blocked:
    """Occupies every compute thread until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.ends: list[threading.Event] = []
        count = get_scheduler().executor.max_threads
        for n in range(count):
            self.ends.append(start(go(self._block, queue=f"block {n}"))[1])
        for _ in range(count):
            assert self.entered.acquire(timeout=PATIENCE)

    def _block(self) -> None:
        self.entered.release()
        assert self.opened.wait(PATIENCE)

    def open(self) -> None:
        self.opened.set()
        for end in self.ends:
            assert end.wait(PATIENCE)


def test_a_long_queue_does_not_hold_up_a_short_one() -> None:
    blocked = Blocked()
    notes: list[str] = []
    ends = [start(go(notes.append, "long", queue="long"))[1] for _ in range(100)]
    ends.append(start(go(notes.append, "short", queue="short"))[1])
    blocked.open()
    for end in ends:
        assert end.wait(PATIENCE)
    assert notes.count("long") == 100
    # Each thread may be one ahead.
    assert notes.index("short") <= 1 + get_scheduler().executor.max_threads


def test_cancelled_before_its_turn() -> None:
    blocked = Blocked()
    notes: list[str] = []
    task = go(notes.append, "ran", callback=lambda t: notes.append("callback"))
    series, ended = start(task)
    series.cancel()
    assert ended.wait(PATIENCE), "it does not wait for the queue"
    assert task.canceled
    blocked.open()
    run(go(add))
    assert notes == []


def test_cancelled_while_it_runs() -> None:
    entered, opened = threading.Event(), threading.Event()

    def work() -> int:
        entered.set()
        assert opened.wait(PATIENCE)
        return 1

    task = go(work)
    series, ended = start(task)
    assert entered.wait(PATIENCE)
    series.cancel()
    assert ended.wait(PATIENCE)
    opened.set()
    run(go(add))
    assert task.result is None


def test_cancelled_request() -> None:
    opened = threading.Event()

    def process(task: WFHttpTask) -> None:
        series = task.series

        def work() -> None:
            series.cancel()
            assert opened.wait(PATIENCE)

        series.push_back(go(work))

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get())
        assert c.rest() == b"", "it closes although the function still runs"
        opened.set()


# -- the limit -----------------------------------------------------------------------------


def test_limit() -> None:
    opened = threading.Event()
    notes: list[Any] = []
    series = run(
        go(opened.wait, PATIENCE, limit=0.02, callback=lambda t: notes.append(t.exception))
    )
    opened.set()
    assert isinstance(notes[0], TimeoutError)
    assert "0.02 s" in str(notes[0])
    assert series.failure is None


def test_limit_includes_the_queue() -> None:
    blocked = Blocked()
    notes: list[Any] = []
    run(go(notes.append, "ran", limit=0.02, callback=lambda t: notes.append(t.exception)))
    blocked.open()
    run(go(add))
    assert len(notes) == 1
    assert isinstance(notes[0], TimeoutError)


@pytest.mark.parametrize("function", [add, fail])
def test_limit_that_is_kept(function: Any) -> None:
    task = go(function, limit=60, callback=lambda t: t.exception)
    run(task)
    # Its clock has stopped: nothing runs any more.
    eventually(lambda: not get_scheduler().running)


def test_limit_of_a_cancelled_task() -> None:
    opened = threading.Event()
    series, ended = start(go(opened.wait, PATIENCE, limit=60))
    series.cancel()
    assert ended.wait(PATIENCE)
    opened.set()
    eventually(lambda: not get_scheduler().running)


def test_limit_in_a_server_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    opened = threading.Event()

    def process(task: WFHttpTask) -> None:
        task.series.push_back(go(opened.wait, PATIENCE, limit=0.02))
        task.set_callback(lambda t: opened.set())

    try:
        assert ask(process).status == 500
    finally:
        opened.set()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), 10**400])
def test_no_limit(limit: float) -> None:
    with pytest.raises(ConfigError, match="expected seconds above 0, or None"):
        go(add, limit=limit)


# -- threads -------------------------------------------------------------------------------


def test_many_in_a_series_in_flat_stack() -> None:
    depths: set[int] = set()
    run(*(go(add, callback=lambda t: depths.add(depth())) for _ in range(2000)))
    assert max(depths) - min(depths) < 10


def test_threads_end_without_a_server() -> None:
    run(go(add))
    scheduler = get_scheduler()
    end = time.monotonic() + 3  # far below the idle time under a server
    while scheduler.running:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_running_function_does_not_hold_up_the_next() -> None:
    """In a server, where threads idle: each job wakes a thread of its own."""

    def process(task: WFHttpTask) -> None:
        if task.seq:
            return
        met = threading.Barrier(2)
        series = task.series
        for _ in range(20):
            done = threading.Event()
            # Both at once, to two threads that idle or one that does.
            go(met.wait, 5, callback=lambda t, done=done: done.set()).start()  # type: ignore[misc]
            go(met.wait, 5, callback=lambda t: t.exception).start()
            assert done.wait(PATIENCE)
            assert not met.broken
        assert not series.finished

    assert ask(process).status == 200


def test_functions_that_block_run_at_once() -> None:
    """As many as concurrent.futures takes, more than there are processors, meet at a barrier."""
    met = threading.Barrier(COMPUTE_THREADS)
    group = WaitGroup(COMPUTE_THREADS)

    def meet() -> None:
        met.wait(PATIENCE)
        group.done()

    for _ in range(COMPUTE_THREADS):
        go(meet, callback=lambda t: t.exception).start()
    assert group.wait(PATIENCE)


def server(threads: int) -> WFHttpServer:
    return WFHttpServer(lambda task: None, ServerParams(compute_threads=threads))


def test_as_many_threads_as_the_most_demanding_server_asks_for() -> None:
    executor = get_scheduler().executor
    assert executor.max_threads == COMPUTE_THREADS
    with server(3).start("127.0.0.1", 0):
        assert executor.max_threads == 3
        with server(50).start("127.0.0.1", 0), server(5).start("127.0.0.1", 0):
            assert executor.max_threads == 50
        assert executor.max_threads == 3
    assert executor.max_threads == COMPUTE_THREADS


def test_compute_threads_bound_what_runs_at_once() -> None:
    together = Together()

    def work() -> None:
        with together:
            time.sleep(0.005)

    group = WaitGroup(20)
    with server(2).start("127.0.0.1", 0):
        for _ in range(20):
            go(work, callback=lambda t: group.done()).start()
        assert group.wait(PATIENCE)
    assert together.most <= 2


# -- a system without threads --------------------------------------------------------------


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("protoserve-compute"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_without_a_thread_a_task_fails_and_later_ones_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[Any] = []
    with monkeypatch.context() as patch:
        no_threads(patch)
        for limit in (None, 60, None):
            run(go(add, limit=limit, callback=lambda t: errors.append(t.exception)))
        assert [type(error) for error in errors] == [RuntimeError] * 3
        eventually(lambda: not get_scheduler().running)
    results: list[int] = []
    run(go(add, 1, 2, callback=lambda t: results.append(t.result)))
    assert results == [3]


def test_without_a_thread_a_request_fails_and_the_server_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def process(task: WFHttpTask) -> None:
        task.series.push_back(go(add, 1, 2, callback=lambda t: task.resp.write(str(t.result))))

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with monkeypatch.context() as patch, RawClient(server.address) as client:
            no_threads(patch)
            assert [client.ask().status for _ in range(2)] == [500, 500]
        with RawClient(server.address) as client:
            assert client.ask().body == b"3"
        assert server.stop() == 0


def test_without_another_thread_the_first_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, opened = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert opened.wait(PATIENCE)

    _, first = start(go(block))
    assert entered.wait(PATIENCE)
    with monkeypatch.context() as patch:
        no_threads(patch)
        results: list[int] = []
        ends = [
            start(go(add, n, callback=lambda t: results.append(t.result)))[1] for n in range(5)
        ]
        opened.set()
        for end in (first, *ends):
            assert end.wait(PATIENCE)
    assert results == [0, 1, 2, 3, 4]
