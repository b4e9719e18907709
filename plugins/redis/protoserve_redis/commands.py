"""CommandTable: commands registered by name, looked up, checked and run."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protoserve import ConfigError
from protoserve_redis import (
    authentication,
    blocking,
    catalogue,
    clients,
    information,
    monitor,
    pausing,
    pubsub,
    sharded,
    tracking,
)
from protoserve_redis import (
    connection as connection_commands,
)
from protoserve_redis import (
    transactions as transactions_part,
)
from protoserve_redis.addresses import peer_address
from protoserve_redis.arguments import text_of
from protoserve_redis.command import Changes, Command, Handler, check_hook, waits
from protoserve_redis.dispatch import Dispatcher
from protoserve_redis.serialiser import encode
from protoserve_redis.session import RedisSession
from protoserve_redis.values import NO_REPLY, NULL_ARRAY, QUEUED, RedisError, SimpleString, decoded

if TYPE_CHECKING:
    from protoserve import CommConnection

Guard = Callable[[Any, Command, list[bytes]], object]
"""``guard(task, command, words)``: raises ``RedisError`` to refuse a command."""

Around = Callable[[Any, Command, list[bytes], Callable[[], Any]], Any]
"""``around(task, command, words, run)``: returns what ``run()`` returned, or else."""

logger = logging.getLogger("protoserve")

_F = TypeVar("_F", bound=Handler)

_CACHED_NAMES: Final = 4096
_QUEUED_BYTES: Final = 256 * 1024 * 1024
_NOT_QUEUED: Final = frozenset({b"EXEC", b"DISCARD", b"MULTI", b"WATCH", b"QUIT", b"RESET"})
_WHILE_SUBSCRIBED: Final = frozenset(
    {
        b"PING",
        b"SUBSCRIBE",
        b"SSUBSCRIBE",
        b"PSUBSCRIBE",
        b"UNSUBSCRIBE",
        b"SUNSUBSCRIBE",
        b"PUNSUBSCRIBE",
        b"QUIT",
        b"RESET",
    }
)
_CROSS_PROTOCOL: Final = frozenset({b"POST", b"HOST:"})
_INTERNAL: Final = RedisError("ERR internal error")


def wrong_arity(command: Command) -> RedisError:
    """Too few or too many arguments, in Redis' words."""
    return RedisError(f"ERR wrong number of arguments for '{command.full_name}' command")


class Finishing(Coroutine[Any, Any, None]):
    """The coroutine of an async command, within the one that makes a reply of its outcome:
    both are closed where it never begins."""

    __slots__ = ("_command", "_outer")

    def __init__(
        self, outer: Coroutine[Any, Any, None], command: Coroutine[Any, Any, Any]
    ) -> None:
        self._outer = outer
        self._command = command

    def send(self, value: Any) -> Any:
        """See ``Coroutine``."""
        return self._outer.send(value)

    def throw(self, *error: Any) -> Any:
        """See ``Coroutine``."""
        return self._outer.throw(*error)

    def close(self) -> None:
        """See ``Coroutine``."""
        self._outer.close()
        self._command.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._outer.__await__()


class CommandTable(Dispatcher):
    """The commands of a Redis server, and its ``process``.

    ``commands.command(name, arity)`` registers a function ``f(task, *arguments)``, which
    gets bytes and returns a value (see ``values``), raises
    :class:`~protoserve_redis.values.RedisError`, or returns a coroutine, as an ``async``
    function does. The connection's commands, publish/subscribe and (``transactions``)
    MULTI are registered already and may be replaced, or removed.

    ``password`` or ``authenticate(user, password)``, plain or ``async``, makes every
    connection authenticate first; only ``True`` lets one in. As in Redis, plain commands
    run one at a time, under ``lock``; EXEC holds it for the whole transaction. One that
    blocks for long should be ``async`` and take ``lock`` for the moments in which it
    changes shared data, or the table be made with ``atomic=False``. ``publish`` and
    ``touch`` may be called from any thread. In EXEC (``session_of(task).executing``) a
    command must not wait for others.

    ``exists(db, key)`` is what a store with expiry says of a key: whether it is there, or
    anything that compares with ``==``, such as its version, false when it is not there. It
    is asked at WATCH and at EXEC, under ``lock``: a key that vanished between the two makes
    EXEC fail though nobody called ``touch``, and one that was not there does not because it
    is touched and still not there. It may call ``touch`` itself.

    Raises :class:`~protoserve.ConfigError` for options that make no sense.
    """

    def __init__(
        self,
        password: str | bytes | None = None,
        authenticate: Callable[[str, str], Any] | None = None,
        databases: int = 16,
        transactions: bool = True,
        server_version: str = "7.4.0",
        atomic: bool = True,
        exists: transactions_part.Exists | None = None,
    ) -> None:
        if isinstance(databases, bool) or not isinstance(databases, int) or databases < 1:
            raise ConfigError(f"databases={databases!r}: expected a whole number from 1 on")
        if password is not None and authenticate is not None:
            raise ConfigError("give a password or an authenticate callback, not both")
        if password is not None and not (isinstance(password, (str, bytes)) and password):
            raise ConfigError(
                f"password={password!r}: expected text or bytes that are not empty, or None to "
                "ask for none"
            )
        for name, switch in (("atomic", atomic), ("transactions", transactions)):
            if not isinstance(switch, bool):
                raise ConfigError(f"{name}={switch!r}: expected True or False")
        if authenticate is not None:
            check_hook("authenticate=", authenticate, 2, later=True)
        if exists is not None:
            check_hook("exists=", exists, 2)
        super().__init__(atomic=atomic)
        self.password = password.encode() if isinstance(password, str) else password
        self.authenticate = authenticate
        self.databases = databases
        self.server_version = server_version
        self.commands: dict[bytes, Command] = {}
        """The commands by their name in upper case."""
        self.long_doubles = _version(server_version) < (7, 2)
        self.may_block = not atomic
        """Whether commands may be expected to block, see ``WFServer``: those that wait for
        ``lock`` wait for moments."""
        self._guards: list[Guard] = []
        self._around: list[Around] = []
        self._lookup: dict[bytes, Command] = {}  # by the name as clients send it
        self._fast = self._lookup  # or empty, see ``detour``
        self._detours: set[str] = set()
        self.changes = 0
        """How often a command was registered or removed."""
        self._connections: dict[int, CommConnection] = {}
        self._opened = 0
        self._requests = 0  # of connections that have closed
        self._registry = threading.Lock()  # guards the last five
        self.subscriptions = pubsub.Subscriptions(self.lock)
        self.watches = transactions_part.Watches(exists)
        self._watchers = self.watches.watchers  # mostly empty: then nothing is called
        self.monitors = monitor.Monitors(self)
        self.tracking = tracking.Tracking(self)
        self._trackers = self.tracking.clients
        self.pause = pausing.Pause(self)
        self.information = information.Information(self)
        for part in (
            connection_commands,
            authentication,
            clients,
            catalogue,
            information,
            pubsub,
            sharded,
            monitor,
            tracking,
            pausing,
        ):
            part.register(self)
        if transactions:
            transactions_part.register(self)

    # -- registration ------------------------------------------------------------------

    def command(
        self,
        name: str,
        arity: int | None = None,
        flags: Iterable[str] = (),
        keys: tuple[int, int, int] | Callable[[list[bytes]], list[bytes]] = (0, 0, 0),
        group: str = "generic",
        summary: str = "",
        since: str = "1.0.0",
        complexity: str = "",
        changes: Changes | None = None,
    ) -> Callable[[_F], _F]:
        """Register the decorated function under ``name`` (``"CLIENT|ID"``: a subcommand).

        ``arity`` counts the name (of a subcommand: both words); negative means at least.
        The function's parameters say how many words there are at most; without ``arity``
        at least, too. ``flags`` are Redis' (``command.FLAGS``): ``write`` and ``readonly``
        are what CLIENT PAUSE and CLIENT TRACKING go by, ``blocking`` on an ``async``
        function says that it may wait for long and is cancelled when its client leaves.
        ``keys`` is the place of the first key, the last (negative: from the end) and the
        step; or a function of the line's words that returns the keys. ``changes``, of a
        command with the flag ``write`` or ``may_replicate``, is a function of the words, too:
        whether CLIENT PAUSE WRITE holds the line, as it does without one. A later
        registration replaces an earlier one. Register before the server starts.

        Raises :class:`~protoserve.ConfigError` for what cannot work.
        """
        # What is wrong is said where it stands, not where the function is.
        Command(name, _container, arity, flags, keys, changes=changes)

        def register(function: _F) -> _F:
            self.add(
                Command(
                    name, function, arity, flags, keys, group, summary, since, complexity, changes
                )
            )
            return function

        return register

    def add(self, command: Command) -> None:
        """Register a command object."""
        self.changes += 1
        parent_name, bar, sub_name = command.name.partition(b"|")
        if bar:
            parent = self.commands.get(parent_name)
            if parent is None:
                parent = Command(parent_name, _container, -2, group=command.group)
                self.add(parent)
            _check_container(parent)
            if parent.subcommands is None:
                parent.subcommands = {}
                self.add(_help_of(parent))
            parent.subcommands[sub_name] = command
            return
        replaced = self.commands.get(command.name)
        if replaced is not None and command.subcommands is None:
            command.subcommands = replaced.subcommands
        if command.subcommands is not None:
            _check_container(command)
        self.commands[command.name] = command
        self._rebuild()

    def remove(self, name: str) -> Command:
        """Forget a command, with its subcommands, or a subcommand (``"CLIENT|KILL"``): to
        clients it is unknown. Before the server starts. Returns it; raises ``KeyError``
        when there is none of that name."""
        self.changes += 1
        parent_name, bar, sub_name = name.upper().encode().partition(b"|")
        if bar:
            subcommands = self.commands[parent_name].subcommands
            if subcommands is None:
                raise KeyError(name)
            return subcommands.pop(sub_name)
        command = self.commands.pop(parent_name)
        self._rebuild()
        return command

    def guard(self, hook: Guard) -> Guard:
        """Have ``hook(task, command, words)``, a plain function, called before a command is
        run, or queued by MULTI; as a decorator. It raises ``RedisError`` to refuse (access
        control, limits); what is refused in MULTI makes EXEC fail. On the connection's
        thread, without ``lock``, of several connections at once where threads serve them;
        must not block. While there is a hook every command takes a few steps more. Before
        the server starts."""
        check_hook("guard()", hook, 3)
        self._guards.append(hook)
        self.detour("hooks", on=True)
        return hook

    def around(self, hook: Around) -> Around:
        """Have ``hook(task, command, words, run)`` called in place of a command, also in
        EXEC; as a decorator. It returns what ``run()`` returns, or something else, or
        raises ``RedisError`` (metrics, tracing, caches). Of an ``async`` command ``run()``
        returns the coroutine: then return one that awaits it. The hook itself is a plain
        function, or plain commands would not be alone in EXEC. Of several,
        the first is outermost. Called as commands are, under ``lock``. Before the server
        starts."""
        check_hook("around()", hook, 4)
        self._around.append(hook)
        self.detour("hooks", on=True)
        return hook

    def info(self, section: str) -> Callable[[information.F], information.F]:
        """Add the facts that the decorated function returns, a dictionary, to a section of
        INFO: ``@commands.info("keyspace")``. A section that is not there yet comes last."""
        return self.information.add(section)

    def _rebuild(self) -> None:
        lookup: dict[bytes, Command] = {}
        for name, command in self.commands.items():
            lookup[name] = lookup[name.lower()] = command
        with self._registry:
            self._lookup = lookup
            self._fast = {} if self._detours else lookup

    def detour(self, reason: str, *, on: bool) -> None:
        """Lead every command by where all is looked at, as long as a reason is ``on``. Any
        thread; commands that begin after it returns are seen."""
        with self._registry:
            if on:
                self._detours.add(reason)
            else:
                self._detours.discard(reason)
            self._fast = {} if self._detours else self._lookup

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
                    f"ERR unknown subcommand '{text_of(args[1], 128)}'. "
                    f"Try {command.full_name.upper()} HELP."
                )
            command = sub
        if not command.least <= len(args) <= command.most:
            raise wrong_arity(command)
        return command

    # -- running -----------------------------------------------------------------------

    def run(self, task: Any, session: RedisSession, command: Command, args: list[bytes]) -> Any:
        """Call a command whose line was checked; its value, error, or coroutine. Tells
        those who watch commands."""
        if not self._atomic:
            return self._run(task, session, command, args)
        with self.lock:
            return self._run(task, session, command, args)

    def _run(self, task: Any, session: RedisSession, command: Command, args: list[bytes]) -> Any:
        tracked = session.tracked
        if tracked is not None and not self._atomic:
            # A change between the reading and the note of it must not get lost.
            self._remember(task, session, tracked, command, args, quietly=True)
        value: Any
        try:
            if self._around:
                call = partial(command.function, task, *args[command.skip :])
                for hook in reversed(self._around):
                    call = partial(hook, task, command, args, call)
                value = call()
            else:
                value = command.function(task, *args[command.skip :])
        except BaseException as error:
            value = self.error_value(task, command, error)
        if tracked is not None:
            quietly = isinstance(value, RedisError)
            self._remember(task, session, tracked, command, args, quietly=quietly)
        if self.monitors:
            self.monitors.feed(task.connection, session, command, args)
        return value

    def _remember(
        self,
        task: Any,
        session: RedisSession,
        tracked: tracking.Tracked,
        command: Command,
        args: list[bytes],
        *,
        quietly: bool,
    ) -> None:
        """Note the keys that a command read. A line in which they cannot be found has
        none: that is the author's to know, unless the command refuses it as well."""
        try:
            self.tracking.remember(session, tracked, command, args)
        except Exception as error:
            if not quietly:
                self.error_value(task, command, error)

    def error_value(self, task: Any, command: Command, error: BaseException) -> RedisError:
        """What the client gets for what a command raised, whatever it is: a cancellation,
        or an exit, is no more than an error of the command, and the others go on."""
        if isinstance(error, RedisError):
            return error
        logger.error(
            "the command %s of the client %s raised",
            command.full_name,
            peer_address(task.connection),
            exc_info=error,
        )
        return _INTERNAL

    def encoded(self, task: Any, session: RedisSession, command: Command, value: Any) -> bytes:
        """The value of a command within EXEC, in the protocol that is in force. What cannot
        be sent, or sends nothing, is an error in its place."""
        try:
            if value is NO_REPLY:
                raise ValueError("a command within EXEC must have a reply")
            return encode(value, session.protocol, long_doubles=self.long_doubles)
        except Exception as error:
            return encode(self.error_value(task, command, error))

    def _run_checked(
        self, task: Any, session: RedisSession, args: list[bytes]
    ) -> Coroutine[Any, Any, None] | None:
        session.next_reply()
        session.used = time.monotonic()
        try:
            command = self.resolve(args)
            self._admit(session, command)
            for guard in self._guards:
                self._ask(guard, task, command, args)
        except RedisError as error:
            self._refuse(task, session, args, error)
            return None
        return self._admitted(task, session, command, args)

    def run_again(self, task: Any, command: Command) -> Coroutine[Any, Any, None] | None:
        """Run a command that was held back, in its request's series. Guards, which may
        count, have seen it."""
        return self._admitted(task, task.connection.state, command, task.req.args)

    def _admitted(
        self, task: Any, session: RedisSession, command: Command, args: list[bytes]
    ) -> Coroutine[Any, Any, None] | None:
        transaction = session.transaction
        if self.pause.active and self.pause.holds(task, session, command, args):
            self.pause.hold(task, command)
            return None
        session.last_command = command
        if transaction is not None and command.name not in _NOT_QUEUED:
            self._reply(task, session, _queue(transaction, command, args))
            return None
        if self._trackers:
            with self.tracking.batch(session):
                value = self.run(task, session, command, args)
        else:
            value = self.run(task, session, command, args)
        tracked = session.tracked
        if tracked is not None and session.transaction is None:
            tracked.command_ended(command)
        if inspect.iscoroutine(value):
            return self._finishing(task, session, command, value)
        self._reply(task, session, value)
        return None

    def _refuse(
        self, task: Any, session: RedisSession, args: list[bytes], error: RedisError
    ) -> None:
        name = args[0].upper()
        known = self.find(args[0])
        if session.transaction is not None:
            session.transaction.broken = True
        if name == b"EXEC" and known is not None:
            # Whatever is wrong with it, the transaction ends here.
            transactions_part.end_transaction(self, session)
            reason = str(error).removeprefix("ERR ")
            error = RedisError(f"EXECABORT Transaction discarded because of: {reason}")
            if self.monitors:
                self.monitors.feed(task.connection, session, known, args)
        if name in _CROSS_PROTOCOL and known is None:
            # A browser was made to talk to us; its next lines are not the user's.
            task.noreply()
        self._reply(task, session, error)

    def _ask(self, guard: Guard, task: Any, command: Command, args: list[bytes]) -> None:
        try:
            outcome: Any = guard(task, command, args)
            if outcome is not None and inspect.isawaitable(outcome):
                if inspect.iscoroutine(outcome):
                    outcome.close()
                raise TypeError("a guard returned something to await, and nobody does")
        except BaseException as error:
            # A guard that fails has not let anybody through.
            raise self.error_value(task, command, error) from None

    def _admit(self, session: RedisSession, command: Command) -> None:
        if not session.authenticated and "no_auth" not in command.flags:
            raise RedisError("NOAUTH Authentication required.")
        if session.protocol == 2 and session.subscribed and command.name not in _WHILE_SUBSCRIBED:
            raise RedisError(
                f"ERR Can't execute '{command.full_name}': only (P|S)SUBSCRIBE / "
                "(P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
            )
        if session.monitoring and not monitor.REFUSED.isdisjoint(command.flags):
            raise RedisError("ERR Replica can't interact with the keyspace")
        if session.transaction is not None and "no_multi" in command.flags:
            raise RedisError("ERR Command not allowed inside a transaction")

    def _finishing(
        self, task: Any, session: RedisSession, command: Command, value: Any
    ) -> Coroutine[Any, Any, None]:
        return Finishing(self._finish(task, session, command, value), value)

    async def _finish(
        self, task: Any, session: RedisSession, command: Command, value: Coroutine[Any, Any, Any]
    ) -> None:
        if session.tracked is None:
            result = await self.outcome(task, session, command, value)
        else:
            with self.tracking.acting(session):
                result = await self.outcome(task, session, command, value)
        if session.tracked is not None:
            quietly = isinstance(result, RedisError)
            args = task.req.args
            self._remember(task, session, session.tracked, command, args, quietly=quietly)
        self._reply(task, session, result)

    async def outcome(
        self, task: Any, session: RedisSession, command: Command, value: Coroutine[Any, Any, Any]
    ) -> Any:
        """What an ``async`` command comes to. Whatever it raises is an error of its own,
        also where something that it awaited was cancelled; only when the request itself is
        cancelled, by a server that is cut or a client that left, is that passed on."""
        blocked = None
        if "blocking" in command.flags:
            blocked = blocking.Blocked(task, session)
        own = asyncio.current_task()
        cancelled = 0 if own is None else own.cancelling()
        try:
            result = await value
        except Exception as error:
            result = self.error_value(task, command, error)
        except BaseException as error:
            if blocked is not None and blocked.ended:
                cancelled += 1  # by ourselves
            of_request = isinstance(error, asyncio.CancelledError) and (
                own is None or own.cancelling() > cancelled
            )
            if of_request or isinstance(error, GeneratorExit):
                raise
            if blocked is not None and blocked.ended:
                result = blocked.outcome
            else:
                result = self.error_value(task, command, error)
        finally:
            if blocked is not None:
                blocked.end()
        if blocked is not None and blocked.gone:
            task.noreply()
            result = NULL_ARRAY
        return result

    def _reply(self, task: Any, session: RedisSession, value: Any) -> None:
        resp = task.resp
        resp.protocol = session.protocol
        resp.value = value
        if (session.subscribed or session.monitoring) and task.keep_alive != 0:
            # It waits for messages, which is not idling.
            task.set_keep_alive(None)

    # -- connections -------------------------------------------------------------------

    @property
    def asynchronous(self) -> bool:
        """Whether there are ``async`` commands: then the server is driven by an asyncio
        loop, in which they run from their first step on, and which lives as long as the
        server, as do the queues and pools that they make in it. Not with ``atomic=False``,
        whose plain commands want threads."""
        functions = [self.authenticate]
        for command in self.commands.values():
            functions += [sub.function for sub in (command.subcommands or {}).values()]
            functions.append(command.function)
        return self._atomic and any(map(waits, functions))

    @property
    def requires_authentication(self) -> bool:
        """Whether connections must authenticate."""
        return self.password is not None or self.authenticate is not None

    def connections(self) -> list[CommConnection]:
        """The connections that are open. Any thread."""
        with self._registry:
            return list(self._connections.values())

    def connection_of(self, number: int) -> CommConnection | None:
        """The open connection whose session has this ``id``; not one that has said QUIT.
        Any thread."""
        with self._registry:
            connection = self._connections.get(number)
        if connection is None or connection.closed or connection.closing:
            return None
        return connection

    def served(self) -> tuple[int, int]:
        """How many connections there have been, and how many commands on them. Any
        thread."""
        with self._registry:
            running = sum(connection.seq for connection in self._connections.values())
            return self._opened, self._requests + running

    def publish(self, channel: str | bytes, message: str | bytes) -> int:
        """Send ``message`` to the subscribers of ``channel``; how many deliveries were
        made. Any thread; never waits for a subscriber. Raises ``TypeError`` for what is
        neither text nor bytes."""
        return self.subscriptions.publish(_bytes("channel", channel), _bytes("message", message))

    def touch(self, db: int | None, key: bytes | str | None, *, expired: bool = False) -> None:
        """A key has changed: transactions that watch it will fail, and clients that track
        it (CLIENT TRACKING) are told. ``key=None`` means all keys of the database,
        ``db=None`` all databases. ``expired``: its time has come, which is nobody's doing,
        so that a client with NOLOOP is told of it though its own command found it out. Any
        thread; to be called under ``lock``, as plain commands are, after the change. Raises
        ``TypeError`` for what is no key, or no database."""
        if db is not None and type(db) is not int:
            raise TypeError(f"db={db!r}: expected a database's number, or None for all")
        name = key if key is None or type(key) is bytes else _bytes("key", key)
        if self._watchers:
            self.watches.touch(db, name)
        if self._trackers:
            self.tracking.touch(name, expired=expired)

    def opened(self, connection: CommConnection) -> None:
        """A connection was accepted; its server says so, lest one that has said nothing be
        overlooked."""
        self._open(connection)

    def joined(self, connection: CommConnection, session: RedisSession) -> None:
        """To be called after a connection was put into something that ``leave`` takes it
        out of: its closing may have been seen before."""
        if connection.closed:
            self.leave(connection, session)

    def _open(self, connection: CommConnection) -> RedisSession:
        session = connection.state
        if session is None:
            session = connection.state = RedisSession()
        assert isinstance(session, RedisSession)
        with self._registry:
            known = session.id in self._connections
            self._connections[session.id] = connection
            self._opened += not known
        if not known:
            session.authenticated = not self.requires_authentication
            session.long_doubles = self.long_doubles
            session.update()
            connection.on_close(self._closed)
        return session

    def _closed(self, connection: CommConnection) -> None:
        session: RedisSession = connection.state
        with self._registry:
            self._connections.pop(session.id, None)
            self._requests += connection.seq
        self.leave(connection, session)
        blocking.leave(session)
        session.take_postscript()

    def leave(self, connection: CommConnection, session: RedisSession) -> None:
        """Take a connection out of everything that would send something to it."""
        self.subscriptions.drop(connection, session)
        self.watches.drop(session)
        self.monitors.drop(connection, session)
        self.tracking.drop(session)


def _check_container(parent: Command) -> None:
    """What is called with arguments cannot have subcommands: they would be taken for one."""
    if parent.function is not _container and parent.most > parent.skip:
        raise ConfigError(
            f"command {parent.full_name.upper()}: its function takes arguments, of which the "
            "first is a subcommand's name as well: let it take the task only, or give the "
            "subcommands another container"
        )


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except (AttributeError, ValueError):
        raise ConfigError(
            f"server_version={text!r}: expected the version of a Redis, as '7.4.0'"
        ) from None


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
        shown += f"'{decoded(word)}' "
    return RedisError(
        f"ERR unknown command '{text_of(args[0], 128)}', with args beginning with: {shown}"
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


def _bytes(what: str, text: object) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(
        f"{what}={text!r:.100}: expected bytes or text, as in {what}=str(...) or a JSON of it"
    )
