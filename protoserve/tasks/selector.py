"""Selectors: tasks that the first of several ends."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from protoserve.tasks.numbers import check_number
from protoserve.tasks.result import ResultTask

T = TypeVar("T")

_lock = threading.Lock()  # guards what is known of the candidates


class SelectorTask(ResultTask[T], Generic[T]):
    """Ends with the first value that one of its candidates submits (the article's framework
    calls it ``WFSelectorTask``).

    When each has submitted ``None``, there is no value: it ends with an ``OSError`` of
    ``ENOMSG``.
    """

    __slots__ = ("_chosen", "_left", "candidates")

    def __init__(
        self,
        candidates: int,
        callback: Callable[[SelectorTask[T]], object] | None = None,
    ) -> None:
        check_number(f"selector({candidates!r})", candidates, 1)
        super().__init__(callback)
        self.candidates = candidates
        self._left = candidates
        self._chosen = False

    def submit(self, value: T | None) -> bool:
        """What one candidate has come to; ``None``: it failed. Any thread, also before the
        task's turn. Returns whether it is the task's result: the first value is."""
        with _lock:
            self._left -= 1
            first = value is not None and not self._chosen
            self._chosen |= first
            nothing = self._left == 0 and not self._chosen
        if first:
            return self.complete(value)
        if nothing:
            message = f"none of the {self.candidates} candidates of a selector had a value"
            self.complete(exception=OSError(errno.ENOMSG, message))
        return False


def selector(
    candidates: int, callback: Callable[[SelectorTask[Any]], object] | None = None
) -> SelectorTask[Any]:
    """A task that ends with the first value that one of so many candidates gives to
    ``task.submit(value)``. Each submits once, ``None`` when it has failed; what comes later
    is dropped. Raises :class:`~protoserve.errors.ConfigError` for a number that is none."""
    return SelectorTask(candidates, callback)
