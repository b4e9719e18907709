"""Replies as bytes: by hand, and read back by hiredis."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest

from protoserve_redis import (
    NO_REPLY,
    NULL_ARRAY,
    OK,
    Attributed,
    BigNumber,
    Push,
    Raw,
    RedisError,
    RedisResponse,
    SimpleString,
    Verbatim,
    encode,
)
from protoserve_redis.serialiser import MAX_DEPTH, message_out


@pytest.mark.parametrize(
    ("value", "resp2", "resp3"),
    [
        (None, b"$-1\r\n", b"_\r\n"),
        (NULL_ARRAY, b"*-1\r\n", b"_\r\n"),
        (NO_REPLY, b"", b""),
        (OK, b"+OK\r\n", b"+OK\r\n"),
        (SimpleString("a\r\nb"), b"+a  b\r\n", b"+a  b\r\n"),
        (RedisError("ERR a\r\nb"), b"-ERR a  b\r\n", b"-ERR a  b\r\n"),
        (RedisError("ERR '\udcff'"), b"-ERR '\xff'\r\n", b"-ERR '\xff'\r\n"),
        (b"", b"$0\r\n\r\n", b"$0\r\n\r\n"),
        (b"a\r\n", b"$3\r\na\r\n\r\n", b"$3\r\na\r\n\r\n"),
        (bytearray(b"ab"), b"$2\r\nab\r\n", b"$2\r\nab\r\n"),
        (memoryview(b"abc")[::2], b"$2\r\nac\r\n", b"$2\r\nac\r\n"),
        ("é", b"$2\r\n\xc3\xa9\r\n", b"$2\r\n\xc3\xa9\r\n"),
        (0, b":0\r\n", b":0\r\n"),
        (-5, b":-5\r\n", b":-5\r\n"),
        (2**63 - 1, b":9223372036854775807\r\n", b":9223372036854775807\r\n"),
        (2**63, b"$19\r\n9223372036854775808\r\n", b"(9223372036854775808\r\n"),
        (BigNumber(-7), b"$2\r\n-7\r\n", b"(-7\r\n"),
        (True, b":1\r\n", b"#t\r\n"),
        (False, b":0\r\n", b"#f\r\n"),
        (1.5, b"$3\r\n1.5\r\n", b",1.5\r\n"),
        (0.1, b"$19\r\n0.10000000000000001\r\n", b",0.10000000000000001\r\n"),
        (3.0, b"$1\r\n3\r\n", b",3\r\n"),
        (1e20, b"$5\r\n1e+20\r\n", b",1e+20\r\n"),
        (float("inf"), b"$3\r\ninf\r\n", b",inf\r\n"),
        (float("-inf"), b"$4\r\n-inf\r\n", b",-inf\r\n"),
        (float("nan"), b"$3\r\nnan\r\n", b",nan\r\n"),
        ([], b"*0\r\n", b"*0\r\n"),
        ((1, None), b"*2\r\n:1\r\n$-1\r\n", b"*2\r\n:1\r\n_\r\n"),
        ([b"a", [OK, True]], b"*2\r\n$1\r\na\r\n*2\r\n+OK\r\n:1\r\n", None),
        ({b"a": [1]}, b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", b"%1\r\n$1\r\na\r\n*1\r\n:1\r\n"),
        ({b"a"}, b"*1\r\n$1\r\na\r\n", b"~1\r\n$1\r\na\r\n"),
        (frozenset(), b"*0\r\n", b"~0\r\n"),
        (
            Push([b"message", 1]),
            b"*2\r\n$7\r\nmessage\r\n:1\r\n",
            b">2\r\n$7\r\nmessage\r\n:1\r\n",
        ),
        (Verbatim("hi"), b"$2\r\nhi\r\n", b"=6\r\ntxt:hi\r\n"),
        (Verbatim(b"hi", "mkd"), b"$2\r\nhi\r\n", b"=6\r\nmkd:hi\r\n"),
        (Attributed(7, {"ttl": 3}), b":7\r\n", b"|1\r\n$3\r\nttl\r\n:3\r\n:7\r\n"),
        (Raw(b"+x\r\n"), b"+x\r\n", b"+x\r\n"),
        ([Raw(b"+x\r\n"), RedisError("ERR")], b"*2\r\n+x\r\n-ERR\r\n", b"*2\r\n+x\r\n-ERR\r\n"),
    ],
)
def test_bytes(value: Any, resp2: bytes, resp3: bytes | None) -> None:
    assert encode(value, 2) == resp2
    if resp3 is not None:
        assert encode(value, 3) == resp3


def read(data: bytes) -> Any:
    reader = hiredis.Reader(notEnoughData=NO_REPLY)
    reader.feed(data)
    value = reader.gets()
    assert reader.gets() is NO_REPLY
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"x" * 100_000,
        -1,
        True,
        False,
        2.5,
        [],
        [[], [[b"a"]], b"b", [1, [2, [3]], None]],
        {b"a": {b"b": [1, 2]}, b"c": 1.25},
        {b"a", b"b"},
    ],
)
def test_round_trip(value: Any) -> None:
    found = read(encode(value, 3))
    if isinstance(value, set):
        found = set(found)
    assert found == value
    assert type(found) is type(value)


def test_errors_are_read_as_errors() -> None:
    found = read(encode([1, RedisError("WRONGTYPE no")], 2))
    assert isinstance(found[1], hiredis.ReplyError)
    assert str(found[1]) == "WRONGTYPE no"


@pytest.mark.parametrize("value", [object(), {1, 2}.__iter__(), 1j, ValueError("x"), [object()]])
def test_foreign_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="has no place in a Redis reply"):
        encode(value)


def test_depth_is_bounded() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert encode(value) == b"*1\r\n" * (MAX_DEPTH - 1) + b"*0\r\n"
    with pytest.raises(ValueError, match="nested deeper"):
        encode([value])
    value.append(value)
    with pytest.raises(ValueError, match="nested deeper"):
        encode(value)


@pytest.mark.parametrize("name", ["", "text", "ééé"])
def test_verbatim_format(name: str) -> None:
    with pytest.raises(ValueError, match="expected three ASCII"):
        Verbatim("x", name)


def test_large_strings_are_not_copied() -> None:
    value = b"x" * 100_000
    pieces = message_out(RedisResponse(value))
    assert isinstance(pieces, list)
    assert pieces[1] is value
    assert b"".join(pieces) == encode(value)
