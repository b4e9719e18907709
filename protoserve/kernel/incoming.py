"""IncomingStream: the body of a request that is handed over before all of it is there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from protoserve.errors import ProtocolError, UsageError
from protoserve.kernel.wakeup import Wakeup, block

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry
    from protoserve.kernel.session import CommSession

ROOM: Final = 256 * 1024
"""Bytes that wait for their reader before reading from the socket pauses."""

_SMALL: Final = 4 * 1024
"""Up to here pieces that wait are joined: many tiny ones would take many times their size."""


def _of_body(error: BaseException) -> BaseException:
    error.of_body = True  # type: ignore[attr-defined]
    return error


def _anew(error: BaseException) -> BaseException:
    """The same for the next who asks: one that was raised keeps the frames that it passed."""
    if isinstance(error, ProtocolError):
        reply = getattr(error, "reply", b"")
        summary = getattr(error, "summary", None)
        return _of_body(ProtocolError(str(error), reply=reply, summary=summary))
    return _of_body(type(error)(*error.args))


class IncomingStream:
    """Pieces of a body, in order, as they arrive.

    The parser makes it, returns it with the request in an
    :class:`~protoserve.protocol.Arriving`, and goes on to ``feed`` it and, once, to ``end``
    it. ``interim`` is what is sent, where nothing of the body has come yet, when somebody
    first reads, or the engine decides to take in the body whole: an interim answer, for which
    the peer waits.

    A handler reads it in one of four ways, to the end or until it has seen enough::

        for piece in stream: ...            # in a function; it may block
        async for piece in stream: ...      # in a coroutine
        stream.read(), await stream.aread() # all that is left
        stream.pull(wake)                   # never waits

    Reading raises what went wrong: ``ConnectionResetError`` when the peer left, or the reply
    was given, ``TimeoutError`` when it was too slow,
    :class:`~protoserve.errors.ProtocolError` when it sent too much, or nonsense. One reader
    at a time, on any thread. A reply that is given before the body has ended is the last of
    its connection.
    """

    __slots__ = (
        "_entry",
        "_error",
        "_lock",
        "_paused",
        "_pieces",
        "_size",
        "_wakes",
        "begun",
        "collecting",
        "heard",
        "interim",
        "last",
        "limit",
        "over",
        "received",
        "session",
    )

    def __init__(self, interim: bytes = b"") -> None:
        self._lock = threading.Lock()  # taken for moments, also under the connection's
        self._entry: CommConnEntry | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._error: BaseException | None = None
        self._wakes: list[Callable[[], object]] = []  # of all who found nothing
        self.interim = interim
        """What the peer waits for before it sends the body; empty once it was sent."""
        self.begun = False
        """Somebody has begun to read, or it is collected."""
        self.collecting = False
        """All of it is kept until it is whole, and its handler is called then."""
        self.last = False
        """The head of the reply, which comes in pieces, says that the connection ends with it,
        even where the body comes to its end meanwhile. Set by the protocol, in a piece."""
        self.session: CommSession | None = None
        """Whose body it is, once its settings are known."""
        self.limit: int | None = None
        """Bytes that this request may have, where that is not the parameters' limit; set by
        the engine from the session, and held by the parser."""
        self.over = False
        """Nothing more will come: the body has ended, or failed."""
        self.received = 0
        """Bytes that have come so far."""
        self.heard = -1
        """``bytes_in`` of its connection when the peer was last given time."""

    def __repr__(self) -> str:
        state = "failed" if self._error is not None else "whole" if self.over else "arriving"
        return f"<{type(self).__name__} {state}, {self.received} bytes>"

    # -- the parser --------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """A piece has arrived. In the parser."""
        with self._lock:
            size = len(data)
            self.received += size
            if self.over or not size:
                return
            pieces = self._pieces
            if pieces and len(pieces[-1]) + size <= _SMALL:
                pieces[-1] += data
            else:
                pieces.append(data)
            self._size += size
            wakes, self._wakes = self._wakes, []
        for wake in wakes:
            wake()

    def end(self) -> None:
        """That was all. In the parser."""
        self._finish(None)

    # -- the engine --------------------------------------------------------------------

    def attach(self, entry: CommConnEntry, session: CommSession) -> None:
        """The connection that it arrives on, and whose request it belongs to."""
        with self._lock:
            if not self.over:
                self._entry = entry
                self.session = session

    def fail(self, error: BaseException) -> None:
        """The rest will not come. Harmless when it is over."""
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            error.__traceback__ = None  # it would keep the frames of all who met it
            _of_body(error)
        with self._lock:
            if self.over:
                return
            self.over = True
            self._error = error
            self._entry = self.session = None
            wakes, self._wakes = self._wakes, []
        for wake in wakes:
            wake()

    def discard(self) -> None:
        """Nobody is to read the rest: the request has been answered."""
        with self._lock:
            self._pieces.clear()
            self._size = 0
        self._finish(ConnectionResetError(errno.ECONNRESET, "the request was answered before"))

    def collect(self) -> None:
        """All of it is kept until it is whole."""
        self.collecting = True

    def whole(self) -> bytes:
        """All of it, once it has ended; for a body that was collected."""
        with self._lock:
            pieces, self._pieces = self._pieces, deque()
            self._size = 0
        return b"".join(pieces)

    @staticmethod
    def raised(error: BaseException) -> bool:
        """Whether reading a body raised this: the request broke off, and its handler did
        nothing wrong."""
        return getattr(error, "of_body", False)

    def wants_more(self) -> bool:
        """Whether there is room; if not, the connection is told when there is again."""
        with self._lock:
            if self.over:
                return False
            self._paused = self._size >= ROOM and not self.collecting
            return not self._paused

    @property
    def awaited(self) -> bool:
        """Whether the peer is waited for: not while it waits for our word, and not while there
        is no room."""
        return not (self.interim and not self.received) and self.wants_more()

    # -- the reader --------------------------------------------------------------------

    def pull(self, wake: Callable[[], object]) -> bytes | None:
        """The next piece; empty at the end. ``None`` when none is there: then ``wake()`` is
        called once, on any thread, when it is worth to try again, and must not block. Raises
        what went wrong."""
        piece = self._take(None)
        if piece is None:
            entry = self._entry
            if entry is not None:
                entry.fetch_body(self)
            piece = self._take(wake)
        return piece

    def _take(self, wake: Callable[[], object] | None) -> bytes | None:
        resume = None
        with self._lock:
            self.begun = True
            if self._pieces:
                piece = self._pieces.popleft()
                self._size -= len(piece)
                if self._paused and self._size <= ROOM // 2:
                    self._paused = False
                    resume = self._entry
            elif self._error is not None:
                error, self._error = self._error, _anew(self._error)
                try:
                    raise error
                finally:
                    del error  # or its traceback and this frame would keep each other
            elif self.over:
                return b""
            else:
                if wake is not None:
                    self._wakes.append(wake)
                return None
        if resume is not None:
            resume.resume_reading()
        return piece

    def __iter__(self) -> IncomingStream:
        return self

    def __next__(self) -> bytes:
        if asyncio._get_running_loop() is not None:
            raise UsageError(
                "reading a body this way would block the loop: use async for, or await aread()"
            )
        piece = self._take(None)
        if piece is None:
            there = threading.Event()
            while (piece := self.pull(there.set)) is None:
                self._wait(there)
                there.clear()
        if not piece:
            raise StopIteration
        return piece

    def _wait(self, there: threading.Event) -> None:
        """Another thread reads meanwhile; and a handler thread lends its place, so that slow
        peers do not keep others from being served."""
        entry = self._entry
        if entry is None:
            there.wait()
            return
        threads = entry.communicator.threads
        with contextlib.nullcontext() if threads is None else threads.lend():
            block(entry.communicator.engine, there)

    def __aiter__(self) -> IncomingStream:
        return self

    async def __anext__(self) -> bytes:
        piece = self._take(None)
        if piece is None:
            wakeup = Wakeup()
            piece = self.pull(wakeup.wake)
            if piece:
                # It was read just now, as the next may be: others have their turn before.
                await asyncio.sleep(0)
            while piece is None:
                await wakeup
                wakeup = Wakeup()
                piece = self.pull(wakeup.wake)
        if not piece:
            raise StopAsyncIteration
        return piece

    def read(self) -> bytes:
        """All that is left; in a function, where it may block."""
        return b"".join(self)

    async def aread(self) -> bytes:
        """All that is left; in a coroutine."""
        return b"".join([piece async for piece in self])
