"""Selectors: the first of several ends them."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import Any

import pytest
from flow import PATIENCE, WFHttpTask, ask, in_thread, run, start

from protoserve import ConfigError, SelectorTask, go, selector, timer


def test_the_tutorial_s_first_of_two_with_a_time_limit() -> None:
    """Workflow's about-selector: two that fetch, and a timer."""
    notes: list[Any] = []
    chosen: SelectorTask[str] = selector(3, lambda t: notes.append(t.result))
    slow = threading.Event()
    go(slow.wait, PATIENCE, callback=lambda t: chosen.submit("slow")).start()
    go(lambda: None, callback=lambda t: chosen.submit("fast")).start()
    limit = timer(60, lambda t: chosen.submit(None if t.canceled else "timeout"))
    _, limit_ended = start(limit)
    run(chosen)
    assert notes == ["fast"]
    slow.set()
    limit.cancel()
    assert limit_ended.wait(PATIENCE)


@pytest.mark.parametrize("early", [False, True])
def test_the_first_value_is_the_result(early: bool) -> None:
    notes: list[Any] = []
    task = selector(4, lambda t: notes.append(t.result))
    ended = None if early else start(task)[1]
    accepted: list[bool] = []
    for value in (None, "first", "second", None, "more than there are"):
        in_thread(lambda value=value: accepted.append(task.submit(value)))  # type: ignore[misc]
    assert accepted == [False, True, False, False, False]
    if ended is None:
        run(task)
    else:
        assert ended.wait(PATIENCE)
    assert notes == ["first"]


def test_what_is_false_is_a_value() -> None:
    for value in (0, "", False, []):
        task = selector(2)
        assert task.submit(value)
        run(task)
        assert task.result == value


@pytest.mark.parametrize("looks", [False, True])
def test_when_none_has_a_value(looks: bool, caplog: pytest.LogCaptureFixture) -> None:
    notes: list[Any] = []
    task = selector(2, (lambda t: notes.append(t.exception)) if looks else None)
    _, ended = start(task)
    assert not task.submit(None)
    assert not task.completed
    assert not task.submit(None)
    assert ended.wait(PATIENCE)
    assert isinstance(task.exception, OSError)
    assert task.exception.errno == errno.ENOMSG
    assert "none of the 2 candidates" in str(task.exception)
    assert len(caplog.records) == (not looks)
    assert not task.submit("late")


def test_many_at_once() -> None:
    for _ in range(200):
        task = selector(4)
        _, ended = start(task)
        accepted: list[int | None] = []

        def submit(value: int | None, task: Any = task, accepted: Any = accepted) -> None:
            if task.submit(value):
                accepted.append(value)

        threads = [threading.Thread(target=submit, args=(v,)) for v in (None, 1, 2, None)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert ended.wait(PATIENCE)
        assert [task.result] == accepted


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "3", None])
def test_no_number(number: Any) -> None:
    with pytest.raises(ConfigError, match=r"selector\(.*whole number from 1 on"):
        selector(number)


def test_a_cancelled_series() -> None:
    notes: list[str] = []
    task = selector(2, lambda t: notes.append("callback"))
    series, ended = start(task)
    series.cancel()
    assert ended.wait(PATIENCE)
    assert not task.submit("late")
    assert task.canceled
    assert notes == []


@pytest.mark.parametrize("answers", [True, False])
def test_in_a_server(answers: bool, caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        first: SelectorTask[str] = selector(2, lambda t: task.resp.write(t.result))
        task.series.push_back(first)
        for n in range(2):
            timer(0.01, lambda t, n=n: first.submit(f"{n}" if answers else None)).start()  # type: ignore[misc]

    reply = ask(process)
    assert (reply.status, len(caplog.records)) == ((200, 0) if answers else (500, 1))


def test_in_a_coroutine() -> None:
    async def main() -> Any:
        task = selector(1)
        timer(0.01, lambda t: task.submit("value")).start()
        return await task

    assert asyncio.run(main()) == "value"
