"""examples/protocols/memcached, with pymemcache, and with bytes of our own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from loopback import PATIENCE, RawClient
from memcached_protocol import MEMCACHED_SPEC
from memcached_protocol.cache import Cache
from memcached_protocol.store import Store
from protocol_packages import serving
from pymemcache import Client, MemcacheClientError, PooledClient
from pymemcache.exceptions import MemcacheServerError

from protoserve import WFServer

MIB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["threads", "loop"])
def server(request: pytest.FixtureRequest, clock: Clock) -> Iterator[WFServer[Any, Any]]:
    with serving(MEMCACHED_SPEC, Cache(Store(now=clock)), request.param) as server:
        yield server


@pytest.fixture
def client(server: WFServer[Any, Any]) -> Iterator[Client]:
    client = Client(server.address, connect_timeout=PATIENCE, timeout=PATIENCE)
    client.default_noreply = False
    yield client
    client.close()


def test_set_and_get(client: Client) -> None:
    values = {"a": b"", "b": b"\r\nEND\r\n", "c": bytes(range(256)), "d": b"x" * MIB}
    for key, value in values.items():
        assert client.get(key) is None
        assert client.set(key, value, flags=7)
        assert client.get(key) == value
    assert client.get_many([*values, "none"]) == values
    assert client.delete("a")
    assert not client.delete("a")
    assert client.delete_many(["b", "c"])
    assert client.get_many(["a", "b", "c"]) == {}


def test_many_keys(client: Client) -> None:
    values = {f"{'k' * 240}{number}": b"%d" % number for number in range(1000)}
    assert client.set_many(values) == []
    assert client.get_many(list(values)) == values


def test_only_where_it_is_there_or_not(client: Client) -> None:
    assert not client.replace("a", b"1")
    assert not client.append("a", b"1")
    assert not client.prepend("a", b"1")
    assert client.add("a", b"1")
    assert not client.add("a", b"2")
    assert client.append("a", b"2")
    assert client.prepend("a", b"0")
    assert client.get("a") == b"012"
    assert client.replace("a", b"3")
    assert client.get("a") == b"3"


def test_compare_and_swap(client: Client) -> None:
    assert client.cas("a", b"1", b"1") is None
    client.set("a", b"1")
    value, unique = client.gets("a")
    assert value == b"1"
    client.set("a", b"2")
    assert client.cas("a", b"3", unique) is False
    values = client.gets_many(["a", "b"])
    assert values["a"][0] == b"2"
    assert client.cas("a", b"3", values["a"][1]) is True
    assert client.cas("a", b"4", values["a"][1]) is False
    assert client.get("a") == b"3"


def test_numbers(client: Client) -> None:
    assert client.incr("a", 1) is None
    client.set("a", b"10")
    assert client.incr("a", 5) == 15
    assert client.decr("a", 6) == 9
    assert client.get("a") == b"9"
    assert client.decr("a", 10) == 0
    client.set("a", b"18446744073709551615")
    assert client.incr("a", 2) == 1
    client.set("a", b"ten")
    with pytest.raises(MemcacheClientError, match="non-numeric"):
        client.incr("a", 1)
    assert client.get("a") == b"ten"


def test_expiry(client: Client, clock: Clock, server: WFServer[Any, Any]) -> None:
    client.set("a", b"1", expire=10)
    client.set("b", b"1", expire=1_000_000_015)
    client.set("c", b"1", expire=-1)
    client.set("d", b"1")
    assert sorted(client.get_many("abcd")) == ["a", "b", "d"]
    clock.time += 9
    assert client.touch("a", 10)
    assert not client.touch("c", 10)
    clock.time += 7
    assert sorted(client.get_many("abcd")) == ["a", "d"]
    with RawClient(server.address) as other:
        other.send(b"gat 30 a b\r\ngat 30\r\n")
        other.end_sending()
        assert other.rest() == b"VALUE a 0 1\r\n1\r\nEND\r\nERROR\r\n"
    clock.time += 29
    assert client.get("a") == b"1"
    clock.time += 1
    assert client.get("a") is None


def test_flush_all(client: Client, clock: Clock) -> None:
    client.set("a", b"1")
    assert client.flush_all(delay=10)
    assert client.get("a") == b"1"
    clock.time += 10
    assert client.get("a") is None
    client.set("b", b"1")
    assert client.flush_all()
    assert client.get("b") is None


def test_noreply(client: Client) -> None:
    client.set("a", b"1", noreply=True)
    client.append("a", b"2", noreply=True)
    client.add("a", b"3", noreply=True)
    client.incr("a", 1, noreply=True)
    assert client.get("a") == b"13"
    client.set_many({"b": b"1", "c": b"2"}, noreply=True)
    client.delete("a", noreply=True)
    assert client.get_many("abc") == {"b": b"1", "c": b"2"}
    client.set("b", b"x" * (MIB + 1), noreply=True)
    client.touch("c", -1, noreply=True)
    assert client.get_many("abc") == {}
    client.set("a", b"1", noreply=True)
    client.flush_all(noreply=True)
    assert client.get("a") is None


def test_limits(client: Client) -> None:
    client.set("a", b"1")
    with pytest.raises(MemcacheServerError, match="too large"):
        client.set("a", b"x" * (MIB + 1))
    assert client.get("a") is None
    client.set("a", b"x" * MIB)
    with pytest.raises(MemcacheServerError, match="too large"):
        client.append("a", b"x")
    assert client.get("a") == b"x" * MIB
    with pytest.raises(MemcacheServerError, match="too large"):
        client.set("a", b"x" * 5 * MIB)
    assert client.set("k" * 250, b"1")
    assert client.get("k" * 250) == b"1"


def test_about_the_server(client: Client, server: WFServer[Any, Any]) -> None:
    assert client.version() == b"1.0.0"
    client.set("a", b"1")
    client.get_many("ab")
    with RawClient(server.address) as other:
        other.send(b"verbosity 1\r\nverbosity\r\n")
        assert other._file.readline() == b"OK\r\n"
        assert other._file.readline() == b"ERROR\r\n"
        stats = client.stats()
    assert stats[b"curr_connections"] == 2
    assert stats[b"curr_items"] == 1
    assert stats[b"get_hits"] == stats[b"get_misses"] == 1
    assert stats[b"cmd_get"] == 2
    assert stats[b"cmd_set"] == 1
    assert stats[b"time"] == 1_000_000_000


@pytest.mark.parametrize(
    ("asked", "replies"),
    [
        (b"set a 5 0 2\r\nhi\r\nget a\r\n", b"STORED\r\nVALUE a 5 2\r\nhi\r\nEND\r\n"),
        (b"get a\nversion\n", b"END\r\nVERSION 1.0.0\r\n"),
        (b"\r\nget\r\nnonsense a b\r\nGET a\r\n", b"ERROR\r\n" * 4),
        (b"set a 0 0 2\r\nhi\r\ngets a\r\n", b"STORED\r\nVALUE a 0 2 1\r\nhi\r\nEND\r\n"),
        (
            b"get " + b"k" * 251 + b"\r\nset " + b"k" * 251 + b" 0 0 1\r\nx\r\nget a\r\n",
            b"CLIENT_ERROR bad command line format\r\n" * 2 + b"END\r\n",
        ),
        (b"set a 4294967296 0 1\r\nx\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"set a 0 soon 1\r\nx\r\n", b"CLIENT_ERROR invalid exptime argument\r\n"),
        (b"set a 4294967295 0 1\r\nx\r\n", b"STORED\r\n"),
        (b"incr a x\r\n", b"CLIENT_ERROR invalid numeric delta argument\r\n"),
        (b"incr a 18446744073709551616\r\n", b"CLIENT_ERROR invalid numeric delta argument\r\n"),
        (b"cas a 0 0 1 x\r\nx\r\n", b"CLIENT_ERROR bad command line format\r\n"),
        (b"get a\r\nquit\r\nget a\r\n", b"END\r\n"),
        # What follows is not taken for commands.
        (b"set a 0 0 1\r\nxx\r\nflush_all\r\n", b"CLIENT_ERROR bad data chunk\r\n"),
        (b"set a b 0 0 11\r\nflush_all\r\n\r\n", b"ERROR\r\n"),
        (b"add a 0 0 5000000\r\n", b"SERVER_ERROR object too large for cache\r\n"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_on_the_wire(
    server: WFServer[Any, Any], asked: bytes, replies: bytes, bytewise: bool
) -> None:
    with RawClient(server.address) as client:
        if bytewise and b"quit" not in asked:
            client.send_bytewise(asked[:-1])
            client.send(asked[-1:])
        else:
            client.send(asked)
        if not asked.endswith((b"quit\r\nget a\r\n", b"flush_all\r\n", b"\r\n\r\n", b"000\r\n")):
            client.end_sending()
        assert client.rest() == replies


def test_many_clients_count_together(server: WFServer[Any, Any]) -> None:
    client = PooledClient(server.address, max_pool_size=8, timeout=PATIENCE)
    client.set("n", b"0", noreply=False)

    def count() -> None:
        for _ in range(50):
            client.incr("n", 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert client.get("n") == b"400"
    client.close()
