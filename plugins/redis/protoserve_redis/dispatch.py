"""Dispatcher: the short way from a request to its command's function."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

from protoserve_redis.session import RedisSession

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.command import Command
    from protoserve_redis.server import RedisServerTask


_COROUTINE: Final = CoroutineType
_monotonic: Final = monotonic


@mypyc_attr(allow_interpreted_subclasses=True)
class Dispatched:
    """Of a command, what is looked at with every request: in the compiled build it is at hand."""

    __slots__ = ("function", "least", "most", "subcommands")

    function: Callable[..., Any]
    least: int
    most: int
    subcommands: dict[bytes, Command] | None


@mypyc_attr(allow_interpreted_subclasses=True)
class Dispatcher(ABC):
    """What nearly all requests pass through: a known command on a connection of which nothing
    special is to be minded. All else is its subclass's, the table's."""

    def __init__(self, *, atomic: bool) -> None:
        self.lock: threading.RLock = threading.RLock()
        """Held while a plain command, or a transaction of such, runs."""
        self._atomic = atomic
        # Commands by the name as clients send it; empty while somebody wants to see every
        # command, so that it costs nothing that somebody might.
        self._fast: dict[bytes, Command] = {}

    def __call__(self, task: RedisServerTask) -> Coroutine[Any, Any, None] | None:
        """Run one command: the ``process`` of a server."""
        session: RedisSession | None = task.connection.state
        if session is None or session.last_command is None:
            session = self._open(task.connection)
        args = task.req.args
        command = self._fast.get(args[0])
        if command is None or session.special:
            return self._run_checked(task, session, args)
        known: Dispatched = command
        if known.subcommands is not None:
            return self._run_checked(task, session, args)
        session.last_command = command
        session.used = _monotonic()
        count = len(args)
        if not known.least <= count <= known.most:
            return self._run_checked(task, session, args)
        value: Any
        try:
            if self._atomic:
                self.lock.acquire()
                try:
                    value = _call(known.function, task, args, count)
                finally:
                    self.lock.release()
            else:
                value = _call(known.function, task, args, count)
        except BaseException as error:
            value = self.error_value(task, command, error)
        if type(value) is _COROUTINE:
            return self._finishing(task, session, command, value)
        if session.special:
            self._reply(task, session, value)
            return None
        resp = task.resp
        resp.protocol = session.protocol
        resp.value = value
        return None

    @abstractmethod
    def _open(self, connection: CommConnection) -> RedisSession:
        """The session of a connection whose first command this is."""

    @abstractmethod
    def _run_checked(
        self, task: Any, session: RedisSession, args: list[bytes]
    ) -> Coroutine[Any, Any, None] | None:
        """Run a command where all is looked at."""

    @abstractmethod
    def _finishing(
        self, task: Any, session: RedisSession, command: Command, value: Any
    ) -> Coroutine[Any, Any, None]:
        """What is awaited for an ``async`` command, whose coroutine is ``value``."""

    @abstractmethod
    def _reply(self, task: Any, session: RedisSession, value: Any) -> None:
        """Reply to a client of which something is to be minded by now."""

    @abstractmethod
    def error_value(self, task: Any, command: Command, error: BaseException) -> Any:
        """What the client gets for what a command raised."""


def _call(
    function: Callable[..., Any], task: RedisServerTask, args: list[bytes], count: int
) -> Any:
    if count == 2:
        return function(task, args[1])
    if count == 3:
        return function(task, args[1], args[2])
    return function(task, *args[1:])
