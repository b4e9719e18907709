"""MULTI, EXEC, DISCARD, WATCH and UNWATCH."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis_tables import RawClient, table, talk, talk_two

from protoserve_redis import CommandTable, WFRedisServer, session_of


def test_a_conversation(server: WFRedisServer) -> None:
    aborted = b"-EXECABORT Transaction discarded because of previous errors.\r\n"
    with RawClient(server.address) as client:
        for line, expected in [
            (b"EXEC", b"-ERR EXEC without MULTI\r\n"),
            (b"DISCARD", b"-ERR DISCARD without MULTI\r\n"),
            (b"UNWATCH", b"+OK\r\n"),
            (b"MULTI", b"+OK\r\n"),
            (b"MULTI", b"-ERR MULTI calls can not be nested\r\n"),
            (b"WATCH a", b"-ERR WATCH inside MULTI is not allowed\r\n"),
            (b"SET a x", b"+QUEUED\r\n"),
            (b"INCR a", b"+QUEUED\r\n"),
            (b"PING", b"+QUEUED\r\n"),
            (
                b"EXEC",
                b"*3\r\n+OK\r\n-ERR value is not an integer or out of range\r\n+PONG\r\n",
            ),
            (b"MULTI", b"+OK\r\n"),
            (b"foo", b"-ERR unknown command 'foo', with args beginning with: \r\n"),
            (b"SET a y", b"+QUEUED\r\n"),
            (b"EXEC", aborted),
            (b"MULTI", b"+OK\r\n"),
            (b"get", b"-ERR wrong number of arguments for 'get' command\r\n"),
            (b"EXEC", aborted),
            (b"MULTI", b"+OK\r\n"),
            (b"SET a y", b"+QUEUED\r\n"),
            (b"DISCARD", b"+OK\r\n"),
            (b"GET a", b"$1\r\nx\r\n"),
            (b"MULTI", b"+OK\r\n"),
            (b"EXEC", b"*0\r\n"),
            (b"MULTI", b"+OK\r\n"),
            (b"RESET", b"+RESET\r\n"),
            (b"EXEC", b"-ERR EXEC without MULTI\r\n"),
            (b"MULTI", b"+OK\r\n"),
            (b"QUIT", b"+OK\r\n"),
        ]:
            assert (line, client.ask(line)) == (line, expected)
        assert client.reply() == b""


@pytest.mark.parametrize(("hello", "null"), [(b"HELLO 2", b"*-1\r\n"), (b"HELLO 3", b"_\r\n")])
def test_watch(server: WFRedisServer, commands: CommandTable, hello: bytes, null: bytes) -> None:
    with RawClient(server.address) as one, RawClient(server.address) as two:
        one.ask(hello)

        def attempt(*before: bytes) -> bytes:
            one.ask(b"WATCH a b")
            for line in before:
                two.ask(line)
            one.ask(b"MULTI")
            one.ask(b"PING")
            return one.ask(b"EXEC")

        done = b"*1\r\n+PONG\r\n"
        assert attempt() == done
        assert attempt(b"SET b 1") == null
        assert attempt(b"SET c 1") == done
        assert attempt(b"SELECT 1", b"SET b 1", b"SELECT 0") == done
        one.ask(b"WATCH a")
        commands.touch(None, None)
        assert one.ask(b"UNWATCH") == b"+OK\r\n"
        assert attempt() == done
        one.ask(b"WATCH a")
        commands.touch(0, None)
        one.ask(b"MULTI")
        assert one.ask(b"EXEC") == null
        one.ask(b"WATCH a")
        one.ask(b"SET a 1")
        one.ask(b"MULTI")
        assert one.ask(b"EXEC") == null
    assert commands.watches.watchers == {}


def test_closing_unwatches(server: WFRedisServer, commands: CommandTable) -> None:
    closed = threading.Event()

    @commands.command("NOTE", arity=1)
    def note(task: Any) -> int:
        task.connection.on_close(lambda connection: closed.set())
        return 1

    with RawClient(server.address) as client:
        client.ask(b"WATCH a")
        client.ask(b"NOTE")
        assert commands.watches.watchers != {}
    assert closed.wait(10)
    assert commands.watches.watchers == {}


def test_subscribe_inside(server: WFRedisServer, commands: CommandTable) -> None:
    with RawClient(server.address) as client:
        client.ask(b"MULTI")
        client.ask(b"SUBSCRIBE x")
        client.ask(b"PING")
        assert client.ask(b"EXEC") == (
            b"*2\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n"
        )
        assert commands.publish("x", "y") == 1


def test_async_commands_inside(server: WFRedisServer, commands: CommandTable) -> None:
    seen = []

    @commands.command("SLOW", arity=1)
    async def slow(task: Any) -> int:
        await asyncio.sleep(0)
        seen.append(session_of(task).executing)
        return len(seen)

    with RawClient(server.address) as client:
        client.ask(b"MULTI")
        for line in (b"SLOW", b"INCR n", b"SLOW", b"INCR n"):
            client.ask(line)
        assert client.ask(b"EXEC") == b"*4\r\n:1\r\n:1\r\n:2\r\n:2\r\n"
        assert client.ask(b"SLOW") == b":3\r\n"
    assert seen == [True, True, False]


def test_a_transaction_that_is_too_large(server: WFRedisServer) -> None:
    with RawClient(server.address) as client:
        client.ask(b"MULTI")
        (connection,) = server.connections()
        connection.state.transaction.size = 256 * 1024 * 1024 - 1000  # as if so much had come
        assert client.ask(b"SET a b") == b"+QUEUED\r\n"
        assert client.ask(b"SET a " + b"x" * 1000) == b"-ERR the transaction is too large\r\n"
        assert client.ask(b"EXEC").startswith(b"-EXECABORT")


def test_table_without_transactions() -> None:
    with talk(table(transactions=False)) as client:
        assert client.ask(b"MULTI").startswith(b"-ERR unknown command 'MULTI'")


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(server: WFRedisServer, protocol: int) -> None:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=protocol, socket_timeout=10) as client:
        with client.pipeline() as pipe:
            assert pipe.set("n", 1).incr("n").get("n").execute() == [True, 2, b"2"]
        with client.pipeline() as pipe:
            pipe.watch("n")
            client.incr("n")
            pipe.multi()
            pipe.incr("n")
            with pytest.raises(redis.WatchError):
                pipe.execute()

        def twice(pipe: Any) -> None:
            pipe.multi()
            pipe.incr("n").incr("n")

        assert client.transaction(twice, "n") == [4, 5]


def test_nobody_is_between(server: WFRedisServer) -> None:
    def count(outcomes: list[bytes]) -> None:
        with RawClient(server.address) as client:
            for _ in range(20):
                client.send(b"MULTI\r\nINCR n\r\nINCR n\r\nINCR n\r\nEXEC")
                outcomes += [client.reply() for _ in range(5)][4:]

    outcomes: list[bytes] = []
    threads = [threading.Thread(target=count, args=(outcomes,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 60
    for outcome in outcomes:
        first = int(outcome.split(b":")[1])
        assert outcome == b"*3\r\n:%d\r\n:%d\r\n:%d\r\n" % (first, first + 1, first + 2)


class Store:
    """Keys with a time at which they vanish, moved by hand."""

    def __init__(self) -> None:
        self.versions: dict[tuple[int, bytes], Any] = {}
        self.commands = CommandTable(exists=lambda db, key: self.versions.get((db, key), 0))
        self.commands.command("SET", 2)(self.set)
        self.commands.command("DEL", 2)(self.delete)

    def set(self, task: Any, key: bytes) -> int:
        place = (session_of(task).db, key)
        self.versions[place] = self.versions.get(place, 0) + 1
        self.commands.touch(*place)
        return 1

    def delete(self, task: Any, key: bytes) -> int:
        self.versions.pop((session_of(task).db, key), None)
        self.commands.touch(session_of(task).db, key)
        return 1

    def expire(self) -> None:
        """As a store does that looks at a key's time when it is asked for: no touch."""
        self.versions.clear()


def test_a_key_that_vanishes_is_a_change_and_one_that_was_not_there_is_none() -> None:
    store = Store()
    done, aborted = b"*1\r\n+PONG\r\n", b"*-1\r\n"
    with talk_two(store.commands) as (one, two):

        def attempt(*between: bytes | Callable[[], None]) -> bytes:
            one.ask(b"WATCH k")
            for step in between:
                if callable(step):
                    step()
                else:
                    two.ask(step)
            one.send(b"MULTI\r\nPING\r\nEXEC")
            return [one.reply() for _ in range(3)][2]

        assert attempt() == done  # it is not there, and nothing happens
        assert attempt(b"DEL k") == done  # ... nor then
        assert attempt(lambda: store.commands.touch(None, None)) == done
        assert attempt(b"SET k") == aborted
        assert attempt() == done  # now it is there
        assert attempt(b"SET other", b"SELECT 1", b"SET k", b"SELECT 0") == done
        assert attempt(store.expire) == aborted  # a lease that has run out
        assert attempt(store.expire) == done
        assert attempt(b"SET k", b"DEL k") == aborted
        two.ask(b"SET k")
        assert attempt(b"DEL k") == aborted
        two.ask(b"SET k")
        # Versions differ although nobody touched it.
        assert attempt(lambda: store.versions.update({(0, b"k"): 7})) == aborted
    assert store.commands.watches.watchers == {}


def test_a_store_that_removes_and_touches_while_it_is_asked() -> None:
    alive = {b"k"}
    late = {b"late"}

    def exists(db: int, key: bytes) -> bool:
        if key in late:
            late.remove(key)
            commands.touch(db, key)
        return key in alive

    commands = CommandTable(exists=exists)
    with talk(commands) as client:
        client.send(b"WATCH k none none late\r\nMULTI\r\nEXEC")
        assert [client.reply() for _ in range(3)][2] == b"*0\r\n"
        client.ask(b"WATCH k none")
        late.update(alive)
        alive.clear()
        client.send(b"MULTI\r\nEXEC")
        assert [client.reply() for _ in range(2)][1] == b"*-1\r\n"


def test_touch_takes_text() -> None:
    commands = CommandTable()
    with talk(commands) as client:
        client.ask("WATCH ä".encode())
        commands.touch(0, "ä")
        client.send(b"MULTI\r\nEXEC")
        assert [client.reply() for _ in range(2)][1] == b"*-1\r\n"
