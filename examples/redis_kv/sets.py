"""Sets."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import reduce
from typing import Any

from examples.redis_kv.arguments import SYNTAX, integer, positive
from examples.redis_kv.store import Database, command
from protoserve_redis import RedisError

Members = set[bytes]


def _members(db: Database, key: bytes) -> Members:
    return db.get(key, set) or set()


@command("SADD", -3, "write denyoom fast", group="set")
def sadd(db: Database, key: bytes, *members: bytes) -> int:
    """Adds one or more members to a set. Creates the key if it doesn't exist."""
    value = db.get_or_make(key, set)
    before = len(value)
    value.update(members)
    if len(value) != before:
        db.changed(key)
    return len(value) - before


@command("SREM", -3, "write fast", group="set")
def srem(db: Database, key: bytes, *members: bytes) -> int:
    """Removes one or more members from a set."""
    value = _members(db, key)
    before = len(value)
    value.difference_update(members)
    if len(value) != before:
        db.shrunk(key)
    return before - len(value)


@command("SMEMBERS", 2, "readonly", group="set")
def smembers(db: Database, key: bytes) -> Members:
    """Returns all members of a set."""
    return set(_members(db, key))


@command("SISMEMBER", 3, "readonly fast", group="set")
def sismember(db: Database, key: bytes, member: bytes) -> int:
    """Determines whether a member belongs to a set."""
    return int(member in _members(db, key))


@command("SMISMEMBER", -3, "readonly fast", group="set")
def smismember(db: Database, key: bytes, *members: bytes) -> list[int]:
    """Determines whether multiple members belong to a set."""
    value = _members(db, key)
    return [int(member in value) for member in members]


@command("SCARD", 2, "readonly fast", group="set")
def scard(db: Database, key: bytes) -> int:
    """Returns the number of members in a set."""
    return len(_members(db, key))


@command("SPOP", -2, "write fast", group="set")
def spop(db: Database, key: bytes, *count: bytes) -> Any:
    """Returns one or more members of a set after removing them: arbitrary ones."""
    if len(count) > 1:
        raise RedisError(SYNTAX)
    most = positive(count[0]) if count else 1
    value = _members(db, key)
    taken = [value.pop() for _ in range(min(most, len(value)))]
    if taken:
        db.shrunk(key)
    if count:
        return set(taken)
    return taken[0] if taken else None


@command("SRANDMEMBER", -2, "readonly", group="set")
def srandmember(db: Database, key: bytes, *count: bytes) -> Any:
    """Returns one or more random members from a set."""
    if len(count) > 1:
        raise RedisError(SYNTAX)
    number = integer(count[0]) if count else 1
    if not -1_000_000 <= number <= 2**62:  # the same member, a million times at the most
        raise RedisError("ERR value is out of range")
    members = list(_members(db, key))
    if not count:
        return random.choice(members) if members else None
    if number < 0:  # the same one may come more than once
        return random.choices(members, k=-number) if members else []
    return random.sample(members, min(number, len(members)))


@command("SMOVE", 4, "write fast", (1, 2, 1), group="set")
def smove(db: Database, source: bytes, target: bytes, member: bytes) -> int:
    """Moves a member from one set to another."""
    value = _members(db, source)
    if db.find(source) is None:
        return 0
    db.get(target, set)
    if member not in value:
        return 0
    if source != target:
        srem(db, source, member)
        sadd(db, target, member)
    return 1


# -- algebra ---------------------------------------------------------------------------


def _register(name: str, operation: Callable[[Members, Members], Members], what: str) -> None:
    def compute(db: Database, keys: tuple[bytes, ...]) -> Members:
        return reduce(operation, [_members(db, key) for key in keys])

    def run(db: Database, *keys: bytes) -> Members:
        return set(compute(db, keys))

    def store(db: Database, target: bytes, *keys: bytes) -> int:
        return db.set_collection(target, set(compute(db, keys)))

    run.__doc__ = f"Returns the {what} of multiple sets."
    store.__doc__ = f"Stores the {what} of multiple sets in a key."
    command(name, -2, "readonly", (1, -1, 1), group="set")(run)
    command(f"{name}STORE", -3, "write denyoom", (1, -1, 1), group="set")(store)


_register("SINTER", set.intersection, "intersection")
_register("SUNION", set.union, "union")
_register("SDIFF", set.difference, "difference")
