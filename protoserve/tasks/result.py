"""ResultTask: what the tasks that a user pushes have in common."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, TypeVar

from protoserve.errors import UsageError
from protoserve.kernel.scheduler import get_scheduler
from protoserve.kernel.subtask import SubTask
from protoserve.kernel.wakeup import Wakeup
from protoserve.tasks.series import SeriesWork

T = TypeVar("T")

_DISPATCHED: Final = 1
_COMPLETED: Final = 2

# Guards the stages of all tasks: held for a few instructions, at two moments of a task.
_stages = threading.Lock()


def _check_callback(callback: object) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(f"a callback must be callable, not {type(callback).__name__}")


class ResultTask(SubTask, Generic[T]):
    """A task that ends once, with a result or an exception, and then calls its callback.

    Use it in a series (``series.push_back(task)``), alone (``task.start()``), or in a
    coroutine (``await task``), once. An exception that nobody looks at (``result`` or
    ``exception``, in the callback) ends the series; so does one that the callback raises.

    ``user_data`` is yours. Unless said otherwise methods may be called from any thread.
    """

    __slots__ = ("_awaited", "_callback", "_canceled", "_exception", "_result", "_seen",
                 "_stage", "user_data")  # fmt: skip

    def __init__(self, callback: Callable[[Any], object] | None = None) -> None:
        super().__init__()
        _check_callback(callback)
        self.user_data: Any = None
        self._callback = callback
        self._stage = 0
        self._canceled = False
        self._awaited = False
        self._seen = False
        self._result: Any = None
        self._exception: BaseException | None = None

    # -- for users ---------------------------------------------------------------------

    @property
    def result(self) -> T:
        """What the task ended with. Raises the exception it ended with instead, and
        :class:`~protoserve.errors.UsageError` while it has not ended."""
        if not self._stage & _COMPLETED:
            raise UsageError(f"{type(self).__name__} has not ended; look in its callback")
        if self._exception is not None:
            self._seen = True
            raise self._exception
        result: T = self._result
        return result

    @property
    def exception(self) -> BaseException | None:
        """The exception the task ended with, if any."""
        self._seen = True
        return self._exception

    @property
    def canceled(self) -> bool:
        """Whether the task ended early because somebody cancelled it."""
        return self._canceled

    def set_callback(self, callback: Callable[[Any], object] | None) -> None:
        """Call ``callback(task)`` when the task has ended, on the thread where it did,
        before the next task of the series. A coroutine function's coroutine is run before
        the next task too. Raises ``TypeError`` for what is not callable."""
        _check_callback(callback)
        self._callback = callback

    def start(self) -> SeriesWork:
        """Run the task in a series of its own, which is returned.

        Raises :class:`~protoserve.errors.UsageError` when it is in a series already.
        """
        series = SeriesWork(self)
        series.start()
        return series

    def __await__(self) -> Generator[Any, Any, T]:
        """Run the task in a series of its own and wait for it, in a coroutine. Gives the
        result, or raises the exception. Cancelling the coroutine cancels the task."""
        return self._wait().__await__()

    async def _wait(self) -> T:
        ended = Wakeup()
        self._awaited = True
        series = SeriesWork(self)
        # In a server's loop, a coroutine that is a part of the task belongs there too.
        engine = get_scheduler().engine_here()
        if engine is not None:
            series.engine = engine
            series.service = engine.service_here()
        # Not its callback: the failure is raised here, and not logged there.
        series.adopt(ended.wake)
        series.start()
        try:
            await ended
        except asyncio.CancelledError:
            series.cancel()
            self.abandoned()
            raise
        if series.failure is not None:
            raise series.failure
        if series.canceled:
            raise asyncio.CancelledError
        return self.result

    # -- for kinds of tasks ------------------------------------------------------------

    def abandoned(self) -> None:
        """The coroutine that waited was cancelled; the result, if there is one, is nobody's."""

    def begin(self) -> None:
        """Start the work; ``complete`` is called when it has ended. May have ended before."""

    def complete(
        self,
        result: Any = None,
        exception: BaseException | None = None,
        *,
        canceled: bool = False,
    ) -> bool:
        """The work has ended. False, and nothing happens, when it had already."""
        with _stages:
            if self._stage & _COMPLETED:
                return False
            if canceled:
                self._canceled = True
            self._result = result
            self._exception = exception
            self._stage |= _COMPLETED
            due = self._stage & _DISPATCHED
        if due:
            self.subtask_done()
        return True

    @property
    def completed(self) -> bool:
        """Whether the work has ended."""
        return bool(self._stage & _COMPLETED)

    def dispatch(self) -> None:
        """The task's turn has come."""
        with _stages:
            self._stage |= _DISPATCHED
            due = self._stage & _COMPLETED
        if due:
            self.subtask_done()
        else:
            self.begin()

    def interrupt(self) -> None:
        """The series was cancelled: end early."""
        self.complete(canceled=True)

    def discard(self) -> None:
        """The series was cancelled before the task began: it never will."""
        self.complete(canceled=True)

    def done(self) -> SubTask | None:
        """The callback, then the next task of the series."""
        return self.end(self.series.canceled)

    def end(self, canceled: bool) -> SubTask | None:
        """``done``, once it is known whether the series was cancelled: then, or when the
        task could not begin, the callback is not called."""
        series = self.series
        callback, self._callback = self._callback, None
        if callback is not None and not canceled and self.completed:
            outcome = callback(self)
            if inspect.iscoroutine(outcome):
                from protoserve.tasks.coroutine import CoroutineTask

                # It may look at the exception as well as a function may.
                series.push_front(CoroutineTask(outcome, self._called_back))
                return series.pop()
        self._raise_unseen()
        return series.pop()

    def _called_back(self, callback: ResultTask[Any]) -> None:
        if callback._exception is None:
            self._raise_unseen()

    def _raise_unseen(self) -> None:
        error = self._exception
        if error is None or self._seen or self._awaited:
            return
        if isinstance(error, asyncio.CancelledError) and self.series.canceled:
            return  # what a cancelled coroutine ends with is no failure
        raise error


class EmptyTask(ResultTask[None]):
    """Does nothing, and then calls its callback."""

    __slots__ = ()

    def begin(self) -> None:
        """End at once."""
        self.complete()


def empty(callback: Callable[[EmptyTask], object] | None = None) -> EmptyTask:
    """A task that does nothing (the article's empty task)."""
    return EmptyTask(callback)
