"""Work before the reply, twice: as tasks of the request's series, and as a coroutine.

Run one with ``protoserve run http examples.async_reply:with_tasks`` or
``protoserve run http examples.async_reply:with_coroutine``.
"""

import asyncio
import hashlib

from protoserve import go, timer
from protoserve_http import WFHttpTask


def digest(data: bytes) -> str:
    return hashlib.scrypt(data, salt=b"salt", n=2**12, r=8, p=1).hex()


def with_tasks(task: WFHttpTask) -> None:
    # The reply goes out when the series is empty, not when this function returns.
    task.series.push_back(timer(0.1))
    task.series.push_back(
        go(digest, task.req.body, callback=lambda done: task.resp.write(done.result))
    )


async def with_coroutine(task: WFHttpTask) -> None:
    await asyncio.sleep(0.1)
    task.resp.write(await go(digest, task.req.body))
