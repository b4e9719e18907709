"""CommScheduler: the process-wide owner of poller, communicator and handler threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from protoserve.events import HandlersBlocked, log_event
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.leader_followers import LeaderFollowers
from protoserve.kernel.poller import Poller
from protoserve.kernel.session import CommService, CommSession

logger = logging.getLogger("protoserve")


class _Engine:
    """What runs while at least one service is bound."""

    def __init__(self, scheduler: CommScheduler, threads: int, clock: Callable[[], float]) -> None:
        self.poller = Poller(clock=clock)
        self.communicator = Communicator(self.poller)
        self.served: list[CommService] = []
        self.threads = LeaderFollowers(
            self.poller,
            threads=threads,
            on_blocked=self._on_blocked,
            on_exhausted=scheduler._on_exhausted,
            on_error=self._on_error,
        )

    def _on_blocked(self, argument: Any) -> None:
        if isinstance(argument, CommConnection):
            self.communicator.on_blocked(argument)

    @staticmethod
    def _on_error() -> None:
        logger.exception("an event's callback raised; the server goes on")


class CommScheduler:
    """Shared by all servers of a process (the article's ``CommScheduler``).

    Threads and descriptors exist while a service is bound. All methods may be called
    from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._engine: _Engine | None = None
        self._ending: list[_Engine] = []
        self._services: list[CommService] = []

    @property
    def running(self) -> bool:
        """Whether a service is bound, or threads of one that ended are not joined yet."""
        with self._lock:
            return self._engine is not None or bool(self._ending)

    def bind(self, service: CommService) -> Communicator:
        """Start to serve ``service``; the first one starts the threads."""
        with self._lock:
            threads = service.params.handler_threads
            if self._engine is None:
                engine = _Engine(self, threads, self._clock)
                try:
                    engine.threads.start()
                except BaseException:
                    engine.poller.close()
                    raise
                self._engine = engine
            # One pool for all: as many threads as the most demanding server asks for.
            pool = self._engine.threads
            pool.max_threads = max(pool.max_threads, threads)
            self._services.append(service)
            self._engine.served.append(service)
            return self._engine.communicator

    def unbind(self, service: CommService) -> None:
        """``service`` has ended; the last one ends the threads. Never blocks."""
        with self._lock:
            if service not in self._services:
                return
            self._services.remove(service)
            if self._services or self._engine is None:
                return
            engine, self._engine = self._engine, None
            self._ending.append(engine)
        engine.threads.stop(timeout=0)

    def join(self, timeout: float | None, service: CommService | None = None) -> bool:
        """Wait until the threads of engines that ended are gone; with ``service``, only
        those that served it last, so that nobody waits for the handlers of others.
        False when some still run a handler after ``timeout`` seconds."""
        with self._lock:
            ending = list(self._ending)
            if service is not None:
                ending = [engine for engine in ending if service in engine.served][-1:]
        gone = [engine for engine in ending if engine.threads.stop(timeout)]
        with self._lock:
            self._ending = [engine for engine in self._ending if engine not in gone]
        return len(gone) == len(ending)

    def in_handler(self) -> bool:
        """Whether the calling thread is one of the handler threads."""
        ident = threading.get_ident()
        with self._lock:
            engines = [*self._ending, *([self._engine] if self._engine else [])]
        return any(engine.threads.owns(ident) for engine in engines)

    @staticmethod
    def reply(session: CommSession) -> bool:
        """Send the session's reply; see :meth:`Communicator.reply`."""
        return session.connection.communicator.reply(session)

    @staticmethod
    def shutdown(session: CommSession) -> None:
        """End the session's connection; see :meth:`Communicator.shutdown`."""
        session.connection.communicator.shutdown(session)

    def _on_exhausted(self, threads: int) -> None:
        event = HandlersBlocked(threads)
        with self._lock:
            services = list(self._services)
        log_event(event)
        for service in services:
            service.notify(event)


_lock = threading.Lock()
_scheduler: CommScheduler | None = None


def get_scheduler() -> CommScheduler:
    """The process-wide scheduler, made on first use (``WFGlobal::get_scheduler()``)."""
    global _scheduler
    with _lock:
        if _scheduler is None:
            _scheduler = CommScheduler()
        return _scheduler
