"""A transport whose readiness is not its descriptor's: layers under the bytes."""

from __future__ import annotations

import socket

from line_service import LineService

from protoserve.kernel.readiness import READABLE, WRITABLE
from protoserve.kernel.transport import SocketTransport
from protoserve.testing import MemoryEngine


def test_a_layer_says_what_the_poller_s_news_mean(engine: MemoryEngine) -> None:
    """As in a handshake: what arrives is the layer's, and a read goes on when something of the
    layer's could be written."""
    told: list[int] = []
    shaken = False

    def ready(mask: int) -> int:
        told.append(mask)
        if not shaken:
            return 0
        return mask | READABLE if mask & WRITABLE else mask

    service = LineService()
    peer = engine.connect(service, ready=ready)
    peer.send(b"a\n")
    engine.run()
    assert told
    assert peer.reads == 0  # nothing of this is for the parser yet
    shaken = True
    engine.readiness.announce(peer.fd, WRITABLE)
    engine.run()
    assert peer.received == b"a\n"


def test_a_service_may_put_layers_over_its_sockets() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = LineService().new_transport(ours)
        assert isinstance(transport, SocketTransport)
        assert transport.ready is None
