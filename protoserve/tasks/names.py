"""Names of tasks, by which others find them while they have not ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, TypeVar

from protoserve.tasks.numbers import check_number
from protoserve.tasks.result import ResultTask

T = TypeVar("T")
TASK = TypeVar("TASK", bound=ResultTask[Any])


class Names(Generic[TASK]):
    """Which tasks have which name. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: dict[str, dict[TASK, None]] = {}

    def add(self, name: str | None, task: TASK) -> None:
        """``task`` has this name; ``None`` for none."""
        if name is not None:
            with self._lock:
                self._named.setdefault(name, {})[task] = None

    def discard(self, name: str | None, task: TASK) -> None:
        """``task`` has ended."""
        if name is None:
            return
        with self._lock:
            tasks = self._named.get(name)
            if tasks is not None:
                tasks.pop(task, None)
                if not tasks:
                    del self._named[name]

    def find(self, name: str) -> list[TASK]:
        """The tasks of that name at this moment, in the order in which they were made."""
        with self._lock:
            return list(self._named.get(name, ()))


class NamedTask(ResultTask[T], Generic[T]):
    """A task that others find by its name, if it has one, until it ends.

    They may from within ``__init__`` on: a subclass calls that when it is ready for them.
    """

    __slots__ = ("name",)

    names: ClassVar[Names[Any]]
    """Those of this kind of tasks."""

    def __init__(
        self, callback: Callable[[Any], object] | None = None, name: str | None = None
    ) -> None:
        super().__init__(callback)
        self.name = name
        self.names.add(name, self)

    def complete(
        self,
        result: Any = None,
        exception: BaseException | None = None,
        *,
        canceled: bool = False,
    ) -> bool:
        """Ends the task once, and its name."""
        self.names.discard(self.name, self)
        return super().complete(result, exception, canceled=canceled)


def at_most(number: int | None, tasks: Iterable[TASK], end: Callable[[TASK], bool]) -> int:
    """End the tasks, in their order, until that was done to ``number`` of them; ``None`` is no
    limit. Returns how many it was done to: not to those that end at this moment by themselves.
    Raises :class:`~protoserve.errors.ConfigError` for a number that is none."""
    if number is not None:
        check_number(f"max={number!r}", number, otherwise=", or None for all")
    ended = 0
    for task in tasks:
        if ended == number:
            break
        ended += end(task)
    return ended
