"""RedisSession: what a server keeps for one connection between its commands."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

from protoserve_redis.addresses import peer_address
from protoserve_redis.values import RedisError

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.command import Command
    from protoserve_redis.tracking import Tracked

logger = logging.getLogger("protoserve")

KEPT_LIMIT: Final = 32 * 1024 * 1024
"""Bytes of messages that may wait for a connection, as for ``push``; ``unsent_limit``, if
that is more."""

_ids: Final = itertools.count(1)

_postscripts: Final = threading.Lock()
"""Guards every session's ``postscript``: for a few instructions, and only where a message
has to wait for a reply. Nothing else is locked or called with it."""


class Transaction:
    """The commands between MULTI and EXEC. ``broken`` makes EXEC refuse them."""

    __slots__ = ("broken", "commands", "size")

    def __init__(self) -> None:
        self.commands: list[tuple[Command, list[bytes]]] = []
        self.size = 0
        self.broken = False


@mypyc_attr(allow_interpreted_subclasses=True)
class RedisSession:
    """One connection's state; ``connection.state`` holds it.

    Its connection's commands are the only ones that change it, one at a time. Any thread
    may set ``dirty``, call ``blocked`` and ``defer``.
    """

    __slots__ = (
        "authenticated",
        "blocked",
        "channels",
        "created",
        "db",
        "dirty",
        "executing",
        "id",
        "kept",
        "last_command",
        "lib_name",
        "lib_ver",
        "long_doubles",
        "monitoring",
        "name",
        "no_evict",
        "no_touch",
        "patterns",
        "postscript",
        "protocol",
        "reads",
        "reply_off",
        "reply_skip",
        "reply_skip_next",
        "shards",
        "special",
        "tracked",
        "transaction",
        "used",
        "user",
        "watched",
        "watches_end",
        "wrapped",
    )

    def __init__(self) -> None:
        self.id = next(_ids)
        """Unique in the process, from 1."""
        self.protocol = 2
        """The RESP version of replies, 2 or 3."""
        self.long_doubles = False
        """Whether floats are written as Redis before 7.2 did."""
        self.name = b""
        self.lib_name = b""
        self.lib_ver = b""
        self.db = 0
        self.user = "default"
        self.authenticated = True
        self.channels: dict[bytes, None] = {}
        """The channels it is subscribed to, in that order."""
        self.patterns: dict[bytes, None] = {}
        self.shards: dict[bytes, None] = {}
        """The sharded channels it is subscribed to."""
        self.monitoring = False
        self.tracked: Tracked | None = None
        """What CLIENT TRACKING asked for, or None."""
        self.reads = False
        """Set by a command that turns out to read, such as a script: then its keys are
        tracked though it has no flag ``readonly``."""
        self.transaction: Transaction | None = None
        """The open MULTI, or None."""
        self.executing = False
        """Whether EXEC runs its commands now: then a blocking command must not wait."""
        self.watched: dict[tuple[int, bytes], Any] = {}
        """The keys it watches, each with what the store said of it then."""
        self.dirty = False
        """Whether a watched key was touched."""
        self.blocked: Callable[[RedisError | None], object] | None = None
        """How CLIENT UNBLOCK ends the command that waits: called, on any thread, with the
        error that it is to end with, or with None for what it answers when its time is
        over. A command that waits sets it, and takes it back; the table does so for those
        that are ``async`` and have the flag ``blocking``."""
        self.reply_off = False
        """``CLIENT REPLY OFF``; and ``SKIP``, of this reply and of the next one."""
        self.reply_skip = False
        self.reply_skip_next = False
        self.postscript: list[bytes] | None = None
        """Messages that are sent after the reply that is being made."""
        self.kept = 0
        """Their bytes."""
        self.wrapped = False
        """Whether more or less is sent than a reply's value."""
        self.no_evict = False
        self.no_touch = False
        self.last_command: Command | None = None
        self.watches_end = False
        self.created = self.used = time.monotonic()
        self.special = False
        """Whether a command must be looked at more closely than to run it."""

    @property
    def subscribed(self) -> bool:
        """Whether it is subscribed to a channel or pattern."""
        return bool(self.channels or self.patterns or self.shards)

    @property
    def quiet(self) -> bool:
        """Whether the reply that is being made is not sent."""
        return self.reply_off or self.reply_skip

    def update(self) -> None:
        """Work out ``special`` and ``wrapped`` anew; called by whatever changes one of
        their reasons."""
        quiet = self.quiet
        self.special = (
            not self.authenticated
            or self.transaction is not None
            or quiet
            or self.reply_skip_next
            or self.monitoring
            or self.tracked is not None
            or self.subscribed
        )
        with _postscripts:
            self.wrapped = quiet or bool(self.postscript)

    def next_reply(self) -> None:
        """A command begins: what ``CLIENT REPLY SKIP`` said of the next is now."""
        if self.reply_skip or self.reply_skip_next:
            self.reply_skip = self.reply_skip_next
            self.reply_skip_next = False
            self.update()

    def add_postscript(self, data: bytes) -> None:
        """Send ``data`` after the reply that is being made. The connection's own command."""
        with _postscripts:
            self._append(data)

    def defer(self, data: bytes) -> bool:
        """Send ``data`` after the reply, where one that it would break is being made: then
        True. Any thread."""
        with _postscripts:
            if not self.executing and not self.postscript:
                return False
            self._append(data)
        return True

    def _append(self, data: bytes) -> None:
        if self.postscript is None:
            self.postscript = []
        self.postscript.append(data)
        self.kept += len(data)
        self.wrapped = True

    def end_executing(self) -> None:
        """EXEC has run its commands. What was deferred until here is seen by who sends."""
        with _postscripts:
            self.executing = False

    def take_postscript(self) -> list[bytes]:
        """The messages that go out now, after the reply that was made."""
        with _postscripts:
            taken, self.postscript = self.postscript, None
            self.kept = 0
            self.wrapped = self.quiet
        return taken or []


def deliver(
    connection: CommConnection, session: RedisSession, data: bytes, *, own: bool = False
) -> bool:
    """Send a message at once, or after the reply that it would break; with ``own`` after the
    reply that the session's own command is going to have. One that lets too much wait is
    cut, whether it does not read or an EXEC does not end. False when the connection has
    closed. Any thread."""
    if own:
        session.add_postscript(data)
    elif not session.defer(data):
        return connection.push(data)
    limit = max(KEPT_LIMIT, connection.unsent_limit)
    if session.kept + connection.pending > limit:
        logger.warning(
            "the client %s is cut: more than %d bytes of messages wait until its EXEC has ended",
            peer_address(connection),
            limit,
        )
        connection.close()
        return False
    return True


def session_of(task: Any) -> RedisSession:
    """The session of a task's connection, made when it is first asked for."""
    connection: CommConnection = task.connection
    session = connection.state
    if session is None:
        session = connection.state = RedisSession()
    assert isinstance(session, RedisSession)
    return session
