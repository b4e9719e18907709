"""What a cache keeps: items that expire, and make room for others."""

import time
from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple

__all__ = ["Item", "Store"]

MONTH: Final = 30 * 86_400
"""Expiry times above it are points in time; below, seconds from now."""

ITEM_OVERHEAD: Final = 200
"""Bytes that an item takes besides its key and data, roughly."""


class Item(NamedTuple):
    data: bytes
    flags: int
    expires: float
    """When it is gone; ``inf``: it stays."""
    unique: int
    """Another after each change."""


class Store:
    """By one thread at a time. ``limit``: bytes of all items; what was not used for longest makes
    room. ``now``: the time, in seconds since 1970."""

    def __init__(
        self, limit: int = 64 * 1024 * 1024, now: Callable[[], float] = time.time
    ) -> None:
        self.limit = limit
        self.now = now
        self.size = 0
        self.evictions = 0
        self._items: dict[bytes, Item] = {}  # the one that was used last is the last
        self._changes = 0
        self._flush_at = inf

    def __len__(self) -> int:
        """Items, those included that have expired and nobody asked for since."""
        return len(self._items)

    def expiry(self, seconds: int) -> float:
        """When an item expires that is given this time."""
        if seconds == 0:
            return inf
        if seconds < 0:
            return -inf
        return seconds if seconds > MONTH else self.now() + seconds

    def get(self, key: bytes) -> Item | None:
        now = self.now()
        if now >= self._flush_at:
            self._flush_at = inf
            self._items.clear()
            self.size = 0
        item = self._items.get(key)
        if item is None:
            return None
        if item.expires <= now:
            self.delete(key)
            return None
        self._items[key] = self._items.pop(key)
        return item

    def put(self, key: bytes, data: bytes, flags: int, expires: float) -> None:
        """Keep an item, in place of the one that there is."""
        self.get(key)  # which was flushed, perhaps
        self.delete(key)
        self._changes += 1
        self._items[key] = Item(data, flags, expires, self._changes)
        self.size += len(key) + len(data) + ITEM_OVERHEAD
        while self.size > self.limit:
            self.delete(next(iter(self._items)))
            self.evictions += 1

    def touch(self, key: bytes, expires: float) -> Item | None:
        """Change when an item expires; the item."""
        item = self.get(key)
        if item is not None:
            self._items[key] = item._replace(expires=expires)
        return item

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        item = self._items.pop(key, None)
        if item is None:
            return False
        self.size -= len(key) + len(item.data) + ITEM_OVERHEAD
        return True

    def flush(self, seconds: int) -> None:
        """What is there then, so many seconds from now, is gone."""
        self._flush_at = self.now() if seconds <= 0 else self.expiry(seconds)
