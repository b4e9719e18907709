"""Engines: a poller, its communicator, and who drives them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

from protoserve.kernel.communicator import Communicator
from protoserve.kernel.entry import CommConnEntry
from protoserve.kernel.handing import keeps_its_thread
from protoserve.kernel.leader_followers import LeaderFollowers
from protoserve.kernel.poller import Callback, Poller
from protoserve.log import logger

if TYPE_CHECKING:
    from protoserve.kernel.readiness import Readiness
    from protoserve.kernel.scheduler import CommScheduler
    from protoserve.kernel.service import CommService


class NoThreadError(RuntimeError):
    """The system refuses one more thread."""


def log_callback_error() -> None:
    """Called in an ``except`` block: a callback of the poller raised."""
    logger.exception("an event's callback raised; the server goes on")


class Source(Protocol):
    """Where the connections of a server come from. Any thread."""

    def start(self) -> None:
        """Begin to give connections to the service."""

    def close(self, patience: float = -1, *, drain: bool = False) -> bool:
        """Give no more, but for those of ``drain``; see
        :meth:`~protoserve.kernel.listener.Listener.close`."""

    def close_copy(self) -> None:
        """In a forked process: close its copies."""

    def finish(self, ended: Callable[[], object]) -> None:
        """After ``close``: attach what is left, and call ``ended()``."""


class Engine(ABC):
    """What runs while somebody holds it: see :meth:`CommScheduler.acquire`.

    ``holds`` is the scheduler's, guarded by its lock. Everything may be called from any
    thread.
    """

    def __init__(
        self,
        scheduler: CommScheduler,
        clock: Callable[[], float],
        readiness: Readiness | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.poller = Poller(readiness, clock)
        self.communicator = Communicator(self.poller, self)
        self.holds = 0

    @property
    def alive(self) -> bool:
        """Whether what is posted to it will be called. Any thread."""
        return True

    def release(self) -> None:
        """Give back one hold; the last ends the engine. Never blocks."""
        self.scheduler.release(self)

    def want_threads(self, threads: int) -> None:
        """A service wants so many handler threads."""

    def submit(self, queue: str, job: Callable[[], object]) -> None:
        """Run ``job()`` where functions that compute run; see :meth:`Executor.submit`."""
        self.scheduler.executor.submit(queue, job)

    def block(self, there: threading.Event) -> None:
        """Wait for ``there``, in a handler that is a function. Raises
        :class:`~protoserve.errors.UsageError` where nobody else could set it."""
        there.wait()

    def defer(self, callback: Callback, argument: Any) -> bool:
        """Instead of user code that may block: True when all handler threads are busy and
        ``callback(argument, 0)`` is called by the first that is free. Any thread."""
        return False

    def lend(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the calling thread waits for work of this engine. Raises
        :class:`~protoserve.errors.UsageError` where it would wait for itself."""
        return contextlib.nullcontext()

    @abstractmethod
    def start(self) -> None:
        """Begin to work. Raises :class:`NoThreadError` when the system has no thread for
        it, ``OSError`` when it has no descriptors."""

    def abandon(self) -> None:
        """After a start that raised: end what had begun, and give back the descriptors."""
        self.poller.close()

    @abstractmethod
    def stop(self, timeout: float | None) -> bool:
        """Begin to end, and wait for it, except in a thread of the engine's own. Returns
        whether it has ended."""

    @abstractmethod
    def owns(self, ident: int) -> bool:
        """Whether the thread with this identifier runs handlers of this engine."""

    @abstractmethod
    def call(self, function: Callable[[], object]) -> None:
        """Have ``function()`` called where handlers run, soon."""

    @abstractmethod
    def call_from_signal(self, function: Callable[[], object]) -> bool:
        """The same, for signal handlers: without a lock, and never at once. False when that
        is impossible, since the engine's loop is closed. The caller holds the engine."""

    def forget_in_child(self) -> None:
        """In a process that was just forked, where nothing of this runs: a handler that
        returns there must not go on to poll what the two processes share."""
        self.poller.close_copy()

    def service_here(self) -> CommService | None:
        """The service for which the current coroutine runs, as (a part of) a request; not a
        task that one of those made. In a thread of the engine's."""
        return None

    def run_first_step(
        self,
        coro: Coroutine[Any, Any, object],
        ended: Callable[[BaseException | None], object],
        service: CommService,
        variables: Context,
    ) -> Callable[[], object] | None:
        """Run ``coro``, in ``variables``, up to its first wait, in a handler of an engine of
        coroutines.

        ``None`` when it ended. Otherwise ``ended`` is called in the loop with what it
        raised later, and what is returned cancels it there. Raises what it raises before
        it waits.
        """
        raise AssertionError("handlers that are coroutines run in a loop")

    @abstractmethod
    def run_coroutine(
        self,
        coro: Coroutine[Any, Any, object],
        ended: Callable[[BaseException | None], object],
        service: CommService | None = None,
    ) -> Callable[[], object]:
        """Run ``coro`` as a task of an asyncio loop and call ``ended`` there with what it
        raised. ``service`` waits for it. Returns a function that cancels it."""


class ThreadEngine(Engine):
    """Driven by handler threads, as leader and followers."""

    def __init__(self, scheduler: CommScheduler, clock: Callable[[], float], threads: int) -> None:
        super().__init__(scheduler, clock)
        self._wanted = 0
        self._threads = self.communicator.threads = LeaderFollowers(
            self.poller,
            threads=threads,
            on_blocked=self._on_blocked,
            on_exhausted=scheduler.on_exhausted,
            on_refused=scheduler.on_refused,
            on_error=log_callback_error,
        )

    def want_threads(self, threads: int) -> None:
        # One pool for all: as many threads as the most demanding server asks for.
        self._wanted = max(self._wanted, threads)
        self._threads.grow(self._wanted)

    def defer(self, callback: Callback, argument: Any) -> bool:
        return self._threads.full and self._threads.defer(callback, argument)

    def lend(self) -> contextlib.AbstractContextManager[None]:
        return self._threads.lend()

    def start(self) -> None:
        try:
            self._threads.start()
        except RuntimeError as error:
            raise NoThreadError(str(error)) from error

    def stop(self, timeout: float | None) -> bool:
        return self._threads.stop(timeout)

    def forget_in_child(self) -> None:
        self._threads.forget_in_child()

    def abandon(self) -> None:
        self._threads.stop()  # the leader works already where only the monitor was refused
        super().abandon()

    def owns(self, ident: int) -> bool:
        return self._threads.owns(ident)

    def call(self, function: Callable[[], object]) -> None:
        self.poller.post(self._call, function)

    def _call(self, function: Callable[[], object], _: int) -> None:
        if not self.defer(self._call, function):
            function()

    def call_from_signal(self, function: Callable[[], object]) -> bool:
        # No handler: it need not wait for a thread that may run one.
        self.poller.post_from_signal(self._call_at_once, function)
        return True

    @staticmethod
    def _call_at_once(function: Callable[[], object], _: int) -> None:
        function()

    def run_coroutine(
        self,
        coro: Coroutine[Any, Any, object],
        ended: Callable[[BaseException | None], object],
        service: CommService | None = None,
    ) -> Callable[[], object]:
        return self.scheduler.run_coroutine(coro, ended, service)

    def _on_blocked(self, argument: Any, waits: bool) -> None:
        self.communicator.corked.send()
        if isinstance(argument, CommConnEntry):
            keeps_its_thread(argument, waits)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes a loop of our own: uvloop's, where that is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
