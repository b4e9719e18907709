"""Where fakeredis answers otherwise than Redis 7.0 does: a part of ``redis_full.py``.

Each of these was found by comparing the two byte for byte, and may go when fakeredis
agrees. What is left is listed in ``tests/plugin_redis/test_redis_compare.py``.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from fakeredis._command_args_parsing import Int, Timeout
from fakeredis._commands import SUPPORTED_COMMANDS, Key, Signature
from fakeredis._core import CommandItem
from fakeredis._helpers import SimpleError
from fakeredis._socket._fakesocket import FakeSocket
from fakeredis.model import ExpiringMembersSet, XStream, ZSet

from protoserve_redis import NULL_ARRAY, RedisError, glob, integer, real, timeout

SYNTAX = "ERR syntax error"
NOT_A_FLOAT = "ERR value is not a valid float"


WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


def streams(line: Sequence[bytes]) -> Sequence[bytes]:
    """The keys of XREAD or XREADGROUP."""
    words = [word.upper() for word in line]
    rest = line[words.index(b"STREAMS") + 1 :] if b"STREAMS" in words else ()
    return rest[: len(rest) // 2]


def _shown(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")


def _arity(name: str) -> RedisError:
    return RedisError(f"ERR wrong number of arguments for '{name}' command")


PLACES: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(("del", "exists", "mget", "pfcount", "unlink"), (1, -1, 1)),
    **dict.fromkeys(("sdiff", "sinter", "sunion", "pfmerge"), (1, -1, 1)),
    **dict.fromkeys(("sdiffstore", "sinterstore", "sunionstore"), (1, -1, 1)),
    **dict.fromkeys(("blpop", "brpop", "bzpopmax", "bzpopmin"), (1, -2, 1)),
    **dict.fromkeys(("mset", "msetnx"), (1, -1, 2)),
    "bitop": (2, -1, 1),
    "lcs": (1, 2, 1),
}
"""Where the keys stand: fakeredis says that there is one, or two."""


# -- before: what Redis looks at first -------------------------------------------------


def _room() -> dict[str, int]:
    """How many arguments the functions of fakeredis take that do not take any number."""
    room = {}
    for name, signature in SUPPORTED_COMMANDS.items():
        function = getattr(FakeSocket, signature.func_name)
        parameters = inspect.signature(function).parameters.values()
        if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters):
            room[name] = len(parameters) - 1  # self
    return room


_ROOM = _room()
_RELATIVE = {"expire": 1000, "pexpire": 1, "expireat": 1000, "pexpireat": 1}
_SCANS = {"scan": 0, "sscan": 1, "hscan": 1, "zscan": 1}  # where the cursor is
_MOST_RANDOM = 1_000_000
_TIMEOUT_FIRST = ("blmpop", "bzmpop")
TIMEOUT_LAST = ("blpop", "brpop", "bzpopmin", "bzpopmax", "blmove", "brpoplpush")


def before(name: str, arguments: list[bytes]) -> tuple[str, list[bytes]]:
    """The command to run instead, and its arguments; nearly always those that came."""
    if len(arguments) > _ROOM.get(name, len(arguments)):
        raise RedisError(SYNTAX)
    if name in ("setex", "psetex"):  # they forget parts of a second
        unit = b"EX" if name == "setex" else b"PX"
        return "set", [arguments[0], arguments[2], unit, arguments[1]]
    check = _CHECKS.get(name)
    changed = None if check is None else check(name, arguments)
    return name, arguments if changed is None else changed


def _expire(name: str, arguments: list[bytes]) -> None:
    words = {option.upper() for option in arguments[2:]}
    if words == {b"GT", b"LT"}:
        raise RedisError("ERR GT and LT options at the same time are not compatible")
    if words <= {b"NX", b"XX", b"GT", b"LT"}:
        at = given = integer(arguments[1]) * _RELATIVE[name]
        if not name.endswith("at"):
            at += int(time.time() * 1000)
        if not -(2**63) <= at < 2**63 or abs(given) >= 2**63:
            raise RedisError(f"ERR invalid expire time in '{name}' command")


def _scan(name: str, arguments: list[bytes]) -> None:
    at = _SCANS[name]
    if not re.fullmatch(rb"-?\d{1,20}", arguments[at]):
        raise RedisError("ERR invalid cursor")
    options = arguments[at + 1 :]
    if len(options) % 2 or (at and b"TYPE" in (word.upper() for word in options[::2])):
        raise RedisError(SYNTAX)


def _times(name: str, arguments: list[bytes]) -> None:
    if name == "blmove":
        _sides(name, arguments)
    timeout(arguments[-1])


def _sides(name: str, arguments: list[bytes]) -> None:
    if {word.upper() for word in arguments[2:4]} - {b"LEFT", b"RIGHT"}:
        raise RedisError(SYNTAX)


def _count(name: str, arguments: list[bytes]) -> None:
    if len(arguments) > 2:
        raise _arity(name)  # only of LPOP and RPOP: the others have no room for more
    for count in arguments[1:]:
        integer(count, "ERR value is out of range, must be positive", least=0)


def _random(name: str, arguments: list[bytes]) -> None:
    # With a negative count members may come again: there are always that many.
    for count in arguments[1:2]:
        if count == b"-9223372036854775808":
            raise RedisError(
                "ERR value is out of range, value must between -9223372036854775807 and "
                "9223372036854775807"
            )
        if integer(count) < -_MOST_RANDOM:
            raise RedisError("ERR value is out of range")


def _flush(name: str, arguments: list[bytes]) -> list[bytes] | None:
    return [] if [word.upper() for word in arguments] == [b"SYNC"] else None


def _evalsha(name: str, arguments: list[bytes]) -> list[bytes]:
    if len(arguments[0]) != 40:
        raise RedisError("NOSCRIPT No matching script. Please use EVAL.")
    return [arguments[0].lower(), *arguments[1:]]


def _script_exists(name: str, arguments: list[bytes]) -> list[bytes]:
    return [digest.lower() for digest in arguments]


def _script_flush(name: str, arguments: list[bytes]) -> None:
    if [word.upper() for word in arguments] not in ([], [b"SYNC"], [b"ASYNC"]):
        raise RedisError("ERR SCRIPT FLUSH only support SYNC|ASYNC option")


def _decrby(name: str, arguments: list[bytes]) -> None:
    if arguments[1] == b"-9223372036854775808":
        raise RedisError("ERR decrement would overflow")


def _zrange(name: str, arguments: list[bytes]) -> None:
    words = arguments[1:] if name == "zrangestore" else arguments
    options = {word.upper() for word in words[3:]}
    if not options & {b"BYSCORE", b"BYLEX"}:
        integer(words[1])
        integer(words[2])
    if b"WITHSCORES" in options:
        if name == "zrangestore":
            raise RedisError(SYNTAX)
        if b"BYLEX" in options:
            raise RedisError(
                "ERR syntax error, WITHSCORES not supported in combination with BYLEX"
            )


def _zrevrange(name: str, arguments: list[bytes]) -> None:
    if {word.upper() for word in arguments[3:]} - {b"WITHSCORES"}:
        raise RedisError(SYNTAX)


def _counted_pop(name: str, arguments: list[bytes]) -> None:
    if name in _TIMEOUT_FIRST:
        timeout(arguments[0])
        arguments = arguments[1:]
    keys = integer(arguments[0], "ERR numkeys should be greater than 0", least=1)
    options = arguments[keys + 2 :]  # behind the side
    if options and options[0].upper() == b"COUNT" and len(options) > 1:
        integer(options[1], "ERR count should be greater than 0", least=1)
        if options[2:]:
            raise RedisError(SYNTAX)


def _cardinality(name: str, arguments: list[bytes]) -> list[bytes] | None:
    if name == "sintercard":
        keys = integer(arguments[0], "ERR numkeys should be greater than 0", least=1)
    else:
        keys = integer(arguments[0])
    options = arguments[keys + 1 :] if keys > 0 else []
    for option in options[::2]:
        if option.upper() != b"LIMIT" or len(options) % 2:
            raise RedisError(SYNTAX)
    for limit in options[1::2]:
        integer(limit, "ERR LIMIT can't be negative", least=0)
    return [*arguments[: keys + 1], *options[-2:]] if options else None


_CHECKS: dict[str, Callable[[str, list[bytes]], list[bytes] | None]] = {
    **dict.fromkeys(_RELATIVE, _expire),
    **dict.fromkeys(_SCANS, _scan),
    **dict.fromkeys(TIMEOUT_LAST, _times),
    **dict.fromkeys((*_TIMEOUT_FIRST, "lmpop", "zmpop"), _counted_pop),
    **dict.fromkeys(("sintercard", "zintercard"), _cardinality),
    **dict.fromkeys(("lpop", "rpop", "spop", "zpopmin", "zpopmax"), _count),
    **dict.fromkeys(("srandmember", "hrandfield", "zrandmember"), _random),
    **dict.fromkeys(("flushall", "flushdb"), _flush),
    "lmove": _sides,
    **dict.fromkeys(("evalsha", "evalsha_ro"), _evalsha),
    "script exists": _script_exists,
    "script flush": _script_flush,
    "decrby": _decrby,
    **dict.fromkeys(("zrange", "zrangestore"), _zrange),
    "zrevrange": _zrevrange,
}


# -- instead: functions of its own -----------------------------------------------------


_LONG_DOUBLE = 4932
"""The largest power of ten that is one, and about the smallest."""


def _long_double(text: bytes, message: str = NOT_A_FLOAT) -> Decimal:
    """A number as Redis reads it for INCRBYFLOAT, of more digits than a float."""
    if b"x" in text.lower():
        return Decimal(real(text, message))
    try:
        if b"_" in text or text.strip() != text:
            raise InvalidOperation
        number = Decimal(text.decode())
    except (InvalidOperation, UnicodeDecodeError):
        raise SimpleError(message) from None
    if number.is_nan() or (number.is_finite() and abs(number.adjusted()) > _LONG_DOUBLE):
        raise SimpleError(message)
    return number


def _sum(current: Decimal, increment: Decimal) -> bytes:
    try:
        total = current + increment
    except InvalidOperation:
        total = Decimal("nan")
    if not total.is_finite():
        raise SimpleError("ERR increment would produce NaN or Infinity")
    text = f"{total:.17f}".rstrip("0").rstrip(".")
    return b"0" if text == "-0" else text.encode()


_UNITS = {b"EX": (1000, True), b"PX": (1, True), b"EXAT": (1000, False), b"PXAT": (1, False)}
"""How an expiry is given: milliseconds of the unit, and whether it counts from now."""


def _single(value: Any, words: tuple[bytes, ...]) -> Any:
    return value[0] if not words and isinstance(value, list) and value else value


class Instead:
    """Functions that replace those of fakeredis' connection."""

    run: Callable[[Signature, list[bytes]], Any]
    _blocking: Callable[..., Any]
    _db: Any
    _script_resp: int | None

    def incrbyfloat(self, key: CommandItem, increment: bytes) -> bytes:
        """With the digits of a ``long double``."""
        total = _sum(_long_double(key.get(b"0")), _long_double(increment))
        key.update(total)
        return total

    def hincrbyfloat(self, key: CommandItem, field: bytes, increment: bytes) -> bytes:
        """The same for a field."""
        number = _long_double(increment)
        if not number.is_finite():
            raise SimpleError("ERR value is NaN or Infinity")
        current = key.value.get(field, b"0")
        total = _sum(_long_double(current, "ERR hash value is not a float"), number)
        key.value.update({field: total}, clear_expiration=False)
        key.updated()
        return total

    def getex(self, key: CommandItem, *words: bytes) -> bytes | None:
        """To the millisecond; the same option may come twice."""
        unit = given = b""
        rest = iter(words)
        for word in map(bytes.upper, rest):
            if unit not in (b"", word) or word not in (b"PERSIST", *_UNITS):
                raise SimpleError(SYNTAX)
            unit = word
            given = next(rest, b"") if word in _UNITS else b""
            if word in _UNITS and not given:
                raise SimpleError(SYNTAX)
        value: bytes | None = key.get(None)
        if unit in _UNITS:
            scale, relative = _UNITS[unit]
            at = integer(given) * scale
            if at <= 0 or at + self._db.time * 1000 * relative >= 2**63:
                raise SimpleError("ERR invalid expire time in 'getex' command")
            if value is not None:
                key.expireat = at / 1000 + self._db.time * relative
        elif unit and value is not None and key.expireat is not None:
            key.expireat = None
        return value

    def keys(self, pattern: bytes) -> list[bytes]:
        """In a time that does not double with each star."""
        return list(filter(glob(pattern).match, self._db))

    def _scan(self, keys: Any, cursor: int, *words: bytes, **more: Any) -> Any:
        # Likewise: what matches is looked for in what came.
        match = None
        rest: list[bytes] = []
        for at in range(0, len(words), 2):
            option = words[at : at + 2]
            if option[0].upper() == b"MATCH" and len(option) == 2:
                match = glob(option[1]).match
            else:
                rest += option
        following, found = super()._scan(keys, cursor, *rest, **more)  # type: ignore[misc]
        return [following, found if match is None else list(filter(match, found))]

    def xread(self, *words: bytes) -> Any:
        """Of streams only."""
        self._check_streams(words)
        return super().xread(*words)  # type: ignore[misc]

    def xreadgroup(self, *words: bytes) -> Any:
        """Of streams only; one that waits looks anew at what has become of the stream."""
        self._check_streams(words)
        keys = streams(words)
        options = [word.upper() for word in words[3 : len(words) - 2 * len(keys)]]
        missing = [key for key in keys if key not in self._db]
        if missing:
            key, group = (_shown(word) for word in (missing[0], words[1]))
            raise SimpleError(
                f"NOGROUP No such key '{key}' or consumer group '{group}' in XREADGROUP with "
                "GROUP option"
            )
        read_at_once = super().xreadgroup  # type: ignore[misc]

        def read(*words: bytes) -> Any:
            return read_at_once(*words) or None  # nothing is nothing in RESP3, too

        if not keys or b"BLOCK" not in options:
            return read(*words)
        at = 3 + options.index(b"BLOCK")
        at_once = (*words[:at], *words[at + 2 :])
        if any(place != b">" for place in words[len(words) - len(keys) :]):
            return read(*at_once)  # what it has read already is there
        wrong = "ERR timeout is not an integer or out of range"
        milliseconds = integer(words[at + 1], wrong)
        if milliseconds < 0:
            raise SimpleError("ERR timeout is negative")

        def attempt(first: bool) -> Any:
            if not first:
                items = [self._db.get(key) for key in keys]
                if not all(isinstance(getattr(i, "value", None), XStream) for i in items):
                    raise SimpleError("UNBLOCKED the stream key no longer exists")
            return read(*at_once)

        return self._blocking(milliseconds / 1000, attempt)

    def hrandfield(self, key: CommandItem, *words: bytes) -> Any:
        """One field, where it is not said how many, and not a list of one."""
        return _single(super().hrandfield(key, *words), words)  # type: ignore[misc]

    def zrandmember(self, key: CommandItem, *words: bytes) -> Any:
        """Likewise."""
        return _single(super().zrandmember(key, *words), words)  # type: ignore[misc]

    def _zpop(self, key: CommandItem, *options: Any, **more: Any) -> Any:
        if key.value and not isinstance(key.value, ZSet):
            raise SimpleError(WRONGTYPE)
        return super()._zpop(key, *options, **more)  # type: ignore[misc]

    def _xrange(self, stream: Any, *bounds: Any, **options: Any) -> Any:
        if not isinstance(stream, (XStream, type(None))):
            # It was one when the client began to wait.
            raise SimpleError(WRONGTYPE)
        return super()._xrange(stream, *bounds, **options)  # type: ignore[misc]

    def _check_streams(self, words: tuple[bytes, ...]) -> None:
        options = words[: len(words) - 2 * len(streams(words))]
        if self._script_resp is not None and b"BLOCK" in map(bytes.upper, options):
            name = "xreadgroup" if options[0].upper() == b"GROUP" else "xread"
            raise SimpleError(f"ERR {name} command is not allowed with BLOCK option from scripts")
        for key in streams(words):
            item = self._db.get(key)
            if item is not None and not isinstance(item.value, XStream):
                raise SimpleError(WRONGTYPE)

    def sintercard(self, numkeys: int, *words: bytes) -> int:
        """Also of a key that is not there: fakeredis takes it for one of another type."""
        items = [self._db.get(key) for key in words[:numkeys]]
        if any(
            item is not None and not isinstance(item.value, ExpiringMembersSet) for item in items
        ):
            raise SimpleError(WRONGTYPE)
        missing = len(items) == numkeys and None in items
        return 0 if missing else super().sintercard(numkeys, *words)  # type: ignore[misc, no-any-return]

    def expiretime(self, key: CommandItem) -> int:
        """Rounded, not cut off."""
        if not key:
            return -2
        return -1 if key.expireat is None else int(key.expireat * 1000 + 500) // 1000

    def blmove(self, source: bytes, target: bytes, take: bytes, put: bytes, seconds: float) -> Any:
        """That waits: fakeredis' own does not where the source is missing."""

        def attempt(first: bool) -> Any:
            item = None if first else self._db.get(source)
            if item is not None and not isinstance(item.value, list):
                return None  # no list any more
            value = self.run(SUPPORTED_COMMANDS["lmove"], [source, target, take, put])
            if isinstance(value, SimpleError):
                raise value
            return value

        return self._blocking(seconds, attempt)


def _signature(name: str, *fixed: Any, **more: Any) -> Signature:
    return Signature(name, name, fixed, **more)


SIGNATURES: dict[str, Signature] = {
    **SUPPORTED_COMMANDS,
    "blmove": _signature("blmove", bytes, bytes, bytes, bytes, Timeout),
    "incrbyfloat": _signature("incrbyfloat", Key(bytes), bytes),
    "eval_ro": _signature("eval_ro", bytes, Int, repeat=(bytes,)),
    "evalsha_ro": _signature("evalsha_ro", bytes, Int, repeat=(bytes,)),
}


# -- after: what fakeredis returned ----------------------------------------------------

_NULL_ARRAYS = {
    *("blpop", "brpop", "blmpop", "lmpop", "bzpopmin", "bzpopmax", "bzmpop", "zmpop"),
    *("xread", "xreadgroup"),
}
_SETS = {"smembers", "sinter", "sunion", "sdiff", "spop"}
_UNCHANGED = {"sadd", "srem", "hdel", "zrem", "lrem"}
_NO_KEY = "ERR at least 1 input key is needed for "
_WRONG_COUNT = "ERR Wrong number of args calling Redis command from script"
_INVALID_TIME = "ERR invalid expire time in "


def after(name: str, arguments: list[bytes], value: Any) -> Any:
    """The value as Redis has it."""
    if name in ("hrandfield", "zrandmember") and not value:
        return [] if len(arguments) > 1 else None
    if value is None:
        counted = len(arguments) > 1 and name in ("lpop", "rpop")
        return NULL_ARRAY if counted or name in _NULL_ARRAYS else None
    if isinstance(value, SimpleError):
        if value.value.startswith("ERR BUSYGROUP"):
            return RedisError(value.value.removeprefix("ERR "))
        if value.value == _WRONG_COUNT and not name.startswith(("eval", "fcall")):
            return _arity(name)
        if value.value.startswith(_NO_KEY):
            return RedisError(f"{_NO_KEY}'{name}' command")
        if re.fullmatch(_INVALID_TIME + r"\w+", value.value):
            return RedisError(f"{_INVALID_TIME}'{name}' command")
    elif name in _SETS and isinstance(value, list):
        return set(value)
    return value


def is_patient(name: str, error: SimpleError) -> bool:
    """Whether a client goes on waiting where it finds something of another type."""
    return error.value == WRONGTYPE and name not in ("blmove", "brpoplpush")


def is_unchanged(name: str, value: Any) -> bool:
    """Whether a command that says that it changed keys did not."""
    return value == 0 and name in _UNCHANGED
