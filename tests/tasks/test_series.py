"""SeriesWork and the trampoline, without a server."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from protoserve import SeriesWork, SubTask, UsageError, series_of

PATIENCE = 10.0


class Step(SubTask):
    """A task that notes its name, runs a function and is done at once."""

    def __init__(
        self, notes: list[str], name: str, function: Callable[[], object] | None = None
    ) -> None:
        super().__init__()
        self.notes = notes
        self.name = name
        self.function = function

    def dispatch(self) -> None:
        self.notes.append(self.name)
        if self.function is not None:
            self.function()
        self.subtask_done()


class Pending(SubTask):
    """A task that is done when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched = threading.Event()

    def dispatch(self) -> None:
        self.dispatched.set()


class Raising(SubTask):
    """A task whose ``dispatch`` (or ``done``) raises."""

    def __init__(self, error: BaseException, *, in_done: bool = False) -> None:
        super().__init__()
        self.error = error
        self.in_done = in_done

    def dispatch(self) -> None:
        if not self.in_done:
            raise self.error
        self.subtask_done()

    def done(self) -> SubTask | None:
        if self.in_done:
            raise self.error
        return super().done()


def steps(notes: list[str], names: str) -> list[Step]:
    return [Step(notes, name) for name in names]


def test_order() -> None:
    notes: list[str] = []
    a, b, c, d, last = steps(notes, "abcdz")
    series = SeriesWork(a, lambda s: notes.append("callback"), last=last)
    series.push_back(b)
    series.push_back(c)
    series.push_front(d)
    assert not series.finished
    series.start()
    assert notes == ["d", "a", "b", "c", "z", "callback"]
    assert series.finished
    assert not series.canceled
    assert series.failure is None


def test_pushing_while_it_runs() -> None:
    notes: list[str] = []

    def push() -> None:
        series.push_back(Step(notes, "back"))
        series.push_front(Step(notes, "front"))

    first = Step(notes, "first", push)
    series = SeriesWork(first, last=Step(notes, "last"))
    series.push_back(Step(notes, "second"))
    series.start()
    assert notes == ["first", "front", "second", "back", "last"]


def test_what_the_last_task_pushes_runs_after_it() -> None:
    notes: list[str] = []
    last = Step(notes, "last", lambda: series.push_back(Step(notes, "after")))
    series = SeriesWork(Step(notes, "first"), lambda s: notes.append("callback"), last=last)
    series.start()
    assert notes == ["first", "last", "after", "callback"]


def test_every_task_knows_its_series() -> None:
    notes: list[str] = []
    a, b = steps(notes, "ab")
    with pytest.raises(UsageError, match="Step is in no series yet; push it on one"):
        _ = a.series
    series = SeriesWork(a, last=b)
    assert a.series is b.series is series
    series.context = {"mine": 1}
    assert a.series.context == {"mine": 1}


def test_a_task_in_two_series() -> None:
    notes: list[str] = []
    a, b, c = steps(notes, "abc")
    series = SeriesWork(a)
    for attempt in (lambda: SeriesWork(a), lambda: SeriesWork(b, last=a)):
        with pytest.raises(UsageError, match="make a new task for each"):
            attempt()
    for push in (series.push_back, series.push_front):
        with pytest.raises(UsageError, match="is in a series already"):
            push(a)
    series.push_back(c)
    series.start()
    assert notes == ["a", "c"]


def test_only_tasks() -> None:
    series = SeriesWork(Step([], "a"))
    wrong: Any
    for wrong in (None, print, "task", Step):
        with pytest.raises(TypeError, match="a series takes SubTasks, not"):
            series.push_back(wrong)


def test_a_finished_series() -> None:
    notes: list[str] = []
    series = SeriesWork(Step(notes, "a"))
    series.start()
    late = Step(notes, "late")
    for push in (series.push_back, series.push_front):
        with pytest.raises(UsageError, match="has finished; start a series of its own"):
            push(late)
    with pytest.raises(UsageError, match="started before"):
        series.start()
    SeriesWork(late).start()  # a refused task can be used elsewhere
    assert notes == ["a", "late"]


def test_started_twice() -> None:
    pending = Pending()
    series = SeriesWork(pending)
    series.start()
    with pytest.raises(UsageError, match="started before"):
        series.start()
    pending.subtask_done()
    assert series.finished


def test_ending_twice_or_out_of_turn() -> None:
    notes: list[str] = []
    pending, other = Pending(), Step(notes, "b")
    series = SeriesWork(pending)
    series.push_back(other)
    with pytest.raises(UsageError, match="out of turn"):
        pending.subtask_done()
    series.start()
    with pytest.raises(UsageError, match="out of turn"):
        other.subtask_done()
    pending.subtask_done()
    with pytest.raises(UsageError, match="ended twice"):
        pending.subtask_done()
    assert notes == ["b"]


class Twice(SubTask):
    """Says twice that it is done, before its ``dispatch`` returns."""

    def dispatch(self) -> None:
        self.subtask_done()
        self.subtask_done()


def test_ending_twice_inside_dispatch() -> None:
    notes: list[str] = []
    series = SeriesWork(Twice(), last=Step(notes, "last"))
    series.start()
    assert isinstance(series.failure, UsageError)
    assert notes == ["last"]


def test_late_completion_from_another_thread() -> None:
    names: list[str] = []
    pending = Pending()
    finished = threading.Event()
    series = SeriesWork(pending, lambda s: finished.set())
    series.push_back(Step([], "b", lambda: names.append(threading.current_thread().name)))
    series.start()
    assert names == []
    threading.Thread(target=pending.subtask_done, name="foreign").start()
    assert finished.wait(PATIENCE)
    assert names == ["foreign"], "the thread that completes a task goes on with the series"


class Early(SubTask):
    """Is done on another thread before ``dispatch`` returns."""

    def dispatch(self) -> None:
        thread = threading.Thread(target=self.subtask_done)
        thread.start()
        thread.join(PATIENCE)


def test_early_completion_from_another_thread() -> None:
    names: list[str] = []
    series = SeriesWork(Early())
    series.push_back(Step([], "b", lambda: names.append(threading.current_thread().name)))
    series.start()
    assert names == [threading.current_thread().name], "the trampoline goes on"


class Racing(SubTask):
    """Is done on another thread, some time around the end of ``dispatch``."""

    def dispatch(self) -> None:
        threading.Thread(target=self.subtask_done).start()


def test_completion_that_races_with_dispatch() -> None:
    finished = threading.Event()
    notes: list[str] = []
    series = SeriesWork(Racing(), lambda s: finished.set())
    for i in range(300):
        series.push_back(Racing())
        series.push_back(Step(notes, str(i)))
    series.start()
    assert finished.wait(PATIENCE)
    assert notes == [str(i) for i in range(300)]


def test_pushing_from_other_threads() -> None:
    notes: list[str] = []
    gate = Pending()
    finished = threading.Event()
    series = SeriesWork(gate, lambda s: finished.set())
    series.start()

    def push(n: int) -> None:
        for i in range(500):
            series.push_back(Step(notes, f"{n}.{i}"))

    threads = [threading.Thread(target=push, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    gate_opened = threads[0]
    gate_opened.join(PATIENCE)
    for thread in threads[1:]:
        thread.join(PATIENCE)
    gate.subtask_done()
    assert finished.wait(PATIENCE)
    for n in range(4):
        assert [note for note in notes if note.startswith(f"{n}.")] == [
            f"{n}.{i}" for i in range(500)
        ]


def test_pushing_while_another_thread_finishes_the_series() -> None:
    """Either the push is refused, or what was pushed runs."""
    for _ in range(300):
        notes: list[str] = []
        pending = Pending()
        finished = threading.Event()
        series = SeriesWork(pending, lambda s, finished=finished: finished.set())  # type: ignore[misc]
        series.start()
        thread = threading.Thread(target=pending.subtask_done)
        thread.start()
        accepted = 0
        try:
            while True:
                series.push_back(Step(notes, "x"))
                accepted += 1
                if accepted % 100 == 0:
                    time.sleep(0.0001)  # else it may keep the other thread from the lock
        except UsageError:
            pass
        thread.join(PATIENCE)
        assert finished.wait(PATIENCE)
        assert len(notes) == accepted


# -- the end -------------------------------------------------------------------------------


def test_cancel() -> None:
    notes: list[str] = []
    last = Step(notes, "last")
    series = SeriesWork(Step(notes, "a", lambda: series.cancel()), last=last)
    series.push_back(Step(notes, "b"))
    seen: list[bool] = []
    series.set_callback(lambda s: seen.append(s.canceled))
    series.start()
    assert notes == ["a", "last"], "the last task runs, and can look at canceled"
    assert seen == [True]


def test_pushing_on_a_cancelled_series_is_harmless() -> None:
    notes: list[str] = []
    pending = Pending()
    series = SeriesWork(pending)
    series.start()
    series.cancel()
    series.push_back(Step(notes, "b"))
    pending.subtask_done()
    assert series.finished
    assert notes == []


@pytest.mark.parametrize("with_last", [False, True])
def test_cancel_before_it_starts(with_last: bool) -> None:
    notes: list[str] = []
    last = Step(notes, "last") if with_last else None
    series = SeriesWork(Step(notes, "a"), lambda s: notes.append("callback"), last=last)
    series.cancel()
    series.start()
    assert notes == (["last"] if with_last else []) + ["callback"]
    assert series.finished


def test_cancel_from_another_thread() -> None:
    pending = Pending()
    notes: list[str] = []
    series = SeriesWork(pending)
    series.push_back(Step(notes, "b"))
    series.start()
    thread = threading.Thread(target=series.cancel)
    thread.start()
    thread.join(PATIENCE)
    pending.subtask_done()
    assert notes == []


@pytest.mark.parametrize("in_done", [False, True])
@pytest.mark.parametrize("error", [ValueError("a fault"), SystemExit(1)])
def test_a_task_that_raises(
    error: BaseException, in_done: bool, caplog: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []
    series = SeriesWork(
        Raising(error, in_done=in_done),
        lambda s: notes.append("callback"),
        last=Step(notes, "last"),
    )
    series.push_back(Step(notes, "never"))
    series.start()
    assert notes == ["last", "callback"]
    assert series.failure is error
    # The last task looks at the failure; without one it is logged here.
    assert caplog.records == []
    series = SeriesWork(Raising(error, in_done=in_done))
    series.start()
    assert series.finished
    assert len(caplog.records) == 1


def test_the_first_failure_counts(caplog: pytest.LogCaptureFixture) -> None:
    first, second = ValueError("first"), ValueError("second")
    series = SeriesWork(Raising(first), last=Raising(second))
    series.start()
    assert series.failure is first
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [second]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_callback_that_raises(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def callback(series: SeriesWork) -> None:
        raise error("a fault")

    series = SeriesWork(Step([], "a"), callback)
    series.start()
    assert series.finished
    assert len(caplog.records) == 1


def test_set_callback() -> None:
    notes: list[str] = []
    series = SeriesWork(Step(notes, "a"), lambda s: notes.append("first"))
    series.set_callback(lambda s: notes.append("second"))
    series.start()
    assert notes == ["a", "second"]
    series = SeriesWork(Step(notes, "b"), lambda s: notes.append("first"))
    series.set_callback(None)
    series.start()
    assert notes == ["a", "second", "b"]


# -- length --------------------------------------------------------------------------------


class Empty(SubTask):
    """Nothing at all."""

    __slots__ = ()

    def dispatch(self) -> None:
        self.subtask_done()


class Chain(SubTask):
    """Pushes the next one, so that only one exists at a time."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def dispatch(self) -> None:
        if self.left:
            self.series.push_back(Chain(self.left - 1))
        self.subtask_done()


@pytest.mark.slow
def test_a_million_empty_tasks() -> None:
    series = SeriesWork(Empty())
    for _ in range(1_000_000):
        series.push_back(Empty())
    series.start()
    assert series.finished


def test_a_long_series_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        SeriesWork(Chain(100)).start()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        series = SeriesWork(Chain(50_000))
        series.start()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert series.finished
    assert peak - before < 100_000


def test_series_of() -> None:
    """The article's way to say ``task.series``."""
    task = Pending()
    with pytest.raises(UsageError, match="in no series yet"):
        series_of(task)
    series = SeriesWork(task)
    assert series_of(task) is series
