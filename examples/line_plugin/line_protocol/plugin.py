"""The plugin: the entry point ``line`` of the group ``protoserve`` names this module."""

from collections.abc import Callable
from typing import Any

from line_protocol import LINE_SPEC
from protoserve import ProtocolSpec, hookimpl

PROTOSERVE_API_VERSION = 1
"""What this was written for: another protoserve lists it, with that reason, unused."""


@hookimpl
def protoserve_register_protocols(register: Callable[[ProtocolSpec[Any, Any]], None]) -> None:
    register(LINE_SPEC)
