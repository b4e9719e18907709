"""CLIENT TRACKING beyond what is compared with a real server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import redis
from kv_server import eventually
from redis.cache import CacheConfig
from redis_tables import RawClient, Store, talk_two

from protoserve_redis import CommandTable, WFRedisServer, session_of


@pytest.fixture
def commands() -> CommandTable:
    return Store().commands


INVALIDATED = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\n%b\r\n"


def test_redis_py_s_cache(server: WFRedisServer) -> None:
    host, port = server.address
    with (
        redis.Redis(host=host, port=port, protocol=3, cache_config=CacheConfig()) as cached,
        redis.Redis(host=host, port=port) as other,
    ):
        other.set("k", 1)
        assert cached.get("k") == b"1"
        assert cached.get_cache().size == 1
        other.set("k", 2)
        assert cached.get("k") == b"2"
        other.flushall()
        assert cached.get("k") is None


def test_changes_from_any_thread_are_told_at_once(
    server: WFRedisServer, commands: CommandTable
) -> None:
    with RawClient(server.address) as client, RawClient(server.address) as broad:
        client.send(b"HELLO 3\r\nCLIENT TRACKING on\r\nGET a\r\nGET b")
        broad.send(b"HELLO 3\r\nCLIENT TRACKING on BCAST PREFIX a")
        for reader, count in ((client, 4), (broad, 2)):
            for _ in range(count):
                reader.reply()
        for key in ("a", b"b"):
            thread = threading.Thread(target=commands.touch, args=(0, key))
            thread.start()
            thread.join()
        assert client.reply() == INVALIDATED % b"a"
        assert client.reply() == INVALIDATED % b"b"
        assert broad.reply() == INVALIDATED % b"a"
        commands.touch(None, None)
        assert client.reply() == broad.reply() == b">2\r\n$10\r\ninvalidate\r\n_\r\n"


def test_keys_that_are_remembered_have_a_limit(
    server: WFRedisServer, commands: CommandTable
) -> None:
    commands.tracking.limit(2)
    with RawClient(server.address) as client, RawClient(server.address) as other:
        # With NOLOOP, too: it is not its doing.
        client.send(b"HELLO 3\r\nCLIENT TRACKING on NOLOOP\r\nMGET a b c\r\nPING")
        replies = [client.reply() for _ in range(5)]
        assert replies[2:] == [b"*3\r\n_\r\n_\r\n_\r\n", INVALIDATED % b"a", b"+PONG\r\n"]
        assert commands.tracking.key_count == 2
        other.ask(b"SET a 1")
        other.ask(b"SET b 1")
        assert client.reply() == INVALIDATED % b"b"
        other.ask(b"SET c 1")
        assert client.reply() == INVALIDATED % b"c"
        client.ask(b"MGET a b")
        commands.tracking.limit(1)
        assert client.reply() == INVALIDATED % b"a"
        commands.tracking.limit(0)
        client.ask(b"MGET a b c")
        assert commands.tracking.key_count == 3


def test_info_counts_what_is_tracked(server: WFRedisServer) -> None:
    with RawClient(server.address) as client, RawClient(server.address) as other:
        for line in (b"CLIENT TRACKING on", b"MGET a b"):
            client.ask(line)
        for prefixes in (b"PREFIX p: PREFIX q:", b"PREFIX r:"):
            other.ask(b"CLIENT TRACKING on BCAST " + prefixes)
        with RawClient(server.address) as third:
            for line in (b"CLIENT TRACKING on", b"GET b"):
                third.ask(line)
            facts = client.ask(b"INFO stats")
    for fact in (b"total_keys:2", b"total_items:3", b"total_prefixes:3"):
        assert b"tracking_%b\r\n" % fact in facts


def test_nobody_s_doing_is_told_to_who_found_it_out(commands: CommandTable) -> None:
    @commands.command("EXPIRE-NOW", 2, ("readonly",))
    def expire_now(task: Any, key: bytes) -> None:
        commands.touch(0, key, expired=True)

    for mode in (b"", b" BCAST"):
        with talk_two(commands) as (client, _):
            client.ask(b"HELLO 3")
            client.ask(b"CLIENT TRACKING on NOLOOP" + mode)
            client.ask(b"GET k")
            assert client.ask(b"SET k 1") == b"+OK\r\n"
            client.ask(b"GET k")
            assert client.ask(b"EXPIRE-NOW k") == b"_\r\n"
            assert client.reply() == INVALIDATED % b"k"


def test_a_command_that_turns_out_to_read_is_tracked(commands: CommandTable) -> None:
    @commands.command("RUN", 3, ("skip_monitor", "readonly"), (1, 1, 1))
    def run(task: Any, key: bytes, what: bytes) -> bytes:
        session_of(task).reads = what == b"read"
        return what

    with talk_two(commands) as (client, other):
        client.ask(b"HELLO 3")
        client.ask(b"RUN k read")
        client.ask(b"CLIENT TRACKING on")
        # Before it tracked it read; as for the flag, a script's commands are what counts.
        client.ask(b"RUN k write")
        other.ask(b"SET k 1")
        assert client.ask(b"PING") == b"+PONG\r\n"
        client.ask(b"RUN k read")
        other.ask(b"SET k 2")
        assert client.reply() == INVALIDATED % b"k"


def test_nothing_is_kept_of_clients_that_left(
    server: WFRedisServer, commands: CommandTable
) -> None:
    gone = threading.Event()

    @commands.command("NOTE", 1)
    def note(task: Any) -> int:
        task.connection.on_close(lambda connection: gone.set())
        return 1

    with RawClient(server.address) as client:
        client.send(b"CLIENT TRACKING on BCAST\r\nNOTE")
        client.reply()
        client.reply()
        assert not commands._fast
    assert gone.wait(10)
    assert not commands.tracking.clients
    assert commands.tracking.key_count == 0
    assert commands._fast is commands._lookup


def test_what_async_commands_read_is_tracked() -> None:
    commands = Store().commands
    begun, go_on = threading.Event(), threading.Event()

    @commands.command("SLOWGET", 2, ("readonly",), (1, 1, 1))
    async def slow_get(task: Any, key: bytes) -> bytes:
        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return key

    with talk_two(commands) as (client, other):
        client.send(b"HELLO 3\r\nCLIENT TRACKING on\r\nSLOWGET k")
        client.reply()
        client.reply()
        assert begun.wait(10)
        # While it is being read: the answer may be the old one, so this must be told.
        other.ask(b"SET k 1")
        go_on.set()
        assert client.reply() == INVALIDATED % b"k"
        assert client.reply() == b"$1\r\nk\r\n"
        other.ask(b"SET k 2")
        assert client.reply() == INVALIDATED % b"k"


def test_what_an_async_command_changes_is_told_to_its_client_after_its_reply() -> None:
    commands = Store().commands
    begun, go_on = threading.Event(), threading.Event()

    @commands.command("SLOWSET", 2, ("write",), (1, 1, 1))
    async def slow_set(task: Any, key: bytes) -> bytes:
        await asyncio.sleep(0)
        commands.touch(0, key)
        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return key

    for options in (b"", b" NOLOOP"):
        for line in ([b"SLOWSET k"], [b"MULTI", b"SLOWSET k", b"EXEC"]):
            begun.clear()
            go_on.clear()
            with talk_two(commands) as (client, other):
                for one, more in ((client, options), (other, b"")):
                    one.send(b"HELLO 3\r\nCLIENT TRACKING on%b\r\nGET k" % more)
                    for _ in range(3):
                        one.reply()
                for words in line[:-1]:
                    client.ask(words)
                client.send(line[-1])
                assert begun.wait(10)
                assert other.reply() == INVALIDATED % b"k"  # at once
                go_on.set()
                assert client.reply().endswith(b"$1\r\nk\r\n")
                if not options:
                    assert client.reply() == INVALIDATED % b"k"
                assert client.ask(b"PING") == b"+PONG\r\n"
                assert not commands.tracking._acting


def test_many_changes_while_others_come_and_go(
    server: WFRedisServer, commands: CommandTable
) -> None:
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            commands.touch(0, b"k")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(20):
            with RawClient(server.address) as client:
                client.send(b"HELLO 3\r\nCLIENT TRACKING on\r\nGET k")
                seen = [client.reply() for _ in range(4)]
                assert sorted(seen[2:]) == [INVALIDATED % b"k", b"_\r\n"]
    finally:
        stop.set()
        thread.join()


def test_switching_on_again_keeps_what_caching_said() -> None:
    for mode, word, told in (("OPTOUT", "NO", False), ("OPTIN", "YES", True)):
        commands = Store().commands
        with talk_two(commands) as (client, other):
            client.ask(b"HELLO 3")
            for line in (f"TRACKING ON {mode}", f"CACHING {word}", f"TRACKING ON {mode}"):
                assert client.ask(f"CLIENT {line}".encode()) == b"+OK\r\n"
            client.ask(b"GET k")
            other.ask(b"SET k 1")
            if told:
                assert client.reply() == INVALIDATED % b"k"
            assert client.ask(b"PING") == b"+PONG\r\n"


def test_all_keys_on_top_of_some(server: WFRedisServer) -> None:
    with RawClient(server.address) as client, RawClient(server.address) as other:
        client.ask(b"HELLO 3")
        client.ask(b"CLIENT TRACKING ON BCAST PREFIX l")
        assert client.ask(b"CLIENT TRACKING ON BCAST") == b"+OK\r\n"
        other.ask(b"SET o 1")
        assert client.reply() == INVALIDATED % b"o"
        info = client.ask(b"CLIENT TRACKINGINFO")
        assert info.endswith(b"*2\r\n$0\r\n\r\n$1\r\nl\r\n")
        assert b"overlaps with an existing prefix ''" in client.ask(
            b"CLIENT TRACKING ON BCAST PREFIX o"
        )


def test_thousands_of_prefixes(server: WFRedisServer) -> None:
    """All pairs of them would take minutes."""
    many = b"".join(b" PREFIX %06d" % i for i in range(6_000))
    with RawClient(server.address) as client, RawClient(server.address) as other:
        client.ask(b"HELLO 3")
        client.send(b"*%d\r\n" % (4 + 2 * 100_000) + _strings(100_000))
        assert client.reply() == b"+OK\r\n"
        other.ask(b"SET k 1")
        other.ask(b"SET 000007x 1")
        assert client.reply() == INVALIDATED.replace(b"$1\r", b"$7\r") % b"000007x"
        assert client.ask(b"CLIENT TRACKING ON BCAST" + many[:60_000] + b" PREFIX 00000") == (
            b"-ERR Prefix '000000' overlaps with an existing prefix '000000'. Prefixes for a "
            b"single client must not overlap.\r\n"
        )


def _strings(count: int) -> bytes:
    words = [b"CLIENT", b"TRACKING", b"ON", b"BCAST"]
    for number in range(count):
        words += [b"PREFIX", b"%06d" % number]
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)[:-2]


@pytest.mark.parametrize(
    "line", [b"CLIENT TRACKING ON", b"SUBSCRIBE c", b"SSUBSCRIBE c", b"WATCH k", b"MONITOR"]
)
def test_a_client_that_is_killed_on_its_way_in_stays_in_nothing(line: bytes) -> None:
    commands = Store().commands
    arrived, killed = threading.Event(), threading.Event()
    name = line.split()[0].lower().decode()

    @commands.guard
    def wait(task: Any, command: Any, words: list[bytes]) -> None:
        if command.full_name.partition("|")[0] == name and b"KILL" not in words:
            arrived.set()
            assert killed.wait(20)

    with WFRedisServer(commands).start("127.0.0.1", 0) as server:
        client = RawClient(server.address)
        (connection,) = _connected(commands)
        client.send(line)
        assert arrived.wait(20)
        connection.close()
        killed.set()
        client.sock.close()
        with RawClient(server.address) as other:
            assert other.ask(b"PING") == b"+PONG\r\n"
            eventually(lambda: server.conn_count == 1)
    assert not commands.tracking.clients
    assert not commands.subscriptions.channels
    assert not commands.subscriptions.shards
    assert not commands.watches.watchers
    assert not commands.monitors


def _connected(commands: CommandTable) -> list[Any]:
    eventually(lambda: bool(commands.connections()))
    return commands.connections()
