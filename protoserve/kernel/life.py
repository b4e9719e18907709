"""Life: how far a connection is from its end, and why it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from protoserve.events import CloseReason

if TYPE_CHECKING:
    from protoserve.kernel.connection import CommConnection

# The ladder: a connection only climbs. Plain numbers, since each event looks at them.
OPEN: Final = 0
"""Requests are served."""
LAST: Final = 1
"""What is given out is the last; no more requests are taken."""
FAREWELL: Final = 2
"""... and the peer may still be sending, which must not make the system drop it."""
LINGERING: Final = 3
"""It is sent, our side has ended; what the peer still sends is taken in, for a while."""
SHUT: Final = 4
"""The socket is closed."""
TOLD: Final = 5
"""... and those are told who asked to be."""
FORGOTTEN: Final = 6
"""... and nothing runs for it any more: the service has its reference back."""

RUNGS: Final = ("OPEN", "LAST", "FAREWELL", "LINGERING", "SHUT", "TOLD", "FORGOTTEN")


class CallbackHandle:
    """A callback that can be taken back."""

    __slots__ = ("_forget",)

    def __init__(self, forget: Callable[[CallbackHandle], bool]) -> None:
        self._forget = forget

    def cancel(self) -> bool:
        """Have the callback not called any more. False when it was called, is about to be,
        or was taken back before. Any thread."""
        return self._forget(self)


Callbacks: TypeAlias = "dict[CallbackHandle, Callable[[CommConnection], object]]"


class Life:
    """One ladder, why it was climbed, and whom the end is told.

    Touched by the holder of the connection's lock. ``rung`` and ``reason`` may be read by
    any thread, for a moment's truth.
    """

    __slots__ = ("callbacks", "detail", "end_callbacks", "error", "reason", "reset", "rung")

    def __init__(self) -> None:
        self.rung = OPEN
        self.reason = CloseReason.CLOSED
        self.detail = ""
        self.error = 0
        """An ``errno``, for sessions that learn of the end later."""
        self.reset = False
        """The end is a reset, since it comes in the middle of a reply."""
        self.callbacks: Callbacks | None = None
        """Called when the connection has closed."""
        self.end_callbacks: Callbacks | None = None
        """Called when the peer ends its sending side."""

    def __repr__(self) -> str:
        return f"<Life {RUNGS[self.rung]}>"

    @property
    def cut(self) -> bool:
        """Whether nothing more is sent: it is closed, or to be reset."""
        return self.rung >= SHUT or self.reset

    def climb(self, rung: int) -> None:
        """One or more steps up. Raises ``RuntimeError`` for a step that goes nowhere."""
        if rung <= self.rung:
            raise RuntimeError(
                f"a connection that is {RUNGS[self.rung]} cannot become {RUNGS[rung]}"
            )
        self.rung = rung

    def end(self, reason: CloseReason, rung: int = LAST) -> None:
        """It ends, at least so far, for this reason; what was a step further stays there,
        and what is closed keeps its reason."""
        if self.rung < SHUT:
            self.rung = max(self.rung, rung)
            self.reason = reason

    def forget_callback(self, handle: CallbackHandle) -> bool:
        """Take a callback back. False when it is not there any more."""
        return any(
            callbacks is not None and callbacks.pop(handle, None) is not None
            for callbacks in (self.callbacks, self.end_callbacks)
        )
