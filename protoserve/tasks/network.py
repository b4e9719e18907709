"""The tasks of requests: a session and a task at once, and the life of a reply."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from mypy_extensions import mypyc_attr

from protoserve.errors import UsageError
from protoserve.events import RequestFinished
from protoserve.kernel.current import CURRENT
from protoserve.kernel.ending import is_closing
from protoserve.kernel.incoming import IncomingStream
from protoserve.kernel.session import CommSession, TaskState, returned
from protoserve.kernel.subtask import SubTask
from protoserve.kernel.variables import run_in
from protoserve.kernel.wakeup import NO_WAIT
from protoserve.log import logger
from protoserve.params import YEAR
from protoserve.protocol import REQ, RESP, Buffer, MessageOut, ProtocolSpec
from protoserve.tasks.coroutine import CoroutineTask
from protoserve.tasks.series import SeriesWork
from protoserve.tasks.server_series import CALLBACK, OVER, PROCESSING, REPLYING, ServerSeries

if TYPE_CHECKING:
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.entry import CommConnEntry
    from protoserve.kernel.life import CallbackHandle
    from protoserve.params import ServerParams
    from protoserve.server import WFServer


UNDEFINED: Final = TaskState.UNDEFINED
TOREPLY: Final = TaskState.TOREPLY
SUCCESS: Final = TaskState.SUCCESS
SYS_ERROR: Final = TaskState.SYS_ERROR
NOREPLY: Final = TaskState.NOREPLY

_copy: Final = Context.copy  # need not be found anew for each request
_run: Final[Callable[..., Any]] = Context.run

TRANSMIT_TIMEOUT: Final = "TRANSMIT"
"""``timeout_reason`` when the peer stalled while the reply was written."""


def _look_at_result(handler: CoroutineTask[object]) -> None:
    if handler.result is not None:
        raise returned(handler.result)


TASK = TypeVar("TASK", bound="WFServerTask[Any, Any]")

_series_lock = threading.Lock()  # series are made rarely; one lock serves all tasks


@mypyc_attr(allow_interpreted_subclasses=True)
class WFNetworkTask(CommSession, Generic[REQ, RESP]):
    """A request and its response (the article's ``WFNetworkTask``).

    ``req`` and ``resp`` are the protocol's; ``state`` and ``error`` tell how it went;
    ``connection`` is the peer's, ``seq`` counts its requests from 0; ``keep_alive`` is
    how many seconds the connection stays open after this reply; ``user_data`` is yours.
    """

    __slots__ = (
        "_callback",
        "error",
        "req",
        "resp",
        "seq",
        "state",
        "timeout_reason",
        "user_data",
    )

    req: REQ
    resp: RESP
    seq: int
    state: TaskState
    error: int
    timeout_reason: str | None
    user_data: Any

    @property
    def closed(self) -> bool:
        """Whether the peer is known to be gone, so that a reply would not arrive."""
        return self.connection.closed

    @property
    def closing(self) -> bool:
        """Whether the connection ends with this reply, because the server stops: it should say so
        where the protocol has a way to. Any thread, for a moment's truth."""
        return is_closing(self.connection.entry)

    def set_keep_alive(self, seconds: float | None) -> None:
        """Keep the connection for ``seconds`` after this reply; 0 closes it, None keeps
        it without limit. Raises ``ValueError`` for a negative time, or one beyond a year."""
        if isinstance(seconds, bool):
            raise ValueError(f"keep-alive of {seconds!r}: expected seconds as a number, or None")
        if seconds is not None and not 0 <= seconds <= YEAR:
            raise ValueError(
                f"keep-alive of {seconds!r} s: expected 0, more, or None for no limit; "
                "a year at most"
            )
        self.keep_alive = seconds


@mypyc_attr(allow_interpreted_subclasses=True)
class WFServerTask(WFNetworkTask[REQ, RESP]):
    """The task of a request in a server (the article's ``WFServerTask``).

    The reply is the last task of ``task.series`` and goes out when the series is empty,
    not when ``process`` returns. Protocol plugins subclass it and override ``handle``
    and ``message_out``. Everything may be used from any thread, by one at a time; ask
    for ``series`` first in ``process`` or in the callback.
    """

    __slots__ = (
        "_cancel",
        "_entry",
        "_failure",
        "_handles",
        "_intercept",
        "_process",
        "_pushed",
        "_stage",
        "_started",
        "_tell",
        "server",
        "spec",
        "variables",
    )

    _entry: CommConnEntry

    variables: Context
    """The context variables of this request: a copy of those of where the server was made."""

    _told: ClassVar = False
    """Whether a subclass wants to see the end of every task: it overrides what sees it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._told = cls._told or any(
            getattr(cls, name) is not getattr(WFServerTask, name)
            for name in ("handle", "dispatch", "done", "subtask_done")
        )

    def __init__(
        self,
        server: WFServer[REQ, RESP],
        process: Callable[[Any], object],
        seq: int,
        connection: CommConnection,
    ) -> None:
        self._series = None
        self._callback: Callable[[Any], object] | None = None
        self.connection = connection
        self._entry = entry = connection.entry
        self.seq = seq
        self.state = UNDEFINED
        self.error = 0
        self.timeout_reason = None
        self.user_data = None
        self.server = server
        self.spec: ProtocolSpec[REQ, RESP] = server.spec
        self.resp = self.new_response(server.spec.response)
        self.keep_alive = entry.deadline.keep_alive_limit
        self._process = process
        # The protocol's own server decides, not the one whose connection it is after an upgrade.
        self._intercept: Callable[[Any], bool] | None = None
        if server.intercepts:
            self._intercept = server.intercept
        self._stage = PROCESSING
        self._failure: BaseException | None = None
        self._started = 0.0
        self._pushed = False
        self._cancel: Callable[[], object] | None = None
        self._handles: list[CallbackHandle] | None = None
        self._tell = self._told  # or a callback, or something to take back

    def __repr__(self) -> str:
        what = self.describe() if hasattr(self, "req") else ""
        return (
            f"<{type(self).__name__}{what and ' '}{what} {self.state.name} seq={self.seq} "
            f"peer={self.connection.peername!r}>"
        )

    def describe(self) -> str:
        """What log lines say of the request, such as HTTP's method and target: short, and
        without what is secret. Empty by default."""
        return ""

    @property
    def closing(self) -> bool:
        """See ``WFNetworkTask``."""
        return is_closing(self._entry)

    # -- the session -------------------------------------------------------------------

    def message_in(self, message: REQ) -> None:
        """The complete request."""
        self.req = message

    def new_response(self, make: Callable[[], RESP]) -> RESP:
        """What ``resp`` is at first: by default what the spec's ``response`` makes, which is
        ``make``."""
        return make()

    def message_out(self) -> MessageOut:
        """The reply's bytes; overridden where they depend on the request."""
        return self.spec.message_out(self.resp)

    def handle(self, state: TaskState, error: int) -> None:
        """The communicator's word: TOREPLY runs the handler, what follows ends the task (the
        article's ``WFServerTask::handle``). A task that ends without a reply, or whose peer had
        gone before it, is told of by its callback only."""
        if state is TOREPLY:
            self.state = TOREPLY
            server = self.server
            if server.observers:
                self._started = time.monotonic()
            self.variables = variables = _copy(server.variables)
            if self._series is not None:  # somebody asked for it before
                self._series.variables = variables
            try:
                if self._intercept is not None and _run(variables, self._intercept, self):
                    outcome = None
                else:
                    outcome = _run(variables, self._process, self)
                if outcome is not None and outcome is not NO_WAIT and not self._take(outcome):
                    return
            except BaseException as raised:
                self._fail(raised)
            if self._series is None and not self._tell:
                self._reply(here=True)
            else:
                self._processed()
            return
        self.state = state
        self.error = error
        if error == errno.ETIMEDOUT:
            self.timeout_reason = TRANSMIT_TIMEOUT
        self.subtask_done()

    def call(self, function: Callable[..., Any], *args: object) -> Any:
        """Call user code of this request in its context."""
        if self._series is not None and self._series.runs_here:
            return function(*args)
        return run_in(self.own_variables(), function, *args)

    def own_variables(self) -> Context:
        """Those of this request; before its handler is called, what they will begin with."""
        try:
            return self.variables
        except AttributeError:
            return self.server.variables.copy()

    def broke_off(self) -> None:
        """The request that was announced will not come."""
        self._stage = OVER
        self._callback_dropped()
        self.drop_handles()

    def handler_key(self) -> Hashable:
        """The protocol's, from the request."""
        key = self.spec.handler_key
        if key is None:
            return None
        try:
            found = key(self.req)
            hash(found)
            return found
        except BaseException:
            logger.exception(
                "handler_key of %r raised, or gave what cannot be hashed", self.spec.name
            )
            return None

    def summary(self) -> Mapping[str, object]:
        """The protocol's facts of the exchange; see ``ProtocolSpec.summary``."""
        make = self.spec.summary
        if make is None:
            return {}
        try:
            return make(self.req, self.resp)
        except BaseException:
            logger.exception("summary of %r raised", self.spec.name)
            return {}

    def end_quietly(self) -> bool:
        """The reply is sent, and nobody is to be told."""
        if self._series is not None or self._tell or self.server.observers:
            return False
        self.state = SUCCESS
        self._stage = OVER
        return True

    # -- the task ----------------------------------------------------------------------

    @property
    def series(self) -> SeriesWork:
        """The request's series, made when it is first asked for.

        Raises :class:`~protoserve.errors.UsageError` when the request is over.
        """
        if self._series is None:
            with _series_lock:
                if self._series is None:
                    if self._stage == OVER:
                        raise UsageError(
                            "this request is over; start a series of its own for later work"
                        )
                    # Stores itself in self._series.
                    ServerSeries(self, self._stage)
        assert self._series is not None
        return self._series

    def _take(self, outcome: object) -> bool:
        """What the handler returned. False when it is a coroutine that waits: then
        ``_processed`` is called later."""
        if isinstance(outcome, Coroutine):
            return self._run_coroutine(outcome)
        raise returned(outcome)

    def _run_coroutine(self, coro: Coroutine[Any, Any, object]) -> bool:
        if not self.server.asynchronous:
            # A plain function that returned a coroutine: it comes before what was pushed.
            self.series.push_front(CoroutineTask(coro, _look_at_result))
            return True
        engine = self.server.engine
        assert engine is not None
        cancel = engine.run_first_step(coro, self._coroutine_ended, self.server, self.variables)
        if cancel is None:
            return True
        self._cancel = cancel
        self.server.waiting.add(self)
        if self._series is not None and self._series.canceled:
            self.cancel_coroutine()  # cancelled before there was something to cancel
        return False

    def _coroutine_ended(self, error: BaseException | None) -> None:
        self._cancel = None
        self.server.waiting.discard(self)
        if error is not None:
            self._fail(error)
        self._processed()

    def cancel_coroutine(self) -> None:
        """Cancel the handler, where it is a coroutine that waits. Any thread."""
        engine = self.server.engine
        if self._cancel is not None and engine is not None:
            engine.call(self._cancel_now)

    def _cancel_now(self) -> None:
        if self._cancel is not None:
            self._cancel()

    def _processed(self) -> None:
        """The handler has ended: go on with the series."""
        series = self._series
        if series is None:
            self.dispatch()
        else:
            series.first_done()  # type: ignore[attr-defined]

    def dispatch(self) -> None:
        """Give the reply: everything before it in the series is done."""
        self._reply(here=False)

    def _reply(self, *, here: bool) -> None:
        """``here``: nothing follows on this thread, which called the handler."""
        self._stage = REPLYING
        entry = self._entry
        communicator = entry.communicator
        series = self._series
        if series is not None:
            if series.canceled:
                self.state = NOREPLY
                self._callback_dropped()
            elif series.failure is not None and self._failure is None:
                self._fail(series.failure)
        if self.state is NOREPLY:
            self._leave(cut=self._failure is not None or (series is not None and series.canceled))
            return
        if self._failure is not None and (self._pushed or not self._make_error_response()):
            if self.state is TOREPLY:
                self._give_up()
            return
        try:
            sent = communicator.reply(self, entry, here=here)
        except BaseException as error:
            if not entry.exchanges.awaits(self):
                raise  # it was answered before, by hand
            self._reply_otherwise(error)
            return
        if not sent:
            self.state = SYS_ERROR
            self.error = errno.ENOENT
            self._end()

    def done(self) -> SubTask | None:
        """The reply is sent or impossible: the callback, then what it pushed."""
        self._stage = CALLBACK
        if self.server.observers:
            self.server.notify(
                RequestFinished(
                    self.connection.peername,
                    self.seq,
                    time.monotonic() - self._started if self._started else 0.0,
                    self.state.name,
                    self.error,
                    self.summary(),
                )
            )
        callback = self._callback
        if callback is not None:
            self._callback = None
            before = CURRENT.service
            CURRENT.service = self.server
            try:
                outcome = self.call(callback, self)
                if outcome is not None and isinstance(outcome, Coroutine):
                    self.series.push_back(CoroutineTask(outcome))
            except BaseException:
                logger.exception("the callback of %r raised", self)
            finally:
                CURRENT.service = before
            self.server.release()
        return None if self._series is None else self._series.pop()

    def subtask_done(self) -> None:
        """The reply's end, with or without a series."""
        series = self._series
        if series is not None:
            series.advance(self)
            return
        if self._tell or self.server.observers:
            following = self.done()
            series = self._series  # the callback may have asked for it
            self._stage = OVER
            if series is not None:
                series._run(series._proceed(following))
            else:
                self.drop_handles()
            return
        self._stage = OVER

    def push(self, data: Buffer) -> Awaitable[None]:
        """Send raw bytes at once, before the reply.

        Nothing is dropped or reordered. Where the peer does not keep up it waits for room:
        a plain function in the call, a coroutine where it awaits what is returned
        (``await task.push(data)``), which it must. A peer that takes nothing for
        ``peer_response_timeout`` is cut.

        Raises ``ConnectionResetError`` when the peer is gone, ``TypeError`` for what is not
        bytes-like and :class:`~protoserve.errors.UsageError` once the reply is on its way.
        """
        conn = self.connection
        communicator = conn.communicator
        in_loop = asyncio._get_running_loop() is not None
        if in_loop and conn.pending >= conn.unsent_limit and not conn.closed:
            raise UsageError(
                "the peer does not keep up, and nobody waits for it: await task.push(...)"
            )
        if not communicator.push(conn.entry, data, self):
            raise ConnectionResetError(errno.ECONNRESET, "the peer is gone")
        self._pushed = True
        if conn.pending < conn.unsent_limit:
            return NO_WAIT
        if in_loop:
            return self._pushed_room()
        conn.wait_pending(conn.unsent_limit // 2)
        if conn.closed:
            raise ConnectionResetError(errno.ECONNRESET, "the peer is gone")
        return NO_WAIT

    async def _pushed_room(self) -> None:
        conn = self.connection
        await conn.wait_pending(conn.unsent_limit // 2)
        if conn.closed:
            raise ConnectionResetError(errno.ECONNRESET, "the peer is gone")

    def interrupt(self) -> None:
        """The series was cancelled while the reply is under way: it ends here."""
        if self._stage == REPLYING:
            self.connection.close()

    def on_close(self, callback: Callable[[Any], object]) -> CallbackHandle:
        """Call ``callback(task)`` when the connection closes before this request is over;
        at once when it has. It must not block. Any thread. Raises ``TypeError`` for what is
        not callable, :class:`~protoserve.errors.UsageError` when the request is over."""
        return self._keep(callback, self.connection.on_close)

    def on_peer_end(self, callback: Callable[[Any], object]) -> CallbackHandle:
        """Call ``callback(task)`` when the peer ends its sending side before this request is
        over; at once when it has. Otherwise as ``on_close``."""
        return self._keep(callback, self.connection.on_peer_end)

    def on_stopping(self, callback: Callable[[Any], object]) -> CallbackHandle:
        """Call ``callback(task)`` when the server begins to stop before this request is
        over; at once when it has. For replies without an end. Otherwise as ``on_close``."""
        return self._keep(
            callback, lambda call: self.server.on_stopping(lambda: call(self.connection))
        )

    def _keep(
        self,
        callback: Callable[[Any], object],
        register: Callable[[Callable[[CommConnection], object]], CallbackHandle],
    ) -> CallbackHandle:
        if not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        if self._stage == OVER:
            raise UsageError("this request is over; use the methods of task.connection")
        self._tell = True
        if self._handles is None:
            self._handles = []
        # In a copy: a coroutine may run in the context itself meanwhile, on another thread.
        handle = register(lambda _: self.own_variables().copy().run(callback, self))
        self._handles.append(handle)
        return handle

    def drop_handles(self) -> None:
        """The request is over: what was to be called before is not any more."""
        handles, self._handles = self._handles, None
        for handle in handles or ():
            handle.cancel()

    def noreply(self) -> None:
        """Send no reply: the connection closes where it would have gone."""
        if self._stage != PROCESSING:
            raise UsageError("the reply is on its way already; call noreply() before")
        self.state = NOREPLY

    def upgrade(
        self,
        spec: ProtocolSpec[Any, Any, TASK],
        process: Callable[[TASK], object],
        params: ServerParams | None = None,
    ) -> None:
        """After this reply the connection speaks another protocol, with another handler:
        beginning with what the parser had not made a request of. Timeouts, limits, counting and
        the stop go on, with the protocol's ``params``; ``connection.state`` is emptied for it,
        and it says its greeting. A reply that ends the connection, or a failure, undoes it.

        For protocols whose parser holds back after such a request (``HOLD``). Raises
        :class:`~protoserve.errors.UsageError` once the reply is on its way, and where requests
        are answered out of order, :class:`~protoserve.errors.ConfigError` as a server of
        that protocol would."""
        protocol = self.server.spoken(spec, process, params)
        exchanges = self.connection.entry.exchanges
        with self.connection.entry.lock:
            if not exchanges.awaits(self):
                raise UsageError("the reply is on its way already; call upgrade() before")
            if exchanges.others is not None:
                raise UsageError("requests of this connection are answered out of order")
            exchanges.upgrade = protocol

    def set_callback(self, callback: Callable[[Any], object] | None) -> None:
        """Call ``callback(task)`` when the reply is wholly in the operating system's
        hands (``state`` SUCCESS) or could not be sent (SYS_ERROR and ``error``). What it
        pushes on the series runs after the reply."""
        if callback is not None and not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        if self._stage >= CALLBACK:
            raise UsageError("this request is over; its callback cannot be set any more")
        # The server waits for callbacks: a task that has one counts as alive.
        if callback is not None and self._callback is None:
            self.server.retain()
        elif callback is None and self._callback is not None:
            self.server.release()
        self._callback = callback
        self._tell = True

    # -- failure -----------------------------------------------------------------------

    def reply_failed(self, error: BaseException | None) -> None:
        """The first piece of an async iterator could not be had: reply otherwise."""
        if error is None or self.connection.closed:
            self.state = SYS_ERROR
            self.error = errno.ENOENT
            self._end()
            return
        self._reply_otherwise(error)

    def _reply_otherwise(self, error: BaseException) -> None:
        """This reply could not be had: the error's, unless that is the one."""
        again = self._failure is None
        self._fail(error)
        if again:
            self.dispatch()
        else:
            self._give_up()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self.connection.entry.exchanges.upgrade = None
        if isinstance(error, asyncio.CancelledError):
            # Somebody's decision, not a fault: the connection closes.
            logger.debug("%r was cancelled: no reply, the connection closes", self)
            error.__traceback__ = None
            self.state = NOREPLY
            self._callback_dropped()
            return
        if self.connection.closed and isinstance(error, ConnectionError):
            return  # the handler noticed that its peer is gone
        if IncomingStream.raised(error):
            return  # it read a body that broke off
        logger.error("%r failed", self, exc_info=error)

    def _make_error_response(self) -> bool:
        """Put the protocol's error response in place; False when there is none to give."""
        make = self.spec.error_response
        if make is not None:
            failure = self._failure
            assert failure is not None
            try:
                self.resp = make(self.req, failure)
                return True
            except BaseException:
                logger.exception("error_response of %r raised", self.spec.name)
            finally:
                # It would keep this task, and all it holds.
                failure.__traceback__ = None
        self._give_up()
        return False

    def _give_up(self) -> None:
        self.state = SYS_ERROR
        self.error = errno.EIO
        self._leave(cut=True)

    def _leave(self, *, cut: bool) -> None:
        """There is no reply: the connection ends, with a reset where a part of one is cut."""
        communicator = self.connection.communicator
        if cut and self._pushed:
            communicator.abandon(self)
        else:
            communicator.shutdown(self)
        self._end()

    def _callback_dropped(self) -> None:
        if self._callback is not None:
            self._callback = None
            self.server.release()

    def _end(self) -> None:
        """The communicator will not call again."""
        if self._failure is not None:
            self._failure.__traceback__ = None  # else it would keep this task
        try:
            self.subtask_done()
        finally:
            self.connection.communicator.forget(self)
