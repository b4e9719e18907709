"""Upgrades: a connection of a server that goes on in another protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protoserve.kernel.service import CommProtocol

if TYPE_CHECKING:
    from protoserve.events import CloseReason
    from protoserve.kernel.connection import CommConnection
    from protoserve.protocol import Hold, MessageParser, Piece
    from protoserve.server import WFServer
    from protoserve.tasks.network import WFServerTask


class Spoken(CommProtocol):
    """Another protocol, as it is spoken on connections of ``host``: which counts them, stops
    them, and is what their tasks call ``server``. ``server`` was made for the protocol and is
    never started."""

    def __init__(self, host: WFServer[Any, Any], server: WFServer[Any, Any]) -> None:
        super().__init__(server.params)
        self._host = host
        self._server = server
        self.in_flight = server.in_flight
        self.habits = server.habits

    def new_session(self, seq: int, conn: CommConnection) -> WFServerTask[Any, Any]:
        """The task of a request in the other protocol."""
        task = self._server.new_session(seq, conn)
        task.server = self._host
        return task

    def new_parser(self) -> MessageParser[Any]:
        """The other protocol's."""
        return self._server.new_parser()

    def greeting(self, conn: CommConnection) -> Piece | Hold:
        """The other protocol's."""
        return self._server.greeting(conn)

    def farewell(self, conn: CommConnection, reason: CloseReason) -> object:
        """The other protocol's."""
        return self._server.farewell(conn, reason)
