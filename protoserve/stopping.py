"""How those who asked learn that a server begins to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

from protoserve.kernel.life import CallbackHandle
from protoserve.kernel.wakeup import Wakeup
from protoserve.log import logger


class StopNotice:
    """Callbacks for the moment in which one stop begins. Any thread; ``tell`` is called once.

    Its lock is never held while a callback runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = False
        self._callbacks: dict[CallbackHandle, Callable[[], object]] = {}

    def __len__(self) -> int:
        return len(self._callbacks)

    def add(self, callback: Callable[[], object]) -> CallbackHandle:
        """Call ``callback()`` at that moment; at once when it has come."""
        if not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        handle = CallbackHandle(self._forget)
        with self._lock:
            if not self._told:
                self._callbacks[handle] = callback
                return handle
        callback()
        return handle

    def _forget(self, handle: CallbackHandle) -> bool:
        with self._lock:
            return self._callbacks.pop(handle, None) is not None

    def tell(self) -> None:
        """The moment has come."""
        with self._lock:
            self._told = True
            callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks.values():
            try:
                callback()
            except BaseException:
                logger.exception("a callback of the stop, %r, raised", callback)

    def wait(self, timeout: float | None) -> bool:
        """Wait for it, in a function. False after ``timeout`` seconds."""
        begun = threading.Event()
        handle = self.add(begun.set)
        try:
            return begun.wait(timeout)
        finally:
            handle.cancel()

    async def until(self) -> None:
        """Wait for it, in a coroutine."""
        begun = Wakeup()
        handle = self.add(begun.wake)
        try:
            await begun
        finally:
            handle.cancel()
