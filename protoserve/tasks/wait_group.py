"""WaitGroup: lets a thread wait for work elsewhere."""

from __future__ import annotations

import threading

from protoserve.errors import UsageError


class WaitGroup:
    """Counts what has to end (the article's ``WaitGroup``). Any thread."""

    def __init__(self, count: int = 0) -> None:
        self._condition = threading.Condition()
        self._count = 0
        self.add(count)

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
        """Wait until everything has ended; False when it has not within ``timeout`` s."""
        with self._condition:
            return self._condition.wait_for(lambda: self._count == 0, timeout)
