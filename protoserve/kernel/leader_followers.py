"""Leader/followers threads (POSA2): one thread polls and runs handlers inline.

The leader holds the *baton* while it works on the poller's queue and lays it down while
a handler runs. A monitor looks every few milliseconds: when the same handler is still
running, it takes the baton and gives it to a follower, which goes on with the pending
events; the first thread finishes its handler and joins the followers. A fast handler
pays one uncontended lock; no event changes threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from protoserve.kernel.poller import Poller

BLOCK_THRESHOLD: Final = 0.005
"""Seconds a handler may keep the leader before a follower is promoted."""

_BLOCKED_TICK: Final = 0.001
"""How often to look while handlers are known to block: they tend to come in numbers."""


class _Worker:
    """One handler thread; ``turn`` is released to tell it to lead or to end."""

    __slots__ = ("thread", "turn")

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        self.thread: threading.Thread | None = None


class LeaderFollowers:
    """The handler threads of one poller.

    ``on_blocked(argument)`` is called on the new leader with the argument of the event
    whose handler blocks; ``on_exhausted(threads)`` when every thread is blocked, once
    until one frees up; ``on_error()`` inside an ``except`` block when a callback raised.
    ``start`` and ``stop`` may be called from any thread.
    """

    def __init__(
        self,
        poller: Poller,
        *,
        threads: int,
        on_blocked: Callable[[Any], None],
        on_exhausted: Callable[[int], None],
        on_error: Callable[[], None],
        block_threshold: float = BLOCK_THRESHOLD,
    ) -> None:
        self.max_threads = threads
        self._poller = poller
        self._on_blocked = on_blocked
        self._on_exhausted = on_exhausted
        self._on_error = on_error
        self._threshold = block_threshold
        self._baton = threading.Lock()
        self._mutex = threading.Lock()  # guards what follows; taken before the baton
        self._leader: _Worker | None = None  # written with the baton held
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._idents: set[int] = set()
        self._named = 0
        self._exhausted = False
        self._stopping = False
        self._parked = False
        self._park = threading.Lock()
        self._park.acquire()
        self._monitor: threading.Thread | None = None
        self.current: Any = None

    def start(self) -> None:
        """Start the first leader and the monitor. Raises ``RuntimeError`` when the system
        has no thread for them."""
        self._baton.acquire()
        with self._mutex:
            if not self._promote_locked():
                self._baton.release()
                raise RuntimeError("the system refused a thread for the handlers")
        self._monitor = threading.Thread(
            target=self._watch, name="protoserve-monitor", daemon=True
        )
        self._monitor.start()

    def grow(self, threads: int) -> None:
        """Change how many threads there may be; more help at once where all are blocked."""
        with self._mutex:
            self.max_threads = threads
            if self._leader is None and self._workers and not self._stopping:
                self._baton.acquire()
                if self._promote_locked():
                    self._exhausted = False
                else:
                    self._baton.release()

    def owns(self, ident: int) -> bool:
        """Whether the thread with this identifier is a handler thread, or the monitor."""
        return ident in self._idents

    def stop(self, timeout: float | None = None) -> bool:
        """Let every thread end after its current handler, and wait for that.

        A handler thread may call it too: then it returns at once. Returns whether all
        threads ended; after ``timeout`` seconds the blocked ones are left to end later.
        """
        with self._mutex:
            self._stopping = True
            threads = [w.thread for w in self._workers if w.thread is not None]
            for worker in self._idle:
                worker.turn.release()
            self._idle.clear()
            self._unpark_locked()
        self._poller.wake()
        if self.owns(threading.get_ident()):
            return False
        if self._monitor is not None:
            threads.append(self._monitor)
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    # -- handler threads ---------------------------------------------------------------

    def _run(self, worker: _Worker) -> None:
        ident = threading.get_ident()
        self._idents.add(ident)
        try:
            leads = True
            while leads:
                self._lead(worker)
                leads = self._follow(worker)
        finally:
            with self._mutex:
                self._workers.discard(worker)
                self._idents.discard(ident)
                last = not self._workers
            if last and self._stopping:
                self._poller.close()

    def _lead(self, me: _Worker) -> None:
        """Run events until leadership or the work ends. Called with the baton held,
        returns without it."""
        poller = self._poller
        ready = poller.ready
        lay_down = self._baton.release
        pick_up = self._baton.acquire
        while not self._stopping:
            if not ready:
                poller.wait()
                continue
            callback, argument, mask = ready.popleft()
            self.current = argument
            lay_down()
            # After the baton's release, a full memory barrier: see _wait_parked.
            if self._parked:
                self._unpark()
            try:
                callback(argument, mask)
            except BaseException:
                self._on_error()
            if self._leader is not me:
                return
            if not pick_up(False) and not self._pick_up_late(me):
                return
            if self._leader is not me:
                lay_down()
                return
        self._leader = None
        lay_down()

    def _pick_up_late(self, me: _Worker) -> bool:
        """The monitor holds the baton this moment: wait for what it decides."""
        while self._leader is me:
            if self._baton.acquire(timeout=0.001):
                return True
        return False

    def _follow(self, worker: _Worker) -> bool:
        """Wait to be promoted; False when it is time to end."""
        with self._mutex:
            if self._stopping:
                return False
            if self._leader is None:
                # All threads were blocked and nobody polls: the first to be free leads.
                self._baton.acquire()
                self._leader = worker
                self._exhausted = False
                return True
            self._idle.append(worker)
        worker.turn.acquire()
        # Promoted with the baton held on our behalf, or told to end without it.
        return self._leader is worker

    def _promote_locked(self) -> bool:
        """Hand the baton, which the caller holds, to a follower or a new thread."""
        if self._idle:
            worker = self._idle.pop()
            self._leader = worker
            worker.turn.release()
            return True
        if len(self._workers) >= self.max_threads:
            return False
        worker = _Worker()
        self._named += 1
        worker.thread = threading.Thread(
            target=self._run,
            args=(worker,),
            name=f"protoserve-handler-{self._named}",
            daemon=True,
        )
        self._workers.add(worker)
        self._leader = worker
        try:
            worker.thread.start()
        except RuntimeError:  # the system has no more threads: as if all were blocked
            self._workers.discard(worker)
            return False
        return True

    # -- the monitor -------------------------------------------------------------------

    def _watch(self) -> None:
        ident = threading.get_ident()
        self._idents.add(ident)  # it calls observers
        try:
            self._watch_until_stopped()
        finally:
            self._idents.discard(ident)

    def _watch_until_stopped(self) -> None:
        poller = self._poller
        seen: tuple[int, int, _Worker | None] | None = None
        while not self._stopping:
            blocked = self._leader is not None and len(self._workers) - len(self._idle) > 1
            time.sleep(_BLOCKED_TICK if blocked else self._threshold)
            if poller.waiting:
                seen = None
                self._wait_parked()
                continue
            poller.refresh()
            mark = (poller.turns, len(poller.ready), self._leader)
            if mark == seen and not self._baton.locked():
                self._take_over(mark)
                seen = None
            else:
                seen = mark

    def _take_over(self, mark: tuple[int, int, _Worker | None]) -> None:
        exhausted = 0
        with self._mutex:
            if self._stopping or self._leader is None or not self._baton.acquire(False):
                return
            poller = self._poller
            if mark != (poller.turns, len(poller.ready), self._leader):
                self._baton.release()
                return
            poller.ready.appendleft((self._call_blocked, self.current, 0))
            if not self._promote_locked():
                self._leader = None
                poller.ready.popleft()
                self._baton.release()
                if not self._exhausted:
                    self._exhausted = True
                    exhausted = len(self._workers)
        if exhausted:
            try:
                self._on_exhausted(exhausted)
            except BaseException:
                self._on_error()

    def _call_blocked(self, argument: Any, _: int) -> None:
        self._on_blocked(argument)

    def _wait_parked(self) -> None:
        """Sleep until the leader has events again, so that an idle server wakes nobody."""
        # The leader clears `waiting`, passes through the baton, then reads `_parked`; we
        # write `_parked`, pass through the mutex, then read `waiting`: one of the two sees
        # the other's write, so the leader never runs a handler unwatched.
        with self._mutex:
            self._parked = True
        with self._mutex:
            if self._parked and (self._stopping or not self._poller.waiting):
                self._parked = False
                return
        self._park.acquire()

    def _unpark(self) -> None:
        with self._mutex:
            self._unpark_locked()

    def _unpark_locked(self) -> None:
        if self._parked:
            self._parked = False
            self._park.release()
