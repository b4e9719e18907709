"""EVAL for the scripts that clients' locks are made of.

There is no Lua here. A script is recognised by the calls it makes: compare a key with a token
and then delete it, or give it more time. Others are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from examples.redis_kv.arguments import integer
from examples.redis_kv.store import Database, command, now_ms
from protoserve_redis import OK, RedisError

NO_SCRIPT = "NOSCRIPT No matching script. Please use EVAL."

Script = Callable[[Database, list[bytes], list[bytes]], int]

_scripts: dict[str, Script] = {}  # by the SHA-1 of their source; guarded by the lock

_CALL = re.compile(rb"redis\.p?call\(\s*['\"](\w+)['\"]")
_COMPARES = re.compile(rb"[~=]=\s*ARGV\[1\]")


def _holds(db: Database, keys: list[bytes], values: list[bytes]) -> bool:
    return db.get(keys[0], bytes) == values[0]


def _release(db: Database, keys: list[bytes], values: list[bytes]) -> int:
    return int(_holds(db, keys, values) and db.remove(keys[0]))


def _renew(db: Database, keys: list[bytes], values: list[bytes]) -> int:
    milliseconds = integer(values[1])
    if not _holds(db, keys, values):
        return 0
    db.set_deadline(keys[0], now_ms() + milliseconds)
    return 1


def _extend(db: Database, keys: list[bytes], values: list[bytes]) -> int:
    """As ``_renew``; with a third value of 0 the time comes on top of what is left."""
    milliseconds = integer(values[1])
    if not _holds(db, keys, values) or keys[0] not in db.deadlines:
        return 0
    start = db.deadlines[keys[0]] if values[2] == b"0" else now_ms()
    db.set_deadline(keys[0], start + milliseconds)
    return 1


KNOWN: dict[tuple[bytes, ...], tuple[Script, int]] = {
    (b"get", b"del"): (_release, 1),
    (b"get", b"pexpire"): (_renew, 2),
    (b"get", b"pttl", b"pexpire"): (_extend, 3),
}
"""The calls of a script in their order: what it does, and how many values it takes."""


def _recognised(source: bytes) -> Script:
    known = KNOWN.get(tuple(call.lower() for call in _CALL.findall(source)))
    if known is None or not _COMPARES.search(source):
        raise RedisError(
            "ERR this server runs no Lua; it knows the scripts of locks only "
            "(compare with ARGV[1], then del or pexpire)"
        )
    script, count = known

    def run(db: Database, keys: list[bytes], values: list[bytes]) -> int:
        if len(keys) != 1 or len(values) < count:
            raise RedisError(f"ERR the script takes 1 key and {count} values")
        return script(db, keys, values)

    return run


def _load(source: bytes) -> str:
    digest = hashlib.sha1(source).hexdigest()
    if digest not in _scripts:
        _scripts[digest] = _recognised(source)
    return digest


def _run(db: Database, digest: str, count: bytes, arguments: tuple[bytes, ...]) -> int:
    number = integer(count)
    if number > len(arguments):
        raise RedisError("ERR Number of keys can't be greater than number of args")
    if number < 0:
        raise RedisError("ERR Number of keys can't be negative")
    script = _scripts.get(digest)
    if script is None:
        raise RedisError(NO_SCRIPT)
    return script(db, list(arguments[:number]), list(arguments[number:]))


@command("EVAL", -3, "noscript", (0, 0, 0), group="scripting")
def eval_(db: Database, source: bytes, count: bytes, *arguments: bytes) -> Any:
    """Executes one of the scripts that are known."""
    return _run(db, _load(source), count, arguments)


@command("EVALSHA", -3, "noscript", (0, 0, 0), group="scripting")
def evalsha(db: Database, digest: bytes, count: bytes, *arguments: bytes) -> Any:
    """Executes one of the scripts that are known, by the SHA-1 of its source."""
    if len(digest) != 40:
        raise RedisError(NO_SCRIPT)
    return _run(db, digest.decode("latin-1").lower(), count, arguments)


@command("SCRIPT|LOAD", 3, "noscript", (0, 0, 0), group="scripting")
def script_load(_: Database, source: bytes) -> str:
    """Loads a script that is known, and returns the SHA-1 of its source."""
    return _load(source)


@command("SCRIPT|EXISTS", -3, "noscript", (0, 0, 0), group="scripting")
def script_exists(_: Database, *digests: bytes) -> list[int]:
    """Determines whether scripts were loaded."""
    return [int(digest.decode("latin-1").lower() in _scripts) for digest in digests]


@command("SCRIPT|FLUSH", -2, "noscript", (0, 0, 0), group="scripting")
def script_flush(_: Database, *options: bytes) -> Any:
    """Forgets all scripts."""
    if options and [option.upper() for option in options] not in ([b"ASYNC"], [b"SYNC"]):
        raise RedisError("ERR SCRIPT FLUSH only support SYNC|ASYNC option")
    _scripts.clear()
    return OK
