"""HTTP whose requests are handled while their bodies arrive."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from select import select
from typing import Any
from zlib import crc32

from dialogues import Ended, Exchange, HttpDialogue, WrongAnswer, new_token
from servers import HttpManner
from work import STREAMS, Work

from protoserve import go
from protoserve_http import HTTP_SPEC, WFHttpServer

HOWS = ("whole", "late", "echo", "part", "none")
"""How much of the body a handler reads: all; all, on a compute thread; all, and the reply is
made of it meanwhile; a piece; nothing."""

EARLY = ("part", "none")
"""May be answered before the body has come, and then the connection ends."""


# -- the server --------------------------------------------------------------------------


def _sum(stream: Any) -> bytes:
    return _token_of(b"".join(stream or ()))


def _token_of(body: bytes) -> bytes:
    return b".%d.%d" % (len(body), crc32(body))


def _echo(stream: Any) -> Iterator[bytes]:
    yield from stream or ()


async def _echo_in_loop(stream: Any) -> AsyncIterator[bytes]:
    if stream is not None:
        async for piece in stream:
            yield piece


def upload_server(work: Work, params: dict[str, Any], *, coroutines: bool) -> WFHttpServer:
    """``POST /how/kind/token``."""
    manner = HttpManner()

    def function(task: Any) -> None:
        _, how, kind, name = task.req.path.split("/")
        stream, token = task.req.stream, name.encode()
        match how:
            case "late":
                call = go(_sum, stream, callback=lambda t: manner.give(task, token + t.result))
                task.series.push_back(call)
                return
            case "echo":
                manner.stream(task, _echo(stream))
                return
            case "whole":
                token += _sum(stream)
            case "part":
                next(iter(stream or ()), b"")
        work.handle(task, kind, token, manner)

    async def coroutine(task: Any) -> None:
        _, how, kind, name = task.req.path.split("/")
        stream, token = task.req.stream, name.encode()
        match how:
            case "late":
                manner.give(task, token + await go(_sum, stream))
                return
            case "echo":
                manner.stream(task, _echo_in_loop(stream))
                return
            case "whole":
                token += _token_of(await stream.aread() if stream is not None else b"")
            case "part":
                if stream is not None:
                    async for _ in stream:
                        break
        await work.handle_in_loop(task, kind, token, manner)

    all_params = HTTP_SPEC.params.replace(stream_bodies=True, **params)
    return WFHttpServer(coroutine if coroutines else function, all_params)


# -- its clients -------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload(Exchange):
    """A request with a body; ``withheld``: until the server asks for it."""

    how: str
    body: bytes
    withheld: bytes = b""

    def __str__(self) -> str:
        return f"{self.how}:{len(self.body)}:{self.kind}"


class UploadDialogue(HttpDialogue):
    """Whose requests have bodies of all sizes."""

    def exchange(self, rng: random.Random, kinds: tuple[str, ...]) -> Exchange:
        how, kind, name = rng.choice(HOWS), rng.choice(kinds), new_token()
        if how in ("late", "echo"):
            kind = "now"
        body = (name * 20_000)[: rng.choice((0, 1, 10, 1000, 60_000))]
        head = f"POST /{how}/{kind}/{name.decode()} HTTP/1.1\r\nHost: a\r\n"
        if rng.random() < 0.5:
            at = rng.randrange(len(body) + 1)
            wire = b"".join(
                b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (body[:at], body[at:]) if chunk
            )
            wire += b"0\r\n\r\n"
            head += "Transfer-Encoding: chunked\r\n"
        else:
            wire = body
            head += f"Content-Length: {len(body)}\r\n"
        token = name + _token_of(body) if how in ("whole", "late") else name
        if body and rng.random() < 0.1:
            head += "Expect: 100-continue\r\n\r\n"
            return Upload(kind, token, head.encode(), how, body, wire)
        return Upload(kind, token, head.encode() + b"\r\n" + wire, how, body)

    def is_last(self, exchange: Exchange) -> bool:
        assert isinstance(exchange, Upload)
        return super().is_last(exchange) or bool(exchange.withheld)

    def send(self, data: bytes) -> None:
        """Takes in what comes meanwhile where nothing can be sent, as the server may wait for
        that."""
        while data:
            if not select((), (self.sock,), (), 0.05)[1]:
                if select((self.sock,), (), (), 0)[0]:
                    try:
                        self.fill()
                    except Ended:
                        return  # found again where it is read
                continue
            self.sock.settimeout(0)
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                continue
            except ConnectionError:
                return

    def _answer(self, exchange: Exchange) -> None:
        assert isinstance(exchange, Upload)
        status, fields = self._head()
        if status == 100:
            if not exchange.withheld:
                raise WrongAnswer("100 Continue, which nobody waits for")
            self._begun = False
            self.send(exchange.withheld)
            status, fields = self._head()
        if exchange.withheld and self.ended and status == 400:
            self.may_end = True  # we have not sent it
            raise Ended("400", False)
        self._judge(exchange, status, fields)

    def _judge(self, exchange: Upload, status: int, fields: dict[bytes, bytes]) -> None:
        if exchange.how == "echo" and status == 200:
            self.expect(self._body(fields), exchange.body, "body")
        else:
            fields = self.judge(exchange, status, fields)
        # Who has begun to read the body might have come to its end: the head did not say it.
        self.may_end = exchange.how == "part" and exchange.kind in STREAMS
        if exchange.how in EARLY and fields.get(b"connection") == b"close":
            self.may_end = True
            self._begun = False
            while True:
                self.fill()
                came = bytes(self._held)
                raise WrongAnswer(f"after the last, of {exchange.how!r}, came {came!r:.300}")

    def _unasked(self) -> None:
        unfinished = self.unfinished
        if not isinstance(unfinished, Upload) or unfinished.how not in ("echo", *EARLY):
            super()._unasked()
            return
        self.may_end = True
        status, fields = self._head()
        if status == 100:
            return
        if status in (400, 408):
            self._body(fields)
        elif unfinished.how == "echo":
            body = self._body(fields)
            raise WrongAnswer(f"{len(body)} bytes are the whole body, of which a part was sent")
        else:
            self._judge(unfinished, status, fields)
        self._begun = False
