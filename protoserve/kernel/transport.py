"""Byte transports. The communicator calls only what :class:`Transport` names; what is read from
and written to a plain socket does not even pass through that, see :func:`plain_descriptor`."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import sys
import termios
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from protoserve.kernel.descriptor import NOWHERE, Descriptor
from protoserve.protocol import Buffer

_PROBES: Final = tuple(
    (getattr(socket, name), seconds)
    for name, seconds in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPALIVE", 5),  # its name on macOS
        ("TCP_KEEPINTVL", 5),
    )
    if hasattr(socket, name)
)
"""Seconds between the system's probes of a peer that ended its sending side."""


_SO_NWRITE: Final = 0x1024
"""macOS' option for the same; Python has no name for it."""


class Transport(Protocol):
    """A non-blocking stream of bytes.

    ``recv`` and the two sends raise ``BlockingIOError`` when nothing can be moved now
    and another ``OSError`` when the peer is gone. Used under the connection's lock.
    """

    recv: Callable[[int], bytes]
    """At most so many bytes; empty when the peer will send no more."""
    send: Callable[[Buffer], int]
    """Send some of it; returns how many bytes were taken."""
    sendmsg: Callable[[Iterable[Buffer]], int]
    """The same for several buffers (at most ``IOV_MAX``)."""
    short_read_empties: bool
    """Whether ``recv`` that gives fewer bytes than were asked for has taken all there is, so
    that the poller announces more. Not where it gives records, as TLS does."""

    ready: Callable[[int], int] | None
    """What the poller's news of the descriptor (READABLE, WRITABLE, ...) mean for the stream; a
    layer that has to write before it can read, or is still shaking hands, goes on here.
    ``None``: they are the stream's own."""

    def fileno(self) -> int:
        """The descriptor that the poller watches."""

    def peer_gone(self) -> bool:
        """Whether nothing that is sent could arrive any more. Must not block."""

    def probe_peer(self) -> None:
        """The peer has ended its sending side: find out, in time, whether it is still there
        to read. One that is not will show as a failure of the socket."""

    def unacknowledged(self) -> int:
        """Bytes that were taken by ``send`` and have not reached the peer; 0 where that is
        not known. Must not block."""

    def shutdown_write(self) -> None:
        """Tell the peer that no more will be sent."""

    def close(self) -> None:
        """The connection is over, also for a forked process that has a copy of it; what was
        taken by ``send`` still goes out."""

    def close_copy(self) -> None:
        """Close this process's copy; for the process that it was forked from nothing changes."""

    def abort(self) -> None:
        """Close without a trace: the peer sees a reset where there is such a thing."""


class SocketTransport:
    """A plain stream socket: its own C methods, with nothing in between."""

    __slots__ = ("descriptor", "recv", "send", "sendmsg", "sock")

    short_read_empties = True
    ready: Callable[[int], int] | None = None

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.descriptor = Descriptor(sock.fileno())
        self.recv: Callable[[int], bytes] = sock.recv
        self.send: Callable[[Buffer], int] = sock.send
        self.sendmsg: Callable[[Iterable[Buffer]], int] = sock.sendmsg

    def fileno(self) -> int:
        return self.sock.fileno()

    def peer_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.sock.fileno(), 0)
        return any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))

    def probe_peer(self) -> None:
        # A client that closed and one that shut its sending side look the same, until the
        # system is asked again: the former's forgets the connection (Linux: after 60 s,
        # tcp_fin_timeout) and answers the next probe with a reset.
        if self.sock.family == socket.AF_UNIX:
            return
        with contextlib.suppress(OSError):
            for option, value in _PROBES:
                self.sock.setsockopt(socket.IPPROTO_TCP, option, value)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def unacknowledged(self) -> int:
        try:
            if sys.platform == "linux":
                return int.from_bytes(
                    fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder
                )
            return self.sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        except OSError:
            return 0

    def shutdown_write(self) -> None:
        # The peer may be gone already; closing follows in any case.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        # The peer sees the end only when every copy is closed, or one is shut down.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._close()

    def close_copy(self) -> None:
        self._close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            # l_onoff=1, l_linger=0: discard what is unsent, send a reset
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._close()

    def _close(self) -> None:
        self.descriptor.number = -1  # before it is another's
        self.sock.close()


def plain_descriptor(transport: Transport) -> Descriptor:
    """The descriptor of a plain socket, where bytes go through it as they are: the system's calls
    are used for it instead of ``recv`` and ``send``, since they cost less. Else ``NOWHERE``."""
    if (
        type(transport) is SocketTransport
        and type(transport.sock) is socket.socket
        # ... and nobody has put something of his own in between.
        and transport.recv == transport.sock.recv
        and transport.send == transport.sock.send
    ):
        return transport.descriptor
    return NOWHERE
