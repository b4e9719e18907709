"""Opening listening sockets: where ``start`` was told to, or one that is there already."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from protoserve.errors import BindError, ConfigError

UNIX_PREFIX: Final = "unix:"

Address: TypeAlias = tuple[str | None, int] | str
"""``(host, port)``, or ``"unix:/path"``."""

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""What the system says when it has run out of something."""

_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; stop it, or choose another port "
    "(port 0 picks a free one)",
    errno.EACCES: "permission is missing; use a port from 1024 on, or give the process the right",
    errno.EMFILE: "raise the number of files that this process may open: ulimit -n",
    errno.EADDRNOTAVAIL: "this machine has no such address; use one of its own, "
    "127.0.0.1, or 0.0.0.0 for all",
}
_UNIX_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there, or the file is no socket; "
    "stop or remove it, or choose another path",
    errno.EMFILE: _REMEDIES[errno.EMFILE],
    errno.EACCES: "permission is missing; use a folder that this process may write to",
    errno.ENOENT: "its folder does not exist; make it first",
}


def opener(where: tuple[Any, ...], backlog: int) -> Callable[[], socket.socket]:
    """What opens the listener that ``start(*where)`` asks for. Raises
    :class:`~protoserve.errors.ConfigError` for an address that makes no sense."""
    host: str | None = None
    match where:
        case (int() as port,):
            pass
        case (str() as path,):
            return lambda: open_listener(path, backlog)
        case ((str() | None as host, int() as port),) | (str() | None as host, int() as port):
            pass
        case ((str() as host, int() as port, *_),):
            pass  # an IPv6 socket address, as getsockname() gives it
        case _:
            raise ConfigError(
                f"start{where!r}: expected start(port), start(host, port), "
                "start((host, port)) or start('unix:/path')"
            )
    return lambda: open_listener((host, port), backlog)


def open_listener(address: Address, backlog: int) -> socket.socket:
    """A listening socket at ``address``; a port of 0 picks a free one.

    Raises :class:`~protoserve.errors.ConfigError` for an address that makes no sense and
    :class:`~protoserve.errors.BindError` when the system refuses.
    """
    if isinstance(address, str):
        path = address.removeprefix(UNIX_PREFIX)
        if path in ("", address) or "\0" in path:
            raise ConfigError(
                f"address {address!r}: expected a port, (host, port), or 'unix:/path'"
            )
        return _open_unix(path, backlog)
    host, port = address
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError(f"port {port!r}: expected a whole number from 0 to 65535")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            # Without a host: every IPv4 interface, as the article's start(port).
            host if host is not None else "0.0.0.0",
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BindError(
            getattr(error, "errno", None) or errno.EADDRNOTAVAIL,
            f"cannot listen on {host!r}: {reason}; give an address of this machine",
        ) from error
    sock = _new_socket(family, kind, protocol, where=f"{host or '0.0.0.0'}:{port}")
    try:
        # Not the same as SO_REUSEPORT: only old connections in TIME_WAIT are passed over.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it: replies leave at once.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target)
        sock.listen(backlog)
    except (OSError, OverflowError) as error:
        sock.close()
        raise _bind_error(error, f"{host or '0.0.0.0'}:{port}") from error
    return sock


def _new_socket(family: int, kind: int, protocol: int, *, where: str) -> socket.socket:
    try:
        return socket.socket(family, kind, protocol)
    except OSError as error:
        raise _bind_error(error, where) from error


def discard_listener(sock: socket.socket, *, adopted: bool) -> None:
    """Close a listening socket that will not be used, and remove its file where it is ours."""
    name = sock.getsockname() if sock.family == socket.AF_UNIX and not adopted else None
    if isinstance(name, str):
        with contextlib.suppress(OSError):
            os.unlink(name)
    sock.close()


def _open_unix(path: str, backlog: int) -> socket.socket:
    sock = _new_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, where=UNIX_PREFIX + path)
    try:
        _remove_stale(path)
        sock.bind(path)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _bind_error(error, UNIX_PREFIX + path, _UNIX_REMEDIES) from error
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on; anything else stays."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a busy server's backlog may be full
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return  # not known to be dead: bind() says what is wrong


def _bind_error(
    error: OSError | OverflowError, where: str, remedies: dict[int, str] = _REMEDIES
) -> BindError:
    # Python's own errors, such as a path that is too long, have no number.
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if number else str(error)
    remedy = remedies.get(number) if number else None
    return BindError(
        number or errno.EINVAL,
        f"cannot listen on {where}: {reason}" + (f" ({remedy})" if remedy else ""),
    )


def adopt_listener(source: socket.socket | int, backlog: int) -> socket.socket:
    """A listening socket made from one that is bound or listening already.

    The new object has a descriptor of its own; the caller's stays the caller's. Raises
    :class:`~protoserve.errors.ConfigError` for what is no bound stream socket.
    """
    if not isinstance(source, (int, socket.socket)):
        raise ConfigError(f"serve() takes a socket or its descriptor, not {type(source).__name__}")
    number = source if isinstance(source, int) else source.fileno()
    duplicate = -1
    try:
        duplicate = os.dup(number)
        sock = socket.socket(fileno=duplicate)
    except OSError as error:
        if duplicate >= 0:
            os.close(duplicate)
        if error.errno in EXHAUSTED:
            raise _bind_error(error, f"descriptor {number}") from error
        raise ConfigError(
            f"descriptor {number} is no open socket ({error.strerror}); "
            "pass a bound or listening stream socket, or its descriptor"
        ) from error
    try:
        os.set_inheritable(sock.fileno(), False)
        if sock.type != socket.SOCK_STREAM:
            raise ConfigError(f"descriptor {number} is a {sock.type!r}; a stream socket is needed")
        if not _is_bound(sock):
            raise ConfigError(f"socket {number} is not bound; call bind() on it first")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(backlog)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        sock.close()
        raise _bind_error(error, f"descriptor {number}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _is_bound(sock: socket.socket) -> bool:
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return bool(name[1])
    return bool(name)
