"""Strings and counters."""

from __future__ import annotations

from typing import Any

from examples.redis_kv.arguments import (
    INT_MAX,
    INT_MIN,
    NOT_A_FLOAT,
    NOT_AN_INTEGER,
    SYNTAX,
    added,
    integer,
    span,
)
from examples.redis_kv.store import WRONG_TYPE, Database, command, now_ms
from protoserve_redis import OK, RedisError

LONGEST = 512 * 1024 * 1024
"""Bytes of a string, as in Redis."""

UNITS = {b"EX": (1000, True), b"PX": (1, True), b"EXAT": (1000, False), b"PXAT": (1, False)}
"""How an expiry is given: milliseconds of the unit, and whether it counts from now."""


def deadline(text: bytes, unit: bytes, name: str) -> int:
    """The time in milliseconds at which a key expires. Raises for one that cannot be."""
    milliseconds, relative = UNITS[unit]
    number = integer(text)
    at = number * milliseconds + (now_ms() if relative else 0)
    if number <= 0 or at > INT_MAX:
        raise RedisError(f"ERR invalid expire time in '{name}' command")
    return at


@command("GET", 2, "readonly fast", group="string")
def get(db: Database, key: bytes) -> bytes | None:
    """Returns the string value of a key."""
    return db.get(key, bytes)


@command("SET", -3, "write denyoom", group="string")
def set_(db: Database, key: bytes, value: bytes, *options: bytes) -> Any:
    """Sets the string value of a key."""
    if not options:
        db.set(key, value)
        return OK
    condition = at = None
    keep = give = False
    left = iter(options)
    for word in map(bytes.upper, left):
        if word in (b"NX", b"XX") and condition in (None, word):
            condition = word
        elif word == b"GET":
            give = True
        elif word == b"KEEPTTL" and at is None:
            keep = True
        elif word in UNITS and at is None and not keep:
            at = (next(left, None), word)
            if at[0] is None:
                raise RedisError(SYNTAX)
        else:
            raise RedisError(SYNTAX)
    until = None if at is None else deadline(at[0] or b"", at[1], "set")
    old = db.get(key, bytes) if give else db.find(key)
    if condition is not None and (old is None) is (condition == b"XX"):
        return old if give else None
    db.set(key, value, keep_deadline=keep)
    if until is not None:
        db.set_deadline(key, until)
    return old if give else OK


@command("SETNX", 3, "write denyoom fast", group="string")
def setnx(db: Database, key: bytes, value: bytes) -> int:
    """Sets the string value of a key only when the key doesn't exist."""
    if db.find(key) is not None:
        return 0
    db.set(key, value)
    return 1


@command("SETEX", 4, "write denyoom", group="string")
def setex(db: Database, key: bytes, seconds: bytes, value: bytes) -> Any:
    """Sets the string value and expiration time of a key."""
    at = deadline(seconds, b"EX", "setex")
    db.set(key, value)
    db.set_deadline(key, at)
    return OK


@command("PSETEX", 4, "write denyoom", group="string")
def psetex(db: Database, key: bytes, milliseconds: bytes, value: bytes) -> Any:
    """Sets the string value and expiration time in milliseconds of a key."""
    at = deadline(milliseconds, b"PX", "psetex")
    db.set(key, value)
    db.set_deadline(key, at)
    return OK


@command("GETSET", 3, "write denyoom fast", group="string")
def getset(db: Database, key: bytes, value: bytes) -> bytes | None:
    """Returns the previous string value of a key after setting it to a new value."""
    old = db.get(key, bytes)
    db.set(key, value)
    return old


@command("GETDEL", 2, "write fast", group="string")
def getdel(db: Database, key: bytes) -> bytes | None:
    """Returns the string value of a key after deleting the key."""
    old = db.get(key, bytes)
    db.remove(key)
    return old


@command("GETEX", -2, "write fast", group="string")
def getex(db: Database, key: bytes, *options: bytes) -> bytes | None:
    """Returns the string value of a key after setting its expiration time."""
    words = [option.upper() for option in options]
    if words and words != [b"PERSIST"] and not (len(words) == 2 and words[0] in UNITS):
        raise RedisError(SYNTAX)
    value = db.get(key, bytes)
    if value is None or not words:
        return value
    if words[0] != b"PERSIST":
        db.set_deadline(key, deadline(options[1], words[0], "getex"))
    elif db.deadlines.pop(key, None) is not None:
        db.changed(key)
    return value


@command("APPEND", 3, "write denyoom fast", group="string")
def append(db: Database, key: bytes, value: bytes) -> int:
    """Appends a string to the value of a key. Creates the key if it doesn't exist."""
    whole = (db.get(key, bytes) or b"") + value
    if len(whole) > LONGEST:
        raise RedisError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    db.set(key, whole, keep_deadline=True)
    return len(whole)


@command("STRLEN", 2, "readonly fast", group="string")
def strlen(db: Database, key: bytes) -> int:
    """Returns the length of a string value."""
    return len(db.get(key, bytes) or b"")


@command("GETRANGE", 4, "readonly", group="string")
@command("SUBSTR", 4, "readonly", group="string")
def getrange(db: Database, key: bytes, start: bytes, end: bytes) -> bytes:
    """Returns a substring of the string stored at a key."""
    first, last = integer(start), integer(end)
    value = db.get(key, bytes) or b""
    if last < 0:
        if first > last and first < 0:
            return b""
        last = max(last + len(value), 0)  # before the beginning is the beginning
    places = span(first, last, len(value))
    return value[places.start : places.stop]


@command("SETRANGE", 4, "write denyoom", group="string")
def setrange(db: Database, key: bytes, offset: bytes, value: bytes) -> int:
    """Overwrites a part of a string value with another by an offset."""
    start = integer(offset)
    if start < 0:
        raise RedisError("ERR offset is out of range")
    old = db.get(key, bytes) or b""
    if not value:
        return len(old)
    if start + len(value) > LONGEST:
        raise RedisError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    whole = old[:start].ljust(start, b"\0") + value + old[start + len(value) :]
    db.set(key, whole, keep_deadline=True)
    return len(whole)


@command("MGET", -2, "readonly fast", (1, -1, 1), group="string")
def mget(db: Database, *keys: bytes) -> list[bytes | None]:
    """Returns the string values of one or more keys."""
    found = (db.find(key) for key in keys)
    return [value if type(value) is bytes else None for value in found]


@command("MSET", -3, "write denyoom", (1, -1, 2), group="string")
def mset(db: Database, *pairs: bytes) -> Any:
    """Creates or modifies the string values of one or more keys."""
    if len(pairs) % 2:
        raise RedisError("ERR wrong number of arguments for 'mset' command")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        db.set(key, value)
    return OK


@command("MSETNX", -3, "write denyoom", (1, -1, 2), group="string")
def msetnx(db: Database, *pairs: bytes) -> int:
    """Modifies the string values of one or more keys only when all keys don't exist."""
    if len(pairs) % 2:
        raise RedisError("ERR wrong number of arguments for 'msetnx' command")
    if any(db.find(key) is not None for key in pairs[::2]):
        return 0
    mset(db, *pairs)
    return 1


# -- counters --------------------------------------------------------------------------


def _add(db: Database, key: bytes, increment: int) -> int:
    value = db.find(key)
    if value is None:
        number = 0
    elif type(value) is bytes:
        number = integer(value)
    else:
        raise RedisError(WRONG_TYPE)
    number += increment
    if not INT_MIN <= number <= INT_MAX:
        raise RedisError("ERR increment or decrement would overflow")
    db.set(key, b"%d" % number, keep_deadline=True)
    return number


@command("INCR", 2, "write denyoom fast", group="string")
def incr(db: Database, key: bytes) -> int:
    """Increments the integer value of a key by one. Uses 0 as initial value."""
    return _add(db, key, 1)


@command("DECR", 2, "write denyoom fast", group="string")
def decr(db: Database, key: bytes) -> int:
    """Decrements the integer value of a key by one. Uses 0 as initial value."""
    return _add(db, key, -1)


@command("INCRBY", 3, "write denyoom fast", group="string")
def incrby(db: Database, key: bytes, increment: bytes) -> int:
    """Increments the integer value of a key by a number. Uses 0 as initial value."""
    return _add(db, key, integer(increment))


@command("DECRBY", 3, "write denyoom fast", group="string")
def decrby(db: Database, key: bytes, decrement: bytes) -> int:
    """Decrements a number from the integer value of a key. Uses 0 as initial value."""
    number = integer(decrement, NOT_AN_INTEGER)
    if number == INT_MIN:
        raise RedisError("ERR decrement would overflow")
    return _add(db, key, -number)


@command("INCRBYFLOAT", 3, "write denyoom fast", group="string")
def incrbyfloat(db: Database, key: bytes, increment: bytes) -> bytes:
    """Increments the floating point value of a key by a number. Uses 0 as initial value."""
    total = added(db.get(key, bytes) or b"0", increment, NOT_A_FLOAT)
    db.set(key, total, keep_deadline=True)
    return total
