"""HttpParams: the parameters of an HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, field

from protoserve import ConfigError, ServerParams


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpParams(ServerParams):
    """``ServerParams``, and what only an HTTP server has. Raises ``ConfigError`` as they do."""

    stream_bodies: bool = field(
        default=False,
        metadata={"help": "call the handler when a request's head is there, before its body"},
    )
    """Whether a request that has a body is handed over by its head, with the body on its way
    in ``task.req.stream``. Otherwise when it is whole, in ``task.req.body``."""

    def __post_init__(self) -> None:
        ServerParams.__post_init__(self)  # super() is that of a class without slots
        if not isinstance(self.stream_bodies, bool):
            raise ConfigError(f"stream_bodies={self.stream_bodies!r}: expected True or False")
