"""What clients send as numbers and options, read as strictly as Redis reads them.

For the bodies of commands: each function takes bytes of the client, and raises
:class:`~protoserve_redis.values.RedisError` in Redis' words for what is none. Pure
functions, for any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, isinf, isnan
from typing import Any, Final

from protoserve_redis.framing import number
from protoserve_redis.values import INT_MAX, INT_MIN, RedisError, decoded

NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"
NOT_A_FLOAT: Final = "ERR value is not a valid float"
SYNTAX: Final = "ERR syntax error"


def integer(
    text: bytes,
    message: str = NOT_AN_INTEGER,
    *,
    least: int = INT_MIN,
    most: int = INT_MAX,
) -> int:
    """A whole number of 64 bits in its only spelling, as ``string2ll`` of Redis takes it:
    no sign of plus, no zeros or blanks around it.

    ``message`` is the error's text, also where the number is below ``least`` or above
    ``most``.
    """
    value = number(text)
    if value is None or not least <= value <= most:
        raise RedisError(message)
    return value


def real(
    text: bytes,
    message: str = NOT_A_FLOAT,
    *,
    least: float = -inf,
    most: float = inf,
) -> float:
    """A double as ``strtod`` reads it: infinities (``inf``, ``-Infinity``) and hexadecimal
    ones included; no ``nan``, no blanks around it, and nothing too large or too small to be
    told from infinity or zero.

    ``message`` is the error's text, also where the number is below ``least`` or above
    ``most``.
    """
    try:
        digits = text.decode("ascii")
        if "_" in digits or digits.strip() != digits:
            raise ValueError
        lower = digits.lower()
        number = float.fromhex(digits) if "0x" in lower else float(digits)
    except (ValueError, OverflowError):
        raise RedisError(message) from None
    if isnan(number) or (isinf(number) and "i" not in lower) or not least <= number <= most:
        raise RedisError(message)
    if number == 0 and _has_digits(lower):
        raise RedisError(message)
    return number


def _has_digits(text: str) -> bool:
    """Whether a number that was read as zero is none: too small to be a double."""
    if "0x" in text:
        mantissa = text.partition("0x")[2].partition("p")[0]
    else:
        mantissa = text.partition("e")[0]
    return bool(mantissa.strip("+-0."))


def timeout(text: bytes) -> float:
    """The seconds that a blocking command waits; 0 is for ever."""
    wrong = "ERR timeout is not a float or out of range"
    seconds = real(text, wrong)
    if seconds < 0:
        raise RedisError("ERR timeout is negative")
    if seconds * 1000 > INT_MAX:
        raise RedisError("ERR timeout is out of range")
    return seconds


Reader = Callable[[bytes], Any]
"""What turns an option's word into its value: ``integer``, ``real``, ``bytes``, ..."""


def options(
    words: Iterable[bytes],
    *flags: str,
    exclusive: Sequence[str] = (),
    **values: Reader | Sequence[Reader],
) -> dict[str, Any]:
    """The options at the end of a command, by their names in capitals.

    ``flags`` are single words; ``values`` are followed by a word each, or by as many as a
    sequence names, and say how those are read. Case does not matter to clients. What was
    not given is not in the dictionary; a flag's value is True::

        found = options(words, "NX", "XX", EX=integer, LIMIT=(integer, integer),
                        exclusive=("NX XX",))
        if "NX" in found: ...
        seconds = found.get("EX")

    ``exclusive`` names options that exclude each other, a group a string. Unknown words,
    options that are given twice or lack their words, and two of a group are
    ``ERR syntax error``. Raises ``TypeError`` where it is called in a way that no client
    could use.
    """
    if isinstance(exclusive, str):
        raise TypeError(f"exclusive={exclusive!r}: expected groups, as in ({exclusive!r},)")
    for given in (*flags, *values):
        if given != given.upper():
            raise TypeError(f"the option {given!r} must be given in capitals: {given.upper()!r}")
    found: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name = word.upper().decode("latin-1")
        if name in found:
            raise RedisError(SYNTAX)
        if name in flags:
            found[name] = True
            continue
        reader = values.get(name)
        if reader is None:
            raise RedisError(SYNTAX)
        try:
            if callable(reader):
                found[name] = reader(next(rest))
            else:
                # All its words first: one that is missing is what is wrong.
                taken = [next(rest) for _ in reader]
                found[name] = tuple(r(w) for r, w in zip(reader, taken, strict=True))
        except StopIteration:
            raise RedisError(SYNTAX) from None
    for group in exclusive:
        if sum(name in found for name in group.split()) > 1:
            raise RedisError(SYNTAX)
    return found


def text_of(data: bytes, limit: int | None = None) -> str:
    """An argument as an error's text quotes it, and clients get it back: up to a NUL, as C
    would print it, and at most ``limit`` bytes."""
    return decoded(data.partition(b"\0")[0][:limit])
