"""Publish/subscribe in both protocols."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
import redis
from redis_tables import RawClient, talk, talk_two

from protoserve import ServerParams
from protoserve_redis import REDIS_SPEC, CommandTable, Glob, WFRedisServer, pubsub


def bulk(*words: bytes) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


@pytest.mark.parametrize(("hello", "sign"), [(b"HELLO 2", b"*"), (b"HELLO 3", b">")])
def test_messages(
    server: WFRedisServer, commands: CommandTable, hello: bytes, sign: bytes
) -> None:
    with RawClient(server.address) as client:
        client.ask(hello)
        assert client.ask(b"SUBSCRIBE a b", 2) == (
            sign + b"3\r\n" + bulk(b"subscribe", b"a") + b":1\r\n"
            + sign + b"3\r\n" + bulk(b"subscribe", b"b") + b":2\r\n"
        )  # fmt: skip
        assert client.ask(b"PSUBSCRIBE a*") == (
            sign + b"3\r\n" + bulk(b"psubscribe", b"a*") + b":3\r\n"
        )
        assert commands.publish("a", "x") == 2
        assert client.reply() == sign + b"3\r\n" + bulk(b"message", b"a", b"x")
        assert client.reply() == sign + b"4\r\n" + bulk(b"pmessage", b"a*", b"a", b"x")
        assert commands.publish(b"abc", b"y") == 1
        assert client.reply() == sign + b"4\r\n" + bulk(b"pmessage", b"a*", b"abc", b"y")
        assert client.ask(b"UNSUBSCRIBE", 2).endswith(bulk(b"unsubscribe", b"b") + b":1\r\n")
        assert client.ask(b"PUNSUBSCRIBE").endswith(bulk(b"punsubscribe", b"a*") + b":0\r\n")
        null = b"$-1\r\n" if sign == b"*" else b"_\r\n"
        assert client.ask(b"UNSUBSCRIBE") == (
            sign + b"3\r\n" + bulk(b"unsubscribe") + null + b":0\r\n"
        )
        assert commands.publish("a", "x") == 0
        assert client.ask(b"GET nothing") == null


def test_subscriber_mode(server: WFRedisServer) -> None:
    with RawClient(server.address) as client:
        client.ask(b"SUBSCRIBE a")
        for line, name in ((b"GET x", b"get"), (b"pubsub numpat", b"pubsub|numpat")):
            assert client.ask(line) == (
                b"-ERR Can't execute '" + name + b"': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / "
                b"PING / QUIT / RESET are allowed in this context\r\n"
            )
        assert client.ask(b"PING") == b"*2\r\n" + bulk(b"pong", b"")
        assert client.ask(b"PING hi") == b"*2\r\n" + bulk(b"pong", b"hi")
        assert client.ask(b"RESET") == b"+RESET\r\n"
        assert client.ask(b"PING") == b"+PONG\r\n"
        client.ask(b"SUBSCRIBE a")
        assert client.ask(b"QUIT") == b"+OK\r\n"
        assert client.reply() == b""


def test_resp3_may_do_anything_while_subscribed(server: WFRedisServer) -> None:
    with RawClient(server.address) as client:
        client.ask(b"HELLO 3")
        client.ask(b"SUBSCRIBE a")
        assert client.ask(b"PING") == b"+PONG\r\n"
        assert client.ask(b"PUBLISH a b") == b">3\r\n" + bulk(b"message", b"a", b"b")
        assert client.reply() == b":1\r\n"


def test_introspection(server: WFRedisServer) -> None:
    with RawClient(server.address) as one, RawClient(server.address) as two:
        one.ask(b"SUBSCRIBE news sport", 2)
        one.ask(b"PSUBSCRIBE x*")
        assert two.ask(b"PUBSUB CHANNELS n*") == b"*1\r\n" + bulk(b"news")
        assert two.ask(b"PUBSUB CHANNELS") == b"*2\r\n" + bulk(b"news", b"sport")
        assert two.ask(b"PUBSUB NUMSUB news no") == (
            b"*4\r\n" + bulk(b"news") + b":1\r\n" + bulk(b"no") + b":0\r\n"
        )
        assert two.ask(b"PUBSUB NUMPAT") == b":1\r\n"
        assert two.ask(b"PUBSUB CHANNELS a b").startswith(b"-ERR unknown subcommand or wrong")


def test_closing_unsubscribes(server: WFRedisServer, commands: CommandTable) -> None:
    with RawClient(server.address) as client:
        client.ask(b"SUBSCRIBE a")
        client.ask(b"PSUBSCRIBE a")
    for _ in range(1000):
        if not commands.subscriptions.channels and not commands.subscriptions.patterns:
            return
        time.sleep(0.01)  # the closing of a peer shows to nobody else
    raise AssertionError("the closed connection is still subscribed")


def test_a_subscriber_does_not_idle_out(commands: CommandTable) -> None:
    params = ServerParams(keep_alive_timeout=0.2)
    with (
        WFRedisServer(commands, params).start("127.0.0.1", 0) as server,
        RawClient(server.address) as idle,
        RawClient(server.address) as subscriber,
    ):
        subscriber.ask(b"SUBSCRIBE a")
        idle.ask(b"PING")
        assert idle.reply() == b""  # its time is over; the subscriber's began before
        with RawClient(server.address) as second:
            second.ask(b"PING")
            assert second.reply() == b""
        assert commands.publish("a", "x") == 1
        assert subscriber.reply() == b"*3\r\n" + bulk(b"message", b"a", b"x")
        subscriber.ask(b"UNSUBSCRIBE")
        assert subscriber.reply() == b""


def test_messages_pass_client_reply_off(server: WFRedisServer, commands: CommandTable) -> None:
    with RawClient(server.address) as client:
        client.send(b"CLIENT REPLY OFF\r\nPING\r\nSUBSCRIBE a")
        assert client.reply() == b"*3\r\n" + bulk(b"subscribe", b"a") + b":1\r\n"
        commands.publish("a", "x")
        assert client.reply() == b"*3\r\n" + bulk(b"message", b"a", b"x")


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(server: WFRedisServer, protocol: int) -> None:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=protocol) as client, client.pubsub() as pubsub:
        pubsub.subscribe("a")
        pubsub.psubscribe("b*")
        kinds = [pubsub.get_message(timeout=10)["type"] for _ in range(2)]
        assert kinds == ["subscribe", "psubscribe"]
        assert client.publish("a", "one") == 1
        assert client.publish("bcd", "two") == 1
        messages = [pubsub.get_message(timeout=10) for _ in range(2)]
        assert [(m["type"], m["channel"], m["data"]) for m in messages] == [
            ("message", b"a", b"one"),
            ("pmessage", b"bcd", b"two"),
        ]
        assert client.pubsub_numsub("a") == [(b"a", 1)]


def test_every_subscriber_sees_one_order(server: WFRedisServer, commands: CommandTable) -> None:
    with RawClient(server.address) as one, RawClient(server.address) as two:
        one.ask(b"SUBSCRIBE a")
        two.ask(b"SUBSCRIBE a")

        def publish(sign: bytes) -> None:
            for i in range(50):
                assert commands.publish(b"a", sign + b"%d" % i) == 2

        threads = [threading.Thread(target=publish, args=(sign,)) for sign in (b"x", b"y")]
        for thread in threads:
            thread.start()
        seen = [[client.reply() for _ in range(100)] for client in (one, two)]
        for thread in threads:
            thread.join()
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 100


def test_confirmation_comes_before_messages(server: WFRedisServer, commands: CommandTable) -> None:
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.0005):
            commands.publish("a", "x")

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        with RawClient(server.address) as client:
            for _ in range(20):
                client.send(b"PING\r\nSUBSCRIBE a")
                assert client.reply() == b"+PONG\r\n"
                assert client.reply() == b"*3\r\n" + bulk(b"subscribe", b"a") + b":1\r\n"
                assert client.reply() == b"*3\r\n" + bulk(b"message", b"a", b"x")
                client.send(b"UNSUBSCRIBE")
                while client.reply() != b"*3\r\n" + bulk(b"unsubscribe", b"a") + b":0\r\n":
                    pass
    finally:
        stop.set()
        thread.join()


def test_thousands_of_patterns_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []

    class Counting(Glob):
        def __init__(self, pattern: bytes) -> None:
            made.append(pattern)
            super().__init__(pattern)

    monkeypatch.setattr(pubsub, "Glob", Counting)
    commands = CommandTable()
    names = [b"user:%d:*" % number for number in range(1000)]
    with talk_two(commands) as (one, two):
        for client in (one, two):
            client.ask(b"PSUBSCRIBE " + b" ".join(names), len(names))
        for _ in range(3):
            assert commands.publish("user:7:x", "m") == 2
        assert sorted(made) == sorted(names)
        one.ask(b"PUNSUBSCRIBE", len(names) + 3)
        two.reply()
        assert commands.publish("user:7:x", "m") == 1
        two.ask(b"PUNSUBSCRIBE user:7:*", 4)
        assert commands.publish("user:7:x", "m") == 0
        assert commands.publish("user:8:x", "m") == 1
    assert commands.publish("user:8:x", "m") == 0


def test_a_pattern_that_is_too_long_hurts_nobody_else() -> None:
    commands = CommandTable()
    with talk(commands) as client:
        assert client.ask(b"PSUBSCRIBE a " + b"x" * 2000).startswith(b"-ERR the pattern is longer")
        assert client.ask(b"PUBLISH a m") == b":0\r\n"


def test_messages_that_wait_for_an_exec_have_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    commands = CommandTable()
    napping = threading.Event()

    @commands.command("NAP")
    async def nap(task: Any) -> None:
        napping.set()
        await asyncio.sleep(600)

    params = REDIS_SPEC.params.replace(unsent_limit=1024 * 1024, shutdown_timeout=0.1)
    with (
        WFRedisServer(commands, params).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.ask(b"HELLO 3")
        for line in (b"SUBSCRIBE c", b"MULTI", b"NAP"):
            client.ask(line)
        client.send(b"EXEC")
        assert napping.wait(20)
        message = bytes(1024 * 1024)
        delivered = [commands.publish("c", message) for _ in range(40)]
        assert delivered[:31] == [1] * 31
        assert delivered[-1] == 0
        assert not commands.connections()
        with contextlib.suppress(ConnectionResetError):
            assert client.reply() == b""
    assert "messages wait until its EXEC has ended" in caplog.text
