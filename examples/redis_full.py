"""All of Redis' commands, Lua included: this protocol in front of the store of fakeredis.

Needs ``pip install 'protoserve[examples]'``. Run it with
``protoserve run redis examples.redis_full:commands --bind 127.0.0.1:6380``.

fakeredis is a Redis in memory, made for tests that use redis-py. What happens to keys is
taken from it. The connection's commands, publish/subscribe and MULTI are the table's.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import redis
from fakeredis import FakeServer
from fakeredis._commands import COMMANDS_WITH_SUB, SUPPORTED_COMMANDS, Signature
from fakeredis._core import Database
from fakeredis._helpers import NoResponse, SimpleError
from fakeredis._helpers import SimpleString as FakeSimpleString
from fakeredis._socket._fakesocket import FakeSocket
from fakeredis.model import ExpiringMembersSet, Hash, ZSet, get_command_info

from examples.redis_corrections import (
    PLACES,
    SIGNATURES,
    Instead,
    after,
    before,
    is_patient,
    is_unchanged,
    streams,
)
from examples.redis_lua import LuaError, Sandbox, close
from protoserve import empty
from protoserve_redis import (
    NULL_ARRAY,
    OK,
    CommandTable,
    RedisError,
    RedisSession,
    SimpleString,
    glob,
    integer,
    session_of,
)

VERSION = "7.0.15"
"""The Redis that this behaves like."""


def now() -> float:
    """What deadlines are compared with: seconds since 1970."""
    return time.time()


def _exists(db: int, key: bytes) -> bool:
    """For WATCH, whether a key is there: some vanish by themselves."""
    databases[db].time = now()
    return key in databases[db]


logger = logging.getLogger("protoserve")

commands = CommandTable(server_version=VERSION, exists=_exists)
lock = commands.lock


class Keys(Database):
    """The keys of one database."""

    def __init__(self, number: int) -> None:
        super().__init__(lock)
        self.number = number
        self.waiting: dict[Waiter, None] = {}  # in the order of their arrival

    def notify_watch(self, key: bytes | None) -> None:
        """fakeredis calls this for each key that a command is about to change."""
        store.touched.append((self, key))

    def swap(self, other: Database) -> None:
        """SWAPDB."""
        super().swap(other)
        for keys in (self, other):
            keys.notify_watch(None)


class Store(Instead, FakeSocket):
    """A connection as fakeredis has them, and the only one: it runs the commands of all ours,
    one at a time, under the table's lock."""

    def __init__(self, dbs: list[Keys]) -> None:
        server = FakeServer(version=tuple(map(int, VERSION.split("."))))
        server.lock = lock
        server.dbs = dict(enumerate(dbs))
        super().__init__(server, 0, client_class=redis.Redis)
        self.touched: list[tuple[Keys, bytes | None]] = []
        self.session = RedisSession()
        self.lua: Sandbox | None = None
        self.functions_closed = False
        self.blocked: tuple[float, Callable[[bool], Any], Callable[[Any], Any]] | None = None

    def become(self, session: RedisSession) -> None:
        """Be the connection whose command comes next."""
        self.session = session
        self.select(session.db)
        self._client_info["resp"] = session.protocol
        self._in_transaction = session.executing
        moment = now()
        for keys in databases:
            keys.time = moment

    def run(self, signature: Signature, arguments: list[bytes]) -> Any:
        """Run a command. The value is fakeredis' own; ``NoResponse`` where it has to wait,
        then ``blocked`` says how."""
        function = getattr(self, signature.func_name)
        try:
            return self._run_command(function, signature, arguments, False)
        except LuaError as error:  # of what a script has returned
            return SimpleError(f"ERR {error}")

    def tell(self, unchanged: bool = False) -> None:
        """Tell those who WATCH, and remember whether somebody waits for what is new."""
        for keys, key in self.touched:
            if not unchanged:
                commands.touch(keys.number, key)
            if keys.waiting:
                ready.add(keys)
        self.touched.clear()

    def _blocking(
        self,
        timeout: float | None,
        func: Callable[[bool], Any],
        shape: Callable[[Any], Any] | None = None,
    ) -> Any:
        # fakeredis would hold its thread here.
        shape = shape or (lambda value: value)
        value = func(True)
        if value is None and not self._in_transaction and self._script_resp is None:
            self.blocked = (timeout or 0, func, shape)
            return NoResponse()
        return shape(value)

    def _name_to_func(self, cmd_name: str) -> tuple[Callable[..., Any] | None, Signature]:
        # For scripts; commands of clients know theirs.
        return super()._name_to_func(cmd_name)[0], SIGNATURES[cmd_name]

    def _lua_redis_call(self, lua: Any, names: set[Any], op: bytes, *words: Any) -> Any:
        command = commands.find(op)
        if commands.monitors and command is not None:
            line = [w if isinstance(w, bytes) else f"{w:.17g}".encode() for w in (op, *words)]
            commands.monitors.feed(None, self.session, command, line)
        return super()._lua_redis_call(lua, names, op, *words)

    def _get_server_runtime(self, server: FakeServer) -> Any:
        if self.lua is None:
            self.lua = Sandbox(super()._get_server_runtime(server), VERSION)
        return self.lua

    def _functions(self) -> Any:
        engine = super()._functions()
        if not self.functions_closed:
            close(engine.runtime)
            self.functions_closed = True
        return engine

    def publish(self, channel: bytes, message: bytes) -> int:
        """What a script publishes."""
        return commands.publish(channel, message)


databases = [Keys(number) for number in range(commands.databases)]
store = Store(databases)
ready: set[Keys] = set()
"""Changed, and somebody waits for it. Guarded by the lock."""


def ours(value: Any) -> Any:
    """A value of fakeredis as one of this package's."""
    match value:
        case FakeSimpleString():
            text = value.value.decode("utf-8", "surrogateescape")
            return OK if text == "OK" else SimpleString(text)
        case SimpleError():
            return RedisError(value.value)
        case list():
            return [ours(item) for item in value]
        case dict():
            return {ours(key): ours(item) for key, item in value.items()}
    return value


# -- commands that wait ----------------------------------------------------------------


class Waiter:
    """A client that waits until its command has something to return."""

    def __init__(
        self, task: Any, name: str, attempt: Callable[[bool], Any], shape: Callable[[Any], Any]
    ) -> None:
        self.name = name
        self.session = session_of(task)
        self.attempt = attempt
        self.shape = shape
        self.given: Future[Any] = Future()
        databases[self.session.db].waiting[self] = None

    def look(self) -> None:
        """Look whether there is something now."""
        store.become(self.session)
        try:
            value = self.attempt(False)
            if value is not None:
                self.end(self.shape(value))
        except SimpleError as error:
            if not is_patient(self.name, error):
                self.end(error)
        except Exception:
            # It is this client's, not of who pushed.
            logger.exception("a command that waited raised")
            self.end(SimpleError("ERR internal error"))
        store.tell()

    def end(self, value: Any) -> None:
        """Wait no more; the second time this does nothing."""
        databases[self.session.db].waiting.pop(self, None)
        if not self.given.done():
            self.given.set_result(ours(value))


def serve() -> None:
    """Give what has arrived to those who wait, in the order in which they came."""
    with lock:
        while ready:
            for waiter in list(ready.pop().waiting):
                waiter.look()


async def wait(waiter: Waiter, seconds: float) -> Any:
    """What the client gets, sooner or later. Runs without the lock; cancelled when the client
    leaves, and by CLIENT UNBLOCK."""
    try:
        await asyncio.wait([asyncio.wrap_future(waiter.given)], timeout=seconds or None)
    except asyncio.CancelledError:
        if not waiter.given.done():  # else it was served in the same moment
            raise
    finally:
        with lock:
            store.become(waiter.session)
            waiter.end(waiter.shape(None))
    value = waiter.given.result()
    return NULL_ARRAY if value is None else value


# -- every command of fakeredis --------------------------------------------------------


def _counted(place: int) -> Callable[[list[bytes]], list[bytes]]:
    """The keys of a line that says at a place how many follow."""

    def keys_of(line: list[bytes]) -> list[bytes]:
        return line[place + 1 : place + 1 + integer(line[place], least=0)]

    return keys_of


KEYS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    **dict.fromkeys(("eval", "evalsha", "fcall", "fcall_ro", "blmpop", "bzmpop"), _counted(2)),
    **dict.fromkeys(("lmpop", "zmpop", "sintercard", "zintercard"), _counted(1)),
    **dict.fromkeys(("zunion", "zinter", "zdiff"), _counted(1)),
    **dict.fromkeys(("xread", "xreadgroup"), lambda line: list(streams(line))),
}
"""Where they stand in no fixed place."""


def _register(name: str) -> None:
    facts = get_command_info(name.encode())
    assert facts is not None, name

    def run(task: Any, *words: bytes) -> Any:
        session = session_of(task)
        what, arguments = before(name, list(words))
        store.become(session)
        value = store.run(SIGNATURES[what], arguments)
        store.tell(is_unchanged(name, value))
        if ready:
            # After this command, or the whole transaction, when our lock is free.
            task.series.push_back(empty(lambda _: serve()))
        if store.blocked is None:
            return ours(after(name, arguments, value))
        (seconds, attempt, shape), store.blocked = store.blocked, None
        return wait(Waiter(task, name, attempt, shape), seconds)

    flags = [flag.decode() for flag in facts[2] if flag != b"script_runner"]  # Redis 8's
    if name == "pfcount":
        flags.append("may_replicate")  # it may write down what it has counted
    first, last, step = facts[3:6]
    keys = KEYS.get(name) or PLACES.get(name, (first, last or first, step))
    commands.command(name.replace(" ", "|"), facts[1], flags, keys)(run)


NOT_THEIRS = {known.decode().lower() for known in commands.commands} | {
    "acl",  # fakeredis knows of one connection
    *("dump", "restore"),  # it would unpickle what clients send
}

for _name, _signature in SUPPORTED_COMMANDS.items():
    if (
        "redis" in _signature.server_types
        and _name.split()[0] not in NOT_THEIRS
        and _name not in COMMANDS_WITH_SUB  # nothing by itself
    ):
        _register(_name)


# -- what fakeredis has not ------------------------------------------------------------

commands.command("TOUCH", -2, ("readonly", "fast"), (1, -1, 1))(
    commands.commands[b"EXISTS"].function
)


def _encoding(value: Any) -> str:
    """How Redis 7.0, with its defaults, would keep it."""
    if isinstance(value, bytes):
        try:
            integer(value)
            return "int"
        except RedisError:
            return "embstr" if len(value) <= 44 else "raw"
    if isinstance(value, list):
        return "quicklist"
    if isinstance(value, ExpiringMembersSet):
        numbers = len(value) <= 512 and all(re.fullmatch(rb"-?\d{1,18}", m) for m in value)
        return "intset" if numbers else "hashtable"
    words = [*value.keys(), *value.values()] if isinstance(value, Hash) else list(value)
    small = len(value) <= 128 and all(len(word) <= 64 for word in words)
    if isinstance(value, Hash):
        return "listpack" if small else "hashtable"
    return ("listpack" if small else "skiplist") if isinstance(value, ZSet) else "stream"


def _item(task: Any, key: bytes) -> Any:
    """The key as fakeredis has it, of the connection's database; None when it is not there."""
    db = session_of(task).db
    return databases[db].get(key) if _exists(db, key) else None


@commands.command("OBJECT|ENCODING", 3, ("readonly",), (2, 2, 1))
def object_encoding(task: Any, key: bytes) -> str | None:
    item = _item(task, key)
    return None if item is None else _encoding(item.value)


@commands.command("OBJECT|REFCOUNT", 3, ("readonly",), (2, 2, 1))
def object_refcount(task: Any, key: bytes) -> int | None:
    return 1 if _exists(session_of(task).db, key) else None  # nothing is shared


def _size(value: Any) -> int:
    """About how many bytes something takes, with all that it holds."""
    if isinstance(value, (bytes, str, int, float, type(None))):
        return sys.getsizeof(value)
    if isinstance(value, (Hash, dict)):
        return sys.getsizeof(value) + sum(_size(k) + _size(v) for k, v in value.items())
    try:
        return sys.getsizeof(value) + sum(map(_size, value))
    except TypeError:  # nothing to go through
        return sys.getsizeof(value)


@commands.command("MEMORY|USAGE", -3, ("readonly",), (2, 2, 1))
def memory_usage(task: Any, key: bytes, *options: bytes) -> int | None:
    """All of it: SAMPLES is understood, and ignored."""
    if options:
        if len(options) != 2 or options[0].upper() != b"SAMPLES":
            raise RedisError("ERR syntax error")
        integer(options[1], least=0)
    item = _item(task, key)
    return None if item is None else _size(key) + _size(item.value)


_words = b"""
appendfsync everysec appendonly no hash-max-listpack-entries 128 hash-max-listpack-value 64
hash-max-ziplist-entries 128 hash-max-ziplist-value 64 hll-sparse-max-bytes 3000
latency-monitor-threshold 0 list-compress-depth 0 list-max-listpack-size -2
list-max-ziplist-size -2 lua-time-limit 5000 maxclients 10000 maxmemory 0
maxmemory-policy noeviction proto-max-bulk-len 536870912 set-max-intset-entries 512
slowlog-log-slower-than 10000 stream-node-max-bytes 4096 stream-node-max-entries 100
tcp-keepalive 300 timeout 0 zset-max-listpack-entries 128 zset-max-listpack-value 64
zset-max-ziplist-entries 128 zset-max-ziplist-value 64
""".split()
_settings = {
    b"databases": b"%d" % commands.databases,
    b"save": b"",
    **dict(zip(_words[::2], _words[1::2], strict=True)),
}
"""What CONFIG tells; nothing here depends on it."""


@commands.command("CONFIG|GET", -3, ("admin", "noscript", "loading", "stale"), group="server")
def config_get(task: Any, *patterns: bytes) -> dict[bytes, bytes]:
    matches = [glob(pattern.lower()).match for pattern in patterns]
    return {name: text for name, text in _settings.items() if any(m(name) for m in matches)}


@commands.command("CONFIG|SET", -4, ("admin", "noscript", "loading", "stale"), group="server")
def config_set(task: Any, *pairs: bytes) -> Any:
    if len(pairs) % 2:
        raise RedisError("ERR wrong number of arguments for 'config|set' command")
    for name in pairs[::2]:
        if name.lower() not in _settings:
            shown = name.decode("utf-8", "surrogateescape")
            raise RedisError(
                f"ERR Unknown option or number of arguments for CONFIG SET - '{shown}'"
            )
    _settings.update(zip(map(bytes.lower, pairs[::2]), pairs[1::2], strict=True))
    return OK


@commands.command("CONFIG|RESETSTAT", 2, ("admin", "noscript", "loading", "stale"), group="server")
def config_resetstat(task: Any) -> Any:
    return OK  # it keeps none


@commands.command("DEBUG|ERROR", 3, ("admin", "noscript", "loading", "stale"), group="server")
def debug_error(task: Any, text: bytes) -> Any:
    """Clients' tests ask for errors so."""
    raise RedisError(text.decode("utf-8", "surrogateescape"))


@commands.info("keyspace")
def keyspace() -> dict[str, str]:
    return {f"db{db.number}": f"keys={len(db)},expires=0,avg_ttl=0" for db in databases if len(db)}
