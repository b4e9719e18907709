"""Timers: tasks that wait."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import ClassVar

from protoserve.errors import ConfigError
from protoserve.kernel.engine import Engine
from protoserve.kernel.poller import TimerEntry
from protoserve.kernel.scheduler import get_scheduler
from protoserve.tasks.names import NamedTask, Names, at_most


class TimerTask(NamedTask[None]):
    """Ends after some seconds, or when it is cancelled."""

    __slots__ = ("_engine", "_entry", "seconds")

    names: ClassVar[Names[TimerTask]] = Names()

    def __init__(
        self,
        seconds: float,
        callback: Callable[[TimerTask], object] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise ConfigError(f"timer({seconds!r}): expected seconds as a number")
        if not 0 <= seconds <= sys.float_info.max:
            raise ConfigError(f"timer({seconds!r}): expected 0 seconds or more, a finite number")
        self.seconds = seconds
        self._engine: Engine | None = None
        self._entry: TimerEntry | None = None
        super().__init__(callback, name)

    def begin(self) -> None:
        """Set the clock."""
        try:
            engine = get_scheduler().hold(self.series.engine)
        except BaseException:  # the system has no thread or descriptor for it
            self.names.discard(self.name, self)
            raise
        self._engine = engine
        poller = engine.poller
        self._entry = poller.call_at(poller.time() + self.seconds, self._ring, None)
        if self.completed:  # cancelled this moment
            self._stop_clock()

    def cancel(self) -> bool:
        """End now; the series goes on, and the callback sees ``canceled``. Works before
        the task has begun, too. False when it had ended."""
        if not self.complete(canceled=True):
            return False
        self._stop_clock()
        return True

    def interrupt(self) -> None:
        """The series was cancelled."""
        self.cancel()

    def _ring(self, _: object, __: int) -> None:
        engine = self._engine
        if engine is not None and engine.defer(self._ring, None):
            return  # what follows is a handler, and the threads for those are busy
        self._engine = None
        try:
            self.complete()
        finally:
            if engine is not None:
                engine.release()

    def _stop_clock(self) -> None:
        entry, engine = self._entry, self._engine
        if entry is not None and engine is not None and engine.poller.cancel(entry):
            self._engine = None
            engine.release()


def timer(
    seconds: float,
    callback: Callable[[TimerTask], object] | None = None,
    *,
    name: str | None = None,
) -> TimerTask:
    """A task that ends after ``seconds``. A ``name`` lets ``cancel_by_name`` find it.

    Raises :class:`~protoserve.errors.ConfigError` for a time that is none.
    """
    return TimerTask(seconds, callback, name=name)


def cancel_by_name(name: str, max: int | None = None) -> int:  # noqa: A002 - Workflow's
    """Cancel every timer of that name, begun or not, or the first ``max`` that were made.
    Returns how many. Any thread."""
    return at_most(max, TimerTask.names.find(name), TimerTask.cancel)
