"""What can be seen of a message: to compare those whose class cannot."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Final

from protoserve.kernel.incoming import IncomingStream
from protoserve.testing.conformance.error import ConformanceError

_DEEPEST: Final = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """An object, as its class's name and its public state."""

    kind: str
    parts: tuple[tuple[Any, Any], ...]

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.parts)})"


class Judged:
    """A message, compared by the caller's function."""

    __slots__ = ("message", "same")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, message: Any, same: Callable[[Any, Any], bool]) -> None:
        self.message = message
        self.same = same

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Judged) and bool(self.same(self.message, other.message))

    def __repr__(self) -> str:
        return repr(self.message)


def seen(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Something that compares equal where nobody can tell two values apart. ``above``: the ids
    of what it is in."""
    if value is None or isinstance(value, (int, str, bytes, Enum)):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (float, complex)):
        return repr(value)  # not a number equals nothing
    if isinstance(value, IncomingStream):
        return "a body that streams in"
    kind = type(value)
    if len(above) > _DEEPEST or isinstance(value, type) or inspect.isroutine(value):
        return kind.__qualname__
    if id(value) in above:  # such as the parent of a child
        return f"{kind.__qualname__}, {above[::-1].index(id(value)) + 1} above"
    above = (*above, id(value))
    if isinstance(value, Mapping):
        pairs = ((seen(k, above), seen(v, above)) for k, v in value.items())
        return Seen(kind.__qualname__, tuple(pairs))
    if isinstance(value, (list, tuple, deque)):
        return [seen(item, above) for item in value]
    if isinstance(value, Set):
        return sorted((seen(item, above) for item in value), key=repr)
    if is_dataclass(value):
        parts = ((f.name, seen(getattr(value, f.name, None), above)) for f in fields(value))
        return Seen(kind.__qualname__, tuple(parts))
    if _defines(kind, "__eq__"):
        return value
    return _seen_object(value, above)


def _seen_object(value: Any, above: tuple[int, ...]) -> Any:
    kind = type(value)
    names = dict.fromkeys(_names(kind))
    names.update(dict.fromkeys(name for name in getattr(value, "__dict__", ()) if name[0] != "_"))
    parts: list[tuple[str, Any]] = []
    for name in names:
        try:
            parts.append((name, seen(getattr(value, name), above)))
        except ConformanceError:
            raise
        except Exception as error:  # of a property; or nothing is there
            parts.append((name, f"raises {type(error).__name__}"))
    if parts:
        return Seen(kind.__qualname__, tuple(parts))
    if _defines(kind, "__repr__"):
        return repr(value)
    if len(above) > 1:
        return kind.__qualname__
    raise ConformanceError(
        f"two requests of class {kind.__qualname__} cannot be compared: it has no equality and "
        "nothing public",
        remedy="Give check_protocol(..., same=f), where f(a, b) says whether two are the same.",
    )


def _defines(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__[:-1])


def _names(kind: type) -> tuple[str, ...]:
    """The public slots and properties of a class."""
    names: list[str] = []
    for base in kind.__mro__[-2::-1]:
        slots = base.__dict__.get("__slots__", ())
        names += (slots,) if isinstance(slots, str) else slots
        names += (name for name, member in vars(base).items() if isinstance(member, property))
    return tuple(name for name in dict.fromkeys(names) if not name.startswith("_"))
