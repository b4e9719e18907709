"""RESP2 and RESP3: replies as bytes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from decimal import Decimal
from enum import Enum
from math import isinf, isnan
from typing import Any, Final

from protoserve import MessageOut
from protoserve_redis.messages import RedisResponse
from protoserve_redis.values import (
    INT_MAX,
    INT_MIN,
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
    encoded,
)

MAX_DEPTH: Final = 128
"""Arrays within arrays; deeper ones, or such as contain themselves, are refused."""

NO_COPY: Final = 32 * 1024
"""A string from this size on is sent from where it is."""

_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]+(?= |\Z)")
_LINE_ENDS: Final = str.maketrans("\r\n", "  ")
_INTS: Final = tuple(b":%d\r\n" % i for i in range(256))
_SMALL: Final = len(_INTS)


def message_out(response: RedisResponse, *, long_doubles: bool = False) -> MessageOut:
    """The reply's bytes. Raises as ``encode`` does."""
    value = response.value
    if type(value) is bytes and len(value) >= NO_COPY:
        return [b"$%d\r\n" % len(value), value, b"\r\n"]
    return encode(value, response.protocol, long_doubles=long_doubles)


def encode(value: Any, protocol: int = 2, *, long_doubles: bool = False) -> bytes:
    """``value`` in RESP2 or RESP3; ``protocol`` is 2 or 3. ``long_doubles`` writes floats
    with 17 digits, as Redis before 7.2 did, instead of as few as tell them apart.

    Raises ``TypeError`` for a value that has no place in a reply, ``ValueError`` for one
    that is nested deeper than ``MAX_DEPTH``, or has something in it that sends nothing: it
    would be missing in its array, and all that follows be taken for something else.
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
        if INT_MIN <= value <= INT_MAX:
            return b":%d\r\n" % value
    if value is NO_REPLY or (kind is Raw and not value):
        return b""
    out: list[bytes] = []
    if kind is list:
        value = value[:]  # another thread may change it meanwhile
        out.append(b"*%d\r\n" % len(value))
        # Flat lists of strings are most of all arrays.
        for item in value:
            if type(item) is bytes:
                out.append(b"$%d\r\n%b\r\n" % (len(item), item))
            else:
                _encode_any(item, protocol, out, 1, long_doubles)
    else:
        _encode_any(value, protocol, out, 0, long_doubles)
    return b"".join(out)


def _encode_any(
    value: Any, protocol: int, out: list[bytes], depth: int, long_doubles: bool
) -> None:
    """Append ``value``. Iterative, so that no depth of nesting exhausts the stack."""
    items = _encode_one(value, protocol, out, long_doubles)
    if items is None:
        return
    stack = [items]
    while stack:
        for item in stack[-1]:
            inner = _encode_one(item, protocol, out, long_doubles)
            if inner is not None:
                if len(stack) + depth >= MAX_DEPTH:
                    raise ValueError(f"a reply is nested deeper than {MAX_DEPTH} arrays")
                stack.append(inner)
                break
        else:
            stack.pop()


def _encode_one(
    value: Any, protocol: int, out: list[bytes], long_doubles: bool
) -> Iterator[Any] | None:
    """Append a value's own bytes, and return the items of one that has some."""
    match value:
        case Raw():
            if not value:
                raise ValueError("an empty Raw within a reply would be missing there")
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
            if isinstance(value, BigNumber) or not INT_MIN <= value <= INT_MAX:
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
            data = encoded(value)
            out.append(b"$%d\r\n%b\r\n" % (len(data), data))
        case float() | Decimal():
            if isinstance(value, Decimal) and value.is_finite():
                digits = str(value).encode()
            else:
                digits = format_double(value, long=long_doubles)
            if protocol == 2:
                out.append(b"$%d\r\n%b\r\n" % (len(digits), digits))
            else:
                out.append(b",%b\r\n" % digits)
        case list() | tuple() | range() | deque() | ValuesView() | ItemsView():
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
        case set() | frozenset() | KeysView():
            members = tuple(value)
            out.append(b"%b%d\r\n" % (b"*" if protocol == 2 else b"~", len(members)))
            return iter(members)
        case RedisError():
            out.append(b"-%b\r\n" % _error_line(str(value)))
        case memoryview():
            data = value.tobytes()
            out.append(b"$%d\r\n%b\r\n" % (len(data), data))
        case Attributed():
            return _attributed(value, protocol, out)
        case _ if value is NULL_ARRAY:
            out.append(b"*-1\r\n" if protocol == 2 else b"_\r\n")
        case _ if value is NO_REPLY:
            raise ValueError("NO_REPLY within a reply would be missing there")
        case Enum():
            return _encode_one(value.value, protocol, out, long_doubles)
        case Iterator():
            raise TypeError(
                f"a {type(value).__name__} has no place in a Redis reply, which tells its "
                "length first: make a list of it"
            )
        case _:
            raise TypeError(
                f"a {type(value).__name__} has no place in a Redis reply: return bytes, str, "
                "int, float, Decimal, bool, None, a list, tuple, range, deque, dict, view of a "
                "dict or set, an Enum of such, or a value of protoserve_redis"
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
    return encoded(text.translate(_LINE_ENDS))


def _error_line(text: str) -> bytes:
    """An error's line: what has no code gets ERR, and line ends around it go."""
    text = text.strip("\r\n")
    if _CODE.match(text) is None:
        text = f"ERR {text}" if text else "ERR"
    return _line(text)


def format_double(value: float | Decimal, *, long: bool = False) -> bytes:
    """A float as Redis writes it: ``inf``, ``-inf``, ``nan``, else the fewest digits that
    tell it apart from others, or with ``long``, as before 7.2, up to 17."""
    value = float(value)
    if isinf(value):
        return b"inf" if value > 0 else b"-inf"
    if isnan(value):
        return b"nan"
    if long:
        return b"%.17g" % value
    sign, digits, power = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(power, int)
    text = "".join(map(str, digits))
    count = len(text)
    first = power + count - 1  # the first digit's place
    if power >= 0 and abs(first) < count + 7:
        text += "0" * power
    elif power < 0 and (power > -7 or abs(first) < 4):
        whole = count + power
        text = f"{text[:whole]}.{text[whole:]}" if whole > 0 else f"0.{'0' * -whole}{text}"
    else:
        text = f"{text[0]}{'.' if count > 1 else ''}{text[1:]}e{first:+d}"
    return (f"-{text}" if sign else text).encode()
