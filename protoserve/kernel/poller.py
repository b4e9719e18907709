"""Readiness events and timers: one epoll (kqueue on macOS) behind one small interface.

A descriptor is registered once, edge-triggered, for both directions; no system call
per request is spent on changing interest. The caller of :meth:`Poller.wait` owns the
turn: see :mod:`protoserve.kernel.leader_followers`.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, Final, Protocol, TypeAlias

READABLE: Final = 0x0001
WRITABLE: Final = 0x0004
HANGUP: Final = 0x2018
"""Error, hang-up of both sides, or end of the peer's sending side."""

_MAX_EVENTS: Final = 256

Callback: TypeAlias = Callable[[Any, int], None]
"""Called with its argument and a mask of READABLE, WRITABLE and HANGUP (0 for a call)."""

Ready: TypeAlias = tuple[Callback, Any, int]


class Readiness(Protocol):
    """What the poller needs of the operating system."""

    def add(self, fd: int) -> None: ...
    def remove(self, fd: int) -> None: ...
    def poll(self, timeout: float) -> list[tuple[int, int]]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


if sys.platform == "linux":

    class EpollReadiness:
        """epoll(7), edge-triggered. Its bits are the ones of this module."""

        _INTEREST: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

        def __init__(self) -> None:
            self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)

        def add(self, fd: int) -> None:
            self._epoll.register(fd, self._INTEREST)

        def remove(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return self._epoll.poll(timeout, _MAX_EVENTS)

        def fileno(self) -> int:
            return self._epoll.fileno()

        def close(self) -> None:
            self._epoll.close()
else:  # pragma: no cover - BSD and macOS

    class KqueueReadiness:
        """kqueue(2), with ``EV_CLEAR`` as its edge-triggered mode."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def add(self, fd: int) -> None:
            flags = select.KQ_EV_ADD | select.KQ_EV_CLEAR
            self._kqueue.control(
                [
                    select.kevent(fd, select.KQ_FILTER_READ, flags),
                    select.kevent(fd, select.KQ_FILTER_WRITE, flags),
                ],
                0,
            )

        def remove(self, fd: int) -> None:
            for kind in (select.KQ_FILTER_READ, select.KQ_FILTER_WRITE):
                try:
                    self._kqueue.control([select.kevent(fd, kind, select.KQ_EV_DELETE)], 0)
                except FileNotFoundError:
                    continue

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            events = self._kqueue.control(None, _MAX_EVENTS, None if timeout < 0 else timeout)
            masks: dict[int, int] = {}
            for event in events:
                mask = READABLE if event.filter == select.KQ_FILTER_READ else WRITABLE
                if event.flags & select.KQ_EV_EOF:
                    mask |= HANGUP
                masks[event.ident] = masks.get(event.ident, 0) | mask
            return list(masks.items())

        def fileno(self) -> int:
            return self._kqueue.fileno()

        def close(self) -> None:
            self._kqueue.close()


def open_readiness() -> Readiness:
    """The operating system's mechanism. Raises ``RuntimeError`` where there is none."""
    if sys.platform == "linux":
        return EpollReadiness()
    elif hasattr(select, "kqueue"):  # noqa: RET505 - the type checker needs the branch
        return KqueueReadiness()
    raise RuntimeError(
        f"protoserve needs epoll or kqueue and found neither on {sys.platform!r}; "
        "run it on Linux or macOS"
    )


class Poller:
    """Turns readiness, timers and posted calls into a queue of things to do.

    Owned by whoever leads: ``wait``, ``ready`` and ``close`` are the leader's alone.
    ``post`` and ``call_at`` may be called from any thread, ``watch`` and ``forget`` too.
    """

    __slots__ = (
        "_clock",
        "_lock",
        "_order",
        "_posted",
        "_readiness",
        "_targets",
        "_timers",
        "_wake_in",
        "_wake_out",
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
        self._clock = clock
        self._targets: dict[int, tuple[Callback, Any]] = {}
        self._lock = threading.Lock()  # guards _posted, _timers and the step to waiting
        self._posted: deque[Ready] = deque()
        self._timers: list[tuple[float, int, Callback, Any]] = []
        self._order = count()
        self.ready: deque[Ready] = deque()
        self.now = clock()
        self.turns = 0
        self.waiting = False
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self.watch(self._wake_in, self._on_wake, None)

    def watch(self, fd: int, callback: Callback, argument: Any) -> None:
        """Call ``callback(argument, mask)`` whenever ``fd`` becomes ready, until forgotten.

        Edges, not levels: the callback reads or writes until it would block, or arranges
        to be called again. Raises ``OSError`` when the system refuses.
        """
        self._targets[fd] = (callback, argument)
        try:
            self._readiness.add(fd)
        except BaseException:
            del self._targets[fd]
            raise

    def forget(self, fd: int, *, shared: bool = False) -> None:
        """Stop watching. Closing a descriptor ends its registration, unless another
        process or descriptor shares the open file: then pass ``shared``."""
        target = self._targets.pop(fd, None)
        if target is not None and (shared or sys.platform != "linux"):
            self._readiness.remove(fd)

    def post(self, callback: Callback, argument: Any) -> None:
        """Have ``callback(argument, 0)`` called in the next turn. Any thread."""
        with self._lock:
            self._posted.append((callback, argument, 0))
            if self.waiting:
                self._write_wake()

    def call_at(self, when: float, callback: Callback, argument: Any) -> None:
        """Have ``callback(argument, 0)`` called at ``when`` on this poller's clock.

        Any thread. There is no cancelling: the callback looks whether it is still wanted.
        """
        with self._lock:
            first = not self._timers or when < self._timers[0][0]
            heappush(self._timers, (when, next(self._order), callback, argument))
            if first and self.waiting:
                self._write_wake()

    def wake(self) -> None:
        """End a wait that is under way, or the next one. Any thread."""
        with self._lock:
            self._write_wake()

    def _write_wake(self) -> None:
        # Under the lock, so that close() cannot give the descriptor to somebody else.
        if self._wake_out < 0:
            return
        try:
            os.write(self._wake_out, b"\0")
        except BlockingIOError:
            return  # full: a wake-up is pending already

    def _on_wake(self, _: None, mask: int) -> None:
        try:
            while os.read(self._wake_in, 4096):
                pass
        except BlockingIOError:
            return

    def time(self) -> float:
        """The clock, read now: seconds, monotonic. Any thread."""
        return self._clock()

    def refresh(self) -> None:
        """Bring ``now`` up to date in the middle of a long turn. Any thread."""
        self.now = self._clock()

    def wait(self) -> None:
        """Wait for events, timers or posted calls, and add them to ``ready``. Leader only."""
        with self._lock:
            if self._posted:
                timeout = 0.0
            elif self._timers:
                timeout = max(0.0, self._timers[0][0] - self._clock())
            else:
                timeout = inf
            # Set under the lock: who posts afterwards sees it and wakes us.
            self.waiting = timeout > 0
        try:
            # epoll takes milliseconds in an int; a day is as good as for ever.
            events = self._readiness.poll(min(timeout, 86_400.0))
        finally:
            self.waiting = False
        self.now = now = self._clock()
        self.turns += 1
        ready = self.ready
        targets = self._targets
        for fd, mask in events:
            target = targets.get(fd)
            if target is not None:
                ready.append((*target, mask))
        if self._posted or self._timers:
            with self._lock:
                # All of it and no more: what these calls post belongs to the next turn,
                # so that a busy connection cannot keep us from the events of others.
                ready.extend(self._posted)
                self._posted.clear()
                timers = self._timers
                while timers and timers[0][0] <= now:
                    _, _, callback, argument = heappop(timers)
                    ready.append((callback, argument, 0))

    def fileno(self) -> int:
        """A descriptor that is readable while events wait, for embedding in a loop."""
        return self._readiness.fileno()

    def close(self) -> None:
        """Give back the descriptors. Nobody may be waiting. Safe to call twice."""
        with self._lock:
            if self._wake_in < 0:
                return
            self._readiness.close()
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = self._wake_out = -1
            self._targets.clear()
