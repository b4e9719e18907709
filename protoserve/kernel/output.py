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
    from protoserve.kernel.exchanges import Ended
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
        "_send",
        "_sendmsg",
        "acked",
        "buffers",
        "corked",
        "descriptor",
        "end",
        "limit",
        "marks",
        "sent",
        "sent_before",
        "size",
        "told_full",
        "waiters",
    )

    def __init__(self, transport: Transport, descriptor: Descriptor, limit: int) -> None:
        self._send = transport.send
        self.descriptor = descriptor
        """As ``Intake.descriptor``."""
        self._sendmsg = transport.sendmsg
        self.waiters: list[tuple[int, bool, Callable[[], object]]] | None = None
        self.buffers: list[Buffer] = []
        self.size = 0
        """Bytes that wait."""
        self.end = 0
        """All bytes that were ever put in."""
        self.sent = 0
        """All bytes that the socket has taken."""
        self.limit = limit
        """Where reading stops (``unsent_limit``)."""
        self.marks: list[tuple[CommSession, int]] = []
        """Sessions whose reply has not all been sent, each with its end."""
        self.sent_before = -1
        """``sent`` when the time of a step was last given to the peer..."""
        self.acked = 0
        """... and how many of these had reached it then."""
        self.corked = False
        """It waits for the end of the poller's turn."""
        self.told_full = False
        """It was told that reading stopped because of the limit."""

    def put(self, out: Piece) -> None:
        """Have it sent after what waits. Raises ``TypeError`` for what is not bytes-like."""
        self.add(*buffers_of(out))

    def add(self, buffers: list[Buffer], size: int) -> None:
        """The same for what ``buffers_of`` gave."""
        self.buffers += buffers
        self.size += size
        self.end += size

    def flush(self, entry: CommConnEntry) -> None:
        """Send what the socket takes, and note which replies are out."""
        buffers = self.buffers
        try:
            while buffers:
                if len(buffers) == 1:
                    buffer = buffers[0]
                    if self.descriptor is NOWHERE:
                        sent = self._send(buffer)
                    else:
                        sent = _write(self.descriptor.number, buffer)
                    if sent == len(buffer):
                        buffers.pop()
                        self.size = 0
                        self.sent += sent
                        break
                elif self.size <= JOIN_SIZE:
                    buffers[:] = [b"".join(buffers)]
                    continue
                else:
                    sent = self._sendmsg(buffers[:_VECTOR_LENGTH])
                self.sent += sent
                self.size -= sent
                if self._consume(sent):
                    break
        except (BlockingIOError, InterruptedError):
            if len(buffers) > _MOST_BUFFERS + 2 * self.size // JOIN_SIZE:
                self._join()
        except OSError as error:
            shut(entry, CloseReason.PEER_GONE, error.errno or 0, error.strerror)
            return
        except BaseException:  # a buffer that was changed: see MessageOut
            logger.exception("a reply of %r cannot be sent any more; it closes", entry)
            shut(entry, CloseReason.REPLY_FAILED, errno.EIO)
            return
        marks = self.marks
        if not marks:
            return
        finished = entry.exchanges.finished
        if not buffers:
            for session, _ in marks:
                if not session.end_quietly():
                    finished.append((session, SUCCESS, 0))
            marks.clear()
        elif self._pass_marks(finished):
            entry.deadline.send_by = None  # the next reply has its own

    def _pass_marks(self, finished: list[Ended]) -> bool:
        """True when a reply is out, while others wait."""
        sent = self.end - self.size
        passed = 0
        for session, end in self.marks:
            if end > sent:
                break
            finished.append((session, SUCCESS, 0))
            passed += 1
        del self.marks[:passed]
        return passed > 0

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
        self.buffers[:] = blocks

    def _consume(self, sent: int) -> bool:
        """Drop ``sent`` bytes from the front. True when a buffer was sent in part, which
        means that the socket is full."""
        buffers = self.buffers
        whole = 0
        for buffer in buffers:
            size = len(buffer)
            if sent < size:
                break
            sent -= size
            whole += 1
        del buffers[:whole]
        if sent:
            buffers[0] = memoryview(buffers[0])[sent:]
        return sent > 0

    def drop(self) -> None:
        """Nothing will be sent any more."""
        self.buffers.clear()
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
