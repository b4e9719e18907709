"""What went wrong, what was counted, and what is left over."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import sys
import threading
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from protoserve import CommConnection, CommService, SubTask, get_scheduler

_DESCRIPTORS = Path("/proc/self/fd")
_OURS = (CommConnection, CommService, SubTask)


class DeliberateError(Exception):
    """Raised by handlers that are meant to fail: may be logged."""


class Ledger(logging.Handler):
    """Collects faults, from the script itself, from the log and from threads that die.
    Any thread."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._guard = threading.RLock()
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.run = "before the first run"
        logger = logging.getLogger("protoserve")
        logger.addHandler(self)
        logger.propagate = False
        logging.getLogger("asyncio").addHandler(self)
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: self._raised("a warning", message)
        threading.excepthook = lambda args: self._raised("a thread ended", args.exc_value)
        sys.unraisablehook = lambda args: self._raised("unraisable", args.exc_value)

    def fault(self, what: str) -> None:
        """Something is wrong."""
        with self._guard:
            self.faults.append(f"{self.run}: {what}")
            print(f"FAULT  {self.faults[-1]}", file=sys.stderr, flush=True)

    def count(self, what: str, number: int = 1) -> None:
        """Something happened, as it should."""
        with self._guard:
            self.counts[what] += number

    def emit(self, record: logging.LogRecord) -> None:
        """What is logged as an error is one, unless a handler was meant to fail."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, DeliberateError):
            self.count("failures as asked for")
        else:
            self._raised(f"logged: {record.getMessage()}", error)

    def _raised(self, what: str, error: BaseException | str | None) -> None:
        if isinstance(error, str):
            error = Warning(error)
        text = "".join(traceback.format_exception(error)) if error is not None else ""
        self.fault(f"{what}\n{text}".rstrip())


class Leftovers:
    """What this process had open when it was made; ``found`` tells what is there since."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()
        self._objects = _objects()
        self._running = get_scheduler().running  # after a fault

    def found(self) -> list[str]:
        """Threads, descriptors, objects of ours and engines that are left."""
        gc.collect()
        left = [f"thread {thread.name}" for thread in set(threading.enumerate()) - self._threads]
        descriptors = _descriptors() - self._descriptors
        left += [f"descriptor {number} ({what})" for number, what in descriptors]
        objects = _objects()
        left += [f"{number} × {name}" for name, number in (objects - self._objects).items()]
        if get_scheduler().running and not self._running:
            left.append("a running scheduler")
        return left


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.is_dir() else ():
        with contextlib.suppress(OSError):  # the one that listed the folder
            found.add((entry.name, os.readlink(entry)))
    return {item for item in found if not item[1].startswith("/")}


def _objects() -> Counter[str]:
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, _OURS))


def use_one_heap() -> None:
    """Have the C library keep one heap for all threads, where that can be told: each thread's
    own would hide small leaks behind what it keeps."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX of glibc


def resident_bytes() -> int:
    """Resident memory of this process, after everything that is free was given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0  # this system does not tell
    return pages * os.sysconf("SC_PAGE_SIZE")


class Watched:
    """Counts what was promised and what was kept, for callbacks that run exactly once."""

    def __init__(self, what: str, ledger: Ledger) -> None:
        self._what = what
        self._ledger = ledger
        self._guard = threading.Lock()
        self._pending: dict[int, int] = {}
        self._made = 0

    def promise(self) -> Any:
        """A callback that has to run once."""
        with self._guard:
            number = self._made
            self._made += 1
            self._pending[number] = 0

        def keep(*_: object) -> None:
            with self._guard:
                again = number not in self._pending
                self._pending.pop(number, None)
            if again:
                self._ledger.fault(f"{self._what}: called twice")

        return keep

    @property
    def missing(self) -> int:
        """How many were never called."""
        return len(self._pending)
