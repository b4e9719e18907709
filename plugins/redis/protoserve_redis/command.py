"""Command: one registered command, checked when it is made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from protoserve import ConfigError
from protoserve_redis.dispatch import Dispatched

Handler = Callable[..., Any]
"""``handler(task, *arguments)``: bytes in, a value out; plain or ``async``."""

FindKeys = Callable[[list[bytes]], list[bytes]]
"""Returns the keys among the words of a command line, for commands whose keys are not all
at places that are the same in every line."""

Changes = Callable[[list[bytes]], object]
"""Whether a command line changes anything, or may."""

FLAGS: Final = (
    "write", "readonly", "denyoom", "module", "admin", "pubsub", "noscript", "blocking",
    "loading", "stale", "skip_monitor", "skip_slowlog", "asking", "fast", "no_auth",
    "may_replicate", "no_mandatory_keys", "protected", "no_async_loading", "no_multi",
    "allow_busy", "movablekeys",
)  # fmt: skip
"""The flags that a command may carry, in the order in which COMMAND tells them (Redis 7)."""

UNLIMITED: Final = 1 << 61
"""Words of a command that takes any number."""

_NAME: Final = re.compile(r"[!-{}~]+(?:\|[!-{}~]+)?\Z")  # what can be typed, and one bar


class Command(Dispatched):
    """A registered command. ``name`` is in upper case, a subcommand's ``CLIENT|ID``.

    ``arity`` counts the name, as Redis counts; negative is at least. None takes it from the
    function's parameters. Where those take fewer words than ``arity`` allows, the command
    does. Raises :class:`~protoserve.ConfigError` for what cannot work.
    """

    __slots__ = (
        "arity",
        "changes",
        "complexity",
        "find_keys",
        "flags",
        "full_name",
        "group",
        "keys",
        "name",
        "since",
        "skip",
        "summary",
    )

    def __init__(
        self,
        name: bytes | str,
        function: Handler,
        arity: int | None = None,
        flags: Iterable[str] = (),
        keys: tuple[int, int, int] | FindKeys = (0, 0, 0),
        group: str = "generic",
        summary: str = "",
        since: str = "1.0.0",
        complexity: str = "",
        changes: Changes | None = None,
    ) -> None:
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not _NAME.match(text):
            raise ConfigError(
                f"a command's name {name!r}: expected letters, digits and signs of ASCII "
                "without blanks, and 'CONTAINER|NAME' for a subcommand"
            )
        self.name = text.upper().encode()
        self.full_name = text.lower()
        if not callable(function):
            raise ConfigError(f"command {text}: expected a function, not {function!r}")
        if generates(function):
            raise ConfigError(
                f"command {text}: its function is a generator, which does nothing when it is "
                "called: return a list instead of yielding its items"
            )
        for what, value in (
            ("group", group),
            ("summary", summary),
            ("since", since),
            ("complexity", complexity),
        ):
            if not isinstance(value, str):
                raise ConfigError(f"command {text}: {what}={value!r}: expected text")
        self.function = function
        self.skip = 2 if "|" in text else 1  # words before the arguments
        self.arity, self.least, self.most = _arity(text, function, arity, self.skip)
        self.find_keys: FindKeys | None = None
        self.flags = _flags(text, flags)
        if callable(keys):
            check_hook(f"command {text}: keys", keys, 1)
            self.find_keys = keys
            self.flags = _flags(text, (*self.flags, "movablekeys"))
            keys = (0, 0, 0)
        self.keys = _keys(text, keys)
        if self.keys[0] >= self.most:
            raise ConfigError(
                f"command {text}: keys={keys!r}: its line has {self.most} words at most, the "
                f"name included, and none at place {self.keys[0]}"
            )
        self.group = group
        self.summary = summary
        self.since = since
        self.complexity = complexity
        if changes is not None:
            check_hook(f"command {text}: changes", changes, 1)
        self.changes = changes
        self.subcommands = None

    def __repr__(self) -> str:
        return f"<Command {self.full_name} arity={self.arity}>"

    def keys_of(self, args: list[bytes]) -> list[bytes]:
        """The keys among the words of a command line. Raises what a function of ``keys``
        raises, and ``TypeError`` where it returns anything but keys."""
        if self.find_keys is not None:
            keys = [*self.find_keys(args)]
            if not all(isinstance(key, bytes) for key in keys):
                raise TypeError(f"keys of {self.full_name} must be a list of bytes, not {keys!r}")
            return keys
        first, last, step = self.keys
        if not first:
            return []
        end = last if last >= 0 else len(args) + last
        return args[first : end + 1 : step]

    def may_change(self, args: list[bytes]) -> bool:
        """Whether a command line has to wait while CLIENT PAUSE lets nothing change."""
        if "write" not in self.flags and "may_replicate" not in self.flags:
            return False
        return self.changes is None or bool(self.changes(args))

    def has_flag(self, flag: str) -> bool:
        """Whether the command carries a flag."""
        return flag in self.flags


def check_hook(what: str, hook: object, arguments: int, *, later: bool = False) -> None:
    """Raise ``ConfigError`` for what is no function that can be called with so many
    arguments, or does nothing when it is called, as an ``async`` one, unless ``later``."""
    if not callable(hook):
        raise ConfigError(f"{what} takes a function, not {hook!r}")
    if generates(hook) or (waits(hook) and not later):
        kind = "a generator" if generates(hook) else "an async function"
        raise ConfigError(
            f"{what} takes a plain function, and {hook!r} is {kind}, which does nothing when "
            "it is called"
        )
    try:
        signature = inspect.signature(hook, follow_wrapped=False)
    except (TypeError, ValueError):  # of some functions in C nothing is known
        return
    try:
        signature.bind(*range(arguments))
    except TypeError as error:
        raise ConfigError(
            f"{what} takes a function of {arguments} arguments, and {hook!r} is none: {error}"
        ) from None


def waits(function: object) -> bool:
    """Whether a function is ``async``, or an object that is called so."""
    return any(map(inspect.iscoroutinefunction, _called(function)))


def generates(function: object) -> bool:
    """Whether a function is a generator, plain or ``async``, or an object called so."""
    return any(
        inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in _called(function)
    )


def _called(function: object) -> tuple[object, object]:
    return function, getattr(type(function), "__call__", None)  # noqa: B004 - what it runs


def _arity(name: str, function: Handler, arity: int | None, skip: int) -> tuple[int, int, int]:
    """The arity as COMMAND tells it, and the least and the most words of a line."""
    least, most = _words(name, function, skip)
    if arity is None:
        return (least if least == most else -least), least, most
    if isinstance(arity, bool) or not isinstance(arity, int) or arity == 0:
        raise ConfigError(
            f"command {name}: arity={arity!r}: expected a whole number; it counts the name, "
            "so it cannot be 0, and is negative for 'at least'"
        )
    wanted = abs(arity)
    if wanted < skip:
        raise ConfigError(f"command {name}: arity={arity} is less than the words of its name")
    if wanted < least or wanted > most:
        limits = f"{least}" if least == most else f"{least} to {most}"
        if most == UNLIMITED:
            limits = f"{least} or more"
        raise ConfigError(
            f"command {name}: arity={arity} allows {wanted} words, the name included, and "
            f"{getattr(function, '__name__', function)!s}() takes {limits}, the task not counted"
        )
    return arity, wanted, arity if arity > 0 else most


def _words(name: str, function: Handler, skip: int) -> tuple[int, int]:
    """The least and the most words of a line that a function can be called with."""
    try:
        # What is called counts, not what a wrapper says it looks like.
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # of some functions in C nothing is known
        return skip, UNLIMITED
    least = most = skip - 1  # the first parameter is the task
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            most = UNLIMITED
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise ConfigError(
                    f"command {name}: nobody gives its function the keyword {parameter.name!r}"
                )
        elif parameter.kind is not parameter.VAR_KEYWORD:
            most += most != UNLIMITED
            least += parameter.default is parameter.empty
    if most < skip:
        raise ConfigError(f"command {name}: its function must take the task first")
    return max(least, skip), most


def _flags(name: str, flags: Iterable[str]) -> tuple[str, ...]:
    try:
        given = None if isinstance(flags, (str, bytes)) else {*flags}
    except TypeError:  # none at all, or something that is no word
        given = None
    if given is None:
        raise ConfigError(
            f"command {name}: flags={flags!r}: expected several words, as in ('write', 'fast')"
        )
    if unknown := [flag for flag in given if flag not in FLAGS]:
        raise ConfigError(
            f"command {name}: unknown flag {unknown[0]!r}; there are {', '.join(FLAGS)}"
        )
    return tuple(flag for flag in FLAGS if flag in given)


def _keys(name: str, keys: tuple[int, int, int]) -> tuple[int, int, int]:
    try:
        first, last, step = keys
        sound = all(type(place) is int for place in keys)
    except (TypeError, ValueError):
        sound = False
    if sound and (first, last) == (0, 0):
        return (0, 0, 0)
    if not sound or first < 1 or step < 1 or 0 <= last < first:
        raise ConfigError(
            f"command {name}: keys={keys!r}: expected the places of the first and the last key "
            "(negative: from the end) and the step, as in (1, 1, 1), or (0, 0, 0) for none"
        )
    return (first, last, step)
