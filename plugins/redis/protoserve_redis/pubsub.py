"""Publish/subscribe: the registry of subscriptions and its commands."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from protoserve_redis.glob import Glob, glob
from protoserve_redis.serialiser import encode
from protoserve_redis.session import RedisSession, deliver, session_of
from protoserve_redis.values import NO_REPLY, Push, Raw, RedisError

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.commands import CommandTable

_Receivers = dict[bytes, dict["CommConnection", RedisSession]]


class Subscriptions:
    """Who is subscribed to what. Any thread.

    Confirmations and messages are pushed under one lock, so that every subscriber gets its
    confirmation first, nothing after that of its leaving, and messages in one order. A push
    can close a connection, whose callbacks may come back here or to the table: hence it is
    the table's lock, and re-entrant.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.lock = lock
        self.channels: _Receivers = {}
        self.patterns: _Receivers = {}
        self.shards: _Receivers = {}
        self._globs: dict[bytes, Glob] = {}  # of the patterns

    def publish(self, channel: bytes, message: bytes) -> int:
        """Push the message to all subscribers; the number of deliveries."""
        count = 0
        with self.lock:
            receivers = self.channels.get(channel)
            if receivers:
                count += _deliver(receivers, Push([b"message", channel, message]))
            for pattern, compiled in list(self._globs.items()):
                if compiled.match(channel):
                    count += _deliver(
                        self.patterns.get(pattern, {}),
                        Push([b"pmessage", pattern, channel, message]),
                    )
        return count

    def publish_sharded(self, channel: bytes, message: bytes) -> int:
        """Push the message to the subscribers of a sharded channel."""
        with self.lock:
            receivers = self.shards.get(channel)
            if not receivers:
                return 0
            return _deliver(receivers, Push([b"smessage", channel, message]))

    def change(
        self,
        connection: CommConnection,
        session: RedisSession,
        kind: str,
        names: tuple[bytes, ...],
    ) -> Any:
        """(P|S)SUBSCRIBE and (P|S)UNSUBSCRIBE. The confirmations are pushed; within EXEC
        they are the value, since they belong into its array."""
        leaving = kind.endswith("unsubscribe")
        if kind.startswith("p"):
            registry, own = self.patterns, session.patterns
        elif kind.startswith("s") and kind != "subscribe":
            registry, own = self.shards, session.shards
        else:
            registry, own = self.channels, session.channels
        if own is session.patterns and not leaving:
            # Before anything is changed: one that is too long is an error.
            compiled = {name: Glob(name) for name in names if name not in self._globs}
        with self.lock:
            replies = []
            for name in names or (tuple(own) if leaving else ()) or (None,):
                if name is None:
                    pass
                elif not leaving:
                    own[name] = None
                    registry.setdefault(name, {})[connection] = session
                    if registry is self.patterns and name not in self._globs:
                        self._globs[name] = compiled.get(name) or Glob(name)
                else:
                    own.pop(name, None)
                    self._remove(registry, name, connection)
                total = len(own)
                if own is not session.shards:
                    total = len(session.channels) + len(session.patterns)
                replies.append(encode(Push([kind.encode(), name, total]), session.protocol))
            session.update()
            data = b"".join(replies)
            if session.executing:
                value: Any = Raw(data)
            else:
                connection.push(data)
                value = NO_REPLY
        return value

    def drop(self, connection: CommConnection, session: RedisSession) -> None:
        """Forget the subscriptions of a connection, without a word to it."""
        if not session.subscribed:
            return  # nearly always; then the thread that polls need not wait for the lock
        with self.lock:
            for registry, own in (
                (self.channels, session.channels),
                (self.patterns, session.patterns),
                (self.shards, session.shards),
            ):
                for name in own:
                    self._remove(registry, name, connection)
                own.clear()
            session.update()

    def names(self, registry: _Receivers, patterns: tuple[bytes, ...], what: str) -> list[bytes]:
        """The names of a registry that match a pattern, if one is given."""
        if len(patterns) > 1:
            raise RedisError(
                f"ERR unknown subcommand or wrong number of arguments for '{what}'. "
                "Try PUBSUB HELP."
            )
        with self.lock:
            names = list(registry)
        return [*filter(glob(patterns[0]).match, names)] if patterns else names

    def _remove(self, registry: _Receivers, name: bytes, connection: CommConnection) -> None:
        receivers = registry.get(name)
        if receivers is not None:
            receivers.pop(connection, None)
            if not receivers:
                del registry[name]
                if registry is self.patterns:
                    del self._globs[name]

    def counts(self, registry: _Receivers, names: tuple[bytes, ...]) -> list[bytes | int]:
        """Each name with the number of its subscribers."""
        with self.lock:
            return [item for name in names for item in (name, len(registry.get(name, ())))]


def _deliver(receivers: dict[CommConnection, RedisSession], message: Push) -> int:
    encoded: dict[int, bytes] = {}
    count = 0
    for connection, session in list(receivers.items()):
        data = encoded.get(session.protocol)
        if data is None:
            data = encoded[session.protocol] = encode(message, session.protocol)
        # Not into an array that EXEC has begun, nor before its confirmation.
        count += deliver(connection, session, data)
    return count


_CHANGING: Final = ("pubsub", "noscript", "loading", "stale")


_ASKING: Final = ("pubsub", "loading", "stale")


def register(table: CommandTable) -> None:
    """Put SUBSCRIBE, PUBLISH and their kin into a table."""
    subscriptions = table.subscriptions
    register_change(table, "subscribe", -2, "Listens for messages published to channels.")
    register_change(
        table, "psubscribe", -2, "Listens for messages published to channels by pattern."
    )
    register_change(table, "unsubscribe", -1, "Stops listening to messages posted to channels.")
    register_change(table, "punsubscribe", -1, "Stops listening to messages by pattern.")

    @table.command(
        "PUBLISH",
        3,
        ("pubsub", "loading", "stale", "fast", "may_replicate"),
        group="pubsub",
        summary="Posts a message to a channel.",
        since="2.0.0",
    )
    def publish(task: Any, channel: bytes, message: bytes) -> int:
        return subscriptions.publish(channel, message)

    register_questions(table, subscriptions.channels, "", "2.8.0")

    @table.command("PUBSUB|NUMPAT", 2, _ASKING, group="pubsub", since="2.8.0")
    def numpat(task: Any) -> int:
        return len(subscriptions.patterns)


def register_change(
    table: CommandTable,
    kind: str,
    arity: int,
    summary: str,
    *,
    since: str = "2.0.0",
    keys: tuple[int, int, int] = (0, 0, 0),
    within_exec: bool = True,
) -> None:
    """Put a command that changes subscriptions into a table."""

    def change(task: Any, *names: bytes) -> Any:
        session = session_of(task)
        if session.executing and not within_exec:
            raise RedisError(f"ERR {kind.upper()} isn't allowed for a DENY BLOCKING client")
        value = table.subscriptions.change(task.connection, session, kind, names)
        table.joined(task.connection, session)
        return value

    table.command(kind, arity, _CHANGING, keys, "pubsub", summary, since, "O(N)")(change)


def register_questions(table: CommandTable, registry: _Receivers, prefix: str, since: str) -> None:
    """Put into a table what asks about channels, and about who listens to them."""
    subscriptions = table.subscriptions

    @table.command(f"PUBSUB|{prefix}CHANNELS", -2, _ASKING, group="pubsub", since=since)
    def channels(task: Any, *patterns: bytes) -> list[bytes]:
        return subscriptions.names(registry, patterns, f"{prefix}CHANNELS")

    @table.command(f"PUBSUB|{prefix}NUMSUB", -2, _ASKING, group="pubsub", since=since)
    def numsub(task: Any, *names: bytes) -> list[bytes | int]:
        return subscriptions.counts(registry, names)
