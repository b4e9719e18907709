"""CLIENT PAUSE and UNPAUSE: commands that wait until the pause is over."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from protoserve import CallbackHandle, TimerTask, timer
from protoserve_redis.arguments import integer
from protoserve_redis.session import RedisSession
from protoserve_redis.values import OK, RedisError

if TYPE_CHECKING:
    from protoserve_redis.command import Command
    from protoserve_redis.commands import CommandTable

_LONGEST: Final = 10 * 365 * 86400.0  # seconds; what is longer is as good as this


class Pause:
    """The pause that is on, if any. Any thread.

    A command that is held waits as a timer of its request's series; no thread waits.
    """

    def __init__(self, table: CommandTable) -> None:
        self.active = False
        """Whether there may be a pause."""
        self._table = table
        self._lock = threading.Lock()
        self._end = 0.0  # of time.monotonic()
        self._all = False  # not those that write alone
        self._waiting: set[TimerTask] = set()
        self._stopped = False  # the server on which it was asked for
        self._told: CallbackHandle | None = None  # of its stop

    @property
    def waiting(self) -> int:
        """How many commands are held."""
        return len(self._waiting)

    def begin(self, server: Any, seconds: float, *, all_commands: bool) -> None:
        """Pause; together with a pause that is on, the longer and the stricter one. It ends
        with the server on which it was asked for."""
        told = server.on_stopping(self._stop)
        end = time.monotonic() + min(seconds, _LONGEST)
        with self._lock:
            going_on = self.active and self._end > time.monotonic()
            self._end = max(end, self._end) if going_on else end
            self._all = all_commands or (going_on and self._all)
            self.active = True
            self._stopped = server.stopping
            before, self._told = self._told, told
            self._table.detour("pause", on=True)
        if before is not None:
            before.cancel()

    def _stop(self) -> None:
        # What waits on that server is let go as it is, see hold.
        self._stopped = True

    def finish(self) -> None:
        """End the pause now."""
        with self._lock:
            self._over()
            waiting, self._waiting = self._waiting, set()
        for task in waiting:
            task.cancel()

    def _over(self) -> None:
        self.active = False
        told, self._told = self._told, None
        if told is not None:
            told.cancel()
        self._table.detour("pause", on=False)

    def holds(self, task: Any, session: RedisSession, command: Command, args: list[bytes]) -> bool:
        """Whether a command has to wait."""
        stops = task.connection.service.stopping
        with self._lock:
            if not self.active:
                return False
            if self._end <= time.monotonic() or (self._stopped and not stops):
                self._over()
                return False
            if session.monitoring:
                return False
            if self._all:
                return True
        if command.may_change(args):
            return True
        return (
            command.name == b"EXEC"
            and session.transaction is not None
            and any(each.may_change(line) for each, line in session.transaction.commands)
        )

    def hold(self, task: Any, command: Command) -> None:
        """Let a request wait, and be run when the pause is over; not when its client is
        gone by then, or the server stops: then nothing is answered."""

        def again(waited: TimerTask) -> Any:
            with self._lock:
                self._waiting.discard(waited)
            if _gone(task):
                task.noreply()
                return None
            return self._table.run_again(task, command)

        with self._lock:
            left = max(0.0, self._end - time.monotonic()) if self.active else 0.0
            waiting = timer(left, again)
            self._waiting.add(waiting)
        task.series.push_back(waiting)
        # Which tell at once what has happened before.
        for tell in (task.on_close, task.on_peer_end, task.on_stopping):
            tell(lambda _: waiting.cancel())


def _gone(task: Any) -> bool:
    connection = task.connection
    return bool(connection.closed or connection.peer_ended or connection.service.stopping)


def register(table: CommandTable) -> None:
    """Put CLIENT PAUSE and UNPAUSE into a table."""
    flags = ("admin", "noscript", "loading", "stale")

    @table.command(
        "CLIENT|PAUSE",
        -3,
        flags,
        group="connection",
        summary="Suspends commands of clients for a time.",
        since="3.0.0",
    )
    def pause(task: Any, milliseconds: bytes, mode: bytes = b"ALL") -> Any:
        if mode.upper() not in (b"WRITE", b"ALL"):
            raise RedisError("ERR CLIENT PAUSE mode must be WRITE or ALL")
        time_ms = integer(milliseconds, "ERR timeout is not an integer or out of range")
        if time_ms < 0:
            raise RedisError("ERR timeout is negative")
        table.pause.begin(task.server, time_ms / 1000, all_commands=mode.upper() == b"ALL")
        return OK

    @table.command(
        "CLIENT|UNPAUSE",
        2,
        flags,
        group="connection",
        summary="Ends a pause.",
        since="6.2.0",
    )
    def unpause(task: Any) -> Any:
        table.pause.finish()
        return OK
