"""RedisServerTask, the task of a command, and WFRedisServer."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, TypeAlias

from mypy_extensions import mypyc_attr

from protoserve import (
    Buffer,
    CommConnection,
    MessageOut,
    ProtocolSpec,
    ServerParams,
    WFServer,
    WFServerTask,
)
from protoserve_redis.messages import RedisRequest, RedisResponse
from protoserve_redis.parser import RedisParser
from protoserve_redis.serialiser import NO_COPY, message_out
from protoserve_redis.session import RedisSession
from protoserve_redis.values import RedisError

MIB: Final = 1024 * 1024


@mypyc_attr(allow_interpreted_subclasses=True)
class RedisServerTask(WFServerTask[RedisRequest, RedisResponse]):
    """One command and its reply."""

    __slots__ = ()

    def new_response(self, make: Callable[[], RedisResponse]) -> RedisResponse:
        """See ``WFServerTask``."""
        return RedisResponse() if make is RedisResponse else make()  # the former is compiled

    def message_out(self) -> MessageOut:
        """The reply's bytes, none for ``NO_REPLY`` and where CLIENT REPLY says so; after
        them the messages that had to wait for it.

        Raises ``TypeError`` and ``ValueError`` for a value that cannot be sent.
        """
        session: RedisSession | None = self.connection.state
        if session is None:
            return message_out(self.resp)
        if not session.wrapped:
            value = self.resp.value
            if type(value) is bytes and len(value) < NO_COPY:  # most of all replies
                return b"$%d\r\n%b\r\n" % (len(value), value)
            return message_out(self.resp, long_doubles=session.long_doubles)
        pieces: list[Buffer] = []
        if not session.quiet:
            reply = message_out(self.resp, long_doubles=session.long_doubles)
            if isinstance(reply, list):
                pieces += reply
            else:
                pieces.append(reply)  # type: ignore[arg-type]
        pieces += session.take_postscript()
        return pieces

    def limit_unauthenticated(self, limited: bool) -> None:
        """Hold the peer to Redis' narrow limits, 10 arguments of 16 KiB, until it has said
        who it is; ``limited`` is whether that is still to come. To be called while this
        command runs; it counts from the next one on."""
        parser = self.connection.parser
        if isinstance(parser, RedisParser):
            parser.authenticated = not limited

    def describe(self) -> str:
        """The command's name, without its arguments."""
        return self.req.name[:_DESCRIBED]


_DESCRIBED: Final = 100
"""Characters of a name that log lines show."""

WFRedisTask: TypeAlias = RedisServerTask
"""What ``process`` is called with."""


def summary(request: RedisRequest, response: RedisResponse) -> dict[str, object]:
    """The facts of an exchange: the command, how many arguments it had, and whether the
    reply was an error. No argument is among them, which may be secret or large."""
    failed = isinstance(response.value, RedisError)
    return {
        "command": request.name[:_DESCRIBED],
        "arguments": len(request.args) - 1,
        "outcome": str(response.value).partition(" ")[0] if failed else "OK",
    }


def error_response(request: RedisRequest, error: BaseException) -> RedisResponse:
    """The reply when a command raised; it tells nothing about the reason."""
    return RedisResponse(RedisError("ERR internal error"))


def make_server(process: Callable[[WFRedisTask], object], params: ServerParams) -> WFRedisServer:
    """What the ``protoserve`` command runs."""
    return WFRedisServer(process, params)


_SAMPLES: Final = (
    b"PING\r\n",
    b"set key 'a value'\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$6\r\nv\r\n*1\r\r\n",
)

REDIS_SPEC: Final = ProtocolSpec[RedisRequest, RedisResponse, RedisServerTask](
    name="redis",
    message_in=RedisParser,
    message_out=message_out,
    response=RedisResponse,
    task=RedisServerTask,
    error_response=error_response,
    summary=summary,
    handler_key=attrgetter("name"),
    server=make_server,
    params=ServerParams(
        # Redis' `timeout 0`: who is silent, or slow in the middle of a command, is kept. What
        # is bounded is memory; and peers that are gone are found out, see _keep_alive.
        peer_response_timeout=None,
        receive_timeout=None,
        keep_alive_timeout=None,
        request_size_limit=64 * MIB,
        max_pipelined=1024,
        # Redis has no limit: clients write long pipelines before they read the first reply.
        unsent_limit=64 * MIB,
    ),
    samples=_SAMPLES,
    url_scheme="redis",
    url_scheme_tls="rediss",
)
"""Redis' protocol, RESP2 and RESP3, as the ``protoserve`` command and ``WFRedisServer``
use it."""


@mypyc_attr(allow_interpreted_subclasses=True)
class WFRedisServer(WFServer[RedisRequest, RedisResponse]):
    """A server that speaks Redis' protocol.

    ``process(task)`` sets ``task.resp.value`` from ``task.req.args``; a ``CommandTable``
    is one. ``params`` defaults to ``REDIS_SPEC.params``. Where ``process`` has an
    attribute ``requires_authentication`` that is true, a new connection is held to Redis'
    narrow limits until ``task.limit_unauthenticated(False)``. Where it has an attribute
    ``asynchronous`` that is true, an asyncio loop drives the server: the running one where
    ``start`` is called in one, as for a coroutine function.
    """

    def __init__(
        self,
        process: Callable[[WFRedisTask], object],
        params: ServerParams | None = None,
        *,
        on_start: Callable[[Any], object] | None = None,
        on_stop: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(REDIS_SPEC, process, params, on_start=on_start, on_stop=on_stop)

    def new_session(self, seq: int, conn: CommConnection) -> RedisServerTask:
        """See ``WFServer``."""
        return RedisServerTask(self, self.process, seq, conn)

    def check(self) -> None:
        """As any server, and ask the handler whether a loop is to drive it: commands may have
        been added until now."""
        super().check()
        if self.engine is None and getattr(self.process, "asynchronous", False):
            self.asynchronous = True

    def new_connection(
        self, communicator: Any, transport: Any, peername: Any
    ) -> CommConnection | None:
        """The object of an accepted connection, of which TCP finds out in time when its
        peer is gone without a word."""
        if isinstance(peername, tuple):
            _keep_alive(transport.fileno())
        return super().new_connection(communicator, transport, peername)

    def add_connection(self, conn: CommConnection) -> None:
        """A connection was accepted."""
        super().add_connection(conn)
        opened = getattr(self.process, "opened", None)
        if opened is not None:
            opened(conn)

    def new_parser(self) -> RedisParser:
        """The parser of a new connection."""
        limited = bool(getattr(self.process, "requires_authentication", False))
        return RedisParser(self.params, authenticated=not limited)


_PROBES: Final = [
    (name, value)
    # macOS has another name for the first.
    for name, value in (
        (getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)), 300),
        (getattr(socket, "TCP_KEEPINTVL", None), 100),
        (getattr(socket, "TCP_KEEPCNT", None), 3),
    )
    if name is not None
]


def _keep_alive(descriptor: int) -> None:
    """Probe an idle peer after 300 seconds, as Redis does (`tcp-keepalive`)."""
    with (
        contextlib.suppress(OSError),  # it is gone already
        socket.socket(fileno=os.dup(descriptor)) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES:
            sock.setsockopt(socket.IPPROTO_TCP, name, value)
