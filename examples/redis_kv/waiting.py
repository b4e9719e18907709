"""Clients that wait for a key: who waits, in which order, and how each is served."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from protoserve import CommConnection, MailboxTask, TimerTask

NOTHING = object()
"""What an attempt returns when there was nothing to take."""


class Queues(Protocol):
    """What a database offers to those who wait."""

    data: dict[bytes, Any]
    waiting: dict[bytes, dict[Waiter, None]]
    ready: deque[bytes]


class Waiter:
    """A client that waits until ``attempt(key)`` finds something at one of its keys.

    Everything but ``end`` is called under the store's lock.
    """

    __slots__ = ("_attempt", "_connection", "_keys", "_queues", "reply", "task")

    def __init__(
        self,
        connection: CommConnection,
        queues: Queues,
        keys: tuple[bytes, ...],
        attempt: Callable[[bytes], Any],
    ) -> None:
        self._connection = connection
        self._queues = queues
        self._keys = keys
        self._attempt = attempt
        self.reply: Any = NOTHING  # what it will get
        self.task: TimerTask | MailboxTask[None] | None = None
        for key in keys:
            queues.waiting.setdefault(key, {})[self] = None

    @property
    def gone(self) -> bool:
        """Whether the client left: it closed the connection, or its end of it."""
        return self._connection.closed or self._connection.peer_ended

    def try_key(self, key: bytes) -> bool:
        """Take something from there, if there is something; then it waits no more."""
        self.reply = self._attempt(key)
        if self.reply is NOTHING:
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """Take it out of the queues."""
        for key in self._keys:
            queue = self._queues.waiting.get(key)
            if queue is not None:
                queue.pop(self, None)
                if not queue:
                    del self._queues.waiting[key]

    def end(self) -> None:
        """Let its request go on: without the lock, because the reply is sent from here."""
        if isinstance(self.task, TimerTask):
            self.task.cancel()
        elif self.task is not None:
            self.task.send(None)


def serve(queues: Queues, lock: threading.RLock) -> None:
    """Give what is at the keys that became ready to who waited longest for each."""
    served = []  # or gone
    with lock:
        while queues.ready:
            key = queues.ready.popleft()
            for waiter in list(queues.waiting.get(key, ())):
                if key not in queues.data:
                    break
                if waiter.gone:
                    waiter.forget()
                    served.append(waiter)
                elif waiter.try_key(key):
                    served.append(waiter)
    for waiter in served:
        waiter.end()
