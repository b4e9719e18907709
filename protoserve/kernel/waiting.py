"""Waiting: what a connection waits for, and what happens when it waited too long.

Functions over a :class:`~protoserve.kernel.entry.CommConnEntry`, called with its lock.
``settle`` is where it is decided which time limit runs, and that a connection ends.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from protoserve.events import CloseReason, LimitReached
from protoserve.kernel.deadline import FIRST, KEEP_ALIVE, NO_LIMIT, RECEIVE, TAKE
from protoserve.kernel.ending import (
    LOCK_PATIENCE,
    LOOK_AGAIN,
    body_failed,
    drop_announced,
    end,
    fail,
    farewell_of,
    hurry,
    miss,
    note_refused,
    part,
    reset_when_taken,
    say_farewell,
    say_no_more,
    shut,
)
from protoserve.kernel.exchanges import News
from protoserve.kernel.life import LINGERING, OPEN, SHUT
from protoserve.kernel.reading import read_ahead
from protoserve.kernel.session import TaskState
from protoserve.log import logger
from protoserve.protocol import Buffer

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry


LATE_TURNS: Final = 64
"""Turns of reading what lies in the kernel before a deadline counts."""

FIRST_REQUEST_TIME: Final = 0.5
"""Seconds from its acceptance that a connection has for its first byte when the service stops:
clients send at once, and would lose a request that crosses the end of the connection."""


def flush_aside(entry: CommConnEntry) -> None:
    """Send while a handler of this connection runs."""
    entry.output.flush(entry)
    deadline = entry.deadline
    if entry.output.size:
        _await_peer(entry)
    elif deadline.limit is TAKE:
        deadline.send_by = None
        deadline.clear()
        await_body(entry)


def settle(entry: CommConnEntry, now: float = 0.0, *, used: bool = False) -> None:
    """Decide what comes next: which limit runs, or the end. ``now`` is the time, where it
    is known. ``used``: something was pushed, and that is a use of the connection."""
    if entry.life.rung >= LINGERING:
        return
    if entry.output.size:
        _await_peer(entry)
        return
    deadline = entry.deadline
    if deadline.limit is TAKE:
        deadline.send_by = None
        deadline.limit = NO_LIMIT
    exchanges = entry.exchanges
    if entry.life.rung:
        if exchanges.in_hand and not entry.life.reset:
            _await_no_request(entry)  # they end before
        elif exchanges.farewell is not None:
            word, exchanges.farewell = exchanges.farewell, None
            _say_last(entry, word, entry.life.reason)
        else:
            end(entry)
        return
    intake = entry.intake
    if exchanges.session is not None or intake.more or exchanges.others:
        # A handler is at work, or a turn of this connection is posted.
        if intake.body_comes:
            await_body(entry)
            return
        deadline.clear()
        if exchanges.others and not intake.more and not exchanges.crowded:
            try:
                if intake.partial:
                    _await_rest(entry, now or entry.communicator.clock())
            except BaseException:
                _partial_failed(entry)
        return
    fresh = deadline.limit is NO_LIMIT  # a reply was sent
    if not now:
        now = entry.communicator.clock()
    try:
        partial = intake.partial
    except BaseException:
        _partial_failed(entry)
        return
    if intake.eof:
        shut(entry, CloseReason.PEER_LEFT if partial else CloseReason.PEER_CLOSED, 0)
    elif partial and not intake.held:
        _await_rest(entry, now)
    elif entry.service.stopping and not intake.readable:
        _stop(entry, fresh)
    else:
        # It waits for a request; what was no request, such as a blank line, gives it no more
        # time.
        intake.mark = intake.bytes_in
        if exchanges.seq:
            limit, seconds = KEEP_ALIVE, deadline.keep_alive
        else:
            limit, seconds = FIRST, deadline.first_wait
        if fresh or used or deadline.limit is not limit:
            intake.queue = None
            deadline.idle_since = now
            at = inf if seconds is None else now + seconds
            if deadline.receive_by is not None:
                at = min(at, deadline.receive_by)
            deadline.limit = limit
            deadline.at = at
            if at < deadline.looks_at:
                deadline.arm(limit, at)
            if limit is KEEP_ALIVE and entry.service.starved:
                entry.service.room_made()


def _say_last(entry: CommConnEntry, word: Buffer, reason: CloseReason) -> None:
    """Have it sent, and what it waits for decided anew."""
    say_farewell(entry, word, reason)
    entry.output.flush(entry)
    settle(entry)


def _partial_failed(entry: CommConnEntry) -> None:
    """In an ``except`` block."""
    logger.exception("the parser of %r raised in partial; the connection closes", entry)
    shut(entry, CloseReason.PROTOCOL_FAILED, errno.EPROTO, "the parser failed")


def _stop(entry: CommConnEntry, fresh: bool) -> None:
    """The service stops, and there is nothing in hand."""
    data, _, _ = farewell_of(entry, CloseReason.SERVER_STOPPED)
    if data:
        _say_last(entry, data, CloseReason.SERVER_STOPPED)
    elif fresh:
        # Input that arrives this moment must not make the system drop the reply.
        entry.life.reason = CloseReason.SERVER_STOPPED
        say_no_more(entry)
    else:
        shut(entry, CloseReason.SERVER_STOPPED, 0)


def _await_rest(entry: CommConnEntry, now: float) -> None:
    """A request has begun: give the peer time for a step, and for the whole."""
    deadline = entry.deadline
    intake = entry.intake
    params = entry.protocol.params
    size = intake.bytes_in - intake.mark
    if (
        params.request_size_limit is not None
        and size > params.request_size_limit
        and not intake.body_comes
    ):
        logger.error(
            "%r: its parser holds more than request_size_limit=%d bytes of one request; "
            "it must raise ProtocolError before; the connection closes",
            entry,
            params.request_size_limit,
        )
        shut(entry, CloseReason.REQUEST_TOO_LARGE, 0)
        return
    if deadline.receive_by is None:
        deadline.idle_since = now
        whole = deadline.receive_limit
        deadline.receive_by = inf if whole is None else now + whole
    peer = params.peer_response_timeout
    rate = params.receive_rate
    whole_by = deadline.receive_by
    if rate is not None:
        whole_by += size / rate
    deadline.arm(RECEIVE, min(whole_by, inf if peer is None else now + peer))


def _await_no_request(entry: CommConnEntry) -> None:
    """The peer is waited for at most for the rest of a body."""
    if entry.intake.body_comes:
        await_body(entry)
    else:
        entry.deadline.clear()


def await_body(entry: CommConnEntry) -> None:
    """While a handler is at work: give the peer time for the rest of its body, unless the
    handler is the one who is waited for."""
    arriving = entry.intake.arriving
    deadline = entry.deadline
    if arriving is None or deadline.limit is TAKE:
        return
    if arriving.over:
        deadline.body_ended()
        return
    heard = entry.intake.bytes_in
    now = entry.communicator.clock()
    if arriving.awaited:
        if deadline.limit is RECEIVE and arriving.heard == heard:
            return  # it is looked at, and that gives the peer no more time
        arriving.heard = heard
        deadline.go_on(now)
        _await_rest(entry, now)
    else:
        deadline.hold(now)
        deadline.clear()


def _await_peer(entry: CommConnEntry) -> None:
    """Output waits for room: give it the time of one more step if it made one."""
    output = entry.output
    deadline = entry.deadline
    if output.sent_before == output.sent and deadline.limit is TAKE:
        return
    output.sent_before = output.sent
    output.acked = output.sent - entry.transport.unacknowledged()
    now = entry.communicator.poller.time()
    params = entry.protocol.params
    if entry.intake.arriving is not None:
        deadline.hold(now)
    if deadline.send_by is None:
        whole = params.send_timeout
        deadline.send_by = inf if whole is None else now + whole
    peer = params.peer_response_timeout
    deadline.arm(TAKE, min(deadline.send_by, inf if peer is None else now + peer))


def due(entry: CommConnEntry, now: float, pump: Callable[[CommConnEntry], object]) -> None:
    """The timer of the deadline has fired, and the connection is open."""
    deadline = entry.deadline
    exchanges = entry.exchanges
    if deadline.at > now:
        deadline.arm(deadline.limit, deadline.at)
    elif (
        (exchanges.pumping or exchanges.deferred)
        and not entry.output.size
        and entry.intake.arriving is None
    ):
        deadline.arm(deadline.limit, now + LOOK_AGAIN)
    elif not arrived_late(entry, now, pump):
        expire(entry)


def arrived_late(
    entry: CommConnEntry, now: float, pump: Callable[[CommConnEntry], object]
) -> bool:
    """Whether something came in time that was not looked at: the whole process, or the
    machine, may have been stopped."""
    intake = entry.intake
    deadline = entry.deadline
    waits = (FIRST, RECEIVE, KEEP_ALIVE)
    if entry.output.size or intake.eof or deadline.limit not in waits or intake.held:
        return False
    first = intake.bytes_in
    for _ in range(LATE_TURNS):
        before = intake.bytes_in
        intake.readable = True
        if entry.exchanges.pumping or entry.exchanges.deferred:
            read_ahead(entry)
            await_body(entry)
        else:
            pump(entry)
        if deadline.limit not in waits or entry.life.rung > OPEN:
            return True
        if intake.bytes_in == before:
            break
    return intake.bytes_in != first and deadline.at > now


def expire(entry: CommConnEntry) -> None:
    """The deadline has passed."""
    deadline = entry.deadline
    limit = deadline.limit
    deadline.at = inf
    if entry.output.size:
        _reply_not_taken(entry)
    elif limit is RECEIVE:
        _too_slow(entry)
    elif entry.life.reset:
        reset_when_taken(entry)
    elif limit is FIRST or limit is KEEP_ALIVE:
        if part(entry, limit.reason, errno.ETIMEDOUT):
            entry.output.flush(entry)
            settle(entry)
    else:
        shut(entry, limit.reason, errno.ETIMEDOUT)


def _reply_not_taken(entry: CommConnEntry) -> None:
    # A slow reader makes room long before the system announces it.
    entry.output.flush(entry)
    if entry.life.rung >= SHUT:
        return
    output = entry.output
    deadline = entry.deadline
    # What the system has taken since is no news: the peer has to.
    progress = output.sent - entry.transport.unacknowledged() > output.acked
    late = deadline.send_by is not None and deadline.send_by <= entry.communicator.poller.time()
    if progress and not (late and output.size):
        deadline.limit = NO_LIMIT
        entry.resume_later()
        return
    detail = ""
    if output.told_full:
        detail = (
            f"it had stopped to be read at unsent_limit={output.limit}; raise "
            "that for clients that write much before they read"
        )
        if entry.service.may_report("cut at unsent_limit", entry.communicator.clock()):
            logger.warning("%r: the peer takes no replies; %s", entry, detail)
    shut(entry, CloseReason.REPLY_NOT_TAKEN, errno.ETIMEDOUT, detail)


def _too_slow(entry: CommConnEntry) -> None:
    exchanges = entry.exchanges
    if exchanges.collecting is not None:
        drop_announced(entry, TimeoutError("the rest of the request did not arrive in time"))
    elif entry.intake.body_comes:
        body_failed(entry, TimeoutError("the rest of the request did not arrive in time"))
        entry.deadline.clear()
        return
    reason = CloseReason.REQUEST_TOO_SLOW
    farewell, message, summary = farewell_of(entry, reason)
    note_refused(entry, reason, message, summary)
    if farewell:
        _say_last(entry, farewell, reason)
    else:
        shut(entry, reason, errno.ETIMEDOUT)


def stopped_reading(entry: CommConnEntry) -> None:
    """The peer asks and does not read the answers: told once for a connection."""
    intake = entry.intake
    if entry.life.rung >= SHUT:
        return
    if not intake.queue:
        intake.fill(1)
    if not intake.queue and not intake.readable:
        return  # a large reply, and nothing after it
    entry.output.told_full = True
    service = entry.service
    event = LimitReached(
        "unsent_limit", entry.output.limit, "a connection is not read until its peer reads"
    )
    tell = partial(service.emit_rarely, event, "unsent_limit", entry.communicator.clock())
    entry.exchanges.tell(News(tell), TaskState.SUCCESS, 0)


def set_keep_alive(entry: CommConnEntry, seconds: float | None) -> None:
    """How long it may stay without a request, from now on. Without the lock; any thread."""
    deadline = entry.deadline
    entry.lock.acquire()
    deadline.first_wait = deadline.keep_alive_limit = seconds
    limit = deadline.limit
    if limit is FIRST or limit is KEEP_ALIVE:
        deadline.keep_alive = seconds
        now = entry.communicator.poller.time()
        deadline.arm(limit, inf if seconds is None else now + seconds)
    entry.release()


def await_greeting(entry: CommConnEntry) -> None:
    """Nothing is read yet; what was pushed may have to be sent."""
    if miss(entry):
        return
    if entry.output.size:
        entry.output.flush(entry)
    stops = entry.service.stopping and not entry.output.size
    if stops and part(entry, CloseReason.SERVER_STOPPED, 0):
        entry.output.flush(entry)
    settle(entry)


def stop_connection(entry: CommConnEntry, _: int = 0) -> None:
    """The service stops: end the connection when it has nothing in hand.

    What has arrived and was not read yet is still served, so it is looked at once
    more, on a handler thread. One whose lock is kept finds out itself, see ``settle``.
    """
    if not entry.lock.acquire(timeout=LOCK_PATIENCE):
        return
    try:
        crossing = entry.deadline.idle_since + FIRST_REQUEST_TIME
        if entry.deadline.limit is FIRST and entry.communicator.poller.time() < crossing:
            # It has only just been accepted, and its request may be on its way.
            entry.communicator.poller.call_at(crossing, stop_connection, entry)
            return
        entry.intake.readable = True
        if entry.life.rung == LINGERING:
            hurry(entry)
        entry.resume_later()
    finally:
        entry.lock.release()


def begin(entry: CommConnEntry) -> None:
    """It was accepted and is counted: give it time, watch it, and say the protocol's greeting,
    where it has one."""
    entry.attached = True
    deadline = entry.deadline
    communicator = entry.communicator
    if entry.life.rung < SHUT:
        if deadline.limit is NO_LIMIT:  # otherwise what was pushed waits for room
            seconds = deadline.first_wait
            deadline.arm(FIRST, inf if seconds is None else communicator.clock() + seconds)
        try:
            communicator.poller.register(entry.fd, entry)
        except OSError as error:
            shut(entry, CloseReason.NOT_WATCHED, errno.ENOMEM, error.strerror)
    if entry.life.rung > OPEN:
        return
    try:
        entry.greet()
        if entry.exchanges.held:
            entry.intake.go_on()  # it came before the connection was asked for it
        entry.put_held()
    except BaseException:
        fail(entry, "the greeting failed")
    if entry.output.size:
        entry.output.flush(entry)
    if entry.output.size or entry.life.rung > OPEN:
        settle(entry)
