"""The engine without sockets, threads or waiting: for tests of what stands on it.

:class:`MemoryEngine` is a poller and a communicator that move only when told to, on a
clock that moves only when told to. :meth:`MemoryEngine.connect` gives the client's end
of a connection, :class:`MemoryPeer`, which decides what the server's sends and reads see:
how much is taken, when it is full, when the peer shuts its side, leaves or resets.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from itertools import count
from math import inf, isfinite
from typing import Any, Final, Protocol, TypeGuard

from protoserve.errors import ConfigError, UsageError
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.poller import Poller
from protoserve.kernel.readiness import HANGUP, READABLE, WRITABLE
from protoserve.kernel.service import CommService
from protoserve.params import YEAR
from protoserve.protocol import Buffer

_descriptors = count(1_000_000)  # far above any descriptor of the system

MOST_TURNS: Final = 10_000
"""Turns of a poller after which something is taken to spin."""


def _check_time(seconds: object) -> None:
    """Raise ``ConfigError`` where that is no time to let pass: timers may ring all along."""
    if not is_number(seconds) or not 0 <= seconds <= YEAR:
        raise ConfigError(
            f"advance({seconds!r}): expected 0 seconds or more, and at most a year, {YEAR} seconds"
        )


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number, and finite."""
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_size(what: str, value: int | None, least: int) -> int | None:
    """Raise ``ConfigError`` where it is no number of bytes."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < least
    ):
        raise ConfigError(
            f"{what}={value!r}: expected a number of bytes, {least} or more, or None for no limit"
        )
    return value


class Driven(Protocol):
    """What moves with a :class:`ManualClock`: see ``ManualClock.drive``."""

    @property
    def busy(self) -> bool:
        """Whether it runs something at this moment."""

    def run(self) -> None:
        """Do all that is to be done now."""

    def due(self) -> float:
        """After ``run``: when there will be something to do; infinity for never."""


class ManualClock:
    """A clock for everything that takes ``clock=``: ``now`` is in seconds, and moves when
    ``advance`` is called. One thread at a time. Raises :class:`~protoserve.errors.ConfigError`
    where ``now`` is no number."""

    def __init__(self, now: float = 1000.0) -> None:
        if not is_number(now):
            raise ConfigError(f"now={now!r}: expected seconds, a finite number")
        self.now = now
        self._driven: list[Driven] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass. In the memory servers of this clock every timer that comes due is run
        at its own time; whoever else owns timers has to look at them. In a handler, which
        takes so long then, no timer is run. Raises :class:`~protoserve.errors.ConfigError`, a
        ``ValueError``, for a negative time and for more than a year."""
        _check_time(seconds)
        end = self.now + seconds
        if not any(driven.busy for driven in self._driven):
            while self.step(end):
                pass
        self.now = end
        self._run()

    def step(self, end: float) -> bool:
        """Move on to the next timer of the memory servers, and run what is due then. False,
        and the time stays as it is, where there is none until ``end``."""
        self._run()
        due = min((driven.due() for driven in self._driven), default=inf)
        if due > end:
            return False
        self.now = max(due, self.now)
        self._run()
        return True

    def _run(self) -> None:
        for driven in list(self._driven):
            if not driven.busy:
                driven.run()

    def drive(self, driven: Driven) -> None:
        """Have this move with the clock."""
        self._driven.append(driven)

    def leave(self, driven: Driven) -> None:
        """Undo ``drive``."""
        self._driven.remove(driven)


class MemoryReadiness:
    """The poller's view on memory transports: edges that somebody announced.

    ``poll`` never blocks; ``timeout`` is what it was last asked to wait, in seconds.
    ``announce`` may be called from any thread.
    """

    def __init__(self) -> None:
        self.timeout = inf
        self._lock = threading.Lock()
        self._watched: set[int] = set()
        self._edges: dict[int, int] = {}

    def add(self, fd: int) -> None:
        with self._lock:
            self._watched.add(fd)

    def remove(self, fd: int) -> None:
        with self._lock:
            self._watched.discard(fd)
            self._edges.pop(fd, None)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.timeout = timeout
        with self._lock:
            edges = [(fd, mask) for fd, mask in self._edges.items() if fd in self._watched]
            self._edges.clear()
        return edges

    def announce(self, fd: int, mask: int) -> None:
        """``fd`` has become ready; edges between two polls are joined, as epoll does."""
        with self._lock:
            self._edges[fd] = self._edges.get(fd, 0) | mask

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._watched.clear()


def _nothing() -> None:
    """What follows a command where somebody else runs the engine."""


class MemoryPeer:
    """The client's end of a connection in memory, which decides what the server sees of it:
    when bytes arrive, how much it can write, how the client goes.

    With ``memory_server`` each command is followed by everything that it leads to, handlers
    included, before it returns; with :class:`MemoryEngine` run the engine. ``received`` is all
    that the server has sent and the client has read. Any thread.
    """

    def __init__(
        self, announce: Callable[[int, int], None], then: Callable[[], object] = _nothing
    ) -> None:
        self.received = bytearray()
        self.sends = 0
        """How many calls of the server's it took to send that."""
        self.reads = 0
        """How often the server read, or found nothing to read."""
        self._room: int | None = None
        self._at_most: int | None = None
        self.eof = False
        """The server has ended its sending side, or closed."""
        self.closed = False
        """The server has closed its socket."""
        self.aborted = False
        """... with a reset."""
        self.record: int | None = None
        """The server's transport gives records of at most so many bytes, from a buffer of its
        own; None: it is a plain socket."""
        self.under_way = 0
        """Bytes that the server's system has not brought to us, as far as it knows."""
        self.probed = False
        """The server asks its system whether we are still there."""
        self.before_send: Callable[[], object] | None = None
        """Called in each send, before it looks at ``room``: where a race is played."""
        self.ready: Callable[[int], int] | None = None
        """The transport's, for connections that are made with it."""
        self.fd = next(_descriptors)
        self._announce = announce
        self._then = then
        self._lock = threading.RLock()
        self._way = bytearray()  # sent, and not delivered
        self._inbox = bytearray()  # delivered, and not read by the server
        self._taken = 0  # of what was received
        self._shut = False
        self._gone: OSError | None = None
        self._left = False
        self._full = False

    # -- the client --------------------------------------------------------------------

    @property
    def room(self) -> int | None:
        """How many bytes the server may write before its buffer is full; None: no limit. Set
        to less than none, it raises :class:`~protoserve.errors.ConfigError`."""
        return self._room

    @room.setter
    def room(self, size: int | None) -> None:
        self._room = _checked_size("room", size, 0)

    @property
    def at_most(self) -> int | None:
        """How many bytes one call of the server's writes; None: all that there is room for.
        Set to less than one, it raises :class:`~protoserve.errors.ConfigError`."""
        return self._at_most

    @at_most.setter
    def at_most(self, size: int | None) -> None:
        self._at_most = _checked_size("at_most", size, 1)

    def send(self, data: bytes, *, deliver: int | None = None) -> None:
        """Send bytes. With ``deliver`` only so many of what is on the way arrive now; the rest
        waits for ``deliver()``. Raises ``UsageError`` after ``half_close`` or ``close``, and
        ``ValueError`` where there is less on the way."""
        if self._shut:
            raise UsageError("this client has ended its sending side, and cannot send")
        with self._lock:
            self._way += data
        self.deliver(deliver)

    def send_bytewise(self, data: bytes) -> None:
        """Send bytes, each of which arrives, and is looked at, before the next."""
        for i in range(len(data)):
            self.send(data[i : i + 1])

    def deliver(self, size: int | None = None) -> None:
        """Let ``size`` bytes of what is on the way arrive; None for all of it. Raises
        ``ValueError`` where there is less."""
        with self._lock:
            there = len(self._way)
            if size is None:
                size = there
            if not 0 <= size <= there:
                raise ValueError(f"deliver {size!r} bytes: {there} are on the way")
            self._inbox += self._way[:size]
            del self._way[:size]
            ends = HANGUP if self._shut and not self._way else 0
        self._announce(self.fd, READABLE | ends | (0 if self.room == 0 else WRITABLE))
        self._then()

    def half_close(self) -> None:
        """Send no more, go on reading (``shutdown(SHUT_WR)`` of a socket). The end arrives
        after what is on the way."""
        with self._lock:
            self._shut = True
            waits = bool(self._way)
        if not waits:
            self._announce(self.fd, READABLE | HANGUP)
        self._then()

    def shutdown(self) -> None:
        """The same as ``half_close``."""
        self.half_close()

    def close(self) -> None:
        """Close: the server finds the end of what was sent, and its next write fails, as it
        does where a system has answered with a reset."""
        with self._lock:
            self._left = True
        self.half_close()

    def reset(self, number: int = errno.ECONNRESET) -> None:
        """Be gone: the server's next read or write fails with this ``errno``."""
        with self._lock:
            self._gone = OSError(number, os.strerror(number))
        self._announce(self.fd, READABLE | WRITABLE | HANGUP)
        self._then()

    def stall(self, room: int = 0) -> None:
        """Read nothing: the server can write ``room`` bytes more, and then finds its buffer
        full. ``read()`` goes on. Raises :class:`~protoserve.errors.ConfigError` for what is no
        number of bytes."""
        with self._lock:
            self.room = room

    def read(self, size: int | None = None) -> None:
        """After ``stall``: make room for ``size`` more bytes; None for any number. Raises
        :class:`~protoserve.errors.ConfigError` for what is no number of bytes."""
        _checked_size("size", size, 0)
        with self._lock:
            self.room = None if size is None else (self.room or 0) + size
            full, self._full = self._full, False
        if full:
            self._announce(self.fd, WRITABLE)
        self._then()

    def receive(self, size: int | None = None) -> bytes:
        """What was received since the last call, ``size`` bytes at most. Empty where there is
        nothing new; ``eof`` says whether there will be. Raises
        :class:`~protoserve.errors.ConfigError` for what is no number of bytes."""
        _checked_size("size", size, 0)
        with self._lock:
            end = len(self.received) if size is None else self._taken + size
            data = bytes(self.received[self._taken : end])
            self._taken += len(data)
            return data

    @property
    def unread(self) -> int:
        """Bytes that have arrived at the server and were not read by it."""
        return len(self._inbox)

    @property
    def undelivered(self) -> int:
        """Bytes that are on the way."""
        return len(self._way)

    # -- what the server's transport does ----------------------------------------------

    def take(self, size: int) -> bytes:
        """The server reads."""
        with self._lock:
            assert not self.closed, "read after close"
            self.reads += 1
            if self._gone is not None:
                raise self._gone
            if self._inbox:
                size = min(size, self.record or size)
                data = bytes(self._inbox[:size])
                del self._inbox[:size]
                return data
            if self._shut and not self._way:
                return b""
            raise BlockingIOError(errno.EAGAIN, "nothing to read")

    def accept(self, data: bytes) -> int:
        """The server sends."""
        with self._lock:
            assert not self.closed, "sent after close"
            assert not self.eof, "sent after shutdown"
            self.sends += 1
            if self.before_send is not None:
                self.before_send()
            if self._gone is not None:
                raise self._gone
            if self._left and data:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            size = len(data)
            if self.at_most is not None:
                size = min(size, self.at_most)
            if self.room is not None:
                size = min(size, self.room)
                if not size and data:
                    self._full = True
                    raise BlockingIOError(errno.EAGAIN, "no room")
                self.room -= size
            if size < len(data):
                if self.room == 0:
                    self._full = True
                else:  # a short count means "full"; here there is room again at once
                    self._announce(self.fd, WRITABLE)
            self.received += data[:size]
            return size


class MemoryTransport:
    """The server's end: a :class:`~protoserve.kernel.transport.Transport`."""

    def __init__(self, peer: MemoryPeer) -> None:
        self.peer = peer
        self.short_read_empties = peer.record is None
        self.ready: Callable[[int], int] | None = peer.ready
        self.recv: Callable[[int], bytes] = peer.take
        self.send: Callable[[Buffer], int] = lambda data: peer.accept(bytes(data))
        self.sendmsg: Callable[[Iterable[Buffer]], int] = lambda buffers: peer.accept(
            b"".join(buffers)
        )

    def fileno(self) -> int:
        return self.peer.fd

    def peer_gone(self) -> bool:
        return True  # a test that says so means it

    def unacknowledged(self) -> int:
        return self.peer.under_way

    def probe_peer(self) -> None:
        self.peer.probed = True

    def shutdown_write(self) -> None:
        self.peer.eof = True

    def close(self) -> None:
        self.peer.eof = self.peer.closed = True

    def close_copy(self) -> None:
        """There is none: nothing of this outlives a fork."""

    def abort(self) -> None:
        self.peer.aborted = True
        self.close()


def turn(poller: Poller) -> int:
    """One turn of a poller that the caller leads; returns how many calls it made."""
    poller.wait()
    calls = 0
    while poller.ready:
        poller.run_next()
        calls += 1
    return calls


def run(poller: Poller, limit: int = MOST_TURNS) -> None:
    """Turns until nothing is left to do now. Raises ``AssertionError`` where that takes over
    ``limit`` turns, as it would when something spins."""
    for _ in range(limit):
        if not turn(poller):
            return
    raise AssertionError(f"still busy after {limit} turns")


class MemoryEngine:
    """A poller and a communicator, led by the test. ``close`` it at the end.

    The thread that calls ``turn``, ``run`` and ``advance`` is the only handler thread.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.readiness = MemoryReadiness()
        self.poller = Poller(self.readiness, self.clock)
        self.communicator = Communicator(self.poller)

    def connect(
        self,
        service: CommService,
        peername: Any = "peer",
        *,
        room: int | None = None,
        record: int | None = None,
        ready: Callable[[int], int] | None = None,
    ) -> MemoryPeer:
        """A new connection to ``service``, accepted already."""
        peer = MemoryPeer(self.readiness.announce)
        peer.room = room
        peer.record = record
        peer.ready = ready
        # As epoll does when a socket is registered.
        self.readiness.announce(peer.fd, WRITABLE)
        service.retain()
        self.communicator.attach(MemoryTransport(peer), peername, service)
        return peer

    def turn(self) -> int:
        """One turn of the poller; returns how many calls it made."""
        return turn(self.poller)

    def run(self, limit: int = MOST_TURNS) -> None:
        """Turns until nothing is left to do now. Fails where that takes over ``limit``
        turns, as it would when something spins."""
        run(self.poller, limit)

    def advance(self, seconds: float) -> None:
        """Let time pass: every timer that comes due is run at its own time. Raises as
        ``ManualClock.advance`` does."""
        _check_time(seconds)
        end = self.clock.now + seconds
        self.run()
        while (due := self.clock.now + self.readiness.timeout) <= end:
            self.clock.now = due
            self.run()
        self.clock.now = end
        self.run()

    def close(self) -> None:
        """Give back the poller's descriptors."""
        self.poller.close()


def connection_of(service: CommService) -> CommConnection:
    """The only open connection of ``service``."""
    (conn,) = service.connections()
    return conn
