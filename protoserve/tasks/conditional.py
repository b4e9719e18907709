"""Conditionals: tasks that run when somebody gives a signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from protoserve.kernel.subtask import SubTask
from protoserve.tasks.names import NamedTask, Names, at_most
from protoserve.tasks.series import check_task

T = TypeVar("T")


class ConditionalTask(NamedTask[T], Generic[T]):
    """Waits for a signal, and then runs the task that it was given (the article's
    framework calls it ``WFConditional``). Its result is what came with the signal."""

    __slots__ = ("_task",)

    names: ClassVar[Names[ConditionalTask[Any]]] = Names()

    def __init__(
        self,
        task: SubTask,
        callback: Callable[[ConditionalTask[T]], object] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        check_task(task, "conditional() takes a task")
        self._task: SubTask | None = task
        super().__init__(callback, name)

    def signal(self, value: T | None = None) -> bool:
        """Let the task run. Any thread; also before the conditional's turn, and then the
        task runs when that comes. False when there was a signal before, or the series was
        cancelled."""
        return self.complete(value)

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
    return at_most(max, ConditionalTask.names.find(name), lambda task: task.signal(value))
