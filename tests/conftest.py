"""What holds for every test: afterwards no thread, descriptor or engine of ours is left."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from protoserve import get_scheduler

_FDS = Path("/proc/self/fd")
_PATIENCE = 5.0

# libuv's first loop opens a pipe that the process keeps.
uvloop.new_event_loop().close()


def _descriptors() -> set[tuple[str, str]]:
    """Every open descriptor with what it is; empty where the system does not tell."""
    found = set()
    for entry in _FDS.iterdir() if _FDS.is_dir() else ():
        try:
            found.add((entry.name, os.readlink(entry)))
        except OSError:  # the one that listed the folder
            continue
    return {item for item in found if not item[1].startswith("/")}


def _leftovers(threads: set[threading.Thread], fds: set[tuple[str, str]]) -> list[str]:
    left = [f"thread {thread.name}" for thread in set(threading.enumerate()) - threads]
    left += [f"descriptor {number} ({what})" for number, what in _descriptors() - fds]
    if get_scheduler().running:
        left.append("a running scheduler")
    return left


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    threads = set(threading.enumerate())
    fds = _descriptors()
    yield
    end = time.monotonic() + _PATIENCE
    while left := _leftovers(threads, fds):
        gc.collect()
        if time.monotonic() > end:
            pytest.fail("left behind: " + ", ".join(left))
        time.sleep(0.005)
