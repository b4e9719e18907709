"""Lines with the rest of the contract: a greeting, a farewell, and a reply that decides how
what follows is read."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

from dialogues import Ended, Exchange, LineDialogue, WrongAnswer, new_token
from servers import LINES, Answer, LineManner, Lines, LineServer, Pushed
from work import Work

from protoserve import (
    HOLD,
    NEED_DATA,
    CloseReason,
    CommConnection,
    Hold,
    NeedData,
    ProtocolSpec,
    ServerParams,
    WFServerTask,
)

END = b"\n.\n"
BYE = b"BYE "


def text_follows(token: bytes) -> bool:
    """Whether the reply to this token's ``*kind token`` asks for a text."""
    return crc32(token) % 2 == 0


# -- the server --------------------------------------------------------------------------


class Talk(Lines):
    """``kind token`` in a line. After ``*kind token`` comes a text, which begins with such a
    line and ends with a dot, or the next line, as the handler says."""

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self._just_asked = False
        self.text_follows = False

    def next_message(self) -> bytes | NeedData | Hold:
        if self._just_asked:
            self._just_asked = False
            return HOLD
        if not self.text_follows:
            line = super().next_message()
            self._just_asked = line is not NEED_DATA and line.startswith(b"*")
            return line
        text, end, rest = self._held.partition(END)
        if not end:
            return NEED_DATA
        self._held, self.text_follows = rest, False
        return text

    @property
    def partial(self) -> bool:
        return super().partial or self.text_follows

    def leftover(self) -> bytes:
        return self._held


class TalkManner(LineManner):
    """Tells the parser what follows, as late as it can."""

    def give(self, task: Any, data: bytes) -> None:
        self._decide(task)
        super().give(task, data)

    def stream(self, task: Any, data: Iterator[bytes] | AsyncIterator[bytes]) -> None:
        self._decide(task)
        super().stream(task, data)

    def _decide(self, task: Any) -> None:
        if task.req.startswith(b"*"):
            _, token = wanted(task)
            task.connection.parser.text_follows = text_follows(token)


def wanted(task: WFServerTask[bytes, Answer]) -> tuple[str, bytes]:
    """The kind and the token."""
    kind, token = task.req.partition(b"\n")[0].removeprefix(b"*").split(b" ")
    return kind.decode(), token


class Words:
    """What a server says first and last: each once for a connection."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._number = 0

    def greet(self, conn: CommConnection) -> bytes | list[bytes] | Hold:
        """Now, or in a moment from a foreign thread. From then on lines are pushed."""
        if conn.state is not None:
            self._work.ledger.fault(f"{conn!r} is greeted twice")
        conn.state = ["greeted"]
        self._number += 1
        if self._number % 3 == 0:
            self._work.foreign.submit(partial(self._greet_late, conn))
            return HOLD
        conn.context = Pushed()
        return b"HELLO\n" if self._number % 3 == 1 else [b"HEL", b"", b"LO\n"]

    def part(self, conn: CommConnection, reason: CloseReason) -> bytes:
        """Says why."""
        if "parted" in conn.state:
            self._work.ledger.fault(f"{conn!r} hears the farewell twice")
        conn.state.append("parted")
        return BYE + reason.name.encode() + b"\n"

    def _greet_late(self, conn: CommConnection) -> None:
        conn.push(b"HELLO\n")
        conn.context = Pushed()  # not before: the first push is the greeting


class TalkServer(LineServer):
    """Its protocol greets."""

    greets = True

    def welcome(self, conn: CommConnection) -> None:
        pass


def talk_spec(work: Work) -> ProtocolSpec[bytes, Answer]:
    """The protocol, with words of its own."""
    words = Words(work)
    return replace(LINES, name="talk", message_in=Talk, greeting=words.greet, farewell=words.part)


def talker(work: Work, *, coroutines: bool) -> Callable[[Any], object]:
    """A handler of it."""
    manner = TalkManner()

    def function(task: Any) -> None:
        work.handle(task, *wanted(task), manner)

    async def coroutine(task: Any) -> None:
        await work.handle_in_loop(task, *wanted(task), manner)

    return coroutine if coroutines else function


def talk_server(work: Work, params: dict[str, Any], *, coroutines: bool) -> TalkServer:
    """A server of it, whose handlers are functions or coroutines."""
    handler = talker(work, coroutines=coroutines)
    return TalkServer(talk_spec(work), handler, LINES.params.replace(**params))


# -- its clients -------------------------------------------------------------------------


class TalkDialogue(LineDialogue):
    """Whose greeting, farewell and texts are as the contract says."""

    parts = True

    def __init__(self, sock: socket.socket, abandoned: Callable[[], bool]) -> None:
        super().__init__(sock, abandoned)
        self._text_is_due = False

    def exchange(self, rng: random.Random, kinds: tuple[str, ...]) -> Exchange:
        kind, token = rng.choice(kinds), new_token()
        line = b"%b %b\n" % (kind.encode(), token)
        if self._text_is_due:
            self._text_is_due = False
            # Taken for requests, these would be answered.
            other = new_token()
            return Exchange(kind, token, line + b"now %b\n*now %b%b" % (other, other, END))
        if rng.random() < 0.7:
            return Exchange(kind, token, line)
        self._text_is_due = kind != "raise" and text_follows(token)
        return Exchange(kind, token, b"*" + line)

    def line(self, end: bytes = b"\r\n") -> bytes:
        begun = self._begun
        line = super().line(end)
        if not line.startswith(BYE):
            return line
        self.farewell = line.removeprefix(BYE).decode()
        self._begun = begun
        while True:
            try:
                if self._held:
                    raise WrongAnswer(f"after the farewell came {bytes(self._held)!r:.200}")
                self.fill()
            except Ended as ended:
                raise Ended(f"{self.farewell}, {ended.how}", begun) from None
