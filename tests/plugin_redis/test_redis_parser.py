"""RedisParser: requests, Redis' words about faults, and limits before memory is spent."""

from __future__ import annotations

import tracemalloc

import pytest
from redis_exchanges import command, every_byte, parse

from protoserve import NEED_DATA, ProtocolError
from protoserve_redis import REDIS_SPEC, RedisParser

PING = command(b"PING")

GOOD: list[tuple[bytes, list[list[bytes]]]] = [
    (command(b"SET", b"k", b"v"), [[b"SET", b"k", b"v"]]),
    (command(b"SET", b"k", b""), [[b"SET", b"k", b""]]),
    (command(b"SET", b"k", b"a\r\nb"), [[b"SET", b"k", b"a\r\nb"]]),
    (command(b"SET", b"k", b"a\r"), [[b"SET", b"k", b"a\r"]]),
    (command(b"SET", b"k", b"\n"), [[b"SET", b"k", b"\n"]]),
    (command(b"", b"$3", b"*1"), [[b"", b"$3", b"*1"]]),
    (command(b"SET", b"k", b"x" * 2000), [[b"SET", b"k", b"x" * 2000]]),
    (command(*[b"a"] * 100), [[b"a"] * 100]),
    *((command(b"x" * size), [[b"x" * size]]) for size in (1023, 1024, 1025)),
    *((command(*[b"a"] * count), [[b"a"] * count]) for count in (63, 64, 65)),
    (command(b"", b"") * 2, [[b"", b""]] * 2),
    (PING + command(b"GET", b"\r\n") + PING, [[b"PING"], [b"GET", b"\r\n"], [b"PING"]]),
    (b"*0\r\n", []),
    (b"*-1\r\n", []),
    (b"*-7\r\n" + PING, [[b"PING"]]),
    (b"PING\r\n", [[b"PING"]]),
    (b"PING\n", [[b"PING"]]),
    (b"\r\n", []),
    (b"\n \t\r\n", []),
    (b"  set  k\tv \r\n", [[b"set", b"k", b"v"]]),
    (b"+OK\r\n", [[b"+OK"]]),
    (b":5\r\n", [[b":5"]]),
    (b"$3\r\nGET\r\n", [[b"$3"], [b"GET"]]),
    (b'set k "a b"\r\n', [[b"set", b"k", b"a b"]]),
    (rb'set k "\x00\xfFz\n\r\t\b\a\q\"\\"' + b"\r\n", [[b"set", b"k", b'\0\xffz\n\r\t\b\aq"\\']]),
    (rb'"\xZZ"' + b"\r\n", [[b"xZZ"]]),
    (rb"'a\'b\n' ''" + b"\r\n", [[rb"a'b\n", b""]]),
    (b'ab"cd" e\r\n', [[b"abcd", b"e"]]),
    (b"GET k\0 rest\r\n", [[b"GET", b"k"]]),
    (b"a\rb\r\n", [[b"a", b"b"]]),
    (b"x" * 65536 + b"\r\n", [[b"x" * 65536]]),
]


@pytest.mark.parametrize(("data", "requests"), GOOD)
def test_requests(data: bytes, requests: list[list[bytes]]) -> None:
    whole = parse([data + PING])
    assert whole.requests == [*requests, [b"PING"]]
    assert not whole.reply
    assert not whole.partial
    assert parse(every_byte(data + PING)) == whole


BAD: list[tuple[bytes, str]] = [
    (b"*a\r\n", "invalid multibulk length"),
    (b"*\r\n", "invalid multibulk length"),
    (b"*01\r\n", "invalid multibulk length"),
    (b"*+1\r\n", "invalid multibulk length"),
    (b"* 1\r\n", "invalid multibulk length"),
    (b"*-0\r\n", "invalid multibulk length"),
    (b"*1\rx", "invalid multibulk length"),
    (b"*1048577\r\n", "invalid multibulk length"),
    (b"*400000000\r\n", "invalid multibulk length"),
    (b"*2147483648\r\n", "invalid multibulk length"),
    (b"*99999999999999999999\r\n", "invalid multibulk length"),
    (b"*-9999999999999999999\r\n", "invalid multibulk length"),
    (b"*" + b"1" * 65536, "too big mbulk count string"),
    (b"*1\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'"),
    (b"*1\r\n:1\r\n", "expected '$', got ':'"),
    (b"*1\r\n%99999999\r\n", "expected '$', got '%'"),
    (b"*1\r\n\xff\r\n", "expected '$', got '\xff'"),
    (b"*1\r\n\r\n", "expected '$', got ' '"),
    (b"*1\r\n\0\r\n", "expected '$', got '\0'"),
    (b"*1\r\n$a\r\n", "invalid bulk length"),
    (b"*1\r\n$-1\r\n", "invalid bulk length"),
    (b"*1\r\n$\r\n", "invalid bulk length"),
    (b"*1\r\n$03\r\n", "invalid bulk length"),
    (b"*1\r\n$3\rx", "invalid bulk length"),
    (b"*1\r\n$999999999999\r\n", "invalid bulk length"),
    (b"*1\r\n$67108865\r\n", "invalid bulk length"),
    (b"*1\r\n$" + b"1" * 65536, "too big bulk count string"),
    (b"*1\r\n$3\r\nabcde", "expected CR LF after a bulk string"),
    (b"*1\r\n$3\r\nabc\rx", "expected CR LF after a bulk string"),
    (b'set k "abc\r\n', "unbalanced quotes in request"),
    (b"set k 'abc\r\n", "unbalanced quotes in request"),
    (b'set k "abc"d\r\n', "unbalanced quotes in request"),
    (b"set k 'abc'd\r\n", "unbalanced quotes in request"),
    (b'set k "abc\\"\r\n', "unbalanced quotes in request"),
    (b"set k 'abc\\'\r\n", "unbalanced quotes in request"),
    (b'set k "a\0b"\r\n', "unbalanced quotes in request"),
    (b"x" * 65537, "too big inline request"),
    (b"x" * 65537 + b"\r\n", "too big inline request"),
]


@pytest.mark.parametrize(("data", "text"), BAD)
def test_faults(data: bytes, text: str) -> None:
    whole = parse([PING + data + PING])
    assert whole.requests == [[b"PING"]]
    assert whole.reply == f"-ERR Protocol error: {text}\r\n".encode("latin-1")
    assert not whole.partial
    assert parse([PING, *every_byte(data + PING)]) == whole


def test_request_size_limit() -> None:
    request = command(b"SET", b"k", b"v" * 100)
    for size, reply in ((0, b""), (1, b"-ERR Protocol error: invalid bulk length\r\n")):
        params = REDIS_SPEC.params.replace(request_size_limit=len(request) - size)
        assert parse([request], params).reply == reply
        assert parse(every_byte(request), params).reply == reply
    params = REDIS_SPEC.params.replace(request_size_limit=59)
    assert parse([b"*10\r\n"], params).reply == (
        b"-ERR Protocol error: invalid multibulk length\r\n"
    )
    assert b"too big inline" in parse([b"x" * 60], params).reply
    unlimited = REDIS_SPEC.params.replace(request_size_limit=None)
    assert parse([b"*1\r\n$999999999999\r\n"], unlimited).partial


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"*11\r\n", "unauthenticated multibulk length"),
        (b"*1\r\n$16385\r\n", "unauthenticated bulk length"),
    ],
)
def test_unauthenticated(data: bytes, text: str) -> None:
    fits = command(*[b"x" * 16384] * 10)
    for pieces in ([fits + data], every_byte(fits + data)):
        outcome = parse(pieces, authenticated=False)
        assert len(outcome.requests) == 1
        assert outcome.reply == f"-ERR Protocol error: {text}\r\n".encode()
    assert parse([data]).partial


def test_request_after_authentication_is_measured_anew() -> None:
    parser = RedisParser(REDIS_SPEC.params, authenticated=False)
    parser.feed(command(b"AUTH", b"secret") + command(*[b"a"] * 11))
    first = parser.next_message()
    assert first is not NEED_DATA
    assert first.name == "AUTH"
    parser.authenticated = True
    second = parser.next_message()
    assert second is not NEED_DATA
    assert len(second.args) == 11


@pytest.mark.parametrize(
    "data",
    [
        b"*400000000\r\n",
        b"*1048576\r\n",
        b"*1\r\n$999999999999\r\n",
        b"*1\r\n*1\r\n" * 1000,
        b"*1\r\n$67108000\r\n",
    ],
)
def test_small_input_costs_little(data: bytes) -> None:
    parser = RedisParser(REDIS_SPEC.params)
    tracemalloc.start()
    try:
        parser.feed(data)
        try:
            assert parser.next_message() is NEED_DATA
        except ProtocolError:
            assert not parser.partial
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("head", [b"", b"*1\r\n$70000000\r\n", b"*1", b"*1\r\n$"])
def test_endless_input_is_bounded(head: bytes) -> None:
    limit = 1024 * 1024
    parser = RedisParser(REDIS_SPEC.params.replace(request_size_limit=limit))
    piece = b"1" * 65536
    tracemalloc.start()
    try:
        parser.feed(head)
        ended = False
        for _ in range(3200):  # 200 MiB
            parser.feed(piece)
            try:
                assert parser.next_message() is NEED_DATA
            except ProtocolError:
                ended = True
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ended
    assert peak < 2 * limit


def test_closed_parser_forgets() -> None:
    parser = RedisParser(REDIS_SPEC.params)
    parser.feed(PING + b"*1\r\n")
    parser.close()
    assert not parser.partial
    assert parser.next_message() is NEED_DATA
