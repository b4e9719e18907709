"""Ending: how a connection closes, gently or not, and who is to be told.

Functions over a :class:`~protoserve.kernel.entry.CommConnEntry`, called with its lock unless they
say otherwise. They note and close; sending, and deciding what comes next, is their caller's.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from protoserve.errors import ProtocolError
from protoserve.events import CloseReason, RequestRefused
from protoserve.kernel.deadline import LINGER, RECEIVE
from protoserve.kernel.exchanges import News
from protoserve.kernel.intake import RECEIVE_SIZE
from protoserve.kernel.life import FAREWELL, LAST, LINGERING, SHUT
from protoserve.kernel.readiness import GONE
from protoserve.kernel.session import TaskState
from protoserve.kernel.states import is_silent
from protoserve.log import logger
from protoserve.protocol import Buffer

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry

DRAIN_TIME: Final = 2.0
"""Seconds that unread input is taken in after a farewell (nginx: ``lingering_time``)."""

STOP_DRAIN_TIME: Final = 0.25
"""The same while the service stops: a round trip, so that what the client sent before it saw
the end of the connection does not reset it."""

LOOK_AGAIN: Final = 0.05
"""Seconds after which a deadline is looked at again that passed at a bad moment."""

LOCK_PATIENCE: Final = 0.5
"""Seconds that code which may hold the lock of *another* connection waits for this one's, and
that one who has others to look after does: it is held for moments. Two that wait for each other
must not do so for ever, nor all for a parser that never returns."""

TURN_READS: Final = 4
"""Reads of one connection before others have their turn."""

SYS_ERROR: Final = TaskState.SYS_ERROR


def is_closing(entry: CommConnEntry) -> bool:
    """Whether the reply that is made now is the last. Any thread, for a moment's truth."""
    return entry.life.rung >= LAST or entry.service.stopping


def body_failed(entry: CommConnEntry, error: BaseException) -> None:
    """The rest of a body that is arriving will not come, or is wrong: its reader is told,
    and the reply is the last."""
    arriving, entry.intake.arriving = entry.intake.arriving, None
    assert arriving is not None
    entry.intake.drop()
    entry.deadline.body_ended()
    if isinstance(error, ProtocolError):
        reason = CloseReason.PROTOCOL_ERROR
    elif isinstance(error, TimeoutError):
        reason = CloseReason.REQUEST_TOO_SLOW
    elif isinstance(error, ConnectionResetError):
        reason = CloseReason.PEER_LEFT
    else:
        logger.error("%r: the parser failed in the middle of a request", entry, exc_info=error)
        reason = CloseReason.PROTOCOL_FAILED
        error = RuntimeError("the parser failed")
    entry.life.end(reason, FAREWELL)
    arriving.fail(error)


def drop_announced(entry: CommConnEntry, error: BaseException) -> None:
    """The rest of a request will not come, or is wrong, whose handler has not been called: it
    will not be, and it was no request."""
    exchanges = entry.exchanges
    session = exchanges.session
    assert session is not None
    exchanges.remove(session)
    exchanges.seq -= 1
    session.broke_off()
    arriving, entry.intake.arriving = entry.intake.arriving, None
    entry.deadline.body_ended()
    if arriving is not None:
        arriving.fail(error)


def say_farewell(entry: CommConnEntry, data: Buffer, reason: CloseReason) -> None:
    """Close after ``data`` and what was given out before it."""
    entry.life.end(reason, FAREWELL)
    if data and entry.exchanges.others:
        entry.exchanges.farewell = data  # they are answered before
    elif data:
        try:
            entry.output.put(data)
        except (TypeError, ValueError):
            logger.exception("the farewell of %r is no bytes", entry)


def part(entry: CommConnEntry, reason: CloseReason, error: int) -> bool:
    """The server ends it by itself: with the protocol's farewell, where it has one, else
    at once. True when there is one to be sent."""
    data, _, _ = farewell_of(entry, reason)
    if not data:
        shut(entry, reason, error)
        return False
    say_farewell(entry, data, reason)
    return True


def farewell_of(
    entry: CommConnEntry, reason: CloseReason
) -> tuple[Buffer, str, Mapping[str, object]]:
    word: object
    try:
        word = entry.protocol.farewell(entry.connection, reason)
    except BaseException:
        logger.exception("the farewell of %r raised", entry)
        return b"", "", {}
    if isinstance(word, ProtocolError):
        return word.reply, str(word), word.summary
    if isinstance(word, (bytes, bytearray, memoryview)):
        return word, "", {}
    if word:
        logger.error(
            "the farewell of %r is no bytes, but a %s", entry.connection, type(word).__name__
        )
    return b"", "", {}


def fail(entry: CommConnEntry, what: str) -> None:
    """In an ``except`` block, an exception of the protocol's own code: close, with no
    word but the replies to the requests before."""
    logger.exception("%r: %s, it raised; the connection closes", entry, what)
    end_without_word(entry, what)


def end_without_word(entry: CommConnEntry, what: str) -> None:
    """The protocol's own code failed: close after the replies to the requests before."""
    if entry.life.rung < SHUT:
        entry.intake.more = False
        entry.life.end(CloseReason.PROTOCOL_FAILED, FAREWELL)
        entry.life.detail = what


def refuse(entry: CommConnEntry, error: BaseException) -> None:
    """In an ``except`` block: the peer broke the protocol, or the parser is broken."""
    if not isinstance(error, ProtocolError):
        fail(entry, "the parser failed")
        return
    entry.intake.more = False
    try:
        # The parser keeps it, and a traceback would keep our frames.
        error.__traceback__ = None
        message, farewell, summary = str(error), error.reply, error.summary
    except BaseException:
        fail(entry, "the parser's ProtocolError is incomplete")
        return
    note_refused(entry, CloseReason.PROTOCOL_ERROR, message, summary)
    say_farewell(entry, farewell, CloseReason.PROTOCOL_ERROR)


def note_refused(
    entry: CommConnEntry, reason: CloseReason, message: str, summary: Mapping[str, object]
) -> None:
    """Note that a request is refused; observers are told when the lock is let go, after
    the requests before it have ended."""
    entry.life.reason = reason
    entry.life.detail = message
    if entry.service.observers:
        event = RequestRefused(entry.peername, entry.exchanges.seq, reason, message, summary)
        tell = News(partial(entry.service.emit, event))
        entry.output.mark(tell)


def end(entry: CommConnEntry) -> None:
    """Everything is sent and the connection is to close: gently, where input that
    nobody read would make the system send a reset over the reply."""
    life = entry.life
    if life.reset:
        life.climb(LINGERING)
        entry.intake.readable = True
        entry.deadline.send_by = entry.communicator.poller.time() + DRAIN_TIME
        reset_when_taken(entry)
        if life.rung < SHUT:
            linger(entry)
    elif entry.intake.eof or not (life.rung >= FAREWELL or entry.intake.unread()):
        shut(entry, life.reason, 0)
    else:
        say_no_more(entry)


def say_no_more(entry: CommConnEntry) -> None:
    """End our side, and take in what the peer still sends, for a while."""
    entry.transport.shutdown_write()
    entry.life.climb(LINGERING)
    entry.intake.go_on()
    entry.intake.readable = True
    seconds = STOP_DRAIN_TIME if entry.service.stopping else DRAIN_TIME
    entry.deadline.arm(LINGER, entry.communicator.poller.time() + seconds)
    linger(entry)


def reset_when_taken(entry: CommConnEntry) -> None:
    """End a broken connection when the peer has what was sent, or had time enough."""
    deadline = entry.deadline
    assert deadline.send_by is not None
    now = entry.communicator.poller.time()
    if now < deadline.send_by and entry.transport.unacknowledged():
        deadline.arm(LINGER, min(deadline.send_by, now + LOOK_AGAIN))
    else:
        shut(entry, entry.life.reason, errno.EIO)


def linger(entry: CommConnEntry) -> None:
    """Take in what the peer still sends after the last word."""
    life = entry.life
    if life.reset and not entry.transport.unacknowledged():
        shut(entry, life.reason, errno.EIO)
        return
    try:
        for _ in range(TURN_READS):
            if not entry.intake.recv(RECEIVE_SIZE):
                if not life.reset:  # it may still be taking what it has not got
                    shut(entry, life.reason, 0)
                return
        entry.resume_later()
    except (BlockingIOError, InterruptedError):
        return
    except OSError:
        shut(entry, life.reason, 0)


def hurry(entry: CommConnEntry) -> None:
    """The service stops: less time to end our side gently. A reset waits as long as otherwise:
    it would drop what the peer has not got."""
    if not entry.life.reset:
        deadline = entry.deadline
        end = entry.communicator.poller.time() + STOP_DRAIN_TIME
        deadline.arm(LINGER, min(deadline.at, end))


def break_off(entry: CommConnEntry) -> None:
    """End with a reset, which tells the peer that a reply is not all; but after it has what
    was sent before: a reset drops what is on its way. What others were to reply is cut, too:
    it would be taken for the rest."""
    life = entry.life
    life.end(CloseReason.REPLY_FAILED)
    life.reset = True
    life.error = errno.EIO
    entry.intake.more = False
    cut_replies(entry)


def broken(entry: CommConnEntry) -> None:
    """In an ``except`` block: something raised that must not. Nobody may wait for this
    connection for ever."""
    logger.exception("%r failed; it closes", entry)
    entry.exchanges.pumping = False
    if entry.life.rung < SHUT:
        try:
            shut(entry, CloseReason.INTERNAL_ERROR, errno.EPROTO)
        except BaseException:
            logger.exception("%r could not be closed in order", entry)
            entry.life.end(CloseReason.INTERNAL_ERROR, SHUT)
            entry.transport.close()


def drop_stream(entry: CommConnEntry) -> None:
    """The connection has closed, or is to be reset, while a reply in pieces was under way, and
    its source rests."""
    exchanges = entry.exchanges
    stream, exchanges.stream = exchanges.stream, None
    assert stream is not None
    exchanges.remove(stream.session)
    exchanges.dropped = stream
    error = entry.life.error or errno.ECONNRESET
    exchanges.tell(stream.session, SYS_ERROR, error)


def cut_replies(entry: CommConnEntry) -> None:
    """What is under way, or waits for that, will not be sent."""
    exchanges = entry.exchanges
    exchanges.held = exchanges.farewell = None
    exchanges.held_size = 0
    error = entry.life.error or errno.ECONNRESET
    for session, _, reply in exchanges.replies or ():
        exchanges.remove(session)
        if not isinstance(reply, tuple):
            exchanges.tell(News(reply.close), SYS_ERROR, error)
        exchanges.tell(session, SYS_ERROR, error)
    exchanges.replies = None
    stream = exchanges.stream
    if stream is not None:
        if stream.busy:
            stream.cancel()  # whoever works on it drops it
        else:
            drop_stream(entry)


def shut(entry: CommConnEntry, reason: CloseReason, error: int, detail: str | None = "") -> bool:
    """Close the socket and note who is to be told. False when it was closed before."""
    life = entry.life
    if life.rung >= SHUT:
        return False
    incomplete = error == errno.EIO or life.reset or entry.reply_is_incomplete
    if reason is not life.reason or detail:
        life.detail = detail or ""
    life.end(reason, SHUT)
    life.error = error
    entry.deadline.stop()
    if entry.attached:
        entry.communicator.poller.forget(entry.fd)
    if incomplete:
        # An end would tell the peer that this was all of it.
        entry.transport.abort()
    else:
        entry.transport.close()
    output = entry.output
    output.drop()
    intake = entry.intake
    intake.drop()
    if intake.arriving is not None:
        arriving, intake.arriving = intake.arriving, None
        arriving.fail(ConnectionResetError(errno.ECONNRESET, "the connection has closed"))
    exchanges = entry.exchanges
    for session, _ in output.take_marks():
        exchanges.tell(session, SYS_ERROR, error or errno.ECONNRESET)
    if exchanges.collecting is not None:
        drop_announced(entry, ConnectionResetError(errno.ECONNRESET, "the connection has closed"))
    cut_replies(entry)
    try:
        intake.parser.close()
    except BaseException:
        logger.exception("the parser of %r raised in close()", entry)
    return True


def miss(entry: CommConnEntry) -> bool:
    """Close it where the peer is known to be gone: both directions are down (and that is not
    the event of a connection that had the descriptor before), so that it is no client that
    still waits for replies. Returns whether it is."""
    gone = (
        entry.life.rung < SHUT and bool(entry.intake.ends & GONE) and entry.transport.peer_gone()
    )
    if gone:
        shut(entry, CloseReason.PEER_GONE, errno.ECONNRESET)
    return gone


def evict(entry: CommConnEntry, idle_since: float | None) -> bool:
    """Close it for another, if it is still idle since then; with ``None``, if it still has
    not made a request."""
    entry.lock.acquire()
    if idle_since is None:
        evicted = is_silent(entry)
    else:
        evicted = entry.idle and entry.deadline.idle_since == idle_since
    if evicted and entry.deadline.limit is not RECEIVE and not entry.intake.held:
        before = entry.intake.bytes_in
        entry.receive()
        evicted = entry.intake.bytes_in == before
        if not evicted:
            entry.resume_later()  # a request has come this moment
    if evicted and entry.life.rung < SHUT and part(entry, CloseReason.MADE_ROOM, 0):
        entry.output.flush(entry)  # as far as the system takes it now
        shut(entry, CloseReason.MADE_ROOM, 0)
    entry.release()
    return evicted
