"""The servers of a run: HTTP, with functions and with coroutines, Redis, and lines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
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
    WFServerBase,
)
from protoserve_http import HTTP_SPEC, WFHttpServer
from protoserve_redis import REDIS_SPEC, CommandTable, WFRedisServer

CHANNEL = "news"
CHUNK = 65_536


def _chunks(data: bytes) -> list[bytes]:
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
        return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), *_chunks(body)]


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
    return itertools.chain(answer.data, [b"\n"])


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
        return [b"~%b\n" % chunk for chunk in _chunks(answer("flood", token))]


class _Pushed:
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
            return conn
        conn.context = _Pushed()
        if self.greets:
            conn.push(b"HELLO\n")
        return conn

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


# -- all of them -------------------------------------------------------------------------

NAMES = ("http", "async", "loop", "lines", "redis")
"""``async`` has coroutines in a loop of the engine's, ``loop`` in one of the user's."""


class Served:
    """One server of a run, and what pushes to its clients."""

    def __init__(self, name: str, work: Work, params: dict[str, Any]) -> None:
        self.name = name
        self.server: WFServerBase
        if name == "lines":
            self.server = line_server(work, params)
        elif name == "redis":
            self.server = redis_server(work, params)
        else:
            self.server = http_server(work, params, coroutines=name != "http")
        self.address: Any = None
        self._pusher: threading.Thread | None = None
        self._quiet = threading.Event()
        self._ready = threading.Event()
        self._leave: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._cut = 0
        self._adopts = False
        self._joining = threading.Lock()

    def start(self, *, adopts: bool) -> None:
        """Listen on a free port; ``adopts``: on a socket of ours, whose connections have
        little room for what is sent."""
        self._adopts = adopts
        if self.name == "loop":
            self._ready.clear()
            self._thread = threading.Thread(target=asyncio.run, args=(self._main(),), name="loop")
            self._thread.start()
            self._ready.wait()
        else:
            self._listen()
        self.address = self.server.address
        if self.name in ("lines", "redis"):
            self._quiet.clear()
            self._pusher = threading.Thread(target=self._push, name="pusher")
            self._pusher.start()

    def _listen(self) -> None:
        if not self._adopts:
            self.server.start("127.0.0.1", 0)
            return
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            sock.bind(("127.0.0.1", 0))
            sock.listen(100)
            self.server.serve(sock)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        self._listen()
        self._ready.set()
        await self._leave.wait()
        self._cut = await self.server.aclose()

    def _push(self) -> None:
        number = 0
        while not self._quiet.is_set():
            if isinstance(self.server, LineServer):
                self.server.push_to_all()
            else:
                assert isinstance(self.server, WFRedisServer)
                table: Any = self.server.process
                table.publish(CHANNEL, b"%d" % number)
                number += 1
            time.sleep(0.002)

    def stop(self) -> int:
        """Stop it, and what pushes; how much had to be cut. Any thread; a loop's from one."""
        if self._thread is None:
            cut = self.server.stop()
        else:
            assert self._loop is not None
            assert self._leave is not None
            self._loop.call_soon_threadsafe(self._leave.set)
            self._thread.join()
            self._thread = self._loop = self._leave = None
            cut = self._cut
        with self._joining:  # Thread.join() is not made for two callers at once
            self._quiet.set()
            if self._pusher is not None:
                self._pusher.join()
                self._pusher = None
        return cut

    def ended(self) -> bool:
        """Whether it has ended, although nobody asked for it."""
        with contextlib.suppress(Exception):
            return self.server.wait_finish(0)
        return False
