"""RESP2 and RESP3: replies as bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isinf, isnan
from typing import Any, Final

from protoserve import MessageOut
from protoserve_redis.messages import RedisResponse
from protoserve_redis.values import (
    NO_REPLY,
    NULL_ARRAY,
    OK,
    Attributed,
    BigNumber,
    Push,
    Raw,
    RedisError,
    SimpleString,
    Verbatim,
)

MAX_DEPTH: Final = 128
"""Arrays within arrays; deeper ones, or such as contain themselves, are refused."""

_NO_COPY: Final = 32 * 1024
"""A string from this size on is sent from where it is."""

_LINE_ENDS: Final = str.maketrans("\r\n", "  ")
_INTS: Final = tuple(b":%d\r\n" % i for i in range(256))
_SMALL: Final = len(_INTS)
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1


def message_out(response: RedisResponse) -> MessageOut:
    """The reply's bytes. Raises as ``encode`` does."""
    value = response.value
    if type(value) is bytes and len(value) >= _NO_COPY:
        return [b"$%d\r\n" % len(value), value, b"\r\n"]
    return encode(value, response.protocol)


def encode(value: Any, protocol: int = 2) -> bytes:
    """``value`` in RESP2 or RESP3; ``protocol`` is 2 or 3.

    Raises ``TypeError`` for a value that has no place in a reply, ``ValueError`` for one
    that is nested deeper than ``MAX_DEPTH``.
    """
    kind: type = type(value)
    if type(value) is bytes:
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if value is OK:
        return b"+OK\r\n"
    if value is None:
        return b"$-1\r\n" if protocol == 2 else b"_\r\n"
    if kind is int:
        if 0 <= value < _SMALL:
            small: bytes = _INTS[value]
            return small
        if _INT_MIN <= value <= _INT_MAX:
            return b":%d\r\n" % value
    out: list[bytes] = []
    if kind is list:
        value = value[:]  # another thread may change it meanwhile
        out.append(b"*%d\r\n" % len(value))
        # Flat lists of strings are most of all arrays.
        for item in value:
            if type(item) is bytes:
                out.append(b"$%d\r\n%b\r\n" % (len(item), item))
            else:
                _encode_any(item, protocol, out, 1)
    else:
        _encode_any(value, protocol, out, 0)
    return b"".join(out)


def _encode_any(value: Any, protocol: int, out: list[bytes], depth: int) -> None:
    """Append ``value``. Iterative, so that no depth of nesting exhausts the stack."""
    items = _encode_one(value, protocol, out)
    if items is None:
        return
    stack = [items]
    while stack:
        for item in stack[-1]:
            inner = _encode_one(item, protocol, out)
            if inner is not None:
                if len(stack) + depth >= MAX_DEPTH:
                    raise ValueError(f"a reply is nested deeper than {MAX_DEPTH} arrays")
                stack.append(inner)
                break
        else:
            stack.pop()


def _encode_one(value: Any, protocol: int, out: list[bytes]) -> Iterator[Any] | None:
    """Append a value's own bytes, and return the items of one that has some."""
    match value:
        case Raw():
            out.append(value)
        case Verbatim() if protocol >= 3:
            out.append(b"=%d\r\n%b:%b\r\n" % (len(value) + 4, value.format.encode(), value))
        case bytes():
            out.append(b"$%d\r\n%b\r\n" % (len(value), value))
        case bytearray():
            out.append(b"$%d\r\n%b\r\n" % (len(value), bytes(value)))
        case None:
            out.append(b"$-1\r\n" if protocol == 2 else b"_\r\n")
        case bool():
            if protocol == 2:
                out.append(b":1\r\n" if value else b":0\r\n")
            else:
                out.append(b"#t\r\n" if value else b"#f\r\n")
        case int():
            if isinstance(value, BigNumber) or not _INT_MIN <= value <= _INT_MAX:
                digits = b"%d" % value
                if protocol == 2:
                    out.append(b"$%d\r\n%b\r\n" % (len(digits), digits))
                else:
                    out.append(b"(%b\r\n" % digits)
            else:
                out.append(b":%d\r\n" % value)
        case SimpleString():
            out.append(b"+%b\r\n" % _line(value))
        case str():
            data = value.encode("utf-8", "surrogateescape")
            out.append(b"$%d\r\n%b\r\n" % (len(data), data))
        case float():
            digits = format_double(value)
            if protocol == 2:
                out.append(b"$%d\r\n%b\r\n" % (len(digits), digits))
            else:
                out.append(b",%b\r\n" % digits)
        case list() | tuple():
            items = tuple(value)  # another thread may change it meanwhile
            sign = b">" if protocol >= 3 and isinstance(value, Push) else b"*"
            out.append(b"%b%d\r\n" % (sign, len(items)))
            return iter(items)
        case Mapping():
            value = dict(value)
            if protocol == 2:
                out.append(b"*%d\r\n" % (2 * len(value)))
            else:
                out.append(b"%%%d\r\n" % len(value))
            return _flat(value)
        case set() | frozenset():
            members = tuple(value)
            out.append(b"%b%d\r\n" % (b"*" if protocol == 2 else b"~", len(members)))
            return iter(members)
        case RedisError():
            out.append(b"-%b\r\n" % _line(str(value)))
        case memoryview():
            data = value.tobytes()
            out.append(b"$%d\r\n%b\r\n" % (len(data), data))
        case Attributed():
            return _attributed(value, protocol, out)
        case _ if value is NULL_ARRAY:
            out.append(b"*-1\r\n" if protocol == 2 else b"_\r\n")
        case _ if value is NO_REPLY:
            pass
        case _:
            raise TypeError(
                f"a {type(value).__name__} has no place in a Redis reply: return bytes, str, "
                "int, float, bool, None, a list, tuple, dict or set, or a value of "
                "protoserve_redis"
            )
    return None


def _flat(value: Mapping[Any, Any]) -> Iterator[Any]:
    for pair in value.items():
        yield from pair


def _attributed(value: Attributed, protocol: int, out: list[bytes]) -> Iterator[Any]:
    if protocol >= 3:
        out.append(b"|%d\r\n" % len(value.attributes))
        yield from _flat(value.attributes)
    yield value.value


def _line(text: str) -> bytes:
    return text.translate(_LINE_ENDS).encode("utf-8", "surrogateescape")


def format_double(value: float) -> bytes:
    """A float as Redis 7.0 writes it: 17 significant digits, ``inf``, ``-inf``, ``nan``."""
    if isinf(value):
        return b"inf" if value > 0 else b"-inf"
    if isnan(value):
        return b"nan"
    return b"%.17g" % value
