"""ParallelWork: several series at once, as one task."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from protoserve.errors import UsageError
from protoserve.kernel.subtask import SubTask
from protoserve.tasks.result import ResultTask
from protoserve.tasks.series import SeriesWork


class ParallelWork(ResultTask[list[SeriesWork]]):
    """Runs series side by side and ends with the last (the article's ``ParallelWork``).

    The result is the list of series. When one failed, the first failure is the
    exception; the others run to their end all the same. ``context`` is yours.
    """

    __slots__ = ("_all", "_left", "_lock", "context")

    def __init__(
        self,
        *work: SubTask | SeriesWork,
        callback: Callable[[ParallelWork], object] | None = None,
    ) -> None:
        super().__init__(callback)
        self.context: Any = None
        self._lock = threading.Lock()  # guards _left
        self._left = 0
        self._all: list[SeriesWork] = []
        for item in work:
            self.add(item)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[SeriesWork]:
        return iter(self._all)

    def __getitem__(self, index: int) -> SeriesWork:
        return self._all[index]

    def add(self, work: SubTask | SeriesWork) -> SeriesWork:
        """One more series, or task, which gets a series of its own. Returns the series.

        Raises :class:`~protoserve.errors.UsageError` when the parallel work has begun.
        """
        if self._left or self.completed:
            raise UsageError("this parallel work has begun; add its series before")
        series = work if isinstance(work, SeriesWork) else SeriesWork(work)
        series.adopt(self._finished)
        self._all.append(series)
        return series

    def begin(self) -> None:
        """Start all of them."""
        self._left = len(self._all) + 1
        for series in self._all:
            series.engine = self.series.engine
            series.service = self.series.service
            series.start()
        self._finished(None)

    def interrupt(self) -> None:
        """The series was cancelled: cancel those in here; they end it."""
        self._canceled = True
        for series in self._all:
            series.cancel()

    def discard(self) -> None:
        """The series was cancelled before this began: what is in here ends without having
        run, and its callbacks learn of it."""
        super().discard()
        for series in self._all:
            series.cancel()
            series.start()

    def _finished(self, _: SeriesWork | None) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        failures = [series.failure for series in self._all if series.failure is not None]
        self.complete(self._all, failures[0] if failures else None)


def parallel(
    *work: SubTask | SeriesWork, callback: Callable[[ParallelWork], object] | None = None
) -> ParallelWork:
    """A task that runs several tasks or series at once and ends with the last."""
    return ParallelWork(*work, callback=callback)
