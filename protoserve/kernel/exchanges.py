"""Exchanges: the sessions of a connection that are in hand, and the order of their replies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protoserve.kernel.session import CommSession, TaskState
from protoserve.protocol import Buffer, MessageOut

if TYPE_CHECKING:
    from protoserve.kernel.service import CommProtocol
    from protoserve.kernel.stream import Reply, Stream


Ended: TypeAlias = tuple[CommSession, TaskState, int]
"""A session, how it ended and an ``errno``."""


class _StandIn(CommSession):
    """In the place of a session."""

    __slots__ = ()

    def message_in(self, message: Any) -> None:
        raise NotImplementedError

    def message_out(self) -> MessageOut:
        raise NotImplementedError

    def handle(self, state: TaskState, error: int) -> None:
        raise NotImplementedError


class News(_StandIn):
    """In the place of a session that has ended: something that observers are to be told in
    its turn, and without the lock."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell

    def handle(self, state: TaskState, error: int) -> None:
        self._tell()


COMING: Final[CommSession] = _StandIn()
"""Stands for a session that is being made."""


class Exchanges:
    """Who is in hand, who has been answered and is to be told, and who works here.

    A connection whose requests are answered in order has one ``session`` at a time. One with
    ``in_flight`` above 1 has ``others`` instead, and replies as they finish. Touched by the
    holder of the connection's lock; user code never runs under it.
    """

    __slots__ = (
        "collecting",
        "deferred",
        "dropped",
        "farewell",
        "finished",
        "held",
        "held_size",
        "in_flight",
        "locked",
        "others",
        "posted",
        "pumping",
        "pushed_by",
        "pushed_for",
        "replies",
        "running",
        "seq",
        "session",
        "stream",
        "upgrade",
    )

    seq: int

    def __init__(self, in_flight: int) -> None:
        # First what each request needs: the compiled build lays it out in this order.
        self.seq = 0
        """Requests so far."""
        self.session: CommSession | None = None
        """Handed over and not answered."""
        self.pumping = False
        """A thread hands requests over, or tells sessions of their end."""
        self.locked = False
        """The reply was given on the thread that pumps, and has left the lock with it: for that
        thread's eyes only."""
        self.posted = False
        """It goes on in the poller's next turn."""
        self.deferred = False
        """It goes on when a handler thread is free."""
        self.others: set[CommSession] | None = None if in_flight == 1 else set()
        """As ``session``, where they may be several."""
        self.stream: Stream | None = None
        """A reply in pieces is under way."""
        self.finished: list[Ended] | None = None
        """Who is to be told of its end, when the lock is let go."""
        self.dropped: Stream | None = None
        """What is to be closed then."""
        self.upgrade: CommProtocol | None = None
        """What the connection speaks after the reply in hand."""
        self.farewell: Buffer | None = None
        """The last word, while others have yet to be answered."""
        self.collecting: Any = None
        """The request of ``session`` while its body is collected: the handler has not been
        called yet."""
        self.in_flight = in_flight
        self.running: dict[CommSession, Ended | None] | None = None
        """Of others, whose handler has not returned, each with what it is told then."""
        self.replies: deque[tuple[CommSession, float | None, Reply]] | None = None
        """Of others, while a reply in pieces is under way."""
        self.held: list[Buffer] | None = None
        """Pushed meanwhile, or before the greeting."""
        self.held_size = 0
        self.pushed_for = 0
        """``seq`` when a handler last pushed a part of its reply."""
        self.pushed_by: set[CommSession] | None = None
        """Of others, who have pushed a part of theirs."""

    @property
    def untold(self) -> bool:
        """Whether there is something to tell, or to close, when the lock is let go."""
        return self.finished is not None or self.dropped is not None

    @property
    def in_hand(self) -> bool:
        """Whether a request waits for its reply."""
        return self.session is not None or bool(self.others)

    @property
    def awaits_session(self) -> bool:
        """Whether a session is being made."""
        return self.session is COMING

    @property
    def crowded(self) -> bool:
        """Whether one more would be too many, where they may be several: a reply in pieces
        has the connection for itself, and an upgrade is the last."""
        others = self.others
        return others is not None and (
            len(others) >= self.in_flight or self.stream is not None or self.upgrade is not None
        )

    @property
    def free(self) -> bool:
        """Whether one more may be handed over beside others."""
        return self.others is not None and self.session is None and not self.crowded

    @property
    def pieces_begun(self) -> bool:
        """Whether a part of a reply in pieces is out."""
        return self.stream is not None and self.stream.begun

    def awaits(self, session: CommSession) -> bool:
        """Whether the session has a reply to give."""
        if self.session is session:
            return self.stream is None
        return (
            self.others is not None
            and session in self.others
            and (self.stream is None or self.stream.session is not session)
            and not any(waiting is session for waiting, _, _ in self.replies or ())
        )

    def remove(self, session: CommSession) -> bool:
        """It is in hand no more. False when it was not."""
        if self.session is session:
            self.session = None
            self.collecting = None
            return True
        if self.others is not None and session in self.others:
            self.others.remove(session)
            if self.pushed_by is not None:
                self.pushed_by.discard(session)
            return True
        return False

    def push(self, session: CommSession) -> None:
        """It pushes a part of its reply."""
        if self.others is None:
            self.pushed_for = self.seq
        elif self.pushed_by is None:
            self.pushed_by = {session}
        else:
            self.pushed_by.add(session)

    def begin(self, session: CommSession) -> None:
        """Its handler is called, and may take its time: others are handed over meanwhile."""
        assert self.others is not None
        self.session = None
        self.others.add(session)
        if self.running is None:
            self.running = {}
        self.running[session] = None

    def returned(self, session: CommSession) -> None:
        """Its handler has returned."""
        if self.running is not None:
            ended = self.running.pop(session, None)
            if ended is not None:
                self.tell(*ended)

    def tell(self, session: CommSession, state: TaskState, error: int) -> None:
        """Have a session told of its end, when the lock is let go."""
        if self.finished is None:
            self.finished = []
        self.finished.append((session, state, error))

    def ended(self) -> list[Ended]:
        """Who is to be told now. A session is not told of its end while its handler runs: it
        has one call at a time."""
        finished, self.finished = self.finished or [], None
        running = self.running
        if running:
            for ended in finished:
                if ended[0] in running:
                    running[ended[0]] = ended
            finished = [ended for ended in finished if ended[0] not in running]
        return finished

    def hold(self, data: bytes) -> None:
        """Push it after the reply that is under way."""
        if self.held is None:
            self.held = []
        self.held.append(data)
        self.held_size += len(data)

    def reply_later(self, session: CommSession, keep_alive: float | None, reply: Reply) -> None:
        """Reply after the one that is under way."""
        if self.replies is None:
            self.replies = deque()
        self.replies.append((session, keep_alive, reply))
