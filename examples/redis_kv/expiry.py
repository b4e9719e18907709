"""When keys vanish."""

from __future__ import annotations

from collections.abc import Callable

from examples.redis_kv.arguments import INT_MAX, INT_MIN, integer
from examples.redis_kv.store import Database, command, now_ms
from protoserve_redis import RedisError


def _setter(name: str, unit: int, *, relative: bool) -> None:
    def run(db: Database, key: bytes, number: bytes, *options: bytes) -> int:
        words = {option.upper() for option in options}
        for option in options:
            if option.upper() not in (b"NX", b"XX", b"GT", b"LT"):
                shown = option.decode("utf-8", "surrogateescape")
                raise RedisError(f"ERR Unsupported option {shown}")
        if b"NX" in words and len(words) > 1:
            raise RedisError("ERR NX and XX, GT or LT options at the same time are not compatible")
        if {b"GT", b"LT"} <= words:
            raise RedisError("ERR GT and LT options at the same time are not compatible")
        at = integer(number) * unit
        if not INT_MIN <= at <= INT_MAX or (relative and at > INT_MAX - now_ms()):
            raise RedisError(f"ERR invalid expire time in '{name.lower()}' command")
        at += now_ms() if relative else 0
        if db.find(key) is None:
            return 0
        current = db.deadlines.get(key)
        if (
            (b"NX" in words and current is not None)
            or (b"XX" in words and current is None)
            # A key that never vanishes does so later than all others.
            or (b"GT" in words and (current is None or at <= current))
            or (b"LT" in words and current is not None and at >= current)
        ):
            return 0
        db.set_deadline(key, at)
        return 1

    run.__doc__ = "Sets the expiration time of a key."
    command(name, -3, "write fast", group="generic")(run)


_setter("EXPIRE", 1000, relative=True)
_setter("PEXPIRE", 1, relative=True)
_setter("EXPIREAT", 1000, relative=False)
_setter("PEXPIREAT", 1, relative=False)


def _getter(name: str, convert: Callable[[int], int]) -> None:
    def run(db: Database, key: bytes) -> int:
        if db.find(key) is None:
            return -2
        at = db.deadlines.get(key)
        return -1 if at is None else convert(at)

    run.__doc__ = "Returns the expiration time of a key."
    command(name, 2, "readonly fast", group="generic")(run)


_getter("TTL", lambda at: (max(at - now_ms(), 0) + 500) // 1000)
_getter("PTTL", lambda at: max(at - now_ms(), 0))
_getter("EXPIRETIME", lambda at: (at + 500) // 1000)
_getter("PEXPIRETIME", lambda at: at)


@command("PERSIST", 2, "write fast", group="generic")
def persist(db: Database, key: bytes) -> int:
    """Removes the expiration time of a key."""
    if db.find(key) is None or db.deadlines.pop(key, None) is None:
        return 0
    db.changed(key)
    return 1
