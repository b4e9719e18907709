"""CommandTable: commands registered by name, looked up, checked and run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protoserve_redis import connection as connection_commands
from protoserve_redis import pubsub
from protoserve_redis import transactions as transactions_part
from protoserve_redis.session import RedisSession
from protoserve_redis.values import NO_REPLY, QUEUED, RedisError, SimpleString

if TYPE_CHECKING:
    from protoserve import CommConnection

Handler = Callable[..., Any]
"""``handler(task, *arguments)``: bytes in, a value out; plain or ``async``."""

logger = logging.getLogger("protoserve")

_F = TypeVar("_F", bound=Handler)

_CACHED_NAMES: Final = 4096
_QUEUED_BYTES: Final = 256 * 1024 * 1024
_NOT_QUEUED: Final = frozenset({b"EXEC", b"DISCARD", b"MULTI", b"WATCH", b"QUIT", b"RESET"})
_WHILE_SUBSCRIBED: Final = frozenset(
    {b"PING", b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"QUIT", b"RESET"}
)
_CROSS_PROTOCOL: Final = frozenset({b"POST", b"HOST:"})


def text_of(data: bytes, limit: int = 128) -> str:
    """At most ``limit`` bytes of an argument for an error's text, as C would print them."""
    return data.partition(b"\0")[0][:limit].decode("utf-8", "surrogateescape")


class Command:
    """A registered command. ``name`` is in upper case, a subcommand's ``CLIENT|ID``."""

    __slots__ = (
        "arity",
        "complexity",
        "first",
        "flags",
        "full_name",
        "function",
        "group",
        "keys",
        "least",
        "most",
        "name",
        "since",
        "skip",
        "subcommands",
        "summary",
    )

    def __init__(
        self,
        name: bytes,
        function: Handler,
        arity: int,
        flags: Iterable[str] = (),
        keys: tuple[int, int, int] = (0, 0, 0),
        group: str = "generic",
        summary: str = "",
        since: str = "1.0.0",
        complexity: str = "",
    ) -> None:
        self.name = name
        self.full_name = name.decode("utf-8", "surrogateescape").lower()
        self.function = function
        self.arity = arity
        self.least = abs(arity)
        self.most = arity if arity > 0 else 1 << 62
        self.flags = tuple(flags)
        self.keys = keys
        self.group = group
        self.summary = summary
        self.since = since
        self.complexity = complexity
        self.skip = 2 if b"|" in name else 1  # words before the arguments
        self.subcommands: dict[bytes, Command] | None = None

    def __repr__(self) -> str:
        return f"<Command {self.full_name} arity={self.arity}>"

    def keys_of(self, args: list[bytes]) -> list[bytes]:
        """The keys among the words of a command line."""
        first, last, step = self.keys
        if not first:
            return []
        end = last if last >= 0 else len(args) + last
        return args[first : end + 1 : step or 1]


def _error_value(error: Exception) -> RedisError:
    """What the client gets for what a command raised."""
    if isinstance(error, RedisError):
        return error
    logger.error("a command raised", exc_info=error)
    return RedisError("ERR internal error")


def wrong_arity(command: Command) -> RedisError:
    """Too few or too many arguments, in Redis' words."""
    return RedisError(f"ERR wrong number of arguments for '{command.full_name}' command")


class CommandTable:
    """The commands of a Redis server, and its ``process``.

    ``commands.command(name, arity)`` registers a function ``f(task, *arguments)``, which
    gets bytes and returns a value (see ``values``), raises
    :class:`~protoserve_redis.values.RedisError`, or returns a coroutine, as an ``async``
    function does. The connection's commands, publish/subscribe and (``transactions``)
    MULTI are registered already and may be replaced.

    ``password`` or ``authenticate(user, password)``, plain or ``async``, makes every
    connection authenticate first. As in Redis, plain commands run one at a time, under
    ``lock``; EXEC holds it for the whole transaction. One that blocks for long should be
    ``async`` and take ``lock`` for the moments in which it changes shared data, or the
    table be made with ``atomic=False``. ``publish`` and ``touch`` may be called from any
    thread. In EXEC (``session_of(task).executing``) a command must not wait for others.

    ``exists(db, key)`` is what a store with expiry says of a key: whether it is there, or
    anything that compares with ``==``, such as its version, false when it is not there. It
    is asked at WATCH and at EXEC, under ``lock``: a key that vanished between the two makes
    EXEC fail though nobody called ``touch``, and one that was not there does not because it
    is touched and still not there. It may call ``touch`` itself.
    """

    def __init__(
        self,
        password: str | bytes | None = None,
        authenticate: Callable[[str, str], Any] | None = None,
        databases: int = 16,
        transactions: bool = True,
        server_version: str = "7.2.4",
        atomic: bool = True,
        exists: transactions_part.Exists | None = None,
    ) -> None:
        if databases < 1:
            raise ValueError(f"databases={databases!r}: expected 1 or more")
        if password is not None and authenticate is not None:
            raise ValueError("give a password or an authenticate callback, not both")
        self.password = password.encode() if isinstance(password, str) else password
        self.authenticate = authenticate
        self.databases = databases
        self.server_version = server_version
        self.lock: threading.RLock = threading.RLock()
        """Held while a plain command, or a transaction of such, runs."""
        self.commands: dict[bytes, Command] = {}
        """The commands by their name in upper case."""
        self._atomic = atomic
        self._lookup: dict[bytes, Command] = {}  # by the name as clients send it
        self._connections: dict[int, CommConnection] = {}
        self._registry = threading.Lock()
        self.subscriptions = pubsub.Subscriptions(self.lock)
        self.watches = transactions_part.Watches(exists)
        self._watchers = self.watches.watchers  # mostly empty: then nothing is called
        connection_commands.register(self)
        pubsub.register(self)
        if transactions:
            transactions_part.register(self)

    # -- registration ------------------------------------------------------------------

    def command(
        self,
        name: str,
        arity: int,
        flags: Iterable[str] = (),
        keys: tuple[int, int, int] = (0, 0, 0),
        group: str = "generic",
        summary: str = "",
        since: str = "1.0.0",
        complexity: str = "",
    ) -> Callable[[_F], _F]:
        """Register the decorated function under ``name`` (``"CLIENT|ID"``: a subcommand).

        ``arity`` counts the name (of a subcommand: both words); negative means at least.
        ``keys`` is the place of the first key, the last (negative: from the end) and the
        step. A later registration replaces an earlier one. Register before the server
        starts.
        """
        if arity == 0:
            raise ValueError(f"arity of {name}: it counts the name, so it cannot be 0")
        upper = name.upper().encode()

        def register(function: _F) -> _F:
            self.add(
                Command(upper, function, arity, flags, keys, group, summary, since, complexity)
            )
            return function

        return register

    def add(self, command: Command) -> None:
        """Register a command object."""
        parent_name, bar, sub_name = command.name.partition(b"|")
        if bar:
            parent = self.commands.get(parent_name)
            if parent is None:
                parent = Command(parent_name, _container, -2, group=command.group)
                self.add(parent)
            if parent.subcommands is None:
                parent.subcommands = {}
                self.add(_help_of(parent))
            parent.subcommands[sub_name] = command
            return
        replaced = self.commands.get(command.name)
        if replaced is not None and command.subcommands is None:
            command.subcommands = replaced.subcommands
        self.commands[command.name] = command
        self._lookup = {}
        for name, known in self.commands.items():
            self._lookup[name] = self._lookup[name.lower()] = known

    def find(self, name: bytes) -> Command | None:
        """The command of this name, in any case."""
        command = self._lookup.get(name)
        if command is None:
            command = self.commands.get(name.upper())
            # Clients choose the spelling, so there must be an end to remembering it.
            if command is not None and len(self._lookup) < _CACHED_NAMES:
                self._lookup[name] = command
        return command

    def resolve(self, args: list[bytes]) -> Command:
        """The command or subcommand that a line calls; its arity is checked.

        Raises :class:`~protoserve_redis.values.RedisError` in Redis' words.
        """
        command = self.find(args[0])
        if command is None:
            raise _unknown(args)
        if command.subcommands is not None and len(args) > 1:
            sub = command.subcommands.get(args[1].upper())
            if sub is None:
                raise RedisError(
                    f"ERR unknown subcommand '{text_of(args[1])}'. "
                    f"Try {command.full_name.upper()} HELP."
                )
            command = sub
        if not command.least <= len(args) <= command.most:
            raise wrong_arity(command)
        return command

    # -- running -----------------------------------------------------------------------

    def __call__(self, task: Any) -> Coroutine[Any, Any, None] | None:
        """Run one command: the ``process`` of a server."""
        session = task.connection.state
        if session is None or session.last_command is None:
            session = self._open(task.connection)
        args = task.req.args
        command = self._lookup.get(args[0])
        if command is None or session.special or command.subcommands is not None:
            return self._run_checked(task, session, args)
        session.last_command = command
        session.used = time.monotonic()
        if command.least <= len(args) <= command.most:
            try:
                if self._atomic:
                    with self.lock:
                        value = command.function(task, *args[1:])
                else:
                    value = command.function(task, *args[1:])
            except Exception as error:
                value = _error_value(error)
            if value.__class__ is CoroutineType:
                return self._finish(task, session, value, False)
            if session.special:
                self._reply(task, session, value, False)
                return None
        else:
            value = wrong_arity(command)
        resp = task.resp
        resp.protocol = session.protocol
        resp.value = value
        return None

    def run(self, task: Any, command: Command, args: list[bytes]) -> Any:
        """Call a command whose line was checked; its value, error, or coroutine."""
        try:
            if self._atomic:
                with self.lock:
                    return command.function(task, *args[command.skip :])
            return command.function(task, *args[command.skip :])
        except Exception as error:
            return _error_value(error)

    def _run_checked(
        self, task: Any, session: RedisSession, args: list[bytes]
    ) -> Coroutine[Any, Any, None] | None:
        skipped = session.reply_mode == "skip"
        transaction = session.transaction
        session.used = time.monotonic()
        try:
            command = self.resolve(args)
            self._admit(session, command)
        except RedisError as error:
            if transaction is not None:
                transaction.broken = True
                if args[0].upper() == b"EXEC":
                    # Whatever is wrong with it, the transaction ends here.
                    transactions_part.end_transaction(self, session)
                    reason = str(error).removeprefix("ERR ")
                    error = RedisError(f"EXECABORT Transaction discarded because of: {reason}")
            if args[0].upper() in _CROSS_PROTOCOL and self.find(args[0]) is None:
                # A browser was made to talk to us; its next lines are not the user's.
                task.noreply()
            self._reply(task, session, error, skipped)
            return None
        session.last_command = command
        if transaction is not None and command.name not in _NOT_QUEUED:
            self._reply(task, session, _queue(transaction, command, args), skipped)
            return None
        value = self.run(task, command, args)
        if isinstance(value, Coroutine):
            return self._finish(task, session, value, skipped)
        self._reply(task, session, value, skipped)
        return None

    def _admit(self, session: RedisSession, command: Command) -> None:
        if not session.authenticated and "no_auth" not in command.flags:
            raise RedisError("NOAUTH Authentication required.")
        if session.protocol == 2 and session.subscribed and command.name not in _WHILE_SUBSCRIBED:
            raise RedisError(
                f"ERR Can't execute '{command.full_name}': only (P|S)SUBSCRIBE / "
                "(P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
            )
        if session.transaction is not None and "no_multi" in command.flags:
            raise RedisError("ERR Command not allowed inside a transaction")

    async def _finish(
        self, task: Any, session: RedisSession, value: Coroutine[Any, Any, Any], skipped: bool
    ) -> None:
        try:
            result = await value
        except Exception as error:
            result = _error_value(error)
        self._reply(task, session, result, skipped)

    def _reply(self, task: Any, session: RedisSession, value: Any, skipped: bool) -> None:
        resp = task.resp
        resp.protocol = session.protocol
        if skipped and session.reply_mode == "skip":
            session.reply_mode = "on"
            session.update()
            value = NO_REPLY
        elif session.reply_mode != "on":
            value = NO_REPLY
        resp.value = value
        if session.subscribed and task.keep_alive != 0:
            # It waits for messages, which is not idling.
            task.set_keep_alive(None)

    # -- connections -------------------------------------------------------------------

    @property
    def requires_authentication(self) -> bool:
        """Whether connections must authenticate."""
        return self.password is not None or self.authenticate is not None

    def connections(self) -> list[CommConnection]:
        """The connections that have sent a command and are open. Any thread."""
        with self._registry:
            return list(self._connections.values())

    def publish(self, channel: str | bytes, message: str | bytes) -> int:
        """Send ``message`` to the subscribers of ``channel``; how many deliveries were
        made. Any thread; never waits for a subscriber."""
        return self.subscriptions.publish(_bytes(channel), _bytes(message))

    def touch(self, db: int | None, key: bytes | str | None) -> None:
        """A key has changed: transactions that watch it will fail. ``key=None`` means all
        keys of the database, ``db=None`` all databases. Any thread; to be called under
        ``lock``, as plain commands are, after the change."""
        if self._watchers:
            self.watches.touch(db, key.encode() if isinstance(key, str) else key)

    def _open(self, connection: CommConnection) -> RedisSession:
        session = connection.state
        if session is None:
            session = connection.state = RedisSession()
        assert isinstance(session, RedisSession)
        with self._registry:
            known = session.id in self._connections
            self._connections[session.id] = connection
        if not known:
            session.authenticated = not self.requires_authentication
            session.update()
            connection.on_close(self._closed)
        return session

    def _closed(self, connection: CommConnection) -> None:
        session: RedisSession = connection.state
        with self._registry:
            self._connections.pop(session.id, None)
        self.subscriptions.drop(connection, session)
        self.watches.drop(session)


def _queue(transaction: Any, command: Command, args: list[bytes]) -> Any:
    transaction.size += sum(map(len, args)) + 64 * len(args)
    if transaction.size > _QUEUED_BYTES:
        transaction.broken = True
        transaction.commands.clear()
        return RedisError("ERR the transaction is too large")
    if not transaction.broken:
        transaction.commands.append((command, args))
    return QUEUED


def _unknown(args: list[bytes]) -> RedisError:
    shown = ""
    room = 128
    for arg in args[1:]:
        if room <= 0:
            break
        word = arg.partition(b"\0")[0][:room]
        room -= len(word) + 3
        shown += f"'{text_of(word)}' "
    return RedisError(
        f"ERR unknown command '{text_of(args[0])}', with args beginning with: {shown}"
    )


def _help_of(parent: Command) -> Command:
    """The subcommand that errors about unknown ones tell to try."""

    def show(task: Any) -> list[SimpleString]:
        name = parent.full_name.upper()
        lines = [f"{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
        for sub in (parent.subcommands or {}).values():
            lines.append(sub.full_name.partition("|")[2].upper())
            lines.append("    " + (sub.summary or f"Takes {_arguments(sub.arity)}."))
        return [SimpleString(line) for line in lines]

    return Command(
        parent.name + b"|HELP",
        show,
        2,
        ("loading", "stale"),
        group=parent.group,
        summary="Print this help.",
        since="5.0.0",
    )


def _arguments(arity: int) -> str:
    count = abs(arity) - 2
    return f"{count}{' or more' if arity < 0 else ''} argument{'s' if count != 1 else ''}"


def _container(task: Any, *args: bytes) -> Any:
    raise RedisError("ERR syntax error")  # not reached: its arity asks for a subcommand


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)
