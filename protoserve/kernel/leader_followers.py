"""Leader/followers threads (POSA2): one thread polls and runs handlers inline.

The leader holds the *baton* while it works on the poller's queue and lays it down while
a handler runs. Before a handler that is known to block, it promotes a follower, which goes
on with the pending events, and joins the followers when it has finished. A monitor looks
every few milliseconds: when the same handler is still running, it takes the baton and
promotes a follower itself. A fast handler pays one uncontended lock; no event changes
threads.

There is one thread more than handlers may run at once. It is whichever leads while all
the others are in handlers: it runs none, so that bytes move and time passes whatever
handlers do. What it must not run waits in a queue for the first thread to be free.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from protoserve.kernel.joining import Joiner
from protoserve.kernel.poller import Callback, Poller, Ready

BLOCK_THRESHOLD: Final = 0.005
"""Seconds a handler may keep the leader before a follower is promoted."""

_BLOCKED_TICK: Final = 0.001
"""How often to look after a handler was found to block: they tend to come in numbers."""

_BLOCKED_LOOKS: Final = 20
"""How many such looks there are before it is rarely looked again."""

_BUSY: Final = 0.5
"""Above this share of a tick on the CPU a handler computes, and does not wait."""


class _Worker:
    """One handler thread; ``turn`` is released to tell it to lead or to end."""

    __slots__ = ("clock", "ident", "thread", "turn")

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        self.thread: threading.Thread | None = None
        self.ident = 0
        self.clock: int | None = None  # of its CPU time, where other threads can read it

    def cpu_time(self) -> float:
        """Seconds that the thread was on the CPU; NaN where that cannot be known."""
        clock = self.clock
        if clock is None:
            return float("nan")
        try:
            return time.clock_gettime(clock)
        except OSError:  # it has ended
            return float("nan")


class LeaderFollowers:
    """The handler threads of one poller: up to ``threads`` run handlers, one more polls.

    ``on_blocked(argument, waits)`` is called on the new leader with the argument of the
    event whose handler keeps its thread; ``waits`` tells whether it was seen to be off the
    CPU meanwhile. ``on_exhausted(threads)`` is called when the last thread that may run
    handlers has begun to; ``on_refused()`` when the system refuses a thread; ``on_error()``
    inside an ``except`` block when a callback raised. Everything may be called from any
    thread.
    """

    def __init__(
        self,
        poller: Poller,
        *,
        threads: int,
        on_blocked: Callable[[Any, bool], None],
        on_exhausted: Callable[[int], None],
        on_refused: Callable[[], None],
        on_error: Callable[[], None],
        block_threshold: float = BLOCK_THRESHOLD,
    ) -> None:
        self.max_threads = threads
        self.full = False
        """Whether all threads but the leader are in handlers, so that it must run none.
        Written with the mutex held; the leader, which alone has to obey it, reads it without:
        only what is done to the leader makes it true, and a handler that takes its place
        back, see ``_overtaken``."""
        self._poller = poller
        self._on_blocked = on_blocked
        self._on_exhausted = on_exhausted
        self._on_refused = on_refused
        self._on_error = on_error
        self._threshold = block_threshold
        self._baton = threading.Lock()
        self._mutex = threading.Lock()  # guards what follows; taken before the baton
        self._leader: _Worker | None = None  # written with the baton held
        self._idle: list[_Worker] = []
        # Promoted, and not awake yet: until it is, leadership can be taken back, and given to
        # it again, without another wake-up.
        self._waking: _Worker | None = None
        self._workers: set[_Worker] = set()
        self._queue: deque[Ready] = deque()  # handlers that wait for a free thread
        self._lent = 0  # handlers that wait for the engine's own work, see lend()
        # The leader of the moment when a lent place was taken back: it may have begun to run a
        # handler when that was allowed, and then nobody polls.
        self._overtaken: _Worker | None = None
        self._idents: set[int] = set()
        self._named = 0
        self._refused = False  # a thread, by the system; not reported yet
        self._stopping = False
        self._parked = False
        self._park = threading.Lock()
        self._park.acquire()
        self._monitor: threading.Thread | None = None
        self._joiner = Joiner()
        self._leaving: list[threading.Thread] = []  # not workers any more, and not joined
        self.current: Any = None

    def start(self) -> None:
        """Start the first leader and the monitor. Raises ``RuntimeError`` when the system
        has no thread for them."""
        self._baton.acquire()
        with self._mutex:
            if not self._promote_locked():
                self._baton.release()
                raise RuntimeError("the system refused a thread for the handlers")
        monitor = threading.Thread(target=self._watch, name="protoserve-monitor", daemon=True)
        monitor.start()
        self._monitor = monitor

    def grow(self, threads: int) -> None:
        """Change how many handlers may run at once."""
        with self._mutex:
            self.max_threads = threads
            self._staff_locked()

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
            threads += self._leaving
            for worker in self._idle:
                worker.turn.release()
            self._idle.clear()
            self._unpark_locked()
        self._poller.wake()
        if self.owns(threading.get_ident()):
            return False
        if self._monitor is not None:
            threads.append(self._monitor)
        return self._joiner.join(threads, timeout)

    # -- for who is about to run a handler ---------------------------------------------

    def promote(self) -> None:
        """Let another thread lead, where this one does: what it does next is known to
        block. Harmless elsewhere."""
        exhausted = False
        with self._mutex:
            leader = self._leader
            if leader is None or leader.ident != threading.get_ident() or self._stopping:
                return
            # Free while a handler of the leader's runs: who takes it holds the mutex.
            if not self._baton.acquire(False):
                return
            if not self._promote_locked():
                self._baton.release()
            exhausted = self.full
        if exhausted:
            self._tell(self._on_exhausted, self.max_threads)

    def defer(self, callback: Callback, argument: Any) -> bool:
        """Instead of a handler, where ``full`` says so: have ``callback(argument, 0)``
        called by the first thread that is free, in order of arrival. False when this
        thread may run it, after all."""
        with self._mutex:
            leader = self._leader
            if (
                not self.full
                or self._stopping
                or leader is None
                or leader.ident != threading.get_ident()
            ):
                return False
            self._queue.append((callback, argument, 0))
            return True

    @contextlib.contextmanager
    def lend(self) -> Iterator[None]:
        """While the block waits for work that handler threads may have to do, another
        handler may run in place of this thread's (the article's framework does the same)."""
        with self._mutex:
            lent = threading.get_ident() in self._idents
            if lent:
                self._lent += 1
                self._staff_locked()
        if lent:
            self.promote()
        try:
            yield
        finally:
            if lent:
                with self._mutex:
                    self._lent -= 1
                    before = self.full
                    self._count_locked()
                    if self.full and not before:
                        self._overtaken = self._leader

    def forget_in_child(self) -> None:
        """In a process that was just forked, by one of the threads or another: it has none
        of the others, and must not touch what the two processes share."""
        self._stopping = True
        self._leader = None
        self._mutex = threading.Lock()
        self._baton = threading.Lock()
        self._queue.clear()
        self._idle.clear()
        self._waking = None
        self._poller.close_copy()

    # -- handler threads ---------------------------------------------------------------

    def _run(self, worker: _Worker) -> None:
        ident = worker.ident = threading.get_ident()
        if sys.platform == "linux":  # others have no such clock
            with contextlib.suppress(OSError):
                worker.clock = time.pthread_getcpuclockid(ident)
        self._idents.add(ident)
        try:
            leads = self._awake(worker) or self._follow(worker)
            while leads:
                self._lead(worker)
                leads = self._follow(worker)
        finally:
            with self._mutex:
                self._workers.discard(worker)
                self._leaving = self._joiner.alive(self._leaving)
                if worker.thread is not None:
                    self._leaving.append(worker.thread)
                self._idents.discard(ident)
                self._count_locked()
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
                if self._take_back(me):
                    continue
                return
            if not pick_up(False) and not self._pick_up_late(me):
                return
            if self._leader is not me:
                lay_down()
                return
        self._leader = None
        lay_down()

    def _take_back(self, me: _Worker) -> bool:
        """The handler before which another thread was promoted has ended before that is
        awake: go on to lead, with the baton that is held on its behalf."""
        with self._mutex:
            if self._waking is None or self._leader is not self._waking or self._stopping:
                return False
            self._leader = me
            self._count_locked()
            return True

    def _awake(self, worker: _Worker) -> bool:
        """A thread that was woken has begun to run. Returns whether it leads."""
        with self._mutex:
            if self._waking is worker:
                self._waking = None
                self._count_locked()
            return self._leader is worker

    def _pick_up_late(self, me: _Worker) -> bool:
        """The monitor holds the baton this moment: wait for what it decides."""
        while self._leader is me:
            if self._baton.acquire(timeout=0.001):
                return True
        return False

    def _follow(self, worker: _Worker) -> bool:
        """Run what waits for a free thread, then wait to be promoted; False when it is
        time to end."""
        while True:
            with self._mutex:
                if not self._queue:
                    if self._stopping:
                        return False
                    if len(self._workers) > self._most:
                        return False  # one that was hired while others waited
                    self._idle.append(worker)
                    self._count_locked()
                    job = None
                else:
                    job = self._queue.popleft()
            if job is not None:
                callback, argument, mask = job
                try:
                    callback(argument, mask)
                except BaseException:
                    self._on_error()
                del callback, argument, job
                continue
            worker.turn.acquire()
            if self._awake(worker):
                return True  # with the baton held on our behalf
            # Woken for what waits, or to end; or it is not needed any more.

    def _promote_locked(self, *, beyond: bool = False) -> bool:
        """Hand the baton, which the caller holds, to a follower or a new thread; ``beyond``:
        even to one more than there may be."""
        before = self._leader
        if self._waking is not None:
            self._leader = self._waking
            self._count_locked()
            return True
        if self._idle:
            worker = self._idle.pop()
            self._leader = self._waking = worker
            self._count_locked()
            worker.turn.release()
            return True
        worker = _Worker()
        self._leader = self._waking = worker
        if self._hire_locked(worker, beyond=beyond):
            return True
        self._leader = before
        self._waking = None
        return False

    def _staff_locked(self) -> None:
        """More handlers may run: have threads for those that wait."""
        self._count_locked()
        for _ in range(len(self._queue)):
            if self.full or self._stopping:
                break
            if self._idle:  # one that was hired before
                self._idle.pop().turn.release()
                self._count_locked()
            elif not self._hire_locked(_Worker()):
                break

    def _hire_locked(self, worker: _Worker, *, beyond: bool = False) -> bool:
        """Start a thread; False when there may be no more of them."""
        if len(self._workers) >= self._most and not beyond:
            return False
        self._named += 1
        worker.thread = threading.Thread(
            target=self._run,
            args=(worker,),
            name=f"protoserve-handler-{self._named}",
            daemon=True,
        )
        self._workers.add(worker)
        self._count_locked()  # before it leads, and looks whether it may run handlers
        try:
            worker.thread.start()
        except (RuntimeError, MemoryError):  # the system has no more threads
            self._workers.discard(worker)
            self._count_locked()
            self._refused = True
            return False
        return True

    @property
    def _most(self) -> int:
        """How many threads there may be: one beyond those in handlers."""
        return self.max_threads + 1 + self._lent

    def _count_locked(self) -> None:
        """Bring ``full`` up to date."""
        busy = len(self._workers) - len(self._idle) - self._lent
        if self._leader is not None:
            busy -= 1
        if self._waking is not None and self._waking is not self._leader:
            busy -= 1
        self.full = busy >= self.max_threads

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except BaseException:
            self._on_error()

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
        cpu = looked = 0.0
        looks = 0
        while not self._stopping:
            time.sleep(_BLOCKED_TICK if looks else self._threshold)
            if poller.waiting:
                seen = None
                self._wait_parked()
                continue
            if looks:
                looks -= 1
            poller.refresh()
            leader = self._leader
            mark = (poller.turns, len(poller.ready), leader)
            if mark != seen or leader is None or self._baton.locked():
                seen = mark
                looked = time.monotonic()
                cpu = 0.0 if leader is None else leader.cpu_time()
                continue
            seen = None
            share = (leader.cpu_time() - cpu) / (time.monotonic() - looked)
            if self._take_over(mark, share < _BUSY):  # False for NaN
                looks = _BLOCKED_LOOKS

    def _take_over(self, mark: tuple[int, int, _Worker | None], waits: bool) -> bool:
        """Promote a follower if the leader still runs that handler. Returns whether it was
        to be replaced."""
        exhausted = refused = False
        with self._mutex:
            leader = self._leader
            overtaken = leader is self._overtaken
            if self._stopping or leader is None or (self.full and not overtaken):
                # One that runs no handlers is slow for other reasons, and goes on.
                return False
            if not self._baton.acquire(False):
                return False
            poller = self._poller
            if mark != (poller.turns, len(poller.ready), leader):
                self._baton.release()
                return False
            poller.ready.appendleft((self._call_blocked, (self.current, waits), 0))
            if self._promote_locked(beyond=overtaken):
                self._overtaken = None
                exhausted = self.full
            else:
                # It goes on to lead, and we look again.
                poller.ready.popleft()
                self._baton.release()
                refused, self._refused = self._refused, False
        if exhausted:
            self._tell(self._on_exhausted, self.max_threads)
        if refused:
            self._tell(self._on_refused)
        return True

    def _call_blocked(self, blocked: tuple[Any, bool], _: int) -> None:
        self._on_blocked(*blocked)

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
