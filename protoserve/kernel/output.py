"""OutputBuffer: what was given out and the socket has not taken yet."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from protoserve.events import CloseReason
from protoserve.kernel.descriptor import NOWHERE, Descriptor
from protoserve.kernel.ending import shut
from protoserve.kernel.session import CommSession, TaskState
from protoserve.log import logger
from protoserve.protocol import Buffer, Piece

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry
    from protoserve.kernel.exchanges import Exchanges
    from protoserve.kernel.transport import Transport


JOIN_SIZE: Final = 64 * 1024
"""Up to here several buffers are sent as one copy, which is cheaper than a vector."""

_MOST_BUFFERS: Final = 256
"""Buffers that may wait before they are joined."""

_VECTOR_LENGTH: Final = 64
"""Buffers in one ``sendmsg``, far below any ``IOV_MAX``."""

SUCCESS: Final = TaskState.SUCCESS

_write: Final = os.write

PUSH_LIMIT: Final = 32 * 1024 * 1024
"""Unsent bytes at which a connection that is pushed to counts as dead."""


def buffers_of(out: Piece) -> tuple[list[Buffer], int]:
    """The buffers of ``out`` that hold something, and how many bytes they are.

    Raises ``TypeError`` for what is not bytes-like, nor a list or tuple of that.
    """
    if isinstance(out, (bytes, bytearray, memoryview)):
        buffers: tuple[Buffer, ...] | list[Buffer] = (out,)
    elif isinstance(out, (list, tuple)):
        buffers = out
    else:
        raise TypeError(
            "what is sent must be a bytes-like object, or a list or tuple of them, "
            f"not {type(out).__name__}"
        )
    sized: list[Buffer] = []
    size = 0
    for buffer in buffers:
        if isinstance(buffer, memoryview):
            buffer = buffer.cast("B") if buffer.nbytes else b""
        elif not isinstance(buffer, (bytes, bytearray)):
            raise TypeError(
                "what is sent must be bytes-like objects, "
                f"and one of the list is a {type(buffer).__name__}"
            )
        if buffer:
            sized.append(buffer)
            size += len(buffer)
    return sized, size


class OutputBuffer:
    """The bytes on their way out, and who is told when some are sent.

    Touched by the holder of the connection's lock. ``size`` and ``sent`` may be read by any
    thread, for a moment's truth.
    """

    __slots__ = (
        "_buffer",
        "_buffers",
        "_marked",
        "_marked_end",
        "_marks",
        "_send",
        "_sendmsg",
        "acked",
        "corked",
        "descriptor",
        "end",
        "limit",
        "sent",
        "sent_before",
        "size",
        "told_full",
        "waiters",
    )

    size: int

    def __init__(self, transport: Transport, descriptor: Descriptor, limit: int) -> None:
        # First what each reply needs: the compiled build lays it out in this order.
        self.descriptor = descriptor
        """As ``Intake.descriptor``."""
        self._buffer: Buffer | None = None  # all that waits, where a reply was one, or ...
        self._buffers: list[Buffer] | None = None  # ... all that waits
        self._marked: CommSession | None = None  # whose reply has not all been sent, and its end
        self._marked_end = 0
        self._marks: list[tuple[CommSession, int]] | None = None  # or, of several, all
        self.size = 0
        """Bytes that wait; 0 means that nothing does."""
        self.end = 0
        """All bytes that were ever put in."""
        self.sent = 0
        """All bytes that the socket has taken."""
        self.limit = limit
        """Where reading stops (``unsent_limit``)."""
        self.waiters: list[tuple[int, bool, Callable[[], object]]] | None = None
        self.corked = False
        """It waits for the end of the poller's turn."""
        self.told_full = False
        """It was told that reading stopped because of the limit."""
        self.sent_before = -1
        """``sent`` when the time of a step was last given to the peer..."""
        self.acked = 0
        """... and how many of these had reached it then."""
        self._send = transport.send
        self._sendmsg = transport.sendmsg

    @property
    def buffers(self) -> list[Buffer]:
        """All that waits, in order."""
        if self._buffers is not None:
            return self._buffers
        return [] if self._buffer is None else [self._buffer]

    @property
    def marks(self) -> list[tuple[CommSession, int]]:
        """Sessions whose reply has not all been sent, each with its end."""
        if self._marks is not None:
            return self._marks
        return [] if self._marked is None else [(self._marked, self._marked_end)]

    @property
    def pending(self) -> bool:
        """Whether ``flush`` has anything to do."""
        return self.size > 0 or self._marked is not None or self._marks is not None

    def put(self, out: Piece) -> None:
        """Have it sent after what waits. Raises ``TypeError`` for what is not bytes-like."""
        self.add(*buffers_of(out))

    def add(self, buffers: list[Buffer], size: int) -> None:
        """The same for what ``buffers_of`` gave."""
        if buffers:
            if self._buffers is None:
                self._buffers = self.buffers
                self._buffer = None
            self._buffers += buffers
            self.size += size
            self.end += size

    def append(self, buffer: bytes, size: int) -> None:
        """The same for one that holds so many bytes, not 0."""
        if not self.size:
            self._buffer = buffer
        elif self._buffers is not None:
            self._buffers.append(buffer)
        else:
            self._buffers = [*self.buffers, buffer]
            self._buffer = None
        self.size += size
        self.end += size

    def mark(self, session: CommSession) -> None:
        """The reply of a session ends here: it is told when it has been sent."""
        if self._marks is not None:
            self._marks.append((session, self.end))
        elif self._marked is None:
            self._marked = session
            self._marked_end = self.end
        else:
            self._marks = [*self.marks, (session, self.end)]
            self._marked = None

    def flush(self, entry: CommConnEntry) -> None:
        """Send what the socket takes, and note which replies are out."""
        try:
            buffer = self._buffer
            if buffer is not None:
                sent = self._send_one(buffer)
                if sent == self.size:
                    self._buffer = None
                    self.size = 0
                    self.sent += sent
                elif not self._take(sent):
                    self._send_several()
            elif self._buffers is not None:
                self._send_several()
        except (BlockingIOError, InterruptedError):
            buffers = self._buffers
            if buffers is not None and len(buffers) > _MOST_BUFFERS + 2 * self.size // JOIN_SIZE:
                self._join()
        except OSError as error:
            shut(entry, CloseReason.PEER_GONE, error.errno or 0, error.strerror)
            return
        except BaseException:  # a buffer that was changed: see MessageOut
            logger.exception("a reply of %r cannot be sent any more; it closes", entry)
            shut(entry, CloseReason.REPLY_FAILED, errno.EIO)
            return
        session = self._marked
        if self.size:
            if self._pass_marks(entry.exchanges):
                entry.deadline.send_by = None  # the next reply has its own
        elif session is not None:
            self._marked = None
            if not session.end_quietly():
                entry.exchanges.tell(session, SUCCESS, 0)
        elif self._marks is not None:
            for session, _ in self.take_marks():
                if not session.end_quietly():
                    entry.exchanges.tell(session, SUCCESS, 0)

    def _send_one(self, buffer: Buffer) -> int:
        if self.descriptor is NOWHERE:
            return self._send(buffer)
        return _write(self.descriptor.number, buffer)

    def _send_several(self) -> None:
        while (buffers := self._buffers) is not None:
            if len(buffers) == 1:
                sent = self._send_one(buffers[0])
            elif self.size <= JOIN_SIZE:
                buffers[:] = [b"".join(buffers)]
                continue
            else:
                sent = self._sendmsg(buffers[:_VECTOR_LENGTH])
            if self._take(sent):
                break

    def _take(self, sent: int) -> bool:
        """The socket took so many bytes. True when a buffer was sent in part, which means that
        it is full."""
        self.sent += sent
        self.size -= sent
        buffers = self.buffers
        self._buffer = None
        self._buffers = buffers
        whole = 0
        for buffer in buffers:
            size = len(buffer)
            if sent < size:
                break
            sent -= size
            whole += 1
        del buffers[:whole]
        # One may have been changed while it waited (see MessageOut): then the sum is wrong.
        if not buffers:
            self._buffers = None
            self.size = 0
            return False
        self.size = max(self.size, 1)
        if sent:
            buffers[0] = memoryview(buffers[0])[sent:]
        return sent > 0

    def _pass_marks(self, exchanges: Exchanges) -> bool:
        """True when a reply is out, while others wait."""
        sent = self.end - self.size
        marks = self.marks
        passed = 0
        for session, end in marks:
            if end > sent:
                break
            exchanges.tell(session, SUCCESS, 0)
            passed += 1
        if passed:
            del marks[:passed]
            self._marked = None
            self._marks = marks or None
        return passed > 0

    def take_marks(self) -> list[tuple[CommSession, int]]:
        """``marks``, which are forgotten here."""
        marks = self.marks
        self._marked = self._marks = None
        return marks

    def _join(self) -> None:
        """Make blocks of many small buffers that wait, so that what is done for each
        buffer does not grow with their number."""
        blocks: list[Buffer] = []
        run: list[Buffer] = []
        size = 0
        for buffer in self.buffers:
            if size + len(buffer) > JOIN_SIZE:
                blocks.append(run[0] if len(run) == 1 else b"".join(run))
                run = []
                size = 0
            run.append(buffer)
            size += len(buffer)
        blocks.append(run[0] if len(run) == 1 else b"".join(run))
        self._buffers = blocks

    def drop(self) -> None:
        """Nothing will be sent any more."""
        self._buffer = self._buffers = None
        self.size = 0

    # -- who waits for room ------------------------------------------------------------

    def wait(self, level: int, wake: Callable[[], object], *, all_of_it: bool) -> None:
        """Have ``wake`` returned by ``woken`` when no more than ``level`` bytes wait.
        ``all_of_it``: those that are held behind a reply in pieces, too."""
        if self.waiters is None:
            self.waiters = []
        self.waiters.append((level, all_of_it, wake))

    def woken(self, held: int, *, over: bool) -> Iterable[Callable[[], object]]:
        """Who waited long enough, while so many bytes are held; ``over``: all of them. To be
        called without the lock."""
        left: list[tuple[int, bool, Callable[[], object]]] = []
        awake = []
        for waiter in self.waiters or ():
            level, all_of_it, wake = waiter
            if over or self.size + (held if all_of_it else 0) <= level:
                awake.append(wake)
            else:
                left.append(waiter)
        self.waiters = left or None
        return awake
