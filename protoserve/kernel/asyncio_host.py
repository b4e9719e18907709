"""The poller inside an asyncio loop, and the coroutines of requests.

An epoll descriptor is itself readable while events wait, so ``loop.add_reader`` is all
it takes: transports, parsers and handlers run in the loop's own thread, with no hand-over.

Most coroutines never wait for anything. A request's first step is therefore taken at
once, in the name of a *carrier*: an idle :class:`asyncio.Task` that the loop knows as the
current task meanwhile. A coroutine that ends in its first step costs no task of its own;
one that waits keeps the carrier, which drives it to its end, and another carrier takes
the place. This is leader/followers again, with tasks for threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import types
from asyncio import _enter_task, _leave_task  # documented: "Extending", task lifetime support
from collections.abc import Callable, Coroutine, Generator
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protoserve.errors import UsageError
from protoserve.kernel.engine import Engine, NoThreadError, log_callback_error, loop_factory
from protoserve.kernel.joining import Joiner
from protoserve.kernel.session import returned
from protoserve.log import logger

if TYPE_CHECKING:
    from protoserve.kernel.scheduler import CommScheduler
    from protoserve.kernel.service import CommService

_IDLE_CARRIERS: Final = 64
"""Carriers kept for later; under a burst there are as many as coroutines wait."""

Ended: TypeAlias = Callable[[BaseException | None], object]
"""Called in the loop's thread when a coroutine has ended, with what it raised."""


class _Job:
    """A coroutine that waits."""

    __slots__ = ("context", "coro", "ended", "service", "yielded")

    def __init__(
        self,
        coro: Coroutine[Any, Any, object],
        context: contextvars.Context,
        yielded: Any,
        ended: Ended,
        service: CommService,
    ) -> None:
        self.coro = coro
        self.context = context
        self.yielded = yielded
        self.ended = ended
        self.service = service


class Carrier:
    """A task that lends its name to first steps, and carries one coroutine that waits."""

    __slots__ = ("_host", "_job", "_wake", "task")

    def __init__(self, host: LoopEngine) -> None:
        self._host = host
        self._job: _Job | None = None
        self._wake: asyncio.Future[None] | None = None
        run = self._run()
        # Up to its first wait: a task that is cancelled before it began would never run.
        run.send(None)
        self.task = host.loop.create_task(run)

    @property
    def fit(self) -> bool:
        """Whether it can take a coroutine. A handler that kept ``current_task()`` may have
        cancelled it long after."""
        return not (self.task.done() or self.task.cancelling())

    @property
    def service(self) -> CommService | None:
        """The service whose coroutine it carries."""
        return None if self._job is None else self._job.service

    def take(self, job: _Job) -> None:
        """Go on with the job, from its first wait."""
        self._job = job
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _run(self) -> None:
        try:
            canceled = False
            try:
                await _pause()
            except asyncio.CancelledError:
                canceled = True
            while self._job is not None or not canceled:
                if self._job is None:
                    self._wake = self._host.loop.create_future()
                    try:
                        await self._wake
                    except asyncio.CancelledError:
                        # Ended by the host; or by a coroutine that cancelled itself.
                        canceled = True
                    self._wake = None
                job = self._job
                if job is None:
                    return
                error: BaseException | None = None
                try:
                    await _carry(job, canceled)
                except BaseException as raised:
                    error = raised
                self._job = None
                canceled = False
                job.ended(error)
                # A cancelled task stays one; it must not touch the next coroutine.
                if self.task.cancelling() or not self._host.give_back(self):
                    return
        finally:
            self._host.forget(self)


async def _outcome(coro: Coroutine[Any, Any, object]) -> BaseException | None:
    """Await ``coro``; what it raises, which is one request's matter. A task that ended
    with ``SystemExit`` or ``KeyboardInterrupt`` would end the loop, and all in it."""
    try:
        await coro
    except BaseException as error:
        return error
    return None


@types.coroutine
def _pause() -> Generator[None, None, None]:
    """Wait until the loop's next turn."""
    yield


@types.coroutine
def _carry(job: _Job, canceled: bool) -> Generator[Any, Any, None]:
    """Drive a coroutine from its first wait to its end, in its own context."""
    run = job.context.run
    coro = job.coro
    yielded = job.yielded
    if canceled and not (yielded is not None and yielded.cancel()):
        try:
            yielded = run(coro.throw, asyncio.CancelledError())
        except StopIteration as end:
            _look_at_end(end)
            return
    while True:
        try:
            value = yield yielded
        except BaseException as error:
            step: Callable[[Any], Any] = coro.throw
            value = error
        else:
            step = coro.send
        try:
            yielded = run(step, value)
        except StopIteration as end:
            _look_at_end(end)
            return


def _look_at_end(end: StopIteration) -> None:
    if end.value is not None:
        raise returned(end.value)


class LoopEngine(Engine):
    """Drives the poller in somebody's running loop. It is started in the loop's thread."""

    def __init__(
        self,
        scheduler: CommScheduler,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(scheduler, clock)
        self._loop = loop
        self._ident = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._idle: list[Carrier] = []
        self._carriers: dict[asyncio.Task[None], Carrier] = {}
        self._first: CommService | None = None  # whose first step runs
        self._serving: dict[asyncio.Task[Any], CommService] = {}  # of run_coroutine
        self._spare: Carrier | None = None
        self._turning = False
        self._ended = threading.Event()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that drives the poller."""
        assert self._loop is not None
        return self._loop

    @property
    def alive(self) -> bool:
        return not self.loop.is_closed()

    def start(self) -> None:
        self._ident = threading.get_ident()
        self.loop.add_reader(self.poller.fileno(), self._turn)
        self._spare = self.new_carrier()
        self._rest()

    def lend(self) -> contextlib.AbstractContextManager[None]:
        raise UsageError(
            "a coroutine of a server that waits here stops its loop, and what it waits for "
            "with it: await the task itself, or asyncio.Event"
        )

    def owns(self, ident: int) -> bool:
        # An ended thread's number is given to others.
        return ident == self._ident and not self._ended.is_set() and not self.loop.is_closed()

    def stop(self, timeout: float | None) -> bool:
        if self.owns(threading.get_ident()):
            # Not in the middle of a turn; and the carriers end in the loop.
            self.loop.call_soon(self._end)
            return self._ended.is_set()
        if not self._ended.is_set():
            try:
                self.loop.call_soon_threadsafe(self._end)
            except RuntimeError:  # the loop is closed: nobody else can end us
                self.poller.close()
                self._ended.set()
        return self._ended.wait(timeout)

    def _end(self) -> None:
        if self._ended.is_set() or self.holds:
            return
        self.loop.remove_reader(self.poller.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self.poller.close()
        for carrier in (*self._idle, self._spare):
            if carrier is not None:
                carrier.task.cancel()
        self._ended.set()

    # -- turns -------------------------------------------------------------------------

    def _turn(self) -> None:
        poller = self.poller
        if self._ended.is_set() or self._turning:
            return
        poller.poll_now()
        ready = poller.ready
        if ready:
            self._turning = True
            assert self._spare is not None
            if not self._spare.fit:
                self._spare = self.new_carrier()
            _enter_task(self.loop, self._spare.task)
            try:
                while ready:
                    try:
                        poller.run_next()
                    except BaseException:
                        log_callback_error()
            finally:
                _leave_task(self.loop, self._spare.task)
                self._turning = False
        self._rest()

    def _rest(self) -> None:
        timeout = self.poller.before_wait()
        if timeout <= 0:
            self.loop.call_soon(self._turn)
        elif timeout < inf:
            when = self.loop.time() + timeout
            if when < self._timer_at:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer_at = when
                self._timer = self.loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = inf
        self._turn()

    # -- coroutines --------------------------------------------------------------------

    def service_here(self) -> CommService | None:
        task = asyncio.current_task(self.loop)
        if task is None:
            return None
        if self._spare is not None and task is self._spare.task:
            return self._first
        carrier = self._carriers.get(task)
        return self._serving.get(task) if carrier is None else carrier.service

    def run_first_step(
        self,
        coro: Coroutine[Any, Any, object],
        ended: Ended,
        service: CommService,
        variables: contextvars.Context,
    ) -> Callable[[], object] | None:
        spare = self._spare
        assert spare is not None
        before = self._first
        self._first = service
        try:
            yielded = variables.run(coro.send, None)
        except BaseException as error:
            if spare.task.cancelling():
                self._replace_spare()  # it cancelled itself, and then did not wait
            if isinstance(error, StopIteration):
                _look_at_end(error)
                return None
            raise
        finally:
            self._first = before
        spare.take(_Job(coro, variables, yielded, ended, service))
        self._replace_spare()
        return spare.task.cancel

    def _replace_spare(self) -> None:
        assert self._spare is not None
        _leave_task(self.loop, self._spare.task)
        while self._idle:
            self._spare = self._idle.pop()
            if self._spare.fit:
                break
        else:
            self._spare = self.new_carrier()
        _enter_task(self.loop, self._spare.task)

    def new_carrier(self) -> Carrier:
        """One more carrier. Loop thread only."""
        carrier = Carrier(self)
        self._carriers[carrier.task] = carrier
        return carrier

    def give_back(self, carrier: Carrier) -> bool:
        """Keep a carrier whose coroutine has ended, if there is use for it."""
        if len(self._idle) >= _IDLE_CARRIERS or self._ended.is_set():
            return False
        self._idle.append(carrier)
        return True

    def forget(self, carrier: Carrier) -> None:
        """A carrier has ended."""
        self._carriers.pop(carrier.task, None)
        if carrier in self._idle:
            self._idle.remove(carrier)

    def run_coroutine(
        self, coro: Coroutine[Any, Any, object], ended: Ended, service: CommService | None = None
    ) -> Callable[[], object]:
        running: list[asyncio.Task[BaseException | None]] = []
        canceled = False

        def begin() -> None:
            task = self.loop.create_task(_outcome(coro))
            running.append(task)
            if service is not None:
                self._serving[task] = service
            task.add_done_callback(done)
            if canceled:
                task.cancel()

        def done(task: asyncio.Task[BaseException | None]) -> None:
            self._serving.pop(task, None)
            if task.cancelled():
                coro.close()  # it was cancelled before its first step
                ended(asyncio.CancelledError())
            else:
                ended(task.result())

        def cancel() -> None:
            nonlocal canceled
            canceled = True
            self.call(lambda: [task.cancel() for task in running])

        self.call(begin)
        return cancel

    def call(self, function: Callable[[], object]) -> None:
        if threading.get_ident() == self._ident:
            function()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, with all in it
                self.loop.call_soon_threadsafe(function)

    def call_from_signal(self, function: Callable[[], object]) -> bool:
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed
            return False
        return True


class OwnLoopEngine(LoopEngine):
    """The same in a thread of its own, with uvloop where that is installed."""

    def __init__(self, scheduler: CommScheduler, clock: Callable[[], float]) -> None:
        super().__init__(scheduler, clock, None)
        self._runner = threading.Thread(target=self._run, name="protoserve-loop", daemon=True)
        self._started = threading.Event()
        self._joiner = Joiner()
        self._failure: BaseException | None = None
        self._over = False  # the loop's thread only

    def start(self) -> None:
        try:
            self._runner.start()
        except RuntimeError as error:
            self._ended.set()
            raise NoThreadError(str(error)) from error
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                self._loop = loop = runner.get_loop()
                loop.call_soon(self._begin)
                while not self._over and not loop.is_closed():
                    self._run_loop(loop)
        except BaseException as error:
            if self._started.is_set():
                log_callback_error()
            self._failure = error
        finally:
            self._ended.set()
            self._started.set()

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until the engine ends, or something of a handler's stops the loop: what one
        request does must not be the end of all others."""
        try:
            loop.run_forever()
        except BaseException:
            # SystemExit and KeyboardInterrupt, in a task that a handler made.
            if self._failure is None:
                logger.exception("a task or callback in the loop raised; the server goes on")
        else:
            if not self._over:
                logger.error("the loop was stopped, by a handler or its task; the server goes on")

    def _begin(self) -> None:
        try:
            super().start()
        except BaseException as error:
            self._failure = error
            self._over = True
            self.loop.stop()
            return
        self._started.set()

    def _end(self) -> None:
        super()._end()
        if self._ended.is_set() and not self._over:
            self._over = True
            self.loop.stop()

    def stop(self, timeout: float | None) -> bool:
        ended = super().stop(timeout)
        if threading.current_thread() is not self._runner:
            return self._joiner.join([self._runner], timeout)
        return ended
