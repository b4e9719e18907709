"""CommConnection: the user's half of a connection."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from protoserve.errors import UsageError
from protoserve.events import CloseReason
from protoserve.kernel.ending import is_closing
from protoserve.kernel.entry import CommConnEntry
from protoserve.kernel.life import SHUT, TOLD, CallbackHandle
from protoserve.kernel.output import PUSH_LIMIT
from protoserve.kernel.states import state_of
from protoserve.kernel.waiting import set_keep_alive
from protoserve.kernel.wakeup import NO_WAIT, Wakeup, block
from protoserve.params import YEAR
from protoserve.protocol import UNSET, Arriving, Buffer, Unset

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.service import CommService
    from protoserve.kernel.transport import Transport
    from protoserve.protocol import MessageParser


class CommConnection:
    """One peer (the article's ``CommConnection`` and ``WFConnection``).

    For handlers, callbacks and observers, on any thread; it shows nothing of the engine's
    half. ``peername`` is the peer's address; ``context`` the application's own place,
    ``state`` the protocol's.
    """

    __slots__ = ("__weakref__", "arriving", "context", "entry", "peername", "state")

    arriving: Arriving[Any] | None
    """In ``new_session``: the request whose head is known and whose body is on its way, with
    the settings that it may be given; ``None`` for one that is whole."""

    def __init__(
        self,
        service: CommService,
        communicator: Communicator,
        transport: Transport,
        peername: Any,
    ) -> None:
        self.peername = peername
        self.context: Any = None
        self.state: Any = None
        self.arriving = None
        # The engine's, and no business of anybody else's.
        self.entry = CommConnEntry(self, service, communicator, transport, peername)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.peername!r} {state_of(self.entry)} seq={self.seq}>"

    @property
    def seq(self) -> int:
        """How many requests came so far."""
        return self.entry.exchanges.seq

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be closed: a reply would not arrive."""
        return self.entry.life.rung >= SHUT

    @property
    def closing(self) -> bool:
        """Whether the connection ends with the current reply, because the server stops:
        the reply should say so where the protocol has a way to."""
        return is_closing(self.entry)

    @property
    def peer_ended(self) -> bool:
        """Whether the peer has ended its sending side: it will ask for nothing more, and
        may have closed, which over TCP looks the same."""
        return self.entry.intake.eof

    @property
    def phase(self) -> str:
        """The name of the state that it is in, for people and logs: see docs/design.md."""
        return state_of(self.entry).name

    @property
    def fd(self) -> int:
        """The descriptor of its socket."""
        return self.entry.fd

    @property
    def service(self) -> CommService:
        """The server that it belongs to."""
        return self.entry.service

    @property
    def communicator(self) -> Communicator:
        """What moves its bytes."""
        return self.entry.communicator

    @property
    def parser(self) -> MessageParser[Any]:
        """The protocol's parser, for the protocol's own tasks while a request is in hand."""
        return self.entry.intake.parser

    @property
    def keep_alive_limit(self) -> float | None:
        """Seconds that it stays open after a reply that says nothing else."""
        return self.entry.deadline.keep_alive_limit

    @property
    def pending(self) -> int:
        """Bytes that were given out and that the system has not taken yet, since the peer
        does not read. What is pushed while a reply in pieces is under way counts, too."""
        return self.entry.output.size + self.entry.exchanges.held_size

    @property
    def unsent_limit(self) -> int:
        """Bytes of ``pending`` at which no more requests are read."""
        return self.entry.output.limit

    def drained(self) -> Awaitable[None]:
        """Wait until the system has taken all of ``pending``, or the connection has closed: a
        plain function in the call, a coroutine where it awaits what is returned. So one who
        sends to many goes at their pace. Raises
        :class:`~protoserve.errors.UsageError` in a parser or ``message_out``."""
        self._refuse_locked("wait")
        engine = self.entry.communicator.engine
        if engine is None or asyncio._get_running_loop() is not None:
            return self.wait_pending(0)
        with engine.lend():  # a peer that stalls keeps no handler from its turn
            return self.wait_pending(0)

    def wait_pending(self, level: int) -> Awaitable[None]:
        """The same for ``pending`` of at most ``level`` bytes."""
        entry = self.entry
        if asyncio._get_running_loop() is not None:
            if self.pending <= level:
                return NO_WAIT
            return self._pending(level)
        there = threading.Event()
        if entry.wait_for_room(level, there.set):
            block(entry.communicator.engine, there)
        return NO_WAIT

    async def _pending(self, level: int) -> None:
        wakeup = Wakeup()
        if self.entry.wait_for_room(level, wakeup.wake):
            await wakeup

    def on_close(self, callback: Callable[[CommConnection], object]) -> CallbackHandle:
        """Call ``callback(connection)`` once when the connection closes; at once when it
        has. It runs on the thread that noticed, and must not block. What is returned takes
        it back; ``task.on_close`` does so by itself when the task has ended. Any thread."""
        handle = self._new_callback(callback)
        life = self.entry.life
        with self.entry.lock:
            if life.rung < TOLD:
                if life.callbacks is None:
                    life.callbacks = {}
                life.callbacks[handle] = callback
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
        life = self.entry.life
        with self.entry.lock:
            if not self.entry.intake.eof and life.rung < SHUT:
                if life.end_callbacks is None:
                    life.end_callbacks = {}
                life.end_callbacks[handle] = callback
                return handle
        self._call_now(callback)
        return handle

    def _call_now(self, callback: Callable[[CommConnection], object]) -> None:
        if self.entry.locked_here:
            self.entry.communicator.poller.post(lambda _, __: callback(self), None)
        else:
            callback(self)

    def _new_callback(self, callback: object) -> CallbackHandle:
        if not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        # Not ours: a handle that is kept in ``context`` would keep us.
        return CallbackHandle(self.entry.forget_callback)

    def set_timeout(
        self,
        *,
        keep_alive: float | Unset | None = UNSET,
        receive: float | Unset | None = UNSET,
    ) -> None:
        """Give this connection times of its own, in seconds; ``None`` for no limit.

        ``keep_alive``: how long it may stay without a request, the first one included
        (which otherwise must begin within ``peer_response_timeout``): from now on, and after
        each reply. ``receive``: for one whole request, from the next one on. Any thread.
        Raises ``ValueError`` for a time that is negative, beyond a year or no number.
        """
        for name, seconds in (("keep_alive", keep_alive), ("receive", receive)):
            if seconds is UNSET or seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise ValueError(f"set_timeout({name}={seconds!r}): expected seconds as a number")
            if not 0 < seconds <= YEAR:
                raise ValueError(
                    f"set_timeout({name}={seconds!r}): expected seconds above 0, a year at most, "
                    "or None for no limit"
                )
        self._refuse_locked("set its times: do it in new_connection, or in the handler")
        if receive is not UNSET:
            self.entry.deadline.receive_limit = receive
        if keep_alive is not UNSET:
            set_keep_alive(self.entry, keep_alive)

    def _refuse_locked(self, what: str) -> None:
        if self.entry.locked_here:
            raise UsageError(
                "a parser and message_out run in the middle of the connection's work and "
                f"cannot {what}"
            )

    def push(self, data: Buffer) -> bool:
        """Send bytes that belong to no reply, at once, or after the reply that is being
        sent. Any thread; never blocks. What the peer does not take waits for it; one that
        lets more than 32 MiB wait (``unsent_limit``, if that is more) is cut. False when the
        connection is closed.

        Raises ``TypeError`` for what is not bytes-like, and
        :class:`~protoserve.errors.UsageError` in a parser or ``message_out``, which run in
        the middle of the connection's work.
        """
        entry = self.entry
        if self.pending > max(PUSH_LIMIT, entry.output.limit):
            entry.communicator.close(entry, CloseReason.PUSH_NOT_TAKEN)
        return entry.communicator.push(entry, data)

    def close(self) -> None:
        """Close now; what is unsent is lost, and then the peer sees a reset. Any thread;
        harmless when closed. In a parser or ``message_out``: as soon as they are done."""
        self.entry.communicator.close(self.entry)
