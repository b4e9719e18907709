"""A transport whose short read does not mean that nothing is left, as with TLS.

It reads much from a real socket and gives records of at most 16 KiB from a buffer of its own:
what lies there the poller never announces. ``pytest --transport records`` runs the suite over it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from protoserve.kernel.transport import SocketTransport

RECORD: int = 16 * 1024
READ: int = 128 * 1024


class _Records:
    """The buffer; apart from the transport, which must not hold a method of its own."""

    def __init__(self, recv: Callable[[int], bytes]) -> None:
        self._recv = recv
        self._data = b""
        self._at = 0

    def recv(self, size: int) -> bytes:
        if self._at == len(self._data):
            self._data = self._recv(READ)
            self._at = 0
        record = self._data[self._at : self._at + min(size, RECORD)]
        self._at += len(record)
        return record


class RecordTransport(SocketTransport):
    """The server's end of a connection."""

    __slots__ = ()

    short_read_empties = False

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.recv = _Records(sock.recv).recv
