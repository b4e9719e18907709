"""Lists."""

from __future__ import annotations

from itertools import islice
from typing import Any

from examples.redis_kv.arguments import SYNTAX, integer, positive, span
from examples.redis_kv.store import Database, List, command
from protoserve_redis import NULL_ARRAY, OK, RedisError

SIDES = {b"LEFT": "left", b"RIGHT": "right"}


def side(word: bytes) -> str:
    """The end of a list that a client names."""
    try:
        return SIDES[word.upper()]
    except KeyError:
        raise RedisError(SYNTAX) from None


@command("LPUSH", -3, "write denyoom fast", group="list")
def lpush(db: Database, key: bytes, *elements: bytes) -> int:
    """Prepends one or more elements to a list. Creates the key if it doesn't exist."""
    value = db.get_or_make(key, List)
    value.extendleft(elements)
    db.changed(key)
    return len(value)


@command("RPUSH", -3, "write denyoom fast", group="list")
def rpush(db: Database, key: bytes, *elements: bytes) -> int:
    """Appends one or more elements to a list. Creates the key if it doesn't exist."""
    value = db.get_or_make(key, List)
    value.extend(elements)
    db.changed(key)
    return len(value)


@command("LPUSHX", -3, "write denyoom fast", group="list")
def lpushx(db: Database, key: bytes, *elements: bytes) -> int:
    """Prepends one or more elements to a list only when the list exists."""
    return 0 if db.get(key, List) is None else lpush(db, key, *elements)


@command("RPUSHX", -3, "write denyoom fast", group="list")
def rpushx(db: Database, key: bytes, *elements: bytes) -> int:
    """Appends one or more elements to a list only when the list exists."""
    return 0 if db.get(key, List) is None else rpush(db, key, *elements)


def _pop(db: Database, name: str, key: bytes, count: tuple[bytes, ...]) -> Any:
    if len(count) > 1:
        raise RedisError(f"ERR wrong number of arguments for '{name}' command")
    most = positive(count[0]) if count else 1
    value = db.get(key, List)
    if value is None:
        return NULL_ARRAY if count else None
    take = value.popleft if name == "lpop" else value.pop
    taken = [take() for _ in range(min(most, len(value)))]
    if taken:
        db.shrunk(key)
    return taken if count else taken[0]


@command("LPOP", -2, "write fast", group="list")
def lpop(db: Database, key: bytes, *count: bytes) -> Any:
    """Returns the first elements in a list after removing them."""
    return _pop(db, "lpop", key, count)


@command("RPOP", -2, "write fast", group="list")
def rpop(db: Database, key: bytes, *count: bytes) -> Any:
    """Returns the last elements in a list after removing them."""
    return _pop(db, "rpop", key, count)


@command("LLEN", 2, "readonly fast", group="list")
def llen(db: Database, key: bytes) -> int:
    """Returns the length of a list."""
    return len(db.get(key, List) or ())


@command("LRANGE", 4, "readonly", group="list")
def lrange(db: Database, key: bytes, start: bytes, stop: bytes) -> list[bytes]:
    """Returns a range of elements from a list."""
    first, last = integer(start), integer(stop)
    value = db.get(key, List) or List()
    places = span(first, last, len(value))
    return list(islice(value, places.start, max(places.stop, places.start)))


@command("LINDEX", 3, "readonly", group="list")
def lindex(db: Database, key: bytes, index: bytes) -> bytes | None:
    """Returns an element from a list by its index."""
    value = db.get(key, List)
    if value is None:
        return None
    place = integer(index)
    return value[place] if -len(value) <= place < len(value) else None


@command("LSET", 4, "write denyoom", group="list")
def lset(db: Database, key: bytes, index: bytes, element: bytes) -> Any:
    """Sets the value of an element in a list by its index."""
    value = db.get(key, List)
    if value is None:
        raise RedisError("ERR no such key")
    place = integer(index)
    if not -len(value) <= place < len(value):
        raise RedisError("ERR index out of range")
    value[place] = element
    db.changed(key)
    return OK


@command("LREM", 4, "write", group="list")
def lrem(db: Database, key: bytes, count: bytes, element: bytes) -> int:
    """Removes elements from a list. Deletes the list if the last element was removed."""
    number = integer(count)
    value = db.get(key, List)
    if value is None:
        return 0
    left = abs(number) or len(value)
    kept: list[bytes] = []
    for item in reversed(value) if number < 0 else value:
        if item == element and left:
            left -= 1
        else:
            kept.append(item)
    removed = len(value) - len(kept)
    if removed:
        value.clear()
        (value.extendleft if number < 0 else value.extend)(kept)
        db.shrunk(key)
    return removed


@command("LTRIM", 4, "write", group="list")
def ltrim(db: Database, key: bytes, start: bytes, stop: bytes) -> Any:
    """Removes elements from both ends of a list. Deletes the list if all were trimmed."""
    first, last = integer(start), integer(stop)
    value = db.get(key, List)
    if value is None:
        return OK
    places = span(first, last, len(value))
    if not places:
        db.remove(key)
        return OK
    for _ in range(len(value) - places.stop):
        value.pop()
    for _ in range(places.start):
        value.popleft()
    db.shrunk(key)
    return OK


@command("LINSERT", 5, "write denyoom", group="list")
def linsert(db: Database, key: bytes, where: bytes, pivot: bytes, element: bytes) -> int:
    """Inserts an element before or after another element in a list."""
    word = where.upper()
    if word not in (b"BEFORE", b"AFTER"):
        raise RedisError(SYNTAX)
    value = db.get(key, List)
    if value is None:
        return 0
    try:
        place = value.index(pivot)
    except ValueError:
        return -1
    value.insert(place + (word == b"AFTER"), element)
    db.changed(key)
    return len(value)


def move(db: Database, source: bytes, target: bytes, take: str, put: str) -> bytes | None:
    """Move an element from an end of a list to an end of another, or of the same."""
    value = db.get(source, List)
    if value is None:
        return None
    db.get(target, List)  # it may hold something else
    item: bytes = value.popleft() if take == "left" else value.pop()
    # Before the source is looked at: it may be the target, and empty for the moment.
    (lpush if put == "left" else rpush)(db, target, item)
    db.shrunk(source)
    return item


@command("RPOPLPUSH", 3, "write denyoom", (1, 2, 1), group="list")
def rpoplpush(db: Database, source: bytes, target: bytes) -> bytes | None:
    """Returns the last element of a list after removing and pushing it to another list."""
    return move(db, source, target, "right", "left")


@command("LMOVE", 5, "write denyoom", (1, 2, 1), group="list")
def lmove(db: Database, source: bytes, target: bytes, take: bytes, put: bytes) -> bytes | None:
    """Returns an element after popping it from one list and pushing it to another."""
    return move(db, source, target, side(take), side(put))
