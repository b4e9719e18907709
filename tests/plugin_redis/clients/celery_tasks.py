"""Celery: a worker of its own process, results, a group, a chord, a retry, broadcasts."""

from __future__ import annotations

import os
import subprocess
import sys

from celery import Celery, chord, group

app = Celery("celery_tasks", broker=os.environ["STORE"], backend=os.environ["STORE"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=100,
    task_default_queue="work",
)


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="again", bind=True, max_retries=2)
def again(self: object) -> int:
    if self.request.retries < 1:  # type: ignore[attr-defined]
        raise self.retry(countdown=0)  # type: ignore[attr-defined]
    return int(self.request.retries)  # type: ignore[attr-defined]


@app.task(name="fail")
def fail() -> None:
    raise ValueError("as asked for")


def run() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "--quiet", "-A", "clients.celery_tasks", "worker",
         "--pool", "solo", "--loglevel", "CRITICAL"],
    )  # fmt: skip
    try:
        assert add.delay(20, 22).get(timeout=60) == 42
        assert group(add.s(i, i) for i in range(5))().get(timeout=30) == [0, 2, 4, 6, 8]
        assert chord((add.s(i, i) for i in range(5)), total.s())().get(timeout=30) == 20
        assert again.delay().get(timeout=30) == 1
        assert isinstance(fail.delay().get(timeout=30, propagate=False), ValueError)
        assert add.apply_async((1, 1), countdown=0.2, priority=3).get(timeout=30) == 2
        (answer,) = app.control.ping(timeout=30, limit=1)
        assert next(iter(answer.values())) == {"ok": "pong"}
        app.control.shutdown()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        app.close()
