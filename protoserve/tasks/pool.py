"""ResourcePool: a bounded number of something, and tasks that wait for one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from protoserve.errors import ConfigError
from protoserve.kernel.subtask import SubTask
from protoserve.tasks.result import ResultTask
from protoserve.tasks.series import SeriesWork

T = TypeVar("T")

_draining = threading.local()

_NOTHING: Final = object()
"""Instead of a resource: the task was cancelled before it got one."""


class ResourceTask(ResultTask[T], Generic[T]):
    """Ends when it is given a resource, its result. Give it back with ``pool.post``."""

    __slots__ = ("_pool", "_returned")

    def __init__(
        self,
        pool: ResourcePool[T],
        callback: Callable[[ResourceTask[T]], object] | None = None,
    ) -> None:
        super().__init__(callback)
        self._pool = pool
        self._returned = False

    def begin(self) -> None:
        """Take a resource, or queue for one."""
        self._pool._serve(self)

    def interrupt(self) -> None:
        """The series was cancelled: leave the queue."""
        self._pool._leave(self)
        self.complete(_NOTHING, canceled=True)

    def discard(self) -> None:
        """The series was cancelled before it began: it gets nothing."""
        self.complete(_NOTHING, canceled=True)

    def done(self) -> SubTask | None:
        """The callback, unless the series was cancelled: then nobody would ever give back
        what was handed out at that moment."""
        canceled = self.series.canceled
        if self._result is _NOTHING:
            self._result = None
        elif canceled:
            self._give_back()
        return self.end(canceled)

    def abandoned(self) -> None:
        """The coroutine that waited was cancelled, perhaps after the resource was given."""
        if self.completed and self._result is not _NOTHING and not self._canceled:
            self._give_back()

    def _give_back(self) -> None:
        with self._pool._lock:
            if self._returned:
                return
            self._returned = True
        resource, self._result = self._result, None
        self._canceled = True
        self._pool.post(resource)


class ResourcePool(Generic[T]):
    """Hands out resources, first come, first served (the article's resource pool).

    Made of a number, for bounded concurrency, or of the resources themselves. All methods
    may be called from any thread.
    """

    def __init__(self, resources: int | Iterable[T]) -> None:
        if isinstance(resources, (str, bytes)) or not isinstance(resources, (int, Iterable)):
            raise ConfigError(
                f"ResourcePool({resources!r}): expected a number, or an iterable of resources"
            )
        if isinstance(resources, int):
            if isinstance(resources, bool) or resources < 1:
                raise ConfigError(f"ResourcePool({resources!r}): expected at least 1")
            items: list[Any] = [None] * resources
        else:
            items = list(resources)
        self._lock = threading.Lock()  # guards what follows
        self._free: deque[Any] = deque(items)
        self._waiting: deque[ResourceTask[T]] = deque()

    def get(self, callback: Callable[[ResourceTask[T]], object] | None = None) -> ResourceTask[T]:
        """A task that ends when a resource is free; its result is the resource."""
        return ResourceTask(self, callback)

    def post(self, resource: T | None = None) -> None:
        """Give a resource back, or add one: the next task that waits goes on."""
        with self._lock:
            self._free.append(resource)
        self._match()

    def run(self, create: Callable[[T], SubTask]) -> ResourceTask[T]:
        """A task that takes a resource, runs ``create(resource)``, a task, and gives the
        resource back however that ends. Its own result is the resource; what the inner task
        ends with is for that one's callback."""
        if not callable(create):
            raise TypeError(f"run() takes a function that makes a task, not {create!r}")
        from protoserve.tasks.parallel import ParallelWork

        def run_one(task: ResourceTask[T]) -> None:
            resource = task.result
            try:
                inner = SeriesWork(create(resource))
            except BaseException:
                self.post(resource)
                raise
            inner.set_callback(lambda _: self.post(resource))
            task.series.push_front(ParallelWork(inner))

        return self.get(run_one)

    def _serve(self, task: ResourceTask[T]) -> None:
        with self._lock:
            self._waiting.append(task)
        self._match()

    def _leave(self, task: ResourceTask[T]) -> None:
        with self._lock:
            if task in self._waiting:
                self._waiting.remove(task)

    def _match(self) -> None:
        """Hand free resources to tasks that wait. What those tasks do may post again: that
        is noted and done here, not in a call from within."""
        busy = getattr(_draining, "pools", None)
        if busy is None:
            busy = _draining.pools = set()
        if self in busy:
            return
        busy.add(self)
        try:
            while True:
                with self._lock:
                    if not self._free or not self._waiting:
                        return
                    resource = self._free.popleft()
                    task = self._waiting.popleft()
                if not task.complete(resource):
                    with self._lock:
                        self._free.appendleft(resource)
        finally:
            busy.discard(self)
