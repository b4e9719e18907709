"""rq: a worker that waits for jobs, results, a failure, a dependency, a schedule, commands."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import redis
from rq import Queue, SimpleWorker, Worker
from rq.command import send_shutdown_command
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, ScheduledJobRegistry


def add(a: int, b: int) -> int:
    return a + b


def fail() -> None:
    raise ValueError("as asked for")


def main(url: str) -> None:
    connection = redis.Redis.from_url(url)
    queue = Queue("work", connection=connection)

    # In bursts: what is there is done.
    jobs = [queue.enqueue("clients.rq_jobs.add", i, 1, result_ttl=100) for i in range(10)]
    after = queue.enqueue("clients.rq_jobs.add", 1, 1, depends_on=jobs[-1])
    bad = queue.enqueue("clients.rq_jobs.fail")
    later = queue.enqueue_in(timedelta(hours=1), "clients.rq_jobs.add", 5, 5)
    assert after.get_status() is JobStatus.DEFERRED
    assert queue.count == 11
    worker = SimpleWorker([queue], connection=connection)
    assert worker.work(burst=True, logging_level="CRITICAL")
    assert [job.return_value() for job in jobs] == [i + 1 for i in range(10)]
    assert after.return_value() == 2
    assert "as asked for" in bad.latest_result().exc_string
    assert bad.id in FailedJobRegistry(queue=queue)
    assert jobs[0].id in FinishedJobRegistry(queue=queue)
    assert later.id in ScheduledJobRegistry(queue=queue)
    assert Job.fetch(jobs[3].id, connection=connection).get_status() is JobStatus.FINISHED

    # A worker of its own process that waits for the next one, until it is told to end.
    process = subprocess.Popen(
        [sys.executable, "-m", "rq.cli", "worker", "work", "--url", url, "--quiet"]
    )
    try:
        waited = queue.enqueue("clients.rq_jobs.add", 20, 22)
        result = waited.latest_result(timeout=30)
        assert result is not None
        assert result.return_value == 42
        (running,) = Worker.all(connection=connection)
        send_shutdown_command(connection, running.name)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def run() -> None:
    main(os.environ["STORE"])
