"""What handlers do, in every way that a handler can: plain functions and coroutines.

A request names a *kind* of work and a token; what its answer must be follows from the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol
from zlib import crc32

from ledger import DeliberateError, Ledger, Watched

from protoserve import SubTask, WaitGroup, go, timer
from protoserve.kernel.wakeup import Wakeup

ANSWERED = (
    "now", "block", "compute", "timer", "go", "foreign", "chain", "callback", "wait", "push",
    "stream", "patient-stream", "big", "raise",
)  # fmt: skip
"""Kinds that are answered, and the connection stays."""

LAST = ("last", "flood")
"""Answered, and then the connection ends."""

NO_ANSWER = ("noreply", "cancel", "close", "broken-stream")
"""The connection ends instead of an answer."""

EITHER = ("late-cancel", "late-close")
"""Answered, or the connection ends: who is first wins."""

DROPS = ("close", "late-close", "late-cancel")
"""What was not yet sent may be lost, answers to earlier requests included, and the end may
come late: a cancelled reply that is under way closes the connection."""

CUTS = ("cancel", "broken-stream")
"""Others that are in flight may be lost with it."""

STREAMS = ("stream", "patient-stream", "broken-stream")
LARGE = ("big", "flood")

KINDS = (*ANSWERED, *LAST, *NO_ANSWER, *EITHER)

PIECES = 5
BIG = 200_000
FLOOD = 2_000_000


def pieces(token: bytes) -> list[bytes]:
    """What a streamed reply consists of."""
    return [b"%b.%d" % (token, i) for i in range(PIECES)]


def answer(kind: str, token: bytes) -> bytes:
    """What the answer must be."""
    match kind:
        case "stream" | "broken-stream":
            return b"".join(pieces(token))
        case "big":
            return (token * (BIG // len(token) + 1))[:BIG]
        case "flood":
            return (token * (FLOOD // len(token) + 1))[:FLOOD]
    return token


def pause(token: bytes) -> float:
    """Seconds that belong to a token: up to 20 ms, most of them short."""
    number = crc32(token)
    return number % 20 / 1000 if number % 4 == 0 else number % 3 / 1000


class Foreign:
    """Threads that are not the engine's and call into it."""

    def __init__(self, number: int) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"foreign-{i}") for i in range(number)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], object]) -> None:
        """Call it soon."""
        self._queue.put(call)

    def close(self) -> None:
        """End the threads, after everything that was submitted."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            time.sleep(random.choice((0, 0, 0.0005, 0.003)))
            call()
            del call  # or it is held until the next one comes


class Elsewhere(SubTask):
    """A task that a foreign thread ends."""

    def __init__(self, foreign: Foreign, first: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._foreign = foreign
        self._first = first

    def dispatch(self) -> None:
        """Hand it over."""
        self._foreign.submit(self._end)

    def _end(self) -> None:
        if self._first is not None:
            self._first()
        self.subtask_done()


class Manner(Protocol):
    """How a protocol puts an answer."""

    def give(self, task: Any, data: bytes) -> None:
        """Make it the reply."""

    def stream(self, task: Any, data: Iterator[bytes] | AsyncIterator[bytes]) -> None:
        """Make it the reply, in pieces."""

    def interim(self, token: bytes) -> bytes:
        """Raw bytes of something before the reply."""

    def flood(self, task: Any, token: bytes) -> list[bytes]:
        """Raw bytes that take the reply's place or precede it; may set up the task."""


class Work:
    """The handlers of one run."""

    def __init__(self, ledger: Ledger, foreign: Foreign) -> None:
        self.ledger = ledger
        self.foreign = foreign
        self.callbacks = Watched("a task's callback", ledger)
        self.closings = Watched("on_close", ledger)
        self.errands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        """To be run in a handler."""

    def handle(self, task: Any, kind: str, token: bytes, manner: Manner) -> None:
        """A plain handler."""
        self._run_errands()
        give = manner.give
        seconds = pause(token)
        match kind:
            case "block":
                time.sleep(seconds)
            case "compute":
                sum(range(20_000))
            case "timer":
                task.series.push_back(timer(seconds, lambda _: give(task, token)))
                return
            case "go":
                call = go(_sleep, seconds, token, callback=lambda t: give(task, t.result))
                task.series.push_back(call)
                return
            case "foreign":
                task.series.push_back(Elsewhere(self.foreign, lambda: give(task, token)))
                return
            case "chain":
                task.series.push_back(timer(seconds))
                task.series.push_back(Elsewhere(self.foreign))
                task.series.push_back(go(_sleep, seconds, token))
                task.series.push_back(timer(0, lambda _: give(task, token)))
                return
            case "callback":
                self._set_callback(task)
                task.connection.on_close(self.closings.promise())
            case "wait":
                group = WaitGroup(1)
                timer(seconds, lambda _: group.done()).start()
                group.wait()
            case "push":
                task.push(manner.interim(token))
            case "flood":
                for data in manner.flood(task, token):
                    task.push(data)
                return
            case "stream":
                manner.stream(task, iter(pieces(token)))
                return
            case "patient-stream":
                manner.stream(task, _patiently(token))
                return
            case "broken-stream":
                manner.stream(task, _broken(token))
                return
            case "raise":
                raise DeliberateError
            case "last":
                task.set_keep_alive(0)
            case "noreply":
                task.noreply()
                return
            case "cancel":
                task.series.push_back(timer(60))
                task.series.cancel()
                return
            case "close":
                task.connection.close()
            case "late-cancel":
                series = task.series
                series.push_back(timer(seconds))
                self.foreign.submit(series.cancel)
            case "late-close":
                task.series.push_back(timer(seconds))
                self.foreign.submit(task.connection.close)
        give(task, answer(kind, token))

    async def handle_in_loop(self, task: Any, kind: str, token: bytes, manner: Manner) -> None:
        """The same as a coroutine."""
        self._run_errands()
        seconds = pause(token)
        match kind:
            case "timer":
                await asyncio.sleep(seconds)
            case "go":
                await go(_sleep, seconds, token)
            case "foreign" | "chain":
                await self._elsewhere()
                if kind == "chain":
                    await timer(seconds)
            case "wait":
                await asyncio.gather(timer(seconds), asyncio.sleep(seconds))
            case "push":
                await task.push(manner.interim(token))
            case "flood":
                for data in manner.flood(task, token):
                    await task.push(data)
                return
            case "stream":
                manner.stream(task, _slowly(pieces(token), seconds / PIECES))
                return
            case "patient-stream":
                manner.stream(task, _patiently_in_loop(token))
                return
            case "broken-stream":
                manner.stream(task, _broken_slowly(token))
                return
            case "cancel":
                task.series.cancel()
                await asyncio.sleep(60)
            case "late-cancel":
                self.foreign.submit(task.series.cancel)
                await asyncio.sleep(seconds)
            case "late-close":
                self.foreign.submit(task.connection.close)
                await asyncio.sleep(seconds)
            case _:
                self.handle(task, kind, token, manner)
                return
        manner.give(task, answer(kind, token))

    def _run_errands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self.errands.get_nowait()()

    def _set_callback(self, task: Any) -> None:
        keep = self.callbacks.promise()

        def later(task: Any) -> None:
            task.series.push_back(timer(0.001, keep))

        task.set_callback(later)

    async def _elsewhere(self) -> None:
        wakeup = Wakeup()
        self.foreign.submit(wakeup.wake)
        await wakeup


def _sleep(seconds: float, token: bytes) -> bytes:
    time.sleep(seconds)
    return token


def _patiently(token: bytes) -> Iterator[bytes]:
    yield token[:1]
    for _ in range(10):  # it looks around, whether there is something to send
        time.sleep(0.003)
        yield b""
    yield token[1:]


async def _patiently_in_loop(token: bytes) -> AsyncIterator[bytes]:
    yield token[:1]
    for _ in range(10):
        await asyncio.sleep(0.003)
        yield b""
    yield token[1:]


def _broken(token: bytes) -> Iterator[bytes]:
    yield from pieces(token)[:2]
    raise DeliberateError


async def _broken_slowly(token: bytes) -> AsyncIterator[bytes]:
    for piece in _broken(token):
        yield piece
        await asyncio.sleep(0)


async def _slowly(data: list[bytes], seconds: float) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece
        await asyncio.sleep(seconds)
