"""Small tables for the tests of commands, and raw clients of their servers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import hiredis
import uvloop

from protoserve_redis import (
    OK,
    CommandTable,
    RedisError,
    WFRedisServer,
    integer,
    options,
    session_of,
)

# uvloop makes a pipe with the first loop of a process and keeps it.
uvloop.new_event_loop().close()


def table(**options: Any) -> CommandTable:
    """A table with a few string commands over one dictionary."""
    commands = CommandTable(**options)
    store: dict[tuple[int, bytes], bytes] = {}

    def place(task: Any, key: bytes) -> tuple[int, bytes]:
        return session_of(task).db, key

    @commands.command("GET", 2, ("readonly", "fast"), (1, 1, 1), "string", "Gets a value.")
    def get(task: Any, key: bytes) -> bytes | None:
        return store.get(place(task, key))

    @commands.command("SET", -3, ("write",), (1, 1, 1), "string")
    def set_(task: Any, key: bytes, value: bytes, *options: bytes) -> Any:
        store[place(task, key)] = value
        commands.touch(*place(task, key))
        return OK

    @commands.command("INCR", 2, ("write", "fast"), (1, 1, 1), "string")
    def incr(task: Any, key: bytes) -> int:
        try:
            value = int(store.get(place(task, key), b"0")) + 1
        except ValueError:
            raise RedisError("ERR value is not an integer or out of range") from None
        store[place(task, key)] = b"%d" % value
        commands.touch(*place(task, key))
        return value

    @commands.command("INCRBY", 3, ("write", "fast"), (1, 1, 1), "string")
    def incrby(task: Any, key: bytes, by: bytes) -> int:
        value = int(store.get(place(task, key), b"0")) + int(by)
        store[place(task, key)] = b"%d" % value
        commands.touch(*place(task, key))
        return value

    @commands.command("MSET", -3, ("write",), (1, -1, 2), "string")
    def mset(task: Any, *pairs: bytes) -> Any:
        return OK

    return commands


class Store:
    """Some of Redis' own commands, as exact as Redis: what the real one is compared with.

    Strings, hashes and lists in databases; flags, keys and changes (``touch``) like theirs.
    """

    def __init__(self, **options: Any) -> None:
        self.commands = CommandTable(exists=lambda db, key: key in self.databases[db], **options)
        self.databases: list[dict[bytes, Any]] = [{} for _ in range(self.commands.databases)]
        for name, (arity, flags, keys) in _COMMANDS.items():
            function = getattr(self, name.lower() + "_")
            self.commands.command(name, arity, flags.split(), keys)(function)

    def _data(self, task: Any) -> dict[bytes, Any]:
        return self.databases[session_of(task).db]

    def _get(self, task: Any, key: bytes, kind: type) -> Any:
        value = self._data(task).get(key)
        if value is not None and type(value) is not kind:
            raise RedisError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _set(self, task: Any, key: bytes, value: Any) -> None:
        self._data(task)[key] = value
        self.commands.touch(session_of(task).db, key)

    def get_(self, task: Any, key: bytes) -> Any:
        return self._get(task, key, bytes)

    def set_(self, task: Any, key: bytes, value: bytes, *words: bytes) -> Any:
        found = options(words, "NX", "XX", "GET", "KEEPTTL", exclusive=("NX XX",))
        old = self._get(task, key, bytes) if "GET" in found else None
        there = key in self._data(task)
        if ("NX" in found and there) or ("XX" in found and not there):
            return old
        self._set(task, key, value)
        return old if "GET" in found else OK

    def del_(self, task: Any, *keys: bytes) -> int:
        count = 0
        for key in keys:
            if self._data(task).pop(key, None) is not None:
                self.commands.touch(session_of(task).db, key)
                count += 1
        return count

    def exists_(self, task: Any, *keys: bytes) -> int:
        return sum(key in self._data(task) for key in keys)

    def incr_(self, task: Any, key: bytes) -> int:
        return self.incrby_(task, key, b"1")

    def incrby_(self, task: Any, key: bytes, by: bytes) -> int:
        step = integer(by)
        old = self._get(task, key, bytes)
        value = (0 if old is None else integer(old)) + step
        if not -(2**63) <= value < 2**63:
            raise RedisError("ERR increment or decrement would overflow")
        self._set(task, key, b"%d" % value)
        return value

    def append_(self, task: Any, key: bytes, more: bytes) -> int:
        value = (self._get(task, key, bytes) or b"") + more
        self._set(task, key, value)
        return len(value)

    def strlen_(self, task: Any, key: bytes) -> int:
        return len(self._get(task, key, bytes) or b"")

    def mget_(self, task: Any, *keys: bytes) -> list[Any]:
        values = [self._data(task).get(key) for key in keys]
        return [value if type(value) is bytes else None for value in values]

    def mset_(self, task: Any, *pairs: bytes) -> Any:
        if len(pairs) % 2:
            raise RedisError("ERR wrong number of arguments for 'mset' command")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            self._set(task, key, value)
        return OK

    def hset_(self, task: Any, key: bytes, *pairs: bytes) -> int:
        if len(pairs) % 2:
            raise RedisError("ERR wrong number of arguments for 'hset' command")
        value = self._get(task, key, dict) or {}
        count = len({*pairs[::2]} - {*value})
        self._set(task, key, value | dict(zip(pairs[::2], pairs[1::2], strict=True)))
        return count

    def hget_(self, task: Any, key: bytes, field: bytes) -> Any:
        return (self._get(task, key, dict) or {}).get(field)

    def hgetall_(self, task: Any, key: bytes) -> Any:
        return dict(self._get(task, key, dict) or {})

    def rpush_(self, task: Any, key: bytes, *items: bytes) -> int:
        value = [*(self._get(task, key, list) or ()), *items]
        self._set(task, key, value)
        return len(value)

    def lrange_(self, task: Any, key: bytes, start: bytes, stop: bytes) -> Any:
        first, last = integer(start), integer(stop)
        value = self._get(task, key, list) or []
        first = max(first + len(value), 0) if first < 0 else first
        last = last + len(value) if last < 0 else last
        return value[first : max(last + 1, 0)]

    def dbsize_(self, task: Any) -> int:
        return len(self._data(task))

    def flushdb_(self, task: Any) -> Any:
        for key in [*self._data(task)]:
            del self._data(task)[key]
        self.commands.touch(session_of(task).db, None)
        return OK

    def flushall_(self, task: Any) -> Any:
        for data in self.databases:
            data.clear()
        self.commands.touch(None, None)
        return OK


_ONE, _ALL = (1, 1, 1), (1, -1, 1)
_COMMANDS: dict[str, tuple[int, str, tuple[int, int, int]]] = {
    "GET": (2, "readonly fast", _ONE),
    "SET": (-3, "write denyoom", _ONE),
    "DEL": (-2, "write", _ALL),
    "EXISTS": (-2, "readonly fast", _ALL),
    "INCR": (2, "write denyoom fast", _ONE),
    "INCRBY": (3, "write denyoom fast", _ONE),
    "APPEND": (3, "write denyoom fast", _ONE),
    "STRLEN": (2, "readonly fast", _ONE),
    "MGET": (-2, "readonly fast", _ALL),
    "MSET": (-3, "write denyoom", (1, -1, 2)),
    "HSET": (-4, "write denyoom fast", _ONE),
    "HGET": (3, "readonly fast", _ONE),
    "HGETALL": (2, "readonly", _ONE),
    "RPUSH": (-3, "write denyoom fast", _ONE),
    "LRANGE": (4, "readonly", _ONE),
    "DBSIZE": (1, "readonly fast", (0, 0, 0)),
    "FLUSHDB": (-1, "write", (0, 0, 0)),
    "FLUSHALL": (-1, "write", (0, 0, 0)),
}


class RawClient:
    """Sends lines as they are and reads replies one by one."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.create_connection(address, timeout=10)
        self.pending = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.close()

    def send(self, line: bytes) -> None:
        """Send an inline command."""
        self.sock.sendall(line + b"\r\n")

    def reply(self) -> bytes:
        """The bytes of the next reply; none when the connection has closed."""
        taken = b""
        reader = hiredis.Reader(notEnoughData=self)
        while True:
            # Byte by byte, to know where the reply ends.
            if not self.pending:
                self.pending = self.sock.recv(65536)
                if not self.pending:
                    return taken
            byte, self.pending = self.pending[:1], self.pending[1:]
            taken += byte
            reader.feed(byte)
            if reader.gets() is not self:
                return taken

    def ask(self, line: bytes, replies: int = 1) -> bytes:
        """Send an inline command; the bytes of its replies."""
        self.send(line)
        return b"".join(self.reply() for _ in range(replies))


@contextlib.contextmanager
def talk(commands: CommandTable) -> Iterator[RawClient]:
    """A client of a server of a table."""
    with (
        WFRedisServer(commands).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        yield client


@contextlib.contextmanager
def talk_two(commands: CommandTable) -> Iterator[tuple[RawClient, RawClient]]:
    """Two clients of a server of a table."""
    with (
        WFRedisServer(commands).start("127.0.0.1", 0) as server,
        RawClient(server.address) as one,
        RawClient(server.address) as two,
    ):
        yield one, two
