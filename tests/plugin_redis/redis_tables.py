"""A small table for the tests of commands, and a raw client."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Any

import hiredis
import uvloop

from protoserve_redis import OK, CommandTable, RedisError, session_of

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
