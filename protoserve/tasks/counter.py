"""Counters and mailboxes: tasks that something else completes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from protoserve.errors import ConfigError
from protoserve.tasks.names import Names
from protoserve.tasks.result import ResultTask

T = TypeVar("T")

_lock = threading.Lock()  # guards the counts
_names: Names[CounterTask] = Names()


class CounterTask(ResultTask[None]):
    """Ends when it was counted to its target."""

    __slots__ = ("_left", "name")

    def __init__(
        self,
        target: int,
        callback: Callable[[CounterTask], object] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        if isinstance(target, bool) or not isinstance(target, int) or target < 0:
            raise ConfigError(f"counter({target!r}): expected a whole number from 0 on")
        super().__init__(callback)
        self._left = target
        self.name = name
        if target == 0:
            self.complete()
        else:
            _names.add(name, self)

    def count(self, n: int = 1) -> None:
        """Count ``n`` more, from any thread; more than the target does no harm."""
        with _lock:
            self._left -= n
            ended = self._left <= 0
        if ended:
            self.complete()

    def complete(
        self,
        result: object = None,
        exception: BaseException | None = None,
        *,
        canceled: bool = False,
    ) -> bool:
        """Ends the task once, and its name."""
        _names.discard(self.name, self)
        return super().complete(result, exception, canceled=canceled)


def counter(
    target: int,
    callback: Callable[[CounterTask], object] | None = None,
    *,
    name: str | None = None,
) -> CounterTask:
    """A task that ends when ``task.count()`` was called ``target`` times; with a name,
    ``count_by_name(name)`` does it too. Raises :class:`~protoserve.errors.ConfigError` for a
    target that is none."""
    return CounterTask(target, callback, name=name)


def count_by_name(name: str, n: int = 1) -> int:
    """Count every counter of that name. Returns how many there were. Any thread."""
    tasks = _names.find(name)
    for task in tasks:
        task.count(n)
    return len(tasks)


class MailboxTask(ResultTask[T], Generic[T]):
    """Ends when a value arrives."""

    __slots__ = ()

    def send(self, value: T) -> bool:
        """End the task with ``value`` as its result. Any thread, a foreign event loop's
        too; also before the task's turn. False when it had ended."""
        return self.complete(value)

    def fail(self, exception: BaseException) -> bool:
        """End the task with an exception. Otherwise as ``send``. Raises ``TypeError`` for
        what is none."""
        if not isinstance(exception, BaseException):
            raise TypeError(f"fail() takes an exception, not {type(exception).__name__}")
        return self.complete(exception=exception)


def mailbox(callback: Callable[[MailboxTask[T]], object] | None = None) -> MailboxTask[T]:
    """A task that waits for ``task.send(value)`` from elsewhere (a conditional)."""
    return MailboxTask(callback)
