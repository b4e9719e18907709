"""The poller's timers: order, cancelling, and what cancelled ones leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from protoserve.kernel.poller import Poller
from protoserve.testing import ManualClock, MemoryReadiness


class Timed:
    """A poller with a clock of the test's own; what rings is noted."""

    def __init__(self) -> None:
        self.clock = ManualClock(0.0)
        self.poller = Poller(MemoryReadiness(), self.clock)
        self.rung: list[Any] = []

    def at(self, when: float, argument: Any = None) -> Any:
        return self.poller.call_at(when, self._ring, argument)

    def _ring(self, argument: Any, mask: int) -> None:
        assert mask == 0
        self.rung.append(argument)

    def turn(self, until: float) -> list[Any]:
        """Everything that rings up to then."""
        self.clock.now = until
        self.poller.poll_now()
        while self.poller.ready:
            self.poller.run_next()
        rung, self.rung = self.rung, []
        return rung


@pytest.fixture
def timed() -> Iterator[Timed]:
    timed = Timed()
    yield timed
    timed.poller.close()


def test_in_order_of_time_and_then_of_setting(timed: Timed) -> None:
    for when, name in ((3, "c"), (1, "a1"), (2, "b"), (1, "a2")):
        timed.at(when, name)
    assert timed.turn(0.5) == []
    assert timed.turn(2) == ["a1", "a2", "b"]
    assert timed.turn(10) == ["c"]
    assert timed.turn(20) == []


def test_cancelled_does_not_ring(timed: Timed) -> None:
    one, two = timed.at(1, "one"), timed.at(1, "two")
    assert timed.poller.cancel(one)
    assert not timed.poller.cancel(one)
    assert timed.turn(1) == ["two"]
    assert not timed.poller.cancel(two), "it has rung"


def test_too_late_to_cancel(timed: Timed) -> None:
    entry = timed.at(1, "one")
    timed.clock.now = 1
    timed.poller.poll_now()
    assert not timed.poller.cancel(entry), "it is about to ring"
    assert timed.turn(1) == ["one"]


def test_cancelling_lets_go_of_the_argument(timed: Timed) -> None:
    argument = object()
    entry = timed.at(1, argument)
    timed.poller.cancel(entry)
    assert argument not in entry


def test_cancelled_ones_do_not_pile_up(timed: Timed) -> None:
    for n in range(10_000):
        timed.poller.cancel(timed.at(1_000 + n))
    assert len(timed.poller._timers) < 300


def test_compaction_keeps_the_living(timed: Timed) -> None:
    expected = []
    entries = []
    for n in range(5000):
        when = (n * 7919) % 5000 + 1
        entry = timed.at(when, when)
        if n % 10:
            entries.append(entry)
        else:
            expected.append(when)
    for entry in entries:
        assert timed.poller.cancel(entry)
    assert len(timed.poller._timers) < 1500
    assert timed.turn(10_000) == sorted(expected)


def test_the_count_of_the_cancelled_stays_right(timed: Timed) -> None:
    """Those whose time comes leave it; otherwise the heap would be rebuilt all the time."""
    poller = timed.poller
    for turn in range(50):
        entries = [timed.at(turn, "x") for _ in range(100)]
        for entry in entries[:60]:
            poller.cancel(entry)
        assert timed.turn(turn) == ["x"] * 40
        assert not poller._timers
        assert poller._canceled == 0


def test_from_many_threads(timed: Timed) -> None:
    kept: list[int] = []

    def work(n: int) -> None:
        for i in range(1000):
            entry = timed.at(i, (n, i))
            if i % 3:
                assert timed.poller.cancel(entry)
            else:
                kept.append(1)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    rung = timed.turn(2000)
    assert len(rung) == len(kept) == 4 * 334
    assert [i for _, i in rung] == sorted(i for _, i in rung)
