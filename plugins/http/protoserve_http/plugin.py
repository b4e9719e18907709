"""The plugin's hooks; the entry point ``http`` of the group ``protoserve``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protoserve import ProtocolSpec, hookimpl
from protoserve_http.server import HTTP_SPEC


@hookimpl
def protoserve_register_protocols(register: Callable[[ProtocolSpec[Any, Any]], None]) -> None:
    """Register HTTP."""
    register(HTTP_SPEC)
