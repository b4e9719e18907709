"""Dispatcher: the short way from a request to its command's function."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from mypy_extensions import mypyc_attr

from protoserve_redis.session import RedisSession

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.command import Command
    from protoserve_redis.server import RedisServerTask


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
        if command is None or session.special or command.subcommands is not None:
            return self._run_checked(task, session, args)
        session.last_command = command
        session.used = monotonic()
        if not command.least <= len(args) <= command.most:
            return self._run_checked(task, session, args)
        value: Any
        try:
            if self._atomic:
                self.lock.acquire()
                try:
                    value = _call(command, task, args)
                finally:
                    self.lock.release()
            else:
                value = _call(command, task, args)
        except BaseException as error:
            value = self.error_value(task, command, error)
        if type(value) is CoroutineType:
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


def _call(command: Command, task: RedisServerTask, args: list[bytes]) -> Any:
    count = len(args)
    if count == 2:
        return command.function(task, args[1])
    if count == 3:
        return command.function(task, args[1], args[2])
    return command.function(task, *args[1:])
