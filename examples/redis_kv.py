"""A small store that speaks Redis: strings, expiry, hashes, lists, a blocking pop, transactions.

Run it with ``protoserve run redis examples.redis_kv:commands --bind 127.0.0.1:6380``. The
protocol, the connection's own commands, publish/subscribe and MULTI come from the table;
``redis_full.py`` has all the other commands.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from protoserve import empty
from protoserve_redis import (
    NULL_ARRAY,
    OK,
    CommandTable,
    RedisError,
    glob,
    integer,
    session_of,
    timeout,
)

commands = CommandTable(exists=lambda db, key: databases[db].find(key) is not None)

V = TypeVar("V")


def now_ms() -> int:
    """What deadlines are compared with: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Database:
    """The keys of one database. The table's lock guards it: every command runs under it, and
    a transaction as a whole."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.data: dict[bytes, Any] = {}
        self.deadlines: dict[bytes, int] = {}
        self.waiting: dict[bytes, dict[Waiter, None]] = {}  # in the order of their arrival

    def find(self, key: bytes) -> Any:
        """What the key holds, of whatever type; None when it is not there."""
        deadline = self.deadlines.get(key)
        if deadline is not None and deadline <= now_ms():
            self.remove(key, expired=True)
        return self.data.get(key)

    def get(self, key: bytes, kind: type[V]) -> V | None:
        """The same, of one type."""
        value = self.find(key)
        if value is None or type(value) is kind:
            return value
        raise RedisError("WRONGTYPE Operation against a key holding the wrong kind of value")

    def changed(self, key: bytes) -> None:
        """To be called after a value was changed in place: nothing is kept empty, and those
        who WATCH the key are told."""
        if not self.data[key] and type(self.data[key]) is not bytes:
            self.remove(key)
        else:
            commands.touch(self.number, key)

    def set(self, key: bytes, value: bytes) -> None:
        """Let the key hold a string, for ever."""
        self.data[key] = value
        if self.deadlines:
            self.deadlines.pop(key, None)
        commands.touch(self.number, key)

    def expire(self, key: bytes, at_ms: int) -> None:
        """Let the key vanish at that time."""
        self.deadlines[key] = at_ms
        commands.touch(self.number, key)
        self.find(key)

    def remove(self, key: bytes, *, expired: bool = False) -> bool:
        """Forget the key; False when it was not there."""
        self.deadlines.pop(key, None)
        commands.touch(self.number, key, expired=expired)
        return self.data.pop(key, None) is not None

    def all_keys(self) -> list[bytes]:
        """The keys that are there."""
        for key in list(self.deadlines):
            self.find(key)
        return list(self.data)


databases: list[Database] = [Database(number) for number in range(commands.databases)]


def database(task: Any) -> Database:
    """The one that the client has selected."""
    return databases[session_of(task).db]


# -- strings ---------------------------------------------------------------------------


@commands.command("GET", 2, ("readonly", "fast"), (1, 1, 1), "string")
def get(task: Any, key: bytes) -> bytes | None:
    """The string at a key."""
    value: bytes | None = databases[task.connection.state.db].get(key, bytes)
    return value


@commands.command("SET", -3, ("write", "denyoom"), (1, 1, 1), "string")
def set_(task: Any, key: bytes, value: bytes, *options: bytes) -> Any:
    """SET key value [NX | XX] [EX seconds | PX milliseconds]"""
    db = databases[task.connection.state.db]
    if not options:
        db.set(key, value)
        return OK
    condition, unit, time_left = b"", b"", b""
    words = iter(options)
    for word in map(bytes.upper, words):
        if word in (b"NX", b"XX") and condition in (b"", word):
            condition = word
        elif word in (b"EX", b"PX") and unit in (b"", word) and (given := next(words, None)):
            unit, time_left = word, given
        else:
            raise RedisError("ERR syntax error")
    milliseconds = integer(time_left) * (1000 if unit == b"EX" else 1) if unit else 0
    if unit and not 0 < milliseconds < 2**63 - now_ms():
        raise RedisError("ERR invalid expire time in 'set' command")
    if condition and (db.find(key) is None) is (condition == b"XX"):
        return None
    db.set(key, value)
    if unit:
        db.expire(key, now_ms() + milliseconds)
    return OK


def _add(db: Database, key: bytes, number: int) -> int:
    current = db.get(key, bytes)
    number += 0 if current is None else integer(current)
    if not -(2**63) <= number < 2**63:
        raise RedisError("ERR increment or decrement would overflow")
    db.data[key] = b"%d" % number
    db.changed(key)
    return number


@commands.command("INCR", 2, ("write", "denyoom", "fast"), (1, 1, 1), "string")
def incr(task: Any, key: bytes) -> int:
    """Add one to the number at a key."""
    return _add(database(task), key, 1)


@commands.command("INCRBY", 3, ("write", "denyoom", "fast"), (1, 1, 1), "string")
def incrby(task: Any, key: bytes, increment: bytes) -> int:
    """Add to the number at a key."""
    return _add(database(task), key, integer(increment))


# -- keys ------------------------------------------------------------------------------


@commands.command("DEL", -2, ("write",), (1, -1, 1))
def delete(task: Any, *keys: bytes) -> int:
    """Forget keys; how many were there."""
    db = database(task)
    return sum(db.find(key) is not None and db.remove(key) for key in keys)


@commands.command("EXISTS", -2, ("readonly", "fast"), (1, -1, 1))
def exists(task: Any, *keys: bytes) -> int:
    """How many of the keys are there."""
    return sum(database(task).find(key) is not None for key in keys)


@commands.command("KEYS", 2, ("readonly",))
def keys_(task: Any, pattern: bytes) -> list[bytes]:
    """The keys that match a pattern."""
    return [key for key in database(task).all_keys() if glob(pattern).match(key)]


@commands.command("DBSIZE", 1, ("readonly", "fast"))
def dbsize(task: Any) -> int:
    """How many keys there are."""
    return len(database(task).all_keys())


@commands.command("FLUSHALL", 1, ("write",))
def flushall(task: Any) -> Any:
    """Forget everything."""
    for db in databases:
        for key in list(db.data):
            db.remove(key)
    return OK


@commands.command("EXPIRE", 3, ("write", "fast"), (1, 1, 1))
def expire(task: Any, key: bytes, seconds: bytes) -> int:
    """Let a key vanish in so many seconds; 0 without the key."""
    at = now_ms() + integer(seconds) * 1000
    if not -(2**63) <= at < 2**63:
        raise RedisError("ERR invalid expire time in 'expire' command")
    db = database(task)
    if db.find(key) is None:
        return 0
    db.expire(key, at)
    return 1


@commands.command("TTL", 2, ("readonly", "fast"), (1, 1, 1))
def ttl(task: Any, key: bytes) -> int:
    """Seconds until a key vanishes: -1 for never, -2 without the key."""
    db = database(task)
    if db.find(key) is None:
        return -2
    at = db.deadlines.get(key)
    return -1 if at is None else (max(at - now_ms(), 0) + 500) // 1000


# -- hashes ----------------------------------------------------------------------------


@commands.command("HSET", -4, ("write", "denyoom", "fast"), (1, 1, 1), "hash")
def hset(task: Any, key: bytes, *pairs: bytes) -> int:
    """Set fields; how many are new."""
    if len(pairs) % 2:
        raise RedisError("ERR wrong number of arguments for 'hset' command")
    db = database(task)
    fields = db.get(key, dict)
    if fields is None:
        fields = db.data[key] = {}
    before = len(fields)
    fields.update(zip(pairs[::2], pairs[1::2], strict=True))
    db.changed(key)
    return len(fields) - before


@commands.command("HGET", 3, ("readonly", "fast"), (1, 1, 1), "hash")
def hget(task: Any, key: bytes, field: bytes) -> bytes | None:
    """The value of a field."""
    return (database(task).get(key, dict) or {}).get(field)


@commands.command("HGETALL", 2, ("readonly",), (1, 1, 1), "hash")
def hgetall(task: Any, key: bytes) -> dict[bytes, bytes]:
    """All fields: a map in RESP3, a flat array in RESP2."""
    return dict(database(task).get(key, dict) or {})


@commands.command("HDEL", -3, ("write", "fast"), (1, 1, 1), "hash")
def hdel(task: Any, key: bytes, *names: bytes) -> int:
    """Forget fields; how many were there."""
    db = database(task)
    fields = db.get(key, dict) or {}
    count = sum(fields.pop(name, None) is not None for name in names)
    if count:
        db.changed(key)
    return count


# -- lists -----------------------------------------------------------------------------


def _put(db: Database, key: bytes, put: Callable[[deque[bytes], Any], None], what: Any) -> int:
    items = db.get(key, deque)
    if items is None:
        items = db.data[key] = deque()
    put(items, what)
    db.changed(key)
    return len(items)


def _push(task: Any, key: bytes, put: Callable[[deque[bytes], Any], None], what: Any) -> int:
    db = database(task)
    length = _put(db, key, put, what)
    if key in db.waiting:
        # Those who wait are served after this command, or after the whole transaction.
        task.series.push_back(empty(lambda _: serve(db, key)))
    return length


@commands.command("LPUSH", -3, ("write", "denyoom", "fast"), (1, 1, 1), "list")
def lpush(task: Any, key: bytes, *elements: bytes) -> int:
    """Put elements at the left end."""
    return _push(task, key, deque.extendleft, elements)


@commands.command("RPUSH", -3, ("write", "denyoom", "fast"), (1, 1, 1), "list")
def rpush(task: Any, key: bytes, *elements: bytes) -> int:
    """Put elements at the right end."""
    return _push(task, key, deque.extend, elements)


@commands.command("LLEN", 2, ("readonly", "fast"), (1, 1, 1), "list")
def llen(task: Any, key: bytes) -> int:
    """How many elements a list has."""
    return len(database(task).get(key, deque) or ())


@commands.command("LRANGE", 4, ("readonly",), (1, 1, 1), "list")
def lrange(task: Any, key: bytes, start: bytes, stop: bytes) -> list[bytes]:
    """The elements from one place to another, both included, negative from the end."""
    first, last = integer(start), integer(stop)
    items = list(database(task).get(key, deque) or ())
    first = max(first + len(items), 0) if first < 0 else first
    last = last + len(items) if last < 0 else last
    return items[first : max(last + 1, 0)]


def _pop(db: Database, key: bytes, take: Callable[[deque[bytes]], bytes]) -> bytes | None:
    items = db.get(key, deque)
    if items is None:
        return None
    item = take(items)
    db.changed(key)
    return item


@commands.command("LPOP", 2, ("write", "fast"), (1, 1, 1), "list")
def lpop(task: Any, key: bytes) -> bytes | None:
    """Take the element at the left end."""
    return _pop(database(task), key, deque.popleft)


@commands.command("RPOP", 2, ("write", "fast"), (1, 1, 1), "list")
def rpop(task: Any, key: bytes) -> bytes | None:
    """Take the element at the right end."""
    return _pop(database(task), key, deque.pop)


# -- a pop that waits ------------------------------------------------------------------


class Waiter:
    """A client that waits until one of its lists has an element. Used under the lock."""

    def __init__(self, db: Database, keys: list[bytes]) -> None:
        self.db = db
        self.keys = keys
        self.given: Future[list[bytes] | None] = Future()
        for key in keys:
            db.waiting.setdefault(key, {})[self] = None

    def end(self, found: list[bytes] | None = None) -> None:
        """Wait no more; the second time this does nothing."""
        for key in self.keys:
            queue = self.db.waiting.get(key, {})
            queue.pop(self, None)
            if not queue:
                self.db.waiting.pop(key, None)
        if not self.given.done():
            self.given.set_result(found)


def serve(db: Database, key: bytes) -> None:
    """Give what is in a list to those who have waited longest for it."""
    with commands.lock:
        for waiter in list(db.waiting.get(key, ())):
            if type(db.find(key)) is not deque:
                break
            waiter.end([key, db.data[key].popleft()])
            db.changed(key)


@commands.command("BLPOP", -3, ("write", "blocking"), (1, -2, 1), "list")
def blpop(task: Any, *words: bytes) -> Any:
    """BLPOP key ... timeout: take from the first list that has something, or wait for it."""
    *keys, last = words
    seconds = timeout(last)
    db = database(task)
    for key in keys:
        item = _pop(db, key, deque.popleft)
        if item is not None:
            return [key, item]
    if session_of(task).executing:
        return NULL_ARRAY  # nobody waits within a transaction
    # A coroutine: the table runs it in an event loop and without its lock, so that others go
    # on, and cancels it when the client leaves. (An ``async def`` would put the whole server
    # into that loop.)
    return _wait(task, Waiter(db, keys), seconds)


async def _wait(task: Any, waiter: Waiter, seconds: float) -> Any:
    try:
        await asyncio.wait([asyncio.wrap_future(waiter.given)], timeout=seconds or None)
    except asyncio.CancelledError:
        if not waiter.given.done():
            raise
    finally:
        with commands.lock:
            waiter.end()
    found = waiter.given.result()
    if found is not None and (task.closed or task.connection.peer_ended):
        # Too late for this client, and nothing that was taken may be lost.
        with commands.lock:
            _put(waiter.db, found[0], deque.appendleft, found[1])
            serve(waiter.db, found[0])
    return NULL_ARRAY if found is None else found
