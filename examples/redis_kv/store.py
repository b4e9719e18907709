"""The databases, what a key holds, and the decorator that makes functions commands.

The table's lock guards everything: a command runs under it, a transaction as a whole.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from examples.redis_kv.sorted_set import SortedSet
from examples.redis_kv.waiting import Waiter, serve
from protoserve import empty
from protoserve_redis import CommandTable, RedisError

DATABASES = 16
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"

List = deque

TYPES: dict[type, str] = {
    bytes: "string", dict: "hash", deque: "list", set: "set", SortedSet: "zset",
}  # fmt: skip
"""What a key may hold, and Redis' word for it."""

V = TypeVar("V")

commands = CommandTable(databases=DATABASES)
lock = commands.lock


def now_ms() -> int:
    """The time that deadlines are compared with, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Database:
    """The keys of one database. Every method is called under the lock.

    Whoever changes a value in place calls ``changed`` or ``shrunk`` afterwards: clients
    that watch the key, or wait for it, depend on that.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.data: dict[bytes, Any] = {}
        self.deadlines: dict[bytes, int] = {}
        self._due: list[tuple[int, int, bytes]] = []  # a heap; may hold what was revoked
        self._order = count()
        self.waiting: dict[bytes, dict[Waiter, None]] = {}  # in the order of their arrival
        self.ready: deque[bytes] = deque()  # changed, and somebody waits for it
        self.scans: dict[bytes | None, list[Any]] = {}

    def find(self, key: bytes) -> Any:
        """What the key holds, of whatever type; None when it is not there."""
        if key in self.deadlines and self.deadlines[key] <= now_ms():
            self.remove(key)
        return self.data.get(key)

    def get(self, key: bytes, kind: type[V]) -> V | None:
        """What the key holds, None when it is not there. Raises WRONGTYPE."""
        value = self.find(key)
        if value is None or type(value) is kind:
            return value
        raise RedisError(WRONG_TYPE)

    def get_or_make(self, key: bytes, kind: type[V]) -> V:
        """What the key holds, or what it holds from now on: call ``changed``, too."""
        value = self.get(key, kind)
        if value is None:
            value = self.data[key] = kind()
        return value

    def changed(self, key: bytes) -> None:
        """Tell those who watch the key or wait for it."""
        commands.touch(self.number, key)
        if key in self.waiting:
            self.ready.append(key)

    def shrunk(self, key: bytes) -> None:
        """As ``changed``, after something was taken out: nothing is kept empty."""
        if not self.data[key]:
            self.remove(key)
        else:
            self.changed(key)

    def set(self, key: bytes, value: Any, *, keep_deadline: bool = False) -> None:
        """Let the key hold ``value``."""
        self.data[key] = value
        if not keep_deadline and self.deadlines:
            self.deadlines.pop(key, None)
        self.changed(key)

    def set_collection(self, key: bytes, value: Any) -> int:
        """Let the key hold ``value``, or nothing if that is empty. Returns its length."""
        if value:
            self.set(key, value)
        else:
            self.remove(key)
        return len(value)

    def remove(self, key: bytes) -> bool:
        """Forget the key; False when it was not there."""
        if self.data.pop(key, None) is None:
            return False
        self.deadlines.pop(key, None)
        commands.touch(self.number, key)
        return True

    def clear(self) -> None:
        """Forget all keys."""
        for key in self.data:
            commands.touch(self.number, key)
        self.data.clear()
        self.deadlines.clear()
        self._due.clear()
        self.scans.clear()

    # -- expiry ------------------------------------------------------------------------

    def set_deadline(self, key: bytes, at_ms: int) -> None:
        """Let the key, which exists, vanish at that time: at once when it has passed."""
        if at_ms <= now_ms():
            self.remove(key)
            return
        self.deadlines[key] = at_ms
        heapq.heappush(self._due, (at_ms, next(self._order), key))
        if len(self._due) > 2 * len(self.deadlines) + 64:  # mostly revoked ones
            self._due = [(at, next(self._order), k) for k, at in self.deadlines.items()]
            heapq.heapify(self._due)
        commands.touch(self.number, key)

    def expire(self, most: int = 100) -> None:
        """Remove some of the keys whose time has come; every command does so."""
        now = now_ms()
        while self._due and self._due[0][0] <= now and most:
            at, _, key = heapq.heappop(self._due)
            if self.deadlines.get(key) == at:
                self.remove(key)
                most -= 1


databases = [Database(number) for number in range(DATABASES)]


# -- commands --------------------------------------------------------------------------


def command(
    name: str,
    arity: int,
    flags: str = "write",
    keys: tuple[int, int, int] = (1, 1, 1),
    *,
    group: str,
    with_task: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make ``run(database, *arguments)`` a command; with ``with_task`` the task comes
    before the arguments. Those who wait for what it made ready are served after it."""

    def decorate(run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def call(task: Any, *arguments: bytes) -> Any:
            db = databases[task.connection.state.db]
            if db.deadlines:
                db.expire()
            value = run(db, task, *arguments) if with_task else run(db, *arguments)
            if db.ready:
                # Not now: others see neither half a transaction nor our lock's holder.
                task.series.push_back(empty(lambda _: serve(db, lock)))
            return value

        commands.command(
            name,
            arity=arity,
            flags=tuple(flags.split()),
            keys=keys,
            group=group,
            summary=(run.__doc__ or "").replace("\n    ", " "),
        )(call)
        return run

    return decorate
