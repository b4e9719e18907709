"""A server on a port of this machine, for one block: for tests with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic

from protoserve.protocol import REQ, RESP, ProtocolSpec
from protoserve.server import WFServer
from protoserve.testing.in_memory import new_server
from protoserve.testing.leaks import no_leaks

HOST: Final = "127.0.0.1"

CLIENT_PATIENCE: Final = 10.0
"""Seconds until something that a client waits for counts as missing."""


class LiveServer(Generic[REQ, RESP]):
    """A server that listens; see :func:`live_server`."""

    server: WFServer[REQ, RESP]
    """The server itself, as ``task.server`` is it."""

    def __init__(self, server: WFServer[REQ, RESP]) -> None:
        self.server = server

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        host, port = self.server.address
        return host, port

    @property
    def url(self) -> str:
        """The same as a URL, such as ``http://127.0.0.1:40123``."""
        return self.server.url

    def connect(self, timeout: float | None = CLIENT_PATIENCE) -> socket.socket:
        """A socket that is connected to it, and whose calls fail after ``timeout`` seconds.
        The caller closes it."""
        return socket.create_connection(self.address, timeout)


def _start(server: WFServer[Any, Any]) -> None:
    """Start it where nothing of the caller's drives it: in a test that is a coroutine its
    loop waits for the end of the block, and would serve nobody meanwhile."""
    if not server.asynchronous or asyncio._get_running_loop() is None:
        server.start(HOST, 0)
        return
    raised: list[BaseException] = []

    def start() -> None:
        try:
            server.start(HOST, 0)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=start, name="protoserve-start", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def serving(
    spec: ProtocolSpec[REQ, RESP],
    process: Callable[[Any], object],
    params: dict[str, Any],
) -> Iterator[LiveServer[REQ, RESP]]:
    """``live_server`` without a look at what is left."""
    server = new_server(spec, process, params)
    _start(server)
    try:
        yield LiveServer(server)
    finally:
        server.stop()


@contextlib.contextmanager
def live_server(
    spec: ProtocolSpec[REQ, RESP], process: Callable[[Any], object], **params: Any
) -> Iterator[LiveServer[REQ, RESP]]:
    """A server on a free port of 127.0.0.1, for the block; it is stopped at the end.

    ``params`` are those fields of :class:`~protoserve.params.ServerParams` that are to differ
    from the protocol's own. Handlers may be functions or coroutine functions; those run in a
    loop of the server's own, also where the caller is a coroutine. Raises what
    ``WFServer.start`` raises; and at the end ``AssertionError``, where something is left that
    was not there before, as :func:`~protoserve.testing.no_leaks` does: close clients in the
    block.
    """
    with no_leaks(), serving(spec, process, params) as live:
        yield live
