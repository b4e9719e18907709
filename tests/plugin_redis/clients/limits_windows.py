"""limits: each of its strategies, which are Lua scripts, plain and with asyncio."""

from __future__ import annotations

import asyncio
import os

from limits import RateLimitItemPerMinute, parse
from limits.aio.strategies import MovingWindowRateLimiter as AsyncMovingWindow
from limits.storage import storage_from_string
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    SlidingWindowCounterRateLimiter,
)


def main(url: str) -> None:
    storage = storage_from_string(url)
    assert storage.check()
    item = RateLimitItemPerMinute(3)
    for strategy in (
        FixedWindowRateLimiter(storage),
        MovingWindowRateLimiter(storage),
        SlidingWindowCounterRateLimiter(storage),
    ):
        name = type(strategy).__name__
        assert [strategy.hit(item, name) for _ in range(5)] == [True] * 3 + [False] * 2, name
        assert not strategy.test(item, name)
        assert strategy.get_window_stats(item, name).remaining == 0
        assert strategy.hit(item, name, "somebody else")
        strategy.clear(item, name)
        assert strategy.hit(item, name, cost=2)
        assert not strategy.hit(item, name, cost=2)
    assert storage.reset()

    async def asynchronous() -> None:
        strategy = AsyncMovingWindow(storage_from_string(f"async+{url}", implementation="redispy"))
        hits = [await strategy.hit(parse("2/minute"), "async") for _ in range(3)]
        assert hits == [True, True, False]

    asyncio.run(asynchronous())


def run() -> None:
    main(os.environ["STORE"])
