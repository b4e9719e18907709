"""Executor: the compute threads of go tasks, with fair queues by name."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from protoserve.kernel.joining import Joiner
from protoserve.log import logger
from protoserve.params import COMPUTE_THREADS

IDLE_TIME: Final = 5.0
"""Seconds an idle thread stays while a server runs; without one it ends at once."""


class Executor:
    """Threads that run jobs, which may block: at most ``max_threads`` at a time.

    Queues take turns, one job at a time, so that a long queue cannot hold up a short one
    (the article's ``Executor`` and ``ExecQueue``). Threads start when there is work. All
    methods may be called from any thread.
    """

    def __init__(self, max_threads: int = COMPUTE_THREADS) -> None:
        self.max_threads = max_threads
        self._joiner = Joiner()
        self._condition = threading.Condition()  # guards what follows
        self._queues: dict[str, deque[Callable[[], object]]] = {}
        self._turns: deque[str] = deque()  # the queues that have jobs
        self._threads: set[threading.Thread] = set()
        self._waiting = 0  # jobs that no thread has taken
        self._idle = 0
        self._named = 0
        self._linger = False

    @property
    def threads(self) -> int:
        """How many threads there are."""
        with self._condition:
            return len(self._threads)

    def resize(self, max_threads: int) -> None:
        """Change how many threads there may be: more at once where jobs wait for one, fewer
        as they finish what they do."""
        with self._condition:
            self.max_threads = max_threads
            free = max_threads - len(self._threads)
            for _ in range(min(free, self._waiting - self._idle)):
                try:
                    self._start_thread()
                except (RuntimeError, MemoryError):
                    return  # those that there are do it

    def submit(self, queue: str, job: Callable[[], object]) -> None:
        """Run ``job()``, which must not raise, after those before it in its queue.

        Raises what ``Thread.start`` does, and forgets the job, when the system refuses a
        thread and there is no other that would come to it.
        """
        with self._condition:
            jobs = self._queues.get(queue)
            if jobs is None:
                self._queues[queue] = deque([job])
                self._turns.append(queue)
            else:
                jobs.append(job)
            self._waiting += 1
            # An idle thread counts as idle until it has really woken up.
            if self._waiting <= self._idle:
                self._condition.notify()
            elif len(self._threads) < self.max_threads:
                try:
                    self._start_thread()
                except (RuntimeError, MemoryError):
                    if not self._threads:
                        self._forget_last(queue)
                        raise
                    # Those that there are come to it.

    def _start_thread(self) -> None:
        self._named += 1
        thread = threading.Thread(
            target=self._run, name=f"protoserve-compute-{self._named}", daemon=True
        )
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)  # it never was: nobody may wait for its end
            raise

    def _forget_last(self, queue: str) -> None:
        jobs = self._queues[queue]
        jobs.pop()
        if not jobs:
            del self._queues[queue]
            self._turns.remove(queue)
        self._waiting -= 1

    def linger(self, on: bool) -> None:
        """Whether idle threads wait for more, as they do while a server runs."""
        with self._condition:
            self._linger = on
            if not on:
                self._condition.notify_all()

    def join(self, timeout: float | None) -> bool:
        """Wait until the threads have ended, unless this is one. Returns whether they have."""
        with self._condition:
            threads = list(self._threads)
        if threading.current_thread() in threads:
            return False
        return self._joiner.join(threads, timeout)

    def owns(self, thread: threading.Thread) -> bool:
        """Whether ``thread`` is one of them."""
        with self._condition:
            return thread in self._threads

    def _stays_idle(self) -> bool:
        return not self._turns and self._linger and len(self._threads) <= self.max_threads

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._turns and self._linger:
                    self._idle += 1
                    woken = self._condition.wait(IDLE_TIME)
                    self._idle -= 1
                    if woken and self._stays_idle():
                        continue  # another one had just ended a job, and took this one, too
                if not self._turns or len(self._threads) > self.max_threads:
                    self._condition.notify()  # perhaps it was woken for a job
                    self._threads.discard(threading.current_thread())
                    return
                queue = self._turns.popleft()
                jobs = self._queues[queue]
                job = jobs.popleft()
                self._waiting -= 1
                if jobs:
                    self._turns.append(queue)
                else:
                    del self._queues[queue]
            try:
                job()
            except BaseException:
                logger.exception("what follows a go task raised")
            del job
