"""Lines that are answered as they finish: several of a connection are in flight."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from dialogues import Exchange, LineDialogue, WrongAnswer
from servers import LINES, Answer, LineManner, LineServer, chunks
from work import Work, answer

from protoserve import WFServerTask

IN_FLIGHT = 4


# -- the server --------------------------------------------------------------------------


class CallTask(WFServerTask[bytes, Answer]):
    """``kind token`` in a line; the answer begins with the token."""

    def message_out(self) -> Any:
        start, data = self.req.partition(b" ")[2] + b" ", self.resp.data
        if isinstance(data, bytes):
            return [start, data, b"\n"]
        if isinstance(data, AsyncIterator):
            return _framed(start, data)
        return itertools.chain([start], data, [b"\n"])


async def _framed(start: bytes, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for piece in data:
        yield piece
    yield b"\n"


class CallManner(LineManner):
    """Others may come between: each line says whose it is."""

    def interim(self, token: bytes) -> bytes:
        return b"~%b %b\n" % (token, token)

    def flood(self, task: Any, token: bytes) -> list[bytes]:
        task.set_keep_alive(0)
        task.resp.data = token
        return [b"~%b %b\n" % (token, chunk) for chunk in chunks(answer("flood", token))]


def call_server(work: Work, params: dict[str, Any], *, coroutines: bool) -> LineServer:
    """A server whose handlers are functions or coroutines."""
    manner = CallManner()

    def function(task: Any) -> None:
        kind, token = task.req.split(b" ")
        work.handle(task, kind.decode(), token, manner)

    async def coroutine(task: Any) -> None:
        kind, token = task.req.split(b" ")
        await work.handle_in_loop(task, kind.decode(), token, manner)

    spec = replace(LINES, name="calls", task=CallTask, in_flight=IN_FLIGHT)
    return LineServer(spec, coroutine if coroutines else function, LINES.params.replace(**params))


# -- its clients -------------------------------------------------------------------------


class CallDialogue(LineDialogue):
    """Finds out whose answer it is."""

    shares = True

    def __init__(self, sock: socket.socket, abandoned: Callable[[], bool]) -> None:
        super().__init__(sock, abandoned)
        self._interim: dict[bytes, bytes] = {}

    def _next(self, asked: Sequence[Exchange]) -> Exchange:
        while True:
            line = self.line(b"\n")
            if self._is_pushed(line):
                continue
            token, _, text = line.removeprefix(b"~").partition(b" ")
            whose = [exchange for exchange in asked if exchange.token == token]
            if not whose:
                raise WrongAnswer(f"{line!r:.200}, which is no answer to what waits for one")
            if not line.startswith(b"~"):
                break
            self._interim[token] = self._interim.get(token, b"") + text
            self._begun = False  # others may follow, and what ends them
        exchange = whose[0]
        if asked.index(exchange) >= IN_FLIGHT:
            raise WrongAnswer(f"{exchange.kind!r} is answered before {IN_FLIGHT} others")
        self.judge(exchange, text, self._interim.pop(token, b""))
        return exchange
