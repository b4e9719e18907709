"""A server without sockets, threads or waiting: for tests of protocols and handlers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from math import inf
from typing import Any, Final, Generic

from protoserve.errors import ConfigError, UsageError
from protoserve.kernel.engine import Engine
from protoserve.kernel.readiness import WRITABLE
from protoserve.kernel.scheduler import CommScheduler, get_scheduler
from protoserve.kernel.service import CommService
from protoserve.protocol import REQ, RESP, ProtocolSpec
from protoserve.server import WFServer
from protoserve.testing.memory import (
    ManualClock,
    MemoryPeer,
    MemoryReadiness,
    MemoryTransport,
    run,
    turn,
)

_NO_LOOP: Final = (
    "memory_server has no event loop, which would run by real time: coroutines and async "
    "iterators are tested with live_server"
)

_numbers = count(1)


def new_server(
    spec: ProtocolSpec[REQ, RESP], process: Callable[[Any], object], params: dict[str, Any]
) -> WFServer[REQ, RESP]:
    """The server that the command line would make of ``spec``, with some parameters changed.
    Raises :class:`~protoserve.errors.ConfigError` as that does."""
    if not isinstance(spec, ProtocolSpec):
        raise ConfigError(f"spec must be a ProtocolSpec, not {type(spec).__name__}")
    wanted = spec.params.replace(**params)
    return WFServer(spec, process, wanted) if spec.server is None else spec.server(process, wanted)


class ManualEngine(Engine):
    """Driven by the thread that calls ``run``, on a clock that is moved by hand: handlers, and
    the functions of ``go``, run in it."""

    def __init__(self, scheduler: CommScheduler, clock: ManualClock) -> None:
        self.readiness = MemoryReadiness()
        super().__init__(scheduler, clock, self.readiness)
        self.manual_clock = clock
        self._driving = threading.RLock()
        self._driver = 0
        self._fault: UsageError | None = None
        self.keeps_faults = False
        """Whether ``run`` leaves it to ``raise_fault`` to raise."""

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """A block of the thread that drives. Raises ``UsageError`` while another does."""
        if not self._driving.acquire(blocking=False):
            raise UsageError(
                "another thread is in this memory_server at the moment; drive it from one "
                "thread, or use live_server"
            )
        before, self._driver = self._driver, threading.get_ident()
        try:
            yield
        finally:
            self._driver = before
            self._driving.release()

    @property
    def busy(self) -> bool:
        """Whether it is driven at this moment."""
        return self._driver != 0

    def run(self) -> None:
        """Do all that is to be done now. In a handler: nothing, since it is being done.
        Raises ``UsageError`` for what a handler did that cannot work here."""
        if self.owns(threading.get_ident()):
            return
        with self.driving():
            run(self.poller)
        if not self.keeps_faults:
            self.raise_fault()

    def raise_fault(self) -> None:
        """Raise what a handler did that cannot work here, if there was something."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def due(self) -> float:
        """When the next timer is, as far as ``run`` has seen."""
        return self.manual_clock.now + self.readiness.timeout

    def owns(self, ident: int) -> bool:
        return ident == self._driver

    def start(self) -> None:
        """Nothing: it runs when it is told to."""

    def stop(self, timeout: float | None) -> bool:
        self.poller.close()
        return True

    def call(self, function: Callable[[], object]) -> None:
        self.poller.post(lambda _, __: function(), None)

    def call_from_signal(self, function: Callable[[], object]) -> bool:
        self.call(function)
        return True

    def submit(self, queue: str, job: Callable[[], object]) -> None:
        self.call(job)

    @contextlib.contextmanager
    def lend(self) -> Iterator[None]:
        """What is to be done now may be what is waited for."""
        if self.owns(threading.get_ident()):
            run(self.poller)
        yield

    def block(self, there: threading.Event) -> None:
        if not self.owns(threading.get_ident()):
            there.wait()
        while not there.is_set():
            if not turn(self.poller):
                raise self._refuse(
                    "this handler waits for its client, which cannot go on before the handler "
                    "returns: memory_server has one thread; use live_server"
                )

    def run_coroutine(
        self,
        coro: Coroutine[Any, Any, object],
        ended: Callable[[BaseException | None], object],
        service: CommService | None = None,
    ) -> Callable[[], object]:
        coro.close()
        ended(self._refuse(_NO_LOOP))
        return lambda: None

    def _refuse(self, why: str) -> UsageError:
        error = UsageError(why)
        if self._fault is None:
            self._fault = error
        return error


class _Door:
    """Where clients come in, as long as the server takes them."""

    def __init__(self) -> None:
        self.open = False

    def start(self) -> None:
        self.open = True

    def close(self, patience: float = -1, *, drain: bool = False) -> bool:
        was_open, self.open = self.open, False
        return was_open

    def close_copy(self) -> None:
        """There is none."""

    def finish(self, ended: Callable[[], object]) -> None:
        ended()


class MemoryServer(Generic[REQ, RESP]):
    """A running server that moves when its test does; see :func:`memory_server`."""

    server: WFServer[REQ, RESP]
    """The server itself, as ``task.server`` is it."""
    clock: ManualClock
    """Its time. ``clock.advance`` is the same as ``advance`` here."""

    def __init__(self, server: WFServer[REQ, RESP], clock: ManualClock) -> None:
        self.server = server
        self.clock = clock
        self._scheduler = get_scheduler()
        self._engine = ManualEngine(self._scheduler, clock)
        self._door = _Door()
        self._closed = False
        self._scheduler.add(self._engine)
        clock.drive(self._engine)
        try:
            server.start_on(self._engine, self._door, ("memory", next(_numbers)))
            self._engine.run()
        except BaseException:
            self._close()
            raise

    @property
    def url(self) -> str:
        """The server's, for log lines; there is nothing to connect to by it."""
        return self.server.url

    def connect(self, peername: Any = None, *, room: int | None = None) -> MemoryPeer:
        """A client with a connection of its own, the greeting received. ``peername`` is what
        the server sees as its address, by default one of this machine; ``room`` as after
        ``stall(room)``.

        Raises ``ConnectionRefusedError`` when the server stops, or has ``max_connections``:
        it is a listening socket that would make room for one more.
        """
        server = self.server
        if not self._door.open:
            raise ConnectionRefusedError("the memory_server does not take connections any more")
        limit = server.max_connections
        if limit is not None and server.conn_count >= limit:
            raise ConnectionRefusedError(
                f"max_connections={limit} are open; how a server makes room is tested with "
                "live_server"
            )
        engine = self._engine
        peer = MemoryPeer(engine.readiness.announce, engine.run)
        peer.room = room
        engine.readiness.announce(peer.fd, WRITABLE)  # as for a socket that is registered
        if peername is None:
            peername = ("127.0.0.1", 49152 + peer.fd % 16384)
        with engine.driving():
            server.retain()
            engine.communicator.attach(MemoryTransport(peer), peername, server)
        engine.run()
        return peer

    def advance(self, seconds: float) -> None:
        """Let time pass: every timer and time-out that comes due is run at its own time.
        Raises :class:`~protoserve.errors.ConfigError`, a ``ValueError``, for a negative time and
        for more than a year."""
        self.clock.advance(seconds)

    def run(self) -> None:
        """Do what is to be done now: after something that another thread did, such as a push.
        The commands of clients, and ``advance``, do it by themselves."""
        self._engine.run()

    def stop(self) -> int:
        """Stop gracefully, as ``WFServer.stop`` does: up to ``shutdown_timeout`` passes on the
        clock, if something needs it. Returns how many connections and requests were cut after
        that. Done at the end of the block, too."""
        if self._closed:
            return 0
        server = self.server
        limit = server.params.shutdown_timeout
        end = inf if limit is None else self.clock.now + limit
        cut = 0
        self._engine.keeps_faults = True
        try:
            server.shutdown()
            self._engine.run()
            while not server.unbound and self.clock.step(end):
                pass
            if not server.unbound:
                cut = server.cut()
            server.wait_finish()  # for on_stop, which has a thread of its own
            self._engine.run()
        finally:
            held = self._close()
        self._engine.raise_fault()
        if held:
            raise AssertionError(
                f"left behind by {server!r}: {held} timers or tasks that are in no request's "
                "series, and had not ended when it stopped"
            )
        return cut

    def _close(self) -> int:
        """Give back the engine. Returns how many others held it."""
        self._closed = True
        self.clock.leave(self._engine)
        held = self._engine.holds - 1
        while self._engine.holds:
            self._engine.release()
        self._scheduler.join(0)
        return held


@contextlib.contextmanager
def memory_server(
    spec: ProtocolSpec[REQ, RESP],
    process: Callable[[Any], object],
    *,
    clock: ManualClock | None = None,
    **params: Any,
) -> Iterator[MemoryServer[REQ, RESP]]:
    """A server in memory, for the block: no sockets, no threads, no waiting.

    ``params`` are those fields of :class:`~protoserve.params.ServerParams` that are to differ
    from the protocol's own. Handlers run in the thread that moves the server, within the
    client's commands, and time passes by ``advance`` only: a time-out of 60 seconds takes no
    time. Servers that are to share their time are given the same ``clock``.

    Timers, ``go`` (the function runs in this thread, too) and all that is made of such tasks
    work; so do hooks that are functions (``on_stop`` in a thread of its own). Coroutines and
    async iterators do not: a handler that is a coroutine function raises
    :class:`~protoserve.errors.UsageError` here, and others in the client's command that led to
    them. So does a handler that waits for its client. What would wait for a timer,
    ``WaitGroup.wait`` or ``server.wait_stopping``, waits for ever. Raises
    :class:`~protoserve.errors.ConfigError` for parameters or handlers that make no sense.
    """
    if clock is not None and not isinstance(clock, ManualClock):
        raise ConfigError(f"clock must be a ManualClock, or None, not {type(clock).__name__}")
    server = new_server(spec, process, params)
    if server.asynchronous:
        name = getattr(process, "__qualname__", type(process).__qualname__)
        raise UsageError(f"the handler {name} is a coroutine function; {_NO_LOOP}")
    memory = MemoryServer(server, ManualClock() if clock is None else clock)
    try:
        yield memory
    except BaseException:
        with contextlib.suppress(Exception):  # the first that went wrong is what matters
            memory.stop()
        raise
    memory.stop()
