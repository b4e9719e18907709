"""Server-sent events: a reply without an end, until the client leaves.

Run it with ``protoserve run http examples.sse:process`` and look at it with
``curl -N http://127.0.0.1:8888/``.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from protoserve_http import WFHttpTask


async def events(interval: float) -> AsyncIterator[str]:
    number = 0
    while True:  # abandoned, and so ended, when the client leaves
        number += 1
        yield f"id: {number}\ndata: {datetime.now():%H:%M:%S}\n\n"
        await asyncio.sleep(interval)


async def process(task: WFHttpTask) -> None:
    task.resp.headers["Content-Type"] = "text/event-stream"
    task.resp.headers["Cache-Control"] = "no-store"
    task.resp.body = events(1.0)
