"""LeaderFollowers: who runs a handler, and what a blocking one does to the others.

The block threshold is shortened where a test waits for it; nothing here asserts that
something is fast.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from protoserve.kernel import leader_followers as module
from protoserve.kernel import monitor as monitor_module
from protoserve.kernel.leader_followers import LeaderFollowers
from protoserve.kernel.poller import Poller

PATIENCE = 10.0


class Pool:
    """Handler threads on a poller of their own, and what they reported."""

    def __init__(self, threads: int = 4, kind: type[LeaderFollowers] = LeaderFollowers) -> None:
        self.poller = Poller()
        self.blocked: list[Any] = []
        self.waiting: list[bool] = []
        self.exhausted: list[int] = []
        self.refused: list[str] = []
        self.errors: list[str] = []
        self.threads = kind(
            self.poller,
            threads=threads,
            on_blocked=self.note_blocked,
            on_exhausted=self.exhausted.append,
            on_refused=lambda: self.refused.append("refused"),
            on_error=lambda: self.errors.append("error"),
        )
        self.threads.start()

    def note_blocked(self, argument: Any, waits: bool) -> None:
        self.blocked.append(argument)
        self.waiting.append(waits)

    def call(self, function: Callable[[], object]) -> Call:
        call = Call(function, self.threads)
        self.poller.post(call.run, call)
        return call


class Call:
    """A posted handler: which thread ran it, and when it began and ended."""

    def __init__(self, function: Callable[[], object], threads: LeaderFollowers) -> None:
        self.function = function
        self.threads = threads
        self.thread = ""
        self.began = threading.Event()
        self.ended = threading.Event()

    def run(self, _: Call, mask: int) -> None:
        if self.threads.full and self.threads.defer(self.run, self):
            return
        self.thread = threading.current_thread().name
        self.began.set()
        try:
            self.function()
        finally:
            self.ended.set()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(threads: int = 4, kind: type[LeaderFollowers] = LeaderFollowers) -> Pool:
        made.append(Pool(threads, kind))
        return made[-1]

    yield make
    for pool in made:
        assert pool.threads.stop(PATIENCE)


def nothing() -> None:
    """A fast handler."""


def test_fast_handlers_never_change_threads(pools: Callable[..., Pool]) -> None:
    pool = pools()
    calls = [pool.call(nothing) for _ in range(2000)]
    assert calls[-1].ended.wait(PATIENCE)
    # A busy machine may delay one handler past the threshold, not many of them.
    changes = sum(a.thread != b.thread for a, b in pairwise(calls))
    assert changes <= 5
    assert pool.exhausted == []


def test_a_blocking_handler_gets_a_follower(pools: Callable[..., Pool]) -> None:
    pool = pools()
    gate = threading.Event()
    blocking = pool.call(gate.wait)
    assert blocking.began.wait(PATIENCE)
    other = pool.call(nothing)
    assert other.ended.wait(PATIENCE)
    assert not blocking.ended.is_set()
    assert other.thread != blocking.thread
    assert blocking in pool.blocked
    gate.set()
    assert blocking.ended.wait(PATIENCE)
    assert pool.exhausted == []


def test_events_that_were_pending_behind_a_blocking_handler_are_served(
    pools: Callable[..., Pool],
) -> None:
    pool = pools()
    gate, ready = threading.Event(), threading.Event()
    first = pool.call(ready.wait)
    behind: list[Call] = []
    pool.call(lambda: behind.extend(pool.call(nothing) for _ in range(10)))
    blocking = pool.call(gate.wait)
    ready.set()
    assert first.ended.wait(PATIENCE)
    assert blocking.began.wait(PATIENCE)
    wait_until(lambda: len(behind) == 10)
    assert all(call.ended.wait(PATIENCE) for call in behind)
    gate.set()


def test_all_blocked_is_reported_once_and_work_goes_on(pools: Callable[..., Pool]) -> None:
    pool = pools(3)
    gates = [threading.Event() for _ in range(3)]
    blocking = [pool.call(gate.wait) for gate in gates]
    assert all(call.began.wait(PATIENCE) for call in blocking)
    wait_until(lambda: pool.exhausted)
    last = pool.call(nothing)
    wait_until(lambda: pool.threads._queue)  # seen, and not run
    assert not last.ended.wait(0.05)
    assert pool.exhausted == [3]
    gates[1].set()
    assert last.ended.wait(PATIENCE)
    assert last.thread == blocking[1].thread
    # Once more when they are all blocked again.
    again = threading.Event()
    fourth = pool.call(again.wait)
    assert fourth.began.wait(PATIENCE)
    wait_until(lambda: pool.exhausted == [3, 3])
    for gate in (*gates, again):
        gate.set()
    assert pool.call(nothing).ended.wait(PATIENCE)


def test_one_thread(pools: Callable[..., Pool]) -> None:
    pool = pools(1)
    for _ in range(3):
        gate = threading.Event()
        pool.exhausted.clear()
        blocking = pool.call(gate.wait)
        other = pool.call(nothing)
        assert blocking.began.wait(PATIENCE)
        wait_until(lambda: pool.exhausted)
        wait_until(lambda: pool.threads._queue)  # seen, and not run
        assert not other.ended.is_set()
        gate.set()
        assert other.ended.wait(PATIENCE)
        assert other.thread == blocking.thread


def test_threads_are_bounded_and_reused(pools: Callable[..., Pool]) -> None:
    pool = pools(4)
    for _ in range(5):
        gate = threading.Event()
        calls = [pool.call(gate.wait) for _ in range(8)]
        assert all(call.began.wait(PATIENCE) for call in calls[:4])
        gate.set()
        assert all(call.ended.wait(PATIENCE) for call in calls)
    assert len(pool.threads._workers) <= 5  # one of them never runs handlers
    assert pool.threads._named == len(pool.threads._workers)


def test_no_wakeups_while_idle(pools: Callable[..., Pool]) -> None:
    pool = pools()
    assert pool.call(nothing).ended.wait(PATIENCE)
    wait_until(lambda: pool.poller.waiting and pool.threads.unwatched)
    turns = pool.poller.turns
    cpu = time.process_time()
    time.sleep(0.3)
    assert pool.poller.turns == turns
    assert pool.threads.unwatched
    # 5 ms ticks would cost at least this much; the margin is for a busy machine.
    assert time.process_time() - cpu < 0.1
    assert pool.call(nothing).ended.wait(PATIENCE)


def test_a_handler_after_a_long_rest_is_watched(pools: Callable[..., Pool]) -> None:
    pool = pools()
    for _ in range(20):
        wait_until(lambda: pool.poller.waiting and pool.threads.unwatched)
        gate = threading.Event()
        pool.call(gate.wait)
        other = pool.call(nothing)
        assert other.ended.wait(PATIENCE)
        gate.set()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_no_exception_ends_a_thread(
    pools: Callable[..., Pool], error: type[BaseException]
) -> None:
    pool = pools(1)

    def fail() -> None:
        raise error

    for _ in range(3):
        failing = pool.call(fail)
        assert failing.ended.wait(PATIENCE)
    assert pool.call(nothing).ended.wait(PATIENCE)
    assert len(pool.errors) == 3


def test_stop_from_a_handler(pools: Callable[..., Pool]) -> None:
    pool = pools()
    results: list[bool] = []
    call = pool.call(lambda: results.append(pool.threads.stop()))
    assert call.ended.wait(PATIENCE)
    assert results == [False]
    assert pool.threads.stop(PATIENCE)


def test_stop_with_blocked_handlers(pools: Callable[..., Pool]) -> None:
    pool = pools(3)
    gate = threading.Event()
    calls = [pool.call(gate.wait) for _ in range(3)]
    assert all(call.began.wait(PATIENCE) for call in calls)
    assert pool.threads.stop(timeout=0.01) is False
    gate.set()
    assert pool.threads.stop(PATIENCE)
    assert all(call.ended.is_set() for call in calls)
    # The last one to leave has closed it.
    with pytest.raises(ValueError, match="closed"):
        pool.poller.wait()


def test_owns(pools: Callable[..., Pool]) -> None:
    pool = pools()
    owned: list[bool] = []
    call = pool.call(lambda: owned.append(pool.threads.owns(threading.get_ident())))
    assert call.ended.wait(PATIENCE)
    assert owned == [True]
    assert not pool.threads.owns(threading.get_ident())


def test_start_and_stop_many_times() -> None:
    for number in range(50):
        pool = Pool(2)
        call = pool.call(nothing) if number % 2 else None
        blocked = pool.call(lambda: time.sleep(0.006)) if number % 10 == 0 else None
        if call:
            assert call.ended.wait(PATIENCE)
        assert pool.threads.stop(PATIENCE)
        assert blocked is None or blocked.ended.is_set() or not blocked.began.is_set()


def test_the_system_has_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(4)
    gate = threading.Event()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        blocking = pool.call(gate.wait)
        wait_until(lambda: pool.refused)
        other = pool.call(nothing)
        gate.set()
        assert other.ended.wait(PATIENCE)
        assert other.thread == blocking.thread
        with pytest.raises(RuntimeError, match="refused a thread"):
            LeaderFollowers(
                pool.poller,
                threads=1,
                on_blocked=lambda argument, waits: None,
                on_exhausted=print,
                on_refused=print,
                on_error=lambda: None,
            ).start()
    assert pool.threads.stop(PATIENCE)


def test_a_mixture_of_fast_and_blocking_handlers(pools: Callable[..., Pool]) -> None:
    """Each posted call runs exactly once, whatever changes hands meanwhile."""
    pool = pools(4)
    ran: list[int] = []
    calls = []
    for i in range(600):
        pause = 0.008 if i % 40 == 0 else 0.0

        def handler(i: int = i, pause: float = pause) -> None:
            if pause:
                time.sleep(pause)
            ran.append(i)

        calls.append(pool.call(handler))
    assert all(call.ended.wait(PATIENCE) for call in calls)
    assert sorted(ran) == list(range(600))


def test_promoting_before_a_call_that_will_block(
    pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the monitor's help: another thread goes on with the pending events at once."""
    pool = pools()
    without_monitor(monkeypatch)
    gate = threading.Event()

    def block() -> None:
        pool.threads.promote()
        gate.wait(PATIENCE)

    calls = [pool.call(block) for _ in range(3)]
    last = pool.call(nothing)
    assert last.ended.wait(PATIENCE)
    assert not any(call.ended.is_set() for call in calls)
    assert pool.blocked == []
    gate.set()
    assert all(call.ended.wait(PATIENCE) for call in calls)
    # Elsewhere it does nothing.
    pool.threads.promote()


def test_the_monitor_tells_waiting_from_computing(pools: Callable[..., Pool]) -> None:
    pool = pools()
    gate = threading.Event()
    waiting = pool.call(gate.wait)
    wait_until(lambda: pool.waiting)
    gate.set()
    assert waiting.ended.wait(PATIENCE)
    assert pool.waiting[0] is True


def test_deferred_calls_run_in_order_when_a_thread_is_free(pools: Callable[..., Pool]) -> None:
    pool = pools(2)
    gates = [threading.Event() for _ in range(2)]
    blocking = [pool.call(gate.wait) for gate in gates]
    assert all(call.began.wait(PATIENCE) for call in blocking)
    wait_until(lambda: pool.threads.full)
    order: list[int] = []
    later = [pool.call(lambda i=i: order.append(i)) for i in range(10)]  # type: ignore[misc]
    wait_until(lambda: len(pool.threads._queue) == 10)
    gates[0].set()
    assert all(call.ended.wait(PATIENCE) for call in later)
    assert order == list(range(10))
    assert {call.thread for call in later} == {blocking[0].thread}
    gates[1].set()
    wait_until(lambda: not pool.threads.full)


def test_a_thread_that_does_not_lead_defers_nothing(pools: Callable[..., Pool]) -> None:
    pool = pools(1)
    gate = threading.Event()
    blocking = pool.call(gate.wait)
    wait_until(lambda: pool.threads.full)
    assert not pool.threads.defer(lambda a, b: None, None)
    gate.set()
    assert blocking.ended.wait(PATIENCE)


def test_lending_lets_others_run_and_the_hired_leave(pools: Callable[..., Pool]) -> None:
    pool = pools(2)
    gate = threading.Event()

    def wait() -> None:
        with pool.threads.lend():
            gate.wait(PATIENCE)

    waiting = [pool.call(wait) for _ in range(12)]
    assert all(call.began.wait(PATIENCE) for call in waiting)
    assert not pool.threads.full
    assert pool.call(gate.set).ended.wait(PATIENCE)
    assert all(call.ended.wait(PATIENCE) for call in waiting)
    assert pool.threads._lent == 0
    wait_until(lambda: len(pool.threads._workers) <= 3)


def test_the_hired_that_leave_do_not_count_as_busy(pools: Callable[..., Pool]) -> None:
    """Nor do all of them leave, for what waits then would wait for ever."""
    gate, go = threading.Event(), threading.Event()
    leaving: list[object] = []

    class Dawdlers(LeaderFollowers):
        def _follow(self, worker: module.Worker) -> bool:
            leads = super()._follow(worker)
            if not leads and not self.stopping:
                leaving.append(worker)
                go.wait(PATIENCE)
            return leads

    pool = pools(1, Dawdlers)

    def wait() -> None:
        with pool.threads.lend():
            gate.wait(PATIENCE)

    waiting = [pool.call(wait) for _ in range(4)]
    assert all(call.began.wait(PATIENCE) for call in waiting)
    gate.set()
    wait_until(lambda: len(leaving) + len(pool.threads._idle) == 4)
    late = pool.call(nothing)
    wait_until(lambda: late.ended.is_set() or pool.threads._queue)
    go.set()
    assert late.ended.wait(PATIENCE)
    wait_until(lambda: len(pool.threads._workers) == 2)


def without_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens next is not the monitor's doing."""
    monkeypatch.setattr(LeaderFollowers, "take_over", lambda threads, mark, waits: False)


def test_a_leader_that_lends_its_place_lets_another_lead(
    pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pools(2)
    without_monitor(monkeypatch)
    gate = threading.Event()
    waited: list[bool] = []

    def wait() -> None:
        with pool.threads.lend():
            waited.append(gate.wait(PATIENCE))

    waiting = pool.call(wait)
    pool.call(gate.set)
    assert waiting.ended.wait(2 * PATIENCE)
    assert waited == [True]


def test_a_place_that_is_lent_is_filled_with_what_waits(
    pools: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pools(1)
    without_monitor(monkeypatch)
    gate = threading.Event()
    waited: list[bool] = []

    def wait() -> None:
        pool.threads.promote()  # to one that may run none
        wait_until(lambda: pool.threads._queue)
        with pool.threads.lend():
            waited.append(gate.wait(PATIENCE))

    waiting = pool.call(wait)
    opening = pool.call(gate.set)
    assert waiting.ended.wait(3 * PATIENCE)
    assert waited == [True]
    assert opening.thread != waiting.thread


def test_growing_serves_what_waits(pools: Callable[..., Pool]) -> None:
    pool = pools(1)
    gate = threading.Event()
    blocking = pool.call(gate.wait)
    wait_until(lambda: pool.threads.full)
    waiting = [pool.call(gate.wait) for _ in range(3)]
    wait_until(lambda: len(pool.threads._queue) == 3)
    pool.threads.grow(4)
    assert all(call.began.wait(PATIENCE) for call in waiting)
    gate.set()
    assert all(call.ended.wait(PATIENCE) for call in (blocking, *waiting))


def test_no_memory_for_a_thread_is_as_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(4)
    gate = threading.Event()

    def refuse(self: threading.Thread) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pool.call(gate.wait)
        wait_until(lambda: pool.refused)
        other = pool.call(nothing)
    # There is one again: it is tried again, while the handler still runs.
    assert other.ended.wait(PATIENCE)
    gate.set()
    assert pool.threads.stop(PATIENCE)


# -- the monitor, on a clock of its own ----------------------------------------------------


class EnoughError(Exception):
    """The monitor has looked often enough."""


class Monitored:
    """A pool that never started, whose monitor runs in the test's thread: it looks at a
    leader that is in the same handler all the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, share: float) -> None:
        self.slept: list[float] = []
        self.replaced: list[tuple[int, bool]] = []
        """After how many sleeps the leader was to be replaced, and whether it waits."""
        self.most_replaced = 1000
        self.idle: set[int] = set()
        """After which sleeps the leader waits for events."""
        self.rested: list[int] = []
        """After how many sleeps the monitor rested, until the leader has events again."""
        self.now = 0.0
        self.ticks = 0
        self.poller = Poller()
        self.threads = LeaderFollowers(
            self.poller,
            threads=4,
            on_blocked=lambda argument, waits: None,
            on_exhausted=print,
            on_refused=print,
            on_error=print,
            block_threshold=0.005,
        )
        leader = module.Worker()
        self.threads.leader = leader
        monkeypatch.setattr(module.Worker, "cpu_time", lambda worker: self.now * share)
        monkeypatch.setattr(
            LeaderFollowers, "take_over", lambda threads, mark, waits: self.take_over(waits)
        )
        monkeypatch.setattr(
            monitor_module.Monitor,
            "_wait_parked",
            lambda monitor: self.rested.append(len(self.slept)),
        )
        monkeypatch.setattr(
            monitor_module, "time", SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now)
        )

    def sleep(self, seconds: float) -> None:
        if len(self.slept) == self.ticks:
            raise EnoughError
        self.slept.append(seconds)
        self.now += seconds
        self.poller.waiting = len(self.slept) in self.idle

    def take_over(self, waits: bool) -> bool:
        self.replaced.append((len(self.slept), waits))
        return len(self.replaced) <= self.most_replaced

    def watch(self, ticks: int) -> None:
        """Run the monitor for so many sleeps."""
        self.ticks = ticks
        with contextlib.closing(self.poller), pytest.raises(EnoughError):
            self.threads._monitor.watch()


@pytest.mark.parametrize(
    ("share", "waits"), [(0.0, True), (0.1, True), (0.9, False), (1.0, False), (math.nan, False)]
)
def test_a_leader_that_computes_is_not_taken_for_one_that_waits(
    monkeypatch: pytest.MonkeyPatch, share: float, waits: bool
) -> None:
    """``share``: of the time, how much its thread is on the CPU; NaN where nobody knows."""
    monitored = Monitored(monkeypatch, share=share)
    monitored.watch(2)
    assert monitored.replaced == [(2, waits)]


def test_after_one_that_blocks_the_monitor_looks_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Handlers that block tend to come in numbers, and each waits for the one before."""
    monitored = Monitored(monkeypatch, share=0.0)
    monitored.watch(12)
    tick = monitor_module.BLOCKED_TICK
    assert tick < 0.005
    assert monitored.slept == [0.005] * 2 + [tick] * 10
    assert [sleeps for sleeps, _ in monitored.replaced] == [2, 4, 6, 8, 10, 12]


def test_the_monitor_looks_rarely_again_when_nothing_blocks_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitored = Monitored(monkeypatch, share=0.0)
    monitored.most_replaced = 1
    monitored.watch(2 + monitor_module.BLOCKED_LOOKS + 2)
    assert monitored.slept == (
        [0.005] * 2 + [monitor_module.BLOCKED_TICK] * monitor_module.BLOCKED_LOOKS + [0.005] * 2
    )


def test_the_monitor_rests_when_the_leader_has_waited_for_some_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To be woken for each turn of a busy server's events costs more than to look once more."""
    monitored = Monitored(monkeypatch, share=1.0)
    looks = monitor_module._IDLE_LOOKS
    monitored.idle = {*range(1, looks), *range(looks + 1, 3 * looks + 1)}
    monitored.watch(3 * looks)
    assert monitored.rested == [2 * looks, 3 * looks]
    assert monitored.replaced == []
