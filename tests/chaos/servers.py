"""Servers of the plain contract: HTTP, with functions and with coroutines, Redis, and lines."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from work import Work, answer

from protoserve import (
    NEED_DATA,
    CommConnection,
    MessageParser,
    NeedData,
    ProtocolSpec,
    ServerParams,
    WFServer,
)
from protoserve_http import HTTP_SPEC, WFHttpServer
from protoserve_redis import REDIS_SPEC, CommandTable, WFRedisServer

CHANNEL = "news"
CHUNK = 65_536


def chunks(data: bytes) -> list[bytes]:
    return [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]


# -- HTTP --------------------------------------------------------------------------------


class HttpManner:
    """``GET /kind/token``, and the body is the answer."""

    def give(self, task: Any, data: bytes) -> None:
        task.resp.body = data

    def stream(self, task: Any, data: Iterator[bytes] | AsyncIterator[bytes]) -> None:
        task.resp.body = data

    def interim(self, token: bytes) -> bytes:
        return b"HTTP/1.1 103 Early Hints\r\nX-Token: %b\r\n\r\n" % token

    def flood(self, task: Any, token: bytes) -> list[bytes]:
        body = answer("flood", token)
        task.noreply()
        return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), *chunks(body)]


def http_server(work: Work, params: dict[str, Any], *, coroutines: bool) -> WFHttpServer:
    """A server whose handlers are functions or coroutines."""
    manner = HttpManner()

    def function(task: Any) -> None:
        _, kind, token = task.req.path.split("/")
        work.handle(task, kind, (token.encode() + task.req.body), manner)

    async def coroutine(task: Any) -> None:
        _, kind, token = task.req.path.split("/")
        await work.handle_in_loop(task, kind, (token.encode() + task.req.body), manner)

    return WFHttpServer(coroutine if coroutines else function, HTTP_SPEC.params.replace(**params))


# -- lines -------------------------------------------------------------------------------


class Lines(MessageParser[bytes]):
    """A line in; the greeting, pushed lines and answers out."""

    def __init__(self, params: ServerParams) -> None:
        self._held = b""

    def feed(self, data: bytes) -> None:
        self._held += data

    def next_message(self) -> bytes | NeedData:
        line, newline, rest = self._held.partition(b"\n")
        if not newline:
            return NEED_DATA
        self._held = rest
        return line

    @property
    def partial(self) -> bool:
        return bool(self._held)


class Answer:
    """The bytes of one answer, or an iterator of them."""

    data: Any = b""


def _encode(answer: Answer) -> Any:
    if isinstance(answer.data, bytes):
        return [answer.data, b"\n"]
    if isinstance(answer.data, AsyncIterator):
        return _with_end(answer.data)
    return itertools.chain(answer.data, [b"\n"])


async def _with_end(data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in data:
        yield piece
    yield b"\n"


def _error(request: object, error: BaseException) -> Answer:
    answer = Answer()
    answer.data = b"ERR"
    return answer


LINES = ProtocolSpec(
    name="lines", message_in=Lines, message_out=_encode, response=Answer, error_response=_error
)


class LineManner:
    """``kind token`` in a line; a line is the answer."""

    def give(self, task: Any, data: bytes) -> None:
        task.resp.data = data

    def stream(self, task: Any, data: Iterator[bytes] | AsyncIterator[bytes]) -> None:
        task.resp.data = data

    def interim(self, token: bytes) -> bytes:
        return b"~%b\n" % token

    def flood(self, task: Any, token: bytes) -> list[bytes]:
        task.set_keep_alive(0)
        task.resp.data = token
        return [b"~%b\n" % chunk for chunk in chunks(answer("flood", token))]


class Pushed:
    """How many lines were pushed on a connection: the next one's number."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.number = 0


class LineServer(WFServer[bytes, Answer]):
    """Greets in ``new_connection``; refuses every fourth connection when it is told to."""

    greets = True
    refuses = False
    _accepted = 0

    def new_connection(self, communicator: Any, transport: Any, peername: Any) -> CommConnection:
        conn = super().new_connection(communicator, transport, peername)
        self._accepted += 1
        if self.refuses and self._accepted % 4 == 0:
            conn.close()
        else:
            self.welcome(conn)
        return conn

    def welcome(self, conn: CommConnection) -> None:
        """What it says to one that it takes."""
        conn.context = Pushed()
        if self.greets:
            conn.push(b"HELLO\n")

    def push_to_all(self) -> None:
        """The next numbered line to every connection."""
        for conn in self.connections():
            pushed = conn.context
            if pushed is not None:
                with pushed.guard:
                    if conn.push(b"!%d\n" % pushed.number):
                        pushed.number += 1


def line_server(work: Work, params: dict[str, Any]) -> LineServer:
    """A server of the line protocol."""
    manner = LineManner()

    def process(task: Any) -> None:
        kind, token = task.req.split(b" ")
        work.handle(task, kind.decode(), token, manner)

    return LineServer(LINES, process, LINES.params.replace(**params))


# -- Redis -------------------------------------------------------------------------------


class RedisManner:
    """``RUN kind token``; a bulk string is the answer."""

    def give(self, task: Any, data: bytes) -> None:
        task.resp.value = data

    def stream(self, task: Any, data: Iterator[bytes] | AsyncIterator[bytes]) -> None:
        raise NotImplementedError

    def interim(self, token: bytes) -> bytes:
        raise NotImplementedError

    def flood(self, task: Any, token: bytes) -> list[bytes]:
        raise NotImplementedError


def redis_server(work: Work, params: dict[str, Any]) -> WFRedisServer:
    """A server with the commands RUN and, as a coroutine, ARUN."""
    commands = CommandTable(atomic=False)
    manner = RedisManner()

    @commands.command("RUN", arity=3)
    def run(task: Any, kind: bytes, token: bytes) -> bytes:
        work.handle(task, kind.decode(), token, manner)
        return answer(kind.decode(), token)

    @commands.command("ARUN", arity=3)
    async def arun(task: Any, kind: bytes, token: bytes) -> bytes:
        await work.handle_in_loop(task, kind.decode(), token, manner)
        return answer(kind.decode(), token)

    return WFRedisServer(commands, REDIS_SPEC.params.replace(**params))
