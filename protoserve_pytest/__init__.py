"""The fixtures of ``protoserve.testing`` for pytest, which finds them where protoserve is
installed: see docs/testing.md.

A package of its own, since pytest imports it in every test run, of projects that do not use it
as well, and before coverage is measured: protoserve is imported by the fixtures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from protoserve.protocol import ProtocolSpec
    from protoserve.testing import LiveServer, ManualClock, MemoryServer


@pytest.fixture
def protoserve_no_leaks() -> Iterator[None]:
    """Fails the test if it leaves a thread, a socket, a file or a running server."""
    from protoserve.testing import no_leaks

    with no_leaks():
        yield


@pytest.fixture
def protoserve_clock() -> ManualClock:
    """The time of all servers that ``protoserve_memory`` makes in this test."""
    from protoserve.testing import ManualClock

    return ManualClock()


@pytest.fixture
def protoserve_memory(
    protoserve_no_leaks: None, protoserve_clock: ManualClock
) -> Iterator[Callable[..., MemoryServer[Any, Any]]]:
    """``protoserve_memory(spec, process, **params)`` gives a server in memory that is stopped
    when the test has ended; see ``protoserve.testing.memory_server``."""
    from protoserve.testing import memory_server

    with contextlib.ExitStack() as servers:

        def serve(
            spec: ProtocolSpec[Any, Any], process: Callable[[Any], object], **params: Any
        ) -> MemoryServer[Any, Any]:
            return servers.enter_context(
                memory_server(spec, process, clock=protoserve_clock, **params)
            )

        yield serve


@pytest.fixture
def protoserve_live(protoserve_no_leaks: None) -> Iterator[Callable[..., LiveServer[Any, Any]]]:
    """``protoserve_live(spec, process, **params)`` gives a server on a free port of 127.0.0.1
    that is stopped when the test has ended; see ``protoserve.testing.live_server``."""
    from protoserve.testing.live import serving

    with contextlib.ExitStack() as servers:

        def serve(
            spec: ProtocolSpec[Any, Any], process: Callable[[Any], object], **params: Any
        ) -> LiveServer[Any, Any]:
            return servers.enter_context(serving(spec, process, params))

        yield serve
