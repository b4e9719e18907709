"""Conditionals: tasks that run when somebody gives a signal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flow import PATIENCE, WFHttpTask, ask, closed_by, in_thread, run, start

from protoserve import (
    ConfigError,
    UsageError,
    WaitGroup,
    conditional,
    coroutine,
    empty,
    go,
    parallel,
    signal_by_name,
    timer,
)


def test_the_tutorial_s_delayed_task() -> None:
    """Workflow's about-conditional: a timer's callback lets a go task run."""
    group = WaitGroup(1)
    notes: list[str] = []
    task = go(notes.append, "done", callback=lambda t: group.done())
    cond = conditional(task)
    timer(0.01, lambda t: cond.signal()).start()
    cond.start()
    assert group.wait(PATIENCE)
    assert notes == ["done"]


def test_the_tutorial_s_observers() -> None:
    group = WaitGroup(2)
    for _ in range(2):
        conditional(empty(lambda t: group.done()), name="slot1").start()
    assert not group.wait(0)
    assert signal_by_name("slot1") == 2
    assert group.wait(PATIENCE)
    assert signal_by_name("slot1") == 0, "a name ends with its signal"


@pytest.mark.parametrize("early", [False, True])
def test_order(early: bool) -> None:
    notes: list[str] = []
    cond = conditional(
        empty(lambda t: notes.append("task")), lambda t: notes.append(f"signal {t.result}")
    )
    tasks = (cond, empty(lambda t: notes.append("next")))
    if early:
        in_thread(lambda: cond.signal("value"))
        assert notes == []
        run(*tasks)
    else:
        _, ended = start(*tasks)
        assert notes == []
        in_thread(lambda: cond.signal("value"))
        assert ended.wait(PATIENCE)
    assert notes == ["signal value", "task", "next"]
    assert not cond.signal("again")
    assert cond.result == "value"


def test_a_callback_that_is_a_coroutine_comes_first() -> None:
    notes: list[str] = []

    async def callback(_: Any) -> None:
        await asyncio.sleep(0.01)
        notes.append("callback")

    cond = conditional(empty(lambda t: notes.append("task")), callback)
    cond.signal()
    run(cond)
    assert notes == ["callback", "task"]


def test_at_most() -> None:
    notes: list[int] = []
    ends = [
        start(conditional(empty(lambda t, n=n: notes.append(n)), name="some"))[1]  # type: ignore[misc]
        for n in range(5)
    ]
    assert signal_by_name("some", max=0) == 0
    assert signal_by_name("some", "value", 2) == 2
    assert notes == [0, 1], "the first that were made"
    assert signal_by_name("some", max=10) == 3
    assert all(end.wait(PATIENCE) for end in ends)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=r"max=.*whole number from 0 on"):
            signal_by_name("some", max=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_series(begun: bool) -> None:
    """The task never runs, and what is in it is let go."""
    notes: list[str] = []

    async def never() -> None:
        notes.append("ran")

    inner = parallel(coroutine(never()), timer(60, name="inner"))
    cond = conditional(inner, lambda t: notes.append("callback"), name="waits")
    series, ended = start(*([cond] if begun else [timer(60), cond]))
    series.cancel()
    assert ended.wait(PATIENCE)
    assert signal_by_name("waits") == 0
    assert not cond.signal()
    assert cond.canceled
    assert inner.canceled
    assert notes == []


def test_a_callback_that_raises_ends_the_series(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []

    def callback(_: Any) -> None:
        raise ValueError("a fault")

    cond = conditional(empty(lambda t: notes.append("task")), callback)
    cond.signal()
    assert isinstance(run(cond).failure, ValueError)
    assert notes == []


def test_what_is_no_task() -> None:
    async def work() -> None: ...

    with pytest.raises(TypeError, match=r"conditional\(\) takes a task, not coroutine; wrap it"):
        conditional(work())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not str"):
        conditional("name")  # type: ignore[arg-type]
    used = empty()
    run(used)
    with pytest.raises(UsageError, match="EmptyTask is in a series already"):
        conditional(used)


def test_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        cond = conditional(timer(0.01, lambda t: task.resp.write(" and done")), name="go on")
        cond.set_callback(lambda t: task.resp.write(t.result))
        task.series.push_back(cond)
        timer(0.01, lambda t: signal_by_name("go on", "signal")).start()

    assert ask(process).body == b"signal and done"


def test_a_cancelled_request() -> None:
    def process(task: WFHttpTask) -> None:
        series = task.series
        series.push_back(conditional(empty(), name="request"))
        timer(0.01, lambda t: series.cancel()).start()

    assert closed_by(process) == b""
    assert signal_by_name("request") == 0


def test_in_a_coroutine() -> None:
    async def main() -> Any:
        cond = conditional(timer(0.01))
        timer(0.01, lambda t: cond.signal("value")).start()
        return await cond

    assert asyncio.run(main()) == "value"
