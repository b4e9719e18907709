"""How Redis writes the two ends of a connection."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from protoserve_redis.values import decoded

if TYPE_CHECKING:
    from protoserve import CommConnection


def peer_address(connection: CommConnection) -> str:
    """``host:port`` of the client, ``path:0`` over a Unix socket. Any thread."""
    if is_local(connection):
        return f"{_socket_path(connection)}:0"
    return _written(connection.peername)


def local_address(connection: CommConnection) -> str:
    """The same of the server's end, empty once the connection has closed. Any thread."""
    if is_local(connection):
        return f"{_socket_path(connection)}:0"
    name = _sockname(connection)
    return "" if name is None else _written(name)


def monitor_address(connection: CommConnection) -> str:
    """The client as MONITOR shows it."""
    if is_local(connection):
        return f"unix:{_socket_path(connection)}"
    return _written(connection.peername)


def is_local(connection: CommConnection) -> bool:
    """Whether the client is connected through a Unix socket."""
    return not isinstance(connection.peername, tuple)


def descriptor(connection: CommConnection) -> int:
    """The number of the connection's socket in this process, -1 once it has closed."""
    return -1 if connection.closed else connection.fd


def _written(name: Any) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _socket_path(connection: CommConnection) -> str:
    name = _sockname(connection)
    if isinstance(name, bytes):  # Linux' abstract ones
        return decoded(name).replace("\0", "@")
    return name if isinstance(name, str) else ""


def _sockname(connection: CommConnection) -> Any:
    try:
        # A duplicate: whatever happens to it here is nothing to the connection.
        with socket.socket(fileno=os.dup(descriptor(connection))) as sock:
            return sock.getsockname()
    except OSError:  # it closes this moment
        return None
