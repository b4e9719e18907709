"""Handing over: from a message of the parser to its handler.

Functions over a :class:`~protoserve.kernel.entry.CommConnEntry`, called by the thread that
pumps, with the lock, which they let go while user code runs.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf
from typing import TYPE_CHECKING, Any, Final

from protoserve.kernel.deadline import NO_LIMIT, TAKE
from protoserve.kernel.ending import LOCK_PATIENCE, end_without_word, fail
from protoserve.kernel.exchanges import COMING
from protoserve.kernel.habits import SLOW, Habit, Watch
from protoserve.kernel.intake import Fault
from protoserve.kernel.life import OPEN, SHUT
from protoserve.kernel.locking import acquire, release
from protoserve.kernel.reading import look_at_body
from protoserve.kernel.session import CommSession, TaskState
from protoserve.kernel.waiting import await_body, flush_aside
from protoserve.log import logger
from protoserve.protocol import HOLD, NEED_DATA, Arriving, Feedback

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry


TOREPLY: Final = TaskState.TOREPLY

# What a parser says besides requests, and more. Names of this module are found faster in the
# compiled build.
_HOLD: Final = HOLD
_FEEDBACK: Final = Feedback
_ARRIVING: Final = Arriving
_acquire: Final = acquire
_release: Final = release


ANOTHER_PUMPS: Final = -1.0
"""Instead of a time: while the handler ran, another thread has taken over."""


def hand_over(
    entry: CommConnEntry,
    message: Any,
    now: float,
    arrived: CommSession | None = None,
) -> float:
    """Run the handler of a message. With the lock, which is let go while the handler
    runs. Returns the time afterwards; 0 when the pump should stop. ``arrived``: the
    session that was made when the message began to arrive."""
    kind = type(message)
    if message is None or message is _HOLD or kind is _FEEDBACK or kind is _ARRIVING:
        return hear(entry, message, now)
    exchanges = entry.exchanges
    exchanges.session = COMING
    lock = entry.lock
    service = entry.protocol
    others = exchanges.others
    session: CommSession = COMING
    try:
        if arrived is None:
            deadline = entry.deadline
            deadline.receive_by = None
            if deadline.limit is not TAKE:
                # Else a peer that does not read keeps its deadline, whatever it asks for.
                deadline.limit = NO_LIMIT
                deadline.at = inf
            intake = entry.intake
            intake.mark = intake.bytes_in
            seq = exchanges.seq
            exchanges.seq = seq + 1
            _release(lock)
            session = service.new_session(seq, entry.connection)
        else:
            _release(lock)
            session = arrived
        session.message_in(message)
        # Nobody else touches it while it is COMING.
        if others is not None:
            let_others_pump(entry, session)
        else:
            exchanges.session = session
        habits = service.habits
        if habits.known and (habit := habits.of(key := session.handler_key(), now)) is not None:
            now = handle_watched(entry, session, key, habit)
        else:
            session.handle(TOREPLY, 0)
            communicator = entry.communicator
            began, now = now, communicator.clock()
            if now - began > SLOW and communicator.threads is not None and habits.learns:
                let_lock_go(entry)
                habits.slow(session.handler_key(), now)
    except BaseException:
        take_lock(entry)
        return session_failed(entry, session)
    take_lock(entry)
    if others is not None:
        exchanges.returned(session)
        if exchanges.pumping:
            return ANOTHER_PUMPS
        exchanges.pumping = True
    return 0.0 if entry.life.rung >= SHUT else now


def take_lock(entry: CommConnEntry) -> None:
    """Take the lock after a handler, unless the reply has left it here."""
    exchanges = entry.exchanges
    if exchanges.locked:
        exchanges.locked = False
    else:
        _acquire(entry.lock)


def let_lock_go(entry: CommConnEntry) -> bool:
    """Before user code: where the reply has left the lock here, let it go. False where it has
    not."""
    exchanges = entry.exchanges
    if not exchanges.locked:
        return False
    exchanges.locked = False
    entry.lock.release()
    return True


def hear(entry: CommConnEntry, word: Any, now: float) -> float:
    """The parser said something that is no whole request. As ``hand_over``."""
    exchanges = entry.exchanges
    intake = entry.intake
    if word is None:
        logger.error(
            "%r: next_message() of its parser returned None; it must return a request, "
            "or NEED_DATA (a forgotten return?); the connection closes",
            entry,
        )
        end_without_word(entry, "the parser failed")
        return 0.0
    if isinstance(word, Feedback):
        try:
            entry.output.put(word.data)
        except (TypeError, ValueError):
            fail(entry, "the parser gave feedback that is no bytes")
            return 0.0
        if entry.deadline.limit is not TAKE:
            entry.deadline.limit = NO_LIMIT  # the peer has said something
        return now
    if isinstance(word, Arriving):
        return arrive(entry, word, now)
    if exchanges.others:
        intake.put_back(HOLD)  # they reply before
        return 0.0
    # The reply that it waited for is given: ask again.
    try:
        message = intake.next_message()
    except BaseException as error:
        message = Fault(error)
    if message is HOLD:
        logger.error(
            "%r: its parser returned HOLD twice, and no reply is due that it could wait "
            "for; the connection closes",
            entry,
        )
        end_without_word(entry, "the parser failed")
        return 0.0
    if message is NEED_DATA:
        intake.more = False
    else:
        intake.put_back(message)
    return now


def session_failed(entry: CommConnEntry, session: CommSession) -> float:
    """In an ``except`` block, with the lock: making it, or its handler, raised."""
    exchanges = entry.exchanges
    if exchanges.others is None:
        called = not exchanges.awaits_session
    else:
        called = exchanges.running is not None and session in exchanges.running
    exchanges.remove(session if called else COMING)
    fail(entry, "the session failed" if called else "no session could be made")
    if called and exchanges.others is not None:
        # Its place was given to others when the handler was called.
        exchanges.returned(session)
        if exchanges.pumping:
            return ANOTHER_PUMPS
        exchanges.pumping = True
    return 0.0


def let_others_pump(entry: CommConnEntry, session: CommSession) -> None:
    """This handler may take its time: requests after it are handed over meanwhile."""
    with entry.lock:
        entry.exchanges.begin(session)
        entry.exchanges.pumping = False


def handle_watched(
    entry: CommConnEntry, session: CommSession, key: Hashable, habit: Habit
) -> float:
    """Run a handler whose like were slow before. Returns the time afterwards."""
    communicator = entry.communicator
    threads = communicator.threads
    assert threads is not None
    communicator.corked.send()  # no reply waits for it
    if habit.blocks:
        if entry.exchanges.others is not None:
            entry.resume_reading()
        threads.promote()
    watch = Watch(communicator.clock)
    session.handle(TOREPLY, 0)
    now, slow, blocked = watch.end()
    let_lock_go(entry)
    entry.protocol.habits.note(key, slow, blocked)
    return now


def keeps_its_thread(entry: CommConnEntry, waits: bool) -> None:
    """A handler keeps its thread: send the replies that were waiting for company, and
    remember the handler if it ``waits``. Without the lock; on the new leader."""
    session = None
    exchanges = entry.exchanges
    if not entry.lock.acquire(timeout=LOCK_PATIENCE):
        logger.error(
            "%r: its parser or message_out has not returned for %g seconds; until it does, "
            "the connection keeps a thread, and another for what happens to it meanwhile",
            entry,
            LOCK_PATIENCE,
        )
        return
    if exchanges.pumping:
        # Otherwise the handler has returned meanwhile, and what follows is arranged.
        if entry.output.size:
            flush_aside(entry)
        if waits and exchanges.stream is None and exchanges.session is not COMING:
            session = exchanges.session
    elif exchanges.others and entry.life.rung == OPEN:
        entry.resume_later()
    entry.release()
    if session is not None:
        entry.protocol.habits.surprise(session.handler_key())


def arrive(entry: CommConnEntry, arriving: Arriving[Any], now: float) -> float:
    """The head of a request is there, and its body on its way. As ``hand_over``."""
    exchanges = entry.exchanges
    intake = entry.intake
    deadline = entry.deadline
    stream = arriving.stream
    conn = entry.connection
    if intake.body_comes:
        logger.error(
            "%r: its parser announced a request while the body of another was on its way; "
            "the connection closes",
            entry,
        )
        end_without_word(entry, "the parser failed")
        return 0.0
    if intake.arriving is not None:
        deadline.body_ended()  # that of a request before it
    seq = exchanges.seq
    exchanges.seq = seq + 1
    exchanges.session = COMING
    intake.arriving = stream  # nothing more is parsed before its settings are known
    session: CommSession = COMING
    entry.lock.release()
    conn.arriving = arriving
    try:
        session = entry.protocol.new_session(seq, conn)
    except BaseException:
        entry.lock.acquire()
        intake.arriving = None
        return session_failed(entry, COMING)
    finally:
        conn.arriving = None
    entry.lock.acquire()
    if entry.life.rung >= SHUT:
        exchanges.remove(COMING)
        session.broke_off()
        return 0.0
    stream.attach(entry, session)
    stream.limit = arriving.size_limit
    if not arriving.streams:
        stream.collect()
    timeout = arriving.receive_timeout
    if timeout is None:
        deadline.receive_by = inf
    elif isinstance(timeout, (int, float)):
        deadline.receive_by = entry.communicator.clock() + timeout
    intake.fill(entry.protocol.params.max_pipelined)  # it may be too large by its head
    look_at_body(entry)
    if not exchanges.awaits_session:
        session.broke_off()  # refused
        return 0.0
    if stream.over or arriving.streams:
        await_body(entry)
        return hand_over(entry, arriving.request, now, session)
    exchanges.session = session
    exchanges.collecting = arriving.request
    entry.ask_for_body(stream)
    return now if entry.life.rung == OPEN else 0.0


def hand_over_collected(entry: CommConnEntry, now: float) -> float:
    """The body is whole: handle the request. With the lock, which is let go meanwhile."""
    exchanges = entry.exchanges
    session = exchanges.session
    assert session is not None
    message, exchanges.collecting = exchanges.collecting, None
    entry.intake.arriving = None
    return hand_over(entry, message, now, session)
