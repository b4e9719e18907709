"""Replies as bytes: by hand, and read back by hiredis."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from enum import Enum, IntEnum
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


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Nested(Enum):
    PAIR = (1, "x")


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
        (0.1, b"$3\r\n0.1\r\n", b",0.1\r\n"),
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
        (Decimal("0.10"), b"$4\r\n0.10\r\n", b",0.10\r\n"),
        (Decimal("-Infinity"), b"$4\r\n-inf\r\n", b",-inf\r\n"),
        (range(3), b"*3\r\n:0\r\n:1\r\n:2\r\n", b"*3\r\n:0\r\n:1\r\n:2\r\n"),
        (deque([b"a"]), b"*1\r\n$1\r\na\r\n", b"*1\r\n$1\r\na\r\n"),
        ({b"a": 1}.keys(), b"*1\r\n$1\r\na\r\n", b"~1\r\n$1\r\na\r\n"),
        ({b"a": 1}.values(), b"*1\r\n:1\r\n", b"*1\r\n:1\r\n"),
        ({b"a": 1}.items(), b"*1\r\n*2\r\n$1\r\na\r\n:1\r\n", None),
        (Colour.RED, b"$3\r\nred\r\n", b"$3\r\nred\r\n"),
        ([Level.LOW, Nested.PAIR], b"*2\r\n:1\r\n*2\r\n:1\r\n$1\r\nx\r\n", None),
        (RedisError("not allowed"), b"-ERR not allowed\r\n", b"-ERR not allowed\r\n"),
        (RedisError("A code it is not"), b"-ERR A code it is not\r\n", None),
        (RedisError("Err no"), b"-ERR Err no\r\n", None),
        (RedisError("NO_1 code"), b"-NO_1 code\r\n", None),
        (RedisError(""), b"-ERR\r\n", b"-ERR\r\n"),
        (RedisError("\r\nERR a\r\nb\r\n\r\n"), b"-ERR a  b\r\n", None),
        ([Raw(b"+x\r\n"), RedisError("ERR")], b"*2\r\n+x\r\n-ERR\r\n", b"*2\r\n+x\r\n-ERR\r\n"),
    ],
)
def test_bytes(value: Any, resp2: bytes, resp3: bytes | None) -> None:
    assert encode(value, 2) == resp2
    if resp3 is not None:
        assert encode(value, 3) == resp3


@pytest.mark.parametrize(
    ("value", "shortest", "long"),
    [
        (0.1, b"0.1", b"0.10000000000000001"),
        (0.0, b"0", b"0"),
        (-0.0, b"-0", b"-0"),
        (-1.5, b"-1.5", b"-1.5"),
        (100.0, b"100", b"100"),
        (123456.789, b"123456.789", b"123456.789"),
        (1e7, b"10000000", b"10000000"),
        (1e8, b"1e+8", b"100000000"),
        (1.5e300, b"1.5e+300", b"1.5000000000000001e+300"),
        (1e-6, b"0.000001", b"9.9999999999999995e-07"),
        (1e-7, b"1e-7", b"9.9999999999999995e-08"),
        (-1.25e-10, b"-1.25e-10", b"-1.2500000000000001e-10"),
        (5e-324, b"5e-324", b"4.9406564584124654e-324"),
        (12345678901234567890.0, b"12345678901234567000", b"1.2345678901234567e+19"),
    ],
)
def test_doubles(value: float, shortest: bytes, long: bytes) -> None:
    assert encode(value, 3) == b",%b\r\n" % shortest
    assert encode([value], 2, long_doubles=True) == b"*1\r\n$%d\r\n%b\r\n" % (len(long), long)
    assert float(shortest) == float(long) == value


@pytest.mark.parametrize("value", [[NO_REPLY], {b"a": NO_REPLY}, [[1, Raw(b"")]]])
def test_what_sends_nothing_has_no_place_within(value: Any) -> None:
    with pytest.raises(ValueError, match="missing there"):
        encode(value)


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
