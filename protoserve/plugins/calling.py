"""Calling a hook: one that blocks is left behind, and what it registers is looked at."""

from __future__ import annotations

import contextvars
import functools
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Generic, TypeVar

import pluggy

from protoserve.errors import PluginError
from protoserve.plugins.entries import UnusableError, impls_of
from protoserve.plugins.places import last_place, place_of

logger = logging.getLogger("protoserve")

_QUIET: Final = 1.0
"""Seconds that a hook is waited for without a word."""

T = TypeVar("T")


def call_hook(
    manager: pluggy.PluginManager,
    name: str,
    patience: float,
    registration: Registration[Any] | None = None,
    **arguments: object,
) -> None:
    """Call a hook, with ``registration`` as its ``register`` if it has one. Raises
    :class:`UnusableError` when it blocks or returns something, and what it raises."""
    impls = impls_of(manager, name)
    if not impls:
        return
    hook = getattr(manager.hook, name)
    try:
        returned = watched(functools.partial(hook, **arguments), patience, name)
    finally:
        if registration is not None:
            registration.over = True
    for value in returned:
        close = getattr(value, "close", None)
        if callable(close):
            close()  # a coroutine that nobody awaits would warn
        expected = "None" if registration is None else "calls of register(...)"
        raise UnusableError(
            f"the hook returned {type(value).__name__}{place_of(impls[0].function)}; "
            f"expected {expected}",
            f"let {name} be a plain function that returns nothing",
        )
    if registration is not None and registration.fault is not None:
        raise registration.fault


class Registration(Generic[T]):
    """The ``register`` of one call of a hook."""

    def __init__(self, what: str, look: Callable[[object, list[T]], None]) -> None:
        self.found: list[T] = []
        self.fault: Exception | None = None
        self.over = False
        self._what = what
        self._look = look

    def __call__(self, item: T) -> None:
        if self.over:
            raise PluginError(
                f"register() was called after the hook had returned; its {self._what} is not used"
            )
        try:
            self._look(item, self.found)
        except Exception as error:
            # Kept: a plugin that catches the exception is not to be registered in part.
            self.fault = error
            raise
        self.found.append(item)


def watched(call: Callable[[], T], patience: float, what: str) -> T:
    """What ``call`` returns, called in a thread of its own: one that blocks is left behind.
    Raises what it raises, and :class:`UnusableError` after ``patience`` seconds; before that it
    says in the log what is waited for."""
    outcome: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="protoserve-plugin", daemon=True
    )
    thread.start()
    thread.join(min(patience, _QUIET))
    if thread.is_alive() and patience > _QUIET:
        logger.warning(
            "%s still runs%s; waiting for it, up to %g seconds",
            what,
            _blocked_at(thread),
            patience,
        )
        thread.join(patience - _QUIET)
    if outcome:
        return outcome[0]
    if raised:
        raise raised[0]
    where = _blocked_at(thread)
    raise UnusableError(
        f"{what} still runs after {patience:g} seconds{where}",
        "what it waits for there does not come: do that later, in a thread of the plugin's own",
    )


def _blocked_at(thread: threading.Thread) -> str:
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return ""
    return last_place([(f.filename, f.lineno or 0) for f in traceback.extract_stack(frame)])
