"""Communicator: from readable to message, from reply to written. Knows no protocol.

Two lanes share a connection. Bytes move under the connection's lock, on whichever
thread has it, and never for long. Requests are handed over one at a time by the thread
that set ``pumping``; the lock is not held while user code runs.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from protoserve.errors import UsageError
from protoserve.events import CloseReason, ConnectionOpened
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.corked import Corked
from protoserve.kernel.ending import (
    LOCK_PATIENCE,
    TURN_READS,
    break_off,
    broken,
    linger,
    miss,
    refuse,
    shut,
)
from protoserve.kernel.handing import ANOTHER_PUMPS, hand_over, hand_over_collected
from protoserve.kernel.intake import ENDS, Fault
from protoserve.kernel.life import LAST, LINGERING, OPEN, SHUT
from protoserve.kernel.locking import acquire
from protoserve.kernel.output import JOIN_SIZE
from protoserve.kernel.poller import Poller
from protoserve.kernel.readiness import READABLE
from protoserve.kernel.reading import look_at_body, read_ahead
from protoserve.kernel.session import CommSession, entry_of, keep_alive_of
from protoserve.kernel.stream import open_stream, reply_of
from protoserve.kernel.waiting import (
    await_body,
    await_greeting,
    begin,
    due,
    flush_aside,
    settle,
    stop_connection,
    stopped_reading,
)
from protoserve.params import YEAR
from protoserve.protocol import NEED_DATA, Buffer

if TYPE_CHECKING:
    from protoserve.kernel.engine import Engine
    from protoserve.kernel.entry import CommConnEntry
    from protoserve.kernel.leader_followers import LeaderFollowers
    from protoserve.kernel.service import CommService
    from protoserve.kernel.transport import Transport


_TURN_REQUESTS: Final = 64
"""Requests of one connection handled before others have their turn."""

_TURN_PULLS: Final = 64
"""Pieces of one reply taken before other connections have their turn."""

_TURN_TIME: Final = 0.002
"""Seconds of handlers, or of a reply's pieces, after which others have their turn."""

# Names of this module are found faster in the compiled build.
_INPUT: Final = READABLE | ENDS
_NOTHING: Final = NEED_DATA
_acquire: Final = acquire


class Communicator:
    """Moves the connections of one poller.

    ``on_ready``, ``on_deadline``, ``resume`` and ``serve`` are the poller's; everything else
    that is public may be called from any thread.
    """

    __slots__ = ("clock", "corked", "engine", "poller", "threads")

    def __init__(self, poller: Poller, engine: Engine | None = None) -> None:
        self.poller = poller
        self.clock = poller.clock
        self.engine = engine
        self.corked = Corked(self)
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
        conn.entry.exchanges.held = []  # everybody may push to it: after its greeting
        service.add_connection(conn)
        if service.observers:
            service.emit(ConnectionOpened(peername))
        entry = conn.entry
        entry.lock.acquire()
        begin(entry)
        entry.release()
        if service.stopping:
            # Accepted while the server stopped, which nobody else tells it.
            stop_connection(entry)

    def close(self, entry: CommConnEntry, reason: CloseReason = CloseReason.CLOSED) -> bool:
        """Close at once; what is unsent is lost. False when it was closed already."""
        if entry.locked_here:
            # Called by code of the protocol's, or of a collected object, that runs under it:
            # close when that is done, after what was given out before.
            if entry.life.rung >= LAST:
                return False
            entry.life.end(reason)
            self.poller.post(lambda _, __: self.close(entry, reason), None)
            return True
        if not entry.lock.acquire(timeout=LOCK_PATIENCE):
            self.poller.post(lambda _, __: self.close(entry, reason), None)
            return True
        closed = shut(entry, reason, errno.ECONNABORTED)
        entry.release()
        return closed

    # -- events ------------------------------------------------------------------------

    def on_ready(self, entry: CommConnEntry, mask: int) -> None:
        """The socket has become readable or writable."""
        _acquire(entry.lock)
        if entry.ready is not None:
            mask = entry.ready(mask)
        intake = entry.intake
        if mask & _INPUT:
            intake.readable = True
            if mask & ENDS:
                intake.ends |= mask & ENDS
                if intake.eof:
                    miss(entry)  # it was asked whether it is there, see probe_peer()
        elif not entry.output.size and not intake.more and entry.exchanges.stream is None:
            # Writable, and nothing to write: how every registration begins. Requests that
            # had to wait for room go on, also where a later send of that turn found it.
            entry.lock.release()
            return
        self._advance(entry)

    def resume(self, entry: CommConnEntry, _: int = 0) -> None:
        """Go on with a connection that gave way to others, or has more to do."""
        entry.lock.acquire()
        entry.exchanges.posted = False
        self._advance(entry)

    def serve(self, entry: CommConnEntry, _: int = 0) -> None:
        """Go on with a connection that waited for a handler thread."""
        entry.lock.acquire()
        entry.exchanges.deferred = False
        self._advance(entry)

    def on_deadline(self, entry: CommConnEntry, _: int) -> None:
        """The poller's timer for a connection: has its deadline really passed?"""
        entry.lock.acquire()
        deadline = entry.deadline
        now = self.poller.time()
        if not deadline.fired(now) or entry.life.rung >= SHUT:
            entry.lock.release()
            return
        try:
            due(entry, now, self._pump)
        except BaseException:
            broken(entry)
        entry.release()

    # -- the pump ----------------------------------------------------------------------

    def _advance(self, entry: CommConnEntry) -> None:
        """Read, hand over, send, until nothing more can be done. Called with the lock,
        returns without it."""
        exchanges = entry.exchanges
        rung = entry.life.rung
        try:
            if rung >= LINGERING:
                if rung == LINGERING:
                    linger(entry)
            elif exchanges.pumping or exchanges.deferred:
                # A handler of this connection runs on another thread, or waits for one.
                read_ahead(entry)
                if entry.output.size:
                    flush_aside(entry)
                await_body(entry)
            elif entry.intake.held:
                await_greeting(entry)
            else:
                self._pump(entry)
        except BaseException:
            # A fault of ours, or of a plugin in a place where it must not raise.
            broken(entry)
        entry.release()
        if self.corked.overdue:
            self.corked.send()

    def _pump(self, entry: CommConnEntry) -> None:
        """The lane of the requests: one thread at a time, the one that set ``pumping``."""
        exchanges = entry.exchanges
        intake = entry.intake
        output = entry.output
        life = entry.life
        exchanges.pumping = True
        requests = reads = pulls = 0
        now = turn_end = 0.0
        others = exchanges.others
        threads = self.threads
        poller = self.poller
        while True:
            if (
                exchanges.session is not None
                or life.rung
                or (others is not None and (exchanges.crowded or intake.body_comes))
            ):
                if exchanges.in_hand and intake.readable and reads < TURN_READS:
                    reads += 1
                    read_ahead(entry)
                if exchanges.collecting is not None:
                    if intake.body_comes:
                        if intake.readable:
                            if reads < TURN_READS:
                                continue
                            entry.resume_later()
                        break
                    if threads is not None and threads.full and entry.wait_for_thread():
                        break
                    if (now := hand_over_collected(entry, now)) == ANOTHER_PUMPS:
                        return
                    continue
                stream = exchanges.stream
                if stream is None or stream.busy or life.rung >= SHUT:
                    if intake.more and exchanges.free and not (life.rung or intake.body_comes):
                        continue  # the body before it has ended
                    break
                if output.size >= JOIN_SIZE:
                    output.flush(entry)
                    if output.size >= JOIN_SIZE or life.rung >= SHUT:
                        break
                if threads is not None and threads.full and entry.wait_for_thread():
                    break
                if not turn_end:
                    now = poller.now
                    turn_end = now + _TURN_TIME
                if pulls == _TURN_PULLS or now > turn_end:
                    entry.resume_later()
                    break
                pulls += 1
                poller.now = now = stream.take(now)
                continue
            if output.size >= output.limit:
                output.flush(entry)
                if output.size >= output.limit or life.rung >= SHUT:
                    if not output.told_full:
                        stopped_reading(entry)
                    break
            if intake.more:
                try:
                    if intake.queue:
                        message = intake.queue.popleft()
                        if type(message) is Fault:
                            raise message.error
                    else:
                        message = intake.next_message()
                except BaseException as error:
                    if others:
                        intake.put_back(Fault(error))  # they reply before
                        look_at_body(entry)  # unless it is one of theirs that is wrong
                    else:
                        refuse(entry, error)
                    break
                if message is _NOTHING:
                    intake.more = False
                    if intake.readable and not intake.eof:
                        continue
                    break
                if threads is not None and threads.full and entry.wait_for_thread():
                    intake.put_back(message)
                    break
                if not turn_end:
                    now = poller.now
                    turn_end = now + _TURN_TIME
                elif requests == _TURN_REQUESTS or now > turn_end:
                    intake.put_back(message)
                    entry.resume_later()
                    break
                now = hand_over(entry, message, now)
                if now <= 0.0:
                    if now == ANOTHER_PUMPS:
                        return
                    break
                others = exchanges.others
                poller.now = now
                requests += 1
            elif intake.readable and not intake.eof:
                if reads == TURN_READS:
                    entry.resume_later()
                    break
                reads += 1
                entry.receive()
                if life.rung >= SHUT:
                    break
            else:
                break
        exchanges.pumping = False
        if life.rung < SHUT:
            if output.pending:
                if requests and self.corked.take(entry, now):
                    return
                full = output.size >= output.limit
                output.flush(entry)
                if full and not output.size and intake.more:
                    entry.resume_later()  # no edge will come for this room
            settle(entry, now)

    # -- replies -----------------------------------------------------------------------

    def reply(
        self, session: CommSession, entry: CommConnEntry | None = None, *, here: bool = False
    ) -> bool:
        """Send the session's reply, on any thread (the article's ``Communicator::reply``).
        ``entry``: that of its connection, where it is at hand. ``here``: it is the last that the
        session's ``handle`` does, which the pump called; so the lock stays with that.

        False when the peer is gone: nothing was sent, ``handle`` is not called, and the
        session calls ``forget`` when it has ended.
        Raises what ``message_out`` raises, and what an iterator raises that it returned
        before its first piece; the session may then try another reply.
        Raises :class:`~protoserve.errors.UsageError` when it was answered before.
        """
        entry = entry or entry_of(session)
        exchanges = entry.exchanges
        lock = entry.lock
        lock.acquire()
        before = exchanges.stream  # of another, under way in pieces
        if (exchanges.session is not session or before is not None) and not exchanges.awaits(
            session
        ):
            lock.release()
            raise UsageError("this request was answered before; a request has one reply")
        if entry.life.rung and entry.life.cut:
            lock.release()
            return False
        output = entry.output
        stream = None
        try:
            out = session.message_out()
            keep_alive = keep_alive_of(session)
            if keep_alive is not entry.deadline.keep_alive_limit and not (
                keep_alive is None or 0 <= keep_alive <= YEAR
            ):
                raise ValueError(
                    f"keep_alive {keep_alive!r}: expected seconds from 0 to a year, or None"
                )
            if before is not None:
                exchanges.reply_later(session, keep_alive, reply_of(session, keep_alive, out))
                lock.release()
                return True
            if type(out) is bytes:
                if size := len(out):
                    output.append(out, size)
            elif isinstance(out, (bytearray, memoryview, list, tuple)):
                output.put(out)
            else:
                stream = exchanges.stream = open_stream(session, keep_alive, out)
        except BaseException:
            lock.release()
            raise
        if stream is not None:
            lock.release()
            return stream.begin()
        if output.size < JOIN_SIZE or not session.end_quietly():
            # Else many wait for a slow peer, and this one need not be kept to be told.
            output.mark(session)
        if (
            exchanges.others is None
            and exchanges.upgrade is None
            and entry.intake.arriving is None
        ):
            exchanges.session = None  # entry.answered(), where nothing else follows
            entry.deadline.keep_alive = keep_alive
            if keep_alive is not None and keep_alive == 0.0:
                entry.life.end(CloseReason.LAST_REPLY)
        else:
            entry.answered(session, keep_alive)
        if exchanges.pumping:
            # The thread that handed the request over goes on, and sends.
            if here and exchanges.others is None:
                exchanges.locked = True
            else:
                lock.release()
            return True
        entry.finish_reply()
        return True

    def shutdown(self, session: CommSession) -> None:
        """End the connection where the session's reply would have gone. Any thread.

        What was given out before is still sent.
        """
        entry = entry_of(session)
        exchanges = entry.exchanges
        entry.lock.acquire()
        if entry.life.rung >= SHUT or not exchanges.remove(session):
            entry.lock.release()
            return
        entry.life.end(CloseReason.NO_REPLY)
        if exchanges.pumping:
            entry.lock.release()
            return
        entry.finish_reply()

    def abandon(self, session: CommSession) -> None:
        """End the connection where a part of the session's reply is out, and the rest will
        not come: by a reset, since an end would look like that of the reply. Any thread."""
        entry = entry_of(session)
        exchanges = entry.exchanges
        entry.lock.acquire()
        if entry.life.rung < SHUT and exchanges.remove(session):
            break_off(entry)  # the session ends by itself
            if not exchanges.pumping:
                entry.output.flush(entry)
                settle(entry)
        entry.release()

    def forget(self, session: CommSession) -> None:
        """A session that could not reply has ended: the last that its closed connection
        had to wait for. Any thread."""
        entry = entry_of(session)
        entry.lock.acquire()
        if entry.life.cut:
            entry.exchanges.remove(session)
        entry.release()

    # -- bytes between replies ---------------------------------------------------------

    def push(self, entry: CommConnEntry, data: Buffer, session: CommSession | None = None) -> bool:
        """Send ``data`` at once; before the reply of ``session``, where one is given.

        Nothing is dropped or reordered: what the socket does not take waits for it.
        False when the peer is gone. Any thread; never blocks. Raises ``TypeError`` for
        what is not bytes-like, ``UsageError`` when the session has been answered.
        """
        if entry.locked_here:
            raise UsageError(
                "message_out, a parser and __del__ run in the middle of the connection's work "
                "and cannot push: push in the handler, in a callback, or from another thread; "
                "a parser may return Feedback"
            )
        if not entry.lock.acquire(timeout=LOCK_PATIENCE):
            late = bytes(data)
            self.poller.post(lambda _, __: self.push(entry, late), None)
            return True
        exchanges = entry.exchanges
        if session is not None:
            if not exchanges.awaits(session):
                entry.lock.release()
                raise UsageError("the reply is on its way already; push before it")
            exchanges.push(session)
        # What awaits its reply is still answered, though another's reply was the last.
        if entry.life.cut or (session is None and entry.life.rung >= LAST):
            entry.lock.release()
            return False
        try:
            if exchanges.stream is not None or exchanges.held is not None:
                # In the middle of a reply it would be taken for a part of that.
                exchanges.hold(bytes(data))
                entry.lock.release()
                return True
            entry.output.put(data)
        except BaseException:
            entry.lock.release()
            raise
        if exchanges.pumping or exchanges.in_hand or exchanges.deferred:
            flush_aside(entry)
        else:
            entry.output.flush(entry)
            settle(entry, used=True)
        if entry.intake.held and entry.life.rung == OPEN:
            entry.intake.go_on()  # that was the greeting
            entry.resume_later()
        gone = entry.life.rung >= SHUT
        entry.release()
        return not gone
