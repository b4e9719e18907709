"""A reverse proxy: passes requests to another server and streams its replies back.

Run it with ``UPSTREAM=http://127.0.0.1:9000 protoserve run http examples.http_proxy:process``;
it needs httpx. An upstream that refuses gets the client a 502, a slow one a 504.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

import httpx

from protoserve_http import WFHttpTask

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:9000")

# RFC 9110, 7.6.1: these are between neighbours, and not passed on.
HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip

# A client for each event loop: its connections belong to that.
clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()


def end_to_end(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    named = {
        token.strip().lower()
        for name, value in fields
        if name.lower() == "connection"
        for token in value.split(",")
    }
    return [(n, v) for n, v in fields if n.lower() not in HOP_BY_HOP | named]


async def process(task: WFHttpTask) -> None:
    loop = asyncio.get_running_loop()
    if loop not in clients:
        clients[loop] = httpx.AsyncClient(timeout=10)
    fields = [f for f in end_to_end([*task.req.headers.items()]) if f[0].lower() != "host"]
    fields += [("Host", task.req.host), ("Via", f"{task.req.version} protoserve")]
    request = httpx.Request(
        task.req.method,
        UPSTREAM + (task.req.path + "?" + task.req.query if task.req.query else task.req.path),
        headers=fields,
        content=task.req.body,
    )
    try:
        upstream = await clients[loop].send(request, stream=True)
    except httpx.TimeoutException:
        task.resp.status = 504
        task.resp.write("the upstream server took too long\n")
        return
    except httpx.InvalidURL:
        task.resp.status = 400
        return
    except httpx.TransportError as error:
        task.resp.status = 502
        task.resp.write(f"the upstream server refuses: {error}\n")
        return
    if task.closed:
        await upstream.aclose()
        return
    task.resp.status = upstream.status_code
    task.resp.headers = end_to_end([*upstream.headers.multi_items()])
    if task.req.method == "HEAD" or upstream.status_code in (204, 205, 304):
        await upstream.aclose()  # no body follows
        return
    task.resp.body = relay(upstream)


async def relay(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in upstream.aiter_raw():  # as the socket takes it
            yield piece
    finally:
        await upstream.aclose()
