"""The example with the clients that people use: redis-py, redis-cli, redis-benchmark."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio
from kv_server import PATIENCE, Wire, example, packed, tool
from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser

PARSERS = {"hiredis": _HiredisParser, "RESP2": _RESP2Parser, "RESP3": _RESP3Parser}
KINDS = [(2, "hiredis"), (2, "RESP2"), (3, "hiredis"), (3, "RESP3")]


@pytest.fixture
def port() -> Iterator[int]:
    with example() as port:
        yield port


def client_of(port: int, kind: tuple[int, str] = KINDS[0]) -> Any:
    pool = redis.ConnectionPool(
        host="127.0.0.1",
        port=port,
        protocol=kind[0],
        parser_class=PARSERS[kind[1]],
        socket_timeout=PATIENCE,
    )
    return redis.Redis.from_pool(pool)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]} {kind[1]}")
def client(port: int, request: pytest.FixtureRequest) -> Iterator[Any]:
    with client_of(port, request.param) as client:
        yield client


# -- redis-py --------------------------------------------------------------------------


def test_everyday_commands(client: Any) -> None:
    assert client.set("k", "v", ex=100) is True
    assert client.get("k") == b"v"
    assert 0 < client.ttl("k") <= 100
    assert client.incrby("n", 5) == 5
    assert client.hset("h", mapping={"a": 1, "b": 2}) == 2
    assert client.hgetall("h") == {b"a": b"1", b"b": b"2"}
    assert client.rpush("l", 1, 2, 3) == 3
    assert client.lrange("l", 0, -1) == [b"1", b"2", b"3"]
    assert client.blpop(["none", "l"], timeout=1)[1] == b"1"
    client.sadd("s", "a", "b")
    assert set(client.smembers("s")) == {b"a", b"b"}
    client.zadd("z", {"a": 1, "b": 2.5})
    assert [tuple(pair) for pair in client.zrange("z", 0, -1, withscores=True)] == [
        (b"a", 1.0),
        (b"b", 2.5),
    ]
    assert client.info("server")["redis_version"]
    assert client.config_get("save") == {"save": ""}
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.get("l")


def test_pipelines_and_watch(client: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        for i in range(100):
            pipe.set(f"k{i}", i).get(f"k{i}")
        assert pipe.execute()[1::2] == [b"%d" % i for i in range(100)]
    with client.pipeline() as pipe:
        assert pipe.incr("n").incr("n").execute() == [1, 2]
        pipe.watch("n")
        client.set("n", 10)
        pipe.multi()
        pipe.incr("n")
        with pytest.raises(redis.WatchError):
            pipe.execute()
    client.transaction(lambda pipe: pipe.multi() or pipe.incr("n"), "n")
    assert client.get("n") == b"11"


def test_pubsub(client: Any) -> None:
    with client.pubsub() as pubsub:
        pubsub.subscribe("news")
        pubsub.psubscribe("n*")
        kinds = [pubsub.get_message(timeout=PATIENCE)["type"] for _ in range(2)]
        assert kinds == ["subscribe", "psubscribe"]
        assert client.publish("news", "hello") == 2
        messages = [pubsub.get_message(timeout=PATIENCE) for _ in range(2)]
        assert {(m["type"], m["data"]) for m in messages} == {
            ("message", b"hello"),
            ("pmessage", b"hello"),
        }


def test_lock(client: Any) -> None:
    lock = client.lock("lock", timeout=100)
    with lock:
        assert client.lock("lock").acquire(blocking=False) is False
        assert lock.extend(100)
        assert client.ttl("lock") > 100
        assert lock.extend(50, replace_ttl=True)
        assert client.ttl("lock") <= 50
        assert lock.reacquire()
        assert 50 < client.ttl("lock") <= 100
    assert not client.exists("lock")
    with pytest.raises(redis.exceptions.LockError), client.lock("lock", timeout=100):
        client.set("lock", "somebody else's")
    with pytest.raises(redis.ResponseError, match="no Lua"):
        client.eval("return 1", 0)


def test_scans_return_everything(client: Any) -> None:
    names = {b"k%d" % i for i in range(500)}
    client.mset(dict.fromkeys(names, 1))
    client.sadd("s", *names)
    client.zadd("z", dict.fromkeys(names, 1))
    client.hset("h", mapping=dict.fromkeys(names, 1))
    assert set(client.scan_iter("k*", count=7)) == names
    assert set(client.scan_iter(_type="set")) == {b"s"}
    assert set(client.sscan_iter("s")) == names
    assert {member for member, _ in client.zscan_iter("z")} == names
    assert {field for field, _ in client.hscan_iter("h")} == names


def test_scan_while_keys_come_and_go(client: Any) -> None:
    stay = {b"stay%d" % i for i in range(200)}
    client.mset(dict.fromkeys(stay, 1))
    client.mset({f"go{i}": 1 for i in range(200)})
    seen = set()
    for i, key in enumerate(client.scan_iter(count=5)):
        seen.add(key)
        client.delete(f"go{i}")
        client.set(f"come{i % 50}", 1)
        if i % 20 == 0:
            client.scan(0)  # another scan makes the order anew
    assert seen >= stay


@pytest.mark.parametrize("protocol", [2, 3])
def test_asyncio_client(port: int, protocol: int) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis(port=port, protocol=protocol) as client:
            await asyncio.gather(*(client.incr("n") for _ in range(50)))
            assert await client.get("n") == b"50"
            async with client.lock("lock", timeout=10):
                assert await client.exists("lock") == 1
            waiting: list[Any] = [
                asyncio.ensure_future(client.blpop(["q"], timeout=0)) for _ in range(3)
            ]
            await asyncio.gather(*(client.rpush("q", i) for i in range(3)))
            assert sorted(item[1] for item in await asyncio.gather(*waiting)) == [b"0", b"1", b"2"]
            async with client.pubsub() as pubsub:
                await pubsub.subscribe("c")
                await client.publish("c", "m")
                async with asyncio.timeout(PATIENCE):
                    while (await pubsub.get_message(timeout=PATIENCE) or {}).get("data") != b"m":
                        pass

    asyncio.run(main())


# -- expiry ----------------------------------------------------------------------------


def test_keys_vanish(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import examples.redis_kv.store as store

    client.set("a", 1, px=50_000)
    client.set("b", 1, ex=100)
    client.rpush("l", 1)
    client.expire("l", 50)
    now = store.now_ms() + 60_000
    monkeypatch.setattr(store, "now_ms", lambda: now)
    assert client.exists("a", "l") == 0
    assert client.keys() == [b"b"]
    assert client.dbsize() == 1


# -- blocking pops ---------------------------------------------------------------------


def blocked(wire: Wire, *command: str) -> None:
    """Send a command that waits, and go on when it does."""
    import examples.redis_kv.store as store

    def waiting() -> int:
        with store.lock:
            return sum(map(len, store.databases[0].waiting.values()))

    before = waiting()
    wire.sock.sendall(packed(*command))
    eventually(lambda: waiting() > before)


def eventually(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail("what was waited for did not happen")


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_client_that_leaves_is_forgotten(port: int, reset: bool) -> None:
    import examples.redis_kv.store as store

    waiting = store.databases[0].waiting
    with Wire(port) as pusher:
        with Wire(port) as leaver:
            blocked(leaver, "BLPOP", "q", "0")
            (waiter,) = waiting[b"q"]
            if reset:
                leaver.sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        eventually(lambda: waiter.gone)
        if reset:
            eventually(lambda: not waiting)
        assert pusher.ask(packed("RPUSH", "q", "1")) == b":1\r\n"
        assert pusher.ask(packed("LLEN", "q")) == b":1\r\n"
        assert not waiting


def test_a_transaction_ends_before_others_are_served(port: int) -> None:
    with Wire(port) as waiter, Wire(port) as pusher:
        blocked(waiter, "BLPOP", "q", "0")
        script = [("MULTI",), ("RPUSH", "q", "a"), ("DEL", "q"), ("RPUSH", "q", "b"), ("EXEC",)]
        data = b"".join(packed(*command) for command in script)
        assert pusher.ask(data, 5).endswith(b"*3\r\n:1\r\n:1\r\n:1\r\n")
        assert waiter.answer() == b"*2\r\n$1\r\nq\r\n$1\r\nb\r\n"


def test_a_blocked_client_waits_with_its_next_commands(port: int) -> None:
    with Wire(port) as waiter, Wire(port) as pusher:
        blocked(waiter, "BLPOP", "q", "0")
        waiter.sock.sendall(packed("PING"))
        pusher.ask(packed("RPUSH", "q", "a"))
        assert waiter.answer(2) == b"*2\r\n$1\r\nq\r\n$1\r\na\r\n+PONG\r\n"


def test_a_long_chain_of_blocked_clients(port: int) -> None:
    """Each one's next command serves the next client: no recursion may hold them."""
    with Wire(port) as pusher:
        chain = [Wire(port) for _ in range(150)]
        try:
            for i, wire in enumerate(chain):
                blocked(wire, "BLPOP", f"q{i}", "0")
                wire.sock.sendall(packed("RPUSH", f"q{i + 1}", "x"))
            pusher.ask(packed("RPUSH", "q0", "x"))
            for wire in chain:
                assert wire.answer(2).endswith(b":1\r\n")
        finally:
            for wire in chain:
                wire.sock.close()


# -- Redis' own programs ---------------------------------------------------------------


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, input=text, text=True, timeout=PATIENCE * 2, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_redis_cli(port: int) -> None:
    cli = partial(run, tool("redis-cli"), "-p", str(port))
    assert cli("SET", "k", "v") == "OK\n"
    assert cli("-3", "HSET", "h", "f", "v") == "1\n"
    assert cli("--no-raw", "-3", "HGETALL", "h") == '1# "f" => "v"\n'
    assert cli("--no-raw", "GET", "k") == '"v"\n'
    assert cli(text="INCR n\nINCR n\nNOSUCH\n").startswith("1\n2\nERR unknown command")
    assert set(cli("--scan").split()) == {"k", "h", "n"}
    assert "errors: 0, replies: 2" in cli("--pipe", text="SET a 1\r\nSET b 2\r\n")


@pytest.mark.parametrize("pipeline", [1, 16])
def test_redis_benchmark(port: int, pipeline: int) -> None:
    out = run(
        *(tool("redis-benchmark"), "-p", str(port), "-q", "-n", "300", "-c", "10"),
        *("-P", str(pipeline)),
    )
    done = re.findall(r"([A-Z]\w+)[^\r:]*: [\d.]+ requests per second", out)
    wanted = (
        "PING_INLINE PING_MBULK SET GET INCR LPUSH RPUSH LPOP RPOP SADD HSET SPOP ZADD ZPOPMIN"
    )
    assert set(done) >= {*wanted.split(), "LRANGE_100", "LRANGE_600", "MSET"}
    assert "rror" not in out


def test_many_threads_count(port: int) -> None:
    failures: list[Any] = []

    def count() -> None:
        try:
            with client_of(port) as client:
                for _ in range(50):
                    client.transaction(
                        lambda pipe: pipe.multi() or pipe.incr("n").incr("n"), "other"
                    )
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with client_of(port) as client:
        assert client.get("n") == b"400"
