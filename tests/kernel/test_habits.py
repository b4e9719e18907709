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
    _PROOF,
    _ROUND,
    _SUSPICION,
    OTHERS,
    Habit,
    Habits,
    Watch,
)


def blocks(habits: Habits, key: object) -> bool:
    habit = habits.of(key)
    return habit is not None and habit.blocks


def test_nothing_is_kept_of_fast_handlers() -> None:
    habits = Habits()
    for key in ("a", "b", None):
        habits.note(key, False, False)
    assert habits.known == {}
    assert habits.of("a") is None


def test_twice_off_the_cpu_is_proof_and_once_is_not() -> None:
    habits = Habits()
    for _ in range(2):
        habits.note("a", True, False)  # slow; nobody looked at the CPU's clock yet
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
    habits.note("a", True, False)
    habits.note("a", True, False)
    assert habits.known
    for _ in range(_SUSPICION):
        habits.note("a", False, False)
        habits.note("b", False, False)
    assert habits.known == {}


class TestOneSlowCall:
    """A busy machine makes any call slow: what is known costs each request a look."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(habits_module, "monotonic", lambda: now[0])
        return now

    def test_is_no_reason_to_watch(self, clock: list[float]) -> None:
        habits = Habits()
        for number in range(_MOST_KEYS + 10):
            clock[0] += 2 * _LATELY
            habits.note(f"/{number}", True, False)
            assert habits.known == {}
        assert len(habits._slow) <= _MOST_KEYS

    def test_another_of_the_same_is(self, clock: list[float]) -> None:
        habits = Habits()
        for _ in range(2):
            clock[0] += 1.1 * _AGAIN
            habits.note("a", True, False)
        assert habits.known == {}
        clock[0] += 0.9 * _AGAIN
        habits.note("a", True, False)
        assert set(habits.known) == {"a", OTHERS}

    def test_another_at_nearly_the_same_time_is(self, clock: list[float]) -> None:
        habits = Habits()
        habits.note("a", True, False)
        clock[0] += _LATELY / 2
        habits.note("b", True, False)
        assert set(habits.known) == {OTHERS}  # nobody says that either will come again

    def test_among_those_that_are_watched_is_not_remembered_alone(
        self, clock: list[float]
    ) -> None:
        habits = Habits()
        habits.note("a", True, False)
        habits.note("b", True, False)
        for number in range(_SUSPICION):
            habits.note(f"/{number}", number == 1, False)
            clock[0] += 2 * _LATELY
        assert habits.known == {}


def test_what_does_not_come_again_is_forgotten() -> None:
    """While anything is known, each request is asked for its key."""
    habits = Habits()
    for _ in range(2):
        habits.note("gone", True, False)
    for _ in range(2 * _PROOF):
        habits.note("sleeps", True, True)
    for _ in range(_SUSPICION):
        habits.note("fast", False, False)
    for _ in range(_MEMORY):
        habits.note("fast", False, False)
    for _ in range(_ROUND - 1):
        habits.of("fast")
    assert "gone" in habits.known
    for _ in range(_ROUND + 1):
        habits.of("fast")
    assert set(habits.known) == {"sleeps"}
    assert blocks(habits, "sleeps")


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
    assert habits.known == {}
