"""Deadline: which time limit of a connection runs, and when the poller looks."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from protoserve.events import CloseReason
from protoserve.params import ServerParams

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry
    from protoserve.kernel.poller import TimerEntry


class Limit:
    """A time limit, and why a connection is closed that exceeded it."""

    __slots__ = ("name", "reason")

    def __init__(self, name: str, reason: CloseReason) -> None:
        self.name = name
        self.reason = reason

    def __repr__(self) -> str:
        return self.name


NO_LIMIT: Final = Limit("NO_LIMIT", CloseReason.NOT_CLOSED)
"""The peer is not waited for."""
FIRST: Final = Limit("FIRST", CloseReason.NO_REQUEST)
"""For the first byte of the first request: ``peer_response_timeout``."""
KEEP_ALIVE: Final = Limit("KEEP_ALIVE", CloseReason.IDLE)
"""For the first byte of another: ``keep_alive_timeout``."""
RECEIVE: Final = Limit("RECEIVE", CloseReason.REQUEST_TOO_SLOW)
"""For a step, and the whole, of a request that has begun: ``peer_response_timeout``,
``receive_timeout`` and ``receive_rate``."""
TAKE: Final = Limit("TAKE", CloseReason.REPLY_NOT_TAKEN)
"""For a step, and the whole, of what the peer is to take: ``peer_response_timeout`` and
``send_timeout``."""
LINGER: Final = Limit("LINGER", CloseReason.NOT_CLOSED)
"""For the peer to end its side, or to take what it was sent, after the last word."""


class Deadline:
    """One deadline at a time, and the limits that a connection has been given.

    Touched by the holder of the connection's lock; ``limit`` and ``idle_since`` may be read
    by any thread, for a moment's truth. Times are seconds of the poller's clock.
    """

    __slots__ = (
        "_entry",
        "_timer",
        "at",
        "first_wait",
        "held_at",
        "idle_since",
        "keep_alive",
        "keep_alive_limit",
        "limit",
        "looks_at",
        "receive_by",
        "receive_limit",
        "send_by",
    )

    def __init__(self, entry: CommConnEntry) -> None:
        # First what each request needs: the compiled build lays it out in this order.
        self.limit = NO_LIMIT
        self.at = inf
        self.looks_at = inf
        """When the poller looks; not later than ``at``, but it may be long before."""
        self.receive_by: float | None = None
        """When the request that has begun must be whole; ``None``: none has begun."""
        self.idle_since = entry.communicator.poller.time()
        """Since when it waits for a request, or the rest of one."""
        self.take_limits(entry.service.params)
        self.held_at: float | None = None
        """Since when ``receive_by`` stands still: the peer is not waited for. Where a body is
        on its way only."""
        self.send_by: float | None = None
        """When the reply that waits for the peer must be taken; ``None``: none waits."""
        self._entry: CommConnEntry | None = entry
        self._timer: TimerEntry | None = None

    def take_limits(self, params: ServerParams) -> None:
        """Those of a server."""
        self.keep_alive_limit = params.keep_alive_timeout
        """Of the replies to come, unless they say otherwise."""
        self.keep_alive = self.keep_alive_limit
        """Of the last reply."""
        self.first_wait = params.peer_response_timeout
        self.receive_limit = params.receive_timeout

    def arm(self, limit: Limit, at: float) -> None:
        """From now on this limit runs. The poller has a timer only where none is due early
        enough."""
        self.limit = limit
        self.at = at
        entry = self._entry
        if at < self.looks_at and entry is not None:
            communicator = entry.communicator
            if self._timer is not None:
                communicator.poller.cancel(self._timer)
            self.looks_at = at
            self._timer = communicator.poller.call_at(at, communicator.on_deadline, entry)

    def clear(self) -> None:
        """No limit runs. The poller may look once more, and find nothing."""
        self.limit = NO_LIMIT
        self.at = inf

    def hold(self, now: float) -> None:
        """The peer is not waited for, and the time for its request stands still."""
        if self.held_at is None:
            self.held_at = now

    def go_on(self, now: float) -> None:
        """The peer is waited for again."""
        if self.held_at is not None:
            if self.receive_by is not None:
                self.receive_by += now - self.held_at
            self.held_at = None

    def body_ended(self) -> None:
        """The rest of the request is there, or will not come."""
        self.receive_by = self.held_at = None
        if self.limit is not TAKE:
            self.clear()

    def fired(self, now: float) -> bool:
        """The poller looks. False where this is not the timer that counts, since another took
        its place when it could not be cancelled any more."""
        if self.looks_at > now:
            return False
        self._timer = None
        self.looks_at = inf
        return True

    def stop(self) -> None:
        """No limit runs ever again: the poller keeps nothing, and this not its connection,
        which keeps it."""
        self.clear()
        entry, self._entry = self._entry, None
        if self._timer is not None and entry is not None:
            entry.communicator.poller.cancel(self._timer)
            self._timer = None
            self.looks_at = inf
