"""A queue of jobs: workers wait for one, and none is lost to a worker that leaves.

Run it with ``protoserve run redis examples.redis_jobs:commands --bind 127.0.0.1:6380``, then
``redis-cli -p 6380 JOB.TAKE mails 0`` in one terminal, ``JOB.PUT mails hello`` in another.
"""

import asyncio
from collections import defaultdict

from protoserve import TaskState
from protoserve_redis import CommandTable, WFRedisTask, session_of, timeout

commands = CommandTable()
queues: defaultdict[bytes, asyncio.Queue[bytes]] = defaultdict(asyncio.Queue)


@commands.command("JOB.PUT", flags=("write",), keys=(1, 1, 1))
async def put(task: WFRedisTask, queue: bytes, job: bytes) -> int:
    """How many jobs wait now."""
    queues[queue].put_nowait(job)
    return queues[queue].qsize()


@commands.command("JOB.TAKE", flags=("write", "blocking"), keys=(1, 1, 1))
async def take(task: WFRedisTask, queue: bytes, seconds: bytes) -> bytes | None:
    """The next job, or null when the time is over.

    The flag ``blocking`` has this cancelled, in ``get()``, when the worker leaves or CLIENT
    UNBLOCK says so: the job stays. A job whose reply did not get out any more goes back.
    """
    patience = timeout(seconds)
    try:
        if session_of(task).executing:  # nobody waits within a transaction
            job = queues[queue].get_nowait()
        else:
            async with asyncio.timeout(patience or None):
                job = await queues[queue].get()
    except (TimeoutError, asyncio.QueueEmpty):
        return None

    def replied(task: WFRedisTask) -> None:
        if task.state is not TaskState.SUCCESS:
            queues[queue].put_nowait(job)

    task.set_callback(replied)
    return job
