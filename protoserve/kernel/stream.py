"""Streams: replies that come piece by piece, taken when the socket has room for more."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protoserve.kernel.ending import break_off, drop_stream
from protoserve.kernel.habits import SLOW, Habit, Watch
from protoserve.kernel.incoming import IncomingStream
from protoserve.kernel.life import SHUT
from protoserve.kernel.output import buffers_of
from protoserve.kernel.waiting import flush_aside, settle
from protoserve.kernel.wakeup import Wakeup
from protoserve.log import logger
from protoserve.protocol import Buffer, Piece

if TYPE_CHECKING:
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.session import CommSession


Reply: TypeAlias = "tuple[list[Buffer], int] | Stream"
"""A reply that waits for that of another: its buffers and their size, or its stream."""


class _End:
    __slots__ = ()


END: Final = _End()
"""Instead of a piece: there are no more."""


class Stream(ABC):
    """A reply under way. ``busy`` and ``begun`` are guarded by the connection's lock.

    ``busy``: its source is at work, on some thread or in a coroutine, and nobody else may
    touch it. ``begun``: a piece that is not empty was given out; until then the session may
    still reply otherwise.
    """

    __slots__ = ("begun", "body", "busy", "entry", "habit", "keep_alive", "session")

    def __init__(self, session: CommSession, keep_alive: float | None) -> None:
        self.session = session
        self.entry = session.connection.entry
        self.keep_alive = keep_alive
        """The session's, when it replied."""
        arriving = self.entry.intake.arriving
        self.body = arriving if arriving is not None and arriving.session is session else None
        """The request's, where it is on its way."""
        self.busy = True
        self.begun = False
        self.habit: Habit | None = None
        """Whether its source blocks, once it was slow."""

    @abstractmethod
    def begin(self) -> bool:
        """Get the first piece and hand it on; False when the peer is gone. Raises what
        the source raises. Without the connection's lock."""

    @abstractmethod
    def pull(self) -> Any:
        """The next piece, or END. Without the connection's lock."""

    def begin_late(self, _: None = None, __: int = 0) -> None:
        """Its turn has come, after the reply of another. Without the connection's lock."""
        threads = self.entry.communicator.threads
        if threads is not None and threads.full and threads.defer(self.begin_late, None):
            return
        try:
            if not self.begin():
                self.session.reply_failed(None)
        except BaseException as error:
            self.session.reply_failed(error)

    def cancel(self) -> None:
        """Nobody wants the rest. With the connection's lock; must not block."""

    @abstractmethod
    def close(self) -> None:
        """Nobody wants the rest, and the source rests. Without the connection's lock."""

    # -- what its source calls, on any thread, without the lock --------------------------

    def start(self, first: Piece, *, busy: bool) -> bool:
        """The first piece is there: from here on it is the reply. ``busy`` tells whether its
        source goes on by itself, and is not to be pulled. False when the peer is gone. Raises
        ``TypeError`` for a piece that is none."""
        entry = self.entry
        entry.lock.acquire()
        if entry.life.cut:
            entry.exchanges.stream = None
            entry.lock.release()
            self.close()
            return False
        try:
            self._put(first)
        except BaseException:
            self._leave_for_others()
            raise
        self.busy = busy
        if entry.exchanges.pumping:
            entry.lock.release()
            return True
        entry.output.flush(entry)
        if entry.life.rung < SHUT:
            entry.resume_later()
            settle(entry)
        entry.release()
        return True

    def abandon(self) -> None:
        """There is no first piece: the session will reply otherwise, if at all."""
        self.entry.lock.acquire()
        self._leave_for_others()

    def add(self, piece: Piece) -> bool:
        """One more piece, from a source that is not pulled. False when the peer is gone.
        Raises ``TypeError`` for a piece that is none."""
        entry = self.entry
        entry.lock.acquire()
        if not entry.life.cut:
            try:
                self._put(piece)
            except BaseException:
                entry.lock.release()
                raise
            flush_aside(entry)
        gone = entry.life.cut
        entry.release()
        return not gone

    def end(self, error: BaseException | None = None) -> None:
        """The source has ended, well or with an exception."""
        entry = self.entry
        entry.lock.acquire()
        self.busy = False
        if entry.life.cut:
            drop_stream(entry)
        elif error is not None:
            self._fail(error)
        else:
            self._last()
            if not entry.exchanges.pumping:
                entry.finish_reply()
                return
        entry.release()

    # -- with the lock -------------------------------------------------------------------

    def take(self, now: float) -> float:
        """Take the next piece: lets the lock go while user code runs. Returns the time
        afterwards."""
        entry = self.entry
        communicator = entry.communicator
        self.busy = True
        entry.lock.release()
        error: BaseException | None = None
        piece: Any = END
        habit = self.habit
        watch = None
        if habit is not None:
            if habit.blocks and communicator.threads is not None:
                communicator.threads.promote()
            watch = Watch(communicator.clock)
        try:
            piece = self.pull()
        except BaseException as raised:
            error = raised
        if habit is None or watch is None:
            began, now = now, communicator.clock()
            if now - began > SLOW:
                self.habit = Habit()
        else:
            now, slow, blocked = watch.end()
            if habit.note(slow, blocked):
                self.habit = None
        entry.lock.acquire()
        self.busy = False
        if entry.life.cut:
            drop_stream(entry)
        elif error is None and piece is END:
            self._last()
        else:
            if error is None:
                try:
                    self._put(piece)
                except TypeError as raised:
                    error = raised
            if error is not None and not self.begun:
                # Nothing but empty pieces so far: the session may still reply otherwise.
                self._leave()
                entry.lock.release()
                try:
                    self.close()
                    self.session.reply_failed(error)
                finally:
                    entry.lock.acquire()
            elif error is not None:
                self._fail(error)
        error = None  # or its traceback and this frame would keep each other
        return now

    def _put(self, piece: Piece) -> None:
        """An empty one begins no reply."""
        output = self.entry.output
        before = output.end
        output.put(piece)
        self.begun = self.begun or output.end > before

    def _last(self) -> None:
        entry = self.entry
        entry.output.mark(self.session)
        self._leave()
        last = self.body is not None and self.body.last
        entry.answered(self.session, 0.0 if last else self.keep_alive)

    def _leave(self) -> None:
        """It is not under way any more: what was pushed meanwhile follows, and what others
        replied."""
        self.entry.exchanges.stream = None
        self.entry.put_held()

    def _leave_for_others(self) -> None:
        """The same, and it is sent. Lets the lock go."""
        self._leave()
        entry = self.entry
        if entry.exchanges.pumping or not entry.output.pending:
            entry.lock.release()
        else:
            entry.finish_reply()

    def _fail(self, error: BaseException) -> None:
        """A part of the reply is out: the peer can only be told by a reset."""
        entry = self.entry
        if not IncomingStream.raised(error):
            logger.error("the reply of %r failed midway", self.session, exc_info=error)
        break_off(entry)
        if not entry.exchanges.pumping:
            entry.output.flush(entry)
            settle(entry)


class IteratorStream(Stream):
    """Pieces from an iterator, pulled by the thread that serves the connection."""

    __slots__ = ("_pieces",)

    def __init__(
        self, session: CommSession, keep_alive: float | None, pieces: Iterator[Piece]
    ) -> None:
        super().__init__(session, keep_alive)
        self._pieces = pieces

    def begin(self) -> bool:
        try:
            first = self.session.call(next, self._pieces, b"")
        except BaseException:
            self.abandon()
            raise
        return self.start(first, busy=False)

    def pull(self) -> Any:
        return self.session.call(next, self._pieces, END)

    def close(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            try:
                self.session.call(close)
            except BaseException:  # whatever it is: the connection has yet to be given back
                logger.exception("closing the reply of %r raised", self.session)


class AsyncIteratorStream(Stream):
    """Pieces from an async iterator, which a coroutine awaits and passes on."""

    __slots__ = ("_accepted", "_cancel", "_leaving", "_loop", "_pieces", "_task")

    def __init__(
        self, session: CommSession, keep_alive: float | None, pieces: AsyncIterator[Piece]
    ) -> None:
        super().__init__(session, keep_alive)
        self._pieces = pieces
        self._cancel: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._leaving = False
        self._accepted = False  # its first piece was taken

    def begin(self) -> bool:
        engine = self.entry.communicator.engine
        assert engine is not None
        sending = self._send()
        try:
            # In the request's context variables, of which the new task takes a copy.
            self._cancel = self.session.call(
                engine.run_coroutine, sending, self._ended, self.entry.service
            )
        except BaseException:  # the system has no thread for the loop
            sending.close()
            self.abandon()
            raise
        if self.session.connection.closed:
            self._cancel()
        return True

    def pull(self) -> Any:
        raise AssertionError("an async iterator is not pulled")

    def cancel(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel_now)

    def _cancel_now(self) -> None:
        # Not while the source cleans up, because the peer was seen to be gone.
        if self._task is not None and not self._leaving:
            self._task.cancel()

    def close(self) -> None:
        """Done by the coroutine, which ends with it, where that has begun."""
        close = getattr(self._pieces, "aclose", None)
        if self._loop is None and close is not None:
            engine = self.entry.communicator.engine
            assert engine is not None
            self.session.call(
                engine.run_coroutine, close_all(close), self._closed, self.entry.service
            )

    def _closed(self, error: BaseException | None) -> None:
        if error is not None:
            logger.error("closing the reply of %r raised", self.session, exc_info=error)

    async def _send(self) -> None:
        pieces = self._pieces
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        try:
            if self.session.connection.closed:
                # It closed a moment ago, when there was no task to cancel.
                raise ConnectionResetError
            first = await anext(pieces, b"")
            self._accepted = self.start(first, busy=True)
            if self._accepted:
                async for piece in pieces:
                    if not self.add(piece):
                        break
                    await room(self.session.connection)
        finally:
            self._leaving = True
            self._task = None
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()

    def _ended(self, error: BaseException | None) -> None:
        if (
            error is not None
            and self.session.connection.closed
            and not isinstance(error, (asyncio.CancelledError, ConnectionError))
        ):
            # Nobody is left to be told, and what it did when it was ended is a fault.
            logger.error("closing the reply of %r raised", self.session, exc_info=error)
        if self.begun or (self._accepted and error is None):
            self.end(error)
        else:
            self.abandon()
            self.session.reply_failed(error)


async def close_all(close: Callable[[], Awaitable[object]]) -> None:
    """What it returns may be any awaitable."""
    await close()


async def room(conn: CommConnection) -> None:
    """Wait until the connection's output has room, or it has closed. What is held behind a
    reply in pieces is not waited for: that reply may be who waits."""
    entry = conn.entry
    limit = entry.output.limit
    if entry.output.size >= limit:
        wakeup = Wakeup()
        if entry.wait_for_room(limit // 2, wakeup.wake, all_of_it=False):
            await wakeup


def open_stream(session: CommSession, keep_alive: float | None, out: object) -> Stream:
    """The stream of what ``message_out`` returned; ``TypeError`` for what is none."""
    if isinstance(out, Iterator):
        return IteratorStream(session, keep_alive, out)
    if isinstance(out, AsyncIterator):
        return AsyncIteratorStream(session, keep_alive, out)
    remedy = ""
    if out is None:
        remedy = " (a forgotten return?)"
    elif isinstance(out, str):
        remedy = " (a forgotten .encode()?)"
    raise TypeError(
        "message_out must give a bytes-like object, a list or tuple of them, or an iterator "
        f"or async iterator, not {type(out).__name__}{remedy}"
    )


def reply_of(session: CommSession, keep_alive: float | None, out: object) -> Reply:
    """What ``message_out`` returned, for later. Raises ``TypeError`` for what is none."""
    if isinstance(out, (bytes, bytearray, memoryview, list, tuple)):
        return buffers_of(out)
    return open_stream(session, keep_alive, out)
