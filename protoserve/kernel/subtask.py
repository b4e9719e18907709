"""The task model: a task is dispatched, is done, and names the next of its series."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from protoserve.errors import UsageError

if TYPE_CHECKING:
    from protoserve.tasks.series import SeriesWork


def lacking(made: object, method: str) -> NotImplementedError:
    """What is raised by an abstract method: compiled classes can be instantiated without it."""
    return NotImplementedError(f"{type(made).__name__} needs a method {method}()")


@mypyc_attr(allow_interpreted_subclasses=True)
class SubTask(ABC):
    """One step of a series (the article's ``SubTask``).

    ``dispatch`` starts the work, and must not wait for it. When the work has ended, on
    any thread and possibly before ``dispatch`` returned, ``subtask_done`` is called
    exactly once; it runs the tasks that follow.
    """

    __slots__ = ("_series",)

    def __init__(self) -> None:
        self._series: SeriesWork | None = None

    @property
    def series(self) -> SeriesWork:
        """The series this task is in. Raises ``UsageError`` for a task in none."""
        if self._series is None:
            raise UsageError(
                f"{type(self).__name__} is in no series yet; push it on one, "
                "for example task.series.push_back(...)"
            )
        return self._series

    @abstractmethod
    def dispatch(self) -> None:
        """Start the work. An exception ends the series with a failure."""
        raise lacking(self, "dispatch")

    def interrupt(self) -> None:
        """The series was cancelled while this task runs: end soon, where that is possible,
        by ``subtask_done``. Any thread; must not block."""

    def discard(self) -> None:
        """The series was cancelled before this task's turn, which will not come."""

    def done(self) -> SubTask | None:
        """What follows: by default the next task of the series. Called once, by
        ``subtask_done``; the place for a task's callback."""
        return self.series.pop()

    def subtask_done(self) -> None:
        """The work has ended: go on with the series. Any thread.

        The trampoline that dispatched this task takes over when it is still on the
        stack, so that a series of any length runs in constant stack.
        """
        self.series.advance(self)
