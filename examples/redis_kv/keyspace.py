"""Commands for keys of every type."""

from __future__ import annotations

import random
from typing import Any

from examples.redis_kv.arguments import SYNTAX, integer
from examples.redis_kv.sorted_set import SortedSet
from examples.redis_kv.store import TYPES, Database, List, command, databases
from protoserve_redis import OK, RedisError, SimpleString, glob

NO_KEY = "ERR no such key"


@command("DEL", -2, "write", (1, -1, 1), group="generic")
@command("UNLINK", -2, "write fast", (1, -1, 1), group="generic")
def delete(db: Database, *keys: bytes) -> int:
    """Deletes one or more keys."""
    return sum(db.find(key) is not None and db.remove(key) for key in keys)


@command("EXISTS", -2, "readonly fast", (1, -1, 1), group="generic")
@command("TOUCH", -2, "readonly fast", (1, -1, 1), group="generic")
def exists(db: Database, *keys: bytes) -> int:
    """Determines whether one or more keys exist."""
    return sum(db.find(key) is not None for key in keys)


@command("TYPE", 2, "readonly fast", group="generic")
def type_(db: Database, key: bytes) -> SimpleString:
    """Determines the type of value stored at a key."""
    value = db.find(key)
    return SimpleString("none" if value is None else TYPES[type(value)])


@command("KEYS", 2, "readonly", (0, 0, 0), group="generic")
def keys(db: Database, pattern: bytes) -> list[bytes]:
    """Returns all key names that match a pattern."""
    match = glob(pattern).match
    return [key for key in list(db.data) if match(key) and db.find(key) is not None]


@command("RANDOMKEY", 1, "readonly", (0, 0, 0), group="generic")
def randomkey(db: Database) -> bytes | None:
    """Returns a random key name from the database."""
    while db.data:
        key = random.choice(list(db.data))
        if db.find(key) is not None:
            return key
    return None


@command("DBSIZE", 1, "readonly fast", (0, 0, 0), group="server")
def dbsize(db: Database) -> int:
    """Returns the number of keys in the database."""
    return len(db.data)


def _rename(db: Database, source: bytes, target: bytes, *, replace: bool) -> bool:
    value = db.find(source)
    if value is None:
        raise RedisError(NO_KEY)
    if not replace and db.find(target) is not None:
        return False
    if source == target:
        return True
    at = db.deadlines.get(source)
    db.remove(source)
    db.set(target, value)
    if at is not None:
        db.set_deadline(target, at)
    return True


@command("RENAME", 3, "write", (1, 2, 1), group="generic")
def rename(db: Database, source: bytes, target: bytes) -> Any:
    """Renames a key and overwrites the destination."""
    _rename(db, source, target, replace=True)
    return OK


@command("RENAMENX", 3, "write fast", (1, 2, 1), group="generic")
def renamenx(db: Database, source: bytes, target: bytes) -> int:
    """Renames a key only when the target key name doesn't exist."""
    return int(_rename(db, source, target, replace=False))


def _check_flush(options: tuple[bytes, ...]) -> None:
    if options and [option.upper() for option in options] not in ([b"ASYNC"], [b"SYNC"]):
        raise RedisError(SYNTAX)


@command("FLUSHDB", -1, "write", (0, 0, 0), group="server")
def flushdb(db: Database, *options: bytes) -> Any:
    """Removes all keys from the current database."""
    _check_flush(options)
    db.clear()
    return OK


@command("FLUSHALL", -1, "write", (0, 0, 0), group="server")
def flushall(_: Database, *options: bytes) -> Any:
    """Removes all keys from all databases."""
    _check_flush(options)
    for db in databases:
        db.clear()
    return OK


# From which sizes on Redis 7 keeps a value in its general form.
MANY_FIELDS, MANY_MEMBERS, LONG_ITEM, MANY_NUMBERS, LONG_TEXT, MUCH = 512, 128, 64, 512, 44, 8192


@command("OBJECT|ENCODING", 3, "readonly", (2, 2, 1), group="generic")
def object_encoding(db: Database, key: bytes) -> str | None:
    """Returns the encoding with which Redis would keep the value."""
    value = db.find(key)
    return None if value is None else _encoding(value)


def _encoding(value: Any) -> str:
    if type(value) is bytes:
        if _is_integer(value):
            return "int"
        return "embstr" if len(value) <= LONG_TEXT else "raw"
    if type(value) is List:
        return "listpack" if sum(map(len, value)) < MUCH else "quicklist"
    if type(value) is set:
        return (
            "intset"
            if len(value) <= MANY_NUMBERS and all(map(_is_integer, value))
            else ("hashtable")
        )
    if type(value) is SortedSet:
        few = len(value) <= MANY_MEMBERS and max(map(len, value.scores)) <= LONG_ITEM
        return "listpack" if few else "skiplist"
    items = [*value, *value.values()]
    few = len(value) <= MANY_FIELDS and max(map(len, items)) <= LONG_ITEM
    return "listpack" if few else "hashtable"


def _is_integer(text: bytes) -> bool:
    try:
        integer(text)
    except RedisError:
        return False
    return True
