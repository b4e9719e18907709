"""For tests of what stands on the engine: connections in memory, on a clock moved by hand.

:class:`MemoryEngine` moves only when told to; :meth:`MemoryEngine.connect` gives the client's
end of a connection, which decides what the server's reads and sends see.
"""

from protoserve.testing.memory import (
    ManualClock,
    MemoryEngine,
    MemoryPeer,
    MemoryReadiness,
    MemoryTransport,
    connection_of,
)

__all__ = [
    "ManualClock",
    "MemoryEngine",
    "MemoryPeer",
    "MemoryReadiness",
    "MemoryTransport",
    "connection_of",
]
