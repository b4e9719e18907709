"""The application: memcached's commands on a store in memory."""

import os
import re
import threading
import time
from typing import Final

from memcached_protocol import MemcachedTask, Request
from memcached_protocol.store import Item, Store

__all__ = ["Cache", "process"]

VERSION: Final = "1.0.0"
VALUE_LIMIT: Final = 1024 * 1024
MOST: Final = 2**64  # numbers are below


class CommandError(Exception):
    """What the client hears, without its line end."""


FORMAT: Final = "CLIENT_ERROR bad command line format"
TOO_LARGE: Final = "SERVER_ERROR object too large for cache"


class Cache:
    """A handler: ``WFServer(MEMCACHED_SPEC, Cache())``. On any threads."""

    may_block = False  # the lock is held for moments

    def __init__(self, store: Store | None = None) -> None:
        self._store = Store() if store is None else store
        self._lock = threading.Lock()  # guards the store and the counts
        self._began = time.monotonic()
        self._counts = dict.fromkeys(("cmd_get", "cmd_set", "get_hits", "get_misses"), 0)

    def __call__(self, task: MemcachedTask) -> None:
        request = task.req
        try:
            with self._lock:
                pieces = self._answer(task, request)
        except CommandError as error:
            pieces = [f"{error}\r\n".encode()]
        if not request.noreply:
            task.resp.pieces = pieces

    def _answer(self, task: MemcachedTask, request: Request) -> list[bytes]:
        words = request.words
        match request.verb, len(words):
            case b"get" | b"gets" as verb, count if count:
                return self._values(words, unique=verb == b"gets")
            case b"gat" | b"gats" as verb, count if count > 1:
                expires = self._store.expiry(exptime(words[0]))
                for key in map(checked, words[1:]):
                    self._store.touch(key, expires)
                return self._values(words[1:], unique=verb == b"gats")
            case b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas", _:
                self._counts["cmd_set"] += 1
                return [self._store_item(request)]
            case b"delete", 1:
                there = self._store.get(checked(words[0])) is not None
                self._store.delete(words[0])
                return [b"DELETED\r\n" if there else b"NOT_FOUND\r\n"]
            case b"incr" | b"decr" as verb, 2:
                delta = number(words[1], MOST, "CLIENT_ERROR invalid numeric delta argument")
                return [self._add(checked(words[0]), delta if verb == b"incr" else -delta)]
            case b"touch", 2:
                expires = self._store.expiry(exptime(words[1]))
                touched = self._store.touch(checked(words[0]), expires)
                return [b"NOT_FOUND\r\n" if touched is None else b"TOUCHED\r\n"]
            case b"flush_all", 0 | 1:
                self._store.flush(exptime(words[0]) if words else 0)
                return [b"OK\r\n"]
            case b"verbosity", 1:
                number(words[0], 2**32, FORMAT)  # there is nothing that it changes
                return [b"OK\r\n"]
            case b"version", 0:
                return [f"VERSION {VERSION}\r\n".encode()]
            case b"stats", 0:
                return self._stats(task)
            case b"quit", 0:
                task.noreply()
                return []
        return [b"ERROR\r\n"]

    def _values(self, keys: list[bytes], *, unique: bool) -> list[bytes]:
        pieces = []
        for key in keys:
            item = self._store.get(checked(key))
            self._counts["cmd_get"] += 1
            self._counts["get_misses" if item is None else "get_hits"] += 1
            if item is not None:
                more = b" %d" % item.unique if unique else b""
                head = b"VALUE %b %d %d%b\r\n" % (key, item.flags, len(item.data), more)
                pieces += [head, item.data, b"\r\n"]
        return [*pieces, b"END\r\n"]

    def _store_item(self, request: Request) -> bytes:
        key = checked(request.words[0])
        flags = number(request.words[1], 2**32, FORMAT)
        expires = self._store.expiry(exptime(request.words[2]))
        data = request.data
        old = self._store.get(key)
        match request.verb, old:
            case b"cas", _:
                unique = number(request.words[4], MOST, FORMAT)
                if old is None:
                    return b"NOT_FOUND\r\n"
                if old.unique != unique:
                    return b"EXISTS\r\n"
            case b"add", Item():
                return b"NOT_STORED\r\n"
            case b"replace" | b"append" | b"prepend", None:
                return b"NOT_STORED\r\n"
            case b"append" | b"prepend" as verb, Item():  # flags and time stay as they are
                data = old.data + data if verb == b"append" else data + old.data
                flags, expires = old.flags, old.expires
        if len(data) > VALUE_LIMIT:
            if request.verb == b"set":
                self._store.delete(key)  # nobody shall go on with the old one
            raise CommandError(TOO_LARGE)
        self._store.put(key, data, flags, expires)
        return b"STORED\r\n"

    def _add(self, key: bytes, delta: int) -> bytes:
        item = self._store.get(key)
        if item is None:
            return b"NOT_FOUND\r\n"
        fault = "CLIENT_ERROR cannot increment or decrement non-numeric value"
        # Up around the end of 64 bits, down to nothing.
        data = b"%d" % (max(0, number(item.data, MOST, fault) + delta) % MOST)
        self._store.put(key, data, item.flags, item.expires)
        return data + b"\r\n"

    def _stats(self, task: MemcachedTask) -> list[bytes]:
        facts = {
            "pid": os.getpid(),
            "uptime": int(time.monotonic() - self._began),
            "time": int(self._store.now()),
            "version": VERSION,
            "curr_connections": task.server.conn_count,
            **self._counts,
            "bytes": self._store.size,
            "curr_items": len(self._store),
            "evictions": self._store.evictions,
            "limit_maxbytes": self._store.limit,
        }
        return [*(f"STAT {name} {fact}\r\n".encode() for name, fact in facts.items()), b"END\r\n"]


def checked(key: bytes) -> bytes:
    """The key, if it is one: 250 bytes, none of which is a control character."""
    if not re.fullmatch(rb"[^\x00-\x20\x7f]{1,250}", key):
        raise CommandError(FORMAT)
    return key


def number(word: bytes, end: int, fault: str) -> int:
    """A number from 0 on, below ``end``."""
    if not re.fullmatch(rb"[0-9]{1,20}", word) or int(word) >= end:
        raise CommandError(fault)
    return int(word)


def exptime(word: bytes) -> int:
    """Seconds; negative for what has expired already."""
    if not re.fullmatch(rb"-?[0-9]{1,18}", word):
        raise CommandError("CLIENT_ERROR invalid exptime argument")
    return int(word)


process = Cache()
"""What ``protoserve run memcached`` serves."""
