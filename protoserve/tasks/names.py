"""Names of tasks, by which others find them while they have not ended."""

from __future__ import annotations

import threading
from typing import Any, Generic, TypeVar

from protoserve.tasks.result import ResultTask

TASK = TypeVar("TASK", bound=ResultTask[Any])


class Names(Generic[TASK]):
    """Which tasks have which name. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: dict[str, set[TASK]] = {}

    def add(self, name: str | None, task: TASK) -> None:
        """``task`` has this name; ``None`` for none."""
        if name is not None:
            with self._lock:
                self._named.setdefault(name, set()).add(task)

    def discard(self, name: str | None, task: TASK) -> None:
        """``task`` has ended."""
        if name is None:
            return
        with self._lock:
            tasks = self._named.get(name)
            if tasks is not None:
                tasks.discard(task)
                if not tasks:
                    del self._named[name]

    def find(self, name: str) -> list[TASK]:
        """The tasks of that name at this moment."""
        with self._lock:
            return list(self._named.get(name, ()))
