"""Tasks that are made when their turn comes, and the empty task."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from flow import PATIENCE, WFHttpTask, ask, closed_by, depth, run, start

from protoserve import (
    DynamicTask,
    EmptyTask,
    RepeaterTask,
    SeriesWork,
    SubTask,
    dynamic,
    empty,
    go,
    repeater,
    timer,
)


def fail() -> None:
    raise ValueError("a fault")


# -- empty ---------------------------------------------------------------------------------


def test_empty() -> None:
    notes: list[Any] = []
    run(empty(), empty(lambda t: notes.append(t.result)))
    assert notes == [None]


def test_empty_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        task.series.push_back(empty(lambda t: task.resp.write("empty")))

    assert ask(process).body == b"empty"


class Chain:
    """Each empty task's callback pushes the next."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.depths: set[int] = set()

    def __call__(self, task: EmptyTask) -> None:
        if self.left % 1000 == 0:
            self.depths.add(depth())
        self.left -= 1
        if self.left:
            task.series.push_back(empty(self))


def test_a_million_empty_tasks() -> None:
    chain = Chain(1_000_000)
    run(empty(chain))
    assert chain.left == 0
    assert len(chain.depths) == 1


def test_many_empty_tasks_take_no_memory() -> None:
    run(empty(Chain(100)))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        run(empty(Chain(20_000)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 100_000


# -- dynamic -------------------------------------------------------------------------------


def test_dynamic() -> None:
    notes: list[str] = []

    def create(task: DynamicTask) -> SubTask:
        notes.append("made")
        return timer(0.001, lambda t: notes.append("ran"))

    task = dynamic(create)
    assert notes == []
    run(empty(lambda t: notes.append("before")), task, empty(lambda t: notes.append("after")))
    assert notes == ["before", "made", "ran", "after"]


def test_dynamic_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        found: list[int] = []
        task.series.push_back(go(found.append, 3))
        task.series.push_back(
            dynamic(lambda t: empty(lambda _: task.resp.write(f"found {found[0]}")))
        )

    assert ask(process).body == b"found 3"


def test_dynamic_that_raises_or_makes_no_task(caplog: pytest.LogCaptureFixture) -> None:
    def create(task: DynamicTask) -> SubTask:
        fail()
        return empty()

    nothing: Any = lambda task: None  # noqa: E731
    assert isinstance(run(dynamic(create)).failure, ValueError)
    assert isinstance(run(dynamic(nothing)).failure, TypeError)
    assert len(caplog.records) == 2

    def process(task: WFHttpTask) -> None:
        task.series.push_back(dynamic(create))

    assert ask(process).status == 500


def test_dynamic_cancels_its_series() -> None:
    notes: list[str] = []

    def create(task: DynamicTask) -> SubTask:
        task.series.cancel()
        return empty(lambda t: notes.append("never"))

    series = run(dynamic(create))
    assert series.failure is None
    assert notes == []


# -- repeater ------------------------------------------------------------------------------


def test_repeater() -> None:
    notes: list[str] = []

    def create(task: RepeaterTask) -> SubTask | None:
        if task.times == 3:
            return None
        return timer(0.001, lambda t, n=task.times: notes.append(str(n)))  # type: ignore[misc]

    task = repeater(create, lambda t: notes.append(f"times {t.result}"))
    run(task, empty(lambda t: notes.append("after")))
    assert notes == ["0", "1", "2", "times 3", "after"]
    assert task.times == 3


def test_no_times_at_all() -> None:
    notes: list[int] = []
    run(repeater(lambda t: None, lambda t: notes.append(t.result)))
    assert notes == [0]


def test_repeater_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        def create(t: RepeaterTask) -> SubTask | None:
            return go(task.resp.write, str(t.times)) if t.times < 5 else None

        task.series.push_back(repeater(create, lambda t: task.resp.write(" done")))

    assert ask(process).body == b"01234 done"


def test_a_hundred_thousand_times_flat() -> None:
    depths: set[int] = set()

    def create(task: RepeaterTask) -> SubTask | None:
        depths.add(depth())
        return empty() if task.times < 100_000 else None

    task = repeater(create)
    run(task)
    assert task.result == 100_000
    assert len(depths) == 1


def test_repeating_takes_no_memory() -> None:
    def make(times: int) -> RepeaterTask:
        return repeater(lambda t: empty() if t.times < times else None)

    run(make(10))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        run(make(10_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 100_000


def test_a_repeated_task_fails() -> None:
    notes: list[str] = []
    task = repeater(lambda t: go(fail), lambda t: notes.append("callback"))
    series = run(task, empty(lambda t: notes.append("after")))
    assert isinstance(series.failure, ValueError)
    assert task.times == 1
    assert notes == []


def test_create_fails(caplog: pytest.LogCaptureFixture) -> None:
    def create(task: RepeaterTask) -> SubTask | None:
        if task.times:
            fail()
        return empty()

    assert isinstance(run(repeater(create)).failure, ValueError)

    def process(task: WFHttpTask) -> None:
        task.series.push_back(repeater(create))

    assert ask(process).status == 500
    assert len(caplog.records) == 2


def test_cancel_between_the_times() -> None:
    notes: list[str] = []
    series, ended = start(
        repeater(lambda t: timer(60), lambda t: notes.append("callback")),
        empty(lambda t: notes.append("after")),
    )
    series.cancel()
    assert ended.wait(PATIENCE)
    assert series.failure is None
    assert notes == []


def test_create_cancels_the_series(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    def create(task: RepeaterTask) -> SubTask | None:
        if task.times == 2:
            task.series.cancel()
        return empty(lambda t: notes.append("ran"))

    series = run(repeater(create, lambda t: notes.append("callback")))
    assert notes == ["ran", "ran"]
    assert series.failure is None
    assert caplog.records == []


def test_cancel_from_another_thread_at_any_moment(caplog: pytest.LogCaptureFixture) -> None:
    """The repeater is often at work, in its own code or the task's, when it comes."""
    for n in range(50):
        series, ended = start(timer(0.001), repeater(lambda t: empty()))
        timer(0.001 + n / 50_000, lambda t, s=series: s.cancel()).start()  # type: ignore[misc]
        canceler = SeriesWork(go(series.cancel))
        canceler.start()
        assert ended.wait(PATIENCE)
        assert series.failure is None
    assert caplog.records == []


def test_cancelled_request() -> None:
    def process(task: WFHttpTask) -> None:
        series = task.series
        series.push_back(repeater(lambda t: timer(0.001)))
        timer(0.02, lambda t: series.cancel()).start()

    assert closed_by(process) == b""
