"""Intake: what comes in on a connection, and how far it has been parsed."""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from protoserve.kernel.descriptor import NOWHERE, Descriptor
from protoserve.kernel.incoming import IncomingStream
from protoserve.kernel.native import NativeParser
from protoserve.kernel.readiness import GONE, HANGUP
from protoserve.protocol import HOLD, NEED_DATA, Arriving, MessageParser

if TYPE_CHECKING:
    from protoserve.kernel.transport import Transport


RECEIVE_SIZE: Final = 64 * 1024
"""Bytes asked for in one read..."""

SMALL_SIZE: Final = 479
"""... and before a peer has sent as many at once: the most bytes that make a small object, which
Python has for less."""

ENDS: Final = HANGUP | GONE

_read: Final = os.read


def _nothing_yet(_: int) -> bytes:
    """In the place of a transport's ``recv``: whatever there is is not for now."""
    raise BlockingIOError(errno.EAGAIN, "it is not read yet")


def native(parser: object) -> NativeParser[Any] | None:
    """The same, where it can be called without asking Python."""
    return parser if isinstance(parser, NativeParser) else None


class Fault:
    """In the queue of parsed requests: what the parser raised after them."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Intake:
    """The parser, what the socket still has for it, and what it made and nobody took yet.

    Touched by the holder of the connection's lock, for moments, or by the one thread that
    pumps. ``bytes_in`` and ``eof`` may be read by any thread, for a moment's truth.
    """

    __slots__ = (
        "_descriptor",
        "_fault",
        "_native",
        "_recv",
        "arriving",
        "bytes_in",
        "descriptor",
        "ends",
        "eof",
        "held",
        "large",
        "mark",
        "more",
        "parser",
        "queue",
        "readable",
        "recv",
        "short_read",
    )

    def __init__(
        self, transport: Transport, descriptor: Descriptor, parser: MessageParser[Any]
    ) -> None:
        # First what each event needs: the compiled build lays it out in this order.
        self.descriptor = descriptor
        """What is read from instead of ``recv``, where it is somewhere; see
        ``plain_descriptor``."""
        self.parser = parser
        self._native = native(parser)
        self.large = descriptor is NOWHERE
        """Whether the next read asks for all of ``RECEIVE_SIZE``."""
        self.readable = False
        """There may be input that was not read: the poller tells of edges."""
        self.eof = False
        """The end of the peer's sending was reached."""
        self.held = False
        """Nothing is read before something was pushed: the greeting is yet to come."""
        self.more = False
        """The parser may hold messages."""
        size = RECEIVE_SIZE if self.large else SMALL_SIZE
        self.short_read = size if transport.short_read_empties else 0
        """A read of fewer bytes has taken all there is."""
        self.ends = 0
        """What the poller announced besides: HANGUP, the end of the peer's sending; GONE, that
        of its receiving as well."""
        self.bytes_in = 0
        self.mark = 0
        """``bytes_in`` when the last request was handed over."""
        self.queue: deque[Any] | None = None
        """Parsed while another request was served."""
        self.arriving: IncomingStream | None = None
        """The body that was handed over before it was all there."""
        self._fault: OSError | None = None  # to be told by the next read
        self.recv = self._recv = transport.recv
        self._descriptor = descriptor

    def use(self, parser: MessageParser[Any]) -> None:
        """From now on it is this parser's."""
        self.parser = parser
        self._native = native(parser)

    def feed(self, data: bytes) -> None:
        """The parser takes it. Raises what that does."""
        if self._native is not None:
            self._native.feed(data)
        else:
            self.parser.feed(data)

    def next_message(self) -> Any:
        """What the parser says. Raises what that does."""
        if self._native is not None:
            return self._native.next_message()
        return self.parser.next_message()

    @property
    def partial(self) -> Any:
        """Whether the parser holds an unfinished request. Raises what that does."""
        if self._native is not None:
            return self._native.partial
        return self.parser.partial

    def hold(self) -> None:
        """Read nothing, and ask the parser for nothing, until ``go_on``."""
        self.held = True
        self.more = False
        self.recv = _nothing_yet
        self.descriptor = NOWHERE

    def go_on(self) -> None:
        """Read again what has come meanwhile. Harmless when nothing was held."""
        if self.held:
            self.held = False
            self.more = self.readable = True
            self.recv = self._recv
            self.descriptor = self._descriptor

    @property
    def body_comes(self) -> bool:
        """Whether what comes next belongs to a request that is in hand."""
        return self.arriving is not None and not self.arriving.over

    @property
    def blocked(self) -> bool:
        """Whether what was parsed last has to be looked at before anything else is read."""
        last = self.queue[-1] if self.queue else None
        return (
            type(last) is Fault
            or last is HOLD
            or (type(last) is Arriving and not last.stream.over)
        )

    def fill(self, limit: int) -> bool:
        """Move parsed messages to the queue, up to so many. False when there is no point in
        reading more."""
        if not self.more:
            return True
        queue = self.queue
        if queue is None:
            queue = self.queue = deque()
        try:
            while len(queue) < limit and not self.blocked:
                message = self.next_message()
                if message is NEED_DATA:
                    # It may be the reply that the parser waits for: it is asked again.
                    return True
                queue.append(message)
                if message is HOLD:
                    return False  # the parser is asked again when the replies are given
        except BaseException as error:
            queue.append(Fault(error))  # its turn comes after the requests before it
        return False

    def put_back(self, message: Any) -> None:
        """Let a message wait in front of the others."""
        if self.queue is None:
            self.queue = deque()
        self.queue.appendleft(message)

    def unread(self) -> bool:
        """Whether the peer sent more than was answered, or may be sending it. Asked when
        nothing of it will be answered any more."""
        if self.queue and self.queue[0] is not HOLD:
            return True
        try:
            # Also where the last read took all: something may have come since.
            if self.read():
                return True
        except OSError:  # nothing, or nobody
            self.readable = False
        try:
            message = self.next_message() if self.more else NEED_DATA
            if message is HOLD:
                message = self.next_message()
            return message is not NEED_DATA or self.partial
        except BaseException:  # what it is does not matter any more
            return True

    def read(self) -> bytes:
        """Some of what there is; as ``Transport.recv``."""
        if self.descriptor is NOWHERE:
            return self.recv(RECEIVE_SIZE)
        if self.large:
            if self._fault is not None:
                raise self._fault
            return _read(self.descriptor.number, RECEIVE_SIZE)
        data = _read(self.descriptor.number, SMALL_SIZE)
        if len(data) == SMALL_SIZE:
            self.large = True
            self.short_read = RECEIVE_SIZE
            # What came together is parsed together.
            try:
                data += _read(self.descriptor.number, RECEIVE_SIZE)
            except BlockingIOError:
                pass
            except OSError as error:  # to be told after that
                self._fault = error
                self.short_read = 0
        return data

    def drop(self) -> None:
        """Nothing that came is served any more."""
        self.queue = None
        self.more = self.readable = False
