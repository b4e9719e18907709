"""RedisSession: what a server keeps for one connection between its commands."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.commands import Command

_ids: Final = itertools.count(1)


class Transaction:
    """The commands between MULTI and EXEC. ``broken`` makes EXEC refuse them."""

    __slots__ = ("broken", "commands", "size")

    def __init__(self) -> None:
        self.commands: list[tuple[Command, list[bytes]]] = []
        self.size = 0
        self.broken = False


class RedisSession:
    """One connection's state; ``connection.state`` holds it.

    Its connection's commands are the only ones that change it, one at a time; the exception
    is ``dirty``, which any thread may set.
    """

    __slots__ = (
        "authenticated",
        "channels",
        "created",
        "db",
        "dirty",
        "executing",
        "id",
        "last_command",
        "lib_name",
        "lib_ver",
        "name",
        "no_evict",
        "no_touch",
        "patterns",
        "protocol",
        "reply_mode",
        "special",
        "transaction",
        "used",
        "user",
        "watched",
    )

    def __init__(self) -> None:
        self.id = next(_ids)
        """Unique in the process, from 1."""
        self.protocol = 2
        """The RESP version of replies, 2 or 3."""
        self.name = b""
        self.lib_name = b""
        self.lib_ver = b""
        self.db = 0
        self.user = "default"
        self.authenticated = True
        self.channels: dict[bytes, None] = {}
        """The channels it is subscribed to, in that order."""
        self.patterns: dict[bytes, None] = {}
        self.transaction: Transaction | None = None
        """The open MULTI, or None."""
        self.executing = False
        """Whether EXEC runs its commands now: then a blocking command must not wait."""
        self.watched: dict[tuple[int, bytes], Any] = {}
        """The keys it watches, each with what the store said of it then."""
        self.dirty = False
        """Whether a watched key was touched."""
        self.reply_mode = "on"
        """``CLIENT REPLY``: on, off, or skip (the next reply)."""
        self.no_evict = False
        self.no_touch = False
        self.last_command: Command | None = None
        self.created = self.used = time.monotonic()
        self.special = False
        """Whether a command must be looked at more closely than to run it."""

    @property
    def subscribed(self) -> bool:
        """Whether it is subscribed to a channel or pattern."""
        return bool(self.channels or self.patterns)

    def update(self) -> None:
        """Work out ``special`` anew; called by whatever changes one of its reasons."""
        self.special = (
            not self.authenticated
            or self.transaction is not None
            or self.reply_mode != "on"
            or self.subscribed
        )


def session_of(task: Any) -> RedisSession:
    """The session of a task's connection, made when it is first asked for."""
    connection: CommConnection = task.connection
    session = connection.state
    if session is None:
        session = connection.state = RedisSession()
    assert isinstance(session, RedisSession)
    return session
