"""Server parameters: every limit and timeout of a server, validated when built.

Units: times are seconds (``float``), sizes are bytes, ``None`` means no limit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, Final, Self

from protoserve.errors import ConfigError

KIB: Final = 1024
MIB: Final = 1024 * KIB

YEAR: Final = 366 * 86_400
"""The longest time that a parameter may say, in seconds: what lasts longer has no limit, and
clocks of operating systems end somewhere beyond it."""

# What concurrent.futures takes for a thread pool, of functions that may block.
COMPUTE_THREADS: Final = min(32, (getattr(os, "process_cpu_count", os.cpu_count)() or 1) + 4)

_TIMEOUTS: Final = (
    "peer_response_timeout",
    "receive_timeout",
    "keep_alive_timeout",
    "send_timeout",
    "ssl_accept_timeout",
    "shutdown_timeout",
)
# A time of 0 has a meaning here: "close after each reply", "cut at once".
_ZERO_ALLOWED: Final = frozenset({"keep_alive_timeout", "shutdown_timeout"})
_COUNTS: Final = (
    "max_connections",
    "request_size_limit",
    "max_pipelined",
    "handler_threads",
    "unsent_limit",
    "compute_threads",
    "backlog",
    "receive_rate",
)
_COUNTS_WITHOUT_LIMIT: Final = frozenset({"max_connections", "request_size_limit", "receive_rate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParams:
    """The parameters of one server (the article's ``WFServerParams``).

    Raises :class:`~protoserve.errors.ConfigError` when a value is of the wrong type,
    or out of range; the message names the field and the remedy.
    Instances are immutable and may be shared between servers and threads.
    """

    # Workflow's own limit is 2000; nginx ships 512 to 1024 a worker, Node none.
    max_connections: int | None = 10_000
    """Connections open at once; at the limit idle ones make room."""

    peer_response_timeout: float | None = 10.0  # Workflow's default
    """Longest silence within one step: before a connection's first byte, between two
    reads of one message, between two writes that made progress."""

    receive_timeout: float | None = 60.0  # Node 300, Apache 20 to 40, nginx 60 a step
    """Deadline of one whole request, from its first byte; see ``receive_rate``."""

    receive_rate: int | None = 4 * KIB  # Apache's MinRate is 500
    """Bytes of a request for which ``receive_timeout`` grows by a second, so that it cuts what
    trickles in and not a steady upload over a slow line; ``None``: it does not grow."""

    keep_alive_timeout: float | None = 60.0  # Workflow 60, nginx 75, uvicorn 5
    """How long a connection stays open after a reply; 0 closes after each reply."""

    send_timeout: float | None = None
    """Deadline of one whole reply, from its first byte."""

    ssl_accept_timeout: float | None = 10.0  # Workflow's default
    """Deadline of the TLS handshake."""

    shutdown_timeout: float | None = 15.0  # between gunicorn's 30 and Kubernetes' half
    """How long ``stop()`` lets running work finish before it is cut."""

    request_size_limit: int | None = 16 * MIB  # aiohttp 2 MiB, nginx 1 MiB, Node none
    """Bytes of one request as on the wire; exactly the limit passes."""

    max_pipelined: int = 64
    """Parsed requests that may wait on one connection before reading pauses."""

    handler_threads: int = 20  # Workflow's handler_threads
    """Threads that handlers may block at the same time; one more keeps bytes moving."""

    unsent_limit: int = 256 * KIB  # several times what a socket's own buffer takes
    """Unsent bytes of one connection at which it is no longer read or served, and at which
    ``task.push`` waits."""

    compute_threads: int = COMPUTE_THREADS  # concurrent.futures: min(32, processors + 4)
    """Threads that run the functions of ``go``. All servers of a process share one pool, as
    large as the largest that one of them asks for."""

    backlog: int = 2048  # uvicorn, gunicorn
    """Connections the operating system holds before they are accepted."""

    def __post_init__(self) -> None:
        for name in _TIMEOUTS:
            self._check_timeout(name, getattr(self, name))
        for name in _COUNTS:
            self._check_count(name, getattr(self, name))

    def _check_timeout(self, name: str, value: object) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(
                f"{name}={value!r}: expected seconds as a number, or None for no limit"
            )
        if value < 0 or (isinstance(value, float) and not isfinite(value)):
            raise ConfigError(
                f"{name}={value!r}: expected a finite number of seconds that is not negative; "
                "use None for no limit"
            )
        if value == 0 and name not in _ZERO_ALLOWED:
            raise ConfigError(
                f"{name}={value!r} would end every connection at once; "
                "give a positive number of seconds, or None for no limit"
            )
        if value > YEAR:
            raise ConfigError(
                f"{name}={value!r}: expected at most a year, {YEAR} seconds; use None for no limit"
            )

    def _check_count(self, name: str, value: object) -> None:
        if value is None and name in _COUNTS_WITHOUT_LIMIT:
            return
        optional = ", or None for no limit" if name in _COUNTS_WITHOUT_LIMIT else ""
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name}={value!r}: expected a whole number{optional}")
        if value < 1:
            raise ConfigError(f"{name}={value!r}: expected at least 1{optional}")
        if name == "backlog" and value >= 2**31:
            raise ConfigError(f"{name}={value!r}: expected less than 2**31, as listen() does")

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed.

        Raises :class:`~protoserve.errors.ConfigError` for a field that does not exist.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(
                    f"{type(self).__name__} has no field {name!r}; it has: {', '.join(known)}"
                )
        return replace(self, **changes)


SERVER_PARAMS_DEFAULT: Final = ServerParams()
"""The defaults, under the article's name."""
