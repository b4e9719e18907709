"""Counters and mailboxes: tasks that something else completes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from flow import PATIENCE, WFHttpTask, ask, closed_by, in_thread, run, start

from protoserve import (
    ConfigError,
    MailboxTask,
    count_by_name,
    counter,
    empty,
    mailbox,
    send_by_name,
    timer,
)


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
    assert count_by_name("a") == 0
    assert count_by_name("a") == 1
    assert one.completed
    assert not two.completed
    assert count_by_name("a", 5) == 1, "a name ends with its counter"
    assert count_by_name("a") == 0
    assert not other.completed
    assert count_by_name("b") == 1
    assert all(end.wait(PATIENCE) for end in ends)


def test_a_name_s_count_goes_from_one_counter_to_the_next() -> None:
    """As Workflow's ``count_n_locked`` does."""
    tasks = [counter(target, name="chain") for target in (2, 3, 4)]
    ends = [start(task)[1] for task in tasks]
    tasks[1].count()
    assert count_by_name("chain", 0) == 0
    assert count_by_name("chain", 5) == 2, "2 and the other 2 of the second; 1 is left"
    assert [task.completed for task in tasks] == [True, True, False]
    assert count_by_name("chain", 2) == 0
    assert count_by_name("chain", 100) == 1
    assert all(end.wait(PATIENCE) for end in ends)


def test_any_three_of_four() -> None:
    """Workflow's about-counter: the fourth that ends finds the name gone."""
    calls: list[int] = []
    _, ended = start(counter(3, lambda t: calls.append(1), name="any three"))
    for _ in range(4):
        timer(0.01, lambda t: count_by_name("any three")).start()
    assert ended.wait(PATIENCE)
    assert calls == [1]


def test_counting_by_name_and_by_hand_at_once() -> None:
    for _ in range(50):
        tasks = [counter(10, name="many") for _ in range(4)]
        ends = [start(task)[1] for task in tasks]
        reached: list[int] = []

        def by_name(reached: Any = reached) -> None:
            reached.extend(count_by_name("many") for _ in range(30))

        def by_hand(tasks: Any = tasks) -> None:
            for _ in range(10):
                tasks[3].count()

        threads = [threading.Thread(target=f) for f in (by_name, by_hand)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert all(end.wait(PATIENCE) for end in ends)
        assert sum(reached) == 3


@pytest.mark.parametrize("n", [-1, 1.5, True, "3", None])
def test_no_number(n: Any) -> None:
    task = counter(1, name="one")
    with pytest.raises(ConfigError, match=r"count\(.*whole number from 0 on"):
        task.count(n)
    with pytest.raises(ConfigError, match=r"count_by_name\(.*whole number from 0 on"):
        count_by_name("one", n)
    assert count_by_name("one") == 1


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


def test_mailboxes_by_name() -> None:
    boxes: list[MailboxTask[Any]] = [mailbox(name="box") for _ in range(5)]
    other: MailboxTask[Any] = mailbox(name="another")
    ends = [start(box)[1] for box in boxes[:4]]
    assert send_by_name("box", "to none", max=0) == 0
    assert send_by_name("box", "to two", 2) == 2
    assert [box.completed for box in boxes] == [True, True, False, False, False]
    assert boxes[2].send("by hand")
    assert send_by_name("box", "to all") == 2, "begun or not"
    run(boxes[4])
    assert all(end.wait(PATIENCE) for end in ends)
    assert [box.result for box in boxes] == ["to two", "to two", "by hand", "to all", "to all"]
    assert send_by_name("box", "late") == 0, "a name ends with its mailbox"
    assert not other.completed
    other.fail(ValueError("a fault"))
    assert send_by_name("another", "late") == 0
    with pytest.raises(ConfigError, match=r"max=-1: expected a whole number from 0 on"):
        send_by_name("box", "wrong", -1)


def test_a_cancelled_series_ends_the_names_of_mailboxes() -> None:
    first: MailboxTask[Any] = mailbox(name="first")
    second: MailboxTask[Any] = mailbox(name="second")
    series, ended = start(first, second)
    series.cancel()
    assert ended.wait(PATIENCE)
    assert send_by_name("first", 1) == send_by_name("second", 1) == 0
