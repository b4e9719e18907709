"""What a server tells its observers: small frozen facts.

An observer is a callable that takes one event. It is called on the thread where the
thing happened, must not block, and what it raises is logged and goes no further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

from protoserve.log import logger


class CloseReason(StrEnum):
    """Why a connection has closed. As text it is a sentence for people."""

    PEER_CLOSED = "the peer closed"
    PEER_LEFT = "the peer left in the middle of a request"
    PEER_GONE = "the peer is gone"
    """A reset, or nobody answers any more."""
    NO_REQUEST = "no request came"
    """Within ``peer_response_timeout`` of the beginning."""
    IDLE = "the keep-alive time has passed"
    REQUEST_TOO_SLOW = "the request did not arrive in time"
    REPLY_NOT_TAKEN = "the peer did not take the reply in time"
    NOT_CLOSED = "the peer did not close in time"
    """... after the last reply."""
    PUSH_NOT_TAKEN = "the peer does not take what is pushed"
    PROTOCOL_ERROR = "protocol error"
    REQUEST_TOO_LARGE = "the request is larger than request_size_limit"
    """... and its parser did not refuse it."""
    LAST_REPLY = "the reply was the last"
    NO_REPLY = "closed without a reply"
    REPLY_FAILED = "the reply failed midway"
    CLOSED = "closed by the server"
    """By ``connection.close()``."""
    MADE_ROOM = "made room for another"
    SERVER_STOPPED = "the server stopped"
    CUT = "cut by the server"
    """By a stop, after ``shutdown_timeout``."""
    NOT_WATCHED = "the system refused to watch it"
    PROTOCOL_FAILED = "the protocol's own code failed"
    INTERNAL_ERROR = "an internal error"


@dataclass(frozen=True, slots=True)
class ListenerStarted:
    """A server listens."""

    url: str


@dataclass(frozen=True, slots=True)
class ListenerStopped:
    """A server listens no more; open connections may still be served."""

    url: str


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection was accepted."""

    peername: Any


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A connection has closed: why, after how many bytes and requests. ``detail`` says
    more of the reason where there is more, such as the system's word for the error."""

    peername: Any
    reason: CloseReason
    bytes_in: int
    bytes_out: int
    requests: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A reply was written, or could not be: ``duration`` seconds after the request was
    complete. ``state`` is the name of a :class:`~protoserve.kernel.session.TaskState`;
    ``summary`` has the protocol's facts of the exchange (``ProtocolSpec.summary``)."""

    peername: Any
    seq: int
    duration: float
    state: str
    error: int
    summary: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request never reached its handler: the peer broke the protocol, exceeded a limit of
    it, or was too slow. ``message`` says how; ``summary`` has the protocol's facts, such as
    a status."""

    peername: Any
    seq: int
    reason: CloseReason
    message: str
    summary: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LimitReached:
    """A limit took effect. ``action``: what was done about it."""

    limit: str
    value: int
    action: str


@dataclass(frozen=True, slots=True)
class AcceptFailed:
    """The system refused a new connection; accepting pauses for ``pause`` seconds."""

    errno: int
    message: str
    pause: float


@dataclass(frozen=True, slots=True)
class HandlersBlocked:
    """Every handler thread is in a handler, and further requests wait for one to be free.
    Told at most once a minute."""

    threads: int


Event: TypeAlias = (
    ListenerStarted
    | ListenerStopped
    | ConnectionOpened
    | ConnectionClosed
    | RequestFinished
    | RequestRefused
    | LimitReached
    | AcceptFailed
    | HandlersBlocked
)

_MESSAGES: Final[dict[type, str]] = {
    LimitReached: "limit {limit}={value} reached: {action}",
    AcceptFailed: "cannot accept connections ({message}); pausing for {pause} s",
    HandlersBlocked: "all {threads} handler threads are blocked; "
    "raise handler_threads, or let handlers block less",
}


def log_event(event: Event) -> None:
    """The built-in observer of the rare events: writes them to the logger ``protoserve``
    at WARNING, with the event's fields as ``extra``."""
    message = _MESSAGES.get(type(event))
    if message is not None:
        fields = asdict(event)
        logger.warning(
            message.format(**fields),
            extra={
                "event": type(event).__name__,
                **{f"event_{name}": value for name, value in fields.items()},
            },
        )
