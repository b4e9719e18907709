"""Blocked: an ``async`` command that waits for long, and who may end that."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from protoserve_redis.session import RedisSession
from protoserve_redis.values import NO_REPLY, NULL_ARRAY, RedisError


class Blocked:
    """The wait of a command with the flag ``blocking``; ``session.blocked`` holds it.

    Made and ended in the command's own coroutine. CLIENT UNBLOCK calls it, and ``leave``
    is for a client that is gone, both on any thread: the first of them cancels the
    coroutine, so that nothing is taken out of a queue for nobody.
    """

    __slots__ = ("_connection", "_left", "_loop", "_session", "_task", "ended", "outcome")

    def __init__(self, task: Any, session: RedisSession) -> None:
        self._connection = task.connection
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._left = False
        self.ended = False
        """Whether it was ended before the command had an answer."""
        self.outcome: Any = NULL_ARRAY
        """What is answered then."""
        session.blocked = self
        if not session.watches_end:
            # One callback a connection: they are kept until it closes.
            session.watches_end = True
            self._connection.on_peer_end(lambda _: leave(session))
        # For ever would hold up the stop: as if its time were over.
        task.on_stopping(lambda _: self.stop())
        if self._connection.closed or self._connection.peer_ended:
            # Told before there was somebody to tell. One that asks for what is there, as
            # the last thing it says, gets it: this is too late then.
            self._end_soon(NO_REPLY)

    @property
    def gone(self) -> bool:
        """Whether the client has closed while it waited, or its end of the connection: over
        TCP that is all that is seen of one that closed."""
        return self._left or (self.ended and self.outcome is NO_REPLY)

    def __call__(self, error: RedisError | None) -> bool:
        """End the wait with an error, or with None as when its time is over."""
        return self._end_soon(NULL_ARRAY if error is None else error)

    def leave(self) -> None:
        """The client is gone."""
        self._left = True
        self._end_soon(NO_REPLY)

    def stop(self) -> None:
        """The server stops."""
        self._end_soon(NULL_ARRAY)

    def end(self) -> None:
        """The command has ended."""
        self._session.blocked = None
        if self.ended and self._task is not None:
            self._task.uncancel()

    def _end_soon(self, outcome: Any) -> bool:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end, outcome)
        return True

    def _end(self, outcome: Any) -> None:
        # In the loop: it may have ended by itself meanwhile, or been ended before.
        if self._session.blocked is self and not self.ended and self._task is not None:
            self.ended = True
            self.outcome = outcome
            self._task.cancel()


def leave(session: RedisSession) -> None:
    """A client is gone: end what it waits for. Any thread."""
    blocked = session.blocked
    if isinstance(blocked, Blocked):
        blocked.leave()
