"""The commands about the connection itself: PING, ECHO, SELECT, QUIT, RESET."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protoserve_redis.arguments import integer
from protoserve_redis.session import session_of
from protoserve_redis.values import OK, PONG, RedisError, SimpleString

if TYPE_CHECKING:
    from protoserve_redis.commands import CommandTable


def register(table: CommandTable) -> None:
    """Put the connection's commands into a table."""

    @table.command(
        "PING", -1, ("fast",), group="connection", summary="Returns PONG.", complexity="O(1)"
    )
    def ping(task: Any, message: bytes | None = None) -> Any:
        session = session_of(task)
        if session.protocol == 2 and session.subscribed:
            return [b"pong", message or b""]
        return PONG if message is None else message

    @table.command(
        "ECHO",
        2,
        ("loading", "stale", "fast"),
        group="connection",
        summary="Returns the given string.",
    )
    def echo(task: Any, message: bytes) -> bytes:
        return message

    @table.command(
        "SELECT",
        2,
        ("loading", "stale", "fast"),
        group="connection",
        summary="Changes the selected database.",
    )
    def select(task: Any, index: bytes) -> Any:
        db = integer(index)
        if not 0 <= db < table.databases:
            raise RedisError("ERR DB index is out of range")
        session_of(task).db = db
        return OK

    flags = ("noscript", "loading", "stale", "fast", "no_auth", "allow_busy")

    @table.command("QUIT", -1, flags, group="connection", summary="Closes the connection.")
    def close(task: Any, *args: bytes) -> Any:
        task.set_keep_alive(0)
        return OK

    @table.command(
        "RESET", 1, flags, group="connection", summary="Resets the connection.", since="6.2.0"
    )
    def reset(task: Any) -> Any:
        session = session_of(task)
        table.leave(task.connection, session)
        session.transaction = None
        session.protocol = 2
        session.db = 0
        session.name = b""
        session.user = "default"
        session.authenticated = not table.requires_authentication
        if table.requires_authentication:
            task.limit_unauthenticated(True)
        session.reply_off = False
        session.reply_skip_next = False
        session.no_touch = False
        session.update()
        return SimpleString("RESET")
