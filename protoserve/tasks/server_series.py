"""The series of a request: its handler, what that pushed, and last the reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from protoserve.errors import UsageError
from protoserve.kernel.subtask import SubTask
from protoserve.tasks.series import SeriesWork

if TYPE_CHECKING:
    from protoserve.tasks.network import WFServerTask


# Where a server task is in its life; a series that is asked for late starts from there.
PROCESSING: Final = 0
REPLYING: Final = 1
CALLBACK: Final = 2
OVER: Final = 3


class Processor(SubTask):
    """The first task of a request's series: the handler, ``process(task)``.

    Made only for requests whose series somebody asks for, which the handler does: it runs
    already, and the task stands for it.
    """

    __slots__ = ("task",)

    def __init__(self, task: WFServerTask[Any, Any]) -> None:
        super().__init__()
        self.task = task

    def dispatch(self) -> None:
        """Raises ``UsageError``: the handler of a request runs once, and has begun."""
        raise UsageError("the handler of this request runs already; it runs once")

    def interrupt(self) -> None:
        """The series was cancelled: so is a handler that is a coroutine."""
        self.task.cancel_coroutine()


class ServerSeries(SeriesWork):
    """The series of one request: the processor, what was pushed, and last the reply."""

    __slots__ = ("_task",)

    def __init__(self, task: WFServerTask[Any, Any], stage: int) -> None:
        self._task = task
        if stage == PROCESSING:
            super().__init__(Processor(task), last=task)
        else:
            super().__init__(task)
        self.engine = task.connection.communicator.engine
        self.variables = task.own_variables()
        self.service = task.server
        # The first task runs already, without a series: that is why we are made.
        self._current = self._queue.popleft()
        self._running = stage != REPLYING
        # The server must not be gone while this runs, and may have to cut it.
        task.server.series_began(self)

    def first_done(self) -> None:
        """The task that ran when the series was made has ended: go on with the rest."""
        self._run(None, self._current)

    def _finish(self) -> None:
        super()._finish()
        server = self._task.server
        self._task.drop_handles()
        # The task has the series; and tracebacks, once logged, only keep frames alive.
        del self._task
        if self._failure is not None:
            self._failure.__traceback__ = None
        server.series_ended(self)
