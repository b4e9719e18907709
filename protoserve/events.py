"""What a server tells its observers: small frozen facts.

An observer is a callable that takes one event. It is called on the thread where the
thing happened, must not block, and what it raises is logged and goes no further.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from protoserve.log import logger


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
    """A connection has closed: why, after how many bytes and requests."""

    peername: Any
    reason: str
    bytes_in: int
    bytes_out: int
    requests: int


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A reply was written, or could not be: ``duration`` seconds after the request was
    complete. ``state`` is the name of a :class:`~protoserve.kernel.session.TaskState`."""

    peername: Any
    seq: int
    duration: float
    state: str
    error: int


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
