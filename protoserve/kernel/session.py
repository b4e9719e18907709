"""CommSession: one request and its response, as the engine sees them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from mypy_extensions import mypyc_attr

from protoserve.errors import UsageError
from protoserve.kernel.subtask import SubTask, lacking
from protoserve.protocol import MessageOut

if TYPE_CHECKING:
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.entry import CommConnEntry


class TaskState(IntEnum):
    """How far a network task has come: the article's ``WFT_STATE_*``, with their values."""

    UNDEFINED = -1
    """Not handed to the user yet."""
    SUCCESS = 0
    """The reply is wholly in the operating system's hands."""
    SYS_ERROR = 1
    """The reply could not be sent; ``error`` is an ``errno``."""
    TOREPLY = 3
    """The request is complete and waits for its reply."""
    NOREPLY = 4
    """The connection closed instead of a reply, as the handler asked."""
    SSL_ERROR = 65
    """TLS failed."""


def returned(value: object) -> UsageError:
    """What is wrong when a handler returned something."""
    return UsageError(
        f"the handler returned a {type(value).__name__}, and nobody takes it: "
        "assign to task.resp, or call its methods, and return nothing"
    )


@mypyc_attr(allow_interpreted_subclasses=True)
class CommSession(SubTask):
    """One request/response exchange (the article's ``CommSession``).

    Made by the factory ``CommService.new_session``, which gives it its ``connection``. The
    communicator calls the methods here; never two at once.
    """

    __slots__ = ("connection", "keep_alive")

    connection: CommConnection
    keep_alive: float | None
    """Seconds the connection stays open after this reply; 0 closes, None is no limit.
    Read after ``message_out``."""

    def dispatch(self) -> None:
        """A session that is a task of a series overrides it."""
        raise lacking(self, "dispatch")

    @abstractmethod
    def message_in(self, message: Any) -> None:
        """Take the complete request, as the parser returned it."""
        raise lacking(self, "message_in")

    @abstractmethod
    def message_out(self) -> MessageOut:
        """The reply's bytes. Called once, under the connection's lock: it must not block
        and not call the connection."""
        raise lacking(self, "message_out")

    def handler_key(self) -> Hashable:
        """What tells handlers apart that block from those that do not, such as a path or
        a command. Asked, after ``message_in``, only where handlers were seen to be slow.
        Must not raise. By default ``None``: they are all alike."""
        return None

    def call(self, function: Callable[..., Any], *args: object) -> Any:
        """Call user code that belongs to this exchange, such as a reply's iterator."""
        return function(*args)

    def end_quietly(self) -> bool:
        """Instead of ``handle(SUCCESS, 0)``, where no user code hangs on it: note it and
        return True. Called under the connection's lock. By default False: ``handle`` it is."""
        return False

    def reply_failed(self, error: BaseException | None) -> None:
        """``reply`` had returned, but the first piece of an async iterator could not be
        had, or the peer has gone (``None``). The session may reply otherwise."""

    def broke_off(self) -> None:
        """Its request was announced and will not be handed over: ``handle`` is not called.
        With the connection's lock; must not raise."""

    @abstractmethod
    def handle(self, state: TaskState, error: int) -> None:
        """TOREPLY: the request is complete. Afterwards once more: SUCCESS when the reply
        was sent, else SYS_ERROR with an ``errno``. On a handler thread for TOREPLY, on
        any thread afterwards. Must not raise."""
        raise lacking(self, "handle")


# A user's class may have these as properties, or for all of its sessions. The compiled build looks
# for them where Python does only in what is Any.


def entry_of(session: Any) -> CommConnEntry:
    """The engine's half of its connection."""
    entry: CommConnEntry = session.connection.entry
    return entry


def keep_alive_of(session: Any) -> float | None:
    """Its ``keep_alive``."""
    seconds: float | None = session.keep_alive
    return seconds
