"""WaitGroup: lets a thread wait for work elsewhere."""

from __future__ import annotations

import contextlib
import threading

from protoserve.errors import UsageError
from protoserve.kernel.scheduler import get_scheduler


class WaitGroup:
    """Counts what has to end (the article's ``WaitGroup``). Any thread.

    Raises :class:`~protoserve.errors.UsageError` for a negative count, with which Workflow's
    would never wait.
    """

    def __init__(self, count: int = 0) -> None:
        if count < 0:
            raise UsageError(f"WaitGroup({count!r}): expected how many things have to end, from 0")
        self._condition = threading.Condition()
        self._count = count

    def add(self, n: int = 1) -> None:
        """``n`` things more have to end. Raises ``UsageError`` when fewer than none would."""
        with self._condition:
            if self._count + n < 0:
                raise UsageError("WaitGroup: done() was called more often than add()")
            self._count += n
            if self._count == 0:
                self._condition.notify_all()

    def done(self) -> None:
        """One thing has ended."""
        self.add(-1)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything has ended; False when it has not within ``timeout`` s.

        In a handler that is a function another handler may run meanwhile in its place, so
        that work of the engine's own, such as a timer, can be waited for. Raises
        ``UsageError`` in a coroutine of a server's, where it would stop the loop.
        """
        with self._condition:
            if self._count == 0 or (timeout is not None and timeout <= 0):
                return self._count == 0
        if timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)  # more is an OverflowError
        engine = get_scheduler().engine_here()
        with contextlib.nullcontext() if engine is None else engine.lend(), self._condition:
            return self._condition.wait_for(lambda: self._count == 0, timeout)
