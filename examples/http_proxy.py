"""A reverse proxy: streams requests to another server, and its replies back.

Run it with
``UPSTREAM=http://127.0.0.1:9000 protoserve run http examples.http_proxy:process --stream-bodies``;
without the option requests are passed on when they are whole. It needs httpcore, which comes
with httpx, and passes targets and fields on byte for byte. Replies begin when the request was
sent. An upstream that refuses gets the client a 502, before it has sent a body where it
waits for ``100 Continue``; a slow one a 504.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpcore

from protoserve import IncomingStream
from protoserve_http import HttpRequest, WFHttpTask

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:9000")
TIMEOUTS = {"connect": 10.0, "read": 60.0, "write": 60.0}  # of each step, in seconds

logger = logging.getLogger("http_proxy")

# RFC 9110, 7.6.1: these are between neighbours, and not passed on.
HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
}  # fmt: skip
# These are said anew; and an expectation of 100 Continue is met when we read the body.
OURS = {b"host", b"content-length", b"expect"}

CONTROL = re.compile(rb"[\0-\x08\n-\x1f\x7f]")  # what no field may have (RFC 9110, 5.5)

# A pool for each event loop: its connections belong to that.
clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpcore.AsyncConnectionPool] = (
    WeakKeyDictionary()
)

Fields = list[tuple[bytes, bytes]]


def end_to_end(fields: Fields) -> Fields:
    named = {
        token.strip().lower()
        for name, value in fields
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    return [(n, v) for n, v in fields if n.lower() not in HOP_BY_HOP | named]


def for_upstream(req: HttpRequest) -> httpcore.Request:
    """The same request, to the other server."""
    base = httpcore.URL(UPSTREAM)
    path = req.path
    if req.method == "OPTIONS" and re.fullmatch("[^/?]+//[^/?]+", req.target):
        path = "*"  # http://host, without a path (RFC 9112, 3.2.4)
    if path != "*":
        # Made of its parts, a URL stays as it was sent.
        path = base.target.rstrip(b"/").decode() + path + "".join(req.target.partition("?")[1:])
    fields = [(n, v) for n, v in end_to_end(req.raw_headers) if n.lower() not in OURS]
    content = req.body if req.stream is None else req.stream
    if isinstance(content, IncomingStream) and "Transfer-Encoding" in req.headers:
        fields.insert(0, (b"Transfer-Encoding", b"chunked"))
    elif isinstance(content, IncomingStream):
        fields.insert(0, (b"Content-Length", req.headers["Content-Length"].encode()))
    elif "Content-Length" in req.headers or "Transfer-Encoding" in req.headers:
        fields.insert(0, (b"Content-Length", b"%d" % len(content)))
    fields.insert(0, (b"Host", (req.host or urlsplit(UPSTREAM).netloc).encode("latin-1")))
    fields.append((b"Via", f"{req.version} protoserve".encode()))
    return httpcore.Request(
        req.method.encode("latin-1"),
        httpcore.URL(
            scheme=base.scheme, host=base.host, port=base.port, target=path.encode("latin-1")
        ),
        headers=fields,
        content=content,
        extensions={"timeout": TIMEOUTS},
    )


async def ask(task: WFHttpTask, request: httpcore.Request) -> httpcore.Response:
    """The upstream's reply. Cancelled when the client leaves before it comes."""
    loop = asyncio.get_running_loop()
    if loop not in clients:
        # Idle connections end before common servers end them, after 5 seconds.
        clients[loop] = httpcore.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=100, keepalive_expiry=4
        )
    waiting = asyncio.create_task(clients[loop].handle_async_request(request))

    def look(delay: float) -> None:
        # An interim reply is passed over by who waits for the final one (RFC 9110, 15.2), and
        # answered by a reset, which closes the connection, where nobody is left.
        if not waiting.done():
            task.connection.push(b"HTTP/1.1 102 Processing\r\n\r\n")
            loop.call_later(delay, look, 2 * delay)

    call = loop.call_soon_threadsafe
    task.on_close(lambda _: call(waiting.cancel))
    # A client that will send no more has left or waits for its reply. Over TCP only sending
    # something tells; HTTP/1.0 has nothing to send, so that there it counts as gone.
    if task.req.version == "1.0":
        task.on_peer_end(lambda _: call(waiting.cancel))
    else:
        task.on_peer_end(lambda _: call(loop.call_later, 0.1, look, 0.2))
    return await waiting


def refuse(task: WFHttpTask, status: int, text: str) -> None:
    task.resp.status = status
    task.resp.headers["Content-Type"] = "text/plain; charset=utf-8"
    task.resp.write(text + "\n")


async def process(task: WFHttpTask) -> None:
    try:
        upstream = await ask(task, for_upstream(task.req))
    except httpcore.TimeoutException:
        return refuse(task, 504, "the upstream server took too long")
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        logger.warning("%s: %r", UPSTREAM, error)
        return refuse(task, 502, "the upstream server cannot be reached")
    # At the latest when the reply is sent or cannot be, whoever gave it up.
    task.set_callback(lambda _: upstream.aclose())
    reason = upstream.extensions["reason_phrase"]
    fields = end_to_end(upstream.headers)
    if upstream.status < 200 or CONTROL.search(reason + b"".join(v for _, v in fields)):
        logger.warning("%s: a reply that cannot be passed on (%d)", UPSTREAM, upstream.status)
        return refuse(task, 502, "the upstream server's reply is no HTTP")
    task.resp.status = upstream.status
    task.resp.reason = reason.decode("latin-1")
    task.resp.headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in fields]
    if task.req.method == "HEAD" or upstream.status in (204, 304):
        await upstream.aread()  # to the end, where no body follows
        await upstream.aclose()
    else:
        task.resp.body = relay(upstream)
    return None


async def relay(upstream: httpcore.Response) -> AsyncIterator[bytes]:
    async for piece in upstream.aiter_stream():  # as the client takes it
        yield piece
    await upstream.aclose()  # before the client's next request
