"""A server that speaks HTTP until a client asks for lines: `Upgrade: lines`.

    protoserve run http examples.http_upgrade:process

The line protocol's parser and bytes are small enough to stand here; any protocol will do.
"""

from collections import deque
from dataclasses import dataclass

from protoserve import NEED_DATA, MessageParser, NeedData, ProtocolSpec, ServerParams, WFServerTask
from protoserve_http import WFHttpTask


@dataclass
class Text:
    """A reply."""

    text: str = ""


class Lines(MessageParser[str]):
    """Lines that end with LF."""

    def __init__(self, params: ServerParams) -> None:
        self._lines: deque[str] = deque()
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [line.decode("latin-1") for line in lines]

    def next_message(self) -> str | NeedData:
        return self._lines.popleft() if self._lines else NEED_DATA

    @property
    def partial(self) -> bool:
        return bool(self._rest)


LINES = ProtocolSpec[str, Text](
    name="lines",
    message_in=Lines,
    message_out=lambda reply: reply.text.encode("latin-1") + b"\n",
    response=Text,
    greeting=lambda connection: b"hello\n",
)


def answer(task: WFServerTask[str, Text]) -> None:
    """In the line protocol: the line backwards; `bye` ends."""
    task.resp.text = task.req[::-1]
    if task.req == "bye":
        task.set_keep_alive(0)


def process(task: WFHttpTask) -> None:
    """In HTTP."""
    if task.req.upgrade == "lines":
        task.upgrade(LINES, answer)
    else:
        task.resp.write("this server also speaks lines: send Upgrade: lines\n")
