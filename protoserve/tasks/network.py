"""The tasks of requests: a session and a task at once, and the life of a reply."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic

from protoserve.errors import UsageError
from protoserve.events import RequestFinished
from protoserve.kernel.session import CommSession, TaskState
from protoserve.kernel.subtask import SubTask
from protoserve.protocol import REQ, RESP, MessageOut, ProtocolSpec
from protoserve.tasks.series import SeriesWork

if TYPE_CHECKING:
    from protoserve.kernel.connection import CommConnection
    from protoserve.server import WFServer

logger = logging.getLogger("protoserve")

UNDEFINED: Final = TaskState.UNDEFINED
TOREPLY: Final = TaskState.TOREPLY
SUCCESS: Final = TaskState.SUCCESS
SYS_ERROR: Final = TaskState.SYS_ERROR
NOREPLY: Final = TaskState.NOREPLY

TRANSMIT_TIMEOUT: Final = "TRANSMIT"
"""``timeout_reason`` when the peer stalled while the reply was written."""

# Where a server task is in its life; a series that is asked for late starts from there.
_PROCESSING: Final = 0
_REPLYING: Final = 1
_CALLBACK: Final = 2
_OVER: Final = 3

_series_lock = threading.Lock()  # series are made rarely; one lock serves all tasks


class WFNetworkTask(SubTask, CommSession, Generic[REQ, RESP]):
    """A request and its response (the article's ``WFNetworkTask``).

    ``req`` and ``resp`` are the protocol's; ``state`` and ``error`` tell how it went;
    ``connection`` is the peer's, ``seq`` counts its requests from 0; ``keep_alive`` is
    how many seconds the connection stays open after this reply; ``user_data`` is yours.
    """

    __slots__ = (
        "_callback",
        "connection",
        "error",
        "keep_alive",
        "req",
        "resp",
        "seq",
        "state",
        "timeout_reason",
        "user_data",
    )

    req: REQ
    resp: RESP
    connection: CommConnection
    seq: int
    state: TaskState
    error: int
    keep_alive: float | None
    timeout_reason: str | None
    user_data: Any

    @property
    def closed(self) -> bool:
        """Whether the peer is known to be gone, so that a reply would not arrive."""
        return self.connection.closed

    def set_keep_alive(self, seconds: float | None) -> None:
        """Keep the connection for ``seconds`` after this reply; 0 closes it, None keeps
        it without limit. Raises ``ValueError`` for a negative time."""
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"keep-alive of {seconds!r} s: expected 0, more, or None")
        self.keep_alive = seconds


class Processor(SubTask):
    """The first task of a request's series: it calls ``process(task)``.

    Made only for requests whose series somebody asks for; the others take the same way
    without the object.
    """

    __slots__ = ("task",)

    def __init__(self, task: WFServerTask[Any, Any]) -> None:
        super().__init__()
        self.task = task

    def dispatch(self) -> None:
        """Run the handler, then go on with what it pushed."""
        self.task.run_process()
        self.subtask_done()


class ServerSeries(SeriesWork):
    """The series of one request: the processor, what was pushed, and last the reply."""

    __slots__ = ("_task",)

    def __init__(self, task: WFServerTask[Any, Any], stage: int) -> None:
        self._task = task
        if stage == _PROCESSING:
            super().__init__(Processor(task), last=task)
        else:
            super().__init__(task)
        # The first task runs already, without a series: that is why we are made.
        self._current = self._queue.popleft()
        self._running = stage != _REPLYING
        # The server must not be gone while this runs.
        task.server.retain()

    def first_done(self) -> None:
        """The task that ran when the series was made has ended: go on with the rest."""
        current = self._current
        assert current is not None
        self._run(self._next(current))

    def _finish(self) -> None:
        super()._finish()
        self._task.server.release()


class WFServerTask(WFNetworkTask[REQ, RESP]):
    """The task of a request in a server (the article's ``WFServerTask``).

    The reply is the last task of ``task.series`` and goes out when the series is empty,
    not when ``process`` returns. Protocol plugins subclass it and override ``handle``
    and ``message_out``. Everything may be used from any thread, by one at a time; ask
    for ``series`` first in ``process`` or in the callback.
    """

    __slots__ = ("_failure", "_process", "_stage", "_started", "server", "spec")

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
        self.seq = seq
        self.state = UNDEFINED
        self.error = 0
        self.timeout_reason = None
        self.user_data = None
        self.server = server
        self.spec: ProtocolSpec[REQ, RESP] = server.spec
        self.resp = server.spec.response()
        self.keep_alive = server.params.keep_alive_timeout
        self._process = process
        self._stage = _PROCESSING
        self._failure: BaseException | None = None
        self._started = 0.0

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.state.name} seq={self.seq} "
            f"peer={self.connection.peername!r}>"
        )

    # -- the session -------------------------------------------------------------------

    def message_in(self, message: REQ) -> None:
        """The complete request."""
        self.req = message

    def message_out(self) -> MessageOut:
        """The reply's bytes; overridden where they depend on the request."""
        return self.spec.message_out(self.resp)

    def handle(self, state: TaskState, error: int) -> None:
        """The communicator's word: TOREPLY runs the handler, what follows ends the task
        (the article's ``WFServerTask::handle``)."""
        if state is TOREPLY:
            self.state = TOREPLY
            if self.server.observers:
                self._started = time.monotonic()
            self.run_process()
            series = self._series
            if series is None:
                self.dispatch()
            else:
                series.first_done()  # type: ignore[attr-defined]
            return
        self.state = state
        self.error = error
        if error == errno.ETIMEDOUT:
            self.timeout_reason = TRANSMIT_TIMEOUT
        self.subtask_done()

    # -- the task ----------------------------------------------------------------------

    @property
    def series(self) -> SeriesWork:
        """The request's series, made when it is first asked for.

        Raises :class:`~protoserve.errors.UsageError` when the request is over.
        """
        if self._series is None:
            with _series_lock:
                if self._series is None:
                    if self._stage == _OVER:
                        raise UsageError(
                            "this request is over; start a series of its own for later work"
                        )
                    # Stores itself in self._series.
                    ServerSeries(self, self._stage)
        assert self._series is not None
        return self._series

    def run_process(self) -> None:
        """Call the handler. What it raises becomes the protocol's error reply."""
        try:
            self._process(self)
        except BaseException as error:
            self._fail(error)

    def dispatch(self) -> None:
        """Give the reply: everything before it in the series is done."""
        self._stage = _REPLYING
        communicator = self.connection.communicator
        series = self._series
        if series is not None:
            if series.canceled:
                self.state = NOREPLY
                self._callback_dropped()
            elif series.failure is not None and self._failure is None:
                self._fail(series.failure)
        if self.state is NOREPLY:
            communicator.shutdown(self)
            self._end()
            return
        if self._failure is not None and not self._make_error_response():
            return
        try:
            sent = communicator.reply(self)
        except BaseException as error:
            if self.connection.session is not self:
                raise  # it was answered before, by hand
            again = self._failure is None
            self._fail(error)
            if again:
                self.dispatch()
            else:
                self._give_up()
            return
        if not sent:
            self.state = SYS_ERROR
            self.error = errno.ENOENT
            self._end()

    def done(self) -> SubTask | None:
        """The reply is sent or impossible: the callback, then what it pushed."""
        self._stage = _CALLBACK
        if self.server.observers:
            self.server.notify(
                RequestFinished(
                    self.connection.peername,
                    self.seq,
                    time.monotonic() - self._started if self._started else 0.0,
                    self.state.name,
                    self.error,
                )
            )
        callback = self._callback
        if callback is not None:
            self._callback = None
            try:
                callback(self)
            except BaseException:
                logger.exception("the callback of %r raised", self)
            self.server.release()
        return None if self._series is None else self._series.pop()

    def subtask_done(self) -> None:
        """The reply's end, with or without a series."""
        if self._series is not None:
            self._series.advance(self)
            return
        if self._callback is not None or self.server.observers:
            following = self.done()
            series = self._series
            self._stage = _OVER
            if series is not None:
                series._run(series._proceed(following))
            return
        self._stage = _OVER

    def noreply(self) -> None:
        """Send no reply: the connection closes where it would have gone."""
        if self._stage != _PROCESSING:
            raise UsageError("the reply is on its way already; call noreply() before")
        self.state = NOREPLY

    def set_callback(self, callback: Callable[[Any], object] | None) -> None:
        """Call ``callback(task)`` when the reply is wholly in the operating system's
        hands (``state`` SUCCESS) or could not be sent (SYS_ERROR and ``error``). What it
        pushes on the series runs after the reply."""
        if self._stage >= _CALLBACK:
            raise UsageError("this request is over; its callback cannot be set any more")
        # The server waits for callbacks: a task that has one counts as alive.
        if callback is not None and self._callback is None:
            self.server.retain()
        elif callback is None and self._callback is not None:
            self.server.release()
        self._callback = callback

    # -- failure -----------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        logger.error("%r failed; the client gets an error reply", self, exc_info=error)

    def _make_error_response(self) -> bool:
        """Put the protocol's error response in place; False when there is none to give."""
        make = self.spec.error_response
        if make is not None:
            try:
                self.resp = make()
                return True
            except BaseException:
                logger.exception("error_response of %r raised", self.spec.name)
        self._give_up()
        return False

    def _give_up(self) -> None:
        self.state = SYS_ERROR
        self.error = errno.EIO
        self.connection.communicator.shutdown(self)
        self._end()

    def _callback_dropped(self) -> None:
        if self._callback is not None:
            self._callback = None
            self.server.release()

    def _end(self) -> None:
        """The communicator will not call again."""
        self.subtask_done()
        self.connection.communicator.forget(self)
