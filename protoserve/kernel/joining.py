"""Waiting for threads to end, from several threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection


class Joiner:
    """Joins the threads of one owner.

    ``Thread.join`` and ``is_alive`` of the same thread by two callers at the same moment may
    raise in CPython before 3.13, so one joins after the other. Any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def alive(self, threads: Collection[threading.Thread]) -> list[threading.Thread]:
        """Those that have not ended; all of them while another caller joins."""
        if not self._lock.acquire(blocking=False):
            return list(threads)
        try:
            return [thread for thread in threads if thread.is_alive()]
        finally:
            self._lock.release()

    def join(self, threads: Collection[threading.Thread], timeout: float | None) -> bool:
        """Wait until they have ended, at most ``timeout`` seconds. Returns whether they
        have; False, too, while another caller has waited for so long."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            for thread in threads:
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            return not any(thread.is_alive() for thread in threads)
        finally:
            self._lock.release()
