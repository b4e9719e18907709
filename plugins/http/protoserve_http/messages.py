"""HttpRequest and HttpResponse: the messages that a handler sees."""

from __future__ import annotations

import json
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Iterable,
    Iterator,
    Mapping,
)
from http import HTTPStatus
from typing import Any, ClassVar, Final, SupportsIndex, TypeAlias

from multidict import CIMultiDict, CIMultiDictProxy
from mypy_extensions import mypyc_attr

from protoserve import IncomingStream, UsageError
from protoserve_http.fields import CONNECTION, HOST, UPGRADE, HeaderBlock, list_tokens
from protoserve_http.sent import SENT_WHOLE, Counted, Sent, SentHeaders, lost

HeadersInit: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

Data: TypeAlias = str | bytes | bytearray | memoryview
"""A body, or a piece of one; text goes out as UTF-8."""

Body: TypeAlias = Data | Iterable[Data] | AsyncIterable[Data]
"""A body: whole, or in pieces that are taken when there is room for them."""

PHRASES: Final = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""The reasons of the statuses: RFC 9110's, where Python before 3.13 has older ones."""

_WHOLE: Final = (str, bytes, bytearray, memoryview)
_EMPTY: Final = b""
_MAPPING: Final = CIMultiDict  # a name of this module is found faster in the compiled build

_NO_TRAILERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())


@mypyc_attr(allow_interpreted_subclasses=True)
class HttpRequest:
    """A complete request.

    ``method`` and ``target`` are as on the wire. The method is any token, not only one that
    is registered, and case matters (RFC 9110, 9.1); the target is printable ASCII, since one
    with other bytes is refused. ``version`` is ``"1.1"`` or ``"1.0"``; a higher minor version
    is served as 1.1 (RFC 9110, 2.5). ``body`` is decoded from its transfer coding.
    ``keep_alive`` tells whether the client lets the connection stay (RFC 9112, 9.3).
    """

    __slots__ = (
        "_block",
        "_headers",
        "_trailers",
        "body",
        "keep_alive",
        "method",
        "stream",
        "target",
    )

    method: str
    target: str
    body: bytes
    keep_alive: bool

    version: ClassVar[str] = "1.1"

    stream: IncomingStream | None
    """The body as it arrives, where it is on its way (see ``HttpParams.stream_bodies``); else
    ``None``, also for one that was collected."""

    def __init__(
        self,
        method: str,
        target: str,
        block: HeaderBlock,
        keep_alive: bool,
        body: bytes = b"",
    ) -> None:
        self.method = method
        self.target = target
        self._block = block
        self._headers: CIMultiDictProxy[str] | None = None  # made when it is first looked at
        self.keep_alive = keep_alive
        self.body = body
        self.stream = None
        self._trailers: CIMultiDictProxy[str] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method} {self.target!r} HTTP/{self.version}>"

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The header fields: a read-only case-insensitive multi-mapping in the order of arrival,
        values with bytes above ASCII as Latin-1."""
        if self._headers is None:
            self._headers = self._block.headers
        return self._headers

    @headers.setter
    def headers(self, headers: CIMultiDictProxy[str]) -> None:
        self._headers = headers

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Names and values as on the wire, without the whitespace around values."""
        fields = [line.partition(b":") for line in self._block.text.split(b"\r\n")[1:-2]]
        return [(name, value.strip(b" \t")) for name, _, value in fields]

    @property
    def trailers(self) -> CIMultiDictProxy[str]:
        """The fields after a chunked body; never merged into ``headers`` (RFC 9110, 6.5)."""
        return _NO_TRAILERS if self._trailers is None else self._trailers

    @property
    def path(self) -> str:
        """The target's path as sent: not percent-decoded (see ``urllib.parse.unquote``),
        without the query; ``*`` for the asterisk form (RFC 9112, 3.2)."""
        return self._origin_form().partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the first ``?`` of the target, as sent; empty for none."""
        return self._origin_form().partition("?")[2]

    @property
    def host(self) -> str:
        """The authority that was asked for: of the target where it has one, else ``Host``;
        empty for neither."""
        return self.headers.get(HOST, "")

    @property
    def keep_alive_timeout(self) -> float | None:
        """The seconds of the client's ``Keep-Alive: timeout=``, if it sent one."""
        return self._block.facts.keep_alive_timeout

    @property
    def upgrade(self) -> str | None:
        """The protocols that the client offers to go on in, from its ``Upgrade`` field; ``None``
        where it offers none, or this is HTTP/1.0 (RFC 9110, 7.8). See ``task.upgrade``."""
        if not self._block.facts.offers_upgrade or self.version == "1.0":
            return None
        headers = self.headers
        if "upgrade" not in list_tokens(headers.getall(CONNECTION, [])):
            return None
        return ", ".join(headers.getall(UPGRADE))

    def text(self, encoding: str = "utf-8") -> str:
        """The body as text. Raises ``UnicodeDecodeError`` when it is none."""
        return self._whole_body().decode(encoding)

    def json(self) -> Any:
        """The body parsed as JSON. Raises ``ValueError`` when it is none."""
        return json.loads(self._whole_body())

    def _whole_body(self) -> bytes:
        return self.body

    def _origin_form(self) -> str:
        target = self.target
        if target[0] in "/*":
            return target
        rest = target.partition("://")[2]
        ends = [end for end in (rest.find("/"), rest.find("?")) if end >= 0]
        rest = rest[min(ends) :] if ends else ""
        return rest if rest.startswith("/") else "/" + rest


@mypyc_attr(allow_interpreted_subclasses=True)
class Http10Request(HttpRequest):
    """A request of an HTTP/1.0 client."""

    __slots__ = ()

    version: ClassVar[str] = "1.0"


@mypyc_attr(allow_interpreted_subclasses=True)
class HttpResponse:
    """The reply to a request; ``process`` fills it in.

    ``Content-Length``, ``Date`` and ``Connection`` are set when it is sent. What cannot
    be sent (a status out of range, a header that would break the message's framing)
    raises ``ValueError`` then, which becomes a 500.

    A ``body`` that is an iterator, a generator or an async generator is sent as the client
    takes it: with the ``Content-Length`` that was stated, which it must match, or else
    chunked (to HTTP/1.0 clients: until the connection closes). It is closed when it is used
    up, or when the client leaves.

    Once it is on its way, a change would be lost, and raises
    :class:`~protoserve.errors.UsageError`; it can still be read.
    """

    __slots__ = ("_counted", "_headers", "_parts", "_reason", "_status", "_stream")

    _counted: Counted
    """What counts the bytes of a body in pieces, once it is being sent."""

    def __init__(
        self,
        status: SupportsIndex = 200,
        body: Body = b"",
        headers: HeadersInit | None = None,
    ) -> None:
        # What it is is looked at when it is sent. Annotated as int, the compiled build would
        # look at it here.
        self._status: Any = status
        self._reason: str | None = None
        self._headers: CIMultiDict[str] | None = None
        self._parts: list[bytes] = []
        # None for a body that is written. To have the mark of what was sent here as well
        # costs those that write nothing.
        self._stream: Iterator[Data] | AsyncIterator[Data] | Sent | None = None
        if headers is not None:
            self._headers = CIMultiDict(headers)
        if body is not _EMPTY:
            self._set_body(body)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._status} {self.reason}>"

    @property
    def status(self) -> int:
        """The status code, from 200 to 999."""
        status: int = self._status
        return status

    @status.setter
    def status(self, status: SupportsIndex) -> None:
        if self._stream is not None:
            self._refuse_when_sent("status")
        self._status = status

    @property
    def reason(self) -> str:
        """The reason phrase; by default the standard's for ``status``."""
        if self._reason is not None:
            return self._reason
        try:
            return PHRASES.get(self._status, "")
        except TypeError:  # no number at all
            return ""

    @reason.setter
    def reason(self, phrase: str | None) -> None:
        if self._stream is not None:
            self._refuse_when_sent("reason")
        self._reason = phrase

    @property
    def headers(self) -> CIMultiDict[str]:
        """The header fields: a case-insensitive mapping that may hold a name repeatedly
        (``headers.add``)."""
        if self._stream is not None and isinstance(self._stream, Sent):
            return SentHeaders(self._headers or ())
        if self._headers is None:
            self._headers = _MAPPING()
        return self._headers

    @headers.setter
    def headers(self, headers: HeadersInit) -> None:
        if self._stream is not None:
            self._refuse_when_sent("headers")
        self._headers = CIMultiDict(headers)

    @property
    def body(self) -> bytes:
        """Everything written so far; assign to replace it, also by an iterator of pieces.

        Raises ``TypeError`` when it is one, and when what is assigned is no body."""
        if self._stream is not None and self._stream is not SENT_WHOLE:
            raise TypeError("the body is an iterator: it cannot be read back")
        parts = self._parts
        if len(parts) > 1:
            self._parts = parts = [b"".join(parts)]
        return parts[0] if parts else b""

    @body.setter
    def body(self, body: Body) -> None:
        if self._stream is not None:
            self._refuse_when_sent("body")
        self._set_body(body)

    def write(self, data: Data) -> None:
        """Append to the body; text as UTF-8. Raises ``TypeError`` for anything else, and
        when the body is an iterator."""
        if self._stream is not None:
            self._refuse_when_sent("body")
            raise TypeError("the body is an iterator: yield from it instead of writing")
        if type(data) is str:
            self._parts.append(data.encode())
        elif type(data) is bytes:
            self._parts.append(data)
        elif isinstance(data, str):
            self._parts.append(data.encode())
        elif isinstance(data, (bytes, bytearray, memoryview)):
            # A copy: the caller may change its buffer before the reply goes out.
            self._parts.append(bytes(data))
        else:
            raise TypeError(f"a body is text or bytes, not {_described(data)}")

    @property
    def length_sent(self) -> int:
        """Bytes of the body that were given out, without its framing; for one that is whole,
        all of them."""
        try:
            return self._counted.sent
        except AttributeError:
            return sum(map(len, self._parts))

    def _set_body(self, body: Body) -> None:
        if isinstance(body, _WHOLE):
            self._stream = None
            self._parts = []
            self.write(body)
            return
        stream = pieces_of(body)
        self._parts = []
        self._stream = stream

    def _refuse_when_sent(self, what: str) -> None:
        if isinstance(self._stream, Sent):
            raise UsageError(lost(f"its {what}"))


def pieces_of(body: object) -> Iterator[Data] | AsyncIterator[Data]:
    """The pieces of a body that is not whole. Raises ``TypeError`` for what is none, with the
    remedy."""
    if isinstance(body, (list, tuple)):
        for piece in body:
            if not isinstance(piece, _WHOLE):
                raise TypeError(f"a piece of a body is text or bytes, not {_described(piece)}")
        return iter(body)
    if isinstance(body, AsyncIterable):
        return aiter(body)
    # What one gets by iterating over a mapping, a set or an array is not what was meant.
    if isinstance(body, Iterable) and not (
        isinstance(body, (Mapping, set, frozenset)) or _is_buffer(body)
    ):
        return iter(body)
    raise TypeError(
        f"a body is text, bytes, or an iterable or async iterable of them, not {_described(body)}"
    )


def _is_buffer(value: object) -> bool:
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _described(value: object) -> str:
    """The type of what is no body, and how to make one of it."""
    kind = type(value).__name__
    if value is None:
        return f'{kind}; for no body assign b""'
    if isinstance(value, Awaitable):
        return f"{kind}; await it first"
    if isinstance(value, (Mapping, list, tuple)):
        return f"{kind}; json.dumps(...) makes text of it"
    if _is_buffer(value):
        return f"{kind}; bytes(...) makes bytes of it"
    if callable(value):
        return f"{kind}; call it, and assign what it returns"
    return f"{kind}; str(...) makes text of it"
