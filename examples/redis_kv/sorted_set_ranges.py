"""Ranges of sorted sets, by position and by score."""

from __future__ import annotations

from typing import Any

from examples.redis_kv.arguments import SYNTAX, integer, real, span
from examples.redis_kv.sorted_set import SortedSet
from examples.redis_kv.sorted_sets import Pairs, sorted_set, with_scores
from examples.redis_kv.store import Database, command
from protoserve_redis import RedisError

LIMIT_WITHOUT_SCORES = (
    "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX"
)
BAD_BOUND = "ERR min or max is not a float"


def _bound(text: bytes) -> tuple[float, bool]:
    """A score, and whether it is excluded: ``1.5``, ``(1.5``, ``-inf``."""
    exclusive = text.startswith(b"(")
    return real(text[exclusive:], BAD_BOUND), exclusive


def _by_score(value: SortedSet, low: tuple[float, bool], high: tuple[float, bool]) -> range:
    start = value.first_from(low[0], exclusive=low[1])
    return range(start, max(value.first_from(high[0], exclusive=not high[1]), start))


def _by_rank(value: SortedSet, start: int, stop: int, *, reverse: bool = False) -> range:
    places = span(start, stop, len(value))
    if reverse:
        places = range(len(value) - places.stop, len(value) - places.start)
    return range(places.start, max(places.stop, places.start))


class _Options:
    """What may follow a range: WITHSCORES, LIMIT, and for ZRANGE BYSCORE and REV."""

    def __init__(self, words: tuple[bytes, ...], *, zrange: bool, ranks: bool = False) -> None:
        self.scores = self.by_score = self.reverse = self.limited = False
        self.offset, self.count = 0, -1
        left = iter(words)
        for word in map(bytes.upper, left):
            if word == b"WITHSCORES":
                self.scores = True
            elif word == b"LIMIT" and not ranks:
                offset, count = next(left, None), next(left, None)
                if offset is None or count is None:
                    raise RedisError(SYNTAX)
                self.offset, self.count = integer(offset), integer(count)
                self.limited = True
            elif word == b"BYSCORE" and zrange:
                self.by_score = True
            elif word == b"REV" and zrange:
                self.reverse = True
            else:
                raise RedisError(SYNTAX)

    def apply(self, pairs: Pairs) -> Pairs:
        if self.reverse:
            pairs.reverse()
        if not self.limited:
            return pairs
        if self.offset < 0:
            return []
        return pairs[self.offset : None if self.count < 0 else self.offset + self.count]


def _reply(task: Any, value: SortedSet, places: range, options: _Options) -> list[Any]:
    pairs = options.apply(value.ordered[places.start : places.stop])
    return with_scores(task, pairs) if options.scores else [member for _, member in pairs]


def _score_range(
    db: Database, task: Any, key: bytes, low: bytes, high: bytes, options: _Options
) -> list[Any]:
    bounds = _bound(low), _bound(high)
    value = sorted_set(db, key)
    return _reply(task, value, _by_score(value, *bounds), options)


def _rank_range(
    db: Database, task: Any, key: bytes, start: bytes, stop: bytes, options: _Options
) -> list[Any]:
    first, last = integer(start), integer(stop)
    value = sorted_set(db, key)
    return _reply(task, value, _by_rank(value, first, last, reverse=options.reverse), options)


@command("ZRANGE", -4, "readonly", group="sorted-set", with_task=True)
def zrange(db: Database, task: Any, key: bytes, start: bytes, stop: bytes, *words: bytes) -> Any:
    """Returns members in a sorted set within a range of positions or scores."""
    options = _Options(words, zrange=True)
    if options.by_score:
        low, high = (stop, start) if options.reverse else (start, stop)
        return _score_range(db, task, key, low, high, options)
    if options.limited:
        raise RedisError(LIMIT_WITHOUT_SCORES)
    return _rank_range(db, task, key, start, stop, options)


@command("ZREVRANGE", -4, "readonly", group="sorted-set", with_task=True)
def zrevrange(
    db: Database, task: Any, key: bytes, start: bytes, stop: bytes, *words: bytes
) -> Any:
    """Returns members in a sorted set within a range of positions in reverse order."""
    options = _Options(words, zrange=False)
    if options.limited:
        raise RedisError(LIMIT_WITHOUT_SCORES)
    options.reverse = True
    return _rank_range(db, task, key, start, stop, options)


@command("ZRANGEBYSCORE", -4, "readonly", group="sorted-set", with_task=True)
def zrangebyscore(
    db: Database, task: Any, key: bytes, low: bytes, high: bytes, *words: bytes
) -> Any:
    """Returns members in a sorted set within a range of scores."""
    return _score_range(db, task, key, low, high, _Options(words, zrange=False))


@command("ZREVRANGEBYSCORE", -4, "readonly", group="sorted-set", with_task=True)
def zrevrangebyscore(
    db: Database, task: Any, key: bytes, high: bytes, low: bytes, *words: bytes
) -> Any:
    """Returns members in a sorted set within a range of scores in reverse order."""
    options = _Options(words, zrange=False)
    options.reverse = True
    return _score_range(db, task, key, low, high, options)


@command("ZCOUNT", 4, "readonly fast", group="sorted-set")
def zcount(db: Database, key: bytes, low: bytes, high: bytes) -> int:
    """Returns the count of members in a sorted set that have scores within a range."""
    bounds = _bound(low), _bound(high)
    return len(_by_score(sorted_set(db, key), *bounds))


def _remove(db: Database, key: bytes, value: SortedSet, places: range) -> int:
    if value.take(places):
        db.shrunk(key)
    return len(places)


@command("ZREMRANGEBYRANK", 4, "write", group="sorted-set")
def zremrangebyrank(db: Database, key: bytes, start: bytes, stop: bytes) -> int:
    """Removes members in a sorted set within a range of positions."""
    first, last = integer(start), integer(stop)
    value = sorted_set(db, key)
    return _remove(db, key, value, _by_rank(value, first, last))


@command("ZREMRANGEBYSCORE", 4, "write", group="sorted-set")
def zremrangebyscore(db: Database, key: bytes, low: bytes, high: bytes) -> int:
    """Removes members in a sorted set within a range of scores."""
    bounds = _bound(low), _bound(high)
    value = sorted_set(db, key)
    return _remove(db, key, value, _by_score(value, *bounds))
