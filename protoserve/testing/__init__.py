"""For tests of protocols and their handlers: the conformance suite, servers in memory and on a
port, and proof that nothing is left of them. See docs/testing.md.

:func:`check_protocol` attacks a protocol. :func:`memory_server` is a server without sockets,
threads or waiting, :func:`live_server` one on a free port, :func:`no_leaks` a block that leaves
nothing behind. For tests of what stands on the engine itself, :class:`MemoryEngine` moves only
when told to.
"""

from protoserve.testing.conformance import ConformanceError, check_protocol
from protoserve.testing.in_memory import MemoryServer, memory_server
from protoserve.testing.leaks import no_leaks
from protoserve.testing.live import LiveServer, live_server
from protoserve.testing.memory import (
    ManualClock,
    MemoryEngine,
    MemoryPeer,
    MemoryReadiness,
    MemoryTransport,
    connection_of,
)

__all__ = [
    "ConformanceError",
    "LiveServer",
    "ManualClock",
    "MemoryEngine",
    "MemoryPeer",
    "MemoryReadiness",
    "MemoryServer",
    "MemoryTransport",
    "check_protocol",
    "connection_of",
    "live_server",
    "memory_server",
    "no_leaks",
]
