"""The server of a table, and a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kv_server import real
from redis_tables import table

from protoserve_redis import CommandTable, WFRedisServer


@pytest.fixture
def commands() -> CommandTable:
    """What `server` serves: the small table, where a module has no other."""
    return table()


@pytest.fixture
def server(commands: CommandTable) -> Iterator[WFRedisServer]:
    with WFRedisServer(commands).start("127.0.0.1", 0) as server:
        yield server


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    with real() as port:
        yield port
