"""Timers."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest
from flow import PATIENCE, WFHttpServer, WFHttpTask, ask, closed_by, get, in_thread, run, start

from protoserve import (
    ConfigError,
    TimerTask,
    cancel_by_name,
    counter,
    empty,
    get_scheduler,
    timer,
)


def test_alone() -> None:
    notes: list[Any] = []
    before = time.monotonic()
    task = timer(0.03, lambda t: notes.append((t.result, t.canceled, t.exception)))
    run(task)
    assert time.monotonic() - before >= 0.03
    assert notes == [(None, False, None)]
    assert not task.cancel(), "it has ended"
    assert not task.canceled


def test_zero_seconds_and_order() -> None:
    notes: list[int] = []
    run(*(timer(0, lambda t, n=n: notes.append(n)) for n in range(100)))  # type: ignore[misc]
    assert notes == list(range(100))


def test_earlier_timer_that_is_set_later_rings_first() -> None:
    notes: list[str] = []
    _, late = start(timer(0.2, lambda t: notes.append("late")))
    _, soon = start(timer(0.01, lambda t: notes.append("soon")))
    assert soon.wait(PATIENCE)
    assert late.wait(PATIENCE)
    assert notes == ["soon", "late"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 10**400, True, "1", None])
def test_no_time(seconds: Any) -> None:
    with pytest.raises(ConfigError, match=r"timer\(.*expected"):
        timer(seconds)


def test_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        before = time.monotonic()
        task.series.push_back(
            timer(0.05, lambda t: task.resp.write(str(time.monotonic() - before >= 0.05)))
        )

    assert ask(process).body == b"True"


# -- cancelling ----------------------------------------------------------------------------


def test_cancel_before_it_begins() -> None:
    notes: list[bool] = []
    task = timer(60, lambda t: notes.append(t.canceled))
    assert task.cancel()
    assert not task.cancel()
    assert task.canceled, "a second attempt changes nothing"
    run(task)
    assert notes == [True]


def test_cancel_while_it_waits() -> None:
    notes: list[str] = []
    task = timer(60, lambda t: notes.append(f"canceled {t.canceled}"))
    series, ended = start(task, empty(lambda t: notes.append("the series goes on")))
    in_thread(lambda: notes.append(str(task.cancel())))
    assert ended.wait(PATIENCE)
    assert sorted(notes) == sorted(["True", "canceled True", "the series goes on"])
    assert not series.canceled


def test_cancel_again_in_the_callback() -> None:
    notes: list[bool] = []

    def callback(task: TimerTask) -> None:
        notes.append(task.cancel())
        notes.append(task.canceled)

    task = timer(60, callback)
    _, ended = start(task)
    task.cancel()
    assert ended.wait(PATIENCE)
    assert notes == [False, True]


def test_cancel_the_series() -> None:
    notes: list[str] = []
    task = timer(60, lambda t: notes.append("its callback"))
    series, ended = start(task, empty(lambda t: notes.append("the next")))
    series.cancel()
    assert ended.wait(PATIENCE)
    assert notes == []
    assert task.canceled


def test_cancel_while_it_rings() -> None:
    """Whoever is first decides, and the task ends once."""
    for _ in range(300):
        calls: list[bool] = []
        task = timer(0.0005, lambda t, calls=calls: calls.append(t.canceled))  # type: ignore[misc]
        _, ended = start(task)
        canceled = task.cancel()
        assert ended.wait(PATIENCE)
        assert calls == [canceled]


def test_names() -> None:
    notes: list[str] = []
    tasks = [timer(60, lambda t: notes.append(t.name or ""), name="mine") for _ in range(3)]
    other, other_ended = start(timer(60, name="another"))
    waiting = [start(task)[1] for task in tasks[:2]]
    assert cancel_by_name("mine") == 3, "begun or not"
    assert cancel_by_name("mine") == 0
    for ended in waiting:
        assert ended.wait(PATIENCE)
    run(tasks[2])
    assert notes == ["mine"] * 3
    assert not other.finished
    assert cancel_by_name("another") == 1
    assert other_ended.wait(PATIENCE)


def test_at_most_so_many_of_a_name() -> None:
    tasks = [timer(60, name="some") for _ in range(5)]
    ends = [start(task)[1] for task in tasks]
    tasks[1].cancel()
    assert cancel_by_name("some", 0) == 0
    assert cancel_by_name("some", 2) == 2
    assert [task.canceled for task in tasks] == [True, True, True, False, False]
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=r"max=.*whole number from 0 on, or None for all"):
            cancel_by_name("some", wrong)  # type: ignore[arg-type]
    assert cancel_by_name("some", max=None) == 2
    assert all(end.wait(PATIENCE) for end in ends)


def test_a_name_ends_with_its_timer() -> None:
    run(timer(0, name="gone"))
    assert cancel_by_name("gone") == 0


def test_a_name_ends_with_its_series() -> None:
    """A timer whose turn never comes must not be found, or kept, for ever."""
    series, ended = start(timer(60, name="first"), timer(60, name="second"))
    series.cancel()
    assert ended.wait(PATIENCE)
    assert cancel_by_name("first") == cancel_by_name("second") == 0


def test_a_name_ends_with_a_timer_that_cannot_begin(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        series = run(timer(0, name="refused"))
    assert isinstance(series.failure, RuntimeError)
    assert cancel_by_name("refused") == 0
    assert run(timer(0)).failure is None


def test_cancelling_a_request_s_series_closes() -> None:
    def process(task: WFHttpTask) -> None:
        series = task.series
        series.push_back(timer(60, name="request"))
        timer(0.01, lambda t: series.cancel()).start()

    assert closed_by(process) == b""
    assert cancel_by_name("request") == 0


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    run(timer(0.001))
    scheduler = get_scheduler()
    scheduler.join(PATIENCE)
    assert not scheduler.running
    assert threading.active_count() == before


# -- many ----------------------------------------------------------------------------------


def test_ten_thousand_at_once() -> None:
    every = counter(10_000)
    _, ended = start(every)
    for n in range(10_000):
        timer(n % 50 / 1000, lambda t: every.count()).start()
    assert ended.wait(PATIENCE)


def test_far_timers_that_are_cancelled_are_forgotten() -> None:
    keep = timer(60)
    _, kept = start(keep)
    engine = get_scheduler().hold(None)
    try:
        for _ in range(5000):
            task = timer(3600)
            task.start()
            task.cancel()
        assert len(engine.poller._timers) < 1000
    finally:
        engine.release()
        keep.cancel()
    assert kept.wait(PATIENCE)


def test_a_thousand_requests_that_wait() -> None:
    counts: list[int] = []

    def process(task: WFHttpTask) -> None:
        counts.append(threading.active_count())
        task.series.push_back(timer(0.3, lambda t: task.resp.write("done")))

    clients: list[socket.socket] = []
    request = get("/", "Connection: close")
    try:
        with WFHttpServer(process).start("127.0.0.1", 0) as server:
            for _ in range(1000):
                client = socket.create_connection(server.address, PATIENCE)
                clients.append(client)
            before = time.monotonic()
            for client in clients:
                client.sendall(request)
            for client in clients:
                answer = b"".join(iter(lambda c=client: c.recv(4096), b""))  # type: ignore[misc]
                assert answer.endswith(b"\r\n\r\ndone")
            took = time.monotonic() - before
    finally:
        for client in clients:
            client.close()
    # On a quiet machine: below 1 s.
    assert took < 3
    assert len(counts) == 1000
    # A handler thread that a busy machine holds up gets a substitute.
    assert max(counts) - min(counts) < 10, "waiting takes no threads"
