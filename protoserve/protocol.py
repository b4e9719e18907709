"""The contract between the engine and a protocol plugin.

A protocol is a :class:`ProtocolSpec`: how the bytes of one connection become requests
(``message_in``), how a response becomes bytes (``message_out``), and the classes and
defaults in between. Everything here is free of input and output.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar

from protoserve.errors import ConfigError, ProtocolError
from protoserve.params import ServerParams

if TYPE_CHECKING:
    from protoserve.server import WFServer
    from protoserve.tasks.network import WFServerTask

REQ = TypeVar("REQ")
RESP = TypeVar("RESP")
REQ_co = TypeVar("REQ_co", covariant=True)

Buffer: TypeAlias = bytes | bytearray | memoryview
Piece: TypeAlias = Buffer | Sequence[Buffer]
"""One bytes-like object, or a list or tuple of them."""

MessageOut: TypeAlias = Piece | Iterator[Piece] | AsyncIterator[Piece]
"""What ``message_out`` returns: the reply whole, or an iterator or async iterator of its
pieces. The engine takes the next one when the socket has room; with the first, it may
still be refused by raising. The iterator's ``close`` or ``aclose`` is called when the peer
leaves before the end.

The engine keeps the buffers until they are sent: do not change them afterwards."""


class _NeedData(Enum):
    NEED_DATA = "NEED_DATA"

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = _NeedData.NEED_DATA
"""Returned by ``next_message`` when no complete message is held."""

NeedData: TypeAlias = Literal[_NeedData.NEED_DATA]


@dataclass(frozen=True, slots=True)
class Feedback:
    """An interim answer while a request is still arriving, such as ``100 Continue``.

    It is sent in its place in the order of replies. Raises ``TypeError`` for data that is
    not bytes.
    """

    data: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.data, (bytes, bytearray, memoryview)):
            raise TypeError(f"the data of Feedback is bytes, not {type(self.data).__name__}")


class MessageParser(ABC, Generic[REQ_co]):
    """The incremental parser of one connection (the article's ``message_in``).

    The engine calls ``feed`` with what arrived, then ``next_message`` until it returns
    :data:`NEED_DATA`, never from two threads at once. Any bytes, split anywhere, must
    lead to messages or to a :class:`~protoserve.errors.ProtocolError`, and to the same
    ones however they were split.
    """

    __slots__ = ()

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Take bytes from the peer. Must not raise for anything the peer can send.

        What is kept between calls must stay within the limits of the parameters that
        the parser was made with.
        """

    @abstractmethod
    def next_message(self) -> REQ_co | NeedData | Feedback:
        """The next complete request, in order of arrival.

        Raises :class:`~protoserve.errors.ProtocolError` once the messages before the
        fault were returned, and again on every later call.
        """

    @property
    @abstractmethod
    def partial(self) -> bool:
        """Whether an unfinished message is held (decides which timeout runs)."""

    def feed_eof(self) -> None:
        """The peer will send no more. A protocol whose messages end with the connection
        completes its message here."""

    def close(self) -> None:
        """The connection has closed: break cycles, so that memory is freed at once."""

    def timeout_reply(self) -> bytes | ProtocolError:
        """The farewell when an unfinished message took too long; empty for none. A
        :class:`~protoserve.errors.ProtocolError`, which is not raised here, carries it
        together with facts for observers."""
        return b""


_NAME: Final = re.compile(r"[a-z][a-z0-9_.+-]*\Z")


@dataclass(frozen=True, kw_only=True)
class ProtocolSpec(Generic[REQ, RESP]):
    """Everything the engine needs to know of a protocol.

    Raises :class:`~protoserve.errors.ConfigError` when a field is unusable.
    """

    name: str
    """The name users give on the command line: lower case, for example ``http``."""

    message_in: Callable[[ServerParams], MessageParser[REQ]]
    """Makes the parser of a new connection from the server's parameters."""

    message_out: Callable[[RESP], MessageOut]
    """Turns a response into bytes-like buffers."""

    response: Callable[[], RESP]
    """Makes the empty response that ``process`` fills in as ``task.resp``."""

    task: type[WFServerTask[Any, Any]] | None = None
    """The task class of a request; ``None`` for plain ``WFServerTask``."""

    error_response: Callable[[], RESP] | None = None
    """Makes the response that is sent when a handler raised; ``None`` closes instead."""

    summary: Callable[[REQ, RESP], Mapping[str, object]] | None = None
    """The facts of an exchange for logs and metrics, such as HTTP's method, target, status
    and length. Called when the reply is out, or impossible, and only when somebody
    observes the server."""

    handler_key: Callable[[REQ], Hashable] | None = None
    """What of a request tells handlers apart that block from those that do not: HTTP's path,
    Redis' command. Asked only while some are slow, to call those that block on a thread of
    their own from the start; ``None``: all are alike."""

    server: Callable[[Callable[[Any], object], ServerParams], WFServer[REQ, RESP]] | None = None
    """Makes a server of a handler and parameters, for the command line; ``None`` for a plain
    ``WFServer``. For protocols that have a server class of their own."""

    demo: str | None = None
    """An application that shows the protocol, as ``module:callable``: what the command line
    serves when it is given none. Imported only then."""

    params: ServerParams = field(default_factory=ServerParams)
    """The protocol's default parameters."""

    url_scheme: str = "tcp"
    """The scheme of a server's ``url``."""

    url_scheme_tls: str = "tls"
    """The scheme of a server's ``url`` over TLS."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            raise ConfigError(
                f"protocol name {self.name!r}: expected lower-case letters, digits and "
                "any of _.+- after a first letter, for example 'http'"
            )
        for what in ("message_in", "message_out", "response"):
            if not callable(getattr(self, what)):
                raise ConfigError(
                    f"protocol {self.name!r}: {what} must be callable, "
                    f"not {type(getattr(self, what)).__name__}"
                )
        for what in ("task", "error_response", "summary", "handler_key", "server"):
            value = getattr(self, what)
            if value is not None and not callable(value):
                raise ConfigError(
                    f"protocol {self.name!r}: {what} must be callable, or None, "
                    f"not {type(value).__name__}"
                )
        if self.demo is not None and not (
            isinstance(self.demo, str) and all(self.demo.partition(":"))
        ):
            raise ConfigError(
                f"protocol {self.name!r}: demo={self.demo!r}: expected 'module:callable', or None"
            )
        if not isinstance(self.params, ServerParams):
            raise ConfigError(f"protocol {self.name!r}: params must be a ServerParams")
