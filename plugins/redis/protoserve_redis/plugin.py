"""The plugin's hooks; the entry point ``redis`` of the group ``protoserve``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protoserve import ProtocolSpec, hookimpl
from protoserve_redis.server import REDIS_SPEC


@hookimpl
def protoserve_register_protocols(register: Callable[[ProtocolSpec[Any, Any]], None]) -> None:
    """Register Redis' protocol."""
    register(REDIS_SPEC)
