"""A listening socket that is served: accepting, and what to do when that fails."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from protoserve.events import AcceptFailed, LimitReached
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.ending import evict
from protoserve.kernel.entry import CommConnEntry
from protoserve.kernel.service import CommService
from protoserve.kernel.states import is_silent
from protoserve.log import logger

ACCEPT_PAUSE: Final = 0.1
"""Seconds without accepting after the system ran out of something (Ranch does the same)."""

SILENT_TIME: Final = 1.0
"""Seconds after which a connection without a request may be closed for a new one."""

_ACCEPTS_A_TURN: Final = 64

_ACCEPTS_AT_THE_END: Final = 4096
"""The most that a backlog holds by default, /proc/sys/net/core/somaxconn."""

# The new connection failed, not the listener: accept(2), "Error handling".
_TRANSIENT: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "EPROTO", "EINTR", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN",
        "ENONET", "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "EPERM", "ECONNRESET",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
_GONE: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})


class Listener:
    """Accepts for one service.

    ``on_ready`` and ``resume`` are the poller's; ``start`` and ``close`` any thread's.
    The socket is touched under ``_lock`` only, so that closing cannot hit a descriptor
    that was given to somebody else.
    """

    def __init__(
        self,
        sock: socket.socket,
        communicator: Communicator,
        service: CommService,
        *,
        adopted: bool,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._communicator = communicator
        self._service = service
        self._adopted = adopted
        self._lock = threading.Lock()  # guards the socket and the next four
        self._closed = False
        self._accepting = False
        self._again = False
        self._last: deque[tuple[socket.socket, Any]] = deque()  # accepted by close()
        self._pause_until = 0.0
        self._retry_at = 0.0
        self._idle: list[tuple[float, CommConnEntry]] = []
        self._file: tuple[str, int] | None = None
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX and not adopted and isinstance(name, str):
            self._file = (os.path.abspath(name), os.stat(name).st_ino)

    def start(self) -> None:
        """Begin to accept."""
        self._service.resume_accepting = self._wake
        with self._lock:
            if not self._closed:  # by a stop this moment
                self._communicator.poller.watch(self._fd, self.on_ready, self)

    def close(self, patience: float = -1, *, drain: bool = False) -> bool:
        """Stop listening. False when that was done before, or others were at the socket for
        ``patience`` seconds (-1: for ever).

        With ``drain`` the connections that wait at this moment are accepted, and attached
        when ``finish`` is called: nobody else would answer them, and the system resets what
        waits at a socket that nobody has any more.
        """
        if not self._lock.acquire(timeout=patience):
            return False
        try:
            if self._closed:
                return False
            self._closed = True
            # Another process may hold the same socket; our registration goes first.
            self._communicator.poller.forget(self._fd, shared=True)
            if drain:
                self._drain()
            if not self._adopted:
                # A forked process may have a copy, and the system would go on accepting. A
                # socket that was handed to us is others' as well.
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
        finally:
            self._lock.release()
        if self._file is not None:
            path, inode = self._file
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:  # not a successor's
                    os.unlink(path)
        return True

    def close_copy(self) -> None:
        """In a forked process: close its copy, and nothing else. Takes no lock, since a
        thread that does not exist here may have it."""
        self._closed = True
        self._sock.close()

    def _drain(self) -> None:
        # Of a socket that others may share only what is there, and never a stream of it.
        most = _ACCEPTS_A_TURN if self._adopted else _ACCEPTS_AT_THE_END
        limit = self._service.max_connections
        if limit is not None:
            most = min(most, limit - self._service.conn_count)
        for _ in range(most):
            try:
                self._last.append(self._sock.accept())
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    return

    def finish(self, ended: Callable[[], object]) -> None:
        """After ``close``: attach what waited at last, where handlers run, and then call
        ``ended()``. Any thread."""
        if self._last:
            self._communicator.poller.post(self._attach_last, ended)
        else:
            ended()

    def _attach_last(self, ended: Callable[[], object], _: int) -> None:
        while self._last:
            self._service.retain()
            self._attach(*self._last.popleft())
        ended()

    def on_ready(self, _: Listener, mask: int) -> None:
        """Connections wait: take some, and come back for the rest."""
        with self._lock:
            if self._accepting:  # on another thread, whose user code takes its time
                self._again = True
                return
            self._accepting = True
            self._again = False
        more = False
        try:
            more = self._accept_some()
        finally:
            with self._lock:
                self._accepting = False
                more = more or self._again
        if more:
            self._communicator.poller.post(self.on_ready, self)

    def _accept_some(self) -> bool:
        """Accept what is there, within bounds. True when there may be more. No user code
        runs under the lock, which ``close`` takes."""
        for _ in range(_ACCEPTS_A_TURN):
            if self._closed or not self._has_room():
                return False
            failure = None
            with self._lock:
                if self._closed or self._communicator.poller.time() < self._pause_until:
                    return False
                try:
                    sock, peername = self._sock.accept()
                    # Under the lock that close() takes: the service cannot end before.
                    self._service.retain()
                except BlockingIOError:
                    return False
                except OSError as error:
                    failure = error
            if failure is None:
                self._attach(sock, peername)
            elif not self._go_on_after(failure):
                return False
        return True

    def _wake(self) -> None:
        self._communicator.poller.post(self.on_ready, self)

    def _attach(self, sock: socket.socket, peername: Any) -> None:
        if sys.platform != "linux" and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):  # pragma: no cover - macOS
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = None
        try:
            transport = self._service.new_transport(sock)
            self._communicator.attach(transport, peername, self._service)
        except BaseException:
            # The others in the backlog are not announced again: go on with them.
            logger.exception("the connection of %r could not be made; it closes", peername)
            if transport is None:
                self._service.release()  # attach() would have
            sock.close()

    def _go_on_after(self, error: OSError) -> bool:
        if error.errno in _TRANSIENT:
            return True
        if error.errno not in _GONE:
            poller = self._communicator.poller
            self._pause_until = poller.time() + ACCEPT_PAUSE
            poller.call_at(self._pause_until, self.on_ready, self)
            if self._service.may_report("accept", poller.time()):
                self._service.emit(
                    AcceptFailed(error.errno or 0, error.strerror or str(error), ACCEPT_PAUSE)
                )
        return False

    # -- at the limit ------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether a connection may be accepted, after making room where that is allowed.

        First the least recently used idle connection goes; then the oldest that has
        been silent for more than a second; else the kernel's backlog has to hold.
        """
        service = self._service
        limit = service.max_connections
        if limit is None or service.conn_count < limit:
            return True
        now = self._communicator.poller.time()
        if service.starved and now < self._retry_at:
            return False  # nobody has closed or become idle since we looked
        if not self._someone_waits():
            # Room is made for those who come, not beforehand.
            service.starved = False
            return False
        # Set before looking: who closes or becomes idle from here on wakes us.
        service.starved = True
        if service.conn_count < limit:
            service.starved = False  # somebody closed between the two looks
            return True
        if self._evict_idle():
            action = "closed the least recently used idle connection"
        elif self._evict_silent():
            action = "closed the oldest connection that made no request"
        else:
            self._report_limit(limit, "accepting pauses until a connection closes")
            if now >= self._retry_at:
                self._retry_at = now + SILENT_TIME
                self._communicator.poller.call_at(self._retry_at, self.on_ready, self)
            return False
        service.starved = False
        self._report_limit(limit, action)
        return True

    def _someone_waits(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return bool(poll.poll(0))

    def _evict_idle(self) -> bool:
        """Candidates are collected once for many evictions; one that has been used since
        is passed over, so the order is that of last use."""
        for fresh in (False, True):
            if fresh:
                self._idle = sorted(
                    (
                        (conn.entry.deadline.idle_since, conn.entry)
                        for conn in self._service.connections()
                        if conn.entry.idle
                    ),
                    key=lambda entry: entry[0],
                    reverse=True,
                )
            while self._idle:
                idle_since, entry = self._idle.pop()
                if evict(entry, idle_since):
                    return True
        return False

    def _evict_silent(self) -> bool:
        before = self._communicator.poller.time() - SILENT_TIME
        silent = [
            conn.entry
            for conn in self._service.connections()
            if is_silent(conn.entry) and conn.entry.deadline.idle_since < before
        ]
        silent.sort(key=lambda entry: entry.deadline.idle_since)
        return any(evict(entry, None) for entry in silent)

    def _report_limit(self, limit: int, action: str) -> None:
        event = LimitReached("max_connections", limit, action)
        self._service.emit_rarely(event, action, self._communicator.poller.time())
