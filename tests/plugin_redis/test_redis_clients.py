"""CLIENT, COMMAND and INFO: field by field what a real redis-server tells."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from kv_server import PATIENCE, eventually
from redis_lockstep import table
from redis_tables import RawClient, talk, talk_two

from protoserve import ConfigError, mailbox
from protoserve_redis import (
    NULL_ARRAY,
    CommandTable,
    RedisError,
    WFRedisServer,
    WFRedisTask,
    monitor,
    session_of,
)


@pytest.fixture
def commands() -> CommandTable:
    return table()


# -- what is told ----------------------------------------------------------------------

# What only some versions have, or a store in C.
NEWER_FIELDS = {"lib-name", "lib-ver"}
NEWER_COMMANDS = {"client|setinfo", "client|no-touch"}
# Fields that clients, their libraries and dashboards look for.
INFO_FIELDS = {
    "redis_version", "redis_mode", "os", "arch_bits", "process_id", "run_id", "tcp_port",
    "uptime_in_seconds", "uptime_in_days", "connected_clients", "blocked_clients", "maxclients",
    "used_memory", "used_memory_human", "used_memory_rss", "maxmemory", "maxmemory_policy",
    "loading", "aof_enabled", "rdb_bgsave_in_progress", "total_connections_received",
    "total_commands_processed", "role", "connected_slaves", "master_replid", "used_cpu_sys",
    "used_cpu_user", "cluster_enabled", "tracking_clients", "pubsub_channels",
}  # fmt: skip


def test_client_list_has_redis_fields(server: WFRedisServer, redis_port: int) -> None:
    fields = []
    for address in (server.address, ("127.0.0.1", redis_port)):
        with RawClient(address) as client:
            text = client.ask(b"CLIENT INFO").split(b"\r\n")[1].decode()
            fields.append([word.partition("=")[0] for word in text.split()])
    assert [name for name in fields[0] if name not in NEWER_FIELDS] == fields[1]


def test_every_entry_of_command(server: WFRedisServer, redis_port: int) -> None:
    host, port = server.address

    def entries(address: tuple[str, int]) -> dict[str, Any]:
        with redis.Redis(host=address[0], port=address[1], decode_responses=True) as client:
            client.response_callbacks.clear()
            found: dict[str, Any] = {}

            def note(entry: Any) -> None:
                found[entry[0]] = entry[:9]
                for sub in entry[9]:
                    note(sub)

            for entry in client.execute_command("COMMAND"):
                note(entry)
        return found

    ours, theirs = entries((host, port)), entries(("127.0.0.1", redis_port))
    own = {*CommandTable().commands}  # without the store's: their flags are the store's
    for name, entry in ours.items():
        if name.partition("|")[0].upper().encode() in own and name not in NEWER_COMMANDS:
            assert entry == theirs[name]
    missing = {n for n in theirs if n.partition("|")[0].upper().encode() in own} - {*ours}
    assert not missing


@pytest.mark.parametrize("protocol", [2, 3])
def test_info(
    server: WFRedisServer, commands: CommandTable, redis_port: int, protocol: int
) -> None:
    @commands.info("keyspace")
    def keyspace() -> dict[str, Any]:
        return {"db0": "keys=3,expires=1,avg_ttl=0"}

    @commands.info("Queue")
    def queue() -> dict[str, Any]:
        return {"waiting": 5}

    host, port = server.address
    with (
        redis.Redis(host=host, port=port, protocol=protocol) as ours,
        redis.Redis(port=redis_port, protocol=protocol) as theirs,
    ):
        ours.ping()
        got, expected = ours.info(), theirs.info()
        assert {*expected} >= INFO_FIELDS
        assert {*got} >= INFO_FIELDS
        assert {*got} - {*expected} == {"db0", "waiting"}
        for name in INFO_FIELDS:
            assert type(got[name]) is type(expected[name]), name
        for name in ("redis_version", "redis_mode", "arch_bits", "role", "loading", "maxmemory"):
            assert got[name] == expected[name]
        assert got["tcp_port"] == port
        assert got["db0"] == {"keys": 3, "expires": 1, "avg_ttl": 0}
        assert ours.info("keyspace") == {"db0": got["db0"]}
        assert ours.info("queue") == {"waiting": 5}
        assert ours.info("nothing") == {}
        assert ours.info("cluster") == theirs.info("cluster")


def test_laddr_fd_and_kill_by_it(server: WFRedisServer) -> None:
    with RawClient(server.address) as one, RawClient(server.address) as two:
        host, port = server.address
        line = one.ask(b"CLIENT INFO").decode()
        facts = dict(word.split("=", 1) for word in line.split()[1:])
        assert facts["laddr"] == f"{host}:{port}"
        assert facts["addr"] == "{}:{}".format(*one.sock.getsockname())
        assert os.readlink(f"/proc/self/fd/{facts['fd']}").startswith("socket:")
        two.ask(b"PING")
        assert one.ask(f"CLIENT KILL LADDR {host}:{port}".encode()) == b":1\r\n"
        assert two.reply() == b""


def test_kill_by_age(server: WFRedisServer, commands: CommandTable) -> None:
    with RawClient(server.address) as old, RawClient(server.address) as young:
        connection = commands.connection_of(int(old.ask(b"CLIENT ID")[1:-2]))
        assert connection is not None
        connection.state.created -= 100
        assert young.ask(b"CLIENT KILL MAXAGE 1000") == b":0\r\n"
        assert young.ask(b"CLIENT KILL MAXAGE 100 SKIPME no") == b":1\r\n"
        assert old.reply() == b""
        assert young.ask(b"CLIENT KILL MAXAGE 0").startswith(b"-ERR maxage should be greater")
        assert young.ask(b"CLIENT KILL MAXAGE x").startswith(b"-ERR maxage is not an integer")


def test_a_unix_client_has_the_path_as_address(commands: CommandTable, tmp_path: Path) -> None:
    path = str(tmp_path / "redis.sock")
    with (
        WFRedisServer(commands).start(f"unix:{path}"),
        redis.Redis(unix_socket_path=path) as client,
        redis.Redis(unix_socket_path=path) as watcher,
    ):
        [line] = client.client_list()
        assert (line["addr"], line["laddr"], line["flags"]) == (f"{path}:0", f"{path}:0", "U")
        with watcher.monitor() as monitor:
            client.set("k", 1)
            seen = monitor.next_command()
            assert seen["client_type"] == "unix"
        assert client.client_kill_filter(addr=f"{path}:0", skipme=False) >= 1


def test_monitor_costs_nothing_when_nobody_watches(
    server: WFRedisServer, commands: CommandTable
) -> None:
    with RawClient(server.address) as client:
        client.ask(b"GET k")
        assert commands._fast is commands._lookup
        with RawClient(server.address) as watcher, RawClient(server.address) as another:
            watcher.ask(b"MONITOR")
            another.ask(b"MONITOR")
            assert not commands._fast
            assert another.ask(b"RESET") == b"+RESET\r\n"
            client.ask(b"GET k")
            while not (line := watcher.reply()).endswith(b'"GET" "k"\r\n'):
                pass
            seconds = float(line[1:].split()[0])
            assert abs(seconds - time.time()) < PATIENCE
            assert len(line.split(b".")[1].split()[0]) == 6
        eventually(lambda: commands._fast is commands._lookup)
    assert not commands.monitors


def test_redis_py_s_monitor(server: WFRedisServer) -> None:
    host, port = server.address
    with redis.Redis(host=host, port=port, db=3) as client, client.monitor() as monitor:
        client.set("k", b"a b\xff")
        while (seen := monitor.next_command())["command"].partition(" ")[0] != "SET":
            pass
        assert seen["command"] == "SET k a b\\xff"
        assert (seen["db"], seen["client_type"]) == (3, "tcp")


# -- pauses ----------------------------------------------------------------------------


def test_unpause_from_elsewhere(server: WFRedisServer) -> None:
    with RawClient(server.address) as one, RawClient(server.address) as two:
        one.ask(b"CLIENT PAUSE 1000000 WRITE")
        two.send(b"SET k 1\r\nGET k")
        assert one.ask(b"GET k") == b"$-1\r\n"
        eventually(lambda: b"\nblocked_clients:1\r" in one.ask(b"INFO clients"))
        one.ask(b"CLIENT UNPAUSE")
        assert b"\nblocked_clients:0\r" in one.ask(b"INFO clients")
        assert [two.reply(), two.reply()] == [b"+OK\r\n", b"$1\r\n1\r\n"]


def test_a_line_that_changes_nothing_is_not_held(commands: CommandTable) -> None:
    @commands.command("RUN", 2, ("may_replicate",), changes=lambda line: line[1] != b"read")
    def run(task: Any, what: bytes) -> bytes:
        return what

    with talk_two(commands) as (one, two):
        for line in (b"MULTI", b"RUN write", b"RUN read"):
            two.ask(line)
        one.ask(b"CLIENT PAUSE 1000000 WRITE")
        assert one.ask(b"RUN read") == b"$4\r\nread\r\n"
        assert one.ask(b"MULTI") + one.ask(b"RUN read") == b"+OK\r\n+QUEUED\r\n"
        assert one.ask(b"EXEC") == b"*1\r\n$4\r\nread\r\n"
        two.send(b"EXEC")
        eventually(lambda: commands.pause.waiting == 1)
        one.ask(b"CLIENT UNPAUSE")
        assert two.reply() == b"*2\r\n$5\r\nwrite\r\n$4\r\nread\r\n"
    with pytest.raises(ConfigError, match="changes"):
        commands.command("RUN", 2, ("write",), changes=lambda: True)


def test_a_client_that_leaves_during_a_pause_does_nothing_more(
    server: WFRedisServer, commands: CommandTable
) -> None:
    with RawClient(server.address) as one:
        one.ask(b"CLIENT PAUSE 1000000 WRITE")
        with RawClient(server.address) as two:
            two.send(b"SET k 1")
            eventually(lambda: bool(commands.pause._waiting))
            two.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        eventually(lambda: len(commands.connections()) == 1)
        one.ask(b"CLIENT UNPAUSE")
        assert one.ask(b"GET k") == b"$-1\r\n"


# -- waiting commands ------------------------------------------------------------------


def test_who_has_left_is_not_counted_as_blocked() -> None:
    commands = table()
    go_on = threading.Event()

    @commands.command("LINGER", 1, ("blocking",))
    async def linger(task: Any) -> int:
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)
        return 1

    with talk_two(commands) as (one, two):
        two.send(b"LINGER")
        eventually(lambda: b"\nblocked_clients:1\r" in one.ask(b"INFO clients"))
        two.sock.shutdown(socket.SHUT_WR)
        try:
            eventually(lambda: b"\nblocked_clients:0\r" in one.ask(b"INFO clients"))
        finally:
            go_on.set()


class Queue:
    """A pop that waits, as a coroutine and as a task of the series."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[bytes] = asyncio.Queue()
        self.canceled = threading.Event()
        self.waiting = threading.Event()
        self.states: list[str] = []
        self.commands = CommandTable()
        self.commands.command("POP", 1, ("blocking",))(self.pop)
        self.commands.command("HOLD", 1, ("blocking",))(self.hold)
        self.commands.command("PUT", 2)(self.put)
        self.commands.command("WORK", 1)(self.work)

    async def pop(self, task: WFRedisTask) -> bytes:
        self.waiting.set()
        task.set_callback(lambda task: self.states.append(task.state.name))
        try:
            return await self.items.get()
        except asyncio.CancelledError:
            self.canceled.set()
            raise

    async def work(self, task: WFRedisTask) -> bytes:
        self.waiting.set()
        try:
            return await self.items.get()
        except asyncio.CancelledError:
            self.canceled.set()
            raise

    async def put(self, task: WFRedisTask, item: bytes) -> int:
        self.items.put_nowait(item)
        return self.items.qsize()

    def hold(self, task: WFRedisTask) -> Any:
        session = session_of(task)
        box = mailbox(lambda box: setattr(task.resp, "value", box.result))

        def end(error: RedisError | None) -> bool:
            session.blocked = None
            return box.send(NULL_ARRAY if error is None else error)

        session.blocked = end
        task.series.push_back(box)
        return None


@pytest.mark.parametrize("name", [b"POP", b"HOLD"])
def test_unblock(name: bytes) -> None:
    queue = Queue()
    with talk_two(queue.commands) as (one, two):
        number = one.ask(b"CLIENT ID")[1:-2]

        def unblock(*words: bytes) -> None:
            eventually(lambda: b"flags=b" in two.ask(b"CLIENT LIST ID " + number))
            assert two.ask(b" ".join((b"CLIENT UNBLOCK", number, *words))) == b":1\r\n"

        one.send(name)
        unblock()
        assert one.reply() == b"*-1\r\n"
        one.send(name)
        unblock(b"ERROR")
        assert one.reply() == b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"
        one.ask(b"HELLO 3")
        one.send(name)
        unblock(b"timeout")
        assert one.reply() == b"_\r\n"
        assert two.ask(b"CLIENT UNBLOCK " + number) == b":0\r\n"
        assert one.ask(b"PING") == b"+PONG\r\n"


@pytest.mark.parametrize("how", ["closes", "ends", "resets", "had ended"])
def test_a_client_that_leaves_takes_nothing(how: str) -> None:
    queue = Queue()
    with WFRedisServer(queue.commands).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            client.ask(b"PING")
            client.send(b"POP")
            if how == "had ended":
                client.sock.shutdown(socket.SHUT_WR)
            assert queue.waiting.wait(PATIENCE)
            if how == "ends":
                client.sock.shutdown(socket.SHUT_WR)
                assert client.reply() == b""
            elif how == "resets":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert queue.canceled.wait(PATIENCE)
        with RawClient(server.address) as client:
            assert client.ask(b"PUT x") == b":1\r\n"  # nobody took it
            assert client.ask(b"POP") == b"$1\r\nx\r\n"
            client.send(b"POP")  # ... and waiting goes on working on one connection
            with RawClient(server.address) as other:
                other.ask(b"PUT y")
            assert client.reply() == b"$1\r\ny\r\n"
    assert "SUCCESS" not in queue.states[:1]
    assert queue.states[1:] == ["SUCCESS", "SUCCESS"]


def test_the_last_thing_a_client_says_may_be_a_pop_of_what_is_there() -> None:
    queue = Queue()
    with talk(queue.commands) as client:
        client.send(b"PUT x\r\nPOP\r\nPOP")  # as `printf ... | nc` does
        client.sock.shutdown(socket.SHUT_WR)
        assert [client.reply() for _ in range(3)] == [b":1\r\n", b"$1\r\nx\r\n", b""]


def test_what_is_not_blocking_ends_its_work() -> None:
    queue = Queue()
    with talk_two(queue.commands) as (client, other):
        client.send(b"WORK\r\nPING")
        assert queue.waiting.wait(PATIENCE)
        client.sock.shutdown(socket.SHUT_WR)
        other.ask(b"PUT x")
        assert [client.reply(), client.reply()] == [b"$1\r\nx\r\n", b"+PONG\r\n"]
    assert not queue.canceled.is_set()


@pytest.mark.parametrize("mode", [b"OFF", b"SKIP"])
def test_a_late_value_is_not_sent_where_replies_are_off(mode: bytes) -> None:
    queue = Queue()
    with talk_two(queue.commands) as (one, two):
        number = one.ask(b"CLIENT ID")[1:-2]
        for name in (b"POP", b"HOLD"):
            one.send(b"CLIENT REPLY " + mode + b"\r\n" + name)
            eventually(lambda: two.ask(b"CLIENT UNBLOCK " + number) == b":1\r\n")
            one.send(b"CLIENT REPLY ON")
            assert one.reply() == b"+OK\r\n"
        assert one.ask(b"PING") == b"+PONG\r\n"


# -- stopping, leaving, silence --------------------------------------------------------


class Endless:
    """A command that waits until it is cancelled."""

    def __init__(self) -> None:
        self.began, self.cancelled = threading.Event(), threading.Event()
        self.commands = CommandTable()
        self.commands.command("WAIT4EVER", flags=("blocking",))(self.wait)

    async def wait(self, task: WFRedisTask) -> None:
        self.began.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.mark.parametrize("within", [False, True])
def test_a_stop_ends_commands_that_wait(within: bool) -> None:
    endless = Endless()
    with (
        WFRedisServer(endless.commands).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        if within:
            client.ask(b"MULTI")
            client.ask(b"WAIT4EVER")
            client.ask(b"PING")
        client.send(b"EXEC" if within else b"WAIT4EVER")
        assert endless.began.wait(PATIENCE)
        assert server.stop() == 0
        assert client.reply() == (b"*2\r\n*-1\r\n+PONG\r\n" if within else b"*-1\r\n")
        assert client.reply() == b""
    assert endless.cancelled.is_set()


def test_a_client_that_leaves_ends_what_waits_in_its_transaction() -> None:
    endless = Endless()
    with WFRedisServer(endless.commands).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            for line in (b"MULTI", b"WAIT4EVER", b"WAIT4EVER"):
                client.ask(line)
            client.send(b"EXEC")
            assert endless.began.wait(PATIENCE)
        eventually(lambda: server.conn_count == 0)
        assert endless.cancelled.is_set()


def test_what_a_pause_holds_is_let_go_when_its_client_leaves_or_the_server_stops(
    commands: CommandTable,
) -> None:
    server = WFRedisServer(commands)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        assert client.ask(b"CLIENT PAUSE 600000 WRITE") == b"+OK\r\n"
        with RawClient(server.address) as leaving, RawClient(server.address) as staying:
            for waiting in (leaving, staying):
                waiting.send(b"SET k 1")
            eventually(lambda: len(commands.pause._waiting) == 2)
            leaving.sock.close()
            eventually(lambda: server.conn_count == 2)
            assert server.stop() == 0
            assert staying.reply() == b""
    assert not commands.pause._waiting
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        assert client.ask(b"GET k") == b"$-1\r\n"  # what was held did not happen
        assert client.ask(b"SET k 2") == b"+OK\r\n"  # the pause has gone with its server
        assert not commands.pause.active


def test_a_connection_that_has_said_nothing_is_seen_and_killed(
    server: WFRedisServer, commands: CommandTable
) -> None:
    with RawClient(server.address) as client, RawClient(server.address) as silent:
        eventually(lambda: len(commands.connections()) == 2)
        assert client.ask(b"CLIENT LIST").count(b"cmd=NULL") == 1
        assert b"connected_clients:2\r\n" in client.ask(b"INFO clients")
        assert client.ask(b"CLIENT KILL TYPE normal") == b":1\r\n"
        assert silent.reply() == b""


# -- what is long or large -------------------------------------------------------------


def test_large_lines_are_answered_at_once(server: WFRedisServer) -> None:
    """Bounded by the timeout of every test: byte by byte, or once for each name, they took
    minutes."""

    def packed(*words: bytes) -> bytes:
        strings = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        return (b"*%d\r\n" % len(words) + strings)[:-2]

    def size_of(client: RawClient, size: int) -> None:
        while size > 0:
            size -= len(client.sock.recv(1 << 20))

    with RawClient(server.address) as client, RawClient(server.address) as watcher:
        one = client.ask(b"COMMAND INFO client")
        client.send(packed(b"COMMAND", b"INFO", *[b"client"] * 5000))
        size_of(client, len(b"*5000\r\n") + 5000 * (len(one) - len(b"*1\r\n")))
        client.ask(b"HELLO 3")
        assert client.ask(b"COMMAND INFO client") != one
        client.send(packed(b"CLIENT", b"SETNAME", b"x" * 60_000_000))
        assert client.reply() == b"+OK\r\n"
        client.send(packed(b"CLIENT", b"SETNAME", b"x" * 60_000_000 + b" "))
        assert client.reply().startswith(b"-ERR Client names cannot contain spaces")
        client.ask(b"CLIENT SETNAME x")
        watcher.ask(b"MONITOR")
        client.send(packed(b"SET", b"k", b"\0" * 4_000_000))
        assert client.reply() == b"+OK\r\n"
        size_of(watcher, 4 * 4_000_000)


def test_monitor_s_escapes() -> None:
    for data, shown in (
        (b"plain ~", b"plain ~"),
        (b"\\x07\\u0100\\", b"\\\\x07\\\\u0100\\\\"),
        (b"\a\b\t\n\r\0\x1f\x7f\x80\xff", rb"\a\b\t\n\r\x00\x1f\x7f\x80\xff"),
        (b"'\"", b"'\\\""),
    ):
        assert monitor._quoted(data) == b'"' + shown + b'"'
