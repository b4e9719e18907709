"""SCAN and its sisters.

What is there from the first call to the last is returned at least once: items come in the
order of their hashes, and the cursor is the hash to go on from. Items are sorted when a scan
begins; a scan that is under way may use a later one's order, since what it still has to
return is in every order made since it began.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection
from typing import Any

from examples.redis_kv.arguments import NOT_AN_INTEGER, SYNTAX, integer
from examples.redis_kv.sorted_set import SortedSet
from examples.redis_kv.store import TYPES, Database, command
from protoserve_redis import RedisError, glob

MASK = 2**62 - 1
MOST_ORDERS = 64
"""Scans whose order is kept; it is made again for others."""


class _Options:
    def __init__(self, words: tuple[bytes, ...], *, types: bool) -> None:
        self.count = 10
        self.match: Callable[[bytes], object] = lambda _: True
        self.type: str | None = None
        left = iter(words)
        for word in map(bytes.upper, left):
            value = next(left, None)
            if value is None:
                raise RedisError(SYNTAX)
            if word == b"COUNT":
                self.count = integer(value, NOT_AN_INTEGER)
                if self.count < 1:
                    raise RedisError(SYNTAX)
            elif word == b"MATCH":
                self.match = glob(value).match
            elif word == b"TYPE" and types:
                self.type = value.decode("latin-1").lower()
            else:
                raise RedisError(SYNTAX)


def _cursor(text: bytes) -> int:
    if not text.removeprefix(b"-").isdigit() or len(text) > 20 or abs(int(text)) >= 2**64:
        raise RedisError("ERR invalid cursor")
    return int(text) % 2**64


def _step(
    db: Database, name: bytes | None, items: Collection[bytes], cursor: int, count: int
) -> tuple[int, list[bytes]]:
    order = db.scans.get(name)
    if order is None or cursor == 0:
        order = sorted((hash(item) & MASK, item) for item in items)
        if len(db.scans) >= MOST_ORDERS:
            del db.scans[next(iter(db.scans))]
        db.scans[name] = order
    start = bisect_left(order, (cursor, b""))
    stop = start + count
    # Items of equal hashes stay together: the cursor cannot tell them apart.
    while 0 < stop < len(order) and order[stop][0] == order[stop - 1][0]:
        stop += 1
    found = [item for _, item in order[start:stop] if item in items]
    if stop < len(order):
        return order[stop][0], found
    del db.scans[name]
    return 0, found


@command("SCAN", -2, "readonly", (0, 0, 0), group="generic")
def scan(db: Database, cursor: bytes, *words: bytes) -> list[Any]:
    """Iterates over the key names in the database."""
    at = _cursor(cursor)
    options = _Options(words, types=True)
    at, found = _step(db, None, db.data, at, options.count)
    keys = [
        key
        for key in found
        if options.match(key)
        and (value := db.find(key)) is not None
        and options.type in (None, TYPES[type(value)])
    ]
    return [str(at), keys]


def _scanner(name: str, kind: type, group: str, reply: Callable[[Any, list[bytes]], Any]) -> None:
    def run(db: Database, key: bytes, cursor: bytes, *words: bytes) -> list[Any]:
        at = _cursor(cursor)
        value: Any = db.get(key, kind)
        if value is None:
            return ["0", []]
        options = _Options(words, types=False)
        members = value.scores if kind is SortedSet else value
        at, found = _step(db, key, members, at, options.count)
        return [str(at), reply(value, [item for item in found if options.match(item)])]

    run.__doc__ = f"Iterates over the members of a {group}."
    command(name, -3, "readonly", group=group)(run)


def _with_scores(value: SortedSet, found: list[bytes]) -> list[bytes | str]:
    # Not doubles, in RESP3 either.
    return [x for m in found for x in (m, repr(value.scores[m]).removesuffix(".0"))]


_scanner("SSCAN", set, "set", lambda _, found: found)
_scanner("HSCAN", dict, "hash", lambda v, found: [x for f in found for x in (f, v[f])])
_scanner("ZSCAN", SortedSet, "sorted-set", lambda v, found: _with_scores(v, found))
