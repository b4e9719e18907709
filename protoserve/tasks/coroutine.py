"""CoroutineTask: a coroutine as a task of a series."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from protoserve.kernel.scheduler import get_scheduler
from protoserve.tasks.result import ResultTask

T = TypeVar("T")


class CoroutineTask(ResultTask[T], Generic[T]):
    """Runs a coroutine in an asyncio loop, and ends with what it returned or raised.

    The loop is that of the server where its handlers are coroutines, else one that all
    such tasks share, in a thread of its own. When the system has no thread to spare for that,
    the task ends with ``RuntimeError``.
    """

    __slots__ = ("_cancel", "_coro", "_value")

    def __init__(
        self,
        coro: Coroutine[Any, Any, T],
        callback: Callable[[CoroutineTask[T]], object] | None = None,
    ) -> None:
        if not isinstance(coro, Coroutine):
            raise TypeError(
                f"coroutine() takes a coroutine, as an async function returns it when it is "
                f"called, not {type(coro).__name__}"
            )
        super().__init__(callback)
        self._coro: Coroutine[Any, Any, T] | None = coro
        self._cancel: Callable[[], object] | None = None
        self._value: Any = None

    def begin(self) -> None:
        """Start the coroutine."""
        coro = self._coro
        assert coro is not None
        series = self.series
        engine = series.engine
        runner = get_scheduler() if engine is None else engine
        running = self._run(coro)
        try:
            self._cancel = runner.run_coroutine(running, self._ended, series.service)
        except Exception as error:  # the system has no thread for the loop
            running.close()
            self._ended(error)
            return
        if self._canceled:
            self._cancel()

    async def _run(self, coro: Coroutine[Any, Any, T]) -> None:
        self._value = await coro

    def _ended(self, exception: BaseException | None) -> None:
        coro, self._coro = self._coro, None
        if coro is not None:
            coro.close()  # nothing to do, unless it was cancelled before its first step
        self.complete(self._value, exception)

    def interrupt(self) -> None:
        """The series was cancelled: cancel the coroutine, which ends the task."""
        self._canceled = True
        if self._cancel is not None:
            self._cancel()

    def discard(self) -> None:
        """The series was cancelled before the coroutine began: it never will."""
        coro, self._coro = self._coro, None
        if coro is not None:
            coro.close()
        super().discard()


def coroutine(
    coro: Coroutine[Any, Any, T],
    callback: Callable[[CoroutineTask[T]], object] | None = None,
) -> CoroutineTask[T]:
    """A task that runs ``coro``. Raises ``TypeError`` for what is no coroutine."""
    return CoroutineTask(coro, callback)
