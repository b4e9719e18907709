"""The toy protocol of ``line_service``, with all that a parser may say.

Besides its lines: ``hold text`` is a request after which nothing is parsed before it is
answered; ``body n text`` and ``whole n text`` announce a body of so many bytes, which the
former's handler reads as it arrives and the latter's has whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from line_service import LineParser, LineService, LineSession, echo

from protoserve import HOLD, NEED_DATA, Arriving, CommConnection
from protoserve.kernel.incoming import IncomingStream


class WordParser(LineParser):
    """The parser of one connection."""

    def __init__(self, farewell: Any = b"TIMEOUT\n") -> None:
        super().__init__(farewell)
        self.holds = False
        self.stream: IncomingStream | None = None
        self.left = 0

    def next_message(self) -> Any:
        if self.holds:
            self.holds = False
            return HOLD
        if self.stream is not None:
            data = self.held[self.at : self.at + self.left]
            self.at += len(data)
            self.left -= len(data)
            self.stream.feed(data)
            if self.left:
                return NEED_DATA
            self.stream.end()
            self.stream = None
        line = super().next_message()
        if isinstance(line, str):
            word, _, rest = line.partition(" ")
            if word == "hold":
                self.holds = True
            elif word in ("body", "whole"):
                self.left = int(rest.split()[0])
                self.stream = IncomingStream()
                return Arriving(line, self.stream)
        return line

    @property
    def partial(self) -> bool:
        return self.stream is not None or super().partial

    def leftover(self) -> bytes:
        return self.held[self.at :]


class WordSession(LineSession):
    """One request; ``body`` is what arrives after it."""

    body: IncomingStream | None = None

    def __init__(self, service: LineService, seq: int, conn: CommConnection) -> None:
        super().__init__(service, seq, conn)
        arriving = conn.arriving
        if arriving is not None:
            self.body = arriving.stream
            arriving.streams = arriving.request.startswith("body")
            service.arrive(arriving)  # type: ignore[attr-defined]


class WordService(LineService):
    """A server of it; ``in_flight`` requests of a connection at once."""

    def __init__(
        self,
        handler: Callable[[Any], object] = echo,
        *,
        in_flight: int = 1,
        session: type[LineSession] = WordSession,
        parser: type[LineParser] = WordParser,
        **params: Any,
    ) -> None:
        super().__init__(handler, session=session, parser=parser, **params)
        self.in_flight = in_flight
        self.arrive: Callable[[Arriving[Any]], object] = lambda arriving: None

    def of(self, line: str) -> Any:
        """The session of this line."""
        (found,) = (session for session in self.sessions if session.line == line)
        return found
