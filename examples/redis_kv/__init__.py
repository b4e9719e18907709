"""An in-memory store that speaks Redis: strings, expiry, counters, hashes, lists with blocking
pops, sets, sorted sets, scans and transactions.

Run it with ``protoserve run redis examples.redis_kv:commands --bind 127.0.0.1:6380``.
"""

from examples.redis_kv import (
    blocking,
    expiry,
    hashes,
    keyspace,
    lists,
    scans,
    scripts,
    server,
    sets,
    sorted_set_ranges,
    sorted_sets,
    strings,
)
from examples.redis_kv.store import commands

__all__ = [
    "blocking",
    "commands",
    "expiry",
    "hashes",
    "keyspace",
    "lists",
    "scans",
    "scripts",
    "server",
    "sets",
    "sorted_set_ranges",
    "sorted_sets",
    "strings",
]
