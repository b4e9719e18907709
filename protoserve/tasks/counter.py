"""Counters and mailboxes: tasks that something else completes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from protoserve.tasks.names import NamedTask, Names, at_most
from protoserve.tasks.numbers import check_number

T = TypeVar("T")

_lock = threading.Lock()  # guards the counts


class CounterTask(NamedTask[None]):
    """Ends when it was counted to its target."""

    __slots__ = ("_left",)

    names: ClassVar[Names[CounterTask]] = Names()

    def __init__(
        self,
        target: int,
        callback: Callable[[CounterTask], object] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        check_number(f"counter({target!r})", target)
        self._left = target
        super().__init__(callback, name)
        if target == 0:
            self.complete()

    def count(self, n: int = 1) -> None:
        """Count ``n`` more, from any thread; more than the target does no harm. Raises
        :class:`~protoserve.errors.ConfigError` for a number that is none."""
        check_number(f"count({n!r})", n)
        with _lock:
            self._left -= n
            ended = self._left <= 0
        if ended:
            self.complete()


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
    """Count the counters of that name by ``n`` in all: the one that was made first to its
    target, with what is left the next, and so on, as Workflow does. Returns how many reached
    their target by it. Any thread. Raises :class:`~protoserve.errors.ConfigError` for a
    number that is none."""
    check_number(f"count_by_name({n!r})", n)
    ended = []
    with _lock:
        for task in CounterTask.names.find(name):
            if task._left <= 0:
                continue  # ends on another thread at this moment
            counted = min(n, task._left)
            task._left -= counted
            n -= counted
            if task._left > 0:
                break
            ended.append(task)
    for task in ended:
        task.complete()
    return len(ended)


class MailboxTask(NamedTask[T], Generic[T]):
    """Ends when a value arrives."""

    __slots__ = ()

    names: ClassVar[Names[MailboxTask[Any]]] = Names()

    def __init__(
        self,
        callback: Callable[[MailboxTask[T]], object] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(callback, name)

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


def mailbox(
    callback: Callable[[MailboxTask[T]], object] | None = None, *, name: str | None = None
) -> MailboxTask[T]:
    """A task that waits for ``task.send(value)`` from elsewhere; with a name,
    ``send_by_name(name, value)`` does it too."""
    return MailboxTask(callback, name=name)


def send_by_name(name: str, value: object, max: int | None = None) -> int:  # noqa: A002 - Workflow's
    """Send ``value`` to every mailbox of that name, or to the first ``max`` that were made.
    Returns how many. Any thread."""
    return at_most(max, MailboxTask.names.find(name), lambda task: task.send(value))
