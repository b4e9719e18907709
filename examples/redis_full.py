"""All of Redis' commands, Lua included: this protocol in front of the store of fakeredis.

Needs ``pip install 'protoserve[examples]'``. Run it with
``protoserve run redis examples.redis_full:commands --bind 127.0.0.1:6380``.

fakeredis is a Redis in memory, made for tests that use redis-py. What happens to keys is
taken from it. The connection's commands, publish/subscribe and MULTI are the table's.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import logging
import math
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import redis
from fakeredis import FakeServer
from fakeredis._commands import COMMANDS_WITH_SUB, Signature
from fakeredis._core import Database
from fakeredis._helpers import NoResponse, SimpleError
from fakeredis._helpers import SimpleString as FakeSimpleString
from fakeredis._socket._fakesocket import FakeSocket
from fakeredis.commands_mixins.scripting_mixin import _convert_redis_arg
from fakeredis.model import ExpiringMembersSet, Hash, ZSet, get_command_info

from examples.redis_corrections import (
    PLACES,
    SIGNATURES,
    TIMEOUT_LAST,
    Instead,
    after,
    before,
    is_patient,
    is_unchanged,
    streams,
)
from examples.redis_lua import NOT_COMPILED, LuaError, Sandbox, close, flags_of, undressed
from protoserve import CallbackHandle, TimerTask, empty, timer
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
        self.expirations = 0

    def notify_watch(self, key: bytes | None) -> None:
        """fakeredis calls this for each key that a command is about to change."""
        store.touched.append((self, key))

    def __getitem__(self, key: bytes) -> Any:
        """An item; one whose time has come is forgotten, and those who track it are told."""
        item = self._dict[key]
        if self.expired(item):
            del self._dict[key]
            self.expirations += 1
            commands.touch(self.number, key, expired=True)
            raise KeyError(key)
        return item

    def _remove_expired(self) -> None:
        heap = self._expiry_heap
        while heap and heap[0][0] < self.time:
            _, key = heapq.heappop(heap)
            self.get(key)

    def schedule_expiry(self, key: bytes, expireat: float | None) -> None:
        """Forget a key then, also when nobody asks for it."""
        super().schedule_expiry(key, expireat)
        if expireat is not None:
            sweep.wanted = min(sweep.wanted, expireat)

    @property
    def next_expiry(self) -> float:
        """When to look for such keys, at the latest."""
        return self._expiry_heap[0][0] if self._expiry_heap else math.inf

    def clear(self) -> None:
        """FLUSHDB: also of keys that were read and not there."""
        self._dict.clear()
        self._expiry_heap.clear()
        self.notify_watch(None)

    def swap(self, other: Database) -> None:
        """SWAPDB."""
        super().swap(other)
        for keys in (self, other):
            keys.notify_watch(None)


class Sweep:
    """Forgets keys when their time has come. Under the lock."""

    def __init__(self) -> None:
        self.wanted = math.inf  # when to look
        self.at = math.inf  # when it is going to
        self.timer: TimerTask | None = None
        self.server: Any = None
        self.told: CallbackHandle | None = None  # of its stop

    def begin(self, server: Any) -> None:
        """Look when it is wanted, or within an hour."""
        self.end()
        if self.told is not None:
            self.told.cancel()
        self.server, self.at = server, self.wanted
        # What is to vanish at a moment is there until it is over.
        self.timer = timer(min(max(self.at - now(), 0) + 0.001, 3600), self.look)
        self.timer.start()
        self.told = server.on_stopping(self.end)

    def end(self) -> None:
        """Do not look. Without the lock where the server stops."""
        clock, self.timer, self.at = self.timer, None, math.inf
        if clock is not None:
            clock.cancel()

    def look(self, clock: TimerTask) -> None:
        """Look now."""
        if clock.canceled:
            return
        with lock:
            if clock is self.timer:
                for keys in databases:
                    keys.time = now()
                    keys._remove_expired()
                self.wanted = min(keys.next_expiry for keys in databases)
                self.timer, self.at = None, math.inf
                if self.wanted < self.at:
                    self.begin(self.server)


sweep = Sweep()


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
        self.read_only = False  # the script that runs
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
        emptied = {keys for keys, key in self.touched if key is None}
        if len(emptied) == len(databases):
            commands.touch(None, None)  # in one message
        for keys, key in self.touched:
            if not unchanged and len(emptied) < len(databases):
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

    def eval(self, script: bytes, numkeys: int, *words: bytes) -> Any:
        """EVAL, and what EVALSHA has found."""
        self.read_only = "no-writes" in (flags_of(script) or ())
        return self._eval(script, numkeys, *words)

    def eval_ro(self, script: bytes, numkeys: int, *words: bytes) -> Any:
        """EVAL_RO: fakeredis has none."""
        flags = flags_of(script)
        if flags is not None and "no-writes" not in flags:
            raise SimpleError("ERR Can not execute a script with write flag using *_ro command.")
        self.read_only = True
        return self._eval(script, numkeys, *words)

    def _eval(self, script: bytes, numkeys: int, *words: bytes) -> Any:
        try:
            return super().eval(script, numkeys, *words)
        except SimpleError as error:
            if error.value.startswith(NOT_COMPILED):  # it is kept already
                self._server.script_cache.pop(hashlib.sha1(script).hexdigest().encode(), None)
            raise

    def script_load(self, script: bytes) -> Any:
        """SCRIPT LOAD, of what can be run."""
        self._get_server_runtime(self._server).compiled(script)
        return super().script_load(script)

    def evalsha_ro(self, digest: bytes, numkeys: int, *words: bytes) -> Any:
        """EVALSHA_RO, likewise."""
        script = self._server.script_cache.get(digest)
        if script is None:
            raise SimpleError("NOSCRIPT No matching script. Please use EVAL.")
        return self.eval_ro(script, numkeys, *words)

    def xgroup_destroy(self, key: Any, group: bytes) -> Any:
        """XGROUP DESTROY; those who wait for the group are told."""
        count = super().xgroup_destroy(key, group)
        keys = databases[self.session.db]
        if keys.waiting:
            ready.add(keys)
        return count

    def _from_script(self, line: list[bytes], read_only: bool) -> None:
        """Look at a command that a script, or a function, is about to run."""
        command = commands.find(line[0])
        if command is None:
            raise SimpleError("ERR Unknown Redis command called from script")
        if command.subcommands is not None and len(line) > 1:
            command = command.subcommands.get(line[1].upper(), command)
        if "noscript" in command.flags:
            raise SimpleError("ERR This Redis command is not allowed from script")
        if read_only and not {"write", "may_replicate"}.isdisjoint(command.flags):
            raise SimpleError("ERR Write commands are not allowed from read-only scripts.")
        if commands.monitors:
            commands.monitors.feed(None, self.session, command, line)
        if "readonly" in command.flags:
            self.session.reads = True

    def _call(self, *words: Any) -> Any:
        if not words:
            raise SimpleError("ERR Please specify at least one argument for this redis lib call")
        try:
            line = [_convert_redis_arg(word) for word in words]
        except SimpleError:
            raise SimpleError(
                "ERR Lua redis lib command arguments must be strings or integers"
            ) from None
        self._from_script(line, self.read_only)
        names = self._server._lua_expected_globals
        return self._lua_redis_call(self.lua, names, *line)

    def _function_redis_call(self, lua: Any, read_only: bool, *words: Any) -> Any:
        if words and all(type(word) in (bytes, int, float) for word in words):
            self._from_script([_convert_redis_arg(word) for word in words], read_only)
        return super()._function_redis_call(lua, read_only, *words)

    def _get_server_runtime(self, server: FakeServer) -> Any:
        if self.lua is None:
            self.lua = Sandbox(super()._get_server_runtime(server), VERSION, self._call)
        return self.lua

    def _functions(self) -> Any:
        engine = super()._functions()
        if not self.functions_closed:
            bare, call = undressed(engine.runtime), engine.call
            engine.call = lambda *words: bare(call(*words))
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
        with commands.tracking.batch(self.session):  # it is this client that has changed something
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


def _target_and_counted(line: list[bytes]) -> list[bytes]:
    return [line[1], *_counted(2)(line)]


def _sorted(line: list[bytes]) -> list[bytes]:
    """The keys of SORT, the last that it stores to among them."""
    target: list[bytes] = []
    rest = iter(line[2:])
    for word in map(bytes.upper, rest):
        for _ in range({b"LIMIT": 2, b"GET": 1, b"BY": 1}.get(word, 0)):
            next(rest, None)
        if word == b"STORE":
            target = [key for key in (next(rest, None),) if key is not None]
    return [line[1], *target]


SCRIPTS = ("eval", "evalsha", "fcall")
READ_ONLY = ("eval_ro", "evalsha_ro", "fcall_ro")

KEYS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    **dict.fromkeys((*SCRIPTS, *READ_ONLY, "blmpop", "bzmpop"), _counted(2)),
    **dict.fromkeys(("zunionstore", "zinterstore", "zdiffstore"), _target_and_counted),
    **dict.fromkeys(("lmpop", "zmpop", "sintercard", "zintercard"), _counted(1)),
    **dict.fromkeys(("zunion", "zinter", "zdiff"), _counted(1)),
    "sort": _sorted,
    **dict.fromkeys(("xread", "xreadgroup"), lambda line: list(streams(line))),
}
"""Where they stand in no fixed place."""


def _may_write(line: list[bytes]) -> bool:
    """Whether a script, or a function, does not say that it only reads: then CLIENT PAUSE
    WRITE holds it."""
    name, which = line[0].lower(), line[1]
    if name == b"fcall":
        with lock:
            function = store._functions().find(which)
        return function is None or b"no-writes" not in function.flags
    script = which if name == b"eval" else store._server.script_cache.get(which.lower(), b"")
    try:
        return "no-writes" not in (flags_of(script) or ())
    except SimpleError:
        return False  # all that it does is to fail


GROUPS = {
    "sortedset": "sorted-set",
    **{
        name: name
        for name in (
            *("string", "list", "set", "hash", "bitmap"),
            *("hyperloglog", "geo", "stream", "scripting"),
        )
    },
}
"""The categories of commands that are groups, and their names as such."""


def _register(name: str) -> None:
    facts = get_command_info(name.encode()) or get_command_info(name.removesuffix("_ro").encode())
    assert facts is not None, name

    def run(task: Any, *words: bytes) -> Any:
        session = session_of(task)
        what, arguments = before(name, list(words))
        store.become(session)
        if commands.monitors and "skip_monitor" in flags:
            # Before what it is going to run.
            line = [name.encode(), *words]
            command = commands.commands[name.upper().encode()]
            commands.monitors.feed(task.connection, session, command, line, itself=True)
        value = store.run(SIGNATURES[what], arguments)
        store.tell(is_unchanged(name, value))
        if sweep.wanted < sweep.at:
            sweep.begin(task.server)
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
    if name in READ_ONLY:
        flags.append("readonly")
    if name in TIMEOUT_LAST:
        flags.append("noscript")
    changes = None
    if name in SCRIPTS:
        flags.append("may_replicate")
        changes = _may_write
    first, last, step = facts[3:6]
    keys = KEYS.get(name) or PLACES.get(name, (first, last or first, step))
    categories = [category.decode().removeprefix("@") for category in facts[6]]
    group = next((GROUPS[c] for c in categories if c in GROUPS), "generic")
    commands.command(name.replace(" ", "|"), facts[1], flags, keys, group, changes=changes)(run)


NOT_THEIRS = {known.decode().lower() for known in commands.commands} | {
    "acl",  # fakeredis knows of one connection
    *("dump", "restore"),  # it would unpickle what clients send
}

for _name, _signature in SIGNATURES.items():
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
tcp-keepalive 300 timeout 0 tracking-table-max-keys 1000000
zset-max-listpack-entries 128 zset-max-listpack-value 64 zset-max-ziplist-entries 128
zset-max-ziplist-value 64
""".split()
_settings = {
    b"databases": b"%d" % commands.databases,
    b"save": b"",
    **dict(zip(_words[::2], _words[1::2], strict=True)),
}
"""What CONFIG tells; on the others than ``tracking-table-max-keys`` nothing depends here."""


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
    given = dict(zip(map(bytes.lower, pairs[::2]), pairs[1::2], strict=True))
    tracked = given.get(b"tracking-table-max-keys")
    if tracked is not None:
        commands.tracking.limit(integer(tracked, least=0))
    _settings.update(given)
    return OK


@commands.command("CONFIG|RESETSTAT", 2, ("admin", "noscript", "loading", "stale"), group="server")
def config_resetstat(task: Any) -> Any:
    return OK  # it keeps none


@commands.command("DEBUG|ERROR", 3, ("admin", "noscript", "loading", "stale"), group="server")
def debug_error(task: Any, text: bytes) -> Any:
    """Clients' tests ask for errors so."""
    raise RedisError(text.decode("utf-8", "surrogateescape"))


@commands.info("stats")
def expirations() -> dict[str, int]:
    return {"expired_keys": sum(keys.expirations for keys in databases)}


@commands.info("memory")
def scripts() -> dict[str, int]:
    return {"number_of_cached_scripts": len(store._server.script_cache)}


@commands.info("keyspace")
def keyspace() -> dict[str, str]:
    return {f"db{db.number}": f"keys={len(db)},expires=0,avg_ttl=0" for db in databases if len(db)}
