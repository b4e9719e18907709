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
from threading import get_ident
from typing import Any, Final

from mypy_extensions import mypyc_attr

from protoserve.kernel.joining import Joiner
from protoserve.kernel.monitor import BLOCK_THRESHOLD, Mark, Monitor
from protoserve.kernel.poller import Call, Callback, Poller, Watched

_here: Final = get_ident
_popleft: Final = deque.popleft  # need not be found anew


class Worker:
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


@mypyc_attr(allow_interpreted_subclasses=True)
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
        self.poller = poller
        self._on_blocked = on_blocked
        self._on_exhausted = on_exhausted
        self._on_refused = on_refused
        self._on_error = on_error
        self.baton = threading.Lock()
        self.mutex = threading.Lock()  # guards what follows; taken before the baton
        self.leader: Worker | None = None  # written with the baton held
        self.unwatched = False
        """The monitor sleeps until a leader has events again. Written with the mutex held;
        leaders read it without."""
        self._idle: list[Worker] = []
        # Promoted, and not awake yet: until it is, leadership can be taken back, and given to
        # it again, without another wake-up.
        self._waking: Worker | None = None
        self._workers: set[Worker] = set()
        self._queue: deque[Call] = deque()  # handlers that wait for a free thread
        self._lent = 0  # handlers that wait for the engine's own work, see lend()
        # The leader of the moment when a lent place was taken back: it may have begun to run a
        # handler when that was allowed, and then nobody polls.
        self._overtaken: Worker | None = None
        self._idents: set[int] = set()
        self._named = 0
        self._refused = False  # a thread, by the system; not reported yet
        self.stopping = False
        self._monitor = Monitor(self, block_threshold)
        self._joiner = Joiner()
        self._leaving: list[threading.Thread] = []  # not workers any more, and not joined
        self.current: Any = None

    def start(self) -> None:
        """Start the first leader and the monitor. Raises ``RuntimeError`` when the system
        has no thread for them."""
        self.baton.acquire()
        with self.mutex:
            if not self._promote_locked():
                self.baton.release()
                raise RuntimeError("the system refused a thread for the handlers")
        self._monitor.start()

    def grow(self, threads: int) -> None:
        """Change how many handlers may run at once."""
        with self.mutex:
            self.max_threads = threads
            self._staff_locked()

    def owns(self, ident: int) -> bool:
        """Whether the thread with this identifier is a handler thread, or the monitor."""
        return ident in self._idents or ident == self._monitor.ident  # it calls observers

    def stop(self, timeout: float | None = None) -> bool:
        """Let every thread end after its current handler, and wait for that.

        A handler thread may call it too: then it returns at once. Returns whether all
        threads ended; after ``timeout`` seconds the blocked ones are left to end later.
        """
        with self.mutex:
            self.stopping = True
            threads = [w.thread for w in self._workers if w.thread is not None]
            threads += self._leaving
            for worker in self._idle:
                worker.turn.release()
            self._idle.clear()
            self._monitor.unpark()
        self.poller.wake()
        if self.owns(get_ident()):
            return False
        if self._monitor.thread is not None:
            threads.append(self._monitor.thread)
        return self._joiner.join(threads, timeout)

    def leader_here(self) -> Worker | None:
        """The leader, if that is the calling thread. Another may take its place at any time,
        but while it holds the baton."""
        leader = self.leader
        return leader if leader is not None and leader.ident == _here() else None

    # -- for who is about to run a handler ---------------------------------------------

    def promote(self) -> None:
        """Let another thread lead, where this one does: what it does next is known to
        block. Harmless elsewhere."""
        exhausted = False
        with self.mutex:
            if self.leader_here() is None or self.stopping:
                return
            # Free while a handler of the leader's runs: who takes it holds the mutex.
            if not self.baton.acquire(False):
                return
            if not self._promote_locked():
                self.baton.release()
            exhausted = self.full
        if exhausted:
            self._tell(self._on_exhausted, self.max_threads)

    def defer(self, callback: Callback, argument: Any) -> bool:
        """Instead of a handler, where ``full`` says so: have ``callback(argument, 0)``
        called by the first thread that is free, in order of arrival. False when this
        thread may run it, after all."""
        with self.mutex:
            if not self.full or self.stopping or self.leader_here() is None:
                return False
            self._queue.append((callback, argument, 0))
            return True

    @contextlib.contextmanager
    def lend(self) -> Iterator[None]:
        """While the block waits for work that handler threads may have to do, another
        handler may run in place of this thread's (the article's framework does the same)."""
        with self.mutex:
            lent = get_ident() in self._idents
            if lent:
                self._lent += 1
                self._staff_locked()
        if lent:
            self.promote()
        try:
            yield
        finally:
            if lent:
                with self.mutex:
                    self._lent -= 1
                    before = self.full
                    self._count_locked()
                    if self.full and not before:
                        self._overtaken = self.leader

    def forget_in_child(self) -> None:
        """In a process that was just forked, by one of the threads or another: it has none
        of the others, and must not touch what the two processes share."""
        self.stopping = True
        self.leader = None
        self.mutex = threading.Lock()
        self.baton = threading.Lock()
        self._queue.clear()
        self._idle.clear()
        self._waking = None
        self.poller.close_copy()

    # -- handler threads ---------------------------------------------------------------

    def _run(self, worker: Worker) -> None:
        ident = worker.ident = get_ident()
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
            with self.mutex:
                self._idents.discard(ident)
                last = self._leave_locked(worker) and not self._workers
            if last and self.stopping:
                self.poller.close()

    def _lead(self, me: Worker) -> None:
        """Run events until leadership or the work ends. Called with the baton held,
        returns without it."""
        poller = self.poller
        ready = poller.ready
        monitor = self._monitor
        lay_down = self.baton.release
        pick_up = self.baton.acquire
        while not self.stopping:
            if not ready:
                poller.wait()
                continue
            # As Poller.run_next; but the mask is the leader's, and taken before the baton is
            # laid down.
            call = _popleft(ready)
            if isinstance(call, Watched):
                mask = call.mask
                call.mask = 0
                self.current = call
            else:
                self.current = call[1]
            lay_down()
            # After the baton's release, a full memory barrier: see Monitor._wait_parked.
            if self.unwatched:
                with self.mutex:
                    monitor.unpark()
            try:
                if isinstance(call, Watched):
                    call.on_ready(mask)
                else:
                    call[0](call[1], call[2])
            except BaseException:
                self._on_error()
            if self.leader is not me:
                if self._take_back(me):
                    continue
                return
            if not pick_up(False) and not self._pick_up_late(me):
                return
            if self.leader is not me:
                lay_down()
                return
        self.leader = None
        lay_down()

    def _take_back(self, me: Worker) -> bool:
        """The handler before which another thread was promoted has ended before that is
        awake: go on to lead, with the baton that is held on its behalf."""
        with self.mutex:
            if self._waking is None or self.leader is not self._waking or self.stopping:
                return False
            self.leader = me
            self._count_locked()
            return True

    def _awake(self, worker: Worker) -> bool:
        """A thread that was woken has begun to run. Returns whether it leads."""
        with self.mutex:
            if self._waking is worker:
                self._waking = None
                self._count_locked()
            return self.leader is worker

    def _pick_up_late(self, me: Worker) -> bool:
        """The monitor holds the baton this moment: wait for what it decides."""
        while self.leader is me:
            if self.baton.acquire(timeout=0.001):
                return True
        return False

    def _follow(self, worker: Worker) -> bool:
        """Run what waits for a free thread, then wait to be promoted; False when it is
        time to end."""
        while True:
            with self.mutex:
                if not self._queue:
                    if self.stopping:
                        return False
                    if len(self._workers) > self._most:
                        # One that was hired while others waited. It is none of us from now
                        # on: else more would leave than are too many, and, counted as busy
                        # meanwhile, have what comes wait for threads that are gone then.
                        self._leave_locked(worker)
                        return False
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

    def _leave_locked(self, worker: Worker) -> bool:
        """It is no worker any more; False when it was none."""
        if worker not in self._workers:
            return False
        self._workers.discard(worker)
        self._leaving = self._joiner.alive(self._leaving)
        if worker.thread is not None:
            self._leaving.append(worker.thread)
        self._count_locked()
        return True

    def _promote_locked(self, *, beyond: bool = False) -> bool:
        """Hand the baton, which the caller holds, to a follower or a new thread; ``beyond``:
        even to one more than there may be."""
        before = self.leader
        if self._waking is not None:
            self.leader = self._waking
            self._count_locked()
            return True
        if self._idle:
            worker = self._idle.pop()
            self.leader = self._waking = worker
            self._count_locked()
            worker.turn.release()
            return True
        worker = Worker()
        self.leader = self._waking = worker
        if self._hire_locked(worker, beyond=beyond):
            return True
        self.leader = before
        self._waking = None
        return False

    def _staff_locked(self) -> None:
        """More handlers may run: have threads for those that wait."""
        self._count_locked()
        for _ in range(len(self._queue)):
            if self.full or self.stopping:
                break
            if self._idle:  # one that was hired before
                self._idle.pop().turn.release()
                self._count_locked()
            elif not self._hire_locked(Worker()):
                break

    def _hire_locked(self, worker: Worker, *, beyond: bool = False) -> bool:
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
        if self.leader is not None:
            busy -= 1
        if self._waking is not None and self._waking is not self.leader:
            busy -= 1
        self.full = busy >= self.max_threads

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except BaseException:
            self._on_error()

    # -- for the monitor ---------------------------------------------------------------

    def take_over(self, mark: Mark, waits: bool) -> bool:
        """Promote a follower if the leader still runs that handler. Returns whether it was
        to be replaced."""
        exhausted = refused = False
        with self.mutex:
            leader = self.leader
            overtaken = leader is self._overtaken
            if self.stopping or leader is None or (self.full and not overtaken):
                # One that runs no handlers is slow for other reasons, and goes on.
                return False
            if not self.baton.acquire(False):
                return False
            poller = self.poller
            if mark != (poller.turns, len(poller.ready), leader):
                self.baton.release()
                return False
            poller.ready.appendleft((self._call_blocked, (self.current, waits), 0))
            if self._promote_locked(beyond=overtaken):
                self._overtaken = None
                exhausted = self.full
            else:
                # It goes on to lead, and we look again.
                poller.ready.popleft()
                self.baton.release()
                refused, self._refused = self._refused, False
        if exhausted:
            self._tell(self._on_exhausted, self.max_threads)
        if refused:
            self._tell(self._on_refused)
        return True

    def _call_blocked(self, blocked: tuple[Any, bool], _: int) -> None:
        self._on_blocked(*blocked)
