"""ParallelWork: several series at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from flow import PATIENCE, WFHttpTask, ask, closed_by, depth, in_thread, run, start

from protoserve import (
    MailboxTask,
    ParallelWork,
    SeriesWork,
    UsageError,
    coroutine,
    empty,
    go,
    mailbox,
    parallel,
    timer,
)


def fail() -> None:
    raise ValueError("a fault")


def test_tasks_and_series() -> None:
    notes: list[str] = []
    series = SeriesWork(empty(lambda t: notes.append("a")), lambda s: notes.append("series"))
    series.push_back(empty(lambda t: notes.append("b")))
    work = parallel(series, timer(0.01, lambda t: notes.append("timer")))
    work.set_callback(lambda t: notes.append("all"))
    work.context = {"mine": 1}
    assert len(work) == 2
    assert work[0] is series
    assert list(work)[1] is work[1]
    run(work)
    assert notes == ["a", "b", "series", "timer", "all"]
    assert work.result == list(work)
    assert work.context == {"mine": 1}


def test_nothing_at_all() -> None:
    notes: list[Any] = []
    run(parallel(callback=lambda t: notes.append(t.result)))
    assert notes == [[]]


def test_really_at_once() -> None:
    boxes: list[MailboxTask[int]] = [mailbox() for _ in range(3)]
    work = parallel(*boxes)
    _, ended = start(work)
    for box in reversed(boxes):
        assert not work.completed
        in_thread(lambda box=box: box.send(1))  # type: ignore[misc]
    assert ended.wait(PATIENCE)


def test_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        parts: list[str] = []
        task.series.push_back(
            parallel(
                timer(0.02, lambda t: parts.append("timer")),
                go(parts.append, "go"),
                callback=lambda t: task.resp.write(" ".join(sorted(parts))),
            )
        )

    assert ask(process).body == b"go timer"


def test_nested() -> None:
    notes: list[int] = []

    def make(n: int) -> ParallelWork:
        if not n:
            return parallel(*(empty(lambda t: notes.append(1)) for _ in range(3)))
        return parallel(make(n - 1), make(n - 1))

    run(make(4))
    assert len(notes) == 48


def test_ten_thousand_flat() -> None:
    depths: set[int] = set()
    run(parallel(*(empty(lambda t: depths.add(depth())) for _ in range(10_000))))
    assert len(depths) == 1


def test_add_later() -> None:
    work = parallel()
    work.add(empty())
    boxes: MailboxTask[int] = mailbox()
    work.add(boxes)
    _, ended = start(work)
    with pytest.raises(UsageError, match="has begun"):
        work.add(empty())
    boxes.send(1)
    assert ended.wait(PATIENCE)
    with pytest.raises(UsageError, match="has begun"):
        work.add(empty())


def test_a_series_that_is_used_elsewhere() -> None:
    series = SeriesWork(empty())
    parallel(series)
    with pytest.raises(UsageError, match="part of another task"):
        parallel(series)
    running, ended = start(timer(60, name="running"))
    with pytest.raises(UsageError, match="started before"):
        parallel(running)
    running.cancel()
    assert ended.wait(PATIENCE)


# -- failure -------------------------------------------------------------------------------


def test_one_fails_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[Any] = []
    work = parallel(
        go(fail),
        timer(0.02, lambda t: notes.append("timer")),
        callback=lambda t: notes.append(t.exception),
    )
    series = run(work)
    assert notes[0] == "timer"
    assert isinstance(notes[1], ValueError)
    assert isinstance(work[0].failure, ValueError)
    assert series.failure is None
    assert caplog.records == [], "the callback has looked at it"


def test_failure_in_a_server_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.series.push_back(parallel(go(fail), timer(0.01)))

    assert ask(process).status == 500
    assert len(caplog.records) == 1


# -- cancelling ----------------------------------------------------------------------------


def test_cancel_while_it_runs() -> None:
    notes: list[str] = []
    inner = SeriesWork(timer(60, lambda t: notes.append("timer")))
    inner.set_callback(lambda s: notes.append(f"inner canceled {s.canceled}"))
    boxes: MailboxTask[int] = mailbox(lambda t: notes.append("mailbox"))
    work = parallel(inner, boxes, callback=lambda t: notes.append("all"))
    series, ended = start(work)
    series.cancel()
    assert ended.wait(PATIENCE)
    assert notes == ["inner canceled True"]
    assert work.canceled


def test_one_series_cancels_itself() -> None:
    notes: list[str] = []
    inner = SeriesWork(empty(lambda t: t.series.cancel()))
    inner.push_back(empty(lambda t: notes.append("never")))
    work = parallel(inner, timer(0.01, lambda t: notes.append("timer")))
    series = run(work)
    assert notes == ["timer"]
    assert not series.canceled
    assert inner.canceled


def test_cancel_before_its_turn() -> None:
    """What is in it does not run; coroutines are closed, callbacks learn of it."""
    notes: list[str] = []

    async def never() -> None:
        notes.append("ran")

    inner = SeriesWork(coroutine(never()), lambda s: notes.append(f"canceled {s.canceled}"))
    series, ended = start(timer(60), parallel(inner, parallel(coroutine(never()))))
    series.cancel()
    assert ended.wait(PATIENCE)
    gc.collect()  # a coroutine that nobody closed would warn
    assert notes == ["canceled True"]


def test_cancel_interrupts_coroutines() -> None:
    begun = threading.Semaphore(0)
    notes: list[str] = []

    async def wait() -> None:
        begun.release()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            notes.append("cancelled")
            raise

    series, ended = start(parallel(coroutine(wait()), coroutine(wait())))
    assert begun.acquire(timeout=PATIENCE)
    assert begun.acquire(timeout=PATIENCE)
    series.cancel()
    assert ended.wait(PATIENCE)
    assert notes == ["cancelled"] * 2


def test_cancelled_request() -> None:
    def process(task: WFHttpTask) -> None:
        series = task.series
        series.push_back(parallel(timer(60), mailbox(), parallel(timer(60))))
        timer(0.01, lambda t: series.cancel()).start()

    assert closed_by(process) == b""
