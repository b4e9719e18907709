"""Sharded channels: SSUBSCRIBE, SPUBLISH and their kin.

Without a cluster they are plain channels in a space of their own, without patterns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protoserve_redis.pubsub import register_change, register_questions

if TYPE_CHECKING:
    from protoserve_redis.commands import CommandTable


def register(table: CommandTable) -> None:
    """Put the commands of sharded channels into a table."""
    subscriptions = table.subscriptions
    register_change(
        table,
        "ssubscribe",
        -2,
        "Listens for messages published to sharded channels.",
        since="7.0.0",
        keys=(1, -1, 1),
        within_exec=False,
    )
    register_change(
        table,
        "sunsubscribe",
        -1,
        "Stops listening to messages posted to sharded channels.",
        since="7.0.0",
        keys=(1, -1, 1),
    )

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

    register_questions(table, subscriptions.shards, "SHARD", "7.0.0")
