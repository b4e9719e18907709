"""Poller: readiness, timers and posted calls."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from protoserve.kernel.poller import Poller
from protoserve.kernel.readiness import (
    HANGUP,
    MOST_EVENTS,
    READABLE,
    WRITABLE,
    EpollReadiness,
    open_readiness,
)
from protoserve.testing import ManualClock, MemoryEngine, MemoryReadiness


@pytest.fixture
def poller() -> Iterator[Poller]:
    """A poller on the real mechanism; calls are recorded by ``turn``."""
    poller = Poller()
    yield poller
    poller.close()


@pytest.fixture
def manual() -> Iterator[tuple[Poller, ManualClock, MemoryReadiness]]:
    clock, readiness = ManualClock(0.0), MemoryReadiness()
    poller = Poller(readiness, clock)
    yield poller, clock, readiness
    poller.close()


def turn(poller: Poller) -> None:
    """One wait, and the calls that it brought."""
    poller.wait()
    while poller.ready:
        poller.run_next()


class Calls(list[tuple[Any, int]]):
    """What was called, in order."""

    def __call__(self, argument: Any, mask: int) -> None:
        self.append((argument, mask))

    @property
    def arguments(self) -> list[Any]:
        return [argument for argument, _ in self]


def wait_in_thread(poller: Poller) -> threading.Thread:
    """A thread in ``poller.wait()``; returns when it is really waiting."""
    thread = threading.Thread(target=turn, args=(poller,))
    thread.start()
    end = time.monotonic() + 10
    while not poller.waiting:
        assert time.monotonic() < end
        time.sleep(0.001)
    return thread


def test_edges_of_both_directions(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        calls = Calls()
        poller.watch(ours.fileno(), calls, "conn")
        turn(poller)
        assert calls.pop() == ("conn", WRITABLE)
        theirs.send(b"x")
        turn(poller)
        assert calls.pop()[1] & READABLE
        # An edge is told once, until there is news.
        poller.post(calls, "nothing else")
        turn(poller)
        assert calls.pop() == ("nothing else", 0)
        theirs.send(b"y")
        turn(poller)
        assert calls.pop()[1] & READABLE
        theirs.shutdown(socket.SHUT_WR)
        turn(poller)
        assert calls.pop()[1] & HANGUP
        # Room after the socket was full is told.
        with contextlib.suppress(BlockingIOError):
            while ours.send(b"x" * 65536):
                pass
        with contextlib.suppress(BlockingIOError):
            while theirs.recv(1 << 20, socket.MSG_DONTWAIT):
                pass
        turn(poller)
        assert calls.pop()[1] & WRITABLE
        poller.forget(ours.fileno())


def test_what_happens_while_somebody_is_in_the_queue_is_told_with_the_rest(
    poller: Poller,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        calls = Calls()
        poller.watch(ours.fileno(), calls, "conn")
        turn(poller)
        assert calls == [("conn", WRITABLE)]
        theirs.send(b"x")
        poller.poll_now()
        theirs.shutdown(socket.SHUT_WR)
        poller.poll_now()
        assert len(poller.ready) == 1
        poller.run_next()
        assert not poller.ready
        (_, mask) = calls[1]
        assert mask & READABLE
        assert mask & HANGUP
        # What comes afterwards is told again.
        theirs.close()
        turn(poller)
        assert len(calls) == 3
        poller.forget(ours.fileno())


def test_news_while_it_is_told_are_told_next(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        masks: list[int] = []

        def told(_: None, mask: int) -> None:
            masks.append(mask)
            if len(masks) == 1:
                theirs.send(b"x")
                poller.poll_now()  # as a leader that has taken over

        poller.watch(ours.fileno(), told, None)
        turn(poller)
        assert len(masks) == 2
        assert masks[1] & READABLE
        poller.forget(ours.fileno())


def test_many_at_once(poller: Poller) -> None:
    """More than one wait tells of: each is told once, and so is a call."""
    calls = Calls()
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(100)]
        for ours, theirs in pairs:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            poller.watch(ours.fileno(), calls, ours.fileno())
        for _ in range(101):
            turn(poller)
            if len(calls) == 100:
                break
        calls.clear()
        for _, theirs in pairs:
            theirs.send(b"x")
        poller.post(calls, "posted")
        for _ in range(101):
            if len(calls) == 101:
                break
            turn(poller)
        assert sorted(calls.arguments, key=str) == sorted(
            [*(ours.fileno() for ours, _ in pairs), "posted"], key=str
        )
        assert all(mask & READABLE for argument, mask in calls if argument != "posted")
        for ours, _ in pairs:
            poller.forget(ours.fileno())


def test_a_call_that_repeats_itself_has_no_more_turns_than_events(poller: Poller) -> None:
    """Of many events one wait tells some, and calls wait for all of them."""
    turns: list[int] = []
    calls = Calls()

    def again(_: None, mask: int) -> None:
        turns.append(len(calls))
        poller.post(again, None)

    with contextlib.ExitStack() as stack:
        for _ in range(128):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            poller.watch(ours.fileno(), calls, ours.fileno())
        poller.post(again, None)
        while len(calls) < 128:
            turn(poller)
            assert len(turns) <= 1
        turn(poller)
        turn(poller)
        assert turns[-1] == 128


def test_calls_have_their_turn_beside_events_without_end() -> None:
    class Endless(MemoryReadiness):
        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return [(fd, READABLE) for fd in range(100, 100 + MOST_EVENTS)]

    calls = Calls()
    poller = Poller(Endless())
    try:
        poller.post(calls, "posted")
        for waits in range(1, 17):
            turn(poller)
            assert len(calls) == (waits == 16)
        poller.call_at(0.0, calls, "timer")
        for _ in range(16):
            turn(poller)
        assert calls.arguments == ["posted", "timer"]
    finally:
        poller.close()


def test_forget(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        calls = Calls()
        poller.watch(ours.fileno(), calls, None)
        poller.forget(ours.fileno())
        theirs.send(b"x")
        poller.post(calls, "posted")
        turn(poller)
        assert calls.arguments == ["posted"]
        poller.forget(ours.fileno())  # twice is harmless
        poller.forget(ours.fileno(), shared=True)


def test_forget_a_shared_descriptor_ends_its_registration(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        calls = Calls()
        poller.watch(ours.fileno(), calls, None)
        poller.forget(ours.fileno(), shared=True)
        poller.watch(ours.fileno(), calls, "again")  # would raise EEXIST
        turn(poller)
        assert calls.arguments == ["again"]


def test_watching_what_cannot_be_watched(poller: Poller) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        poller.watch(reader, Calls(), None)
    with pytest.raises(OSError, match="File exists"):
        poller.watch(poller._wake_in, Calls(), None)


def test_post_from_another_thread_ends_a_wait(poller: Poller) -> None:
    calls = Calls()
    thread = wait_in_thread(poller)
    poller.post(calls, "hello")
    thread.join(10)
    assert not thread.is_alive()
    if not calls:  # the wake-up itself was a turn
        turn(poller)
    assert calls == [("hello", 0)]


def test_call_at_from_another_thread_shortens_a_wait(poller: Poller) -> None:
    calls = Calls()
    poller.call_at(poller.time() + 3600, calls, "late")
    thread = wait_in_thread(poller)
    poller.call_at(poller.time(), calls, "now")
    thread.join(10)
    assert not thread.is_alive()
    while not calls:
        turn(poller)
    assert calls.arguments == ["now"]


def test_wake(poller: Poller) -> None:
    thread = wait_in_thread(poller)
    poller.wake()
    thread.join(10)
    assert not thread.is_alive()
    for _ in range(100_000):  # more than a pipe holds
        poller.wake()
    turn(poller)  # a wake-up before the wait counts for it
    thread = wait_in_thread(poller)  # ... once
    poller.wake()
    thread.join(10)


def test_posts_of_a_turn_run_in_order_and_theirs_in_the_next(poller: Poller) -> None:
    calls = Calls()

    def again(argument: int, mask: int) -> None:
        calls(argument, mask)
        poller.post(again, argument + 10)

    for i in range(3):
        poller.post(again, i)
    for number in range(3):
        turn(poller)
        assert calls.arguments == [i + 10 * n for n in range(number + 1) for i in range(3)]


def test_timers_in_order(manual: tuple[Poller, ManualClock, MemoryReadiness]) -> None:
    poller, clock, readiness = manual
    calls = Calls()
    for when in (5.0, 1.0, 3.0, 1.0):
        poller.call_at(when, calls, f"{when} {len(poller._timers)}")
    turn(poller)
    assert readiness.timeout == 1.0
    assert calls == []
    clock.advance(1)
    turn(poller)
    # Those of one time in the order they were made.
    assert calls.arguments == ["1.0 1", "1.0 3"]
    clock.advance(10)
    turn(poller)
    assert calls.arguments[2:] == ["3.0 2", "5.0 0"]
    turn(poller)
    assert readiness.timeout >= 3600
    assert len(calls) == 4


def test_a_timer_that_makes_a_timer(manual: tuple[Poller, ManualClock, MemoryReadiness]) -> None:
    poller, _, readiness = manual
    calls = Calls()

    def again(argument: int, mask: int) -> None:
        calls(argument, mask)
        poller.call_at(0.0, again, argument + 1)

    poller.call_at(0.0, again, 0)
    for i in range(3):
        turn(poller)
        assert calls.arguments[-1] == i
        assert readiness.timeout == 0


def test_time_is_read_once_a_turn(manual: tuple[Poller, ManualClock, MemoryReadiness]) -> None:
    poller, clock, _ = manual
    turn(poller)
    clock.advance(5)
    assert (poller.now, poller.time()) == (0.0, 5.0)
    poller.refresh()
    assert poller.now == 5.0
    clock.advance(1)
    turn(poller)
    assert poller.now == 6.0


def test_waits_without_end_are_bounded_for_the_system(
    manual: tuple[Poller, ManualClock, MemoryReadiness],
) -> None:
    poller, _, readiness = manual
    turn(poller)
    assert readiness.timeout < inf
    poller.call_at(inf, Calls(), None)
    turn(poller)
    assert readiness.timeout < inf
    poller.post(Calls(), None)
    turn(poller)
    assert readiness.timeout == 0


def test_close_twice_and_what_comes_after() -> None:
    poller = Poller()
    poller.close()
    poller.close()
    poller.wake()
    poller.waiting = True
    poller.post(Calls(), None)
    poller.call_at(0.0, Calls(), None)


def test_close_gives_descriptors_back() -> None:
    poller = Poller()
    number = poller.fileno()
    assert isinstance(open_readiness(), EpollReadiness)
    poller.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_wait_that_fails_does_not_claim_to_wait() -> None:
    class Broken(MemoryReadiness):
        def poll(self, timeout: float) -> list[tuple[int, int]]:
            raise OSError("broken")

    poller = Poller(Broken())
    with pytest.raises(OSError, match="broken"):
        poller.wait()
    assert not poller.waiting
    poller.close()


def test_posts_from_many_threads_all_arrive(poller: Poller) -> None:
    calls = Calls()

    def post(n: int) -> None:
        for i in range(500):
            poller.post(calls, (n, i))

    threads = [threading.Thread(target=post, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while len(calls) < 2000 and time.monotonic() < end:
        turn(poller)
    for thread in threads:
        thread.join()
    for n in range(4):
        assert [i for m, i in calls.arguments if m == n] == list(range(500))


def test_the_memory_engine_notices_what_spins(engine: MemoryEngine) -> None:
    def again(argument: None, mask: int) -> None:
        engine.poller.post(again, None)

    again(None, 0)
    with pytest.raises(AssertionError, match="still busy"):
        engine.run(limit=100)


def test_closed_by_what_a_signal_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be quicker than the write that was to wake it."""
    poller = Poller()
    ends = poller._wake_in, poller._wake_out
    write = os.write

    def late(fd: int, data: bytes) -> int:
        poller.close()
        assert all(os.fstat(end) for end in ends)  # nobody else has got them
        return write(fd, data)

    monkeypatch.setattr(os, "write", late)
    poller.post_from_signal(Calls(), None)
    for end in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)
    poller.post_from_signal(Calls(), None)  # too late, and harmless
    poller.close()
