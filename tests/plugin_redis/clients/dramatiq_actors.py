"""dramatiq: a worker with Lua in its broker, results, a retry, a delay, a rate limiter."""

from __future__ import annotations

import os

import dramatiq
from dramatiq import Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.rate_limits import ConcurrentRateLimiter, WindowRateLimiter
from dramatiq.rate_limits.backends import RedisBackend as LimitsBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

url = os.environ["STORE"]
broker = RedisBroker(url=url, namespace="work")
broker.add_middleware(Results(backend=RedisBackend(url=url)))
dramatiq.set_broker(broker)
tries: list[int] = []


@dramatiq.actor(store_results=True)
def add(a: int, b: int) -> int:
    return a + b


@dramatiq.actor(store_results=True, max_retries=2, min_backoff=1, max_backoff=2)
def second_time() -> int:
    tries.append(1)
    if len(tries) < 2:
        raise ValueError("not yet")
    return len(tries)


def run() -> None:
    worker = Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        messages = [add.send(i, 1) for i in range(20)]
        assert [m.get_result(block=True, timeout=30_000) for m in messages] == [*range(1, 21)]
        late = add.send_with_options(args=(1, 1), delay=50)
        assert late.get_result(block=True, timeout=30_000) == 2
        assert second_time.send().get_result(block=True, timeout=30_000) == 2
        broker.join("default", timeout=30_000)
        worker.join()
    finally:
        worker.stop()
        broker.close()

    backend = LimitsBackend(url=url)
    with ConcurrentRateLimiter(backend, "one", limit=1).acquire() as acquired:
        assert acquired
        with ConcurrentRateLimiter(backend, "one", limit=1).acquire(
            raise_on_failure=False
        ) as second:
            assert not second
    window = WindowRateLimiter(backend, "window", limit=3, window=60)
    allowed = []
    for _ in range(5):
        with window.acquire(raise_on_failure=False) as acquired:
            allowed.append(acquired)
    assert allowed == [True, True, True, False, False]
