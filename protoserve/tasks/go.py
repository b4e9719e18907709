"""Go tasks: functions on the compute threads."""

from __future__ import annotations

import contextvars
import inspect
import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from protoserve.errors import ConfigError
from protoserve.kernel.current import CURRENT
from protoserve.kernel.scheduler import get_scheduler
from protoserve.tasks.result import ResultTask
from protoserve.tasks.series import SeriesWork
from protoserve.tasks.timer import TimerTask

T = TypeVar("T")


class GoTask(ResultTask[T], Generic[T]):
    """A function call on a compute thread (the article's ``ExecRequest`` and GO-task).

    It ends with what the function returned or raised. With a time limit it ends with
    ``TimeoutError`` when the function, waiting in its queue included, took longer; the
    function itself cannot be stopped and runs on, its result is dropped.
    """

    __slots__ = ("_call", "_context", "_limit", "_timer", "queue")

    def __init__(
        self,
        call: Callable[[], T],
        *,
        queue: str = "",
        limit: float | None = None,
        callback: Callable[[GoTask[T]], object] | None = None,
    ) -> None:
        super().__init__(callback)
        if limit is not None and not 0 < limit <= sys.float_info.max:
            raise ConfigError(
                f"go(limit={limit!r}): expected seconds above 0, or None for no limit"
            )
        self.queue = queue
        self._call: Callable[[], T] | None = call
        self._limit = limit
        self._timer: TimerTask | None = None
        self._context = contextvars.copy_context()

    def begin(self) -> None:
        """Queue the function."""
        engine = self.series.engine
        if self._limit is not None:
            self._timer = TimerTask(self._limit, self._expire)
            series = SeriesWork(self._timer)
            series.engine = engine
            series.start()
            if self.completed:  # cancelled this moment
                self._timer.cancel()
        try:
            computes = engine or get_scheduler().engine_here() or get_scheduler().executor
            computes.submit(self.queue, self._run)
        except (RuntimeError, MemoryError) as error:  # the system has no thread for it
            self._call = None
            self.complete(exception=error)

    def _expire(self, timer: TimerTask) -> None:
        if not timer.canceled:
            self.complete(
                exception=TimeoutError(f"the function did not end within {self._limit} s")
            )

    def _run(self) -> None:
        call, self._call = self._call, None
        if self.completed or call is None:
            return  # out of time or cancelled before its turn
        result: Any = None
        exception: BaseException | None = None
        CURRENT.service = None if self._series is None else self._series.service
        try:
            result = self._context.run(call)
        except BaseException as error:
            exception = error
        CURRENT.service = None
        self.complete(result, exception)

    def complete(
        self,
        result: Any = None,
        exception: BaseException | None = None,
        *,
        canceled: bool = False,
    ) -> bool:
        """Ends the task once, and its time limit."""
        if self._timer is not None:
            self._timer.cancel()
        return super().complete(result, exception, canceled=canceled)


def go(
    function: Callable[..., T],
    *args: Any,
    queue: str = "",
    limit: float | None = None,
    callback: Callable[[GoTask[T]], object] | None = None,
    **kwargs: Any,
) -> GoTask[T]:
    """A task that calls ``function(*args, **kwargs)`` on a compute thread.

    The function may block. There are as many threads as the parameter ``compute_threads``
    of the servers says, without a server as many as ``concurrent.futures`` takes by default.
    Queues, by name, take turns: a long one does not hold up a short one. ``limit``: seconds
    until the task ends with ``TimeoutError``. The function sees the caller's context
    variables. When the system has no thread to spare the task ends with ``RuntimeError``.
    """
    if not callable(function):
        raise TypeError(f"go() takes a function, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            "go() takes a plain function; for a coroutine use coroutine(...), or await it"
        )
    return GoTask(lambda: function(*args, **kwargs), queue=queue, limit=limit, callback=callback)
