"""The application behind a server: what may be its handler, and what it does at the
server's start and stop."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protoserve.errors import ConfigError, UsageError
from protoserve.kernel.current import CURRENT
from protoserve.kernel.joining import Joiner
from protoserve.log import logger

if TYPE_CHECKING:
    from protoserve.kernel.engine import Engine
    from protoserve.kernel.service import CommService

_SIGNAL_INTERVAL: Final = 0.5
"""Seconds after which a thread that waits looks whether there was a signal."""

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


class _HookTask:
    """A hook's coroutine in the engine's loop. Any thread; cancelled before it runs, it is
    cancelled when it does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next two
        self._cancel: Callable[[], object] | None = None
        self.canceled = False

    def run(
        self,
        engine: Engine,
        coro: Coroutine[Any, Any, object],
        ended: Callable[[BaseException | None], object],
        server: CommService,
    ) -> None:
        """Run it as something that ``server`` waits for; see :meth:`Engine.run_coroutine`."""
        try:
            if not engine.alive:
                raise UsageError("a hook cannot run: the loop of the server is closed")
            cancel = engine.run_coroutine(coro, ended, server)
        except BaseException:
            coro.close()
            raise
        with self._lock:
            self._cancel = cancel
            canceled = self.canceled
        if canceled:
            cancel()

    def cancel(self) -> None:
        with self._lock:
            self.canceled = True
            cancel = self._cancel
        if cancel is not None:
            cancel()


class StartHook:
    """An on_start that is a coroutine, in one start. It runs where handlers do that are
    coroutines, as something that ``server`` waits for."""

    def __init__(self, server: CommService) -> None:
        self._server = server
        self._outcome: Future[BaseException | None] = Future()
        self._outcome.set_running_or_notify_cancel()  # who waits, and is cancelled, ends nothing
        self._task = _HookTask()
        self.awaited = False
        """Whether a coroutine waits, or waited, and raises what it raises."""

    def begin(
        self,
        engine: Engine,
        coro: Coroutine[Any, Any, object],
        then: Callable[[BaseException | None], BaseException | None],
    ) -> None:
        """Run ``coro``, and then ``then(error)`` in the loop, which returns what those who wait
        are to raise. It counts as alive meanwhile."""

        def ended(error: BaseException | None) -> None:
            try:
                self._outcome.set_result(then(error))
            finally:
                self._server.release()

        self._server.retain()
        try:
            self._task.run(engine, coro, ended, self._server)
        except BaseException:
            self._server.release()
            raise

    def cancel(self) -> None:
        """It takes too long. Any thread."""
        self._task.cancel()

    def wait(self) -> None:
        """Wait for its end, in another thread than the loop's. Raises what it raises."""
        try:
            # A signal that arrives just before the thread blocks does not wake it.
            while not self._outcome.done():
                wait([self._outcome], _SIGNAL_INTERVAL)
        except BaseException:  # a signal, in the main thread
            self.cancel()
            raise
        self._raise(self._outcome.result())

    async def until_over(self) -> None:
        """The same for coroutines of whichever loop; they end it when they are cancelled."""
        self.awaited = True
        try:
            error = await asyncio.wrap_future(self._outcome)
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise(error)

    def _raise(self, error: BaseException | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            # Nobody has cancelled the one who waits.
            why = "the server was stopped while it ran" if self._task.canceled else "not by us"
            raise UsageError(f"there was no start: on_start was cancelled ({why})") from error
        if error is not None:
            raise error


class StopHook:
    """The hook of one run's end: begun once, when everything else has ended."""

    def __init__(self, hook: Hook, server: CommService) -> None:
        self._hook = hook
        self._server = server
        self._task = _HookTask()
        self._thread: threading.Thread | None = None
        self._joiner = Joiner()

    def begin(self, engine: Engine, over: Callable[[], object]) -> None:
        """Call the hook, a function in a thread of its own: nobody knows how long it takes,
        and the thread here may be anybody's. ``over()`` is called when it has ended; what it
        raises is logged."""
        if is_asynchronous(self._hook):
            self._call(engine, over)
            return
        thread = threading.Thread(
            target=self._call, args=(engine, over), name="protoserve-on-stop", daemon=True
        )
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left; rather here than not at all
            self._thread = None
            self._call(engine, over)

    def _call(self, engine: Engine, over: Callable[[], object]) -> None:
        with CURRENT.working_for(self._server):
            try:
                outcome = self._hook(self._server)
                if isinstance(outcome, Coroutine):
                    self._run(engine, outcome, over)
                    return
            except BaseException:
                logger.exception("on_stop of %r raised", self._server)
        over()

    def _run(
        self, engine: Engine, coro: Coroutine[Any, Any, object], over: Callable[[], object]
    ) -> None:
        def ended(error: BaseException | None) -> None:
            if isinstance(error, asyncio.CancelledError):
                logger.warning(
                    "on_stop of %r was cancelled: the stop did not wait any longer", self._server
                )
            elif error is not None:
                logger.error("on_stop of %r raised", self._server, exc_info=error)
            over()

        self._task.run(engine, coro, ended, self._server)

    def cancel(self) -> None:
        """It takes too long; a function cannot be ended. Any thread."""
        self._task.cancel()

    def join(self, timeout: float | None) -> None:
        """Wait until the thread is gone in which it ran. Any other thread."""
        if self._thread is not None:
            self._joiner.join([self._thread], timeout)


class SharedHooks:
    """The hooks of one application behind several servers, which start one after the other:
    it starts with the first of them, and stops when the last has ended."""

    def __init__(self, on_start: Hook | None, on_stop: Hook | None) -> None:
        self._start = on_start
        self._stop = on_stop
        self._lock = threading.Lock()  # guards the next two
        self._running = 0
        self._first: Any = None

    def on_start(self, server: Any) -> object:
        """Of each server."""
        with self._lock:
            self._running += 1
            if self._running > 1:
                return None
            self._first = server
        return None if self._start is None else self._start(server)

    def on_stop(self, server: Any) -> object:
        """Of each server. The application's is called with the one that it was started with."""
        with self._lock:
            self._running -= 1
            if self._running:
                return None
            first = self._first
        return None if self._stop is None else self._stop(first)
