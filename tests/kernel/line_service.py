"""A toy protocol made by hand for the kernel's tests: a line in, a line out.

Lines with a meaning for the parser: ``!text`` is a protocol error with the farewell
``ERR text``, ``?text`` an interim answer, ``crash`` makes ``next_message`` raise, and
bytes that contain NUL make ``feed`` raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protoserve import (
    NEED_DATA,
    CommConnection,
    CommService,
    CommSession,
    Feedback,
    MessageParser,
    NeedData,
    ProtocolError,
    ServerParams,
    TaskState,
)
from protoserve.events import CloseReason, ConnectionClosed
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.transport import Transport


class LineParser(MessageParser[str]):
    """The parser of one connection."""

    def __init__(self, farewell: Any = b"TIMEOUT\n") -> None:
        self.held = b""
        self.at = 0
        self.eof = False
        self.closed = 0
        self.farewell = farewell
        self.error: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        if b"\0" in data:
            raise ValueError("a fault of the parser in feed")
        self.held = self.held[self.at :] + data
        self.at = 0

    def feed_eof(self) -> None:
        self.eof = True

    def next_message(self) -> str | NeedData | Feedback:
        if self.error is not None:
            raise self.error
        end = self.held.find(b"\n", self.at)
        if end < 0:
            if self.eof and self.held[self.at :] == b"last":
                self.at = len(self.held)
                return "last"
            return NEED_DATA
        line = self.held[self.at : end]
        if line == b"crash":
            raise ValueError("a fault of the parser in next_message")
        if line[:1] == b"!":
            text = line[1:]
            self.error = ProtocolError(
                text.decode(), reply=b"ERR " + text + b"\n" if text else b""
            )
            raise self.error
        self.at = end + 1
        if line[:1] == b"?":
            return Feedback(line[1:] + b"\n")
        return line.decode()

    @property
    def partial(self) -> bool:
        return self.at < len(self.held)

    def close(self) -> None:
        self.closed += 1

    def timeout_reply(self) -> bytes:
        return self.farewell  # type: ignore[no-any-return]


class LineSession(CommSession):
    """One line and its answer; ``reply`` may be called later and on any thread."""

    def __init__(self, service: LineService, seq: int, conn: CommConnection) -> None:
        self.service = service
        self.connection = conn
        self.keep_alive = service.params.keep_alive_timeout
        self.seq = seq
        self.line = ""
        self.answer: Any = b""
        self.states: list[tuple[TaskState, int]] = []

    def message_in(self, message: str) -> None:
        self.line = message
        self.answer = message.encode() + b"\n"

    def message_out(self) -> Any:
        return self.answer

    def handle(self, state: TaskState, error: int) -> None:
        self.states.append((state, error))
        if state is TaskState.TOREPLY:
            self.service.sessions.append(self)
            self.service.handler(self)
        elif self.service.on_result is not None:
            self.service.on_result(self)

    def end_quietly(self) -> bool:
        if self.service.quiet:
            self.states.append((TaskState.SUCCESS, 0))
        return self.service.quiet

    def reply(self, answer: Any = None) -> bool:
        """Answer; False, and the session over, when the peer is gone."""
        if answer is not None:
            self.answer = answer
        if self.connection.communicator.reply(self):
            return True
        self.connection.communicator.forget(self)
        return False

    def end(self) -> None:
        """Close where the answer would have gone."""
        self.connection.communicator.shutdown(self)
        self.connection.communicator.forget(self)


def echo(session: LineSession) -> None:
    session.reply()


def later(session: LineSession) -> None:
    """Answer nothing now: the test does."""


class LineService(CommService):
    """What the communicator needs of a server, with everything noted."""

    def __init__(
        self,
        handler: Callable[[LineSession], object] = echo,
        *,
        session: type[LineSession] = LineSession,
        parser: type[LineParser] = LineParser,
        **params: Any,
    ) -> None:
        super().__init__(ServerParams(**params))
        self.handler = handler
        self.session = session
        self.parser = parser
        self.sessions: list[LineSession] = []
        self.on_result: Callable[[LineSession], object] | None = None
        self.quiet = False
        """Whether sessions need not be told that their reply is out, as tasks without
        callbacks need not."""
        self.parsers: list[LineParser] = []
        self.last_word: Any = b"TIMEOUT\n"
        self.unbound = 0
        self.ends: list[ConnectionClosed] = []
        self.subscribe(self._note)
        self.retain()  # the listener's reference

    def _note(self, event: object) -> None:
        if isinstance(event, ConnectionClosed):
            self.ends.append(event)

    @property
    def lines(self) -> list[str]:
        """The requests that reached the handler, in order."""
        return [session.line for session in self.sessions]

    @property
    def reasons(self) -> list[str]:
        """Why connections closed, in order."""
        return [": ".join(filter(None, (event.reason, event.detail))) for event in self.ends]

    def new_session(self, seq: int, conn: CommConnection) -> CommSession:
        return self.session(self, seq, conn)

    def farewell(self, conn: CommConnection, reason: CloseReason) -> bytes | ProtocolError:
        if reason is CloseReason.REQUEST_TOO_SLOW:
            return conn.parser.timeout_reply()  # type: ignore[attr-defined, no-any-return]
        return b""

    def new_parser(self) -> MessageParser[Any]:
        parser = self.parser(self.last_word)
        self.parsers.append(parser)
        return parser

    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> CommConnection:
        return CommConnection(self, communicator, transport, peername)

    def handle_unbound(self) -> None:
        self.unbound += 1
