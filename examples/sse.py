"""Server-sent events: a reply without an end, until the client leaves or the server stops.

Run it with ``protoserve run http examples.sse:process`` and look at it with
``curl -N http://127.0.0.1:8888/``.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from protoserve_http import WFHttpTask


async def events(task: WFHttpTask, interval: float) -> AsyncIterator[str]:
    stopping = asyncio.ensure_future(task.server.until_stopping())
    try:
        number = 0
        while not stopping.done():
            number += 1
            yield f"id: {number}\ndata: {datetime.now():%H:%M:%S}\n\n"
            await asyncio.wait([stopping], timeout=interval)
    finally:  # also when the client has left
        stopping.cancel()


async def process(task: WFHttpTask) -> None:
    task.resp.headers["Content-Type"] = "text/event-stream"
    task.resp.headers["Cache-Control"] = "no-store"
    task.resp.body = events(task, 1.0)
