"""What belongs to one run of a server, from its start to its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protoserve.application import StartHook, StopHook
    from protoserve.kernel.engine import Source


class Run:
    """One run; the next start makes another. What is late, such as a hook that was not waited
    for, holds the run that it is of, and cannot be taken for the next one's.

    Guarded by the server's condition, where nothing else is said.
    """

    __slots__ = (
        "abandoned",
        "closing",
        "cut_at",
        "cut_count",
        "cutting",
        "drained",
        "ended",
        "listener",
        "listens",
        "start_hook",
        "stop_hook",
        "unwanted",
    )

    def __init__(self) -> None:
        self.listener: Source | None = None
        self.listens = False  # observers were told so
        self.start_hook: StartHook | None = None  # written by the thread that starts the server
        self.stop_hook: StopHook | None = None  # once on_start has ended well
        # Shut down while it starts. Written without the lock, too: by signal handlers.
        self.unwanted = False
        self.closing = False  # shut down, and the listener is yet to be dealt with
        self.cut_at: float | None = None  # when what runs now is cut: the start, requests, on_stop
        self.cutting = False
        self.cut_count = 0
        self.abandoned = False  # something still ran when the rest was cut
        self.drained = False  # the last connection and series have ended, or are not waited for
        self.ended = False

    def give_time(self, timeout: float | None) -> None:
        """What runs now has so many seconds from now on."""
        self.cut_at = None if timeout is None else time.monotonic() + timeout
