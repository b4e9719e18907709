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
from record_transport import RecordTransport

from protoserve import get_scheduler
from protoserve.kernel import service

# Wheels that tests build are not compiled, which takes a minute.
os.environ["PROTOSERVE_PURE"] = "1"

_FDS = Path("/proc/self/fd")
_PATIENCE = 5.0

# libuv's first loop opens a pipe that the process keeps.
uvloop.new_event_loop().close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        choices=("socket", "records"),
        default="socket",
        help="what servers of this process read through; see tests/record_transport.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sockets(reason): looks at how sockets behave; not for other transports"
    )
    if config.getoption("--transport") == "records":
        service.SocketTransport = RecordTransport  # type: ignore[misc]


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("sockets")
    if mark is not None and item.config.getoption("--transport") != "socket":
        pytest.skip(mark.args[0])


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
