"""The contract between the engine and a protocol plugin.

A protocol is a :class:`ProtocolSpec`: how the bytes of one connection become requests
(``message_in``), how a response becomes bytes (``message_out``), and the classes and
defaults in between. Everything here is free of input and output.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias

from protoserve.errors import ConfigError, ProtocolError
from protoserve.params import ServerParams

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from protoserve.events import CloseReason
    from protoserve.kernel.connection import CommConnection
    from protoserve.kernel.incoming import IncomingStream
    from protoserve.server import WFServer
    from protoserve.tasks.network import WFServerTask
else:
    from typing import TypeVar

REQ = TypeVar("REQ")
RESP = TypeVar("RESP")
if TYPE_CHECKING:
    TASK_co = TypeVar(
        "TASK_co",
        bound=WFServerTask[Any, Any],
        default=WFServerTask[REQ, RESP],  # before Python 3.13 for type checkers only
        covariant=True,
    )
else:
    TASK_co = TypeVar("TASK_co", covariant=True)
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


class _Hold(Enum):
    HOLD = "HOLD"

    def __repr__(self) -> str:
        return "HOLD"


HOLD: Final = _Hold.HOLD
"""Returned by ``next_message``: what follows is read differently, according to the replies to
the requests before it (SMTP's ``DATA``, ``STARTTLS``, an upgrade). It is returned once; the
next call comes when all of them have been given. Returned by ``greeting``: it comes later,
and nothing is read before."""

Hold: TypeAlias = Literal[_Hold.HOLD]


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


class _Unset(Enum):
    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "unset"


UNSET: Final = _Unset.UNSET
"""In place of a setting: as it was."""

Unset: TypeAlias = Literal[_Unset.UNSET]


class Arriving(Generic[REQ]):
    """Returned by ``next_message``: a request whose head is known, and whose body is on its
    way in ``stream``, which the parser goes on to feed, once ``next_message`` is called again:
    then ``stream.limit`` is known. A body that is too large by its head is refused there, by
    :class:`~protoserve.errors.ProtocolError`. Requests after it follow when it has ended.

    ``new_session`` finds it as ``conn.arriving`` and may give this request settings of its
    own: ``streams``, whether it is handled now (else when its body is whole);
    ``receive_timeout``, seconds that the body may take from now on, ``None`` for no limit;
    ``size_limit``, bytes that the parser lets it have, ``None`` for the parameters' limit.
    """

    __slots__ = ("receive_timeout", "request", "size_limit", "stream", "streams")

    def __init__(self, request: REQ, stream: IncomingStream) -> None:
        self.request = request
        self.stream = stream
        self.streams = True
        self.receive_timeout: float | Unset | None = UNSET
        self.size_limit: int | None = None


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
    def next_message(self) -> REQ_co | NeedData | Feedback | Hold | Arriving[Any]:
        """The next complete request, in order of arrival; or :class:`Arriving`, one whose body
        is on its way; or :data:`HOLD`.

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

    def leftover(self) -> bytes:
        """The bytes that were fed and belong to no message so far. Called once, when the
        connection goes on in another protocol. By default none, for protocols that are never
        left."""
        return b""


_NAME: Final = re.compile(r"[a-z][a-z0-9_.+-]*\Z")

_CALLED_WITH: Final = {
    "message_in": ("params",),
    "message_out": ("response",),
    "response": (),
    "error_response": ("request", "error"),
    "greeting": ("connection",),
    "farewell": ("connection", "reason"),
    "summary": ("request", "response"),
    "handler_key": ("request",),
    "server": ("process", "params"),
}
"""The fields of a spec that are called, and with what."""


@dataclass(frozen=True, kw_only=True)
class ProtocolSpec(Generic[REQ, RESP, TASK_co]):
    """Everything the engine needs to know of a protocol.

    For type checkers ``ProtocolSpec[REQ, RESP]`` is a protocol of these requests and responses,
    whose handlers get a ``WFServerTask[REQ, RESP]``. One with a ``task`` class of its own is a
    ``ProtocolSpec[REQ, RESP, TASK]``; without brackets it is inferred.

    Raises :class:`~protoserve.errors.ConfigError` when a field is unusable. Its fields:

    ``name``: The name users give on the command line: lower case, for example ``http``.

    ``message_in``: Makes the parser of a new connection from the server's parameters.

    ``message_out``: Turns a response into bytes-like buffers.

    ``response``: Makes the empty response that ``process`` fills in as ``task.resp``.

    ``task``: The task class of a request; ``None`` for plain ``WFServerTask``.

    ``error_response``: Makes the response that is sent when the handler of a request raised
        this exception; ``None`` closes instead.

    ``greeting``: What a server says first, in protocols where it does: bytes, a list of them,
        or nothing. It may set ``connection.state``. ``HOLD``: the greeting comes later, by
        ``connection.push``, and nothing is read before. The connection counts and its
        ``peer_response_timeout`` runs before a byte of it goes out. Called on the engine's
        thread in the middle of the connection's work: it must not block, nor push.

    ``farewell``: What it says last when it ends a connection by itself: because the first
        request, or the next, did not come (``NO_REQUEST``, ``IDLE``), or not all of one
        (``REQUEST_TOO_SLOW``), the server stops (``SERVER_STOPPED``) or another needs its
        place (``MADE_ROOM``). Empty for no word. A :class:`~protoserve.errors.ProtocolError`,
        which is returned, carries it together with facts for observers. Called as ``greeting``
        is.

    ``in_flight``: How many requests of one connection are served at the same time and answered
        as they finish, as protocols with correlation ids want it. 1: in order.

    ``summary``: The facts of an exchange for logs and metrics, such as HTTP's method, target,
        status and length. Called when the reply is out, or impossible, and only when somebody
        observes the server.

    ``handler_key``: What of a request tells handlers apart that block from those that do not:
        HTTP's path, Redis' command. Asked only while some are slow, to call those that block
        on a thread of their own from the start; ``None``: all are alike.

    ``server``: Makes a server of a handler and parameters, for the command line; ``None`` for
        a plain ``WFServer``. For protocols that have a server class of their own.

    ``demo``: An application that shows the protocol, as ``module:callable``: what the command
        line serves when it is given none. Imported only then.

    ``params``: The protocol's default parameters.

    ``samples``: Requests as they come over the wire, each one whole message, for
        ``protoserve check`` and ``protoserve.testing.check_protocol``. The engine does not use
        them.

    ``url_scheme``: The scheme of a server's ``url``.

    ``url_scheme_tls``: The scheme of a server's ``url`` over TLS.
    """

    name: str
    message_in: Callable[[ServerParams], MessageParser[REQ]]
    message_out: Callable[[RESP], MessageOut]
    response: Callable[[], RESP]
    task: type[TASK_co] | None = None
    error_response: Callable[[REQ, BaseException], RESP] | None = None
    greeting: Callable[[CommConnection], Piece | Hold] | None = None
    farewell: Callable[[CommConnection, CloseReason], bytes | ProtocolError] | None = None
    in_flight: int = 1
    summary: Callable[[REQ, RESP], Mapping[str, object]] | None = None
    handler_key: Callable[[REQ], Hashable] | None = None
    server: Callable[[Callable[[TASK_co], object], ServerParams], WFServer[REQ, RESP]] | None = (
        None
    )
    demo: str | None = None
    params: ServerParams = field(default_factory=ServerParams)
    samples: Sequence[bytes] = ()
    url_scheme: str = "tcp"
    url_scheme_tls: str = "tls"

    if not TYPE_CHECKING:

        def __class_getitem__(cls, kinds: Any) -> Any:
            # The default of the third, which Python's own variables have from 3.13 on.
            if cls is ProtocolSpec and isinstance(kinds, tuple) and len(kinds) == 2:
                kinds = (*kinds, Any)
            return super().__class_getitem__(kinds)

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
        if meant := _without_brackets(self.message_in):
            raise ConfigError(
                f"protocol {self.name!r}: message_in is a function that makes a message_in; "
                f"did you mean {meant}?"
            )
        for what in (
            "task",
            "error_response",
            "greeting",
            "farewell",
            "summary",
            "handler_key",
            "server",
        ):
            value = getattr(self, what)
            if value is not None and not callable(value):
                raise ConfigError(
                    f"protocol {self.name!r}: {what} must be callable, or None, "
                    f"not {type(value).__name__}"
                )
        for what, arguments in _CALLED_WITH.items():
            _check_takes(self.name, what, getattr(self, what), arguments)
        if (
            isinstance(self.in_flight, bool)
            or not isinstance(self.in_flight, int)
            or self.in_flight < 1
        ):
            raise ConfigError(
                f"protocol {self.name!r}: in_flight={self.in_flight!r}: expected a number of "
                "requests, 1 or more"
            )
        if self.demo is not None and not (
            isinstance(self.demo, str) and all(self.demo.partition(":"))
        ):
            raise ConfigError(
                f"protocol {self.name!r}: demo={self.demo!r}: expected 'module:callable', or None"
            )
        if not isinstance(self.params, ServerParams):
            raise ConfigError(f"protocol {self.name!r}: params must be a ServerParams")
        if isinstance(self.samples, (bytes, str)) or not all(
            isinstance(sample, bytes) for sample in self.samples
        ):
            raise ConfigError(
                f"protocol {self.name!r}: samples={self.samples!r}: expected a list of bytes, "
                "each a request as it comes over the wire"
            )


def _without_brackets(message_in: Callable[..., object]) -> str:
    """How one of the functions of ``protoserve.framing`` is called, if this is one that was not;
    else empty."""
    name = getattr(message_in, "__qualname__", "")
    of_framing = getattr(message_in, "__module__", None) == "protoserve.framing"
    if not of_framing or "." in name or not inspect.isfunction(message_in):
        return ""
    parameters = inspect.signature(message_in).parameters.values()
    needs = any(parameter.default is parameter.empty for parameter in parameters)
    return f"{name}(...)" if needs else f"{name}()"


def _check_takes(name: str, what: str, function: object, arguments: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` where it cannot be called with so many."""
    if not callable(function):
        return
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # some in C have none to look at
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"protocol {name!r}: {what} is called as {what}({', '.join(arguments)}), which "
            f"{getattr(function, '__qualname__', function)}{signature} does not allow: {error}"
        ) from None


def try_parser(name: str, make: Callable[[], MessageParser[Any]]) -> None:
    """Make a parser of protocol ``name`` as for a connection, and look at it.

    Raises :class:`~protoserve.errors.ConfigError` for what would fail with the first
    connection; its ``__cause__`` is what ``make`` raised, if that is what is wrong.
    """
    try:
        parser = make()
    except Exception as error:
        raise ConfigError(
            f"protocol {name!r}: message_in raised {error!r}; it is called with the "
            "server's parameters for each new connection and must return a parser"
        ) from error
    for method in ("feed", "next_message", "feed_eof", "close", "leftover"):
        if not callable(getattr(parser, method, None)):
            raise ConfigError(
                f"protocol {name!r}: message_in made a {type(parser).__name__}, which has "
                f"no method {method}(); derive it from MessageParser"
            )
    if callable(getattr(parser, "partial", True)):
        raise ConfigError(
            f"protocol {name!r}: {type(parser).__name__}.partial must be a property that "
            "is true or false, not a method, which always counts as true: put @property "
            "above it"
        )
    parser.close()
