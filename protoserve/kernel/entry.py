"""CommConnEntry: the engine's half of a connection, made of the parts."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protoserve.events import CloseReason, ConnectionClosed
from protoserve.kernel.current import CURRENT
from protoserve.kernel.deadline import KEEP_ALIVE, Deadline
from protoserve.kernel.ending import broken, fail, miss, shut
from protoserve.kernel.exchanges import Exchanges
from protoserve.kernel.handing import let_lock_go
from protoserve.kernel.intake import Intake
from protoserve.kernel.life import FAREWELL, FORGOTTEN, LINGERING, OPEN, SHUT, TOLD, Life
from protoserve.kernel.locking import new_lock
from protoserve.kernel.output import OutputBuffer
from protoserve.kernel.poller import Watched
from protoserve.kernel.reading import read_ahead
from protoserve.kernel.service import CommProtocol, CommService
from protoserve.kernel.session import CommSession, TaskState
from protoserve.kernel.states import state_of
from protoserve.kernel.transport import plain_descriptor
from protoserve.kernel.waiting import await_body, flush_aside, settle
from protoserve.log import logger
from protoserve.protocol import HOLD

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.incoming import IncomingStream
    from protoserve.kernel.life import CallbackHandle
    from protoserve.kernel.transport import Transport

SUCCESS: Final = TaskState.SUCCESS


class CommConnEntry(Watched):
    """The parts of one connection, and what it takes several of them to do.

    Everything here is called by the holder of ``lock``, for moments, unless it says
    otherwise; user code runs without it.
    """

    __slots__ = (
        "attached",
        "communicator",
        "connection",
        "deadline",
        "exchanges",
        "fd",
        "intake",
        "life",
        "lock",
        "output",
        "peername",
        "protocol",
        "ready",
        "service",
        "transport",
    )

    __deletable__ = ("connection",)

    # First what each event needs: the compiled build lays it out in this order.
    communicator: Communicator
    lock: threading.RLock
    intake: Intake
    life: Life
    exchanges: Exchanges
    output: OutputBuffer
    deadline: Deadline
    protocol: CommProtocol
    """What it speaks: at first that of ``service``, another one after an upgrade."""
    service: CommService
    """What counts it, and is told of it."""
    connection: CommConnection
    """The user's half. Gone when everything has ended, or the two would keep each other."""

    def __init__(
        self,
        connection: CommConnection,
        service: CommService,
        communicator: Communicator,
        transport: Transport,
        peername: Any,
    ) -> None:
        super().__init__()
        self.connection = connection
        self.service = self.protocol = service
        self.communicator = communicator
        self.transport = transport
        self.peername = peername
        self.fd = transport.fileno()
        self.ready = transport.ready
        self.lock = new_lock()
        self.attached = False
        """Counted, and in the poller's care."""
        self.life = Life()
        descriptor = plain_descriptor(transport)
        self.intake = Intake(transport, descriptor, service.new_parser())
        self.output = OutputBuffer(transport, descriptor, service.params.unsent_limit)
        self.exchanges = Exchanges(service.in_flight)
        self.deadline = Deadline(self)

    def on_ready(self, mask: int) -> None:
        """The poller's word of the socket. Without the lock."""
        self.communicator.on_ready(self, mask)

    def __repr__(self) -> str:
        return f"<connection {self.peername!r} {state_of(self)} seq={self.exchanges.seq}>"

    @property
    def locked_here(self) -> bool:
        """Whether the calling thread has the lock: it runs code of the protocol's, or of a
        collected object, in the middle of the connection's work. Any thread."""
        if not self.lock._is_owned():  # type: ignore[attr-defined]
            return False
        return not let_lock_go(self)

    @property
    def idle(self) -> bool:
        """Whether it waits for its next request, with nothing in hand. Any thread."""
        return self.deadline.limit is KEEP_ALIVE and not self.intake.more and not self.output.size

    @property
    def reply_is_incomplete(self) -> bool:
        """Whether the peer was sent, or was to be sent, more than it would have when the
        connection ends now."""
        exchanges = self.exchanges
        return (
            self.output.size > 0
            or exchanges.pieces_begun
            or (exchanges.session is not None and exchanges.pushed_for == exchanges.seq)
            or bool(exchanges.pushed_by)
        )

    def receive(self) -> None:
        """One read, fed to the parser."""
        intake = self.intake
        try:
            data = intake.read()
        except (BlockingIOError, InterruptedError):
            intake.readable = False
            return
        except OSError as error:
            shut(self, CloseReason.PEER_GONE, error.errno or 0, error.strerror)
            return
        try:
            size = len(data)
            if size:
                if size < intake.short_read and not intake.ends:
                    intake.readable = False  # the next edge announces more
                intake.bytes_in += size
                intake.feed(data)
            elif not self._take_end():
                return
            intake.more = True
        except BaseException:
            logger.exception("the parser of %r raised in feed() or feed_eof(); it closes", self)
            self.output.flush(self)  # the answers to good requests
            shut(self, CloseReason.PROTOCOL_FAILED, errno.EPROTO, "the parser failed")

    def _take_end(self) -> bool:
        """The peer has ended its sending side. False when it is gone. Raises what the parser
        does."""
        intake = self.intake
        intake.readable = False
        intake.eof = True
        if self.exchanges.in_hand or intake.more:
            self.transport.probe_peer()
        if self.life.end_callbacks:
            self.communicator.poller.post(self._tell_end, self.connection)
        if miss(self):
            return False
        intake.parser.feed_eof()
        return True

    def _tell_end(self, connection: CommConnection, _: int) -> None:
        with self.lock:
            callbacks, self.life.end_callbacks = self.life.end_callbacks, None
        for callback in (callbacks or {}).values():
            try:
                callback(connection)
            except BaseException:
                logger.exception("an on_peer_end callback of %r raised", connection)

    def resume_later(self) -> None:
        """Have it go on in the next turn: once, however many find a reason, or it would have
        more turns than others."""
        if not self.exchanges.posted:
            self.exchanges.posted = True
            self.communicator.poller.post(self.communicator.resume, self)

    def resume_reading(self) -> None:
        """A body that is arriving has room again. Without the lock; any thread."""
        with self.lock:
            if self.life.rung < SHUT:
                self.resume_later()

    def fetch_body(self, stream: IncomingStream) -> None:
        """Who reads a body that is arriving has found nothing: take in what is there, and
        give the peer time for more. Without the lock; any thread."""
        if self.locked_here:
            return  # in a callback of the stream's own
        self.lock.acquire()
        try:
            if self.life.rung < LINGERING and self.intake.arriving is stream:
                self.ask_for_body(stream)
                read_ahead(self)
                if self.output.size:
                    flush_aside(self)
                await_body(self)
        except BaseException:
            broken(self)
        self.release()

    def ask_for_body(self, stream: IncomingStream) -> None:
        """Say the protocol's word to a peer that waits for one before it sends the body,
        unless the reply has begun."""
        interim, stream.interim = stream.interim, b""
        stream.begun = True
        if not interim or stream.received or self.life.rung:
            return
        exchanges = self.exchanges
        if not exchanges.pieces_begun:
            self.output.put(interim)
        elif stream.session is not None and exchanges.awaits(stream.session):
            exchanges.hold(interim)  # after the reply of another

    def answered(self, session: CommSession, keep_alive: float | None) -> None:
        """The reply of a session is given out, all of it."""
        exchanges = self.exchanges
        if exchanges.session is session:
            exchanges.session = None
        else:
            exchanges.remove(session)
        self.deadline.keep_alive = keep_alive
        if keep_alive == 0 and self.life.rung == OPEN:
            self.life.end(CloseReason.LAST_REPLY)
        arriving = self.intake.arriving
        if arriving is not None and (
            exchanges.others is None or arriving.over or arriving.session is session
        ):
            self.intake.arriving = arriving.session = None
            self.deadline.body_ended()
            if not arriving.over:
                # What nobody reads is taken in for a while, and then cut.
                arriving.discard()
                self.life.end(CloseReason.LAST_REPLY, FAREWELL)
        if exchanges.upgrade is not None and not exchanges.others:
            self._switch(exchanges.upgrade)

    def _switch(self, protocol: CommProtocol) -> None:
        """The reply was the last in this protocol: go on in another."""
        exchanges = self.exchanges
        exchanges.upgrade = None
        if self.life.rung > OPEN:
            return
        intake = self.intake
        before, rest = intake.parser, b""
        try:
            rest = before.leftover()
            intake.use(protocol.new_parser())
            before.close()
            self.protocol = protocol
            self.connection.state = None
            exchanges.in_flight = protocol.in_flight
            exchanges.others = None if protocol.in_flight == 1 else set()
            self.output.limit = protocol.params.unsent_limit
            self.deadline.take_limits(protocol.params)
            intake.queue = None
            intake.more = bool(rest) or intake.eof
            intake.mark = intake.bytes_in - len(rest)
            self.greet()
            if rest:
                intake.feed(rest)  # of which it is asked when a greeting is out
            if intake.eof:
                intake.parser.feed_eof()
        except BaseException:
            fail(self, "the protocol that it was to go on with failed")

    def put_held(self) -> None:
        """No reply in pieces is under way any more: what waited for that follows."""
        exchanges = self.exchanges
        held, exchanges.held = exchanges.held, None
        exchanges.held_size = 0
        if self.life.cut:
            return
        for data in held or ():
            self.output.put(data)
        while exchanges.replies and exchanges.stream is None:
            session, keep_alive, reply = exchanges.replies.popleft()
            if isinstance(reply, tuple):
                self.output.add(*reply)
                self.output.mark(session)
                self.answered(session, keep_alive)
            else:
                exchanges.stream = reply
                self.communicator.poller.post(reply.begin_late, None)

    def finish_reply(self) -> None:
        """After a reply that no pump waits for. Lets the lock go."""
        try:
            output = self.output
            if output.pending:
                output.flush(self)
            if self.life.rung == OPEN:
                intake = self.intake
                if intake.more or intake.readable or intake.eof:
                    # The next request is handled by a handler thread, never on this one.
                    self.resume_later()
            settle(self)
        except BaseException:
            broken(self)
        self.release()

    def greet(self) -> None:
        """Say what a server of the protocol says first. Raises what its ``greeting`` does."""
        word = self.protocol.greeting(self.connection)
        if word is HOLD:
            self.intake.hold()
        elif word:
            self.output.put(word)

    def release(self) -> None:
        """Let go of the lock, then tell sessions and observers what happened under it.

        User code runs for a connection on one thread at a time: who hands a request over,
        or tells a session of its end, has ``pumping`` set; what ends meanwhile is told then.
        """
        life = self.life
        exchanges = self.exchanges
        output = self.output
        if (
            life.rung < SHUT
            and exchanges.finished is None
            and exchanges.dropped is None
            and output.waiters is None
        ):
            self.lock.release()  # as nearly always
            return
        closed = False
        while True:
            if life.rung == SHUT and self.attached:
                closed = True
                self._call_closed()
            if exchanges.pumping or not exchanges.untold:
                break
            threads = self.communicator.threads
            if threads is not None and threads.full and self.wait_for_thread():
                break
            self._tell_sessions()  # which may close it
        woken = (
            ()
            if output.waiters is None
            else output.woken(exchanges.held_size, over=life.rung >= SHUT)
        )
        last = False
        if life.rung == TOLD:
            # A session that still runs gives the reference back itself: forget().
            last = (
                exchanges.session is None
                and not exchanges.others
                and not exchanges.untold
                and not exchanges.running
            )
            if last:
                life.climb(FORGOTTEN)
                if not self.intake.eof:  # else they are about to be called
                    life.end_callbacks = None
        self.lock.release()
        for wake in woken:
            wake()
        if closed:
            self._report_closed()
        if last:
            del self.connection
            self.service.release()

    def wait_for_room(
        self, level: int, wake: Callable[[], object], *, all_of_it: bool = True
    ) -> bool:
        """Have ``wake`` called, on any thread, when no more than ``level`` bytes wait or the
        connection has closed. False, and no call, when that is so already. ``all_of_it``:
        with those that are held behind a reply in pieces. Without the lock; any thread."""
        with self.lock:
            size = self.output.size + (self.exchanges.held_size if all_of_it else 0)
            if self.life.rung >= SHUT or size <= level:
                return False
            self.output.wait(level, wake, all_of_it=all_of_it)
            return True

    def forget_callback(self, handle: CallbackHandle) -> bool:
        """Take a callback back. Without the lock; any thread."""
        with self.lock:
            return self.life.forget_callback(handle)

    def wait_for_thread(self) -> bool:
        """Where no thread may run a handler: have the connection served by the first that
        is free. False when this thread may, after all."""
        exchanges = self.exchanges
        if exchanges.deferred:
            return True
        threads = self.communicator.threads
        assert threads is not None
        exchanges.deferred = threads.defer(self.communicator.serve, self)
        return exchanges.deferred

    def _tell_sessions(self) -> None:
        """Tell sessions that they have ended. Lets the lock go meanwhile."""
        exchanges = self.exchanges
        exchanges.pumping = True
        lock = self.lock
        while exchanges.untold:
            finished = exchanges.ended()
            dropped, exchanges.dropped = exchanges.dropped, None
            lock.release()
            if dropped is not None:
                dropped.close()
            for session, state, error in finished:
                try:
                    session.handle(state, error)
                except BaseException:
                    logger.exception("a session of %r raised after its reply", self)
            lock.acquire()
        exchanges.pumping = False
        life = self.life
        if life.rung < SHUT and self.attached:
            intake = self.intake
            output = self.output
            if (
                life.rung
                or intake.more
                or intake.readable
                or output.pending
                or exchanges.stream is not None
            ):
                # Left to us by those who saw us at work.
                self.resume_later()
            else:
                settle(self)

    def _call_closed(self) -> None:
        """The socket is closed: call what waits for that, before a session is told that it
        could not reply. Lets the lock go meanwhile."""
        self.life.climb(TOLD)
        # Nobody adds to them any more, see CommConnection.on_close.
        callbacks, self.life.callbacks = self.life.callbacks, None
        service = self.service
        connection = self.connection
        service.retain()  # it must not be gone while they run
        self.lock.release()
        service.remove_connection(connection)
        if callbacks:
            with CURRENT.working_for(service):
                for callback in callbacks.values():
                    try:
                        callback(connection)
                    except BaseException:
                        logger.exception("an on_close callback of %r raised", connection)
        service.release()
        self.lock.acquire()

    def _report_closed(self) -> None:
        service = self.service
        if service.observers:
            service.emit(
                ConnectionClosed(
                    self.peername,
                    self.life.reason,
                    self.intake.bytes_in,
                    self.output.sent,
                    self.exchanges.seq,
                    self.life.detail,
                )
            )
