"""CommScheduler: the process-wide owner of the engines."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from protoserve.errors import ConfigError
from protoserve.events import HandlersBlocked, log_event
from protoserve.kernel.asyncio_host import LoopEngine, OwnLoopEngine
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.engine import Engine, ThreadEngine
from protoserve.kernel.executor import Executor
from protoserve.kernel.service import REPORT_INTERVAL, CommService
from protoserve.log import logger
from protoserve.params import COMPUTE_THREADS, SERVER_PARAMS_DEFAULT

_PATCHERS: Final = {
    "gevent.monkey": "is_module_patched",
    "eventlet.patcher": "is_monkey_patched",
}
"""Modules that replace parts of the standard library, and what tells whether they did."""

_PATCHED: Final = ("select", "socket", "thread", "threading")

_UNPATCH: Final = (
    "do not patch the process that runs the server: its handlers may block, in as many threads "
    "as handler_threads says, or be coroutines"
)

THREADS: Final = "threads"
"""The engine of plain functions: handler threads."""

OWN_LOOP: Final = "loop"
"""The engine of coroutines outside a running loop: a thread with a loop of ours."""

_COMPUTE_PATIENCE: Final = 0.5
"""Seconds that a stop waits for compute threads, whose functions may take for ever."""

Kind: TypeAlias = str | asyncio.AbstractEventLoop
"""THREADS, OWN_LOOP, or the running loop that is to drive the poller."""


def refuse_patched() -> None:
    """Raise :class:`~protoserve.errors.ConfigError` where green threads have taken the place
    of the system's: the engines wait for readiness by themselves, in real threads."""
    for name, ask in _PATCHERS.items():
        is_patched = getattr(sys.modules.get(name), ask, None)
        patched = [part for part in _PATCHED if is_patched is not None and is_patched(part)]
        if patched:
            raise ConfigError(
                f"{name.partition('.')[0]}'s monkey patching has replaced {', '.join(patched)}, "
                f"which protoserve needs as it is; {_UNPATCH}"
            )
    if sys.platform == "linux" and not hasattr(select, "epoll"):
        raise ConfigError(f"something has taken select.epoll out of this process; {_UNPATCH}")


class CommScheduler:
    """Shared by all servers of a process (the article's ``CommScheduler``). Its ``reply`` and
    ``shutdown`` are the communicator's, which a session reaches through its connection.

    It has an engine for plain functions, and one for coroutines in each loop they run in.
    Threads and descriptors exist while somebody holds an engine: a bound service, a timer.
    All methods may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._engines: dict[Kind, Engine] = {}
        self._ending: list[Engine] = []
        self._services: list[CommService] = []
        self._exhausted_until = 0.0
        self._refused_until = 0.0
        self._kept: Engine | None = None  # the loop of coroutines, while a server is bound
        self.executor = Executor()

    @property
    def running(self) -> bool:
        """Whether an engine or a compute thread runs, or has not ended yet."""
        self.join(0)
        with self._lock:
            return bool(self._engines or self._ending) or self.executor.threads > 0

    def acquire(self, kind: Kind = THREADS) -> Engine:
        """Hold the engine of that kind, which starts if it has to; see ``release``."""
        with self._lock:
            engine = self._engines.get(kind)
            if engine is None:
                refuse_patched()
                if kind == THREADS:
                    threads = SERVER_PARAMS_DEFAULT.handler_threads
                    engine = ThreadEngine(self, self._clock, threads)
                elif isinstance(kind, str):
                    engine = OwnLoopEngine(self, self._clock)
                else:
                    engine = LoopEngine(self, self._clock, kind)
                try:
                    engine.start()
                except BaseException:
                    engine.abandon()
                    raise
                self._engines[kind] = engine
            engine.holds += 1
            return engine

    def add(self, engine: Engine) -> None:
        """Hold an engine that the caller drives: while it does, those who work on the thread
        find it as they would find one of ours. ``release`` it in the end."""
        with self._lock:
            self._engines[f"driven {id(engine)}"] = engine
            engine.holds += 1

    def acquire_here(self) -> Engine:
        """Hold the engine that the calling thread works for, or else the one of plain
        functions."""
        ident = threading.get_ident()
        with self._lock:
            for engine in self._engines.values():
                if engine.owns(ident):
                    engine.holds += 1
                    return engine
        return self.acquire()

    def hold(self, engine: Engine | None) -> Engine:
        """Hold this engine while it runs, else the one that ``acquire_here`` gives."""
        if engine is not None:
            with self._lock:
                if engine.holds:
                    engine.holds += 1
                    return engine
        return self.acquire_here()

    def engine_here(self) -> Engine | None:
        """The engine that the calling thread works for, if any; it is not held."""
        ident = threading.get_ident()
        with self._lock:
            return next((e for e in self._engines.values() if e.owns(ident)), None)

    def release(self, engine: Engine) -> None:
        """Give back one hold; the last ends the engine. Never blocks."""
        with self._lock:
            engine.holds -= 1
            if engine.holds:
                return
            for kind, known in list(self._engines.items()):
                if known is engine:
                    del self._engines[kind]
            self._ending.append(engine)
            last = not self._engines
        engine.stop(0)
        if last:
            self.executor.linger(False)

    def bind(self, service: CommService) -> Communicator:
        """Start to serve ``service``: in the running loop or else one of ours where its
        handlers are coroutines, on handler threads otherwise."""
        kind: Kind = THREADS
        if service.asynchronous:
            try:
                kind = asyncio.get_running_loop()
            except RuntimeError:
                kind = OWN_LOOP
        engine = self.acquire(kind)
        engine.want_threads(service.params.handler_threads)
        with self._lock:
            self._services.append(service)
            self._exhausted_until = 0.0  # it has not been told
            self._resize_executor()
        self.executor.linger(True)
        service.engine = engine
        return engine.communicator

    def service_ended(self, service: CommService) -> None:
        """``service`` has ended. Never blocks."""
        with self._lock:
            if service not in self._services:
                return
            self._services.remove(service)
            self._resize_executor()
            kept = None
            if not self._services:
                kept, self._kept = self._kept, None
        engine = service.engine
        assert engine is not None
        self.release(engine)
        if kept is not None:
            self.release(kept)

    def _resize_executor(self) -> None:
        """One pool for all: as many threads as the most demanding server asks for."""
        wanted = [service.params.compute_threads for service in self._services]
        self.executor.resize(max(wanted, default=COMPUTE_THREADS))

    def join(self, timeout: float | None, service: CommService | None = None) -> bool:
        """Wait until the threads of engines that ended are gone; with ``service``, only
        those that served it last, so that nobody waits for the handlers of others.
        False when some still run a handler after ``timeout`` seconds."""
        with self._lock:
            ending = list(self._ending)
            if service is not None:
                ending = [engine for engine in ending if engine is service.engine]
            loops = [] if self._services else [e for e in self._ending if e not in ending]
            idle = not self._engines
        for engine in loops:
            if isinstance(engine, OwnLoopEngine):  # of its coroutines, which have ended
                engine.stop(_COMPUTE_PATIENCE if timeout is None else timeout)
        gone = [engine for engine in ending if engine.stop(timeout)]
        if idle:
            # A function that runs on is nobody's to stop; idle threads end at once.
            self.executor.join(timeout if service is None else _COMPUTE_PATIENCE)
        with self._lock:
            self._ending = [engine for engine in self._ending if engine not in gone]
        return len(gone) == len(ending)

    def in_handler(self) -> bool:
        """Whether the calling thread runs handlers of an engine."""
        ident = threading.get_ident()
        with self._lock:
            engines = [*self._ending, *self._engines.values()]
        return any(engine.owns(ident) for engine in engines)

    def run_coroutine(
        self,
        coro: Coroutine[Any, Any, object],
        ended: Callable[[BaseException | None], object],
        service: CommService | None = None,
    ) -> Callable[[], object]:
        """Run ``coro`` in the loop that is ours, which starts if it has to; see
        :meth:`~protoserve.kernel.engine.Engine.run_coroutine`."""
        engine = self.acquire(OWN_LOOP)
        with self._lock:
            # What coroutines make, queues and pools, belongs to their loop: it stays as long
            # as a server does.
            if self._services and self._kept is None:
                self._kept = engine
                engine.holds += 1

        def release(error: BaseException | None) -> None:
            # First: who learns of the end may join the thread of the loop.
            engine.release()
            ended(error)

        try:
            return engine.run_coroutine(coro, release, service)
        except BaseException:
            engine.release()
            raise

    def forget_in_child(self) -> None:
        """In a process that was just forked: its engines do nothing more."""
        for engine in (*self._engines.values(), *self._ending):
            engine.forget_in_child()

    def on_refused(self) -> None:
        """The system refuses a handler thread, while another is in a handler. Told once a
        minute."""
        now = self._clock()
        with self._lock:
            if now < self._refused_until:
                return
            self._refused_until = now + REPORT_INTERVAL
        logger.warning(
            "the system refuses one more handler thread: nothing is served until the handler "
            "that runs has ended, or the system has threads again (ulimit -u, or the "
            "container's limit)"
        )

    def on_exhausted(self, threads: int) -> None:
        """Every handler thread is in a handler. Told once a minute: under load it comes
        and goes all the time."""
        now = self._clock()
        with self._lock:
            if now < self._exhausted_until:
                return
            self._exhausted_until = now + REPORT_INTERVAL
            services = list(self._services)
        event = HandlersBlocked(threads)
        log_event(event)
        for service in services:
            service.notify(event)


_lock = threading.Lock()
_scheduler: CommScheduler | None = None


def _forget_in_child() -> None:
    """A forked process has none of the threads, and must not touch what it shares."""
    global _lock, _scheduler
    _lock = threading.Lock()
    scheduler, _scheduler = _scheduler, None
    if scheduler is not None:
        scheduler.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)


def get_scheduler() -> CommScheduler:
    """The process-wide scheduler, made on first use (``WFGlobal::get_scheduler()``)."""
    global _scheduler
    with _lock:
        if _scheduler is None:
            _scheduler = CommScheduler()
        return _scheduler
