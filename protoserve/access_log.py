"""The access log: an observer that writes a line for each request.

The command's ``--access-log`` is this one; a server that is started from Python gets it by
``server.subscribe(log_access)``.
"""

from __future__ import annotations

import errno
import logging
from typing import Any, Final

from protoserve.events import Event, RequestFinished, RequestRefused

access_logger: Final = logging.getLogger("protoserve.access")
"""Where the lines go, at INFO; they are written where its level lets them pass."""


def log_access(event: Event) -> None:
    """Write a line for a request that has ended, refused ones included: who, what the
    protocol's summary tells, how long it took, and how it went wrong if it did. The facts are
    in ``extra`` too, as ``request_method`` and so on. Any thread; other events are passed over.
    """
    facts: dict[str, object]
    if isinstance(event, RequestFinished):
        outcome = f"in {event.duration * 1000:.1f} ms"
        if event.state != "SUCCESS":
            outcome += f" {event.state}"
        if event.error:
            outcome += f" ({errno.errorcode.get(event.error, event.error)})"
        facts = {"duration": event.duration, "state": event.state, "error": event.error}
    elif isinstance(event, RequestRefused):
        outcome = f"refused: {event.message or event.reason}"
        facts = {"reason": event.reason.name}
    else:
        return
    summary = " ".join(_printable(value) for value in event.summary.values())
    access_logger.info(
        "%s #%d%s%s %s",
        _peer(event.peername),
        event.seq,
        summary and " ",
        summary,
        outcome,
        extra={
            "peername": event.peername,
            "seq": event.seq,
            **{f"request_{name}": value for name, value in {**facts, **event.summary}.items()},
        },
    )


def _printable(value: object) -> str:
    """One word of a log line: what a client sends must not look like another line."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else ascii(text)


def _peer(peername: Any) -> str:
    if not isinstance(peername, tuple):
        return "unix"  # clients of Unix sockets have no name
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
