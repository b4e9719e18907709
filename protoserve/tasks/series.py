"""SeriesWork: tasks that run one after the other."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from protoserve.errors import UsageError
from protoserve.kernel.current import CURRENT
from protoserve.kernel.subtask import SubTask
from protoserve.kernel.variables import run_in
from protoserve.log import logger

if TYPE_CHECKING:
    from protoserve.kernel.engine import Engine
    from protoserve.kernel.service import CommService


class SeriesWork:
    """A queue of tasks, run in order (the article's ``SeriesWork``).

    The last task, where there is one, runs when the queue is empty: in a server it is
    the reply. Tasks may be pushed from any thread while the series runs, also by the
    callback of the last task, and then run after it.

    ``context`` is the user's; ``variables`` are the context variables in which everything of
    the series runs: by default as they were where it was made. Raises
    :class:`~protoserve.errors.UsageError` for a task that is in a series already, or a series
    that has finished.
    """

    __slots__ = (
        "_adopter",
        "_callback",
        "_canceled",
        "_current",
        "_done_early",
        "_failure",
        "_finished",
        "_last",
        "_lock",
        "_queue",
        "_running",
        "_thread",
        "context",
        "engine",
        "service",
        "variables",
    )

    def __init__(
        self,
        first: SubTask,
        callback: Callable[[SeriesWork], object] | None = None,
        *,
        last: SubTask | None = None,
    ) -> None:
        self._lock = threading.Lock()  # guards the queue and the trampoline's state
        self._queue: deque[SubTask] = deque()
        self._callback = callback
        self._last = last
        self._current: SubTask | None = None
        self._done_early = False
        self._running = False
        self._canceled = False
        self._finished = False
        self._failure: BaseException | None = None
        self._adopter: Callable[[SeriesWork], object] | None = None
        self.engine: Engine | None = None
        self.service: CommService | None = None  # it waits for the end of this series
        self.context: Any = None
        self.variables = copy_context()
        self._thread = 0  # that runs it
        self._adopt(first)
        if last is not None:
            self._adopt(last)
        self._queue.append(first)

    @property
    def canceled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._canceled

    @property
    def finished(self) -> bool:
        """Whether everything ran and the callback was called."""
        return self._finished

    @property
    def failure(self) -> BaseException | None:
        """The exception with which a task ended the series, if one did."""
        return self._failure

    def push_back(self, task: SubTask) -> None:
        """Run ``task`` after all others, but before the last task. Any thread."""
        self._push(task, front=False)

    def push_front(self, task: SubTask) -> None:
        """Run ``task`` next. Any thread."""
        self._push(task, front=True)

    def set_callback(self, callback: Callable[[SeriesWork], object] | None) -> None:
        """Call ``callback(series)`` when all tasks are done, on the thread of the last.
        Raises ``TypeError`` for what is not callable."""
        if callback is not None and not callable(callback):
            raise TypeError(f"a callback must be callable, not {type(callback).__name__}")
        self._callback = callback

    def cancel(self) -> None:
        """Drop the tasks that have not started. Any thread; never blocks.

        In a server the connection closes without a reply, and the task's callback does
        not run; the series' callback does, and sees ``canceled``.
        """
        with self._lock:
            self._canceled = True
            dropped = list(self._queue)
            self._queue.clear()
            current = self._current
        for task in dropped:
            task.discard()
        if current is not None:
            current.interrupt()

    def start(self) -> None:
        """Run the series. Raises ``UsageError`` when it has been started before."""
        with self._lock:
            if self._current is not None or self._finished:
                raise UsageError("this series was started before; make a new one")
            self._running = True
            # Empty when it was cancelled before it began.
            task = self._queue.popleft() if self._queue else None
            self._current = task
        self._run(task if task is not None else self._proceed(self.pop()))

    def pop(self) -> SubTask | None:
        """The next task, or ``None`` when the series is at its end. For ``SubTask.done``."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            last, self._last = self._last, None
            return last

    def requeue(self, task: SubTask) -> None:
        """Run ``task``, which runs now, once more when it has ended. For tasks that repeat."""
        with self._lock:
            if not self._canceled:
                self._queue.appendleft(task)

    def adopt(self, finished: Callable[[SeriesWork], object]) -> None:
        """Make the series a part of a task: ``finished(series)`` is called after its
        callback. Raises ``UsageError`` when it has started, or is a part already."""
        with self._lock:
            if self._adopter is not None or self._current is not None or self._finished:
                raise UsageError("this series was started before, or is a part of another task")
            self._adopter = finished

    def advance(self, task: SubTask) -> None:
        """``task`` has ended. For ``SubTask.subtask_done``."""
        with self._lock:
            if task is not self._current or self._done_early:
                raise UsageError(
                    f"{type(task).__name__} ended twice, or out of turn; "
                    "call subtask_done() once, after dispatch()"
                )
            if self._running:
                # Its dispatch is still on some thread's stack; that thread goes on.
                self._done_early = True
                return
            self._running = True
        self._run(None, task)

    def _run(self, task: SubTask | None, ended: SubTask | None = None) -> None:
        """Go on with ``task``, or with what follows the one that has ``ended``."""
        run_in(self.variables, self._run_here, task, ended)

    def _run_here(self, task: SubTask | None, ended: SubTask | None) -> None:
        before = CURRENT.service
        CURRENT.service = self.service
        ident = self._thread = threading.get_ident()
        try:
            self._run_tasks(task if ended is None else self._next(ended))
        finally:
            CURRENT.service = before
            if self._thread == ident:  # else another thread goes on with it already
                self._thread = 0

    @property
    def runs_here(self) -> bool:
        """Whether the calling thread runs the series, in its context variables."""
        return self._thread == threading.get_ident()

    def _run_tasks(self, task: SubTask | None) -> None:
        """The trampoline: dispatch until a task does not end at once."""
        while task is not None:
            try:
                task.dispatch()
            except BaseException as error:
                self._fail(error)
                with self._lock:
                    self._done_early = True
            with self._lock:
                if not self._done_early:
                    self._running = False
                    return
                self._done_early = False
            task = self._next(task)

    def _next(self, task: SubTask) -> SubTask | None:
        try:
            following = task.done()
        except BaseException as error:
            self._fail(error)
            following = self.pop()
        return self._proceed(following)

    def _proceed(self, following: SubTask | None) -> SubTask | None:
        with self._lock:
            if following is None and self._queue:
                following = self._queue.popleft()  # pushed since we looked
            self._current = following
            if following is None:
                # From here nothing more can be pushed.
                self._finished = True
        if following is None:
            self._finish()
        return following

    def _fail(self, error: BaseException) -> None:
        """A task raised: drop what has not started; the last task still runs and can
        look at ``failure``."""
        with self._lock:
            first = self._failure is None
            if first:
                self._failure = error
            dropped = list(self._queue)
            self._queue.clear()
        for task in dropped:
            task.discard()
        # Whoever has the series as a part, or its last task, reports what went wrong.
        if not first or (self._last is None and self._adopter is None):
            logger.error("a task of a series raised", exc_info=error)

    def _finish(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            try:
                callback(self)
            except BaseException:
                logger.exception("the callback of a series raised")
        if self._adopter is not None:
            try:
                self._adopter(self)
            except BaseException:
                logger.exception("the task that has a series as its part raised")

    def _adopt(self, task: SubTask) -> None:
        check_task(task, "a series takes SubTasks")
        task._series = self

    def _push(self, task: SubTask, *, front: bool) -> None:
        with self._lock:
            if self._finished:
                raise UsageError(
                    "this series has finished; start a series of its own for later work"
                )
            self._adopt(task)
            canceled = self._canceled
            if not canceled:
                if front:
                    self._queue.appendleft(task)
                else:
                    self._queue.append(task)
        if canceled:
            task.discard()


def check_task(task: object, expected: str) -> None:
    """Raise ``TypeError``, which begins with what was ``expected``, for what is no task, and
    :class:`~protoserve.errors.UsageError` for one that is in a series."""
    if not isinstance(task, SubTask):
        hint = ""
        if inspect.iscoroutine(task):
            task.close()
            hint = "; wrap it: coroutine(...)"
        raise TypeError(f"{expected}, not {type(task).__name__}{hint}")
    if task._series is not None:
        raise UsageError(f"{type(task).__name__} is in a series already; make a new task for each")


def series_of(task: SubTask) -> SeriesWork:
    """The series that ``task`` is in, as the article writes it; the same as ``task.series``.

    Raises :class:`~protoserve.errors.UsageError` for a task in none.
    """
    return task.series
