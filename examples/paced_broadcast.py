"""A broadcast to all who listen, at the pace of the slowest: nothing piles up in memory.

Run it with ``python examples/paced_broadcast.py`` and listen with ``nc 127.0.0.1 7001``, or
with ``pv -L 1k < /dev/tcp/127.0.0.1/7001`` to be the slow one.
"""

import threading
import time
from collections.abc import Iterable
from typing import Any

from protoserve import (
    NEED_DATA,
    CommConnection,
    MessageParser,
    NeedData,
    ProtocolSpec,
    ServerParams,
    WFServer,
    WFServerTask,
)


class Listener(MessageParser[bytes]):
    """Listeners ask for nothing, and what they say is not heard."""

    partial = False

    def __init__(self, params: ServerParams) -> None: ...

    def feed(self, data: bytes) -> None: ...

    def next_message(self) -> NeedData:
        return NEED_DATA


RADIO_SPEC = ProtocolSpec[bytes, bytes](
    name="radio",
    message_in=Listener,
    message_out=bytes,
    response=bytes,
    greeting=lambda connection: b"welcome\n",
    farewell=lambda connection, reason: b"end\n",
    params=ServerParams(peer_response_timeout=2),  # then one that takes nothing is cut
)


class Radio(WFServer[bytes, bytes]):
    def __init__(self, params: ServerParams | None = None) -> None:
        super().__init__(RADIO_SPEC, self.unheard, params)

    def unheard(self, task: WFServerTask[bytes, bytes]) -> None:
        """There are no requests."""

    def new_connection(self, *args: Any) -> CommConnection | None:
        listener = super().new_connection(*args)
        if listener is not None:
            listener.set_timeout(keep_alive=None)  # it never asks for anything
        return listener

    def broadcast(self, pieces: Iterable[bytes]) -> None:
        """Send the pieces to whoever listens, until the server stops. In a thread."""
        for piece in pieces:
            listeners = self.connections()
            for listener in listeners:
                listener.push(piece)
            for listener in listeners:
                listener.drained()  # at once when it has taken all, or has left
            if self.stopping:
                break


def ticks() -> Iterable[bytes]:
    for number in range(1_000_000_000):
        yield f"{number} {'.' * (number % 60)}\n".encode()
        time.sleep(0.001)


def main() -> None:
    with Radio().start("127.0.0.1", 7001) as radio:
        print(f"listening on {radio.url}", flush=True)
        threading.Thread(target=radio.broadcast, args=(ticks(),), daemon=True).start()
        radio.wait_for_signal()


if __name__ == "__main__":
    main()
