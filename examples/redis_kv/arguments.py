"""What clients send as numbers and options, read as strictly as Redis does."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from math import isfinite, isnan

from protoserve_redis import RedisError

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
NOT_A_FLOAT = "ERR value is not a valid float"
NOT_POSITIVE = "ERR value is out of range, must be positive"
SYNTAX = "ERR syntax error"


def integer(text: bytes, message: str = NOT_AN_INTEGER) -> int:
    """A 64-bit number in its only spelling: no sign of plus, no zeros or blanks around."""
    # int() takes far more than Redis does; what it takes must read the same when written.
    if len(text) <= 20:
        try:
            number = int(text)
        except ValueError:
            raise RedisError(message) from None
        if b"%d" % number == text and INT_MIN <= number <= INT_MAX:
            return number
    raise RedisError(message)


def positive(text: bytes) -> int:
    """A count from 0 on."""
    number = integer(text, NOT_POSITIVE)
    if number < 0:
        raise RedisError(NOT_POSITIVE)
    return number


def real(text: bytes, message: str = NOT_A_FLOAT) -> float:
    """A double, infinities included."""
    try:
        if b"_" in text or text != text.strip():
            raise ValueError
        number = float(text)
    except ValueError:
        raise RedisError(message) from None
    if isnan(number):
        raise RedisError(message)
    return number


def added(current: bytes, increment: bytes, message: str) -> bytes:
    """The sum of two decimal numbers as Redis writes it. Raises with ``message`` when
    ``current`` is none. Redis' own sums show the last bits of a ``long double``; these do
    not."""
    real(current, message)
    real(increment)
    try:
        total = Decimal(current.decode()) + Decimal(increment.decode())
        if not isfinite(float(total)):
            raise InvalidOperation
    except (InvalidOperation, OverflowError):
        raise RedisError("ERR increment would produce NaN or Infinity") from None
    text = f"{total:.17f}".rstrip("0").rstrip(".")
    return b"0" if text == "-0" else text.encode()


def span(start: int, stop: int, length: int) -> range:
    """Redis' inclusive range, negative from the end, as positions."""
    if start < 0:
        start = max(start + length, 0)
    if stop < 0:
        stop += length
    return range(start, min(stop, length - 1) + 1)
