"""CommConnection: one peer, its table of states and everything that is kept for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protoserve.errors import UsageError
from protoserve.events import CloseReason
from protoserve.params import YEAR
from protoserve.protocol import Buffer

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.poller import TimerEntry
    from protoserve.kernel.session import CommService, CommSession, TaskState
    from protoserve.kernel.stream import Stream
    from protoserve.kernel.transport import Transport


class State:
    """A state of a connection; each legal signal is an attribute that holds the next.

    ``state.reply`` is one attribute look-up, and a signal that the table does not know
    in this state raises: an illegal step cannot go unseen.
    """

    __slots__ = ("bytes", "close", "drain", "message", "name", "reply", "sent")

    bytes: State
    message: State
    reply: State
    sent: State
    drain: State
    close: State

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __getattr__(self, signal: str) -> State:
        if signal not in State.__slots__:
            raise AttributeError(signal)
        raise RuntimeError(f"a connection that is {self.name} cannot take the signal {signal!r}")


CONNECTED: Final = State("CONNECTED")
"""Accepted; no byte yet."""
RECEIVING: Final = State("RECEIVING")
"""An unfinished request is held."""
PROCESSING: Final = State("PROCESSING")
"""A request's series runs."""
REPLYING: Final = State("REPLYING")
"""A reply is not yet all in the operating system's hands."""
KEEPALIVE: Final = State("KEEPALIVE")
"""Between requests."""
DRAINING: Final = State("DRAINING")
"""The last word is said; unread input is taken in so that no reset overtakes it."""
CLOSED: Final = State("CLOSED")
"""The socket is closed."""

# Signals: bytes arrived; a message is complete and handed over; a reply (or a farewell)
# was given; all output was sent; the sending side was shut; the connection closed.
TRANSITIONS: Final[dict[tuple[State, str], State]] = {
    (CONNECTED, "bytes"): RECEIVING,
    (CONNECTED, "message"): PROCESSING,
    (CONNECTED, "reply"): REPLYING,
    (CONNECTED, "close"): CLOSED,
    (RECEIVING, "bytes"): RECEIVING,
    (RECEIVING, "message"): PROCESSING,
    (RECEIVING, "reply"): REPLYING,
    (RECEIVING, "close"): CLOSED,
    (PROCESSING, "bytes"): PROCESSING,
    (PROCESSING, "reply"): REPLYING,
    (PROCESSING, "close"): CLOSED,
    (REPLYING, "bytes"): REPLYING,
    (REPLYING, "message"): PROCESSING,
    (REPLYING, "reply"): REPLYING,
    (REPLYING, "sent"): KEEPALIVE,
    (REPLYING, "drain"): DRAINING,
    (REPLYING, "close"): CLOSED,
    (KEEPALIVE, "bytes"): RECEIVING,
    (KEEPALIVE, "message"): PROCESSING,
    (KEEPALIVE, "reply"): REPLYING,
    (KEEPALIVE, "drain"): DRAINING,
    (KEEPALIVE, "close"): CLOSED,
    (DRAINING, "close"): CLOSED,
}
for (_state, _signal), _next in TRANSITIONS.items():
    setattr(_state, _signal, _next)


OUTPUT_LIMIT: Final = 32 * 1024 * 1024
"""Unsent bytes at which a connection that is pushed to counts as dead."""


class _Unchanged:
    """Instead of seconds: as it was."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "unchanged"


UNCHANGED: Final = _Unchanged()


class CallbackHandle:
    """A callback that can be taken back."""

    __slots__ = ("_forget",)

    def __init__(self, forget: Callable[[CallbackHandle], bool]) -> None:
        self._forget = forget

    def cancel(self) -> bool:
        """Have the callback not called any more. False when it was called, is about to be,
        or was taken back before. Any thread."""
        return self._forget(self)


Callbacks: TypeAlias = "dict[CallbackHandle, Callable[[CommConnection], object]]"


class CommConnection:
    """One peer (the article's ``CommConnection`` and ``WFConnection``).

    Users see ``peername``, ``context``, ``closed``, ``peer_ended``, ``closing``, ``seq``,
    ``on_close``, ``on_peer_end``, ``set_timeout``, ``push`` and ``close``; they may be used
    from any thread. ``context`` is the application's own place, ``state`` the protocol's;
    ``parser`` too is the protocol's, for its tasks while a request is in their hands.
    Everything else is the communicator's and guarded by ``lock``. Handlers, callbacks and
    observers run without the lock; parsers and ``message_out`` run under it.
    """

    __slots__ = (
        "__weakref__",
        "acked",
        "attached",
        "broken",
        "bytes_before",
        "bytes_in",
        "bytes_out",
        "close_callbacks",
        "close_detail",
        "close_error",
        "close_reason",
        "communicator",
        "context",
        "deadline",
        "deferred",
        "dropped",
        "end_callbacks",
        "ended",
        "ending",
        "eof",
        "farewell",
        "fd",
        "finished",
        "first_wait",
        "forgotten",
        "gone",
        "hangup",
        "held",
        "held_size",
        "idle_since",
        "keep_alive",
        "keep_alive_limit",
        "lock",
        "more",
        "out",
        "out_end",
        "out_size",
        "parser",
        "peername",
        "phase",
        "posted",
        "pumping",
        "pushed_for",
        "queue",
        "readable",
        "receive_deadline",
        "receive_limit",
        "recv",
        "send",
        "send_deadline",
        "send_mark",
        "sendmsg",
        "seq",
        "service",
        "session",
        "state",
        "stream",
        "timer",
        "timer_at",
        "told_full",
        "transport",
        "unsent",
        "unsent_limit",
        "waiters",
    )

    def __init__(
        self,
        service: CommService,
        communicator: Communicator,
        transport: Transport,
        peername: Any,
    ) -> None:
        self.service = service
        self.communicator = communicator
        self.peername = peername
        self.context: Any = None
        self.state: Any = None
        self.seq = 0
        # bytes in and out
        self.transport = transport
        self.fd = transport.fileno()
        self.recv = transport.recv
        self.send = transport.send
        self.sendmsg = transport.sendmsg
        self.parser = service.new_parser()
        self.readable = False  # there may be input that we have not read (edges!)
        self.hangup = False  # the peer's end of sending was announced
        self.gone = False  # ... and that of its receiving
        self.eof = False  # the end of its sending was reached
        self.more = False  # the parser may hold messages
        self.queue: deque[Any] | None = None  # parsed while another request was served
        self.out: list[Buffer] = []
        self.out_size = 0
        self.out_end = 0  # all bytes ever put into out
        self.told_full = False  # that it is not read any more because of that limit
        self.unsent_limit = service.params.unsent_limit
        self.bytes_in = 0
        self.bytes_before = 0  # in, when the last request was handed over
        self.bytes_out = 0
        # the exchange
        # An RLock, because it knows its owner: nobody relies on taking it twice.
        self.lock = threading.RLock()
        self.attached = False  # counted, and in the poller's care
        self.posted = False  # it goes on in the next turn
        self.deferred = False  # a handler has something to do, and waits for a thread
        self.pushed_for = 0  # seq when a handler last pushed a part of its reply
        self.phase = CONNECTED
        self.session: CommSession | None = None  # handed over and not answered
        self.stream: Stream | None = None  # a reply in pieces is under way
        self.held: list[Buffer] | None = None  # pushed meanwhile
        self.held_size = 0
        self.waiters: list[Callable[[], object]] | None = None  # for room in out
        self.pumping = False  # a thread is handing requests over
        self.unsent: list[tuple[CommSession, int]] = []  # and where in out each one ends
        self.finished: list[tuple[CommSession, TaskState, int]] = []
        self.ending = False  # close when everything in out is sent
        self.broken = False  # ... with a reset, in the middle of a reply
        self.farewell = False  # ... and take in what the peer still sends
        self.ended = False  # the socket is closed and the callbacks were taken
        self.forgotten = False  # ... and nothing runs for it any more
        self.dropped: Stream | None = None  # closed when the lock is released
        self.close_reason = CloseReason.CLOSED
        self.close_detail = ""
        self.close_error = 0  # an errno, for sessions that learn of it later
        self.end_callbacks: Callbacks | None = None
        self.close_callbacks: Callbacks | None = None
        # time, in seconds of the poller's clock
        params = service.params
        self.first_wait = params.peer_response_timeout
        self.receive_limit = params.receive_timeout
        self.keep_alive_limit = params.keep_alive_timeout  # of the tasks to come
        self.keep_alive: float | None = None
        self.deadline = inf
        self.timer: TimerEntry | None = None
        self.timer_at = inf  # when the poller will look at the deadline
        self.receive_deadline: float | None = None
        self.send_deadline: float | None = None
        self.acked = 0  # bytes that had reached the peer then
        self.send_mark = -1  # bytes_out when the deadline of a step was last set
        # Since when it waits for a request, or the rest of one.
        self.idle_since = communicator.poller.time()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.peername!r} {self.phase!r} seq={self.seq}>"

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be closed: a reply would not arrive."""
        return self.phase is CLOSED

    @property
    def peer_ended(self) -> bool:
        """Whether the peer has ended its sending side: it will ask for nothing more, and
        may have closed, which over TCP looks the same."""
        return self.eof

    @property
    def closing(self) -> bool:
        """Whether the connection ends with the current reply, because the server stops:
        the reply should say so where the protocol has a way to."""
        return self.ending or self.service.stopping

    @property
    def locked_here(self) -> bool:
        """Whether the calling thread has the lock: it runs code of the protocol's, or of a
        collected object, in the middle of the connection's work."""
        return self.lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    @property
    def idle(self) -> bool:
        """Whether it waits for its next request, with nothing in hand."""
        return self.phase is KEEPALIVE and not self.more and not self.out

    @property
    def silent(self) -> bool:
        """Whether it has begun a request, or not even that, and nothing else."""
        phase = self.phase
        return (phase is CONNECTED or phase is RECEIVING) and not self.more and not self.out

    @property
    def reply_is_incomplete(self) -> bool:
        """Whether the peer was sent, or was to be sent, more than it would have when the
        connection ends now. With the lock."""
        return (
            bool(self.out)
            or (self.stream is not None and self.stream.begun)
            or (self.session is not None and self.pushed_for == self.seq)
        )

    def on_close(self, callback: Callable[[CommConnection], object]) -> CallbackHandle:
        """Call ``callback(connection)`` once when the connection closes; at once when it
        has. It runs on the thread that noticed, and must not block. What is returned takes
        it back; ``task.on_close`` does so by itself when the task has ended. Any thread."""
        handle = self._new_callback(callback)
        with self.lock:
            if not self.ended:
                if self.close_callbacks is None:
                    self.close_callbacks = {}
                self.close_callbacks[handle] = callback
                return handle
        self._call_now(callback)
        return handle

    def on_peer_end(self, callback: Callable[[CommConnection], object]) -> CallbackHandle:
        """Call ``callback(connection)`` once when the peer ends its sending side, on a
        thread that serves connections; at once when it has. It must not block. For requests
        that wait for something: over TCP this is all that is seen of a client that closed.
        What is returned takes it back; ``task.on_peer_end`` does so by itself when the task
        has ended. Any thread."""
        handle = self._new_callback(callback)
        with self.lock:
            if not self.eof and self.phase is not CLOSED:
                if self.end_callbacks is None:
                    self.end_callbacks = {}
                self.end_callbacks[handle] = callback
                return handle
        self._call_now(callback)
        return handle

    def _call_now(self, callback: Callable[[CommConnection], object]) -> None:
        if self.locked_here:
            self.communicator.poller.post(self._call_posted, callback)
        else:
            callback(self)

    def _call_posted(self, callback: Callable[[CommConnection], object], _: int) -> None:
        callback(self)

    def _new_callback(self, callback: object) -> CallbackHandle:
        if not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        return CallbackHandle(self._forget_callback)

    def _forget_callback(self, handle: CallbackHandle) -> bool:
        with self.lock:
            for callbacks in (self.close_callbacks, self.end_callbacks):
                if callbacks is not None and callbacks.pop(handle, None) is not None:
                    return True
        return False

    def set_timeout(
        self,
        *,
        keep_alive: float | _Unchanged | None = UNCHANGED,
        receive: float | _Unchanged | None = UNCHANGED,
    ) -> None:
        """Give this connection times of its own, in seconds; ``None`` for no limit.

        ``keep_alive``: how long it may stay without a request, the first one included
        (which otherwise must begin within ``peer_response_timeout``): from now on, and after
        each reply. ``receive``: for one whole request, from the next one on. Any thread.
        Raises ``ValueError`` for a time that is negative, beyond a year or no number.
        """
        for name, seconds in (("keep_alive", keep_alive), ("receive", receive)):
            if isinstance(seconds, _Unchanged) or seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise ValueError(f"set_timeout({name}={seconds!r}): expected seconds as a number")
            if not 0 < seconds <= YEAR:
                raise ValueError(
                    f"set_timeout({name}={seconds!r}): expected seconds above 0, a year at most, "
                    "or None for no limit"
                )
        if self.locked_here:
            raise UsageError(
                "a parser and message_out run in the middle of the connection's work and "
                "cannot set its times: do it in new_connection, or in the handler"
            )
        if not isinstance(receive, _Unchanged):
            self.receive_limit = receive
        if not isinstance(keep_alive, _Unchanged):
            self.communicator.set_keep_alive(self, keep_alive)

    def push(self, data: Buffer) -> bool:
        """Send bytes that belong to no reply, at once, or after the reply that is being
        sent. Any thread; never blocks. What the peer does not take waits for it; one that
        lets more than 32 MiB wait (``unsent_limit``, if that is more) is cut. False when the
        connection is closed.

        Raises ``TypeError`` for what is not bytes-like, and
        :class:`~protoserve.errors.UsageError` in a parser or ``message_out``, which run in
        the middle of the connection's work.
        """
        if self.out_size + self.held_size > max(OUTPUT_LIMIT, self.unsent_limit):
            self.communicator.close(self, CloseReason.PUSH_NOT_TAKEN)
        return self.communicator.push(self, data)

    def close(self) -> None:
        """Close now; what is unsent is lost, and then the peer sees a reset. Any thread;
        harmless when closed. In a parser or ``message_out``: as soon as they are done."""
        self.communicator.close(self)
