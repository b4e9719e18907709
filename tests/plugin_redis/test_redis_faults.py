"""Commands that fail in unexpected ways, and clients that leave while they wait."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from examples.redis_kv import commands as store
from protoserve_redis import CommandTable, WFRedisServer, glob
from protoserve_redis.values import RedisError


def table() -> CommandTable:
    commands = CommandTable()

    @commands.command("BOOM", arity=1)
    def boom(task: object) -> None:
        raise RuntimeError("a secret")

    return commands


def ask(server: WFRedisServer, lines: bytes, size: int) -> bytes:
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(lines)
        answer = b""
        while len(answer) < size and (data := sock.recv(4096)):
            answer += data
        return answer


ERROR = b"-ERR internal error\r\n"


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        (b"BOOM\r\nPING\r\n", ERROR + b"+PONG\r\n"),
        (b"CLIENT REPLY SKIP\r\nBOOM\r\nPING\r\n", b"+PONG\r\n"),
        (b"CLIENT REPLY OFF\r\nBOOM\r\nCLIENT REPLY ON\r\n", b"+OK\r\n"),
        (
            b"MULTI\r\nPING\r\nBOOM\r\nPING\r\nEXEC\r\n",
            b"+OK\r\n" + 3 * b"+QUEUED\r\n" + b"*3\r\n+PONG\r\n" + ERROR + b"+PONG\r\n",
        ),
        (
            b"MULTI\r\nEXEC x\r\nPING\r\n",
            b"+OK\r\n-EXECABORT Transaction discarded because of: wrong number of arguments "
            b"for 'exec' command\r\n+PONG\r\n",
        ),
    ],
)
def test_replies_stay_in_step(lines: bytes, answer: bytes) -> None:
    with WFRedisServer(table()).start("127.0.0.1", 0) as server:
        assert ask(server, lines, len(answer)) == answer


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_clients_that_leave_while_they_wait_are_let_go() -> None:
    with WFRedisServer(store).start("127.0.0.1", 0) as server:
        for _ in range(5):
            with socket.create_connection(server.address, timeout=10) as sock:
                sock.sendall(b"BLPOP nothing-comes 0\r\n")
                eventually(lambda: any(c.seq for c in server.connections()))
        eventually(lambda: server.conn_count == 0)
        assert server.stop() == 0


def test_patterns_have_a_limit() -> None:
    assert glob(b"[^a]*").match(b"bcd")
    assert not glob(b"[^a-c]").match(b"b")
    with pytest.raises(RedisError, match="pattern"):
        glob(b"a" * 2000)
