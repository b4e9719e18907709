"""What these tests serve: a line in, a line in capitals out, with a greeting and a farewell."""

from __future__ import annotations

from typing import Any

from protoserve import (
    NEED_DATA,
    MessageParser,
    NeedData,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
    WFServerTask,
)


class Lines(MessageParser[bytes]):
    """Lines of up to 1000 bytes."""

    def __init__(self, params: ServerParams) -> None:
        self.held = b""

    def feed(self, data: bytes) -> None:
        self.held += data

    def next_message(self) -> bytes | NeedData:
        line, newline, rest = self.held.partition(b"\n")
        if len(line) > 1000:
            raise ProtocolError("the line is too long", reply=b"TOO LONG\n")
        if not newline:
            return NEED_DATA
        self.held = rest
        return line

    @property
    def partial(self) -> bool:
        return bool(self.held)


class Answer:
    """A reply."""

    def __init__(self) -> None:
        self.data: Any = b""


SHOUT: ProtocolSpec[bytes, Answer] = ProtocolSpec(
    name="shout",
    message_in=Lines,
    message_out=lambda answer: answer.data,
    response=Answer,
    greeting=lambda conn: b"hello\n",
    farewell=lambda conn, reason: f"bye: {reason.name}\n".encode(),
)

Task = WFServerTask[bytes, Answer]


def shout(task: Task) -> None:
    """The handler."""
    task.resp.data = task.req.upper() + b"\n"


async def shout_later(task: Task) -> None:
    """The handler, as a coroutine."""
    shout(task)
