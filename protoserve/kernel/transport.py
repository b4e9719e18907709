"""Byte transports. The communicator calls only what :class:`Transport` names."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from protoserve.protocol import Buffer


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

    def fileno(self) -> int: ...
    def peer_gone(self) -> bool:
        """Whether nothing that is sent could arrive any more. Must not block."""

    def shutdown_write(self) -> None:
        """Tell the peer that no more will be sent."""

    def close(self) -> None: ...
    def abort(self) -> None:
        """Close without a trace: the peer sees a reset where there is such a thing."""


class SocketTransport:
    """A plain stream socket: its own C methods, with nothing in between."""

    __slots__ = ("recv", "send", "sendmsg", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.recv: Callable[[int], bytes] = sock.recv
        self.send: Callable[[Buffer], int] = sock.send
        self.sendmsg: Callable[[Iterable[Buffer]], int] = sock.sendmsg

    def fileno(self) -> int:
        return self.sock.fileno()

    def peer_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.sock.fileno(), 0)
        return any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))

    def shutdown_write(self) -> None:
        # The peer may be gone already; closing follows in any case.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            # l_onoff=1, l_linger=0: discard what is unsent, send a reset
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()
