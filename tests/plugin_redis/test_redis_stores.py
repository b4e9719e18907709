"""The two example stores with the clients that people use: redis-py, redis-cli,
redis-benchmark. What both have is asked of both."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio
from kv_server import PATIENCE, Wire, example, module, packed, tool
from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser

PARSERS = {"hiredis": _HiredisParser, "RESP2": _RESP2Parser, "RESP3": _RESP3Parser}
KINDS = [(2, "hiredis"), (2, "RESP2"), (3, "hiredis"), (3, "RESP3")]


@pytest.fixture
def port() -> Iterator[int]:
    with example("redis_full") as port:
        yield port


@pytest.fixture(params=["redis_full", "redis_kv"])
def store(request: pytest.FixtureRequest) -> Any:
    """The module of a store; also where `port_of_store` has a server."""
    return module(request.param)


@pytest.fixture
def port_of_store(store: Any) -> Iterator[int]:
    with example(store.__name__.rpartition(".")[2]) as port:
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


def everyday(client: Any) -> None:
    """What both stores have; `l` is a list then, and `n` a number."""
    assert client.set("k", "v", ex=100) is True
    assert client.get("k") == b"v"
    assert 0 < client.ttl("k") <= 100
    assert client.incrby("n", 5) == 5
    assert client.hset("h", mapping={"a": 1, "b": 2}) == 2
    assert client.hgetall("h") == {b"a": b"1", b"b": b"2"}
    assert client.rpush("l", 1, 2, 3) == 3
    assert client.lrange("l", 0, -1) == [b"1", b"2", b"3"]
    assert client.blpop(["none", "l"], timeout=1)[1] == b"1"


def watched(client: Any, pipe: Any) -> None:
    """A transaction does not happen when what it watches has changed."""
    pipe.watch("n")
    client.set("n", 10)
    pipe.multi()
    pipe.incr("n")
    with pytest.raises(redis.WatchError):
        pipe.execute()


def test_everyday_commands(client: Any) -> None:
    everyday(client)
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
        watched(client, pipe)
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
    assert client.eval("return 1", 0) == 1


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
                # Two connections: what one sends later may be read first.
                confirmed = await pubsub.get_message(timeout=PATIENCE)
                assert confirmed is not None
                assert confirmed["type"] == "subscribe"
                assert await client.publish("c", "m") == 1
                async with asyncio.timeout(PATIENCE):
                    while (await pubsub.get_message(timeout=PATIENCE) or {}).get("data") != b"m":
                        pass

    asyncio.run(main())


# -- the small store -------------------------------------------------------------------


def test_everyday_commands_of_the_small_store() -> None:
    with example("redis_kv") as port, client_of(port) as client:
        everyday(client)
        with client.pipeline() as pipe:
            watched(client, pipe)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            client.get("l")


# -- expiry ----------------------------------------------------------------------------


@pytest.fixture
def later(store: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets a minute pass for a store."""

    clock, a_minute = ("now", 60) if hasattr(store, "now") else ("now_ms", 60_000)

    def let_pass() -> None:
        moment = getattr(store, clock)() + a_minute
        monkeypatch.setattr(store, clock, lambda: moment)

    return let_pass


def test_a_key_without_a_deadline_stays_whenever_the_clock_ticks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = module("redis_kv")
    ticks = itertools.count(store.now_ms())
    monkeypatch.setattr(store, "now_ms", ticks.__next__)
    db = store.Database(0)
    db.set(b"stays", b"1")
    db.set(b"goes", b"2")
    db.expire(b"goes", store.now_ms() + 1_000)
    assert [db.find(b"stays") for _ in range(3)] == [b"1"] * 3
    assert db.find(b"goes") == b"2"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]} {kind[1]}")
def test_keys_vanish(
    store: Any, port_of_store: int, later: Callable[[], None], kind: tuple[int, str]
) -> None:
    with client_of(port_of_store, kind) as client:
        client.set("a", 1, px=50_000)
        client.set("b", 1, ex=100)
        client.rpush("l", 1)
        client.expire("l", 50)
        later()
        assert client.exists("a", "l") == 0
        assert client.keys() == [b"b"]
        assert client.dbsize() == 1


def test_a_lease_that_ran_out_guards_nothing(
    store: Any, port_of_store: int, later: Callable[[], None]
) -> None:
    with client_of(port_of_store) as client, client.pipeline() as pipe:
        client.set("lease", "mine", px=50_000)
        pipe.watch("lease")
        pipe.multi()
        pipe.set("done", 1)
        later()
        with pytest.raises(redis.WatchError):
            pipe.execute()
        pipe.watch("lease")  # gone, and still gone when it counts
        pipe.multi()
        pipe.set("done", 2)
        assert pipe.execute() == [True]


# -- blocking pops ---------------------------------------------------------------------


def waiting(store: Any) -> int:
    """How many clients wait for a key of the first database."""
    with store.commands.lock:
        queues = store.databases[0].waiting
        if store.__name__ == "examples.redis_full":
            return len(queues)
        return len({waiter for queue in queues.values() for waiter in queue})


def blocked(store: Any, wire: Wire, *command: str) -> None:
    """Send a command that waits, and go on when it does."""
    before = waiting(store)
    wire.sock.sendall(packed(*command))
    eventually(lambda: waiting(store) > before)


def eventually(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail("what was waited for did not happen")


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_client_that_leaves_is_forgotten(store: Any, port_of_store: int, reset: bool) -> None:
    with Wire(port_of_store) as pusher:
        with Wire(port_of_store) as leaver:
            blocked(store, leaver, "BLPOP", "q", "0")
            if reset:
                leaver.sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        eventually(lambda: not waiting(store))
        assert pusher.ask(packed("RPUSH", "q", "1")) == b":1\r\n"
        assert pusher.ask(packed("LLEN", "q")) == b":1\r\n"


def test_a_transaction_ends_before_others_are_served(store: Any, port_of_store: int) -> None:
    with Wire(port_of_store) as waiter, Wire(port_of_store) as pusher:
        blocked(store, waiter, "BLPOP", "q", "0")
        script = [("MULTI",), ("RPUSH", "q", "a"), ("DEL", "q"), ("RPUSH", "q", "b"), ("EXEC",)]
        data = b"".join(packed(*command) for command in script)
        assert pusher.ask(data, 5).endswith(b"*3\r\n:1\r\n:1\r\n:1\r\n")
        assert waiter.answer() == b"*2\r\n$1\r\nq\r\n$1\r\nb\r\n"


def test_a_blocked_client_waits_with_its_next_commands(store: Any, port_of_store: int) -> None:
    with Wire(port_of_store) as waiter, Wire(port_of_store) as pusher:
        blocked(store, waiter, "BLPOP", "q", "0")
        waiter.sock.sendall(packed("PING"))
        pusher.ask(packed("RPUSH", "q", "a"))
        assert waiter.answer(2) == b"*2\r\n$1\r\nq\r\n$1\r\na\r\n+PONG\r\n"


def test_who_waited_longest_is_served_first(store: Any, port_of_store: int) -> None:
    with Wire(port_of_store) as first, Wire(port_of_store) as second, Wire(port_of_store) as push:
        blocked(store, first, "BLPOP", "other", "q", "0")
        blocked(store, second, "BLPOP", "q", "0")
        push.ask(packed("RPUSH", "q", "a", "b"))
        assert first.answer() == b"*2\r\n$1\r\nq\r\n$1\r\na\r\n"
        assert second.answer() == b"*2\r\n$1\r\nq\r\n$1\r\nb\r\n"
        assert push.ask(packed("EXISTS", "q")) == b":0\r\n"
        assert waiting(store) == 0


def test_a_long_chain_of_blocked_clients(store: Any, port_of_store: int) -> None:
    """Each one's next command serves the next client: no recursion may hold them."""
    with Wire(port_of_store) as pusher:
        chain = [Wire(port_of_store) for _ in range(150)]
        try:
            for i, wire in enumerate(chain):
                blocked(store, wire, "BLPOP", f"q{i}", "0")
                wire.sock.sendall(packed("RPUSH", f"q{i + 1}", "x"))
            pusher.ask(packed("RPUSH", "q0", "x"))
            for wire in chain:
                assert wire.answer(2).endswith(b":1\r\n")
        finally:
            for wire in chain:
                wire.sock.close()


def test_what_came_too_late_for_one_is_for_the_next() -> None:
    """An element is taken for a client, which turns out to have left."""
    store = module("redis_kv")
    with example("redis_kv"):
        db = store.databases[0]
        with store.commands.lock:
            gone = store.Waiter(db, [b"q"])
            next_one = store.Waiter(db, [b"q"])
            gone.end([b"q", b"a"])
        left = SimpleNamespace(closed=True, connection=SimpleNamespace(peer_ended=True))
        asyncio.run(store._wait(left, gone, 0))
        assert next_one.given.result(PATIENCE) == [b"q", b"a"]
        assert not db.data
        assert not db.waiting


def test_client_unblock_ends_a_wait(store: Any, port_of_store: int) -> None:
    with Wire(port_of_store) as waiter, Wire(port_of_store) as other:
        number = waiter.ask(packed("CLIENT", "ID"))[1:-2]
        for how, reply in (("TIMEOUT", b"*-1\r\n"), ("ERROR", b"-UNBLOCKED client unblocked")):
            blocked(store, waiter, "BLPOP", "q", "0")
            unblock = packed("CLIENT", "UNBLOCK", number, how)
            eventually(lambda: other.ask(unblock) == b":1\r\n")  # noqa: B023
            assert waiter.answer().startswith(reply)
        assert waiting(store) == 0
        assert other.ask(packed("RPUSH", "q", "a")) == b":1\r\n"


# What waits, what ends that, and what is answered then, in RESP2.
WAITS = {
    "BRPOP": ("BRPOP q 0", "RPUSH q a", b"*2\r\n$1\r\nq\r\n$1\r\na\r\n"),
    "BLMOVE": ("BLMOVE q t LEFT RIGHT 0", "RPUSH q a", b"$1\r\na\r\n"),
    "BRPOPLPUSH": ("BRPOPLPUSH q t 0", "RPUSH q a", b"$1\r\na\r\n"),
    "BLMPOP": ("BLMPOP 0 2 x q LEFT", "RPUSH q a", b"*2\r\n$1\r\nq\r\n*1\r\n$1\r\na\r\n"),
    "BZPOPMIN": (
        "BZPOPMIN q 0",
        "ZADD q 1.5 a",
        b"*3\r\n$1\r\nq\r\n$1\r\na\r\n$3\r\n1.5\r\n",
    ),
    "XREAD": (
        "XREAD BLOCK 0 STREAMS q $",
        "XADD q 1-1 f v",
        b"*1\r\n*2\r\n$1\r\nq\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n",
    ),
    "a script": (
        "BLPOP q 0",
        "EVAL redis.call('rpush','q','a') 0",
        b"*2\r\n$1\r\nq\r\n$1\r\na\r\n",
    ),
}


@pytest.mark.parametrize("name", WAITS)
def test_every_command_that_waits(port: int, name: str) -> None:
    store = module("redis_full")
    waits, ends, reply = WAITS[name]
    with Wire(port) as waiter, Wire(port) as pusher:
        blocked(store, waiter, *waits.split())
        pusher.ask(packed(*ends.split(" ")))
        assert waiter.answer() == reply
        assert waiting(store) == 0


def test_a_served_client_serves_the_next(port: int) -> None:
    store = module("redis_full")
    with Wire(port) as last, Wire(port) as mover, Wire(port) as pusher:
        blocked(store, last, "BLPOP", "b", "0")
        blocked(store, mover, "BLMOVE", "a", "b", "LEFT", "RIGHT", "0")
        assert pusher.ask(packed("RPUSH", "a", "x")) == b":1\r\n"
        assert mover.answer() == b"$1\r\nx\r\n"
        assert last.answer() == b"*2\r\n$1\r\nb\r\n$1\r\nx\r\n"


def test_a_group_without_news_waits_in_resp3_too(port: int) -> None:
    store = module("redis_full")
    with Wire(port) as waiter, client_of(port) as other:
        waiter.ask(packed("HELLO", "3"))
        other.xgroup_create("s", "g", mkstream=True)
        read = "XREADGROUP GROUP g c BLOCK 0 STREAMS s >"
        blocked(store, waiter, *read.split())
        other.xadd("s", {"f": "v"}, id="1-0")
        assert waiter.answer().startswith(b"%1\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n")
        for line in (read.replace("BLOCK 0", "BLOCK 1"), read.replace("BLOCK 0 ", "")):
            assert waiter.ask(packed(*line.split())) == b"_\r\n"


def test_who_waits_for_a_group_learns_what_becomes_of_it(port: int) -> None:
    store = module("redis_full")
    gone = b"-UNBLOCKED the stream key no longer exists\r\n"
    news = b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
    with Wire(port) as waiter, client_of(port) as other:
        for change, told in (
            (lambda: other.delete("s"), gone),
            (lambda: other.set("s", 1), gone),
            (lambda: other.flushdb(), gone),
            (lambda: other.xgroup_destroy("s", "g"), b"-NOGROUP"),
            (lambda: other.rename("without", "s"), b"-NOGROUP"),
            (lambda: other.rename("with", "s"), news),
        ):
            other.flushall()
            for key in ("s", "with"):
                other.xgroup_create(key, "g", mkstream=True)
            for key in ("with", "without"):
                other.xadd(key, {"f": "v"}, id="1-0")
            line = "XREADGROUP GROUP g c BLOCK 0 STREAMS s >"
            blocked(store, waiter, *line.split())
            change()
            assert waiter.answer().startswith(told)
            assert waiting(store) == 0


# -- what fakeredis is not asked -------------------------------------------------------


def test_each_database_is_its_own(client: Any) -> None:
    client.set("k", "in 0")
    with client.pipeline(transaction=False) as pipe:
        pipe.execute_command("SELECT", 3)
        pipe.set("k", "in 3").get("k")
        pipe.execute_command("SELECT", 0)
        assert pipe.get("k").execute()[2::2] == [b"in 3", b"in 0"]
    assert client.eval("redis.call('select', 5) return redis.call('set', 'k', 'in 5')", 0)
    assert client.get("k") == b"in 0"
    assert client.swapdb(0, 3) is True
    assert client.get("k") == b"in 3"
    assert client.move("k", 7) == 1
    assert client.get("k") is None


def test_a_script_publishes_to_subscribers(client: Any) -> None:
    with client.pubsub() as pubsub:
        pubsub.subscribe("news")
        assert pubsub.get_message(timeout=PATIENCE)["type"] == "subscribe"
        assert client.eval("return redis.call('publish', 'news', 'hello')", 0) == 1
        assert pubsub.get_message(timeout=PATIENCE)["data"] == b"hello"


def test_a_script_in_a_transaction_is_watched(client: Any) -> None:
    with client.pipeline() as pipe:
        pipe.watch("k")
        client.eval("return redis.call('set', KEYS[1], 'v')", 1, "k")
        pipe.multi()
        pipe.eval("return redis.call('get', KEYS[1])", 1, "k")
        with pytest.raises(redis.WatchError):
            pipe.execute()
        pipe.eval("return {1, redis.call('get', KEYS[1]), {err='NO thing'}}", 1, "k")
        (reply,) = pipe.execute(raise_on_error=False)
        assert reply[:2] == [1, b"v"]
        assert isinstance(reply[2], redis.ResponseError)


CAUGHT = "local _, e = xpcall(function() redis.call('x') end, function(e) return e end)"

# Ways out of Lua, and into the scripts of others.
ESCAPES = [
    "os.execute('true')",
    "return os.getenv('PATH')",
    "return io.open('/etc/passwd')",
    "return require('os')",
    "return loadstring('return 1')()",
    "return python.eval('1')",
    "return tostring(redis.call.__globals__)",
    "return tostring(cjson.null.__class__)",
    "redis.call.x = 1",
    f"{CAUGHT} return tostring(e.__traceback__)",
    f"{CAUGHT} return tostring(getmetatable(e).__index)",
    "return debug.getregistry()",
    "return getfenv(0)",
    "x = 1",
    "_G.x = 1",
    "rawset(_G, 'x', 1)",
    "getmetatable('').__index.upper = nil",
    "return nosuch",
]


def test_scripts_stay_within_their_bounds(client: Any) -> None:
    for script in ESCAPES:
        with pytest.raises(redis.ResponseError):
            client.eval(script, 0)
    for script in (
        "string.upper = nil",
        "redis.call = nil",
        "KEYS = 1",
        "math = nil",
        "cjson = nil",
    ):
        with contextlib.suppress(redis.ResponseError):
            client.eval(script, 0)
    # After all that others' scripts are as before.
    script = (
        "return {string.upper(KEYS[1]), redis.call('incr', 'n'), cjson.encode({1}), math.abs(-1)}"
    )
    assert client.eval(script, 1, "k") == [b"K", 1, b"[1]", 1]
    digest = client.script_load("return redis.sha1hex(ARGV[1])")
    assert client.evalsha(digest.upper(), 0, "x") == hashlib.sha1(b"x").hexdigest().encode()
    with pytest.raises(redis.ResponseError, match=r"user_script:2: boom script: \w+, on @user"):
        client.eval("\nerror('boom')", 0)
    with pytest.raises(redis.ResponseError, match=r"Error compiling script .*user_script:1:"):
        client.eval("not lua", 0)


def test_functions_stay_within_their_bounds(client: Any) -> None:
    body = "\n".join(
        f"redis.register_function('f{number}', function() {code} end)"
        for number, code in enumerate(
            [
                "return tostring(redis.call.__globals__)",
                "return loadstring('return os.getenv(\"PATH\")')()",
                "return python.eval('1')",
            ]
        )
    )
    library = f"#!lua name=escapes\n{body}\n"
    library += (
        "redis.register_function('get', function(keys) return redis.call('get', keys[1]) end)"
    )
    assert client.function_load(library, replace=True) in (b"escapes", "escapes")
    client.set("k", "v")
    assert client.fcall("get", 1, "k") == b"v"
    for number in range(3):
        with pytest.raises(redis.ResponseError):
            client.fcall(f"f{number}", 0)


@pytest.mark.parametrize("name", ["DUMP", "RESTORE", "ACL"])
def test_what_is_left_out_is_unknown(client: Any, name: str) -> None:
    with pytest.raises(redis.ResponseError, match="unknown command"):
        client.execute_command(name, "k", 0, b"\x80\x04N.")


def test_no_number_makes_the_store_fill_the_memory(client: Any) -> None:
    client.sadd("s", "a")
    client.hset("h", "f", "v")
    client.zadd("z", {"a": 1})
    for command, key in (("SRANDMEMBER", "s"), ("HRANDFIELD", "h"), ("ZRANDMEMBER", "z")):
        assert len(client.execute_command(command, key, -3)) == 3
        with pytest.raises(redis.ResponseError, match="out of range"):
            client.execute_command(command, key, -(2**62))


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("MGET a b c", "abc"),
        ("DEL a b", "ab"),
        ("MSET a 1 b 2 c 3", "abc"),
        ("SINTERSTORE a b c", "abc"),
        ("BLPOP a b 1", "ab"),
        ("BITOP AND a b c", "abc"),
        ("LCS a b", "ab"),
        ("PFCOUNT a b", "ab"),
    ],
)
def test_each_key_of_a_command_is_known(port: int, line: str, keys: str) -> None:
    with client_of(port) as client:
        assert client.command_getkeys(*line.split()) == [*keys]


def test_each_key_that_was_read_is_tracked(port: int) -> None:
    with Wire(port) as reader, client_of(port) as writer:
        reader.ask(b"HELLO 3\r\nCLIENT TRACKING ON\r\nMGET a b\r\n", 3)
        writer.set("b", 1)
        assert b"invalidate" in reader.answer()


def test_a_pattern_of_many_stars_holds_nobody_up(client: Any) -> None:
    pattern = "a*" * 20 + "b"  # fakeredis' own would take years
    name = "a" * 40
    client.set(name, 1)
    client.sadd("s", name, name + "b")
    client.hset("h", name, 1)
    client.zadd("z", {name: 1})
    assert client.keys(pattern) == []
    assert client.scan(0, match=pattern, count=100) == (0, [])
    assert client.sscan("s", 0, match=pattern) == (0, [name.encode() + b"b"])
    assert client.hscan("h", 0, match=pattern) == (0, {})
    assert client.zscan("z", 0, match=pattern) == (0, [])
    assert client.execute_command("SCAN", 0, "MATCH", pattern, "COUNT", 9, "MATCH", "s")[1] == [
        b"s"
    ]


def test_what_a_key_takes(client: Any) -> None:
    client.set("small", "x")
    client.rpush("large", *["x" * 1000] * 10)
    client.hset("h", "f", "x" * 1000)
    client.zadd("z", {"x" * 1000: 1})
    client.xadd("stream", {"f": "x"})
    assert 0 < client.memory_usage("small") < 500
    assert client.memory_usage("large", samples=0) > 10_000
    assert client.memory_usage("h") > 1000
    assert client.memory_usage("z") > 1000
    assert client.memory_usage("stream") > 0
    assert client.memory_usage("none") is None
    with pytest.raises(redis.ResponseError, match="syntax error"):
        client.execute_command("MEMORY", "USAGE", "small", "SAMPLES")
    assert client.object("refcount", "small") == 1
    assert client.object("refcount", "none") is None


def test_keys_in_no_fixed_place(client: Any) -> None:
    lines = {
        "EVAL script 2 a b c": [b"a", b"b"],
        "XREADGROUP GROUP g c COUNT 1 STREAMS a b > >": [b"a", b"b"],
        "ZUNION 2 a b WITHSCORES": [b"a", b"b"],
        "BLMPOP 0 2 a b LEFT": [b"a", b"b"],
        "SORT k BY nosort": [b"k"],
    }
    for line, keys in lines.items():
        found = client.command_getkeys(*line.split())
        assert [k.encode() if isinstance(k, str) else k for k in found] == keys


def test_monitor_shows_what_a_script_runs(client: Any) -> None:
    library = """#!lua name=one
        redis.register_function('put', function(keys) return redis.call('set', keys[1], 4) end)"""
    client.function_load(library, replace=True)
    with client.monitor() as monitor:
        client.eval("return redis.call('set', KEYS[1], 3)", 1, "k")
        client.fcall("put", 1, "k")
        client.ping()
        seen = []
        for shown in monitor.listen():
            if shown["command"].lower() == "ping":
                break
            seen.append((shown["client_type"], shown["command"].lower()))
    assert seen[-4:] == [
        ("tcp", "eval return redis.call('set', keys[1], 3) 1 k"),
        ("lua", "set k 3"),
        ("tcp", "fcall put 1 k"),
        ("lua", "set k 4"),
    ]


def test_a_pause_lets_scripts_by_that_only_read(client: Any, port: int) -> None:
    library = """#!lua name=one
        local function one() return 1 end
        redis.register_function('writes', one)
        redis.register_function{function_name='reads', callback=one, flags={'no-writes'}}"""
    client.function_load(library, replace=True)
    digest = client.script_load("#!lua flags=no-writes\nreturn 2")
    with Wire(port) as paused:
        client.client_pause(1_000_000, all=False)
        assert client.eval("#!lua flags=no-writes\nreturn 1", 0) == 1
        assert client.evalsha(digest.upper(), 0) == 2
        assert client.execute_command("EVAL_RO", "return 3", 0) == 3
        assert client.fcall("reads", 0) == 1
        with client.pipeline() as pipe:
            assert pipe.evalsha(digest, 0).ping().execute() == [2, True]
        with pytest.raises(redis.ResponseError, match="Unexpected flag"):
            client.eval("#!lua flags=x\nreturn 1", 0)
        for line in (
            ("EVAL", "return 4", "0"),
            ("EVAL", "#!lua\nreturn 4", "0"),
            ("EVALSHA", "0" * 40, "0"),
            ("FCALL", "writes", "0"),
        ):
            before = client.info("clients")["blocked_clients"]
            assert before == 0
            paused.sock.sendall(packed(*line))
            eventually(lambda: client.info("clients")["blocked_clients"] == 1)
            client.client_unpause()
            assert paused.answer() in (b":4\r\n", b":1\r\n") or line[0] == "EVALSHA"
            client.client_pause(1_000_000, all=False)
        client.client_unpause()


INVALIDATED = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\n%b\r\n"


@contextlib.contextmanager
def tracking(port: int, options: str = "") -> Iterator[Wire]:
    """A client that tracks."""
    with Wire(port) as wire:
        wire.ask(packed("HELLO", "3"))
        assert wire.ask(packed("CLIENT", "TRACKING", "ON", *options.split())) == b"+OK\r\n"
        yield wire


@pytest.mark.parametrize("options", ["", "BCAST", "NOLOOP", "BCAST NOLOOP"])
def test_who_tracks_is_told_of_what_expires(port: int, options: str) -> None:
    with tracking(port, options) as wire:
        wire.sock.sendall(packed("SET", "k", "v", "PX", "300") + packed("GET", "k"))
        told = [] if options != "BCAST" else [INVALIDATED % b"k"]  # of its own change
        assert wire.answer(2 + len(told)) == b"+OK\r\n" + b"".join(told) + b"$1\r\nv\r\n"
        # Nobody asks for it.
        assert wire.answer() == INVALIDATED % b"k"


def test_keys_vanish_when_their_time_has_come(client: Any) -> None:
    keys = module("redis_full").databases[0]._dict
    before = client.info("stats")["expired_keys"]
    client.set("later", 1, ex=1000)
    client.set("soon", 1, px=30)
    client.set("sooner", 1, px=10)
    client.set("spared", 1, px=300)
    client.persist("spared")
    client.set("last", 1, px=400)
    eventually(lambda: sorted(keys) == [b"later", b"spared"])
    assert client.info("stats")["expired_keys"] == before + 3


def test_a_flush_is_told_once(port: int) -> None:
    everything = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
    with tracking(port) as wire, client_of(port) as other:
        assert wire.ask(packed("GET", "none")) == b"_\r\n"
        other.flushall()
        assert wire.answer() == everything
        assert other.info("stats")["tracking_total_keys"] == 0
        other.flushdb()
        assert wire.answer() == everything
        assert wire.ask(packed("PING")) == b"+PONG\r\n"


def test_a_client_that_waited_is_told_after_its_reply(port: int) -> None:
    store = module("redis_full")
    for options in ("", "NOLOOP"):
        with tracking(port, options) as waiter, client_of(port) as pusher:
            waiter.ask(packed("LRANGE", "b", "0", "-1"))
            blocked(store, waiter, "BLMOVE", "a", "b", "LEFT", "LEFT", "0")
            pusher.rpush("a", "x")
            told = [] if options else [INVALIDATED % b"b"]
            assert waiter.answer(1 + len(told)) == b"".join((b"$1\r\nx\r\n", *told))
            assert waiter.ask(packed("PING")) == b"+PONG\r\n"


def test_what_a_script_reads_is_tracked(port: int) -> None:
    library = """#!lua name=one
        redis.register_function('read', function(keys) return redis.call('get', keys[1]) end)"""
    with tracking(port) as wire, client_of(port) as other:
        other.function_load(library, replace=True)
        for line, tracked in (
            (("EVAL", "return redis.call('set', 'x', 1)", "1", "k"), False),
            (("EVAL_RO", "return redis.call('ping')", "1", "k"), False),
            (("EVAL", "return redis.call('get', 'x')", "1", "k"), True),
            (("EVAL_RO", "return redis.call('get', 'x')", "1", "k"), True),
            (("FCALL", "read", "1", "k"), True),
        ):
            wire.ask(packed(*line))
            other.set("k", 1)
            if tracked:
                assert wire.answer() == INVALIDATED % b"k"
            assert wire.ask(packed("PING")) == b"+PONG\r\n"


def test_the_number_of_tracked_keys_is_a_setting(port: int) -> None:
    name = "tracking-table-max-keys"
    with tracking(port, "NOLOOP") as wire, client_of(port) as other:
        assert other.config_get(name) == {name: "1000000"}
        wire.ask(packed("MGET", "a", "b"))
        try:
            other.config_set(name, 1)
            assert wire.answer() == INVALIDATED % b"a"
            assert wire.ask(packed("GET", "c"), 2) == b"_\r\n" + INVALIDATED % b"b"
            with pytest.raises(redis.ResponseError, match="not an integer"):
                other.config_set(name, "x")
        finally:
            other.config_set(name, 1_000_000)


def test_scripts_are_counted_and_a_category_of_their_own(client: Any) -> None:
    names = client.command_list(category="scripting")
    texts = {name.decode() if isinstance(name, bytes) else name for name in names}
    assert {"eval", "eval_ro", "evalsha", "fcall", "function|load", "script|load"} <= texts
    client.script_flush()
    client.eval("return 1", 0)
    assert client.info("memory")["number_of_cached_scripts"] == 1


def test_no_table_of_a_script_is_too_deep(client: Any) -> None:
    for script in (
        "local a = {} a[1] = a return a",
        "local a = {} a[1] = a a[2] = a return a",
        "local a = {} for i = 1, 1000 do a = {a} end return a",
    ):
        with pytest.raises(redis.ResponseError, match="reached lua stack limit"):
            client.eval(script, 0)
    assert client.eval("local a = 1 for i = 1, 50 do a = {a} end return a", 0)


def test_a_wait_that_fails_is_its_own_clients_matter(port: int) -> None:
    store = module("redis_full")
    with Wire(port) as waiter, Wire(port) as pusher:
        blocked(store, waiter, "BLPOP", "q", "0")
        with store.lock:
            (one,) = store.databases[0].waiting
            one.attempt = lambda first: 1 // 0
        assert pusher.ask(packed("SET", "other", "v")) == b"+OK\r\n"
        assert waiter.answer() == b"-ERR internal error\r\n"
        for command in ("XREAD STREAMS other 0", "XREADGROUP GROUP g c STREAMS other >"):
            assert pusher.ask(packed(*command.split())).startswith(b"-WRONGTYPE ")


@pytest.mark.parametrize("name", [name for name in WAITS if name != "a script"])
def test_a_key_of_another_type_wakes_nobody(port: int, name: str) -> None:
    store = module("redis_full")
    waits, ends, reply = WAITS[name]
    with Wire(port) as waiter, Wire(port) as pusher:
        blocked(store, waiter, *waits.split())
        assert pusher.ask(packed("SET", "q", "something else")) == b"+OK\r\n"
        assert waiting(store) == 1
        assert pusher.ask(packed("DEL", "q")) == b":1\r\n"
        pusher.ask(packed(*ends.split(" ")))
        assert waiter.answer() == reply


def test_streams_and_groups(client: Any) -> None:
    client.xgroup_create("s", "g", mkstream=True)
    with pytest.raises(redis.ResponseError, match=r"\ABUSYGROUP"):
        client.xgroup_create("s", "g", mkstream=True)
    entry = client.xadd("s", {"f": "v"})
    read = client.xreadgroup("g", "c", {"s": ">"})
    if isinstance(read, dict):
        read = [[name, entries] for name, entries in read.items()]
    assert read[0][0] == b"s"
    assert client.xpending("s", "g")["pending"] == 1
    assert client.xack("s", "g", entry) == 1
    assert client.xpending("s", "g")["pending"] == 0


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
