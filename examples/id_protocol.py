"""Calls with numbers, answered as they finish: as Kafka, or a database's wire protocol, has it.

A call is a frame: its length, a number that the client chose, how many milliseconds it takes,
and content; an answer is one, too: length, number, status, content. Eight calls of a
connection are served at the same time.

Run it with ``python examples/id_protocol.py``.
"""

import asyncio
import struct
from dataclasses import dataclass
from typing import NamedTuple

from protoserve import (
    NEED_DATA,
    MessageParser,
    NeedData,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
    WFServer,
    WFServerTask,
)

LENGTH = struct.Struct(">I")
CALL = struct.Struct(">IH")
ANSWER = struct.Struct(">IIB")


class Call(NamedTuple):
    number: int
    milliseconds: int
    content: bytes


@dataclass
class Answer:
    content: bytes = b""
    status: int = 0


class CallParser(MessageParser[Call]):
    def __init__(self, params: ServerParams) -> None:
        self._limit = params.request_size_limit
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        self._held += data

    def next_message(self) -> Call | NeedData:
        if len(self._held) < LENGTH.size:
            return NEED_DATA
        (length,) = LENGTH.unpack_from(self._held)
        end = LENGTH.size + length
        if length < CALL.size or (self._limit is not None and end > self._limit):
            raise ProtocolError(f"a call of {length} bytes")
        if len(self._held) < end:
            return NEED_DATA
        number, milliseconds = CALL.unpack_from(self._held, LENGTH.size)
        call = Call(number, milliseconds, bytes(self._held[LENGTH.size + CALL.size : end]))
        del self._held[:end]
        return call

    @property
    def partial(self) -> bool:
        return bool(self._held)


class CallTask(WFServerTask[Call, Answer]):
    """A call; its answer bears its number."""

    def message_out(self) -> list[bytes]:
        content = self.resp.content
        length = ANSWER.size - LENGTH.size + len(content)
        return [ANSWER.pack(length, self.req.number, self.resp.status), content]


ID_SPEC = ProtocolSpec[Call, Answer, CallTask](
    name="id",
    message_in=CallParser,
    message_out=lambda answer: answer.content,  # CallTask's is asked
    response=Answer,
    task=CallTask,
    error_response=lambda call, error: Answer(str(error).encode(), status=1),
    in_flight=8,
    params=ServerParams(request_size_limit=1024 * 1024),
)


async def process(task: CallTask) -> None:
    await asyncio.sleep(task.req.milliseconds / 1000)
    if not task.req.content:
        raise ValueError("nothing to turn round")
    task.resp.content = task.req.content[::-1]


def main() -> None:
    with WFServer(ID_SPEC, process).start("127.0.0.1", 7000) as server:
        print(f"listening on {server.url}", flush=True)
        server.wait_for_signal()


if __name__ == "__main__":
    main()
