"""Conditionals: tasks that run when somebody gives a signal."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from protoserve.errors import UsageError
from protoserve.kernel.subtask import SubTask
from protoserve.tasks.names import Names, at_most
from protoserve.tasks.result import ResultTask

T = TypeVar("T")

_names: Names[ConditionalTask[Any]] = Names()


class ConditionalTask(ResultTask[T], Generic[T]):
    """Waits for a signal, and then runs the task that it was given (the article's
    framework calls it ``WFConditional``). Its result is what came with the signal."""

    __slots__ = ("_task", "name")

    def __init__(
        self,
        task: SubTask,
        callback: Callable[[ConditionalTask[T]], object] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        if not isinstance(task, SubTask):
            hint = "; wrap it: coroutine(...)" if inspect.iscoroutine(task) else ""
            if inspect.iscoroutine(task):
                task.close()
            raise TypeError(f"conditional() takes a task, not {type(task).__name__}{hint}")
        if task._series is not None:
            raise UsageError(
                f"{type(task).__name__} is in a series already; make a new task for each"
            )
        super().__init__(callback)
        self._task: SubTask | None = task
        self.name = name
        _names.add(name, self)

    def signal(self, value: T | None = None) -> bool:
        """Let the task run. Any thread; also before the conditional's turn, and then the
        task runs when that comes. False when there was a signal before, or the series was
        cancelled."""
        return self.complete(value)

    def complete(
        self,
        result: Any = None,
        exception: BaseException | None = None,
        *,
        canceled: bool = False,
    ) -> bool:
        """Ends the wait once, and the name."""
        _names.discard(self.name, self)
        return super().complete(result, exception, canceled=canceled)

    def discard(self) -> None:
        """The series was cancelled before this one's turn: the task's never comes."""
        super().discard()
        task, self._task = self._task, None
        if task is not None:
            task.discard()

    def done(self) -> SubTask | None:
        """The signal came: the callback, then the task."""
        task, self._task = self._task, None
        if task is not None:
            self.series.push_front(task)  # discards it when the series was cancelled
        return super().done()


def conditional(
    task: SubTask,
    callback: Callable[[ConditionalTask[Any]], object] | None = None,
    *,
    name: str | None = None,
) -> ConditionalTask[Any]:
    """A task that waits for ``.signal(value)`` and then runs ``task``; with a name,
    ``signal_by_name(name, value)`` does it too. ``callback`` is called when the signal has
    come, before ``task`` runs.

    Raises ``TypeError`` for what is no task and :class:`~protoserve.errors.UsageError` for
    one that is in a series.
    """
    return ConditionalTask(task, callback, name=name)


def signal_by_name(name: str, value: object = None, max: int | None = None) -> int:  # noqa: A002 - Workflow's
    """Signal every conditional of that name, or the first ``max`` that were made, with
    ``value``. Returns how many. Any thread."""
    return at_most(max, _names.find(name), lambda task: task.signal(value))
