"""huey: a consumer of its own process, results, a retry, a schedule, a lock, priorities."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from huey import PriorityRedisHuey, RedisHuey
from huey.exceptions import TaskException

huey = RedisHuey("store", url=os.environ["STORE"])
urgent = PriorityRedisHuey("urgent", url=os.environ["STORE"])


@huey.task()
def add(a: int, b: int) -> int:
    return a + b


@huey.task(retries=2)
@huey.lock_task("counted")
def third_time() -> int:
    tries = huey.storage.conn.incr("tries")
    if tries < 3:
        raise ValueError("not yet")
    return int(tries)


@huey.task()
def fail() -> None:
    raise ValueError("as asked for")


@urgent.task()
def name(text: str) -> str:
    return text


def at_last(result: Any) -> Any:
    """What a task that is tried again ends with: between two tries it is a failure."""
    end = time.monotonic() + 30
    while True:
        try:
            return result.get(blocking=True, timeout=30)
        except TaskException:
            if time.monotonic() > end:
                raise
            result.reset()


def run() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "huey.bin.huey_consumer", "clients.huey_tasks.huey", "-w", "2",
         "-d", "0.01", "-q"],
    )  # fmt: skip
    try:
        assert add(20, 22).get(blocking=True, timeout=60) == 42
        assert [r.get(blocking=True, timeout=30) for r in map(add, range(5), range(5))] == [
            *range(0, 10, 2)
        ]
        assert at_last(third_time()) == 3
        assert add.schedule((1, 1), delay=0.1)(blocking=True, timeout=30) == 2
        result = fail()
        try:
            result.get(blocking=True, timeout=30)
        except TaskException:
            pass
        else:
            raise AssertionError("a task that fails says so")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    for priority in (1, 9, 5):
        name(f"{priority}", priority=priority)
    assert [urgent.execute(urgent.dequeue()) for _ in range(3)] == ["9", "5", "1"]
