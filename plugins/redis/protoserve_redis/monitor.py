"""MONITOR: a feed of every command that is run.

While nobody watches, commands do not come by here: see ``CommandTable.detour``.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from protoserve_redis.addresses import monitor_address
from protoserve_redis.session import RedisSession, deliver, session_of
from protoserve_redis.values import NO_REPLY, OK, RedisError, encoded

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.command import Command
    from protoserve_redis.commands import CommandTable

REFUSED: Final = frozenset({"write", "readonly", "may_replicate"})
"""What has one of these flags is refused to who watches, as a replica would be."""

_HIDDEN: Final = frozenset({"admin", "skip_monitor"})
_REDACTED: Final = b'"(redacted)"'


class Monitors:
    """Who watches. False when nobody does. Any thread."""

    def __init__(self, table: CommandTable) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._watching: dict[CommConnection, RedisSession] = {}

    def __bool__(self) -> bool:
        return bool(self._watching)

    def add(self, connection: CommConnection, session: RedisSession) -> None:
        """A connection watches from now on."""
        with self._lock:
            self._watching[connection] = session
            session.monitoring = True
            self._table.detour("monitor", on=True)
        session.update()

    def drop(self, connection: CommConnection, session: RedisSession) -> None:
        """A connection watches no more."""
        if not session.monitoring:
            return
        with self._lock:
            session.monitoring = False
            self._watching.pop(connection, None)
            if not self._watching:
                self._table.detour("monitor", on=False)
        session.update()

    def feed(
        self,
        connection: CommConnection | None,
        session: RedisSession,
        command: Command,
        args: list[bytes],
        *,
        itself: bool = False,
    ) -> None:
        """Tell who watches of a command that was run; of administrative ones nothing, of
        credentials only that there were some. Without a connection a script has run it. One
        with the flag ``skip_monitor`` tells of ``itself``, as those do that run others and
        come before them."""
        if not _HIDDEN.isdisjoint(command.flags) and not itself:
            return
        now = time.time_ns() // 1000
        who = "lua" if connection is None else monitor_address(connection)
        where = encoded(f"{session.db} {who}")
        line = b"+%d.%06d [%b] %b\r\n" % (*divmod(now, 1_000_000), where, _words(command, args))
        with self._lock:
            watching = list(self._watching.items())
        for watcher, its_session in watching:
            own = watcher is connection
            if not own or (command.name != b"QUIT" and not session.quiet):
                deliver(watcher, its_session, line, own=own)


def _words(command: Command, args: list[bytes]) -> bytes:
    hidden: set[int] = set()
    if command.name == b"AUTH":
        hidden.update(range(1, len(args)))
    elif command.name == b"HELLO":
        for at, word in enumerate(args[2:], 2):
            if word.upper() == b"AUTH" and at not in hidden:
                hidden.update((at + 1, at + 2))
    return b" ".join(_REDACTED if at in hidden else _quoted(arg) for at, arg in enumerate(args))


def _quoted(data: bytes) -> bytes:
    """A word as ``sdscatrepr`` of Redis writes it."""
    # Python's escapes are nearly the same, and take no step of ours for each byte. So that
    # every backslash in them begins one, those of the data are another sign meanwhile.
    text = data.decode("latin-1").replace("\\", "\u0100").encode("unicode_escape")
    for theirs, ours in _DIFFERENT:
        text = text.replace(theirs, ours)
    return b'"%b"' % text


_DIFFERENT: Final = (
    (rb"\x07", rb"\a"),
    (rb"\x08", rb"\b"),
    (rb"\u0100", rb"\\"),
    (b'"', rb"\""),
)


def register(table: CommandTable) -> None:
    """Put MONITOR into a table."""

    @table.command(
        "MONITOR",
        1,
        ("admin", "noscript", "loading", "stale"),
        group="server",
        summary="Shows every command that the server runs.",
    )
    def monitor(task: Any) -> Any:
        session = session_of(task)
        if session.executing:
            raise RedisError("ERR MONITOR isn't allowed for DENY BLOCKING client")
        if session.monitoring:
            return NO_REPLY  # as Redis does
        table.monitors.add(task.connection, session)
        table.joined(task.connection, session)
        return OK
