"""MULTI, EXEC, DISCARD, WATCH and UNWATCH: a part that a table switches on."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from protoserve_redis.session import RedisSession, Transaction, session_of
from protoserve_redis.values import NULL_ARRAY, OK, Raw, RedisError

if TYPE_CHECKING:
    from protoserve_redis.command import Command
    from protoserve_redis.commands import CommandTable


Exists = Callable[[int, bytes], Any]
"""``exists(db, key)``: whether a store has a key, or which version of it: something that
compares with ``==``, false when it is not there."""


class Watches:
    """Which sessions watch which keys. Any thread.

    ``exists`` is the store's answer about a key, where it gives one. It is never called
    with the lock: it may remove a key whose time has come, and ``touch`` that.
    """

    def __init__(self, exists: Exists | None = None) -> None:
        self.exists = exists
        self.watchers: dict[tuple[int, bytes], set[RedisSession]] = {}
        self._lock = threading.Lock()

    def watch(self, session: RedisSession, keys: tuple[bytes, ...]) -> None:
        """Watch keys of the session's database."""
        db = session.db
        exists = self.exists
        for key in keys:
            place = (db, key)
            if place in session.watched:
                continue
            version = True if exists is None else self._ask(place)
            with self._lock:
                session.watched[place] = version
                self.watchers.setdefault(place, set()).add(session)

    def touch(self, db: int | None, key: bytes | None) -> None:
        """Mark the sessions that watch a key; None stands for all databases or keys. A
        key that was not there when it was watched, and is not there now, has not changed."""
        with self._lock:
            if db is not None and key is not None:
                places = [(db, key)] if (db, key) in self.watchers else []
            else:
                places = [p for p in self.watchers if db is None or p[0] == db]
            marked = [
                (place, session, session.watched[place])
                for place in places
                for session in self.watchers[place]
                if not session.dirty
            ]
        exists = self.exists
        for place, session, version in marked:
            if exists is None or version or self._ask(place):
                with self._lock:
                    # It may have stopped watching meanwhile.
                    if place in session.watched:
                        session.dirty = True

    def changed(self, session: RedisSession) -> bool:
        """Whether a key that the session watches has changed since: it was touched, or the
        store says something else of it than then, as when its time has come."""
        exists = self.exists
        if session.dirty or exists is None:
            return session.dirty
        return any(self._ask(p) != version for p, version in [*session.watched.items()])

    def _ask(self, place: tuple[int, bytes]) -> Any:
        assert self.exists is not None
        version = self.exists(*place)
        if version is not None and inspect.isawaitable(version):
            if inspect.iscoroutine(version):
                version.close()
            raise TypeError("exists() returned something to await, and nobody does")
        return version

    def drop(self, session: RedisSession) -> None:
        """Watch nothing any more."""
        if not session.watched and not session.dirty:
            return
        with self._lock:
            for place in session.watched:
                watchers = self.watchers.get(place)
                if watchers is not None:
                    watchers.discard(session)
                    if not watchers:
                        del self.watchers[place]
            session.watched.clear()
            session.dirty = False


def end_transaction(table: CommandTable, session: RedisSession) -> None:
    """Forget what was queued and watched."""
    session.transaction = None
    session.update()
    table.watches.drop(session)


def register(table: CommandTable) -> None:
    """Put the transaction commands into a table."""
    flags = ("noscript", "loading", "stale", "fast", "allow_busy")

    @table.command(
        "MULTI", 1, flags, group="transactions", summary="Starts a transaction.", since="1.2.0"
    )
    def multi(task: Any) -> Any:
        session = session_of(task)
        if session.transaction is not None:
            raise RedisError("ERR MULTI calls can not be nested")
        session.transaction = Transaction()
        session.update()
        return OK

    @table.command(
        "DISCARD", 1, flags, group="transactions", summary="Discards a transaction.", since="2.0.0"
    )
    def discard(task: Any) -> Any:
        session = session_of(task)
        if session.transaction is None:
            raise RedisError("ERR DISCARD without MULTI")
        end_transaction(table, session)
        return OK

    @table.command(
        "WATCH",
        -2,
        flags,
        keys=(1, -1, 1),
        group="transactions",
        summary="Monitors changes to keys to determine the execution of a transaction.",
        since="2.2.0",
    )
    def watch(task: Any, *keys: bytes) -> Any:
        session = session_of(task)
        if session.transaction is not None:
            raise RedisError("ERR WATCH inside MULTI is not allowed")
        table.watches.watch(session, keys)
        table.joined(task.connection, session)
        return OK

    @table.command(
        "UNWATCH", 1, flags, group="transactions", summary="Forgets watched keys.", since="2.2.0"
    )
    def unwatch(task: Any) -> Any:
        table.watches.drop(session_of(task))
        return OK

    @table.command(
        "EXEC",
        1,
        ("noscript", "loading", "stale", "skip_slowlog"),
        group="transactions",
        summary="Executes all commands in a transaction.",
        since="1.2.0",
    )
    def execute(task: Any) -> Any:
        session = session_of(task)
        transaction = session.transaction
        if transaction is None:
            raise RedisError("ERR EXEC without MULTI")
        try:
            changed = table.watches.changed(session)
        finally:
            end_transaction(table, session)
        if transaction.broken:
            raise RedisError("EXECABORT Transaction discarded because of previous errors.")
        if changed:
            return NULL_ARRAY
        values: list[bytes] = []
        session.executing = True
        waiting = None
        try:
            # Without an async command this runs under the table's lock: nobody is between.
            for index, (command, args) in enumerate(transaction.commands):
                value = table.run(task, session, command, args)
                if inspect.iscoroutine(value):
                    rest = transaction.commands[index + 1 :]
                    waiting = _rest(table, task, session, values, command, value, rest)
                    return waiting
                values.append(table.encoded(task, session, command, value))
            return _array(values)
        finally:
            if waiting is None:
                session.end_executing()


async def _rest(
    table: CommandTable,
    task: Any,
    session: RedisSession,
    values: list[bytes],
    command: Command,
    value: Any,
    commands: list[tuple[Command, list[bytes]]],
) -> Raw:
    """Go on with a transaction at a command that is a coroutine."""
    try:
        values.append(await _outcome(table, task, session, command, value))
        for command, args in commands:
            value = table.run(task, session, command, args)
            values.append(await _outcome(table, task, session, command, value))
        return _array(values)
    finally:
        session.end_executing()


async def _outcome(
    table: CommandTable, task: Any, session: RedisSession, command: Command, value: Any
) -> bytes:
    """The reply of one command. What it raises is an error in its place, like that of a
    plain one: the rest runs."""
    if inspect.iscoroutine(value):
        value = await table.outcome(task, session, command, value)
    return table.encoded(task, session, command, value)


def _array(values: list[bytes]) -> Raw:
    """Each in the protocol that was in force when its command had run."""
    return Raw(b"*%d\r\n%b" % (len(values), b"".join(values)))
