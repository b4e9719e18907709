"""The monitor of handler threads: sees that a handler keeps the leader, and has it replaced."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from protoserve.kernel.leader_followers import LeaderFollowers, Worker

BLOCK_THRESHOLD: Final = 0.005
"""Seconds a handler may keep the leader before a follower is promoted."""

BLOCKED_TICK: Final = 0.001
"""How often to look after a handler was found to block: they tend to come in numbers."""

BLOCKED_LOOKS: Final = 20
"""How many such looks there are before it is rarely looked again."""

_IDLE_LOOKS: Final = 4
"""How many looks there are at a leader that waits before the monitor rests: a busy server's events
come in turns, and to be woken for each costs more than to look once more."""

_BUSY: Final = 0.5
"""Above this share of a tick on the CPU a handler computes, and does not wait."""

Mark: TypeAlias = "tuple[int, int, Worker | None]"
"""Where the leader was seen: two that are equal are one handler."""


class Monitor:
    """The thread that looks at the leader of ``threads``, and rests while that waits."""

    def __init__(self, threads: LeaderFollowers, threshold: float) -> None:
        self._threads = threads
        self._threshold = threshold
        self._park = threading.Lock()
        self._park.acquire()
        self.ident = 0
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises ``RuntimeError`` when the system has no thread for it."""
        thread = threading.Thread(target=self._run, name="protoserve-monitor", daemon=True)
        thread.start()
        self.thread = thread

    def _run(self) -> None:
        self.ident = threading.get_ident()
        try:
            self.watch()
        finally:
            self.ident = 0

    def watch(self) -> None:
        """Look until the threads are to stop."""
        threads = self._threads
        poller = threads.poller
        seen: Mark | None = None
        cpu = looked = 0.0
        looks = idle = 0
        while not threads.stopping:
            time.sleep(BLOCKED_TICK if looks else self._threshold)
            if poller.waiting:
                seen = None
                idle += 1
                if idle >= _IDLE_LOOKS:
                    self._wait_parked()
                    idle = 0
                continue
            idle = 0
            if looks:
                looks -= 1
            poller.refresh()
            leader = threads.leader
            mark = (poller.turns, len(poller.ready), leader)
            if mark != seen or leader is None or threads.baton.locked():
                seen = mark
                looked = time.monotonic()
                cpu = 0.0 if leader is None else leader.cpu_time()
                continue
            seen = None
            share = (leader.cpu_time() - cpu) / (time.monotonic() - looked)
            if threads.take_over(mark, share < _BUSY):  # False for NaN
                looks = BLOCKED_LOOKS

    def _wait_parked(self) -> None:
        """Sleep until the leader has events again, so that an idle server wakes nobody."""
        # The leader clears `waiting`, passes through the baton, then reads `unwatched`; we
        # write `unwatched`, pass through the mutex, then read `waiting`: one of the two sees
        # the other's write, so the leader never runs a handler unwatched.
        threads = self._threads
        with threads.mutex:
            threads.unwatched = True
        with threads.mutex:
            if threads.unwatched and (threads.stopping or not threads.poller.waiting):
                threads.unwatched = False
                return
        self._park.acquire()

    def unpark(self) -> None:
        """Look again. With the mutex."""
        if self._threads.unwatched:
            self._threads.unwatched = False
            self._park.release()
