"""PostgreSQL's wire protocol, version 3: https://www.postgresql.org/docs/current/protocol.html

A request is one message of the client's, a reply all that the server says to it. What the
messages mean is the application's business: ``postgres_protocol.memory`` is one.
"""

from typing import Final, TypeAlias

from postgres_protocol.parser import PostgresParser
from postgres_protocol.replies import Reply, encode_error
from postgres_protocol.requests import Request
from protoserve import CloseReason, CommConnection, ProtocolSpec, ServerParams, WFServerTask

__all__ = ["POSTGRES_SPEC", "PostgresParser", "PostgresTask", "Reply", "Request"]

PostgresTask: TypeAlias = WFServerTask[Request, Reply]
"""What an application is called with."""

# SQLSTATE of what the server says last, where it ends a connection by itself.
_FAREWELLS: Final = {
    CloseReason.IDLE: "57P05",  # idle_session_timeout
    CloseReason.SERVER_STOPPED: "57P01",  # admin_shutdown
    CloseReason.MADE_ROOM: "53300",  # too_many_connections
}


def last_word(connection: CommConnection, reason: CloseReason) -> bytes:
    return encode_error(
        _FAREWELLS.get(reason, "08P01"), f"terminating connection: {reason}", severity="FATAL"
    )


POSTGRES_SPEC: Final = ProtocolSpec[Request, Reply](
    name="postgres",
    message_in=PostgresParser,
    message_out=lambda reply: reply.data,
    response=Reply,
    farewell=last_word,
    demo="postgres_protocol.memory:process",
    # Sessions stay for as long as their clients like; a minute is PostgreSQL's own
    # authentication_timeout.
    params=ServerParams(keep_alive_timeout=None, peer_response_timeout=60),
    url_scheme="postgresql",
)
