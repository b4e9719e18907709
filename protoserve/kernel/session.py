"""What the communicator needs of the layers above: sessions and services."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from protoserve.errors import UsageError
from protoserve.events import Event, log_event
from protoserve.kernel.habits import Habits
from protoserve.log import logger
from protoserve.params import ServerParams
from protoserve.protocol import MessageOut, MessageParser

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.engine import Engine
    from protoserve.kernel.transport import Transport


REPORT_INTERVAL: Final = 60.0
"""Seconds between two reports of the same trouble."""


class TaskState(IntEnum):
    """How far a network task has come: the article's ``WFT_STATE_*``, with their values."""

    UNDEFINED = -1
    """Not handed to the user yet."""
    SUCCESS = 0
    """The reply is wholly in the operating system's hands."""
    SYS_ERROR = 1
    """The reply could not be sent; ``error`` is an ``errno``."""
    TOREPLY = 3
    """The request is complete and waits for its reply."""
    NOREPLY = 4
    """The connection closed instead of a reply, as the handler asked."""
    SSL_ERROR = 65
    """TLS failed."""


def returned(value: object) -> UsageError:
    """What is wrong when a handler returned something."""
    return UsageError(
        f"the handler returned a {type(value).__name__}, and nobody takes it: "
        "assign to task.resp, or call its methods, and return nothing"
    )


class CommSession(ABC):
    """One request/response exchange (the article's ``CommSession``).

    The communicator sets ``connection`` through the factory
    :meth:`CommService.new_session` and calls the methods here; never two at once.
    """

    __slots__ = ()

    connection: CommConnection
    keep_alive: float | None
    """Seconds the connection stays open after this reply; 0 closes, None is no limit.
    Read after ``message_out``."""

    @abstractmethod
    def message_in(self, message: Any) -> None:
        """Take the complete request, as the parser returned it."""

    @abstractmethod
    def message_out(self) -> MessageOut:
        """The reply's bytes. Called once, under the connection's lock: it must not block
        and not call the connection."""

    def handler_key(self) -> Hashable:
        """What tells handlers apart that block from those that do not, such as a path or
        a command. Asked, after ``message_in``, only where handlers were seen to be slow.
        Must not raise. By default ``None``: they are all alike."""
        return None

    def call(self, function: Callable[..., Any], *args: object) -> Any:
        """Call user code that belongs to this exchange, such as a reply's iterator."""
        return function(*args)

    def end_quietly(self) -> bool:
        """Instead of ``handle(SUCCESS, 0)``, where no user code hangs on it: note it and
        return True. Called under the connection's lock. By default False: ``handle`` it is."""
        return False

    def reply_failed(self, error: BaseException | None) -> None:
        """``reply`` had returned, but the first piece of an async iterator could not be
        had, or the peer has gone (``None``). The session may reply otherwise."""

    @abstractmethod
    def handle(self, state: TaskState, error: int) -> None:
        """TOREPLY: the request is complete. Afterwards once more: SUCCESS when the reply
        was sent, else SYS_ERROR with an ``errno``. On a handler thread for TOREPLY, on
        any thread afterwards. Must not raise."""


class CommService(ABC):
    """What the communicator needs of a server (the article's ``CommService``).

    Counts what is alive: the listener, every connection and every series each hold one
    reference; when the last is given back, ``handle_unbound`` is called. Counting is
    guarded by a lock of its own and may happen on any thread.
    """

    def __init__(self, params: ServerParams) -> None:
        self.params = params
        self.max_connections = params.max_connections
        self.stopping = False
        self.starved = False
        """Whether the listener waits for a connection to close or become idle."""
        self.habits = Habits()
        """Which handlers block."""
        self.asynchronous = False
        """Whether its handlers are coroutines, and belong in an asyncio loop."""
        self.engine: Engine | None = None
        self._reported: dict[str, float] = {}
        self.observers: tuple[Callable[[Event], object], ...] = ()
        self.resume_accepting: Callable[[], None] | None = None
        self._references = 0
        self._reference_lock = threading.Lock()
        self._connections: set[CommConnection] = set()

    @abstractmethod
    def new_session(self, seq: int, conn: CommConnection) -> CommSession:
        """Make the session of a complete request, the ``seq``-th of its connection."""

    @abstractmethod
    def new_parser(self) -> MessageParser[Any]:
        """Make the parser of a new connection."""

    @abstractmethod
    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> CommConnection | None:
        """Make the object of an accepted connection; ``None`` refuses the peer, which sees
        the connection end. What is made may be pushed to, closed, and given times already."""

    @abstractmethod
    def handle_unbound(self) -> None:
        """Nothing of this service is alive any more. Called once, on any thread."""

    def subscribe(self, observer: Callable[[Event], object]) -> None:
        """Have ``observer(event)`` called for every event from now on. Any thread."""
        if not callable(observer):
            raise TypeError(f"an observer must be callable, not {type(observer).__name__}")
        with self._reference_lock:
            self.observers = (*self.observers, observer)

    def unsubscribe(self, observer: Callable[[Event], object]) -> None:
        """Undo ``subscribe``. Any thread."""
        with self._reference_lock:
            self.observers = tuple(o for o in self.observers if o != observer)

    def emit(self, event: Event) -> None:
        """Tell the observers, and the log what belongs there. Any thread."""
        log_event(event)
        self.notify(event)

    def may_report(self, what: str, now: float) -> bool:
        """Whether this trouble is due to be logged: once a minute of the clock ``now`` is
        of. Any thread; two at once may both be told."""
        if now - self._reported.get(what, -REPORT_INTERVAL) < REPORT_INTERVAL:
            return False
        self._reported[what] = now
        return True

    def emit_rarely(self, event: Event, what: str, now: float) -> None:
        """Tell the observers, and the log where that is due. Any thread."""
        if self.may_report(what, now):
            log_event(event)
        self.notify(event)

    def notify(self, event: Event) -> None:
        """Tell the observers only. Any thread."""
        for observer in self.observers:
            try:
                observer(event)
            except BaseException:
                logger.exception("an observer raised at %r", event)

    @property
    def conn_count(self) -> int:
        """How many connections are open. Any thread."""
        return len(self._connections)

    def connections(self) -> list[CommConnection]:
        """The open connections at this moment. Any thread."""
        with self._reference_lock:
            return list(self._connections)

    def retain(self) -> None:
        """Count one more thing alive."""
        with self._reference_lock:
            self._references += 1

    def release(self) -> None:
        """Count one thing less."""
        with self._reference_lock:
            self._references -= 1
            last = self._references == 0
        if last:
            self.handle_unbound()

    def add_connection(self, conn: CommConnection) -> None:
        """A connection opened; it has been counted already (``retain``)."""
        with self._reference_lock:
            self._connections.add(conn)

    def remove_connection(self, conn: CommConnection) -> None:
        """A connection's socket is closed; its reference may live on in its session."""
        with self._reference_lock:
            self._connections.discard(conn)
        self.room_made()

    def room_made(self) -> None:
        """A connection closed or became idle: let a waiting listener go on."""
        if self.starved:
            self.starved = False
            if self.resume_accepting is not None:
                self.resume_accepting()
