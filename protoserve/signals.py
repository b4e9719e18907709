"""Waiting for signals that stop servers, and for the servers' end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from protoserve.server import WFServerBase

_STOPPING: Final = 0
"""In an inbox: a server has begun to stop."""

_ENDED: Final = -1
"""In an inbox: a server has stopped."""


class _Inbox:
    """Signals and what servers tell, for the main thread that waits for either.

    A descriptor, because a lock will not do: a signal that arrives just before the thread
    blocks, or that the system gives to another thread, does not wake it. Python's wake-up
    descriptor is written wherever and whenever the signal arrives.
    """

    def __init__(self) -> None:
        self._numbers: deque[int] = deque()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def __enter__(self) -> _Inbox:
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()

    def put(self, number: int) -> None:
        """From any thread, and from a signal handler."""
        self._numbers.append(number)
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            self._writer.send(b"\0")

    def get(self) -> int:
        """Wait for the next number."""
        while not self._numbers:
            self._reader.recv(64)
        return self._numbers.popleft()


def wait_for_signal(
    servers: Sequence[WFServerBase], signals: Sequence[int], ready: Callable[[], object] | None
) -> int:
    """``WFServerBase.wait_for_signal`` for servers that stop together: at the first signal, or
    when one of them begins to stop. Each further signal cuts what runs at that moment. Returns
    the first signal's number, 0 for none. Main thread only."""

    def note(number: int, _: FrameType | None) -> None:
        inbox.put(number)

    def wait_finish(server: WFServerBase) -> None:
        try:
            server.wait_finish()
        finally:
            inbox.put(_ENDED)

    received = 0
    running = len(servers)
    before: dict[int, Any] = {}
    with _Inbox() as inbox, contextlib.ExitStack() as watching:
        for server in servers:
            handle = server.on_stopping(lambda: inbox.put(_STOPPING))
            watching.callback(handle.cancel)
        if any(server.stopping for server in servers):  # since before we were to be told
            inbox.put(_STOPPING)
        # They cut what is left when its time is over, while this thread waits for signals.
        waiting = [
            threading.Thread(
                target=wait_finish, args=(server,), name="protoserve-stop", daemon=True
            )
            for server in servers
        ]
        try:
            for number in signals:
                before[number] = signal.signal(number, note)
            if ready is not None:
                ready()
            for thread in waiting:
                thread.start()
            while running:
                number = inbox.get()
                if number == _ENDED:
                    running -= 1
                elif number == _STOPPING or not received:
                    received = received or number
                    for server in servers:
                        server.shutdown()
                else:
                    for server in servers:
                        server.cut()
            for thread in waiting:
                thread.join()
        finally:
            for number, handler in before.items():
                # None: a handler that was not installed from Python.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
    return received
