"""A watch on calls that may never end."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING, Final

from protoserve.testing.conformance.error import ConformanceError

if TYPE_CHECKING:
    from protoserve.testing.conformance.run import Run

_LOOKS: Final = 8
"""How often it looks while the time passes."""


class Stuck(BaseException):
    """Raised in the thread of a call that does not end; no parser takes it for a fault."""


class Watch:
    """Ends a call of the parser that takes more than ``limit`` seconds of the process' CPU time,
    so that a machine that is busy with others does not count. Only Python code can be ended.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._over = threading.Event()
        self._owner = threading.get_ident()
        self._thread = threading.Thread(target=self._look, name="protoserve check", daemon=True)
        self._calls = 0
        self._inside = False
        self._run: Run | None = None
        self._what = ""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        while True:
            try:
                self._over.set()
                self._thread.join()
                for _late in range(2):
                    pass  # where one is raised that comes too late
                return
            except Stuck:
                continue

    def enter(self, run: Run, what: str) -> None:
        """A call begins."""
        self._run = run
        self._what = what
        self._calls += 1
        self._inside = True

    def leave(self) -> None:
        """It has ended."""
        self._inside = False

    def error(self) -> ConformanceError:
        """What is said of the call that was ended."""
        return ConformanceError(
            f"{self._what} hangs: it did not return within {self._limit:g} s of CPU time",
            fed=() if self._run is None else self._run.fed,
            remedy="next_message returns NEED_DATA where no message is whole, after feed_eof too; "
            "a loop must take something in each turn. Slow on purpose: give call_limit=seconds.",
        )

    def _look(self) -> None:
        calls = -1
        since = 0.0
        while not self._over.wait(self._limit / _LOOKS):
            now = time.process_time()
            if not self._inside or calls != self._calls:
                calls = self._calls
                since = now
            elif now - since > self._limit:
                # Not taken back by setting none: in CPython 3.11 the thread would look for it
                # for ever, and hang where it is traced.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._owner), ctypes.py_object(Stuck)
                )
                since = now
