"""The states of a connection as people know them: a view, read off its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from protoserve.kernel.deadline import (
    FIRST,
    KEEP_ALIVE,
    LINGER,
    NO_LIMIT,
    RECEIVE,
    TAKE,
    Limit,
)
from protoserve.kernel.life import LINGERING, OPEN, SHUT

if TYPE_CHECKING:
    from protoserve.kernel.entry import CommConnEntry


class State:
    """A row of the table: a name, when it is the one, and the time limit that then runs."""

    __slots__ = ("holds", "limit", "meaning", "name")

    def __init__(
        self, name: str, limit: Limit, holds: Callable[[CommConnEntry], bool], meaning: str
    ) -> None:
        self.name = name
        self.limit = limit
        self.holds = holds
        self.meaning = meaning

    def __repr__(self) -> str:
        return self.name


STATES: Final = (
    State("CLOSED", NO_LIMIT, lambda e: e.life.rung >= SHUT, "the socket is closed"),
    State(
        "DRAINING",
        LINGER,
        lambda e: e.life.rung == LINGERING,
        "the last word is said; what the peer still sends is taken in",
    ),
    State(
        "REPLYING",
        TAKE,
        lambda e: e.deadline.limit is TAKE,
        "what was given out waits for the peer to read",
    ),
    State(
        "RECEIVING",
        RECEIVE,
        lambda e: e.exchanges.collecting is not None,
        "a request was announced by its head, and its body is collected",
    ),
    State(
        "REPLYING",
        RECEIVE,
        lambda e: e.exchanges.pieces_begun and e.deadline.limit is RECEIVE,
        "a reply in pieces is under way, and the rest of a request is on its way",
    ),
    State(
        "REPLYING",
        NO_LIMIT,
        lambda e: e.exchanges.pieces_begun,
        "a reply in pieces is under way, and its next piece is waited for",
    ),
    State(
        "PROCESSING",
        RECEIVE,
        lambda e: e.exchanges.in_hand and e.deadline.limit is RECEIVE,
        "a handler is at work, and the rest of a request is on its way",
    ),
    State(
        "PROCESSING",
        NO_LIMIT,
        lambda e: e.exchanges.in_hand,
        "a handler is at work",
    ),
    State(
        "REPLYING",
        NO_LIMIT,
        lambda e: e.output.size > 0 or e.life.rung > OPEN,
        "a reply goes out this moment, or the last word has",
    ),
    State(
        "RECEIVING",
        RECEIVE,
        lambda e: e.deadline.limit is RECEIVE,
        "an unfinished request is held",
    ),
    State(
        "CONNECTED",
        FIRST,
        lambda e: not e.exchanges.seq,
        "accepted; no request has begun",
    ),
    State("KEEPALIVE", KEEP_ALIVE, lambda e: True, "between requests"),
)
"""The first row that holds is the state; nothing stores it."""


def state_of(entry: CommConnEntry) -> State:
    """The state of a connection. Any thread, for a moment's truth."""
    return next(state for state in STATES if state.holds(entry))


def is_silent(entry: CommConnEntry) -> bool:
    """Whether it has begun a request, or not even that, and nothing else. Any thread."""
    limit = entry.deadline.limit
    return (
        (limit is FIRST or limit is RECEIVE)
        and not entry.exchanges.in_hand
        and not entry.intake.more
        and not entry.output.size
    )


def at_rest(entry: CommConnEntry) -> bool:
    """Whether nobody loses anything when it closes. Any thread."""
    limit = entry.deadline.limit
    return (
        limit in (FIRST, KEEP_ALIVE, LINGER)
        and not entry.intake.more
        and not entry.output.size
        and not entry.exchanges.deferred
    )
