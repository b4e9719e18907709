"""The workloads as ASGI applications, for uvicorn."""

from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.peers.page import render

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def reply(send: Send, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    line = f"{scope['method']} {scope['raw_path'].decode()} HTTP/{scope['http_version']}"
    fields = b"\n".join(map(b": ".join, scope["headers"])).decode("latin-1")
    page = render(line, [fields])
    await reply(send, b"text/html; charset=utf-8", page.encode())


async def plaintext(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await reply(send, b"text/plain", b"Hello, World!")


async def post(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message["body"])
        more = message["more_body"]
    await reply(send, b"text/plain", b"".join(parts))
