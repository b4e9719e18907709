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
from math import inf
from typing import Any

from protoserve.kernel.communicator import Communicator
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.poller import Poller
from protoserve.kernel.readiness import HANGUP, READABLE, WRITABLE
from protoserve.kernel.service import CommService
from protoserve.protocol import Buffer

_descriptors = count(1_000_000)  # far above any descriptor of the system


class ManualClock:
    """A clock for everything that takes ``clock=``: seconds, moved by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on. Nothing is called: whoever owns the timers looks at them."""
        self.now += seconds


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


class MemoryPeer:
    """The client's end of a connection in memory. Any thread.

    ``received`` is all that the server sent and the peer read; ``sends`` how many calls
    that took. ``room`` is how many bytes the server may send before it would block, and
    ``at_most`` how many one call takes; None is no limit.
    """

    def __init__(self, announce: Callable[[int, int], None]) -> None:
        self.received = bytearray()
        self.sends = 0
        self.reads = 0
        self.room: int | None = None
        self.at_most: int | None = None
        self.eof = False
        """The server has shut its sending side or closed."""
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
        self._lock = threading.RLock()
        self._inbox = bytearray()
        self._shut = False
        self._gone: OSError | None = None
        self._full = False

    # -- the client --------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Give the server bytes to read."""
        with self._lock:
            self._inbox += data
        self._announce(self.fd, READABLE | (0 if self.room == 0 else WRITABLE))

    def shutdown(self) -> None:
        """Send no more, go on reading (a half-close)."""
        with self._lock:
            self._shut = True
        self._announce(self.fd, READABLE | HANGUP)

    def reset(self, number: int = errno.ECONNRESET) -> None:
        """Be gone: the server's next read or send raises."""
        with self._lock:
            self._gone = OSError(number, os.strerror(number))
        self._announce(self.fd, READABLE | WRITABLE | HANGUP)

    def read(self, size: int | None = None) -> None:
        """Make room for ``size`` more bytes; None for any number."""
        with self._lock:
            self.room = None if size is None else (self.room or 0) + size
            full, self._full = self._full, False
        if full:
            self._announce(self.fd, WRITABLE)

    @property
    def unread(self) -> int:
        """Bytes that were sent to the server and not read by it."""
        return len(self._inbox)

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
            if self._shut:
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
        poller = self.poller
        poller.wait()
        calls = 0
        while poller.ready:
            callback, argument, mask = poller.ready.popleft()
            callback(argument, mask)
            calls += 1
        return calls

    def run(self, limit: int = 10_000) -> None:
        """Turns until nothing is left to do now. Fails where that takes over ``limit``
        turns, as it would when something spins."""
        for _ in range(limit):
            if not self.turn():
                return
        raise AssertionError(f"still busy after {limit} turns")

    def advance(self, seconds: float) -> None:
        """Let time pass: every timer that comes due is run at its own time."""
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
