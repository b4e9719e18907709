"""How any thread wakes a coroutine, or a function, that waits, and what one awaits that need
not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from protoserve.kernel.engine import Engine


class Wakeup:
    """A moment that a coroutine awaits, in the loop in which this was made.

    ``wake`` may be called on any thread and more than once, and is a callback for whoever
    gives an argument.
    """

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def wake(self, *_: object) -> None:
        """The moment has come."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
            self._loop.call_soon_threadsafe(self._arrive)

    def _arrive(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        return self._future.__await__()


class _NoWait:
    """An awaitable that is there already."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


NO_WAIT: Final = _NoWait()


def block(engine: Engine | None, there: threading.Event) -> None:
    """Wait for ``there``, in a handler that is a function; see ``Engine.block``."""
    if engine is None:
        there.wait()
    else:
        engine.block(there)
