"""What clients ask about the server itself."""

from __future__ import annotations

import os
import time
from typing import Any

from examples.redis_kv.store import DATABASES, Database, command, databases
from protoserve_redis import OK, RedisError, Verbatim, glob

_started = time.monotonic()

_settings = {
    b"appendonly": b"no",
    b"databases": b"%d" % DATABASES,
    b"maxmemory": b"0",
    b"maxmemory-policy": b"noeviction",
    b"save": b"",
    b"timeout": b"0",
}
"""What CONFIG tells; nothing here depends on it."""


@command("CONFIG|GET", -3, "admin noscript", (0, 0, 0), group="server")
def config_get(_: Database, *patterns: bytes) -> dict[bytes, bytes]:
    """Returns the values of configuration parameters."""
    matches = [glob(pattern.lower()).match for pattern in patterns]
    return {
        name: value for name, value in _settings.items() if any(match(name) for match in matches)
    }


@command("CONFIG|SET", -4, "admin noscript", (0, 0, 0), group="server")
def config_set(_: Database, *pairs: bytes) -> Any:
    """Sets configuration parameters, which are told again and do nothing."""
    if len(pairs) % 2:
        raise RedisError("ERR wrong number of arguments for 'config|set' command")
    for name in pairs[::2]:
        if name.lower() not in _settings:
            raise RedisError(
                "ERR Unknown option or number of arguments for CONFIG SET - "
                f"'{name.decode('utf-8', 'surrogateescape')}'"
            )
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        _settings[name.lower()] = value
    return OK


@command("CONFIG|RESETSTAT", 2, "admin noscript", (0, 0, 0), group="server")
def config_resetstat(_: Database) -> Any:
    """Resets the server's statistics: it keeps none."""
    return OK


@command("TIME", 1, "fast", (0, 0, 0), group="server")
def time_(_: Database) -> list[str]:
    """Returns the server time."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return [str(seconds), str(rest // 1000)]


@command("INFO", -1, "", (0, 0, 0), group="server")
def info(_: Database, *sections: bytes) -> Verbatim:
    """Returns information about the server."""
    wanted = {section.decode("latin-1").lower() for section in sections}
    whole: dict[str, dict[str, Any]] = {
        "server": {
            "redis_version": "7.2.4",
            "redis_mode": "standalone",
            "process_id": os.getpid(),
            "uptime_in_seconds": int(time.monotonic() - _started),
        },
        "persistence": {"loading": 0},
        "replication": {"role": "master", "connected_slaves": 0},
        "keyspace": {
            f"db{db.number}": f"keys={len(db.data)},expires={len(db.deadlines)},avg_ttl=0"
            for db in databases
            if db.data
        },
    }
    parts = [
        "\r\n".join([f"# {name.capitalize()}", *(f"{k}:{v}" for k, v in fields.items()), ""])
        for name, fields in whole.items()
        if not wanted or wanted & {name, "default", "all", "everything"}
    ]
    return Verbatim("\r\n".join(parts).encode())
