"""channels_redis: both of its layers, with channels and groups."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

PATIENCE = 30


async def receive(layer: Any, channel: str) -> Any:
    return await asyncio.wait_for(layer.receive(channel), PATIENCE)


async def exercise(layer: Any) -> None:
    # To one, that waits already and that does not yet.
    mine = await layer.new_channel()
    waiting = asyncio.ensure_future(receive(layer, mine))
    await asyncio.sleep(0.05)
    await layer.send(mine, {"type": "greeting", "text": "hello"})
    assert (await waiting)["text"] == "hello"
    await layer.send(mine, {"type": "greeting", "bytes": b"\x00\xff"})
    assert (await receive(layer, mine))["bytes"] == b"\x00\xff"

    # To a group, of which one leaves.
    members = [await layer.new_channel() for _ in range(3)]
    for member in members:
        await layer.group_add("room", member)
    await layer.group_send("room", {"type": "said", "number": 1})
    assert [(await receive(layer, member))["number"] for member in members] == [1, 1, 1]
    await layer.group_discard("room", members[0])
    await layer.group_send("room", {"type": "said", "number": 2})
    assert [(await receive(layer, member))["number"] for member in members[1:]] == [2, 2]
    try:
        await asyncio.wait_for(layer.receive(members[0]), 0.2)
    except TimeoutError:
        pass
    else:
        raise AssertionError("it has left")


async def main(url: str) -> None:
    for layer in (RedisChannelLayer(hosts=[url]), RedisPubSubChannelLayer(hosts=[url])):
        await exercise(layer)
        await layer.flush()
        if hasattr(layer, "close_pools"):
            await layer.close_pools()


def run() -> None:
    asyncio.run(main(os.environ["STORE"]))
