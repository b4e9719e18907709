"""WFRedisServer over loopback with a handler of its own, no command table."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import pytest
from redis_exchanges import command

from protoserve_redis import (
    NO_REPLY,
    OK,
    REDIS_SPEC,
    CommandTable,
    RedisError,
    RedisRequest,
    WFRedisServer,
    WFRedisTask,
    plugin,
)


class Handler:
    """Echoes; its connections have to authenticate where ``requires_authentication``."""

    def __init__(self, requires_authentication: bool = False) -> None:
        self.requires_authentication = requires_authentication

    def __call__(self, task: WFRedisTask) -> None:
        match task.req.name:
            case "QUIT":
                task.set_keep_alive(0)
                task.resp.value = OK
            case "RAISE":
                raise RuntimeError("a secret")
            case "ERROR":
                task.resp.value = RedisError("ERR wrong")
            case "OBJECT":
                task.resp.value = object()
            case "SILENT":
                task.resp.value = NO_REPLY
            case "AUTH":
                task.limit_unauthenticated(False)
                task.resp.value = OK
            case "MAP":
                task.resp.protocol = 3
                task.resp.value = {"a": len(task.req.args)}
            case _:
                task.resp.value = task.req.args


@pytest.fixture
def server() -> Iterator[WFRedisServer]:
    with WFRedisServer(Handler()).start("127.0.0.1", 0) as server:
        yield server


def talk(server: WFRedisServer, data: bytes) -> bytes:
    """Everything the server answers to ``data`` until it closes."""
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


QUIT = command(b"QUIT")


def test_pipelined_in_order_then_quits(server: WFRedisServer) -> None:
    requests = [command(b"ECHO", b"%d" % i) for i in range(2000)]
    assert talk(server, b"".join(requests) + QUIT + b"rest") == b"".join(requests) + b"+OK\r\n"


def test_inline_and_large(server: WFRedisServer) -> None:
    large = command(b"ECHO", b"\r\n" * 500_000)
    assert talk(server, b"ping 'a b'\r\n" + large + b"quit\r\n") == (
        command(b"ping", b"a b") + large + b"+OK\r\n"
    )


def test_protocol_of_the_reply(server: WFRedisServer) -> None:
    assert talk(server, b"map x\r\nquit\r\n") == b"%1\r\n$1\r\na\r\n:2\r\n+OK\r\n"


def test_no_reply(server: WFRedisServer) -> None:
    assert talk(server, b"silent\r\nerror\r\nsilent\r\nquit\r\n") == b"-ERR wrong\r\n+OK\r\n"


@pytest.mark.parametrize("name", [b"RAISE", b"OBJECT"])
def test_failures_are_error_replies(
    server: WFRedisServer, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert talk(server, command(name) + QUIT) == b"-ERR internal error\r\n+OK\r\n"
    assert len(caplog.records) == 1


def test_farewell_after_good_requests(server: WFRedisServer) -> None:
    with socket.create_connection(server.address, timeout=10) as other:
        assert talk(server, command(b"A") + b"*1\r\n*1\r\n") == (
            command(b"A") + b"-ERR Protocol error: expected '$', got '*'\r\n"
        )
        other.sendall(command(b"B"))
        assert other.recv(100) == command(b"B")


def test_unauthenticated_limits() -> None:
    with WFRedisServer(Handler(True)).start("127.0.0.1", 0) as server:
        many = command(*[b"a"] * 11)
        assert talk(server, command(b"A") + many) == (
            command(b"A") + b"-ERR Protocol error: unauthenticated multibulk length\r\n"
        )
        assert talk(server, command(b"AUTH") + many + QUIT) == b"+OK\r\n" + many + b"+OK\r\n"


def test_parameters_and_plugin() -> None:
    server = WFRedisServer(Handler())
    assert server.params is REDIS_SPEC.params
    assert server.url_scheme == "redis"
    registered: list[object] = []
    plugin.protoserve_register_protocols(registered.append)
    assert registered == [REDIS_SPEC]
    assert repr(RedisRequest([b"get", b"k"])) == "<RedisRequest 'GET' with 1 arguments>"


def test_the_application_has_the_context_to_itself() -> None:
    commands = CommandTable()

    @commands.command("COUNT", arity=1)
    def count(task: WFRedisTask) -> int:
        connection = task.connection
        connection.context = (connection.context or 0) + 1
        return connection.context  # type: ignore[no-any-return]

    with (
        WFRedisServer(commands).start("127.0.0.1", 0) as server,
        socket.create_connection(server.address, timeout=10) as client,
    ):
        client.sendall(command(b"COUNT") + command(b"SELECT", b"3") + command(b"COUNT"))
        answers = client.makefile("rb").read(len(b":1\r\n+OK\r\n:2\r\n"))
    assert answers == b":1\r\n+OK\r\n:2\r\n"


def test_nobody_is_cut_for_being_slow() -> None:
    params = REDIS_SPEC.params
    assert params.keep_alive_timeout is None
    assert params.receive_timeout is None
    assert params.peer_response_timeout is None
    with (
        WFRedisServer(Handler()).start("127.0.0.1", 0) as server,
        socket.create_connection(server.address, timeout=10) as silent,
        socket.create_connection(server.address, timeout=10) as halfway,
        socket.create_connection(server.address, timeout=10) as between,
    ):
        halfway.sendall(b"*2\r\n$4\r\nEC")
        between.sendall(command(b"A"))
        assert between.recv(100) == command(b"A")
        while len(server.connections()) < 3:
            pass
        # None of the three has a moment at which it would end.
        assert {conn.entry.deadline.at for conn in server.connections()} == {float("inf")}
        halfway.sendall(b"HO\r\n$1\r\nb\r\n")
        assert halfway.recv(100) == command(b"ECHO", b"b")
        silent.sendall(command(b"C"))
        assert silent.recv(100) == command(b"C")


def test_peers_that_are_gone_without_a_word_are_found_out() -> None:
    with (
        WFRedisServer(Handler()).start("127.0.0.1", 0) as server,
        socket.create_connection(server.address, timeout=10) as client,
    ):
        client.sendall(command(b"A"))
        assert client.recv(100) == command(b"A")
        [connection] = server.connections()
        with socket.socket(fileno=os.dup(connection.fd)) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 300


def test_who_is_halfway_holds_up_a_stop_no_longer_than_is_allowed() -> None:
    params = REDIS_SPEC.params.replace(shutdown_timeout=0.2)
    server = WFRedisServer(Handler(), params).start("127.0.0.1", 0)
    with (
        socket.create_connection(server.address, timeout=10) as halfway,
        socket.create_connection(server.address, timeout=10) as silent,
    ):
        halfway.sendall(command(b"A") + b"*2\r\n$4\r\nEC")
        assert halfway.recv(100) == command(b"A")
        assert server.stop() == 1
        assert halfway.recv(100) == silent.recv(100) == b""


@pytest.mark.parametrize(("count", "size"), [(100_000, 100), (12, 1_000_000)])
def test_a_client_may_write_a_long_pipeline_before_it_reads(count: int, size: int) -> None:
    one = command(b"ECHO", b"x" * size)
    with (
        WFRedisServer(Handler()).start("127.0.0.1", 0) as server,
        socket.create_connection(server.address, timeout=20) as client,
    ):
        client.sendall(one * count + QUIT)  # far more than all buffers on the way hold
        answer = bytearray()
        while data := client.recv(1 << 20):
            answer += data
        assert answer == one * count + b"+OK\r\n"


def test_unsent_output_has_a_limit() -> None:
    params = REDIS_SPEC.params.replace(unsent_limit=100_000)
    assert REDIS_SPEC.params.unsent_limit == 64 * 1024 * 1024
    one = command(b"ECHO", b"x" * 50_000)
    with (
        WFRedisServer(Handler(), params).start("127.0.0.1", 0) as server,
        socket.create_connection(server.address, timeout=20) as client,
    ):
        client.sendall(command(b"A"))
        assert client.recv(100) == command(b"A")
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # after a while it is not read any more
            while True:
                client.send(one)
                time.sleep(0.0005)
        [connection] = server.connections()
        assert connection.pending < 100_000 + 2 * len(one)
