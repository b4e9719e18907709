"""Sorted sets: members and scores. Ranges are in ``sorted_set_ranges``."""

from __future__ import annotations

from math import isnan
from typing import Any

from examples.redis_kv.arguments import SYNTAX, positive, real
from examples.redis_kv.sorted_set import SortedSet
from examples.redis_kv.store import Database, command
from protoserve_redis import RedisError, session_of

Pairs = list[tuple[float, bytes]]
NO_NUMBER = "ERR resulting score is not a number (NaN)"


def sorted_set(db: Database, key: bytes) -> SortedSet:
    """The sorted set at the key, or an empty one that is nobody's."""
    return db.get(key, SortedSet) or SortedSet()


def flat(pairs: Pairs) -> list[Any]:
    """Members and scores in turn."""
    return [item for score, member in pairs for item in (member, score)]


def with_scores(task: Any, pairs: Pairs) -> list[Any]:
    """Members with scores: pairs in RESP3, one flat array in RESP2."""
    if session_of(task).protocol >= 3:
        return [[member, score] for score, member in pairs]
    return flat(pairs)


@command("ZADD", -4, "write denyoom fast", group="sorted-set")
def zadd(db: Database, key: bytes, *arguments: bytes) -> Any:
    """Adds one or more members to a sorted set, or updates their scores."""
    words = set()
    first = 0
    while first < len(arguments):
        word = arguments[first].upper()
        if word not in (b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"):
            break
        words.add(word)
        first += 1
    pairs = arguments[first:]
    if len(pairs) % 2 or not pairs:
        raise RedisError(SYNTAX)
    if {b"NX", b"XX"} <= words:
        raise RedisError("ERR XX and NX options at the same time are not compatible")
    if len(words & {b"GT", b"LT", b"NX"}) > 1:
        raise RedisError("ERR GT, LT, and/or NX options at the same time are not compatible")
    if b"INCR" in words and len(pairs) > 2:
        raise RedisError("ERR INCR option supports a single increment-element pair")
    new = [(real(pairs[i]), pairs[i + 1]) for i in range(0, len(pairs), 2)]
    value = sorted_set(db, key)
    added = updated = 0
    score: float | None = None
    for given, member in new:
        old = value.scores.get(member)
        if (b"NX" in words and old is not None) or (b"XX" in words and old is None):
            score = None
            continue
        score = given + (old or 0) if b"INCR" in words else given
        if isnan(score):
            raise RedisError(NO_NUMBER)
        if old is not None and (
            (b"GT" in words and score <= old) or (b"LT" in words and score >= old)
        ):
            score = None
            continue
        value.put(member, score)
        added += old is None
        updated += old is not None and old != score
    if added or updated:
        db.data[key] = value  # it may be new
        db.changed(key)
    if b"INCR" in words:
        return score
    return added + updated if b"CH" in words else added


@command("ZINCRBY", 4, "write denyoom fast", group="sorted-set")
def zincrby(db: Database, key: bytes, increment: bytes, member: bytes) -> Any:
    """Increments the score of a member in a sorted set."""
    return zadd(db, key, b"INCR", increment, member)


@command("ZSCORE", 3, "readonly fast", group="sorted-set")
def zscore(db: Database, key: bytes, member: bytes) -> float | None:
    """Returns the score of a member in a sorted set."""
    return sorted_set(db, key).scores.get(member)


@command("ZMSCORE", -3, "readonly fast", group="sorted-set")
def zmscore(db: Database, key: bytes, *members: bytes) -> list[float | None]:
    """Returns the scores of one or more members in a sorted set."""
    scores = sorted_set(db, key).scores
    return [scores.get(member) for member in members]


@command("ZREM", -3, "write fast", group="sorted-set")
def zrem(db: Database, key: bytes, *members: bytes) -> int:
    """Removes one or more members from a sorted set."""
    value = sorted_set(db, key)
    removed = sum(value.discard(member) for member in members)
    if removed:
        db.shrunk(key)
    return removed


@command("ZCARD", 2, "readonly fast", group="sorted-set")
def zcard(db: Database, key: bytes) -> int:
    """Returns the number of members in a sorted set."""
    return len(sorted_set(db, key))


@command("ZRANK", 3, "readonly fast", group="sorted-set")
def zrank(db: Database, key: bytes, member: bytes) -> int | None:
    """Returns the index of a member in a sorted set ordered by ascending scores."""
    return sorted_set(db, key).rank(member)


@command("ZREVRANK", 3, "readonly fast", group="sorted-set")
def zrevrank(db: Database, key: bytes, member: bytes) -> int | None:
    """Returns the index of a member in a sorted set ordered by descending scores."""
    value = sorted_set(db, key)
    rank = value.rank(member)
    return None if rank is None else len(value) - 1 - rank


def _pop(db: Database, task: Any, key: bytes, count: tuple[bytes, ...], *, top: bool) -> Any:
    if len(count) > 1:
        raise RedisError(SYNTAX)
    most = positive(count[0]) if count else 1
    value = sorted_set(db, key)
    size = len(value)
    most = min(most, size)
    taken = value.take(range(size - most, size) if top else range(most))
    if taken:
        db.shrunk(key)
    if top:
        taken.reverse()
    return with_scores(task, taken) if count else flat(taken)


@command("ZPOPMIN", -2, "write fast", group="sorted-set", with_task=True)
def zpopmin(db: Database, task: Any, key: bytes, *count: bytes) -> Any:
    """Returns the lowest-scoring members from a sorted set after removing them."""
    return _pop(db, task, key, count, top=False)


@command("ZPOPMAX", -2, "write fast", group="sorted-set", with_task=True)
def zpopmax(db: Database, task: Any, key: bytes, *count: bytes) -> Any:
    """Returns the highest-scoring members from a sorted set after removing them."""
    return _pop(db, task, key, count, top=True)
