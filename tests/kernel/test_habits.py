"""Habits: when a handler is expected to block, and when that is forgotten."""

from __future__ import annotations

import time
from resource import struct_rusage

import pytest

from protoserve.kernel import habits as habits_module
from protoserve.kernel.habits import (
    _AGAIN,
    _LATELY,
    _MEMORY,
    _MOST_KEYS,
    _MOST_SLOW,
    _ROUND,
    _SUSPICION,
    OTHERS,
    SLOW,
    Habit,
    Habits,
    Watch,
)

NOW = 1000.0


def blocks(habits: Habits, key: object) -> bool:
    habit = habits.of(key, NOW)
    return habit is not None and habit.blocks


def test_nothing_is_kept_of_fast_handlers() -> None:
    habits = Habits()
    for key in ("a", "b", None):
        habits.note(key, False, False)
    assert habits.known == {}
    assert habits.of("a", NOW) is None


def test_twice_off_the_cpu_is_proof_and_once_is_not() -> None:
    habits = Habits()
    for _ in range(2):
        habits.slow("a", NOW)  # nobody looked at the CPU's clock yet
        assert not blocks(habits, "a")
    habits.note("a", True, True)
    assert not blocks(habits, "a")
    habits.note("a", True, True)
    assert blocks(habits, "a")


def test_a_handler_that_computes_is_never_expected_to_block() -> None:
    habits = Habits()
    for _ in range(200):
        habits.note("a", True, False)
        assert not blocks(habits, "a")


def test_one_in_ten_that_blocks_keeps_the_expectation() -> None:
    habit = Habit()
    habit.note(True, True)
    habit.note(True, True)
    for i in range(500):
        habit.note(i % 10 == 0, i % 10 == 0)
        assert habit.blocks


def test_it_is_forgotten() -> None:
    habits = Habits()
    for _ in range(3):
        habits.note("a", True, True)
    for _ in range(_MEMORY - 1):
        habits.note("a", False, False)
        assert blocks(habits, "a")
    habits.note("a", False, False)
    assert not blocks(habits, "a")
    assert "a" not in habits.known
    # ... and so is what was thought of the others.
    for _ in range(_MEMORY):
        habits.note("b", False, False)
        habits.note("c", False, False)
    assert habits.known == {}


def test_a_suspicion_does_not_last() -> None:
    habits = Habits()
    habits.slow("a", NOW)
    habits.slow("a", NOW)
    assert habits.known
    for _ in range(_SUSPICION):
        habits.note("a", False, False)
        habits.note("b", False, False)
    assert habits.known == {}


class TestOneSlowCall:
    """A busy machine makes any call slow, and while anything is known each request is asked for
    its key."""

    def test_is_no_reason_to_watch(self) -> None:
        habits = Habits()
        for number in range(3 * _MOST_SLOW):
            habits.slow(f"/{number}", NOW + 2 * _LATELY * number)
            assert habits.known == {}
            assert len(habits._slow) <= _MOST_SLOW

    def test_another_of_the_same_is(self) -> None:
        habits = Habits()
        habits.slow("a", NOW)
        habits.slow("a", NOW + 1.1 * _AGAIN)
        assert habits.known == {}
        habits.slow("a", NOW + 2 * _AGAIN)
        assert set(habits.known) == {"a", OTHERS}

    def test_another_at_nearly_the_same_time_is(self) -> None:
        habits = Habits()
        habits.slow("a", NOW)
        habits.slow("b", NOW + _LATELY / 2)
        assert set(habits.known) == {OTHERS}  # nobody says that either will come again

    def test_among_those_that_are_watched_is_not_remembered_alone(self) -> None:
        habits = Habits()
        habits.slow("a", NOW)
        habits.slow("b", NOW)
        for number in range(_SUSPICION):
            habits.note(f"/{number}", number == 1, False)
        assert habits.known == {}


class Server:
    """Calls of handlers as the communicator makes them, on a clock of its own."""

    def __init__(self) -> None:
        self.habits = Habits()
        self.now = NOW
        self.on_leader = 0

    def call(self, key: str, sleeps: float = 0.0) -> None:
        habit = self.habits.of(key, self.now) if self.habits.known else None
        slow = sleeps > SLOW
        if slow and (habit is None or not habit.blocks):
            self.on_leader += 1
        self.now += sleeps or 0.0001
        if habit is not None:
            self.habits.note(key, slow, slow)
        elif slow:
            self.habits.slow(key, self.now)


@pytest.mark.parametrize(("every", "keys"), [(20, 1), (700, 1), (2000, 1), (200, 4), (100, 20)])
def test_one_that_blocks_is_learnt_among_many_that_are_fast(every: int, keys: int) -> None:
    server = Server()
    blocked = 0
    for number in range(100_000):
        if number % every:
            server.call("fast")
        else:
            server.call(f"/{blocked % keys}", sleeps=0.003)
            blocked += 1
    assert server.on_leader <= 4 * keys


def test_one_that_the_monitor_saw_blocks_the_next_time_too() -> None:
    server = Server()
    server.habits.surprise("rare")
    server.habits.slow("rare", server.now)  # the same call, when it has ended
    for _ in range(50_000):
        server.call("fast")
    server.call("rare", sleeps=0.05)
    assert server.on_leader == 0


def test_what_does_not_come_again_is_forgotten() -> None:
    server = Server()
    for _ in range(2):
        server.habits.slow("gone", server.now)
    for _ in range(4):
        server.call("sleeps", sleeps=0.003)
    for _ in range(3 * _ROUND):
        server.call("fast")
        assert "gone" in server.habits.known  # it had no second yet
    for _ in range(30_000):
        server.call("fast")
    assert set(server.habits.known) == {"sleeps"}
    assert blocks(server.habits, "sleeps")


def test_watching_a_call() -> None:
    watch = Watch(time.monotonic)
    assert watch.end()[1:] == (False, False)
    watch = Watch(time.monotonic)
    time.sleep(0.01)
    assert watch.end()[1:] == (True, True)
    watch = Watch(time.monotonic)
    end = time.thread_time() + 0.003
    while time.thread_time() < end:
        pass
    _, slow, _ = watch.end()
    assert slow


@pytest.mark.parametrize("gives_up_the_cpu", [False, True])
def test_a_call_whose_thread_the_system_took_from_the_cpu_did_not_block(
    monkeypatch: pytest.MonkeyPatch, gives_up_the_cpu: bool
) -> None:
    """It was off the CPU as well, and gave it up only where its count of that has grown."""
    now = 1000.0
    switches = 7
    monkeypatch.setattr(
        habits_module,
        "getrusage",
        lambda _: struct_rusage([0] * 14 + [switches, 0]),
        raising=False,
    )
    watch = Watch(lambda: now)
    now += 3600.0  # of which the thread's own clock knows nothing
    switches += gives_up_the_cpu
    assert watch.end() == (now, gives_up_the_cpu, gives_up_the_cpu)


def test_keys_differ() -> None:
    habits = Habits()
    for _ in range(4):
        habits.note("slow", True, True)
    habits.note("fast", False, False)
    for _ in range(2):
        habits.note("fast", False, False)
    assert blocks(habits, "slow")
    assert not blocks(habits, "fast")


def test_keys_of_endless_variety_share_a_habit() -> None:
    habits = Habits()
    for i in range(3 * _MOST_KEYS):
        habits.note(f"/users/{i}", True, i > 0)
        assert len(habits.known) <= _MOST_KEYS + 1
    assert blocks(habits, "/users/new")


def test_a_surprise_counts_at_once_and_for_the_others_too() -> None:
    habits = Habits()
    habits.surprise("a")
    assert blocks(habits, "a")
    assert blocks(habits, "b")
    # One that turns out to be fast does not stay under suspicion.
    habits.note("b", False, False)
    assert not blocks(habits, "b")
    assert OTHERS in habits.known


def test_waiting_for_the_interpreter_is_not_taken_for_blocking_for_long() -> None:
    """Of calls that compute for a millisecond one in five loses the interpreter to another
    thread that computes: they must not bring in more and more threads for good."""
    habit = Habit()
    habit.expect_blocking()
    for i in range(30):
        habit.note(True, i % 5 == 0)
    assert not habit.blocks


def test_nothing_is_learnt_where_handlers_never_block() -> None:
    habits = Habits()
    habits.learns = False
    habits.surprise("a")
    habits.slow("a", NOW)
    habits.slow("a", NOW)
    assert habits.known == {}
