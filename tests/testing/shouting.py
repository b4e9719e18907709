"""What these tests serve: a line in, a line in capitals out, with a greeting and a farewell."""

from __future__ import annotations

from typing import Any

from protoserve import ProtocolSpec, WFServerTask
from protoserve.framing import delimited


class Answer:
    """A reply."""

    def __init__(self) -> None:
        self.data: Any = b""


SHOUT: ProtocolSpec[bytes, Answer] = ProtocolSpec(
    name="shout",
    message_in=delimited(b"\n", limit=1001, farewell=b"TOO LONG\n"),
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
