"""The commands about the connection itself, and those about the commands."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from protoserve_redis.arguments import integer
from protoserve_redis.glob import glob
from protoserve_redis.session import RedisSession, session_of
from protoserve_redis.values import NO_REPLY, OK, PONG, RedisError, SimpleString, Verbatim

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.commands import Command, CommandTable

_WRONGPASS = "WRONGPASS invalid username-password pair or user is disabled."
_CLIENT_TYPES = (b"normal", b"master", b"slave", b"replica", b"pubsub")


def register(table: CommandTable) -> None:
    """Put the connection's commands into a table."""
    _register_basic(table)
    _register_authentication(table)
    _register_client(table)
    _register_client_list(table)
    _register_command(table)


def _register_basic(table: CommandTable) -> None:
    @table.command(
        "PING", -1, ("fast",), group="connection", summary="Returns PONG.", complexity="O(1)"
    )
    def ping(task: Any, *args: bytes) -> Any:
        if len(args) > 1:
            raise RedisError("ERR wrong number of arguments for 'ping' command")
        session = session_of(task)
        if session.protocol == 2 and session.subscribed:
            return [b"pong", args[0] if args else b""]
        return args[0] if args else PONG

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
        table.subscriptions.drop(task.connection, session)
        table.watches.drop(session)
        session.transaction = None
        session.protocol = 2
        session.db = 0
        session.name = b""
        session.user = "default"
        session.authenticated = not table.requires_authentication
        if table.requires_authentication:
            task.limit_unauthenticated(True)
        session.reply_mode = "on"
        session.no_touch = False
        session.update()
        return SimpleString("RESET")


def _register_authentication(table: CommandTable) -> None:
    def verify(user: bytes, password: bytes) -> Any:
        """True, False, or a coroutine of it."""
        if table.authenticate is not None:
            return table.authenticate(_text(user), _text(password))
        if user != b"default":
            return False
        return table.password is None or hmac.compare_digest(password, table.password)

    def login(task: Any, user: bytes, right: Any) -> None:
        if not right:
            raise RedisError(_WRONGPASS)
        session = session_of(task)
        task.limit_unauthenticated(False)
        session.user = _text(user)
        session.authenticated = True
        session.update()

    def authenticated(task: Any, user: bytes, password: bytes, then: Callable[[], Any]) -> Any:
        right = verify(user, password)
        if isinstance(right, Coroutine):

            async def wait() -> Any:
                login(task, user, await right)
                return then()

            return wait()
        login(task, user, right)
        return then()

    flags = ("noscript", "loading", "stale", "fast", "no_auth", "allow_busy")

    @table.command("AUTH", -2, flags, group="connection", summary="Authenticates the connection.")
    def auth(task: Any, *args: bytes) -> Any:
        if len(args) > 2:
            raise RedisError("ERR syntax error")
        if len(args) == 1 and not table.requires_authentication:
            raise RedisError(
                "ERR AUTH <password> called without any password configured for the default "
                "user. Are you sure your configuration is correct?"
            )
        user = args[0] if len(args) == 2 else b"default"
        return authenticated(task, user, args[-1], lambda: OK)

    @table.command(
        "HELLO",
        -1,
        flags,
        group="connection",
        summary="Handshakes with the server.",
        since="6.0.0",
    )
    def hello(task: Any, *args: bytes) -> Any:
        session = session_of(task)
        protocol = 0
        if args:
            protocol = integer(args[0], "ERR Protocol version is not an integer or out of range")
            if protocol not in (2, 3):
                raise RedisError("NOPROTO unsupported protocol version")
        credentials: tuple[bytes, bytes] | None = None
        name: bytes | None = None
        at = 1
        while at < len(args):
            option = args[at].upper()
            left = len(args) - at - 1
            if option == b"AUTH" and left >= 2:
                credentials = (args[at + 1], args[at + 2])
                at += 3
            elif option == b"SETNAME" and left >= 1:
                name = args[at + 1]
                _check_name(name)
                at += 2
            else:
                raise RedisError(f"ERR Syntax error in HELLO option '{_text(args[at])}'")

        def greet() -> Any:
            if not session.authenticated:
                raise RedisError(
                    "NOAUTH HELLO must be called with the client already authenticated, "
                    "otherwise the HELLO AUTH <user> <pass> option can be used to "
                    "authenticate the client and select the RESP protocol version at the same "
                    "time"
                )
            if name is not None:
                session.name = name
            if protocol:
                session.protocol = protocol
            return {
                b"server": b"redis",
                b"version": table.server_version,
                b"proto": session.protocol,
                b"id": session.id,
                b"mode": b"standalone",
                b"role": b"master",
                b"modules": [],
            }

        if credentials is None:
            return greet()
        return authenticated(task, *credentials, greet)


def _register_client(table: CommandTable) -> None:
    flags = ("noscript", "loading", "stale")

    def client(name: str, arity: int, since: str = "2.6.9") -> Callable[[Any], Any]:
        return table.command(f"CLIENT|{name}", arity, flags, group="connection", since=since)

    @client("ID", 2, "5.0.0")
    def identity(task: Any) -> int:
        return session_of(task).id

    @client("SETNAME", 3)
    def setname(task: Any, name: bytes) -> Any:
        _check_name(name)
        session_of(task).name = name
        return OK

    @client("GETNAME", 2)
    def getname(task: Any) -> bytes | None:
        return session_of(task).name or None

    @client("SETINFO", 4, "7.2.0")
    def setinfo(task: Any, attribute: bytes, value: bytes) -> Any:
        which = attribute.upper()
        if which not in (b"LIB-NAME", b"LIB-VER"):
            raise RedisError(f"ERR Unrecognized option '{_text(attribute)}'")
        if not _printable(value):
            raise RedisError(
                f"ERR {which.decode()} cannot contain spaces, newlines or special characters."
            )
        session = session_of(task)
        if which == b"LIB-NAME":
            session.lib_name = value
        else:
            session.lib_ver = value
        return OK

    @client("NO-EVICT", 3, "7.0.0")
    def no_evict(task: Any, switch: bytes) -> Any:
        session_of(task).no_evict = _on_off(switch)
        return OK

    @client("NO-TOUCH", 3, "7.2.0")
    def no_touch(task: Any, switch: bytes) -> Any:
        session_of(task).no_touch = _on_off(switch)
        return OK

    @client("REPLY", 3, "3.2.0")
    def reply(task: Any, switch: bytes) -> Any:
        session = session_of(task)
        mode = switch.lower()
        if mode == b"on":
            session.reply_mode = "on"
        elif mode == b"off":
            session.reply_mode = "off"
        elif mode == b"skip":
            if session.reply_mode != "off":
                session.reply_mode = "skip"
        else:
            raise RedisError("ERR syntax error")
        session.update()
        return OK if mode == b"on" else NO_REPLY


def _register_client_list(table: CommandTable) -> None:
    flags = ("noscript", "loading", "stale")

    @table.command("CLIENT|INFO", 2, flags, group="connection", since="6.2.0")
    def info(task: Any) -> Any:
        return Verbatim(_describe(task.connection).encode("utf-8", "surrogateescape") + b"\n")

    @table.command("CLIENT|LIST", -2, (*flags, "admin"), group="connection", since="2.4.0")
    def clients(task: Any, *args: bytes) -> Any:
        wanted = table.connections()
        option = args[0].upper() if args else b""
        if option == b"TYPE" and len(args) == 2:
            kind = _client_type(args[1])
            wanted = [c for c in wanted if _type_of(c) == kind]
        elif option == b"ID" and len(args) >= 2:
            ids = {integer(arg, "ERR Invalid client ID") for arg in args[1:]}
            wanted = [c for c in wanted if c.state.id in ids]
        elif args:
            raise RedisError("ERR syntax error")
        text = "".join(_describe(connection) + "\n" for connection in wanted)
        return Verbatim(text.encode("utf-8", "surrogateescape"))

    @table.command("CLIENT|KILL", -3, (*flags, "admin"), group="connection", since="2.4.0")
    def kill(task: Any, *args: bytes) -> Any:
        own = task.connection
        if len(args) == 1:
            victims = [c for c in table.connections() if address(c.peername) == _text(args[0])]
            if not victims:
                raise RedisError("ERR No such client")
        else:
            matches, skip_me = _kill_filters(args)
            victims = [c for c in table.connections() if all(m(c) for m in matches)]
            if skip_me:
                victims = [c for c in victims if c is not own]
        for connection in victims:
            if connection is own:
                task.set_keep_alive(0)
            else:
                connection.close()
        return OK if len(args) == 1 else len(victims)


def _kill_filters(
    args: tuple[bytes, ...],
) -> tuple[list[Callable[[CommConnection], bool]], bool]:
    if len(args) % 2:
        raise RedisError("ERR syntax error")
    matches: list[Callable[[CommConnection], bool]] = []
    skip_me = True
    for option, value in zip(args[::2], args[1::2], strict=True):
        word = option.upper()
        if word == b"ID":
            wanted = integer(value, "ERR client-id should be greater than 0")
            if wanted <= 0:
                raise RedisError("ERR client-id should be greater than 0")
            matches.append(lambda c, wanted=wanted: c.state.id == wanted)  # type: ignore[misc]
        elif word == b"ADDR":
            text = _text(value)
            matches.append(lambda c, text=text: address(c.peername) == text)  # type: ignore[misc]
        elif word == b"TYPE":
            kind = _client_type(value)
            matches.append(lambda c, kind=kind: _type_of(c) == kind)  # type: ignore[misc]
        elif word == b"USER":
            user = _text(value)
            matches.append(lambda c, user=user: c.state.user == user)  # type: ignore[misc]
        elif word == b"SKIPME" and value.lower() in (b"yes", b"no"):
            skip_me = value.lower() == b"yes"
        else:
            raise RedisError("ERR syntax error")
    return matches, skip_me


def address(peername: Any) -> str:
    """A peer's address as CLIENT LIST writes it."""
    if isinstance(peername, tuple) and len(peername) >= 2:
        host, port = peername[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return f"{peername or ''}:0"


def _describe(connection: CommConnection) -> str:
    """A line of CLIENT LIST. Fields that have no meaning here are left out."""
    session: RedisSession = connection.state
    now = time.monotonic()
    flags = "P" if session.subscribed else ""
    if session.transaction is not None:
        flags += "x"
    if session.dirty:
        flags += "d"
    if session.no_evict:
        flags += "e"
    if session.no_touch:
        flags += "T"
    transaction = session.transaction
    command = session.last_command
    return (
        f"id={session.id} addr={address(connection.peername)} name={_text(session.name)} "
        f"age={int(now - session.created)} idle={int(now - session.used)} flags={flags or 'N'} "
        f"db={session.db} sub={len(session.channels)} psub={len(session.patterns)} ssub=0 "
        f"multi={-1 if transaction is None else len(transaction.commands)} "
        f"watch={len(session.watched)} omem={connection.out_size} "
        f"cmd={'NULL' if command is None else command.full_name} user={session.user} "
        f"resp={session.protocol} lib-name={_text(session.lib_name)} "
        f"lib-ver={_text(session.lib_ver)}"
    )


def _client_type(name: bytes) -> bytes:
    kind = name.lower()
    if kind not in _CLIENT_TYPES:
        raise RedisError(f"ERR Unknown client type '{_text(name)}'")
    return kind


def _type_of(connection: CommConnection) -> bytes:
    return b"pubsub" if connection.state.subscribed else b"normal"


def _register_command(table: CommandTable) -> None:
    flags = ("loading", "stale")

    def about(name: str, arity: int, summary: str = "") -> Callable[[Any], Any]:
        return table.command(name, arity, flags, group="server", summary=summary, since="2.8.13")

    @about("COMMAND", -1, "Describes all commands.")
    def command(task: Any) -> list[Any]:
        return [_entry(known) for known in table.commands.values()]

    @about("COMMAND|COUNT", 2)
    def count(task: Any) -> int:
        return len(table.commands)

    def named(name: bytes) -> Command | None:
        parent, bar, sub = name.upper().partition(b"|")
        found = table.commands.get(parent)
        if found is None or not bar:
            return found
        return (found.subcommands or {}).get(sub)

    @about("COMMAND|INFO", -2)
    def info(task: Any, *names: bytes) -> list[Any]:
        if not names:
            return [_entry(known) for known in table.commands.values()]
        return [None if (known := named(name)) is None else _entry(known) for name in names]

    @about("COMMAND|DOCS", -2)
    def docs(task: Any, *names: bytes) -> dict[str, Any]:
        wanted = list(table.commands.values()) if not names else [named(name) for name in names]
        return {known.full_name: _docs(known) for known in wanted if known is not None}

    @about("COMMAND|LIST", -2)
    def names_of(task: Any, *args: bytes) -> list[str]:
        every = [*table.commands.values()]
        for known in table.commands.values():
            every.extend((known.subcommands or {}).values())
        if not args:
            return [known.full_name for known in every]
        kind = args[1].upper() if len(args) == 3 and args[0].upper() == b"FILTERBY" else b""
        if kind == b"MODULE":
            return []
        if kind == b"ACLCAT":
            category = "@" + _text(args[2]).lower()
            return [known.full_name for known in every if category in _categories(known)]
        if kind == b"PATTERN":
            pattern = glob(args[2].lower())
            return [k.full_name for k in every if pattern.match(k.name.lower())]
        raise RedisError("ERR syntax error")

    @about("COMMAND|GETKEYS", -3)
    def getkeys(task: Any, *line: bytes) -> list[bytes]:
        words = list(line)
        known = table.find(words[0])
        if known is not None and known.subcommands is not None and len(words) > 1:
            known = known.subcommands.get(words[1].upper())
        if known is None:
            raise RedisError("ERR Invalid command specified")
        if not known.keys[0]:
            raise RedisError("ERR The command has no key arguments")
        if not known.least <= len(words) <= known.most:
            raise RedisError("ERR Invalid number of arguments specified for command")
        return known.keys_of(words)


def _categories(command: Command) -> list[str]:
    flags = command.flags
    made = [
        f"@{category}"
        for flag, category in (
            ("write", "write"),
            ("readonly", "read"),
            ("admin", "admin"),
            ("admin", "dangerous"),
            ("pubsub", "pubsub"),
            ("blocking", "blocking"),
        )
        if flag in flags
    ]
    group = {
        "generic": "keyspace",
        "sorted-set": "sortedset",
        "transactions": "transaction",
        "server": "",
    }.get(command.group, command.group)
    if group and f"@{group}" not in made:
        made.append(f"@{group}")
    made.append("@fast" if "fast" in flags else "@slow")
    return made


def _entry(command: Command) -> list[Any]:
    """One command's ten facts, as COMMAND gives them."""
    first, last, step = command.keys
    specs = set() if not first else [_key_spec(command)]
    subcommands = [_entry(sub) for sub in (command.subcommands or {}).values()]
    return [
        command.full_name,
        command.arity,
        {SimpleString(flag) for flag in command.flags},
        first,
        last,
        step,
        {SimpleString(category) for category in _categories(command)},
        set(),
        specs,
        subcommands or set(),
    ]


def _key_spec(command: Command) -> dict[str, Any]:
    first, last, step = command.keys
    kind = ("RO", "access") if "readonly" in command.flags else ("RW", "access", "update")
    return {
        "flags": {SimpleString(word) for word in kind},
        "begin_search": {"type": "index", "spec": {"index": first}},
        "find_keys": {
            "type": "range",
            "spec": {"lastkey": last - first if last > 0 else last, "keystep": step, "limit": 0},
        },
    }


def _docs(command: Command) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "summary": command.summary,
        "since": command.since,
        "group": command.group,
    }
    if command.complexity:
        facts["complexity"] = command.complexity
    if command.subcommands:
        facts["subcommands"] = {sub.full_name: _docs(sub) for sub in command.subcommands.values()}
    return facts


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _printable(data: bytes) -> bool:
    return all(0x21 <= byte <= 0x7E for byte in data)


def _check_name(name: bytes) -> None:
    if not _printable(name):
        raise RedisError("ERR Client names cannot contain spaces, newlines or special characters.")


def _on_off(switch: bytes) -> bool:
    if switch.lower() not in (b"on", b"off"):
        raise RedisError("ERR syntax error")
    return switch.lower() == b"on"
