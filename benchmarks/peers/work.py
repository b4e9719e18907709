"""What a request of the section "handlers that block" does before its answer, by path.

The same for every peer: the handler calls ``WORK[path]()`` and answers ``Hello, World!``.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import count

ONE_IN = 10
_MIXED = 0.004
_requests = count(1)


def nothing() -> None:
    """Answer at once."""


def compute() -> None:
    """Keep this thread's processor busy for a millisecond of its own time."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass


def sometimes() -> None:
    """Sleep in one call out of ten, as a cache does that misses now and then."""
    if next(_requests) % ONE_IN == 0:
        time.sleep(_MIXED)


WORK: dict[str, Callable[[], object]] = {
    "/nothing": nothing,
    "/cpu-1": compute,
    "/sometimes": sometimes,
    **{f"/sleep-{ms}": partial(time.sleep, ms / 1000) for ms in (1, 3, 4, 10, 20)},
}
