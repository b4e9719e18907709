"""Pops that wait: BLPOP and its sisters.

A request waits by a task in its series, a timer or a mailbox; no thread waits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from examples.redis_kv.arguments import real
from examples.redis_kv.lists import SIDES, move, side
from examples.redis_kv.store import Database, List, command, lock
from examples.redis_kv.waiting import NOTHING, Waiter
from protoserve import CommConnection, mailbox, timer
from protoserve_redis import NO_REPLY, NULL_ARRAY, RedisError, session_of

FLAGS = "write denyoom blocking"

_blocked: dict[CommConnection, Waiter | None] = {}  # guarded by the lock


def _forget(connection: CommConnection) -> None:
    """The client left: what arrives is for others."""
    with lock:
        waiter = _blocked.pop(connection, None)
        if waiter is not None:
            waiter.forget()
    if waiter is not None:
        waiter.end()


def _timeout(text: bytes) -> float:
    """Seconds; 0 for ever."""
    seconds = real(text, "ERR timeout is not a float or out of range")
    if seconds < 0:
        raise RedisError("ERR timeout is negative")
    if seconds * 1000 >= 2**63:
        raise RedisError("ERR timeout is out of range")
    return seconds


def _wait(
    db: Database,
    task: Any,
    keys: tuple[bytes, ...],
    seconds: float,
    attempt: Callable[[bytes], Any],
) -> Any:
    """Hold the reply back until an attempt succeeds or the time is over."""
    waiter = Waiter(task.connection, db, keys, attempt)

    def end(_: object) -> None:
        with lock:
            waiter.forget()
            if _blocked.get(task.connection) is waiter:
                _blocked[task.connection] = None
        if waiter.gone:
            task.noreply()
        elif task.resp.value is not NO_REPLY:
            task.resp.value = NULL_ARRAY if waiter.reply is NOTHING else waiter.reply

    waiter.task = timer(seconds, end) if seconds else mailbox(end)
    known = task.connection in _blocked
    _blocked[task.connection] = waiter
    task.series.push_back(waiter.task)
    if not known:
        task.connection.on_close(_forget)
        task.connection.on_peer_end(_forget)
    return NULL_ARRAY


def _pop(db: Database, take: Callable[[List[bytes]], bytes], key: bytes) -> Any:
    value = db.data.get(key)
    if type(value) is not List:
        return NOTHING
    item = take(value)
    db.shrunk(key)
    return [key, item]


def _blocking_pop(
    db: Database, task: Any, take: Callable[[List[bytes]], bytes], arguments: tuple[bytes, ...]
) -> Any:
    *keys, timeout = arguments
    seconds = _timeout(timeout)
    for key in keys:
        if db.get(key, List):
            return _pop(db, take, key)
    if session_of(task).executing:
        return NULL_ARRAY
    return _wait(db, task, tuple(keys), seconds, partial(_pop, db, take))


@command("BLPOP", -3, FLAGS, (1, -2, 1), group="list", with_task=True)
def blpop(db: Database, task: Any, *arguments: bytes) -> Any:
    """Removes and returns the first element in a list. Blocks until one is available."""
    return _blocking_pop(db, task, List.popleft, arguments)


@command("BRPOP", -3, FLAGS, (1, -2, 1), group="list", with_task=True)
def brpop(db: Database, task: Any, *arguments: bytes) -> Any:
    """Removes and returns the last element in a list. Blocks until one is available."""
    return _blocking_pop(db, task, List.pop, arguments)


def _blocking_move(
    db: Database, task: Any, source: bytes, target: bytes, ends: tuple[str, str], timeout: bytes
) -> Any:
    seconds = _timeout(timeout)
    if db.get(source, List) is not None:
        return move(db, source, target, *ends)
    if session_of(task).executing:
        return None

    def attempt(key: bytes) -> Any:
        if type(db.data.get(key)) is not List:
            return NOTHING
        try:
            return move(db, key, target, *ends)
        except RedisError as error:  # the target holds something else
            return error

    return _wait(db, task, (source,), seconds, attempt)


@command("BLMOVE", 6, FLAGS, (1, 2, 1), group="list", with_task=True)
def blmove(db: Database, task: Any, source: bytes, target: bytes, *options: bytes) -> Any:
    """Pops an element from a list, pushes it to another list and returns it. Blocks until
    an element is available otherwise."""
    ends = side(options[0]), side(options[1])
    return _blocking_move(db, task, source, target, ends, options[2])


@command("BRPOPLPUSH", 4, FLAGS, (1, 2, 1), group="list", with_task=True)
def brpoplpush(db: Database, task: Any, source: bytes, target: bytes, timeout: bytes) -> Any:
    """Pops an element from a list, pushes it to another list and returns it. Blocks until
    an element is available otherwise."""
    return _blocking_move(db, task, source, target, (SIDES[b"RIGHT"], SIDES[b"LEFT"]), timeout)
