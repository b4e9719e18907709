"""Numbers and options of commands, against a real redis-server where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kv_server import Wire, packed

from protoserve_redis import RedisError, arguments

NUMBERS = [
    b"0", b"1", b"-1", b"-0", b"+1", b"01", b" 1", b"1 ", b"", b"1.0", b"1_0", b"0x10", b"1e3",
    b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808",
    b"-9223372036854775809", b"1" * 5000, b"\xd9\xa1", b"1\0", b"\n1", b"--1", b"-",
]  # fmt: skip

DOUBLES = [
    *NUMBERS, b"1.5", b"-1.5", b"+1.5", b".5", b"5.", b".", b"1e3", b"1E3", b"1e+3", b"1e",
    b"1e400", b"-1e400", b"1e-400", b"0e400", b"0.0e-9999", b"4.9e-324", b"1e-323", b"inf",
    b"-inf", b"+INF", b"Infinity", b"infinit", b"nan", b"-nan", b"0x1p3", b"0X1P3", b"0x.8", b"0x",
    b"0x1p9999", b"-0x10", b"0x1p-9999", b"0x0p-9999", b"1,5", b"1.5 ", b" 1.5",
    b"\t1", b"1\n",
]  # fmt: skip


def outcome(read: Callable[[bytes], Any], text: bytes) -> Any:
    """What a helper makes of a text: a number, or the error's line."""
    try:
        return read(text)
    except RedisError as error:
        return b"-%b\r\n" % str(error).encode()


def test_integers_are_those_of_redis(redis_port: int) -> None:
    with Wire(redis_port) as wire:
        for text in NUMBERS:
            wire.ask(packed("DEL", "n"))
            answer = wire.ask(packed("INCRBY", "n", text))
            got = outcome(arguments.integer, text)
            assert (text, got if type(got) is bytes else b":%d\r\n" % got) == (text, answer)


def test_doubles_are_those_of_redis(redis_port: int) -> None:
    with Wire(redis_port) as wire:
        for text in DOUBLES:
            answer = wire.ask(packed("ZADD", "z", "CH", text, "m"))
            got = outcome(arguments.real, text)
            if type(got) is bytes:
                assert (text, got) == (text, answer)
            else:
                assert (text, answer[:1]) == (text, b":")
                assert (text, float(wire.ask(packed("ZSCORE", "z", "m")).split()[1])) == (
                    text,
                    got,
                )


def test_timeouts_are_those_of_redis(redis_port: int) -> None:
    with Wire(redis_port) as wire:
        wire.ask(packed("RPUSH", "l", *["x"] * 100))
        # What Redis 7.0 reads as a long double, and lets overflow, it calls negative.
        numbers = [text for text in NUMBERS if len(text) < 19 or len(text) > 99]
        for text in [*numbers, b"1.5", b"-1.5", b"nan"]:
            answer = wire.ask(packed("BLPOP", "l", text))
            got = outcome(arguments.timeout, text)
            assert (text, got if type(got) is bytes else b"*2") == (
                text,
                answer if type(got) is bytes else answer[:2],
            )


def test_integer_within_bounds() -> None:
    assert arguments.integer(b"3", least=0, most=3) == 3
    for text in (b"-1", b"4"):
        with pytest.raises(RedisError, match="ERR no"):
            arguments.integer(text, "ERR no", least=0, most=3)


def read(*words: bytes) -> dict[str, Any]:
    return arguments.options(
        words,
        "NX",
        "XX",
        EX=arguments.integer,
        LIMIT=(arguments.integer, arguments.integer),
        MATCH=bytes,
        exclusive=("NX XX",),
    )


def test_options() -> None:
    assert read() == {}
    assert read(b"nx", b"eX", b"10") == {"NX": True, "EX": 10}
    assert read(b"LIMIT", b"1", b"2", b"match", b"nx") == {"LIMIT": (1, 2), "MATCH": b"nx"}


@pytest.mark.parametrize(
    "words",
    [
        (b"FOO",), (b"NX", b"XX"), (b"NX", b"NX"), (b"EX",), (b"EX", b"1", b"EX", b"2"),
        (b"LIMIT", b"1"), (b"\xff",), (b"",),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(words: tuple[bytes, ...]) -> None:
    with pytest.raises(RedisError, match="ERR syntax error"):
        read(*words)


def test_an_option_s_own_error() -> None:
    with pytest.raises(RedisError, match="not an integer"):
        read(b"EX", b"x")


def test_limits_of_real() -> None:
    assert arguments.real(b"-1.5", least=-1.5, most=2) == -1.5
    for text in (b"-1.6", b"2.1", b"inf", b"-inf"):
        with pytest.raises(RedisError, match="ERR too much"):
            arguments.real(text, "ERR too much", least=-1.5, most=2)


def test_options_that_no_client_could_give_are_the_author_s() -> None:
    with pytest.raises(TypeError, match="'COST'"):
        arguments.options([], cost=arguments.real)
    with pytest.raises(TypeError, match="'NX'"):
        arguments.options([], "nx")
    with pytest.raises(TypeError, match="groups"):
        arguments.options([b"NX"], "NX", "XX", exclusive="NX XX")
