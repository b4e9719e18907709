"""WaitGroup."""

from __future__ import annotations

import threading

import pytest
from flow import PATIENCE

from protoserve import UsageError, WaitGroup, parallel, timer


def test_nothing_to_wait_for() -> None:
    assert WaitGroup().wait()
    assert WaitGroup().wait(0)


def test_waits_until_all_is_done() -> None:
    group = WaitGroup(2)
    assert not group.wait(0.001)
    group.done()
    assert not group.wait(0)
    group.add()
    group.done()
    group.done()
    assert group.wait(0)


def test_a_time_beyond_what_the_system_can_wait() -> None:
    group = WaitGroup(1)
    timer(0.01, lambda t: group.done()).start()
    assert group.wait(1e300)


def test_used_again() -> None:
    group = WaitGroup(1)
    group.done()
    group.add(1)
    assert not group.wait(0)
    group.done()
    assert group.wait(0)


def test_done_too_often() -> None:
    group = WaitGroup(1)
    group.done()
    with pytest.raises(UsageError, match="more often"):
        group.done()
    with pytest.raises(UsageError, match=r"WaitGroup\(-1\): expected .* from 0"):
        WaitGroup(-1)
    assert group.wait(0), "a refused done() changes nothing"


def test_several_waiters() -> None:
    group = WaitGroup(1)
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(group.wait(PATIENCE))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    group.done()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [True] * 3


def test_with_tasks() -> None:
    group = WaitGroup(3)
    parallel(*(timer(0.01, lambda t: group.done()) for _ in range(3))).start()
    assert group.wait(PATIENCE)
