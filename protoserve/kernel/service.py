"""CommService: a server, as the engine sees it."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

from protoserve.events import CloseReason, Event, log_event
from protoserve.kernel.habits import Habits
from protoserve.kernel.transport import SocketTransport
from protoserve.log import logger
from protoserve.params import ServerParams
from protoserve.protocol import Hold, MessageParser, Piece

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.engine import Engine
    from protoserve.kernel.session import CommSession
    from protoserve.kernel.transport import Transport


REPORT_INTERVAL: Final = 60.0
"""Seconds between two reports of the same trouble."""


@mypyc_attr(allow_interpreted_subclasses=True)
class CommProtocol(ABC):
    """What a connection speaks: a server's own protocol, or another after an upgrade."""

    def __init__(self, params: ServerParams) -> None:
        self.params = params
        self.in_flight = 1
        """Requests of one connection that may be in hand at once."""
        self.habits = Habits()
        """Which handlers block."""

    @abstractmethod
    def new_session(self, seq: int, conn: CommConnection) -> CommSession:
        """Make the session of a request, the ``seq``-th of its connection."""

    @abstractmethod
    def new_parser(self) -> MessageParser[Any]:
        """Make the parser of a new connection."""

    def greeting(self, conn: CommConnection) -> Piece | Hold:
        """What is sent to a new connection before it has asked for anything; ``HOLD`` lets
        reading wait for the first push. Called with the connection's lock. Empty by default."""
        return b""

    def farewell(self, conn: CommConnection, reason: CloseReason) -> object:
        """What is sent last when the server ends a connection by itself, for this reason:
        bytes, or a ``ProtocolError``, which carries them; anything else is reported.
        Called with the connection's lock. Empty by default."""
        return b""


@mypyc_attr(allow_interpreted_subclasses=True)
class CommService(CommProtocol):
    """What the communicator needs of a server (the article's ``CommService``).

    Counts what is alive: the listener, every connection and every series each hold one
    reference; when the last is given back, ``handle_unbound`` is called. Counting is
    guarded by a lock of its own and may happen on any thread.
    """

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.max_connections = params.max_connections
        self.stopping = False
        self.starved = False
        """Whether the listener waits for a connection to close or become idle."""
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
    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> CommConnection | None:
        """Make the object of an accepted connection; ``None`` refuses the peer, which sees
        the connection end. What is made may be pushed to, closed, and given times already."""

    def new_transport(self, sock: socket.socket) -> Transport:
        """The layers over an accepted socket; what it raises refuses that one."""
        return SocketTransport(sock)

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
