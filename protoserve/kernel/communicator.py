"""Communicator: from readable to message, from reply to written. Knows no protocol.

Two lanes share a connection. Bytes move under the connection's lock, on whichever
thread has it, and never for long. Requests are handed over one at a time by the thread
that set ``pumping``; the lock is not held while user code runs.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

from protoserve.errors import ProtocolError, UsageError
from protoserve.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionOpened,
    LimitReached,
    RequestRefused,
)
from protoserve.kernel.connection import (
    CLOSED,
    CONNECTED,
    DRAINING,
    KEEPALIVE,
    PROCESSING,
    RECEIVING,
    REPLYING,
    CommConnection,
    State,
)
from protoserve.kernel.current import CURRENT
from protoserve.kernel.habits import SLOW, Habit, Watch
from protoserve.kernel.poller import GONE, HANGUP, READABLE, Poller
from protoserve.kernel.session import CommService, CommSession, TaskState
from protoserve.kernel.stream import END, Stream, open_stream
from protoserve.log import logger
from protoserve.params import YEAR
from protoserve.protocol import NEED_DATA, Buffer, Feedback, MessageOut, Piece

if TYPE_CHECKING:
    from protoserve.kernel.engine import Engine
    from protoserve.kernel.leader_followers import LeaderFollowers
    from protoserve.kernel.transport import Transport


RECEIVE_SIZE: Final = 64 * 1024
"""Bytes asked for in one read."""

JOIN_SIZE: Final = 64 * 1024
"""Up to here several buffers are sent as one copy, which is cheaper than a vector."""

_LOCK_PATIENCE: Final = 0.5
"""Seconds that code which may hold the lock of *another* connection waits for this one's:
they are held for moments. Two that wait for each other must not do so for ever."""

DRAIN_TIME: Final = 2.0
"""Seconds that unread input is taken in after a farewell (nginx: ``lingering_time``)."""

_MOST_BUFFERS: Final = 256
"""Buffers that may wait before they are joined."""

_STOP_DRAIN_TIME: Final = 0.25
"""The same while the service stops: a round trip, so that what the client sent before it saw
the end of the connection does not reset it."""

_FIRST_REQUEST_TIME: Final = 0.5
"""Seconds from its acceptance that a connection has for its first byte when the service stops:
clients send at once, and would lose a request that crosses the end of the connection."""

_VECTOR_LENGTH: Final = 64
"""Buffers in one ``sendmsg``, far below any ``IOV_MAX``."""

_TURN_REQUESTS: Final = 64
"""Requests of one connection handled before others have their turn."""

_TURN_PULLS: Final = 64
"""Pieces of one reply taken before other connections have their turn."""

_TURN_TIME: Final = 0.002
"""Seconds of handlers, or of a reply's pieces, after which others have their turn."""

_TURN_READS: Final = 4
"""Reads of one connection before others have their turn."""

_EXPIRED: Final[dict[State, CloseReason]] = {
    CONNECTED: CloseReason.NO_REQUEST,
    KEEPALIVE: CloseReason.IDLE,
    REPLYING: CloseReason.NOT_CLOSED,
    PROCESSING: CloseReason.REPLY_NOT_TAKEN,
    DRAINING: CloseReason.NOT_CLOSED,
}
"""Why a connection was closed when its deadline passed, with nothing to send."""

_LATE_TURNS: Final = 64
"""Turns of reading what lies in the kernel before a deadline counts."""

_LOOK_AGAIN: Final = 0.05
"""Seconds after which a deadline is looked at again that passed at a bad moment."""

_ENDS: Final = HANGUP | GONE
_INPUT: Final = READABLE | _ENDS

TOREPLY: Final = TaskState.TOREPLY
SUCCESS: Final = TaskState.SUCCESS
SYS_ERROR: Final = TaskState.SYS_ERROR


class _Fault:
    """In the queue of parsed requests: what the parser raised after them."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Coming(CommSession):
    """Stands for a session that is being made."""

    __slots__ = ()

    def message_in(self, message: Any) -> None:
        raise NotImplementedError

    def message_out(self) -> MessageOut:
        raise NotImplementedError

    def handle(self, state: TaskState, error: int) -> None:
        raise NotImplementedError


class _News(_Coming):
    """In the place of a session that has ended: something that observers are to be told in
    its turn, and without the lock."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell

    def handle(self, state: TaskState, error: int) -> None:
        self._tell()


COMING: Final = _Coming()


class Communicator:
    """Moves the connections of one poller through their states.

    ``on_ready``, ``on_deadline`` and ``resume`` are the poller's; ``attach``, ``reply``,
    ``shutdown``, ``close`` and ``stop_connection`` may be called from any thread.
    """

    __slots__ = ("clock", "engine", "poller", "threads")

    def __init__(self, poller: Poller, engine: Engine | None = None) -> None:
        self.poller = poller
        self.clock = poller.clock
        self.engine = engine
        self.threads: LeaderFollowers | None = None
        """The handler threads; ``None`` where handlers run in a loop."""

    # -- beginning and end -------------------------------------------------------------

    def attach(self, transport: Transport, peername: Any, service: CommService) -> None:
        """Take an accepted connection, which the service has counted (``retain``). Raises
        what ``new_connection`` raises."""
        conn: CommConnection | None = None
        try:
            # From here on the service may push, or close it: it is told of the end below.
            conn = service.new_connection(self, transport, peername)
            if conn is not None and not isinstance(conn, CommConnection):
                raise TypeError(
                    "new_connection() must return a CommConnection, or None to refuse the "
                    f"peer, not {type(conn).__name__}"
                )
        finally:
            if not isinstance(conn, CommConnection):
                transport.close()
                service.release()
        if conn is None:
            return
        service.add_connection(conn)
        if service.observers:
            service.emit(ConnectionOpened(peername))
        conn.lock.acquire()
        conn.attached = True
        if conn.phase is not CLOSED:
            if conn.deadline == inf:  # otherwise what was pushed waits for room
                self._arm(conn, self.poller.time(), conn.first_wait)
            try:
                self.poller.watch(conn.fd, self.on_ready, conn)
            except OSError as error:
                self._close_locked(conn, CloseReason.NOT_WATCHED, errno.ENOMEM, error.strerror)
        self._release(conn)
        if service.stopping:
            # Accepted while the server stopped, which nobody else tells it.
            self.stop_connection(conn)

    def close(self, conn: CommConnection, reason: CloseReason = CloseReason.CLOSED) -> bool:
        """Close at once; what is unsent is lost. False when it was closed already."""
        if conn.locked_here:
            # Called by code of the protocol's, or of a collected object, that runs under it:
            # close when that is done, after what was given out before.
            if conn.phase is CLOSED or conn.phase is DRAINING or conn.ending:
                return False
            conn.ending = True
            conn.close_reason = reason
            conn.phase = conn.phase.reply
            self.poller.post(self._close_posted, (conn, reason))
            return True
        if not conn.lock.acquire(timeout=_LOCK_PATIENCE):
            self.poller.post(self._close_posted, (conn, reason))
            return True
        closed = self._close_locked(conn, reason, errno.ECONNABORTED)
        self._release(conn)
        return closed

    def _close_posted(self, what: tuple[CommConnection, CloseReason], _: int) -> None:
        self.close(*what)

    def stop_connection(self, conn: CommConnection, _: int = 0) -> None:
        """The service stops: end the connection when it has nothing in hand.

        What has arrived and was not read yet is still served, so it is looked at once
        more, on a handler thread.
        """
        with conn.lock:
            now = self.poller.time()
            if conn.phase is CONNECTED and now < conn.idle_since + _FIRST_REQUEST_TIME:
                # It has only just been accepted, and its request may be on its way.
                self.poller.call_at(
                    conn.idle_since + _FIRST_REQUEST_TIME, self.stop_connection, conn
                )
                return
            conn.readable = True
            if conn.phase is DRAINING:
                end = now + _STOP_DRAIN_TIME
                if conn.send_deadline is not None:
                    conn.send_deadline = min(conn.send_deadline, end)
                self._arm_at(conn, min(conn.deadline, end))
            self._resume_later(conn)

    def evict_idle(self, conn: CommConnection, idle_since: float) -> bool:
        """Close ``conn`` for another if it is still idle since then."""
        conn.lock.acquire()
        idle = conn.idle and conn.idle_since == idle_since
        if idle:
            self._close_locked(conn, CloseReason.MADE_ROOM, 0)
        self._release(conn)
        return idle

    def evict_silent(self, conn: CommConnection) -> bool:
        """Close ``conn`` for another if it still has not made a request."""
        conn.lock.acquire()
        silent = conn.silent
        if silent:
            self._close_locked(conn, CloseReason.MADE_ROOM, 0)
        self._release(conn)
        return silent

    # -- events ------------------------------------------------------------------------

    def on_ready(self, conn: CommConnection, mask: int) -> None:
        """The socket has become readable or writable."""
        conn.lock.acquire()
        if mask & _INPUT:
            conn.readable = True
            if mask & _ENDS:
                conn.hangup = True
                if mask & GONE:
                    conn.gone = True
                    if conn.eof and conn.phase is not CLOSED and conn.transport.peer_gone():
                        # It was asked whether it is there, see probe_peer().
                        self._close_locked(conn, CloseReason.PEER_GONE, errno.ECONNRESET)
        elif not conn.out and not conn.more and conn.stream is None:
            # Writable, and nothing to write: how every registration begins. Requests that
            # had to wait for room go on, also where a later send of that turn found it.
            conn.lock.release()
            return
        self._advance(conn)

    def resume(self, conn: CommConnection, _: int = 0) -> None:
        """Go on with a connection that gave way to others, or has more to do."""
        conn.lock.acquire()
        conn.posted = False
        self._advance(conn)

    def _resume_later(self, conn: CommConnection) -> None:
        """Have it go on in the next turn: once, however many find a reason, or it would have
        more turns than others. With the lock."""
        if not conn.posted:
            conn.posted = True
            self.poller.post(self.resume, conn)

    def serve(self, conn: CommConnection, _: int = 0) -> None:
        """Go on with a connection that waited for a handler thread."""
        conn.lock.acquire()
        conn.deferred = False
        self._advance(conn)

    def on_blocked(self, conn: CommConnection, waits: bool) -> None:
        """A handler keeps its thread: send the replies that were waiting for company, and
        remember the handler if it ``waits``."""
        session = None
        conn.lock.acquire()
        if conn.pumping:
            # Otherwise the handler has returned meanwhile, and what follows is arranged.
            if conn.out:
                self._flush_aside(conn)
            if waits and conn.stream is None and conn.session is not COMING:
                session = conn.session
        self._release(conn)
        if session is not None:
            conn.service.habits.surprise(session.handler_key())

    def on_deadline(self, conn: CommConnection, _: int) -> None:
        """The poller's timer for a connection: has its deadline really passed?"""
        conn.lock.acquire()
        now = self.poller.time()
        if conn.timer_at > now:
            # Another timer took its place when this one could not be cancelled any more.
            conn.lock.release()
            return
        conn.timer = None
        conn.timer_at = inf
        if conn.phase is CLOSED or conn.deadline == inf:
            conn.lock.release()
            return
        try:
            if conn.deadline > now:
                self._arm_at(conn, conn.deadline)
            elif (conn.pumping or conn.deferred) and not conn.out:
                self._arm_at(conn, now + _LOOK_AGAIN)
            elif not self._arrived_late(conn, now):
                self._expire(conn)
        except BaseException:
            self._broken(conn)
        self._release(conn)

    def _arrived_late(self, conn: CommConnection, now: float) -> bool:
        """Whether something came in time that was not looked at: the whole process, or the
        machine, may have been stopped."""
        phase = conn.phase
        if conn.out or conn.eof or phase not in (CONNECTED, RECEIVING, KEEPALIVE):
            return False
        first = conn.bytes_in
        for _ in range(_LATE_TURNS):
            before = conn.bytes_in
            conn.readable = True
            self._pump(conn)
            phase = conn.phase
            if phase is not CONNECTED and phase is not RECEIVING and phase is not KEEPALIVE:
                return True
            if conn.bytes_in == before:
                break
        return conn.bytes_in != first and conn.deadline > now

    def _expire(self, conn: CommConnection) -> None:
        conn.deadline = inf
        if conn.out:
            # A slow reader makes room long before the system announces it.
            self._flush(conn)
            if conn.phase is CLOSED:
                return
            # What the system has taken since is no news: the peer has to.
            progress = conn.bytes_out - conn.transport.unacknowledged() > conn.acked
            late = conn.send_deadline is not None and conn.send_deadline <= self.poller.time()
            if progress and not (late and conn.out):
                self._resume_later(conn)
            else:
                detail = ""
                if conn.told_full:
                    detail = (
                        f"it had stopped to be read at unsent_limit={conn.unsent_limit}; raise "
                        "that for clients that write much before they read"
                    )
                    if conn.service.may_report("cut at unsent_limit", self.clock()):
                        logger.warning("%r: the peer takes no replies; %s", conn, detail)
                self._close_locked(conn, CloseReason.REPLY_NOT_TAKEN, errno.ETIMEDOUT, detail)
        elif conn.phase is RECEIVING:
            farewell: Buffer | ProtocolError
            try:
                farewell = conn.parser.timeout_reply()
            except BaseException:
                logger.exception("the parser of %r raised in timeout_reply()", conn)
                farewell = b""
            message = ""
            summary: Mapping[str, object] = {}
            if isinstance(farewell, ProtocolError):
                message, summary, farewell = str(farewell), farewell.summary, farewell.reply
            self._refused(conn, CloseReason.REQUEST_TOO_SLOW, message, summary)
            if farewell:
                self._say_farewell(conn, farewell)
                self._flush(conn)
                self._settle(conn)
            else:
                self._close_locked(conn, CloseReason.REQUEST_TOO_SLOW, errno.ETIMEDOUT)
        elif conn.broken:
            self._reset_when_taken(conn)
        else:
            self._close_locked(conn, _EXPIRED[conn.phase], errno.ETIMEDOUT)

    # -- the pump ----------------------------------------------------------------------

    def _advance(self, conn: CommConnection) -> None:
        """Read, hand over, send, until nothing more can be done. Called with the lock,
        returns without it."""
        state = conn.phase
        try:
            if state is CLOSED:
                pass
            elif state is DRAINING:
                self._drain(conn)
            elif conn.pumping or conn.deferred:
                # A handler of this connection runs on another thread, or waits for one.
                self._read_ahead(conn)
                if conn.out:
                    self._flush_aside(conn)
            else:
                self._pump(conn)
        except BaseException:
            # A fault of ours, or of a plugin in a place where it must not raise.
            self._broken(conn)
        self._release(conn)

    def _pump(self, conn: CommConnection) -> None:
        """The lane of the requests: one thread at a time, the one that set ``pumping``."""
        conn.pumping = True
        requests = reads = pulls = 0
        now = turn_end = 0.0
        parser = conn.parser
        unsent_limit = conn.unsent_limit
        threads = self.threads
        poller = self.poller
        while True:
            if conn.session is not None or conn.ending:
                if conn.session is not None and conn.readable and reads < _TURN_READS:
                    reads += 1
                    self._read_ahead(conn)
                stream = conn.stream
                if stream is None or stream.busy or conn.phase is CLOSED:
                    break
                if conn.out_size >= JOIN_SIZE:
                    self._flush(conn)
                    if conn.out_size >= JOIN_SIZE or conn.phase is CLOSED:
                        break
                if threads is not None and threads.full and self._wait_for_thread(conn):
                    break
                if not turn_end:
                    now = poller.now
                    turn_end = now + _TURN_TIME
                if pulls == _TURN_PULLS or now > turn_end:
                    self._resume_later(conn)
                    break
                pulls += 1
                poller.now = now = self._pull(conn, stream, now)
                continue
            if conn.out_size >= unsent_limit:
                self._flush(conn)
                if conn.out_size >= unsent_limit or conn.phase is CLOSED:
                    if not conn.told_full:
                        self._stopped_reading(conn)
                    break
            if conn.more:
                try:
                    if conn.queue:
                        message = conn.queue.popleft()
                        if type(message) is _Fault:
                            raise message.error
                    else:
                        message = parser.next_message()
                except BaseException as error:
                    self._parser_raised(conn, error)
                    break
                if message is NEED_DATA:
                    conn.more = False
                    continue
                if threads is not None and threads.full and self._wait_for_thread(conn):
                    self._put_back(conn, message)
                    break
                if not turn_end:
                    now = poller.now
                    turn_end = now + _TURN_TIME
                elif requests == _TURN_REQUESTS or now > turn_end:
                    self._put_back(conn, message)
                    self._resume_later(conn)
                    break
                now = self._hand_over(conn, message, now)
                if not now:
                    break
                poller.now = now
                requests += 1
            elif conn.readable and not conn.eof:
                if reads == _TURN_READS:
                    self._resume_later(conn)
                    break
                reads += 1
                self._receive(conn)
                if conn.phase is CLOSED:
                    break
            else:
                break
        conn.pumping = False
        if conn.phase is not CLOSED:
            if conn.out or conn.unsent:
                full = conn.out_size >= unsent_limit
                self._flush(conn)
                if full and not conn.out and conn.more:
                    self._resume_later(conn)  # no edge will come for this room
            self._settle(conn, now)

    def _stopped_reading(self, conn: CommConnection) -> None:
        """The peer asks and does not read the answers: told once for a connection."""
        if conn.phase is CLOSED:
            return
        if not conn.queue:
            self._fill(conn, 1)
        if not conn.queue and not conn.readable:
            return  # a large reply, and nothing after it
        conn.told_full = True
        service = conn.service
        event = LimitReached(
            "unsent_limit", conn.unsent_limit, "a connection is not read until its peer reads"
        )
        tell = partial(service.emit_rarely, event, "unsent_limit", self.clock())
        conn.finished.append((_News(tell), SUCCESS, 0))

    @staticmethod
    def _put_back(conn: CommConnection, message: Any) -> None:
        """Let a message wait in front of the others."""
        if conn.queue is None:
            conn.queue = deque()
        conn.queue.appendleft(message)

    def _wait_for_thread(self, conn: CommConnection) -> bool:
        """Where no thread may run a handler: have the connection served by the first that
        is free. False when this thread may, after all. With the lock."""
        assert self.threads is not None
        if conn.deferred:
            return True
        conn.deferred = self.threads.defer(self.serve, conn)
        return conn.deferred

    def _broken(self, conn: CommConnection) -> None:
        """In an ``except`` block, with the lock: something raised that must not. Nobody
        may wait for this connection for ever."""
        logger.exception("%r failed; it closes", conn)
        conn.pumping = False
        if conn.phase is not CLOSED:
            try:
                self._close_locked(conn, CloseReason.INTERNAL_ERROR, errno.EPROTO)
            except BaseException:
                logger.exception("%r could not be closed in order", conn)
                conn.phase = CLOSED
                conn.transport.close()

    def _parser_raised(self, conn: CommConnection, error: BaseException) -> None:
        """In an ``except`` block: the peer broke the protocol, or the parser is broken."""
        if not isinstance(error, ProtocolError):
            self._fail(conn, "the parser failed")
            return
        conn.more = False
        try:
            # The parser keeps it, and a traceback would keep our frames.
            error.__traceback__ = None
            message, farewell, summary = str(error), error.reply, error.summary
        except BaseException:
            self._fail(conn, "the parser's ProtocolError is incomplete")
            return
        self._refused(conn, CloseReason.PROTOCOL_ERROR, message, summary)
        self._say_farewell(conn, farewell)

    def _hand_over(self, conn: CommConnection, message: Any, now: float) -> float:
        """Run the handler of a message. With the lock, which is let go while the handler
        runs. Returns the time afterwards; 0 when the pump should stop."""
        if message is None:
            logger.error(
                "%r: next_message() of its parser returned None; it must return a request, "
                "or NEED_DATA (a forgotten return?); the connection closes",
                conn,
            )
            self._end_without_word(conn, "the parser failed")
            return 0.0
        if type(message) is Feedback:
            try:
                self._put(conn, message.data)
            except (TypeError, ValueError):
                self._fail(conn, "the parser gave feedback that is no bytes")
                return 0.0
            return now
        conn.session = COMING
        conn.phase = conn.phase.message
        conn.receive_deadline = None
        if conn.send_mark != conn.bytes_out:
            # Else a peer that does not read keeps its deadline, whatever it asks for.
            conn.deadline = inf
        conn.bytes_before = conn.bytes_in
        seq = conn.seq
        conn.seq = seq + 1
        lock = conn.lock
        lock.release()
        service = conn.service
        what = "no session could be made"
        session: CommSession = COMING
        try:
            session = service.new_session(seq, conn)
            session.message_in(message)
            what = "the session failed"
            # Nobody else touches it while it is COMING.
            conn.session = session
            if service.habits.known:
                now = self._handle_watched(service, session)
            else:
                session.handle(TOREPLY, 0)
                began, now = now, self.clock()
                if now - began > SLOW and self.threads is not None and service.habits.learns:
                    service.habits.note(session.handler_key(), True, False)
        except BaseException:
            lock.acquire()
            if conn.phase is CLOSED:
                logger.exception("%r: %s", conn, what)
                if conn.session is session or conn.session is COMING:
                    conn.session = None
            else:
                conn.session = None
                self._fail(conn, what)
            return 0.0
        lock.acquire()
        return 0.0 if conn.phase is CLOSED else now

    def _handle_watched(self, service: CommService, session: CommSession) -> float:
        """Run a handler where some are known to be slow. Returns the time afterwards."""
        threads = self.threads
        assert threads is not None
        key = session.handler_key()
        habit = service.habits.of(key)
        if habit is not None and habit.blocks:
            threads.promote()
        watch = Watch(self.clock)
        session.handle(TOREPLY, 0)
        now, slow, blocked = watch.end()
        service.habits.note(key, slow, blocked)
        return now

    def _receive(self, conn: CommConnection) -> None:
        """One read, fed to the parser."""
        try:
            data = conn.recv(RECEIVE_SIZE)
        except (BlockingIOError, InterruptedError):
            conn.readable = False
            return
        except OSError as error:
            self._close_locked(conn, CloseReason.PEER_GONE, error.errno or 0, error.strerror)
            return
        try:
            if data:
                size = len(data)
                if size < RECEIVE_SIZE and not conn.hangup:
                    # A short read empties the socket: the next edge announces more.
                    conn.readable = False
                conn.bytes_in += size
                conn.parser.feed(data)
            else:
                conn.readable = False
                conn.eof = True
                if conn.session is not None or conn.more:
                    conn.transport.probe_peer()
                if conn.end_callbacks:
                    self.poller.post(self._tell_end, conn)
                if conn.gone and conn.transport.peer_gone():
                    # Both directions are down (and it is not the event of a connection that
                    # had the descriptor before): not a client that still waits for replies.
                    self._close_locked(conn, CloseReason.PEER_GONE, errno.ECONNRESET)
                    return
                conn.parser.feed_eof()
            conn.more = True
        except BaseException:
            logger.exception("the parser of %r raised in feed() or feed_eof(); it closes", conn)
            self._flush(conn)  # the answers to good requests
            self._close_locked(
                conn, CloseReason.PROTOCOL_FAILED, errno.EPROTO, "the parser failed"
            )

    def _tell_end(self, conn: CommConnection, _: int) -> None:
        with conn.lock:
            callbacks, conn.end_callbacks = conn.end_callbacks, None
        for callback in (callbacks or {}).values():
            try:
                callback(conn)
            except BaseException:
                logger.exception("an on_peer_end callback of %r raised", conn)

    def _read_ahead(self, conn: CommConnection) -> None:
        """Read while a request is served: pipelined requests, and the peer's leaving."""
        params = conn.service.params
        limit = params.max_pipelined
        if (
            params.request_size_limit is not None
            and conn.bytes_in - conn.bytes_before > params.request_size_limit
        ):
            return  # enough waits in memory
        for _ in range(_TURN_READS):
            if not self._fill(conn, limit):
                return
            if not conn.readable or conn.eof or conn.out_size >= conn.unsent_limit:
                return
            self._receive(conn)
            if conn.phase is CLOSED:
                return
        self._fill(conn, limit)
        if conn.readable:
            self._resume_later(conn)

    def _fill(self, conn: CommConnection, limit: int) -> bool:
        """Move parsed messages to the queue. False when there is no point in reading."""
        if not conn.more:
            return True
        queue = conn.queue
        if queue is None:
            queue = conn.queue = deque()
        if queue and type(queue[-1]) is _Fault:
            return False
        try:
            while len(queue) < limit:
                message = conn.parser.next_message()
                if message is NEED_DATA:
                    # It may be the reply that the parser waits for: it is asked again.
                    return True
                queue.append(message)
        except BaseException as error:
            queue.append(_Fault(error))  # its turn comes after the requests before it
        return False

    # -- replies -----------------------------------------------------------------------

    def reply(self, session: CommSession) -> bool:
        """Send the session's reply, on any thread (the article's ``Communicator::reply``).

        False when the peer is gone: nothing was sent, ``handle`` is not called, and the
        session calls ``forget`` when it has ended.
        Raises what ``message_out`` raises, and what an iterator raises that it returned
        before its first piece; the session may then try another reply.
        Raises :class:`~protoserve.errors.UsageError` when it was answered before.
        """
        conn = session.connection
        lock = conn.lock
        lock.acquire()
        if conn.session is not session or conn.stream is not None:
            lock.release()
            raise UsageError("this request was answered before; a request has one reply")
        if conn.phase is CLOSED:
            lock.release()
            return False
        try:
            out = session.message_out()
            keep_alive = session.keep_alive
            if keep_alive is not conn.keep_alive_limit and not (
                keep_alive is None or 0 <= keep_alive <= YEAR
            ):
                raise ValueError(
                    f"keep_alive {keep_alive!r}: expected seconds from 0 to a year, or None"
                )
            if type(out) is bytes:
                size = len(out)
                conn.out.append(out)
                conn.out_size += size
                conn.out_end += size
            elif isinstance(out, (bytearray, memoryview, list, tuple)):
                self._put(conn, out)
            else:
                stream = conn.stream = open_stream(session, out)
                stream.keep_alive = keep_alive
        except BaseException:
            lock.release()
            raise
        if conn.stream is not None:
            lock.release()
            return stream.begin(self)
        conn.session = None
        conn.phase = conn.phase.reply
        if conn.out_size < JOIN_SIZE or not session.end_quietly():
            # Else many wait for a slow peer, and this one need not be kept to be told.
            conn.unsent.append((session, conn.out_end))
        conn.keep_alive = keep_alive
        if keep_alive == 0:
            conn.ending = True
            conn.close_reason = CloseReason.LAST_REPLY
        if conn.pumping:
            # The thread that handed the request over goes on, and sends.
            lock.release()
            return True
        self._finish_reply(conn)
        return True

    # -- replies in pieces -------------------------------------------------------------

    def begin_stream(self, stream: Stream, first: Piece, *, busy: bool) -> bool:
        """The first piece of a reply is there: from here on it is the reply. Any thread.

        ``busy`` tells whether its source goes on by itself, and is not to be pulled. False
        when the peer is gone. Raises ``TypeError`` for a piece that is none.
        """
        conn = stream.session.connection
        conn.lock.acquire()
        if conn.phase is CLOSED:
            conn.stream = None
            conn.lock.release()
            stream.close()
            return False
        try:
            self._put_piece(conn, stream, first)
        except BaseException:
            self._leave_stream(conn)
            conn.lock.release()
            raise
        conn.phase = conn.phase.reply
        stream.busy = busy
        if conn.pumping:
            conn.lock.release()
            return True
        self._flush(conn)
        if conn.phase is not CLOSED:
            self._resume_later(conn)
            self._settle(conn)
        self._release(conn)
        return True

    def abandon_stream(self, stream: Stream) -> None:
        """There is no first piece: the session will reply otherwise, if at all."""
        conn = stream.session.connection
        with conn.lock:
            self._leave_stream(conn)

    def add_piece(self, stream: Stream, piece: Piece) -> bool:
        """One more piece, from a source that is not pulled here. False when the peer is
        gone. Raises ``TypeError`` for a piece that is none. Any thread."""
        conn = stream.session.connection
        conn.lock.acquire()
        if conn.phase is not CLOSED:
            try:
                self._put_piece(conn, stream, piece)
            except BaseException:
                conn.lock.release()
                raise
            self._flush_aside(conn)
        gone = conn.phase is CLOSED
        self._release(conn)
        return not gone

    def end_stream(self, stream: Stream, error: BaseException | None = None) -> None:
        """The source of a reply has ended, well or with an exception. Any thread."""
        conn = stream.session.connection
        conn.lock.acquire()
        stream.busy = False
        if conn.phase is CLOSED:
            self._drop_stream(conn)
        elif error is not None:
            self._stream_failed(conn, error)
        else:
            self._last_piece(conn)
            if not conn.pumping:
                self._finish_reply(conn)
                return
        self._release(conn)

    def _pull(self, conn: CommConnection, stream: Stream, now: float) -> float:
        """Take the next piece. With the lock, which is let go while user code runs.
        Returns the time afterwards."""
        stream.busy = True
        conn.lock.release()
        error: BaseException | None = None
        piece: Any = END
        habit = stream.habit
        watch = None
        if habit is not None:
            if habit.blocks and self.threads is not None:
                self.threads.promote()
            watch = Watch(self.clock)
        try:
            piece = stream.pull()
        except BaseException as raised:
            error = raised
        if habit is None or watch is None:
            began, now = now, self.clock()
            if now - began > SLOW:
                stream.habit = Habit()
        else:
            now, slow, blocked = watch.end()
            if habit.note(slow, blocked):
                stream.habit = None
        conn.lock.acquire()
        stream.busy = False
        if conn.phase is CLOSED:
            self._drop_stream(conn)
        elif error is None and piece is END:
            self._last_piece(conn)
        else:
            if error is None:
                try:
                    self._put_piece(conn, stream, piece)
                except TypeError as raised:
                    error = raised
            if error is not None and not stream.begun:
                # Nothing but empty pieces so far: the session may still reply otherwise.
                self._leave_stream(conn)
                conn.lock.release()
                try:
                    stream.close()
                    stream.session.reply_failed(error)
                finally:
                    conn.lock.acquire()
            elif error is not None:
                self._stream_failed(conn, error)
        return now

    def _put_piece(self, conn: CommConnection, stream: Stream, piece: Piece) -> None:
        """With the lock. An empty one begins no reply."""
        before = conn.out_end
        self._put(conn, piece)
        stream.begun = stream.begun or conn.out_end > before

    def _last_piece(self, conn: CommConnection) -> None:
        stream = conn.stream
        assert stream is not None
        session = stream.session
        conn.session = None
        conn.unsent.append((session, conn.out_end))
        keep_alive = conn.keep_alive = stream.keep_alive
        if keep_alive == 0:
            conn.ending = True
            conn.close_reason = CloseReason.LAST_REPLY
        self._leave_stream(conn)

    def _leave_stream(self, conn: CommConnection) -> None:
        """No reply in pieces is under way any more: what was pushed meanwhile follows."""
        conn.stream = None
        held, conn.held = conn.held, None
        conn.held_size = 0
        for data in held or ():
            self._put(conn, data)

    def _stream_failed(self, conn: CommConnection, error: BaseException) -> None:
        """A part of the reply is out: the peer can only be told by a reset."""
        assert conn.stream is not None
        logger.error("the reply of %r failed midway", conn.stream.session, exc_info=error)
        self._break_off(conn)

    def _break_off(self, conn: CommConnection) -> None:
        """End with a reset, which tells the peer that the reply is not all; but after it
        has what was sent before: a reset drops what is on its way."""
        stream, conn.stream = conn.stream, None
        session = conn.session if stream is None else stream.session
        if session is not None and session is not COMING:
            conn.finished.append((session, SYS_ERROR, errno.EIO))
        conn.session = None
        conn.dropped = stream
        conn.held = None
        conn.more = False
        conn.broken = conn.ending = True
        conn.close_reason = CloseReason.REPLY_FAILED
        conn.close_error = errno.EIO
        if not conn.pumping:
            self._flush(conn)
            self._settle(conn)

    def _drop_stream(self, conn: CommConnection) -> None:
        """The connection has closed while a reply was under way, and its source rests."""
        stream = conn.stream
        assert stream is not None
        conn.stream = None
        conn.session = None
        conn.dropped = stream
        conn.finished.append((stream.session, SYS_ERROR, conn.close_error or errno.ECONNRESET))

    # -- bytes between replies ---------------------------------------------------------

    def push(self, conn: CommConnection, data: Buffer, session: CommSession | None = None) -> bool:
        """Send ``data`` at once; before the reply of ``session``, where one is given.

        Nothing is dropped or reordered: what the socket does not take waits for it.
        False when the peer is gone. Any thread; never blocks. Raises ``TypeError`` for
        what is not bytes-like, ``UsageError`` when the session has been answered.
        """
        if conn.locked_here:
            raise UsageError(
                "message_out, a parser and __del__ run in the middle of the connection's work "
                "and cannot push: push in the handler, in a callback, or from another thread; "
                "a parser may return Feedback"
            )
        if not conn.lock.acquire(timeout=_LOCK_PATIENCE):
            self.poller.post(self._push_posted, (conn, bytes(data)))
            return True
        if session is not None:
            if conn.session is not session or conn.stream is not None:
                conn.lock.release()
                raise UsageError("the reply is on its way already; push before it")
            conn.pushed_for = conn.seq
        if conn.phase is CLOSED or conn.phase is DRAINING or conn.ending:
            conn.lock.release()
            return False
        try:
            if conn.stream is not None:
                # In the middle of a reply it would be taken for a part of that.
                if conn.held is None:
                    conn.held = []
                conn.held.append(bytes(data))
                conn.held_size += len(conn.held[-1])
                conn.lock.release()
                return True
            self._put(conn, data)
        except BaseException:
            conn.lock.release()
            raise
        if conn.pumping or conn.session is not None or conn.deferred:
            self._flush_aside(conn)
        else:
            self._flush(conn)
            self._settle(conn, used=True)
        gone = conn.phase is CLOSED
        self._release(conn)
        return not gone

    def _push_posted(self, what: tuple[CommConnection, bytes], _: int) -> None:
        self.push(*what)

    def set_keep_alive(self, conn: CommConnection, seconds: float | None) -> None:
        """How long ``conn`` may stay without a request, from now on. Any thread."""
        conn.lock.acquire()
        conn.first_wait = conn.keep_alive_limit = seconds
        if conn.attached and (conn.phase is CONNECTED or conn.idle):
            conn.keep_alive = seconds
            if not conn.out:
                self._arm(conn, self.poller.time(), seconds)
        self._release(conn)

    def wait_for_room(self, conn: CommConnection, wake: Callable[[], object]) -> bool:
        """Have ``wake`` called, on any thread, when the output has room again or the
        connection has closed. False, and no call, when that is so already. Any thread."""
        with conn.lock:
            if conn.phase is CLOSED or conn.out_size < conn.unsent_limit:
                return False
            if conn.waiters is None:
                conn.waiters = []
            conn.waiters.append(wake)
            return True

    def shutdown(self, session: CommSession) -> None:
        """End the connection where the session's reply would have gone. Any thread.

        What was given out before is still sent.
        """
        conn = session.connection
        conn.lock.acquire()
        if conn.session is not session or conn.phase is CLOSED:
            conn.lock.release()
            return
        conn.session = None
        conn.phase = conn.phase.reply
        conn.ending = True
        conn.close_reason = CloseReason.NO_REPLY
        if conn.pumping:
            conn.lock.release()
            return
        self._finish_reply(conn)

    def abandon(self, session: CommSession) -> None:
        """End the connection where a part of the session's reply is out, and the rest will
        not come: by a reset, since an end would look like that of the reply. Any thread."""
        conn = session.connection
        conn.lock.acquire()
        if conn.session is session and conn.phase is not CLOSED:
            conn.session = None  # it ends by itself
            conn.phase = conn.phase.reply
            self._break_off(conn)
        self._release(conn)

    def _finish_reply(self, conn: CommConnection) -> None:
        """After a reply that no pump waits for. With the lock; returns without it."""
        try:
            if conn.out or conn.unsent:
                self._flush(conn)
            if conn.phase is not CLOSED:
                if not conn.ending and (conn.more or conn.readable or conn.eof):
                    # The next request is handled by a handler thread, never on this one.
                    self._resume_later(conn)
                self._settle(conn)
        except BaseException:
            self._broken(conn)
        self._release(conn)

    def forget(self, session: CommSession) -> None:
        """A session that could not reply has ended: the last that its closed connection
        had to wait for. Any thread."""
        conn = session.connection
        conn.lock.acquire()
        if conn.session is session and conn.phase is CLOSED:
            conn.session = None
        self._release(conn)

    def _say_farewell(self, conn: CommConnection, data: bytes) -> None:
        """Close after ``data`` and what was given out before it."""
        conn.ending = True
        conn.farewell = True
        conn.phase = conn.phase.reply
        if data:
            try:
                self._put(conn, data)
            except (TypeError, ValueError):
                logger.exception("the farewell of %r is no bytes", conn)

    def _fail(self, conn: CommConnection, reason: str) -> None:
        """An exception of the protocol's own code: close, with no word but the replies
        to the requests before."""
        logger.exception("%r: %s, it raised; the connection closes", conn, reason)
        self._end_without_word(conn, reason)

    def _end_without_word(self, conn: CommConnection, reason: str) -> None:
        """The protocol's own code failed: close after the replies to the requests before."""
        conn.more = False
        conn.close_reason = CloseReason.PROTOCOL_FAILED
        conn.close_detail = reason
        self._say_farewell(conn, b"")

    @staticmethod
    def _refused(
        conn: CommConnection, reason: CloseReason, message: str, summary: Mapping[str, object]
    ) -> None:
        """Note that a request is refused; observers are told when the lock is let go, after
        the requests before it have ended."""
        conn.close_reason = reason
        conn.close_detail = message
        if conn.service.observers:
            event = RequestRefused(conn.peername, conn.seq, reason, message, summary)
            conn.unsent.append((_News(partial(conn.service.emit, event)), conn.out_end))

    def _put(self, conn: CommConnection, out: Piece) -> None:
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
        conn.out += sized
        conn.out_size += size
        conn.out_end += size

    def _flush(self, conn: CommConnection) -> None:
        """Send what the socket takes; note the replies that are out."""
        out = conn.out
        try:
            while out:
                if len(out) == 1:
                    buffer = out[0]
                    sent = conn.send(buffer)
                    if sent == len(buffer):
                        out.clear()
                        conn.out_size = 0
                        conn.bytes_out += sent
                        break
                elif conn.out_size <= JOIN_SIZE:
                    out[:] = [b"".join(out)]
                    continue
                else:
                    vector = out[:_VECTOR_LENGTH]
                    sent = conn.sendmsg(vector)
                conn.bytes_out += sent
                conn.out_size -= sent
                if self._consume(out, sent):
                    break
        except (BlockingIOError, InterruptedError):
            if len(out) > _MOST_BUFFERS + 2 * conn.out_size // JOIN_SIZE:
                self._join_buffers(out)
        except OSError as error:
            self._close_locked(conn, CloseReason.PEER_GONE, error.errno or 0, error.strerror)
            return
        except BaseException:  # a buffer that was changed: see MessageOut
            logger.exception("a reply of %r cannot be sent any more; it closes", conn)
            self._close_locked(conn, CloseReason.REPLY_FAILED, errno.EIO)
            return
        unsent = conn.unsent
        if not unsent:
            return
        finished = conn.finished
        if not out:
            for session, _ in unsent:
                if not session.end_quietly():
                    finished.append((session, SUCCESS, 0))
            unsent.clear()
        else:
            sent_end = conn.out_end - conn.out_size
            whole = 0
            for session, end in unsent:
                if end > sent_end:
                    break
                finished.append((session, SUCCESS, 0))
                whole += 1
            if whole:
                del unsent[:whole]
                conn.send_deadline = None  # the next reply has its own

    @staticmethod
    def _join_buffers(out: list[Buffer]) -> None:
        """Make blocks of many small buffers that wait, so that what is done for each
        buffer does not grow with their number."""
        blocks: list[Buffer] = []
        run: list[Buffer] = []
        size = 0
        for buffer in out:
            if size + len(buffer) > JOIN_SIZE:
                blocks.append(run[0] if len(run) == 1 else b"".join(run))
                run = []
                size = 0
            run.append(buffer)
            size += len(buffer)
        blocks.append(run[0] if len(run) == 1 else b"".join(run))
        out[:] = blocks

    @staticmethod
    def _consume(out: list[Buffer], sent: int) -> bool:
        """Drop ``sent`` bytes from the front. True when a buffer was sent in part, which
        means that the socket is full."""
        whole = 0
        for buffer in out:
            size = len(buffer)
            if sent < size:
                break
            sent -= size
            whole += 1
        del out[:whole]
        if sent:
            out[0] = memoryview(out[0])[sent:]
        return sent > 0

    # -- what a connection waits for ---------------------------------------------------

    def _flush_aside(self, conn: CommConnection) -> None:
        """Send while a handler of this connection runs."""
        self._flush(conn)
        if conn.out:
            self._await_peer(conn)
        else:
            conn.deadline = inf
            conn.send_deadline = None

    def _settle(self, conn: CommConnection, now: float = 0.0, *, used: bool = False) -> None:
        """Decide what comes next: the state at rest, its deadline, or the end. ``now`` is
        the time, where it is known. ``used``: something was pushed, and that is a use of the
        connection."""
        if conn.phase is CLOSED:
            return
        if conn.out:
            self._await_peer(conn)
            return
        waited = conn.send_deadline is not None
        conn.send_deadline = None
        if conn.ending:
            self._end(conn)
            return
        if conn.session is not None or conn.more:
            # A handler is at work, or a turn of this connection is posted.
            conn.deadline = inf
            return
        fresh = conn.phase is REPLYING
        if fresh:
            conn.phase = REPLYING.sent
        if not now:
            now = self.clock()
        service = conn.service
        try:
            partial = conn.parser.partial
        except BaseException:
            logger.exception("the parser of %r raised in partial; the connection closes", conn)
            self._close_locked(
                conn, CloseReason.PROTOCOL_FAILED, errno.EPROTO, "the parser failed"
            )
            return
        if conn.eof:
            self._close_locked(
                conn,
                CloseReason.PEER_LEFT if partial else CloseReason.PEER_CLOSED,
                0,
            )
            return
        if service.stopping and not partial and not conn.readable:
            if fresh:
                # Input that arrives this moment must not make the system drop the reply.
                conn.close_reason = CloseReason.SERVER_STOPPED
                self._say_no_more(conn)
            else:
                self._close_locked(conn, CloseReason.SERVER_STOPPED, 0)
            return
        if partial:
            conn.phase = conn.phase.bytes
            params = service.params
            size = params.request_size_limit
            if size is not None and conn.bytes_in - conn.bytes_before > size:
                logger.error(
                    "%r: its parser holds more than request_size_limit=%d bytes of one request; "
                    "it must raise ProtocolError before; the connection closes", conn, size
                )  # fmt: skip
                self._close_locked(conn, CloseReason.REQUEST_TOO_LARGE, 0)
                return
            if conn.receive_deadline is None:
                conn.idle_since = now
                whole = conn.receive_limit
                conn.receive_deadline = inf if whole is None else now + whole
            peer = params.peer_response_timeout
            rate = params.receive_rate
            whole_by = conn.receive_deadline
            if rate is not None:
                whole_by += (conn.bytes_in - conn.bytes_before) / rate
            self._arm_at(conn, min(whole_by, inf if peer is None else now + peer))
            return
        conn.bytes_before = conn.bytes_in
        if conn.phase is CONNECTED:
            if used or waited:
                conn.idle_since = now
                self._arm(conn, now, conn.first_wait)
        elif conn.phase is KEEPALIVE and (fresh or waited or used or conn.deadline == inf):
            # Otherwise what came was no request, a blank line: its time goes on.
            conn.queue = None
            conn.idle_since = now
            keep_alive = conn.keep_alive
            conn.deadline = deadline = inf if keep_alive is None else now + keep_alive
            if deadline < conn.timer_at:
                self._arm_at(conn, deadline)
            if service.starved:
                service.room_made()

    def _await_peer(self, conn: CommConnection) -> None:
        """Output waits for room: give it the time of one more step if it made one."""
        if conn.send_mark == conn.bytes_out and conn.deadline != inf:
            return
        conn.send_mark = conn.bytes_out
        conn.acked = conn.bytes_out - conn.transport.unacknowledged()
        now = self.poller.time()
        params = conn.service.params
        if conn.send_deadline is None:
            whole = params.send_timeout
            conn.send_deadline = inf if whole is None else now + whole
        peer = params.peer_response_timeout
        self._arm_at(conn, min(conn.send_deadline, inf if peer is None else now + peer))

    def _arm(self, conn: CommConnection, now: float, timeout: float | None) -> None:
        self._arm_at(conn, inf if timeout is None else now + timeout)

    def _arm_at(self, conn: CommConnection, deadline: float) -> None:
        """One attribute; the poller has a timer only where none is due early enough."""
        conn.deadline = deadline
        if deadline < conn.timer_at:
            if conn.timer is not None:
                self.poller.cancel(conn.timer)
            conn.timer_at = deadline
            conn.timer = self.poller.call_at(deadline, self.on_deadline, conn)

    # -- the end -----------------------------------------------------------------------

    def _end(self, conn: CommConnection) -> None:
        """Everything is sent and the connection is to close: gently, where input that
        nobody read would make the system send a reset over the reply."""
        if conn.broken:
            conn.phase = conn.phase.drain
            conn.readable = True
            conn.send_deadline = self.poller.time() + DRAIN_TIME
            self._reset_when_taken(conn)
            if conn.phase is not CLOSED:
                self._drain(conn)
        elif conn.eof or not self._unread(conn):
            self._close_locked(conn, conn.close_reason, 0)
        else:
            self._say_no_more(conn)

    def _say_no_more(self, conn: CommConnection) -> None:
        """End our side, and take in what the peer still sends, for a while."""
        conn.transport.shutdown_write()
        conn.phase = conn.phase.drain
        conn.readable = True
        seconds = _STOP_DRAIN_TIME if conn.service.stopping else DRAIN_TIME
        self._arm(conn, self.poller.time(), seconds)
        self._drain(conn)

    @staticmethod
    def _unread(conn: CommConnection) -> bool:
        """Whether the peer sent more than was answered, or may be sending it."""
        if conn.farewell or conn.queue:
            return True
        try:
            if conn.readable and conn.recv(RECEIVE_SIZE):
                return True
        except OSError:  # nothing, or nobody
            conn.readable = False
        try:
            return (
                conn.more and conn.parser.next_message() is not NEED_DATA
            ) or conn.parser.partial
        except BaseException:  # what it is does not matter any more
            return True

    def _reset_when_taken(self, conn: CommConnection) -> None:
        """End a broken connection when the peer has what was sent, or had time enough."""
        deadline = conn.send_deadline
        assert deadline is not None
        now = self.poller.time()
        if now < deadline and conn.transport.unacknowledged():
            self._arm_at(conn, min(deadline, now + _LOOK_AGAIN))
        else:
            self._close_locked(conn, conn.close_reason, errno.EIO)

    def _drain(self, conn: CommConnection) -> None:
        if conn.broken and not conn.transport.unacknowledged():
            self._close_locked(conn, conn.close_reason, errno.EIO)
            return
        try:
            for _ in range(_TURN_READS):
                if not conn.recv(RECEIVE_SIZE):
                    if not conn.broken:  # it may still be taking what it has not got
                        self._close_locked(conn, conn.close_reason, 0)
                    return
            self._resume_later(conn)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close_locked(conn, conn.close_reason, 0)

    def _close_locked(
        self, conn: CommConnection, reason: CloseReason, error: int, detail: str | None = ""
    ) -> bool:
        """Close the socket and note who is to be told. With the lock."""
        if conn.phase is CLOSED:
            return False
        conn.phase = conn.phase.close
        if reason is not conn.close_reason or detail:
            conn.close_detail = detail or ""
        conn.close_reason = reason
        conn.close_error = error
        conn.deadline = inf
        if conn.timer is not None:
            self.poller.cancel(conn.timer)
            conn.timer = None
            conn.timer_at = inf
        if conn.attached:
            self.poller.forget(conn.fd)
        if error == errno.EIO or conn.broken or conn.reply_is_incomplete:
            # An end would tell the peer that this was all of it.
            conn.transport.abort()
        else:
            conn.transport.close()
        conn.out.clear()
        conn.out_size = 0
        conn.queue = None
        conn.more = conn.readable = False
        for session, _ in conn.unsent:
            conn.finished.append((session, SYS_ERROR, error or errno.ECONNRESET))
        conn.unsent.clear()
        stream = conn.stream
        if stream is not None:
            if stream.busy:
                stream.cancel()  # whoever works on it drops it
            else:
                self._drop_stream(conn)
        try:
            conn.parser.close()
        except BaseException:
            logger.exception("the parser of %r raised in close()", conn)
        return True

    def _release(self, conn: CommConnection) -> None:
        """Let go of the lock, then tell sessions and observers what happened under it.

        User code runs for a connection on one thread at a time: who hands a request over,
        or tells a session of its end, has ``pumping`` set; what ends meanwhile is told then.
        """
        closed = False
        if conn.phase is CLOSED and not conn.ended and conn.attached:
            closed = True
            self._call_closed(conn)
        if (conn.finished or conn.dropped is not None) and not conn.pumping:
            threads = self.threads
            if threads is None or not threads.full or not self._wait_for_thread(conn):
                self._tell_sessions(conn)
        waiters = conn.waiters
        if waiters is not None:
            if conn.phase is CLOSED or conn.out_size < conn.unsent_limit // 2:
                conn.waiters = None
            else:
                waiters = None
        last = False
        if conn.ended:
            # A session that still runs gives the reference back itself: forget().
            last = (
                conn.session is None
                and not conn.forgotten
                and not conn.finished
                and conn.dropped is None
            )
            conn.forgotten = conn.forgotten or last
        conn.lock.release()
        for wake in waiters or ():
            wake()
        if closed:
            self._report_closed(conn)
        if last:
            conn.service.release()

    def _tell_sessions(self, conn: CommConnection) -> None:
        """Tell sessions that they have ended. With the lock, which is let go meanwhile."""
        conn.pumping = True
        lock = conn.lock
        while conn.finished or conn.dropped is not None:
            finished, conn.finished = conn.finished, []
            dropped, conn.dropped = conn.dropped, None
            lock.release()
            if dropped is not None:
                dropped.close()
            for session, state, error in finished:
                try:
                    session.handle(state, error)
                except BaseException:
                    logger.exception("a session of %r raised after its reply", conn)
            lock.acquire()
        conn.pumping = False
        if conn.phase is not CLOSED and conn.attached:
            if conn.more or conn.readable or conn.out or conn.unsent or conn.stream is not None:
                # Left to us by those who saw us at work.
                self._resume_later(conn)
            else:
                self._settle(conn)

    @staticmethod
    def _call_closed(conn: CommConnection) -> None:
        """The socket is closed: call what waits for that, before a session is told that it
        could not reply. With the lock, which is let go meanwhile."""
        conn.ended = True
        # Nobody adds to them any more, see CommConnection.on_close.
        callbacks, conn.close_callbacks = conn.close_callbacks, None
        service = conn.service
        service.retain()  # it must not be gone while they run
        conn.lock.release()
        service.remove_connection(conn)
        if callbacks:
            with CURRENT.working_for(service):
                for callback in callbacks.values():
                    try:
                        callback(conn)
                    except BaseException:
                        logger.exception("an on_close callback of %r raised", conn)
        service.release()
        conn.lock.acquire()

    @staticmethod
    def _report_closed(conn: CommConnection) -> None:
        service = conn.service
        if service.observers:
            service.emit(
                ConnectionClosed(
                    conn.peername,
                    conn.close_reason,
                    conn.bytes_in,
                    conn.bytes_out,
                    conn.seq,
                    conn.close_detail,
                )
            )
