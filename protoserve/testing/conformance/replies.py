"""Checks of what a server says by itself: greetings, farewells, replies to failures."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Final

from protoserve.errors import ProtocolError
from protoserve.events import CloseReason
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.connection import CommConnection
from protoserve.kernel.service import CommService
from protoserve.kernel.session import CommSession
from protoserve.kernel.transport import Transport
from protoserve.protocol import HOLD, MessageParser, ProtocolSpec
from protoserve.testing.conformance.error import ConformanceError
from protoserve.testing.conformance.run import FAULTS, described
from protoserve.testing.conformance.suite import Suite
from protoserve.testing.memory import MemoryEngine, connection_of

_BUFFERS: Final = (bytes, bytearray, memoryview)
_UNCHANGEABLE: Final = (bytes, str, int, float, tuple, frozenset, type(None))
_PIECES: Final = 64

REASONS: Final = (
    CloseReason.NO_REQUEST,
    CloseReason.IDLE,
    CloseReason.REQUEST_TOO_SLOW,
    CloseReason.SERVER_STOPPED,
    CloseReason.MADE_ROOM,
)
"""Those for which a protocol is asked for its farewell."""


class _Service(CommService):
    """Gives the protocol's functions a connection to look at; serves nothing."""

    def __init__(self, spec: ProtocolSpec[Any, Any]) -> None:
        super().__init__(spec.params)
        self._spec = spec

    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> CommConnection:
        return CommConnection(self, communicator, transport, peername)

    def new_parser(self) -> MessageParser[Any]:
        return self._spec.message_in(self.params)

    def new_session(self, seq: int, conn: CommConnection) -> CommSession:
        raise AssertionError("nothing is sent to it")

    def handle_unbound(self) -> None:
        """It has ended."""


@contextmanager
def _connection(spec: ProtocolSpec[Any, Any]) -> Iterator[CommConnection]:
    engine = MemoryEngine()
    service = _Service(spec)
    try:
        peer = engine.connect(service)
        engine.run()
        try:
            yield connection_of(service)
        finally:
            peer.reset()
            engine.run()
    finally:
        engine.close()


def check_replies(suite: Suite) -> str:
    """Greeting, farewells, the reply of an untouched response and those to failed handlers are
    bytes that can be sent."""
    spec = suite.spec
    try:
        first, second = spec.response(), spec.response()
    except FAULTS as error:
        raise ConformanceError(
            f"response() raised {described(error)}",
            remedy="It makes the empty response of each request: give the class.",
        ) from error
    if first is second and not isinstance(first, _UNCHANGEABLE):
        raise ConformanceError(
            "response() returned the same object twice: two requests would fill in one response",
            remedy="It makes a new one each time: give the class.",
        )
    _check_untouched(spec, second)
    _check_error_responses(suite)
    _check_words(suite)
    return ""


def _check_untouched(spec: ProtocolSpec[Any, Any], response: Any) -> None:
    """A handler may leave the response as it was made."""
    try:
        _collected(spec.message_out(response), "message_out(response())")
    except ConformanceError:
        raise
    except FAULTS as error:
        raise ConformanceError(
            f"message_out(response()) raised {described(error)}",
            remedy="A handler may leave the response as it was made: that is a reply, too, or "
            "none where message_out returns no bytes.",
        ) from error


def _check_error_responses(suite: Suite) -> None:
    spec = suite.spec
    if spec.error_response is None:
        return
    for sample in suite.samples:
        for message in sample.messages:
            what = "the reply to a request whose handler failed"
            try:
                response = spec.error_response(message, RuntimeError("the handler failed"))
                data = _collected(spec.message_out(response), what)
            except ConformanceError:
                raise
            except FAULTS as error:
                raise ConformanceError(
                    f"error_response, or message_out of it, raised {described(error)}",
                    fed=[sample.data],
                    remedy="It makes a response of any request and any exception; without one, "
                    "the connection closes.",
                ) from error
            suite.subject.judge_reply(data, what, [sample.data])


def _check_words(suite: Suite) -> None:
    """What is said first, and last: to a client that said nothing, and one in the middle."""
    spec = suite.spec
    longest = max(suite.samples, key=lambda sample: len(sample.data)).data
    beginnings = {b"", suite.samples[0].data[:-1], longest[: len(longest) // 2]}
    for beginning in sorted(beginnings, key=len):
        for reason in REASONS:
            with _connection(spec) as connection:
                what = "the greeting"
                try:
                    word: Any = b"" if spec.greeting is None else spec.greeting(connection)
                    if word is not None and word is not HOLD:
                        suite.subject.judge_reply(_collected(word, what), what)
                    what = f"the farewell for {reason.name}"
                    connection.parser.feed(suite.subject.before + beginning)
                    with suppress(ProtocolError):
                        connection.parser.next_message()
                    last: Any = b"" if spec.farewell is None else spec.farewell(connection, reason)
                except ConformanceError:
                    raise
                except FAULTS as error:
                    raise ConformanceError(
                        f"{what} raised {described(error)}",
                        fed=[beginning] if beginning else [],
                        remedy="It is bytes, empty for no word; the connection may be in any "
                        "phase, and its state may be empty.",
                    ) from error
                if isinstance(last, ProtocolError):
                    last = last.reply
                suite.subject.judge_reply(_collected(last, what), what, [beginning])


def _collected(out: Any, what: str) -> bytes:
    """The bytes of what is sent; of an iterator, those of the first pieces."""
    if hasattr(out, "__aiter__"):
        return b""  # nobody can await it here
    if isinstance(out, _BUFFERS):
        return bytes(out)
    if inspect.iscoroutine(out):
        out.close()
    if isinstance(out, str) or not hasattr(out, "__iter__"):
        raise ConformanceError(
            f"{what} is {type(out).__name__}, which cannot be sent",
            remedy="It must be bytes-like, a list of such, or an iterator of either.",
        )
    pieces = islice(out, _PIECES)
    return b"".join(_collected(piece, what) for piece in pieces)
