"""Counters and mailboxes: tasks that something else completes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from flow import PATIENCE, WFHttpTask, ask, closed_by, in_thread, run, start

from protoserve import ConfigError, MailboxTask, count_by_name, counter, empty, mailbox, timer


def test_counts_to_its_target() -> None:
    notes: list[str] = []
    task = counter(3, lambda t: notes.append("callback"))
    series, ended = start(task, empty(lambda t: notes.append("next")))
    task.count()
    task.count()
    assert not task.completed
    assert not series.finished
    task.count()
    assert ended.wait(PATIENCE)
    assert notes == ["callback", "next"]
    task.count()  # more than the target does no harm
    assert task.result is None


def test_counted_before_it_begins() -> None:
    task = counter(2)
    in_thread(lambda: task.count(2))
    assert run(task).finished


def test_nothing_to_count() -> None:
    assert run(counter(0)).finished
    assert count_by_name("nothing") == 0
    counter(0, name="nothing")
    assert count_by_name("nothing") == 0


@pytest.mark.parametrize("target", [-1, 1.5, True, "3", None])
def test_no_target(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"counter\(.*whole number"):
        counter(target)


def test_many_threads() -> None:
    calls: list[int] = []
    task = counter(4000, lambda t: calls.append(1))
    _, ended = start(task)
    threads = [
        threading.Thread(target=lambda: [task.count() for _ in range(1100)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert ended.wait(PATIENCE)
    assert calls == [1]


def test_names() -> None:
    one, two, other = counter(2, name="a"), counter(3, name="a"), counter(1, name="b")
    ends = [start(task)[1] for task in (one, two, other)]
    assert count_by_name("a") == 2
    assert count_by_name("a") == 2
    assert one.completed
    assert not two.completed
    assert count_by_name("a", 5) == 1, "a name ends with its counter"
    assert count_by_name("a") == 0
    assert not other.completed
    assert count_by_name("b") == 1
    assert all(end.wait(PATIENCE) for end in ends)


def test_a_cancelled_series_ends_its_names() -> None:
    series, ended = start(counter(1, name="first"), counter(1, name="second"))
    series.cancel()
    assert ended.wait(PATIENCE)
    assert count_by_name("first") == count_by_name("second") == 0


def test_counter_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        every = counter(3, lambda t: task.resp.write("all three"))
        task.series.push_back(every)
        for n in range(3):
            timer(n / 100, lambda t: every.count()).start()

    assert ask(process).body == b"all three"


# -- mailboxes -----------------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True])
def test_a_value_from_another_thread(early: bool) -> None:
    notes: list[Any] = []
    box: MailboxTask[str] = mailbox(lambda t: notes.append(t.result))
    if early:
        in_thread(lambda: box.send("value"))
        run(box)
    else:
        _, ended = start(box)
        in_thread(lambda: box.send("value"))
        assert ended.wait(PATIENCE)
    assert notes == ["value"]
    assert not box.send("another")
    assert not box.fail(ValueError("late"))
    assert box.result == "value"


def test_a_value_from_an_event_loop() -> None:
    def process(task: WFHttpTask) -> None:
        box: MailboxTask[str] = mailbox(lambda t: task.resp.write(t.result))
        task.series.push_back(box)

        async def main() -> None:
            await asyncio.sleep(0.01)
            box.send("from a loop")

        thread = threading.Thread(target=asyncio.run, args=(main(),))
        threads.append(thread)
        thread.start()

    threads: list[threading.Thread] = []
    assert ask(process).body == b"from a loop"
    threads[0].join(PATIENCE)


def test_first_of_many_senders() -> None:
    for _ in range(100):
        accepted: list[int] = []
        box: MailboxTask[int] = mailbox()
        _, ended = start(box)

        def send(n: int, box: Any = box, accepted: list[int] = accepted) -> None:
            if box.send(n):
                accepted.append(n)

        threads = [threading.Thread(target=send, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert ended.wait(PATIENCE)
        assert [box.result] == accepted


def test_fail_looked_at() -> None:
    error = ValueError("a fault")
    notes: list[Any] = []
    box: MailboxTask[None] = mailbox(lambda t: notes.append(t.exception))
    box.fail(error)
    assert run(box).failure is None
    assert notes == [error]


def test_fail_in_a_server_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        box: MailboxTask[None] = mailbox()
        task.series.push_back(box)
        timer(0.01, lambda t: box.fail(ValueError("a fault"))).start()

    assert ask(process).status == 500
    assert len(caplog.records) == 1


def test_cancelled_mailbox() -> None:
    notes: list[str] = []
    box: MailboxTask[int] = mailbox(lambda t: notes.append("callback"))
    series, ended = start(box)
    series.cancel()
    assert ended.wait(PATIENCE)
    assert not box.send(1), "it has ended"
    assert box.canceled
    assert notes == []


def test_mailbox_of_a_cancelled_request() -> None:
    box: MailboxTask[int] = mailbox()

    def process(task: WFHttpTask) -> None:
        series = task.series
        series.push_back(box)
        timer(0.01, lambda t: series.cancel()).start()

    assert closed_by(process) == b""
    assert not box.send(1)
