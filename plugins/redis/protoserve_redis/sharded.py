"""Sharded channels: SSUBSCRIBE, SPUBLISH and their kin.

Without a cluster they are plain channels in a space of their own, without patterns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protoserve_redis.pubsub import FLAGS
from protoserve_redis.session import session_of
from protoserve_redis.values import RedisError

if TYPE_CHECKING:
    from protoserve_redis.commands import CommandTable


def register(table: CommandTable) -> None:
    """Put the commands of sharded channels into a table."""
    subscriptions = table.subscriptions

    @table.command(
        "SSUBSCRIBE",
        -2,
        FLAGS,
        keys=(1, -1, 1),
        group="pubsub",
        summary="Listens for messages published to sharded channels.",
        since="7.0.0",
        complexity="O(N)",
    )
    def subscribe(task: Any, *names: bytes) -> Any:
        session = session_of(task)
        if session.executing:
            raise RedisError("ERR SSUBSCRIBE isn't allowed for a DENY BLOCKING client")
        value = subscriptions.change(task.connection, session, "ssubscribe", names)
        table.joined(task.connection, session)
        return value

    @table.command(
        "SUNSUBSCRIBE",
        -1,
        FLAGS,
        keys=(1, -1, 1),
        group="pubsub",
        summary="Stops listening to messages posted to sharded channels.",
        since="7.0.0",
        complexity="O(N)",
    )
    def unsubscribe(task: Any, *names: bytes) -> Any:
        return subscriptions.change(task.connection, session_of(task), "sunsubscribe", names)

    @table.command(
        "SPUBLISH",
        3,
        ("pubsub", "loading", "stale", "fast", "may_replicate"),
        keys=(1, 1, 1),
        group="pubsub",
        summary="Posts a message to a sharded channel.",
        since="7.0.0",
        complexity="O(N)",
    )
    def publish(task: Any, channel: bytes, message: bytes) -> int:
        return subscriptions.publish_sharded(channel, message)

    about = ("pubsub", "loading", "stale")

    @table.command("PUBSUB|SHARDCHANNELS", -2, about, group="pubsub", since="7.0.0")
    def channels(task: Any, *patterns: bytes) -> list[bytes]:
        return subscriptions.names(subscriptions.shards, patterns, "SHARDCHANNELS")

    @table.command("PUBSUB|SHARDNUMSUB", -2, about, group="pubsub", since="7.0.0")
    def numsub(task: Any, *names: bytes) -> list[bytes | int]:
        return subscriptions.counts(subscriptions.shards, names)
