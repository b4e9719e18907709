"""What a block has left behind: threads, sockets, files, an engine that runs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from protoserve.errors import ConfigError
from protoserve.kernel.engine import loop_factory
from protoserve.kernel.scheduler import get_scheduler
from protoserve.testing.memory import is_number

_TABLES: Final = (Path("/proc/self/fd"), Path("/dev/fd"))
"""Where the system lists the descriptors of a process: Linux, and others."""

_INTERVAL: Final = 0.005

PATIENCE: Final = 5.0
"""Seconds that what ends by itself has for it."""


class _Descriptor(NamedTuple):
    number: int
    what: str


def _describe(number: int, entry: Path) -> str:
    """What a descriptor is. Raises ``OSError`` for one that is not open any more."""
    kind = os.fstat(number).st_mode
    with contextlib.suppress(OSError):
        return os.readlink(entry)
    for name, test in (("socket", stat.S_ISSOCK), ("pipe", stat.S_ISFIFO), ("file", stat.S_ISREG)):
        if test(kind):
            return name
    return "descriptor"


def _descriptors() -> set[_Descriptor]:
    """Every open descriptor; empty where the system does not tell."""
    found = set()
    for table in _TABLES:
        if table.is_dir():
            for entry in table.iterdir():
                with contextlib.suppress(OSError):  # the one that lists the folder
                    found.add(_Descriptor(int(entry.name), _describe(int(entry.name), entry)))
            break
    return found


def _threads() -> set[threading.Thread]:
    """Those that run, but for the pool of a loop that the caller is in: that ends with it."""
    threads = set(threading.enumerate())
    if asyncio._get_running_loop() is None:
        return threads
    return {thread for thread in threads if not thread.name.startswith("asyncio_")}


class _State:
    """What there is at one moment."""

    def __init__(self) -> None:
        self.threads = _threads()
        self.descriptors = _descriptors()
        self.running = get_scheduler().running

    def left_since(self, before: _State) -> list[str]:
        """What there was not ``before``, in words. Where a server ran already, its engine and
        the threads that serve it are no leftovers."""
        left = [
            f"thread {thread.name!r}"
            for thread in self.threads - before.threads
            if not (before.running and thread.name.startswith("protoserve-"))
        ]
        left += [
            f"descriptor {number} ({what})"
            for number, what in self.descriptors - before.descriptors
        ]
        if self.running and not before.running:
            left.append("an engine that runs: a server that was not stopped, or a timer")
        return sorted(left)


@contextlib.contextmanager
def no_leaks(patience: float = PATIENCE) -> Iterator[None]:
    """A block that is to leave nothing behind. Raises ``AssertionError`` at its end, with a
    list, where ``patience`` seconds later threads, sockets, pipes or files are there that were
    not there at its beginning, or an engine still runs. What the block raises goes first.

    It sees all of the process, so clients have to be closed in the block as well; and what
    another thread opens meanwhile counts. Descriptors are seen on Linux and macOS. Raises
    :class:`~protoserve.errors.ConfigError` where ``patience`` is no number of seconds.
    """
    if not is_number(patience) or patience < 0:
        raise ConfigError(f"patience={patience!r}: expected seconds, 0 or more")
    factory = loop_factory()
    if factory is not None:
        factory().close()  # the first of uvloop's opens a pipe that the process keeps
    before = _State()
    yield
    end = time.monotonic() + patience
    while left := _State().left_since(before):
        gc.collect()
        if time.monotonic() > end:
            raise AssertionError(
                f"left behind: {', '.join(left)}; stop the servers, and close the clients and "
                "files, that the test began with"
            )
        time.sleep(_INTERVAL)
