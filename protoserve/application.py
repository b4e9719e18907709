"""The application behind a server: what may be its handler, and what it does at the
server's start and stop."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protoserve.errors import ConfigError
from protoserve.log import logger

if TYPE_CHECKING:
    from protoserve.kernel.engine import Engine

Hook: TypeAlias = Callable[[Any], object]
"""Called with the server; a function, or a coroutine function."""

_HANDLER: Final = (
    "a handler is a function, or a coroutine function, that takes the task: process(task)"
)


def look_at_handler(process: Callable[[Any], object]) -> None:
    """Raise ``ConfigError`` for what is no handler, or would fail at its first request."""
    if not callable(process):
        raise ConfigError(f"process must be callable, not {type(process).__name__}")
    if inspect.isclass(process):
        raise ConfigError(
            f"process is the class {process.__name__}, and would make an object of each "
            f"request; pass an object of it, with a method __call__(self, task). {_HANDLER}"
        )
    called = getattr(process, "__call__", None)  # noqa: B004 - an object with such a method
    if any(
        inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        for function in (process, called)
    ):
        raise ConfigError(
            "process is a generator function, whose body would never run; let a function "
            f"assign the generator to the body of task.resp. {_HANDLER}"
        )
    try:
        signature = inspect.signature(process)
    except (ValueError, TypeError):
        return  # some functions in C have none to look at
    try:
        signature.bind(None)
    except TypeError:
        needed = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        kind = {2: "a WSGI", 3: "an ASGI"}.get(len(needed))
        hint = f"; it looks like {kind} application, which is no handler" if kind else ""
        raise ConfigError(
            f"process takes ({', '.join(signature.parameters)}){hint}. {_HANDLER}"
        ) from None


def is_asynchronous(process: Callable[[Any], object]) -> bool:
    """Whether its handlers are coroutines, and belong in an asyncio loop."""
    return inspect.iscoroutinefunction(process) or inspect.iscoroutinefunction(
        getattr(process, "__call__", None)  # noqa: B004 - an object with an async __call__
    )


def look_at_hook(name: str, hook: object) -> None:
    """Raise ``ConfigError`` for what cannot be called with the server."""
    if hook is None:
        return
    if not callable(hook):
        raise ConfigError(f"{name} must be callable, or None, not {type(hook).__name__}")
    try:
        inspect.signature(hook).bind(None)
    except TypeError:
        raise ConfigError(f"{name} is called with the server: {name}(server)") from None
    except ValueError:
        return  # a function in C that has no signature to look at


def run_in_engine(engine: Engine, coro: Coroutine[Any, Any, object]) -> None:
    """Run ``coro`` in the engine's loop, and wait for its end, in another thread than the
    loop's. Raises what it raises."""
    ended = threading.Event()
    outcome: list[BaseException | None] = []

    def end(error: BaseException | None) -> None:
        outcome.append(error)
        ended.set()

    cancel = engine.run_coroutine(coro, end)
    try:
        ended.wait()
    except BaseException:  # a signal, in the main thread
        cancel()
        raise
    if outcome[0] is not None:
        raise outcome[0]


class StopHook:
    """The hook of one run's end: called once, when everything else has ended.

    ``begin`` may be called by several threads; the server's condition does not guard this.
    """

    def __init__(self, hook: Hook, server: Any, over: Callable[[], object]) -> None:
        self._hook = hook
        self._server = server
        self._over = over
        self._lock = threading.Lock()
        self._begun = False
        self._cancel: Callable[[], object] | None = None

    def begin(self, engine: Engine, begins: Callable[[], object]) -> bool:
        """Call the hook, after ``begins()``; ``over()`` is called when it has ended. What it
        raises is logged. False, and nothing happens, when that was done before."""
        with self._lock:
            if self._begun:
                return False
            self._begun = True
        begins()
        try:
            outcome = self._hook(self._server)
            if isinstance(outcome, Coroutine):
                self._cancel = engine.run_coroutine(outcome, self._ended)
                return True
        except BaseException:
            logger.exception("on_stop of %r raised", self._server)
        self._over()
        return True

    def cancel(self) -> None:
        """It takes too long; a function cannot be ended."""
        if self._cancel is not None:
            self._cancel()

    def _ended(self, error: BaseException | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            logger.warning("on_stop of %r was cancelled: it took too long", self._server)
        elif error is not None:
            logger.error("on_stop of %r raised", self._server, exc_info=error)
        self._over()
