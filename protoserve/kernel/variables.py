"""Context variables: each request has a context of its own, wherever its work runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any


class _Call:
    """A call that knows whether it was made."""

    __slots__ = ("_args", "_function", "made")

    def __init__(self, function: Callable[..., Any], args: tuple[object, ...]) -> None:
        self._function = function
        self._args = args
        self.made = False

    def make(self) -> Any:
        self.made = True
        return self._function(*self._args)


def run_in(context: Context, function: Callable[..., Any], *args: object) -> Any:
    """Call ``function(*args)`` in ``context``; in a copy of it where the context is in use
    at the moment, by the caller itself or on another thread. Any thread."""
    call = _Call(function, args)
    try:
        return context.run(call.make)
    except RuntimeError:
        if call.made:
            raise
    return context.copy().run(function, *args)
