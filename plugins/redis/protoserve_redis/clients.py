"""CLIENT: what a connection says of itself, and what is told of others."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protoserve_redis.addresses import descriptor, is_local, local_address, peer_address
from protoserve_redis.arguments import integer, text_of
from protoserve_redis.session import RedisSession, session_of
from protoserve_redis.values import NO_REPLY, OK, RedisError, Verbatim, decoded, encoded

if TYPE_CHECKING:
    from protoserve import CommConnection
    from protoserve_redis.commands import CommandTable

_TYPES: Final = (b"normal", b"master", b"slave", b"replica", b"pubsub")
_FLAGS: Final = ("noscript", "loading", "stale")
_ADMIN: Final = ("admin", *_FLAGS)

_BLANKS: Final = re.compile(r"[\x00-\x20\x7f]")
"""What a user's name may have in it, and a line of CLIENT LIST not: its fields would be others."""
_PRINTABLE: Final = bytes(range(0x21, 0x7F))

_Matches = Callable[["CommConnection"], bool]


def register(table: CommandTable) -> None:
    """Put CLIENT and its subcommands into a table."""
    _register_own(table)
    _register_others(table)


def _register_own(table: CommandTable) -> None:
    def client(name: str, arity: int, since: str = "2.6.9") -> Callable[[Any], Any]:
        return table.command(f"CLIENT|{name}", arity, _FLAGS, group="connection", since=since)

    @client("ID", 2, "5.0.0")
    def identity(task: Any) -> int:
        return session_of(task).id

    @client("SETNAME", 3)
    def setname(task: Any, name: bytes) -> Any:
        check_name(name)
        session_of(task).name = name
        return OK

    @client("GETNAME", 2)
    def getname(task: Any) -> bytes | None:
        return session_of(task).name or None

    @client("SETINFO", 4, "7.2.0")
    def setinfo(task: Any, attribute: bytes, value: bytes) -> Any:
        which = attribute.upper()
        if which not in (b"LIB-NAME", b"LIB-VER"):
            raise RedisError(f"ERR Unrecognized option '{text_of(attribute)}'")
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

    @table.command("CLIENT|NO-EVICT", 3, _ADMIN, group="connection", since="7.0.0")
    def no_evict(task: Any, switch: bytes) -> Any:
        session_of(task).no_evict = on_off(switch)
        return OK

    @client("NO-TOUCH", 3, "7.2.0")
    def no_touch(task: Any, switch: bytes) -> Any:
        session_of(task).no_touch = on_off(switch)
        return OK

    @client("REPLY", 3, "3.2.0")
    def reply(task: Any, switch: bytes) -> Any:
        session = session_of(task)
        mode = switch.lower()
        if session.executing and mode in (b"off", b"skip"):
            # Redis 7.0 leaves a hole in EXEC's array.
            raise RedisError("ERR CLIENT REPLY OFF and SKIP are not allowed in a transaction")
        if mode == b"on":
            session.reply_off = session.reply_skip = False
        elif mode == b"off":
            session.reply_off = True
        elif mode == b"skip":
            session.reply_skip_next = not session.reply_off
        else:
            raise RedisError("ERR syntax error")
        session.update()
        return OK if mode == b"on" else NO_REPLY


def _register_others(table: CommandTable) -> None:
    @table.command("CLIENT|INFO", 2, _FLAGS, group="connection", since="6.2.0")
    def info(task: Any) -> Any:
        return Verbatim(encoded(_describe(task.connection)) + b"\n")

    @table.command("CLIENT|LIST", -2, _ADMIN, group="connection", since="2.4.0")
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
        return Verbatim(encoded(text))

    @table.command("CLIENT|KILL", -3, _ADMIN, group="connection", since="2.4.0")
    def kill(task: Any, *args: bytes) -> Any:
        own = task.connection
        old_form = len(args) == 1
        if old_form:
            args = (b"ADDR", args[0], b"SKIPME", b"no")
        matches, skip_me = _kill_filters(table, args)
        victims = [c for c in table.connections() if all(m(c) for m in matches)]
        if skip_me:
            victims = [c for c in victims if c is not own]
        if old_form and not victims:
            raise RedisError("ERR No such client")
        for connection in victims:
            if connection is own:
                task.set_keep_alive(0)
            else:
                connection.close()
        return OK if old_form else len(victims)

    @table.command("CLIENT|UNBLOCK", -3, _ADMIN, group="connection", since="5.0.0")
    def unblock(task: Any, number: bytes, reason: bytes = b"TIMEOUT") -> int:
        word = reason.upper()
        if word not in (b"TIMEOUT", b"ERROR"):
            raise RedisError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
        connection = table.connection_of(integer(number))
        blocked = None if connection is None else connection.state.blocked
        if blocked is None:
            return 0
        error = RedisError("UNBLOCKED client unblocked via CLIENT UNBLOCK")
        return int(blocked(error if word == b"ERROR" else None) is not False)


def _kill_filters(table: CommandTable, args: tuple[bytes, ...]) -> tuple[list[_Matches], bool]:
    if len(args) % 2:
        raise RedisError("ERR syntax error")
    matches: list[_Matches] = []
    skip_me = True
    for option, value in zip(args[::2], args[1::2], strict=True):
        word = option.upper()
        if word == b"SKIPME" and value.lower() in (b"yes", b"no"):
            skip_me = value.lower() == b"yes"
        else:
            matches.append(_kill_filter(table, word, value))
    return matches, skip_me


def _kill_filter(table: CommandTable, word: bytes, value: bytes) -> _Matches:
    text = decoded(value)
    if word == b"ID":
        number = integer(value, "ERR client-id should be greater than 0")
        if number <= 0:
            raise RedisError("ERR client-id should be greater than 0")
        return lambda c: c.state.id == number
    if word == b"ADDR":
        return lambda c: peer_address(c) == text
    if word == b"LADDR":
        return lambda c: local_address(c) == text
    if word == b"MAXAGE":
        oldest = integer(value, "ERR maxage is not an integer or out of range")
        if oldest <= 0:
            raise RedisError("ERR maxage should be greater than 0")
        now = time.monotonic()
        return lambda c: now - c.state.created >= oldest
    if word == b"TYPE":
        kind = _client_type(value)
        return lambda c: _type_of(c) == kind
    if word == b"USER":
        if text != "default" and all(c.state.user != text for c in table.connections()):
            raise RedisError(f"ERR No such user '{text_of(value)}'")
        return lambda c: c.state.user == text
    raise RedisError("ERR syntax error")


def _describe(connection: CommConnection) -> str:
    """A line of CLIENT LIST, with Redis' fields; what has no like here is 0."""
    session: RedisSession = connection.state
    now = time.monotonic()
    transaction = session.transaction
    command = session.last_command
    tracked = session.tracked
    facts = {
        "id": session.id,
        "addr": peer_address(connection),
        "laddr": local_address(connection),
        "fd": descriptor(connection),
        "name": decoded(session.name),
        "age": int(now - session.created),
        "idle": int(now - session.used),
        "flags": _flags_of(connection, session),
        "db": session.db,
        "sub": len(session.channels),
        "psub": len(session.patterns),
        "ssub": len(session.shards),
        "multi": -1 if transaction is None else len(transaction.commands),
        "qbuf": 0,
        "qbuf-free": 0,
        "argv-mem": 0,
        "multi-mem": 0 if transaction is None else transaction.size,
        "rbs": 0,
        "rbp": 0,
        "obl": 0,
        "oll": 0,
        "omem": connection.pending,
        "tot-mem": connection.pending,
        "events": "r",
        "cmd": "NULL" if command is None else command.full_name,
        "user": _BLANKS.sub("_", session.user),
        "redir": -1 if tracked is None else tracked.redirect,
        "resp": session.protocol,
        "lib-name": decoded(session.lib_name),
        "lib-ver": decoded(session.lib_ver),
    }
    return " ".join(f"{name}={value}" for name, value in facts.items())


def _flags_of(connection: CommConnection, session: RedisSession) -> str:
    tracked = session.tracked
    flags = [
        ("O", session.monitoring),
        ("P", session.subscribed),
        ("x", session.transaction is not None),
        ("b", session.blocked is not None),
        ("t", tracked is not None),
        ("R", tracked is not None and tracked.broken),
        ("B", tracked is not None and tracked.broadcast),
        ("d", session.dirty),
        ("U", is_local(connection)),
        ("e", session.no_evict),
        ("T", session.no_touch),
    ]
    return "".join(letter for letter, holds in flags if holds) or "N"


def _client_type(name: bytes) -> bytes:
    kind = name.lower()
    if kind not in _TYPES:
        raise RedisError(f"ERR Unknown client type '{text_of(name)}'")
    return b"slave" if kind == b"replica" else kind


def _type_of(connection: CommConnection) -> bytes:
    session: RedisSession = connection.state
    if session.monitoring:
        return b"slave"
    return b"pubsub" if session.subscribed else b"normal"


def check_name(name: bytes) -> None:
    """Raises ``RedisError`` for what cannot be a client's name."""
    if not _printable(name):
        raise RedisError("ERR Client names cannot contain spaces, newlines or special characters.")


def _printable(data: bytes) -> bool:
    return not data.translate(None, _PRINTABLE)


def on_off(switch: bytes) -> bool:
    """A switch; raises ``RedisError`` for what is neither."""
    if switch.lower() not in (b"on", b"off"):
        raise RedisError("ERR syntax error")
    return switch.lower() == b"on"
