"""Readiness events, timers and posted calls: one queue of things to do.

A descriptor is registered once, edge-triggered, for both directions; no system call
per request is spent on changing interest. The caller of :meth:`Poller.wait` owns the
turn: see :mod:`protoserve.kernel.leader_followers`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, Final, TypeAlias

from protoserve.kernel.readiness import MOST_EVENTS, Readiness, open_readiness

_MAX_CANCELED: Final = 128
"""Cancelled timers that may stay in the heap until their time comes."""

_FULL_WAITS: Final = 15
"""Waits that bring events only, as long as there are so many."""

_append: Final = deque.append  # need not be found anew

Callback: TypeAlias = Callable[[Any, int], object]
"""Called with its argument and a mask of the bits above (0 for a call)."""

TimerEntry: TypeAlias = list[Any]
"""When, a number that decides between equals, the callback (``None`` when it will not be
called any more) and its argument."""

Call: TypeAlias = tuple[Callback, Any, int]

Ready: TypeAlias = "Watched | Call"
"""Something to do: who is to be told of events, or a call."""


class Watched:
    """Who is told that a descriptor has become ready: one for each. ``mask``: what it has become
    since it was queued; 0 when it is not. The leader's."""

    __slots__ = ("mask",)

    def __init__(self) -> None:
        self.mask = 0

    def on_ready(self, mask: int) -> None:
        """It has become what ``mask`` says. Whoever leads, or led a moment ago."""
        raise NotImplementedError


class _Caller(Watched):
    """Calls a function of somebody else's."""

    __slots__ = ("_argument", "_callback")

    def __init__(self, callback: Callback, argument: Any) -> None:
        super().__init__()
        self._callback = callback
        self._argument = argument

    def on_ready(self, mask: int) -> None:
        self._callback(self._argument, mask)


class Poller:
    """Turns readiness, timers and posted calls into a queue of things to do.

    Owned by whoever leads: ``wait``, ``ready`` and ``close`` are the leader's alone.
    ``post`` and ``call_at`` may be called from any thread, ``watch`` and ``forget`` too.
    """

    __slots__ = (
        "_canceled",
        "_ends",
        "_full",
        "_lock",
        "_order",
        "_posted",
        "_readiness",
        "_signals",
        "_timers",
        "_urgent",
        "_wake_in",
        "_wake_out",
        "_watched",
        "clock",
        "now",
        "ready",
        "turns",
        "waiting",
    )

    def __init__(
        self,
        readiness: Readiness | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._readiness = readiness or open_readiness()
        self.clock = clock
        self._watched: dict[int, Watched] = {}
        self._lock = threading.Lock()  # guards _posted, _timers and the step to waiting
        self._posted: deque[Call] = deque()
        self._urgent: deque[Call] = deque()  # without the lock: appended here, taken there
        self._timers: list[TimerEntry] = []  # a heap
        self._canceled = 0  # of those in it
        self._order = count()
        self.ready: deque[Ready] = deque()
        self.now = clock()
        self.turns = 0
        self._full = 0  # waits that brought as much as they may, one after the other
        self.waiting = False
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._ends = [self._wake_in, self._wake_out]
        self._signals = 0  # under way, in the main thread, which alone changes it
        self.watch(self._wake_in, self._on_wake, None)

    def watch(self, fd: int, callback: Callback, argument: Any) -> None:
        """Call ``callback(argument, mask)`` whenever ``fd`` becomes ready, until forgotten.

        Edges, not levels: the callback reads or writes until it would block, or arranges
        to be called again; several may come as one call. Raises ``OSError`` when the system
        refuses.
        """
        self.register(fd, _Caller(callback, argument))

    def register(self, fd: int, watched: Watched) -> None:
        """The same for ``watched.on_ready``; every descriptor has a ``watched`` of its own."""
        self._watched[fd] = watched
        try:
            self._readiness.add(fd)
        except BaseException:
            del self._watched[fd]
            raise

    def forget(self, fd: int, *, shared: bool = False) -> None:
        """Stop watching. Closing a descriptor ends its registration, unless another
        process or descriptor shares the open file: then pass ``shared``."""
        watched = self._watched.pop(fd, None)
        if watched is not None and (shared or sys.platform != "linux"):
            self._readiness.remove(fd)

    def post(self, callback: Callback, argument: Any) -> None:
        """Have ``callback(argument, 0)`` called in the next turn. Any thread."""
        with self._lock:
            self._posted.append((callback, argument, 0))
            if self.waiting:
                self._write_wake()

    def post_from_signal(self, callback: Callback, argument: Any) -> None:
        """As ``post``, for signal handlers: takes no lock, since the code that the signal
        interrupted may hold it. Main thread only. What is called may close the poller at once,
        on another thread."""
        self._signals += 1  # before it looks where to write: see _close_ends
        try:
            self._urgent.append((callback, argument, 0))
            self._write_wake()
        finally:
            self._signals -= 1
            if self._wake_out < 0:
                self._close_ends()

    def call_at(self, when: float, callback: Callback, argument: Any) -> TimerEntry:
        """Have ``callback(argument, 0)`` called at ``when`` on this poller's clock. Any
        thread. Returns what ``cancel`` takes."""
        with self._lock:
            entry: TimerEntry = [when, next(self._order), callback, argument]
            first = not self._timers or when < self._timers[0][0]
            heappush(self._timers, entry)
            if first and self.waiting:
                self._write_wake()
            return entry

    def cancel(self, entry: TimerEntry) -> bool:
        """Forget a call. False when it is about to be made, or was. Any thread."""
        with self._lock:
            if entry[2] is None:
                return False
            entry[2] = entry[3] = None
            self._canceled += 1
            if self._canceled > _MAX_CANCELED and self._canceled * 2 > len(self._timers):
                # Most of the heap is dead: far timers that were cancelled, not waited for.
                self._timers = [timer for timer in self._timers if timer[2] is not None]
                heapify(self._timers)
                self._canceled = 0
            return True

    def wake(self) -> None:
        """End a wait that is under way, or the next one. Any thread."""
        with self._lock:
            self._write_wake()

    def _write_wake(self) -> None:
        # Under the lock, so that close() cannot give the descriptor to somebody else; signals
        # are waited for otherwise.
        end = self._wake_out
        if end < 0:
            return
        try:
            os.write(end, b"\0")
        except BlockingIOError:
            return  # full: a wake-up is pending already

    def _on_wake(self, _: None, mask: int) -> None:
        try:
            while os.read(self._wake_in, 4096):
                pass
        except BlockingIOError:
            pass
        urgent = self._urgent
        while urgent:
            self.ready.append(urgent.popleft())

    def time(self) -> float:
        """The clock, read now: seconds, monotonic. Any thread."""
        return self.clock()

    def refresh(self) -> None:
        """Bring ``now`` up to date in the middle of a long turn. Any thread."""
        self.now = self.clock()

    def wait(self) -> None:
        """Wait for events, timers or posted calls, and add them to ``ready``. Leader only."""
        timeout = self.before_wait()
        try:
            # epoll takes milliseconds in an int; a day is as good as for ever.
            events = self._readiness.poll(min(timeout, 86_400.0))
        finally:
            self.waiting = False
        self._collect(events)

    def before_wait(self) -> float:
        """Seconds to wait at the most; from now on who posts wakes us. Leader only."""
        with self._lock:
            if self._posted:
                timeout = 0.0
            elif self._timers:
                timeout = max(0.0, self._timers[0][0] - self.clock())
            else:
                timeout = inf
            # Set under the lock: who posts afterwards sees it and wakes us.
            self.waiting = timeout > 0
            return timeout

    def poll_now(self) -> None:
        """As ``wait``, without waiting: for a loop that watches ``fileno``. Leader only."""
        self.waiting = False
        self._collect(self._readiness.poll(0))

    def _collect(self, events: list[tuple[int, int]]) -> None:
        self.now = now = self.clock()
        self.turns += 1
        ready = self.ready
        known = self._watched
        for fd, mask in events:
            watched = known.get(fd)
            if watched is not None:
                if not watched.mask:  # else it is in the queue already
                    _append(ready, watched)
                watched.mask |= mask
        if len(events) >= MOST_EVENTS and self._full < _FULL_WAITS:
            # There are more, and calls have no more turns than if all had come at once.
            self._full += 1
            return
        self._full = 0
        if self._posted or self._timers:
            with self._lock:
                # All of it and no more: what these calls post belongs to the next turn,
                # so that a busy connection cannot keep us from the events of others.
                ready.extend(self._posted)
                self._posted.clear()
                timers = self._timers
                while timers and timers[0][0] <= now:
                    entry = heappop(timers)
                    if entry[2] is None:
                        self._canceled -= 1
                        continue
                    ready.append((entry[2], entry[3], 0))
                    entry[2] = None  # too late to cancel

    def run_next(self) -> None:
        """Take the first of ``ready``, and call it. Leader only."""
        call = self.ready.popleft()
        if isinstance(call, Watched):
            mask, call.mask = call.mask, 0
            call.on_ready(mask)
        else:
            callback, argument, mask = call
            callback(argument, mask)

    def fileno(self) -> int:
        """A descriptor that is readable while events wait, for embedding in a loop."""
        return self._readiness.fileno()

    def close_copy(self) -> None:
        """In a process that was just forked: give back its copies. What is watched, and the
        other process's waiting, stays as it is. Takes no lock of before the fork."""
        self._lock = threading.Lock()
        self.ready.clear()
        self.close()

    def close(self) -> None:
        """Give back the descriptors. Nobody may be waiting. Safe to call twice."""
        with self._lock:
            if self._wake_in < 0:
                return
            self._readiness.close()
            self._wake_in = self._wake_out = -1
            self._watched.clear()
        self._close_ends()

    def _close_ends(self) -> None:
        """Close the pipe, after close(): by the main thread where a signal is about to write
        there. It counts that before it looks for the end, which is gone before we look at the
        count: one of the two sees the other."""
        if self._signals == 0:
            with contextlib.suppress(IndexError):
                while True:
                    os.close(self._ends.pop())
