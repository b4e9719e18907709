"""Tasks that are made when their turn comes: once, or again and again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from protoserve.kernel.subtask import SubTask
from protoserve.tasks.result import ResultTask

FUNCTION = TypeVar("FUNCTION", bound=Callable[..., object])


def _checked(create: FUNCTION) -> FUNCTION:
    if not callable(create) or inspect.iscoroutinefunction(create):
        raise TypeError(f"expected a plain function that makes a task, not {create!r}")
    return create


class DynamicTask(ResultTask[None]):
    """Makes a task when its turn comes; that one runs next."""

    __slots__ = ("_create",)

    def __init__(self, create: Callable[[DynamicTask], SubTask]) -> None:
        super().__init__()
        self._create = _checked(create)

    def begin(self) -> None:
        """Make the task."""
        self.series.push_front(self._create(self))
        self.complete()


def dynamic(create: Callable[[DynamicTask], SubTask]) -> DynamicTask:
    """A task that is made by ``create(task)`` when its turn comes, from what is known then."""
    return DynamicTask(create)


class RepeaterTask(ResultTask[int]):
    """Makes and runs tasks until there are no more; the result is how many there were."""

    __slots__ = ("_create", "_times")

    def __init__(
        self,
        create: Callable[[RepeaterTask], SubTask | None],
        callback: Callable[[RepeaterTask], object] | None = None,
    ) -> None:
        super().__init__(callback)
        self._create = _checked(create)
        self._times = 0

    @property
    def times(self) -> int:
        """How many tasks were made so far."""
        return self._times

    def begin(self) -> None:
        """Make the next task, and come back after it."""
        task = self._create(self)
        series = self.series
        if task is None or series.canceled:
            self.complete(self._times, canceled=series.canceled)
            if task is not None:
                task.discard()
            return
        self._times += 1
        self._stage = 0  # it begins again
        series.requeue(self)
        series.push_front(task)
        self.subtask_done()

    def interrupt(self) -> None:
        """The series was cancelled while the next task is made: ``begin`` notices."""

    def done(self) -> SubTask | None:
        """After each time, and once more at the end."""
        return super().done() if self.completed else self.series.pop()


def repeater(
    create: Callable[[RepeaterTask], SubTask | None],
    callback: Callable[[RepeaterTask], object] | None = None,
) -> RepeaterTask:
    """A task that runs ``create(task)``'s tasks, one after the other, until it gives
    ``None``."""
    return RepeaterTask(create, callback)
