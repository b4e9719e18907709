"""Streams: replies that come piece by piece, taken when the socket has room for more."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from protoserve.kernel.habits import Habit
from protoserve.kernel.wakeup import Wakeup
from protoserve.log import logger
from protoserve.protocol import Piece

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.session import CommSession


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

    __slots__ = ("begun", "busy", "habit", "keep_alive", "session")

    keep_alive: float | None
    """The session's, when it replied."""

    def __init__(self, session: CommSession) -> None:
        self.session = session
        self.busy = True
        self.begun = False
        self.habit: Habit | None = None
        """Whether its source blocks, once it was slow."""

    @abstractmethod
    def begin(self, communicator: Communicator) -> bool:
        """Get the first piece and hand it on; False when the peer is gone. Raises what
        the source raises. Without the connection's lock."""

    @abstractmethod
    def pull(self) -> Any:
        """The next piece, or END. Without the connection's lock."""

    def cancel(self) -> None:
        """Nobody wants the rest. With the connection's lock; must not block."""

    @abstractmethod
    def close(self) -> None:
        """Nobody wants the rest, and the source rests. Without the connection's lock."""


class IteratorStream(Stream):
    """Pieces from an iterator, pulled by the thread that serves the connection."""

    __slots__ = ("_pieces",)

    def __init__(self, session: CommSession, pieces: Iterator[Piece]) -> None:
        super().__init__(session)
        self._pieces = pieces

    def begin(self, communicator: Communicator) -> bool:
        try:
            first = self.session.call(next, self._pieces, b"")
        except BaseException:
            communicator.abandon_stream(self)
            raise
        return communicator.begin_stream(self, first, busy=False)

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

    __slots__ = ("_accepted", "_cancel", "_communicator", "_leaving", "_loop", "_pieces", "_task")

    def __init__(self, session: CommSession, pieces: AsyncIterator[Piece]) -> None:
        super().__init__(session)
        self._pieces = pieces
        self._cancel: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._leaving = False
        self._accepted = False  # its first piece was taken

    def begin(self, communicator: Communicator) -> bool:
        self._communicator = communicator
        assert communicator.engine is not None
        # In the request's context variables, of which the new task takes a copy.
        self._cancel = self.session.call(
            communicator.engine.run_coroutine,
            self._send(),
            self._ended,
            self.session.connection.service,
        )
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
        """Done by the coroutine, which ends with it."""

    async def _send(self) -> None:
        communicator = self._communicator
        pieces = self._pieces
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        try:
            if self.session.connection.closed:
                # It closed a moment ago, when there was no task to cancel.
                raise ConnectionResetError
            first = await anext(pieces, b"")
            self._accepted = communicator.begin_stream(self, first, busy=True)
            if self._accepted:
                async for piece in pieces:
                    if not communicator.add_piece(self, piece):
                        break
                    await room(communicator, self.session.connection)
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
            self._communicator.end_stream(self, error)
        else:
            self._communicator.abandon_stream(self)
            self.session.reply_failed(error)


async def room(communicator: Communicator, conn: CommConnection) -> None:
    """Wait until the connection's output has room, or it has closed."""
    wakeup = Wakeup()
    if communicator.wait_for_room(conn, wakeup.wake):
        await wakeup


def open_stream(session: CommSession, out: object) -> Stream:
    """The stream of what ``message_out`` returned; ``TypeError`` for what is none."""
    if isinstance(out, Iterator):
        return IteratorStream(session, out)
    if isinstance(out, AsyncIterator):
        return AsyncIteratorStream(session, out)
    raise TypeError(
        "message_out must give a bytes-like object, a list or tuple of them, or an iterator "
        f"or async iterator, not {type(out).__name__}"
    )
