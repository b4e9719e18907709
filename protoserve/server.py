"""WFServerBase, a server's life cycle, and WFServer, a server of one protocol."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mypy_extensions import mypyc_attr

from protoserve.application import (
    Hook,
    StartHook,
    StopHook,
    is_asynchronous,
    look_at_handler,
    look_at_hook,
)
from protoserve.errors import BindError, ConfigError, UsageError
from protoserve.events import CloseReason, ListenerStarted, ListenerStopped
from protoserve.kernel.binding import UNIX_PREFIX, adopt_listener, discard_listener, opener
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.current import CURRENT
from protoserve.kernel.engine import NoThreadError
from protoserve.kernel.life import CallbackHandle
from protoserve.kernel.listener import Listener
from protoserve.kernel.scheduler import CommScheduler, get_scheduler
from protoserve.kernel.service import CommService
from protoserve.kernel.states import at_rest
from protoserve.kernel.waiting import stop_connection
from protoserve.kernel.wakeup import Wakeup
from protoserve.log import logger
from protoserve.params import ServerParams
from protoserve.protocol import (
    REQ,
    RESP,
    Hold,
    MessageParser,
    Piece,
    ProtocolSpec,
    try_parser,
)
from protoserve.run import Run
from protoserve.signals import wait_for_signal
from protoserve.stopping import StopNotice
from protoserve.tasks.network import WFServerTask
from protoserve.tasks.series import SeriesWork
from protoserve.upgrade import Spoken

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.engine import Engine, Source
    from protoserve.kernel.transport import Transport


ServerT = TypeVar("ServerT", bound="WFServerBase")
TASK = TypeVar("TASK", bound=WFServerTask[Any, Any])

_NEW, _STARTING, _RUNNING, _STOPPED = "new", "starting", "running", "stopped"

_OVER, _LATE = "over", "late"

_CUT_PATIENCE = 0.5
"""Seconds that what was cut has to end: callbacks, and what a cancelled coroutine does."""

_SIGNAL_PATIENCE = 0.05
"""Seconds that shutdown() in the main thread waits for a lock: other threads keep ours for
microseconds, and one that the interrupted code holds does not come free."""

_ADVICE = (
    "call shutdown() there, which does not wait; stop() works in a thread of its own, and "
    "asyncio.create_task(server.aclose()) in a coroutine, as long as nobody waits for them there"
)

_RESERVED_DESCRIPTORS = 64
"""Descriptors left to the rest of the program when RLIMIT_NOFILE bounds connections."""


_serving_lock = threading.Lock()
_serving: set[WFServerBase] = set()  # guarded by it


def _close_copies() -> None:
    """A forked process does not serve. What it would keep open is not its own: clients
    would see no end, and the port would stay taken, as long as it lives."""
    global _serving_lock
    _serving_lock = threading.Lock()
    servers = list(_serving)
    _serving.clear()
    for server in servers:
        server.close_copies()


os.register_at_fork(after_in_child=_close_copies)


def _in_loop() -> bool:
    """Whether the calling thread runs an asyncio loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _no_thread(error: NoThreadError) -> BindError:
    return BindError(
        errno.EAGAIN,
        f"cannot start: {error}; there are too many threads or processes "
        "(ulimit -u, or the container's limit)",
    )


@mypyc_attr(allow_interpreted_subclasses=True)
class WFServerBase(CommService):
    """The life cycle of a server, whatever its protocol (the article's ``WFServerBase``).

    Unless said otherwise a method may be called from any thread. As a context manager it
    stops at the end of the block.
    """

    def __init__(self, params: ServerParams) -> None:
        if not isinstance(params, ServerParams):
            raise ConfigError(f"params must be a ServerParams, not {type(params).__name__}")
        super().__init__(params)
        # Guards what follows. Never taken twice by one thread; no user code runs under it.
        self._condition = threading.Condition(threading.Lock())
        self._pid = 0
        self._phase = _NEW
        self._scheduler: CommScheduler | None = None
        self._address: Any = None
        self._family: int = socket.AF_INET
        self._run = Run()  # the one that starts or runs; else the last; at first, of none
        self._ended_runs = 0
        self._stop_notice = StopNotice()  # of the next stop, or of the one that is under way
        self._starter = 0  # the thread that starts it at the moment
        self._interrupted = False  # the main thread is in shutdown(), where signals run
        self._series: set[SeriesWork] = set()  # guarded by _condition
        self._on_start: Hook | None = None
        self._on_stop: Hook | None = None
        self.waiting: set[WFServerTask[Any, Any]] = set()
        """Handlers that are coroutines and wait; touched in their loop only."""

    # -- starting ----------------------------------------------------------------------

    def start(self: ServerT, *where: Any) -> ServerT:
        """Listen and serve; returns the server when the socket listens.

        ``start(port)`` listens on every IPv4 interface, ``start(host, port)`` or
        ``start((host, port))`` on one, IPv6 addresses included, ``start("unix:/path")``
        on a Unix socket. Port 0 picks a free port, see ``address``.

        Raises :class:`~protoserve.errors.BindError` when the system refuses,
        :class:`~protoserve.errors.ConfigError` for an address that makes no sense and
        :class:`~protoserve.errors.UsageError` when the server runs already.
        """
        return self._listen(opener(where, self.params.backlog))

    def serve(self: ServerT, sock: socket.socket | int) -> ServerT:
        """Serve on a stream socket, or its descriptor, that is bound or listening.

        The server works on a duplicate; the caller's socket stays open and the caller's.
        Raises as ``start`` does.
        """
        return self._listen(lambda: adopt_listener(sock, self.params.backlog), adopted=True)

    def start_on(self: ServerT, engine: Engine, source: Source, address: Any) -> ServerT:
        """Serve the connections of ``source`` on an engine that the caller drives and holds,
        as ``protoserve.testing`` does in memory. Raises as ``start`` does."""
        return self._launch(lambda run: self._open_on(run, engine, source, address))

    def _listen(
        self: ServerT, open_socket: Callable[[], socket.socket], *, adopted: bool = False
    ) -> ServerT:
        return self._launch(lambda run: self._open(run, open_socket, adopted=adopted))

    def _launch(self: ServerT, open_source: Callable[[Run], object]) -> ServerT:
        self._forget_fork()
        self.check()
        with self._condition:
            if self._phase in (_STARTING, _RUNNING):
                where = f" on {self.url}" if self._phase == _RUNNING else ""
                raise UsageError(
                    f"the server runs already{where}; stop() it before starting again, "
                    "or make a second server"
                )
            before = self._phase, self._address, self._family, self.stopping, self._run
            run = self._run = Run()  # before the phase: a signal may come in between
            self._phase = _STARTING
            self._starter = threading.get_ident()
            self._pid = os.getpid()
        try:
            open_source(run)
        except BaseException:
            with self._condition:
                self._phase, self._address, self._family, self.stopping, self._run = before
                self._starter = 0
                self._condition.notify_all()
            raise
        try:
            self._begin(run)
        except BaseException as error:
            self._end_start(run)
            self._shutdown()
            if not self._serves_here():
                self.wait_finish()
            if isinstance(error, NoThreadError):
                raise _no_thread(error) from error
            raise
        self._end_start(run)
        if run.unwanted:
            self.shutdown()
        return self

    def _end_start(self, run: Run) -> None:
        with self._condition:
            self._phase = _RUNNING
            self._starter = 0
            run.cut_at = None
            self._condition.notify_all()

    def set_hooks(self, on_start: Hook | None, on_stop: Hook | None) -> None:
        """What to call at each start and stop from now on; see ``WFServer``. Raises
        :class:`~protoserve.errors.ConfigError` for what cannot be called."""
        look_at_hook("on_start", on_start)
        look_at_hook("on_stop", on_stop)
        self._on_start = on_start
        self._on_stop = on_stop

    @property
    def hooks(self) -> tuple[Hook | None, Hook | None]:
        """on_start and on_stop, as they are set."""
        return self._on_start, self._on_stop

    def _begin(self, run: Run) -> None:
        """Call on_start, and accept; in a running loop, accept when that has ended."""
        hook = self._on_start
        outcome = None if hook is None else hook(self)
        if isinstance(outcome, Coroutine):
            engine = self.engine
            assert engine is not None
            start = run.start_hook = StartHook(self)
            if _in_loop():
                start.begin(engine, outcome, functools.partial(self._begin_late, run, start))
                return
            start.begin(engine, outcome, lambda error: error)
            start.wait()
        self._accept(run)

    def _begin_late(
        self, run: Run, start: StartHook, error: BaseException | None
    ) -> BaseException | None:
        """on_start has ended in the running loop. Returns why there was no start."""
        if error is None:
            try:
                self._accept(run)
                return None
            except BaseException as failure:
                error = failure
        if not run.ended:
            if not (start.awaited or isinstance(error, asyncio.CancelledError)):
                logger.error("the start of %r failed; it stops", self, exc_info=error)
            self._shutdown()
        return error

    def _accept(self, run: Run) -> None:
        """on_start has ended well: what it opened is to be closed, whatever comes."""
        if run.ended:  # it was not waited for
            return
        if self._on_stop is not None:
            run.stop_hook = StopHook(self._on_stop, self)
        unwanted = run.unwanted or self.stopping
        if unwanted:
            return
        listener = run.listener
        assert listener is not None
        # Before the first connection can be accepted, so that observers see it first.
        run.listens = True
        self.emit(ListenerStarted(self.url))
        if self.stopping:
            return
        try:
            listener.start()
        except OSError as error:
            raise BindError(
                error.errno or 0,
                f"cannot watch {self.url}: {error.strerror}; this system has no room for "
                "one more watched descriptor",
            ) from error

    def check(self) -> None:
        """Raise :class:`~protoserve.errors.ConfigError` for what would fail with the first
        connection. Called by ``start`` and ``serve``."""

    def _open(self, run: Run, open_socket: Callable[[], socket.socket], *, adopted: bool) -> None:
        """Everything that a start needs of the system; nothing is left when that refuses."""
        sock: socket.socket | None = None
        bound = False
        try:
            sock = open_socket()
            self.stopping = False
            self.starved = False
            self._address = sock.getsockname()
            self._family = sock.family
            self._apply_descriptor_limit()
            self._scheduler = get_scheduler()
            communicator = self._scheduler.bind(self)
            bound = True
            run.listener = Listener(sock, communicator, self, adopted=adopted)
        except BaseException as error:
            if sock is not None:
                discard_listener(sock, adopted=adopted)
            if bound:
                assert self._scheduler is not None
                self._scheduler.service_ended(self)
                self._scheduler.join(None, self)
            if isinstance(error, OSError) and not isinstance(error, BindError):
                raise BindError(
                    error.errno or 0,
                    f"cannot start: {error.strerror or error}; this process may not open that "
                    "many files (ulimit -n), or the system is out of memory for them",
                ) from error
            if isinstance(error, NoThreadError):
                raise _no_thread(error) from error
            raise
        self.retain()  # the listener's reference
        with _serving_lock:
            _serving.add(self)

    def _open_on(self, run: Run, engine: Engine, source: Source, address: Any) -> None:
        self.stopping = False
        self.starved = False
        self._address = address
        self._family = socket.AF_INET
        self.max_connections = self.params.max_connections
        self._scheduler = get_scheduler()
        self.engine = engine
        run.listener = source
        self.retain()  # the source's reference

    def close_copies(self) -> None:
        """In a process that was just forked: close its copies of the server's sockets. The
        server itself, in the other process, sees nothing of it."""
        if self._run.listener is not None:
            self._run.listener.close_copy()
        for conn in list(self._connections):
            with contextlib.suppress(OSError):
                conn.entry.transport.close_copy()
        self._forget_fork()

    def _forget_fork(self) -> bool:
        """Whether this is a process forked from the one that started the server: nothing
        here runs, and what the two share is the other's."""
        if self._pid in (0, os.getpid()):
            return False
        self._pid = 0
        # Other threads may have held these when the process was forked.
        self._condition = threading.Condition(threading.Lock())
        self._reference_lock = threading.Lock()
        self._phase = _NEW
        self._references = 0
        self._connections = set()
        self._series = set()
        self._scheduler = None
        self._run = Run()
        self._stop_notice = StopNotice()
        self._starter = 0
        self.stopping = False
        return True

    def _apply_descriptor_limit(self) -> None:
        self.max_connections = self.params.max_connections
        with contextlib.suppress(ImportError):
            import resource

            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft == resource.RLIM_INFINITY:
                return
            fits = max(1, soft - _RESERVED_DESCRIPTORS)
            if self.max_connections is None or self.max_connections > fits:
                logger.warning(
                    "max_connections lowered from %s to %d: this process may open %d files; "
                    "raise that (ulimit -n) or lower max_connections",
                    self.max_connections,
                    fits,
                    soft,
                )
                self.max_connections = fits

    # -- where it listens --------------------------------------------------------------

    @property
    def address(self) -> Any:
        """The socket's address: ``(host, port)``, for IPv6 with two more numbers, or the
        path of a Unix socket. Raises ``UsageError`` before the first start."""
        if self._address is None:
            raise UsageError("the server has no address before start()")
        return self._address

    @property
    def url_scheme(self) -> str:
        """The scheme of ``url``."""
        return "tcp"

    @property
    def url(self) -> str:
        """Where a client on this machine finds the server, for example
        ``http://127.0.0.1:8888``. Raises ``UsageError`` before the first start."""
        address = self.address
        if self._family == socket.AF_UNIX:
            path = address.decode() if isinstance(address, bytes) else address
            return f"{self.url_scheme}+{UNIX_PREFIX}{path}"
        host, port = address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{self.url_scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    # -- stopping ----------------------------------------------------------------------

    @property
    def unbound(self) -> bool:
        """Whether the last connection and the last series of the last run have ended, or are
        not waited for any longer. on_stop may still run."""
        return self._run.drained

    def shutdown(self) -> None:
        """Begin to stop; never blocks, may be called from a handler, from a signal handler
        (``signal.signal``), and twice.

        Nothing new is accepted, idle connections close, unfinished requests may arrive
        within their timeouts, running series end and their replies close.
        """
        if self._forget_fork():
            return
        # Signal handlers run in the main thread, on top of whatever it does. What they
        # interrupt may hold a lock of ours, which then does not come free before they return.
        # So nothing is locked here for longer than another thread would keep it, no user
        # code runs, and what is left to do is the engine's.
        if threading.get_ident() != threading.main_thread().ident:
            self._shutdown()
        elif not self._interrupted:  # else by a second signal, in the middle of this
            self._interrupted = True
            try:
                self._shutdown(_SIGNAL_PATIENCE)
            finally:
                self._interrupted = False

    def _shutdown(self, patience: float = -1) -> None:
        """With ``patience`` as long as others may keep a lock; and in the main thread, where
        only the engine may do the rest."""
        if not self._condition.acquire(timeout=patience):
            run = self._run
            run.unwanted = True  # where it starts
            if self.engine is not None:
                self.engine.call_from_signal(lambda: self._shutdown_run(run))
            return
        try:
            run = self._run
            if self._phase == _STARTING:  # an observer of the start has seen enough
                if not run.unwanted:
                    run.unwanted = True
                    run.give_time(self.params.shutdown_timeout)
                    self._condition.notify_all()
                return
            if self._phase != _RUNNING or self.stopping:
                return
            self.stopping = True
            run.give_time(self.params.shutdown_timeout)
            run.closing = True
            listener = run.listener
            engine = self.engine
            self._condition.notify_all()
        finally:
            self._condition.release()
        assert listener is not None
        assert engine is not None
        listener.close(patience, drain=run.listens and engine.alive)
        # While it is closing, the listener holds the engine.
        if patience < 0 or (run.closing and not engine.call_from_signal(self._close_listener)):
            self._close_listener()

    def _shutdown_run(self, run: Run) -> None:
        """``shutdown``, unless that run is over and the next has begun."""
        if self._run is run:
            self.shutdown()

    def _close_listener(self) -> None:
        """The rest of ``shutdown``, done once by whoever comes first. Any thread."""
        with self._condition:
            run = self._run
            listener = run.listener
            if not run.closing or listener is None:
                return
            run.closing = False
            run.listener = None
            notice = self._stop_notice
        listener.close(drain=run.listens and self.engine is not None and self.engine.alive)
        with CURRENT.working_for(self):  # the stop waits for those who are told of it
            if run.listens:
                self.emit(ListenerStopped(self.url))
            notice.tell()
        if not run.ended:  # else they took longer than the stop, and what is there is the next's
            for conn in self.connections():
                stop_connection(conn.entry)
        listener.finish(self.release)

    def on_stopping(self, callback: Callable[[], object]) -> CallbackHandle:
        """Call ``callback()`` once when the server begins to stop; at once while it stops.
        Before a start, the first or another, that is the stop of the next run. It must not
        block, and not wait for the stop. What is returned takes it back. Any thread. See
        ``task.on_stopping``, which ends with its request."""
        return self._stop_notice.add(callback)

    def wait_stopping(self, timeout: float | None = None) -> bool:
        """Wait until the server begins to stop, in a function: for handlers that go on for
        long, such as ``while not server.wait_stopping(1): ...``. True at once when it stops or
        has stopped, until the next start; False after ``timeout`` seconds."""
        return self.stopping or self._stop_notice.wait(timeout)

    async def until_stopping(self) -> None:
        """The same for coroutines: returns when the server begins to stop."""
        if not self.stopping:
            await self._stop_notice.until()

    def wait_finish(self, timeout: float | None = None) -> bool:
        """Wait until every connection and every series has ended, the callbacks' work and
        on_stop included. Returns whether that is so after ``timeout`` seconds.

        May be called before ``shutdown``, even before the first ``start`` in another
        thread. Once ``shutdown_timeout`` has passed since ``shutdown``, what is left is
        cut. Raises ``UsageError`` in a handler or hook, where it would wait for itself.
        """
        if self._forget_fork():
            return True
        self._refuse_in_handler("wait_finish")
        limit = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            # Not the phase alone: the server may be running again before we wake up.
            before = self._ended_runs
        while True:
            run, due = self._wait_due(before, limit)
            if due == _OVER:
                break
            if due == _LATE:
                return False
            assert callable(due)
            due()
        left = None if limit is None else max(0.0, limit - time.monotonic())
        if run.stop_hook is not None:
            run.stop_hook.join(left)
        if self._scheduler is not None:
            self._scheduler.join(0.0 if run.abandoned else left, self)
        return True

    def _wait_due(
        self, before: int, limit: float | None
    ) -> tuple[Run, str | Callable[[], object]]:
        """Wait until the run that follows ``before`` others is over, or there is something to
        do for those who wait for it."""
        with self._condition:
            run = self._run
            while True:
                over = self._phase == _STOPPED or self._ended_runs != before
                if over and not run.cutting:  # who cuts still counts
                    return run, _OVER
                now = time.monotonic()
                ends = [] if limit is None else [limit]
                if not over:
                    run = self._run
                    if run.closing:  # shutdown() has left it to a thread that is busy
                        return run, self._close_listener
                    if run.cut_at is not None:
                        if run.cut_at <= now:
                            return run, self._claim_cut(run)
                        ends.append(run.cut_at)
                if limit is not None and limit <= now:
                    return run, _LATE
                self._condition.wait(min(ends) - now if ends else None)

    def cut(self) -> int:
        """End at once what is left after ``shutdown``: connections close, requests in
        work lose theirs; once those have ended, an on_stop that is a coroutine is cancelled,
        and so is such an on_start before. Returns how many connections and series were cut.

        A function that blocks its thread, a handler or on_stop, cannot be ended; the server
        does not wait for it. Blocks for half a second at most.
        """
        self.shutdown()
        with self._condition:
            run = self._run
            if run.cutting:  # another thread does it
                self._condition.wait_for(lambda: not run.cutting)
                return 0
            if self._phase not in (_STARTING, _RUNNING):
                return 0
            cut = self._claim_cut(run)
        return cut()

    def _claim_cut(self, run: Run) -> Callable[[], int]:
        """What ends what runs now, and nothing that comes after it. With the condition; to be
        called without it, by one thread."""
        run.cut_at = None
        if self._phase == _STARTING:
            return functools.partial(self._cut_start, run)
        run.cutting = True
        end = self._end_stop_hook if run.drained else self._end_requests
        return functools.partial(self._cut_run, run, end)

    def _cut_run(self, run: Run, end: Callable[[Run], int]) -> int:
        try:
            return end(run)
        finally:
            with self._condition:
                run.cutting = False
                self._condition.notify_all()

    def _cut_start(self, run: Run) -> int:
        if run.start_hook is not None:
            run.start_hook.cancel()
        return 0  # the start ends by itself

    def _end_requests(self, run: Run) -> int:
        self._close_listener()
        cut = 0
        for conn in self.connections():
            # What has nothing in hand is not cut: all that was asked for is delivered.
            idle = at_rest(conn.entry)
            if conn.communicator.close(conn.entry, CloseReason.CUT) and not idle:
                cut += 1
        with self._condition:
            running = list(self._series)
        for series in running:
            series.cancel()
        if run.start_hook is not None:
            run.start_hook.cancel()
        if self.asynchronous and self.engine is not None:
            self.engine.call(self._cancel_waiting)
        with self._condition:
            # Closing gave back what was only waiting; give callbacks a moment.
            if not self._condition.wait_for(lambda: run.drained, _CUT_PATIENCE):
                cut = max(cut, self._references)
                run.abandoned = True
            run.cut_count = cut
        if run.abandoned:
            self._end_run(run)  # what is left cannot be ended: the application closes all the same
        if cut:
            logger.warning("%s: cut %d connections or requests at the stop", self.url, cut)
        return cut

    def _end_stop_hook(self, run: Run) -> int:
        hook = run.stop_hook
        if hook is not None:
            hook.cancel()
        with self._condition:
            if self._condition.wait_for(lambda: run.ended, _CUT_PATIENCE):
                return 0
            run.abandoned = True
            run.stop_hook = None
        logger.warning("on_stop of %r still runs; the stop does not wait for it", self)
        self._finish(run)
        return 0

    def _cancel_waiting(self) -> None:
        for task in list(self.waiting):
            task.cancel_coroutine()

    def series_began(self, series: SeriesWork) -> None:
        """A request has a series: it counts as alive. Any thread."""
        self.retain()
        with self._condition:
            self._series.add(series)

    def series_ended(self, series: SeriesWork) -> None:
        """A request's series has ended. Any thread."""
        with self._condition:
            self._series.discard(series)
        self.release()

    async def aclose(self) -> int:
        """``stop()`` for coroutines: stops gracefully without blocking the loop. Returns
        how many connections and requests had to be cut.

        Raises ``UsageError`` in a handler, which it would wait for; a task of its own
        (``asyncio.create_task(server.aclose())``) works there, and so does ``shutdown()``.
        """
        if self._phase == _NEW:
            return 0
        run = self._run
        engine = None if self._scheduler is None else self._scheduler.engine_here()
        if CURRENT.service is self or (engine is not None and engine.service_here() is self):
            raise UsageError(
                "await aclose() in a handler, in what belongs to its request, or in on_start or "
                f"on_stop would wait for itself; {_ADVICE}"
            )
        self.shutdown()
        finished = Wakeup()

        def wait() -> None:
            try:
                self.wait_finish()
            finally:
                finished.wake()

        thread = threading.Thread(target=wait, name="protoserve-stop", daemon=True)
        thread.start()
        await finished
        thread.join()
        await asyncio.sleep(0)  # lets the tasks end that the engine had in this loop
        return run.cut_count

    def stop(self) -> int:
        """``shutdown`` and ``wait_finish``. Returns how many connections and requests had
        to be cut after ``shutdown_timeout``: 0 for a clean stop.

        Raises ``UsageError`` in a handler and in whatever belongs to a request, go functions
        and callbacks included, where it would wait for itself; call ``shutdown()`` there.
        """
        if self._forget_fork():
            return 0
        self._refuse_in_handler("stop")
        if self._phase == _NEW:
            return 0
        run = self._run
        self.shutdown()
        self.wait_finish()
        return run.cut_count

    def handle_unbound(self) -> None:
        """Everything has ended (the article's ``handle_unbound``)."""
        self._end_run(self._run)

    def _end_run(self, run: Run) -> None:
        """Requests have ended, or are not waited for any longer: on_stop, and the end."""
        with self._condition:
            # Not of a run that was cut, when its handlers end in the next one's start.
            if self._phase != _RUNNING or run is not self._run or run.drained:
                return
            run.drained = True
            hook = run.stop_hook
            # on_stop has the time that running work had.
            run.give_time(None if hook is None else self.params.shutdown_timeout)
            self._condition.notify_all()
        if hook is None:
            self._finish(run)
            return
        assert self.engine is not None
        hook.begin(self.engine, lambda: self._finish(run))

    def _finish(self, run: Run) -> None:
        with self._condition:
            if run.ended:  # it was not waited for
                return
            run.ended = True
            self._phase = _STOPPED
            with _serving_lock:
                _serving.discard(self)
            self._ended_runs += 1
            self._stop_notice = StopNotice()
            self.resume_accepting = None
            # Before a waiter can look: it joins the threads that this ends.
            if self._scheduler is not None:
                self._scheduler.service_ended(self)
            self._condition.notify_all()

    def _serves_here(self) -> bool:
        """Whether the calling thread works for a server, and must not wait for this one."""
        scheduler = self._scheduler
        return CURRENT.service is self or (scheduler is not None and scheduler.in_handler())

    def _refuse_in_handler(self, what: str) -> None:
        if self._starter == threading.get_ident():
            raise UsageError(
                f"{what}() in on_start, or in an observer of the start, would wait for that "
                "start; call shutdown() there: the server stops as soon as it has started"
            )
        if self._serves_here():
            raise UsageError(
                f"{what}() in a handler, in what belongs to its request, or in on_start, "
                f"on_stop or a callback of the stop would wait for itself; {_ADVICE}"
            )

    # -- signals and blocks ------------------------------------------------------------

    def wait_for_signal(
        self,
        signals: tuple[int, ...] | int = (signal.SIGINT, signal.SIGTERM),
        *,
        ready: Callable[[], object] | None = None,
    ) -> int:
        """Wait for one of ``signals``, then stop gracefully; a second one cuts that short, and
        a third the on_stop that follows.

        ``ready()`` is called when signals are listened for: the place to tell others that
        the server is there, so that a signal they send at once is not too early.
        Also returns when the server was stopped otherwise. Returns the signal's number, 0
        for none. The handlers that were installed before are put back. Main thread only:
        raises ``UsageError`` elsewhere.
        """
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "wait_for_signal() works in the main thread only, as signals do; "
                "elsewhere use wait_finish()"
            )
        self._refuse_in_handler("wait_for_signal")
        if isinstance(signals, int):
            signals = (signals,)
        if uncatchable := {signal.SIGKILL, signal.SIGSTOP} & {*signals}:
            raise ConfigError(f"{min(uncatchable).name} cannot be waited for: no program gets it")
        if self._phase == _NEW:
            raise UsageError("the server was not started: start() it before wait_for_signal()")
        if self._phase == _STOPPED:
            return 0
        return wait_for_signal([self], signals, ready)

    def __enter__(self: ServerT) -> ServerT:
        return self

    async def __aenter__(self: ServerT) -> ServerT:
        start = self._run.start_hook
        if start is not None:
            try:
                await start.until_over()
            except BaseException as error:
                failure = error
            else:
                return self
            # Not while it is handled: compiled coroutines would mix it with others'.
            await self.aclose()
            raise failure
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@mypyc_attr(allow_interpreted_subclasses=True)
class WFServer(WFServerBase, Generic[REQ, RESP]):
    """A server of one protocol (the article's ``WFServer<REQ, RESP>``).

    ``process(task)`` is called for each request with the protocol's task: a function on a
    handler thread, a coroutine function in an asyncio loop: the running one where ``start``
    is called in one, else a loop of the scheduler's (uvloop's where that is installed).
    Type checkers hold it to the task of ``spec``, and so to its requests and responses.
    ``params`` defaults to the protocol's.

    ``on_start(server)`` is called when the server has its address, before the first
    connection is taken; what it raises ends the start. ``on_stop(server)`` is called when
    the last connection and series have ended, before ``stop()`` returns. Both may be
    coroutine functions, which run in the loop that the handlers run in, if those are
    coroutines. They default to attributes of ``process`` of these names.

    Override ``new_session`` for settings of single requests and ``new_connection`` for
    connections of your own.
    """

    def __init__(
        self,
        spec: ProtocolSpec[REQ, RESP, TASK],
        process: Callable[[TASK], object],
        params: ServerParams | None = None,
        *,
        on_start: Hook | None = None,
        on_stop: Hook | None = None,
    ) -> None:
        if not isinstance(spec, ProtocolSpec):
            raise ConfigError(f"spec must be a ProtocolSpec, not {type(spec).__name__}")
        look_at_handler(process)
        super().__init__(params if params is not None else spec.params)
        self.spec: ProtocolSpec[REQ, RESP] = spec
        self.process: Callable[[Any], object] = process
        self.variables = contextvars.copy_context()
        """The context variables that each request gets a copy of."""
        self.in_flight = spec.in_flight
        self.asynchronous = is_asynchronous(process)
        self.habits.learns = bool(getattr(process, "may_block", True))
        self.set_hooks(
            on_start or getattr(process, "on_start", None),
            on_stop or getattr(process, "on_stop", None),
        )
        self._task_class: type[WFServerTask[REQ, RESP]] = spec.task or WFServerTask
        self.intercepts = type(self).intercept is not WFServer.intercept
        """Whether a subclass has a look at requests before the handler."""
        # Few protocols are spoken, but a handler may be made for each request.
        self._speak = functools.lru_cache(maxsize=64)(self._make_spoken)

    @property
    def url_scheme(self) -> str:
        """The protocol's scheme."""
        return self.spec.url_scheme

    def check(self) -> None:
        """Make a parser as for a connection, and look at it."""
        try_parser(self.spec.name, self.new_parser)

    def greeting(self, conn: CommConnection) -> Piece | Hold:
        """The protocol's: see ``ProtocolSpec.greeting``."""
        greet = self.spec.greeting
        return b"" if greet is None else greet(conn)

    def farewell(self, conn: CommConnection, reason: CloseReason) -> object:
        """The protocol's: see ``ProtocolSpec.farewell``."""
        say = self.spec.farewell
        return b"" if say is None else say(conn, reason)

    def new_parser(self) -> MessageParser[REQ]:
        """The parser of a new connection."""
        return self.spec.message_in(self.params)

    def new_session(self, seq: int, conn: CommConnection) -> WFServerTask[REQ, RESP]:
        """The task of a complete request, the ``seq``-th of ``conn``: what ``process`` is
        called with. Called on a handler thread; must not block. Override it to change
        ``keep_alive`` and the like."""
        return self._task_class(self, self.process, seq, conn)

    def intercept(self, task: Any) -> bool:
        """Answer ``task`` before the handler does; True when it has its response, and the
        handler is not called. For a subclass that answers some requests by itself: the
        handler stays what it is, a function or a coroutine function. Called where a function
        of the handler's would be, in the request's context; must not block. By default False."""
        return False

    def spoken(
        self,
        spec: ProtocolSpec[Any, Any],
        process: Callable[[Any], object],
        params: ServerParams | None = None,
    ) -> Spoken:
        """Another protocol for connections of this server; see ``task.upgrade``. Any thread.
        Raises :class:`~protoserve.errors.ConfigError` as the server of that protocol does."""
        return self._speak(spec, process, params)

    def _make_spoken(
        self,
        spec: ProtocolSpec[Any, Any],
        process: Callable[[Any], object],
        params: ServerParams | None,
    ) -> Spoken:
        if not isinstance(spec, ProtocolSpec):
            raise ConfigError(f"spec must be a ProtocolSpec, not {type(spec).__name__}")
        if spec.server is None:
            server = WFServer(spec, process, params)
        else:
            server = spec.server(process, spec.params if params is None else params)
        server.check()
        return Spoken(self, server)

    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> CommConnection | None:
        """The object of an accepted connection; an override may return ``None`` to refuse
        the peer, which sees the connection end. On the engine's thread; must not block. What
        is made may be pushed to, closed, and given times already."""
        return CommConnection(self, communicator, transport, peername)
