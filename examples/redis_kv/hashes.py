"""Hashes."""

from __future__ import annotations

from math import isinf
from typing import Any

from examples.redis_kv.arguments import INT_MAX, INT_MIN, added, integer, real
from examples.redis_kv.store import Database, command
from protoserve_redis import OK, RedisError

Fields = dict[bytes, bytes]


def _fields(db: Database, key: bytes) -> Fields:
    return db.get(key, dict) or {}


def _set(db: Database, name: str, key: bytes, pairs: tuple[bytes, ...]) -> int:
    if len(pairs) % 2:
        raise RedisError(f"ERR wrong number of arguments for '{name}' command")
    value = db.get_or_make(key, dict)
    before = len(value)
    value.update(zip(pairs[::2], pairs[1::2], strict=True))
    db.changed(key)
    return len(value) - before


@command("HSET", -4, "write denyoom fast", group="hash")
def hset(db: Database, key: bytes, *pairs: bytes) -> int:
    """Creates or modifies the value of a field in a hash."""
    return _set(db, "hset", key, pairs)


@command("HMSET", -4, "write denyoom fast", group="hash")
def hmset(db: Database, key: bytes, *pairs: bytes) -> Any:
    """Sets the values of multiple fields."""
    _set(db, "hmset", key, pairs)
    return OK


@command("HSETNX", 4, "write denyoom fast", group="hash")
def hsetnx(db: Database, key: bytes, field: bytes, value: bytes) -> int:
    """Sets the value of a field in a hash only when the field doesn't exist."""
    return 0 if field in _fields(db, key) else _set(db, "hsetnx", key, (field, value))


@command("HGET", 3, "readonly fast", group="hash")
def hget(db: Database, key: bytes, field: bytes) -> bytes | None:
    """Returns the value of a field in a hash."""
    return _fields(db, key).get(field)


@command("HMGET", -3, "readonly fast", group="hash")
def hmget(db: Database, key: bytes, *fields: bytes) -> list[bytes | None]:
    """Returns the values of all given fields in a hash."""
    value = _fields(db, key)
    return [value.get(field) for field in fields]


@command("HGETALL", 2, "readonly", group="hash")
def hgetall(db: Database, key: bytes) -> Fields:
    """Returns all fields and values in a hash."""
    return dict(_fields(db, key))


@command("HDEL", -3, "write fast", group="hash")
def hdel(db: Database, key: bytes, *fields: bytes) -> int:
    """Deletes one or more fields and their values from a hash."""
    value = _fields(db, key)
    deleted = sum(value.pop(field, None) is not None for field in fields)
    if deleted:
        db.shrunk(key)
    return deleted


@command("HLEN", 2, "readonly fast", group="hash")
def hlen(db: Database, key: bytes) -> int:
    """Returns the number of fields in a hash."""
    return len(_fields(db, key))


@command("HEXISTS", 3, "readonly fast", group="hash")
def hexists(db: Database, key: bytes, field: bytes) -> int:
    """Determines whether a field exists in a hash."""
    return int(field in _fields(db, key))


@command("HSTRLEN", 3, "readonly fast", group="hash")
def hstrlen(db: Database, key: bytes, field: bytes) -> int:
    """Returns the length of the value of a field."""
    return len(_fields(db, key).get(field, b""))


@command("HKEYS", 2, "readonly", group="hash")
def hkeys(db: Database, key: bytes) -> list[bytes]:
    """Returns all fields in a hash."""
    return list(_fields(db, key))


@command("HVALS", 2, "readonly", group="hash")
def hvals(db: Database, key: bytes) -> list[bytes]:
    """Returns all values in a hash."""
    return list(_fields(db, key).values())


@command("HINCRBY", 4, "write denyoom fast", group="hash")
def hincrby(db: Database, key: bytes, field: bytes, increment: bytes) -> int:
    """Increments the integer value of a field in a hash by a number."""
    number = integer(increment)
    number += integer(_fields(db, key).get(field, b"0"), "ERR hash value is not an integer")
    if not INT_MIN <= number <= INT_MAX:
        raise RedisError("ERR increment or decrement would overflow")
    _set(db, "hincrby", key, (field, b"%d" % number))
    return number


@command("HINCRBYFLOAT", 4, "write denyoom fast", group="hash")
def hincrbyfloat(db: Database, key: bytes, field: bytes, increment: bytes) -> bytes:
    """Increments the floating point value of a field by a number."""
    current = _fields(db, key).get(field, b"0")
    if isinf(real(increment)):
        raise RedisError("ERR value is NaN or Infinity")
    total = added(current, increment, "ERR hash value is not a float")
    _set(db, "hincrbyfloat", key, (field, total))
    return total
