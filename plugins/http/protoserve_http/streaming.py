"""The parser of requests that are handed over before their bodies are there."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from protoserve import Arriving, IncomingStream, ServerParams
from protoserve_http.chunks import ChunkedBody
from protoserve_http.faults import RequestError
from protoserve_http.heads import Framing
from protoserve_http.messages import HttpRequest
from protoserve_http.params import HttpParams
from protoserve_http.parser import CONTINUE, HELD, HttpRequestParser, Message
from protoserve_http.streamed import StreamedRequest, streamed


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamingRequestParser(HttpRequestParser):
    """Announces each request that has a body by its head (``Arriving``), and waits with the
    body until it is asked again, when its limit is known.

    Requests without a body are as always, and so is every rule of where a request ends.
    """

    __slots__ = ("_announced", "_params_limit", "_size", "_stream")

    _collects = False

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self._params_limit = params.request_size_limit
        self._stream: IncomingStream | None = None  # of the request whose body is awaited
        self._announced = 0  # the state that follows: of a body, or of chunks
        self._size = 0  # of the request, as far as its head says

    def next_message(self) -> Message:
        """The next request; one that has a body as ``Arriving``."""
        if self._announced and self._ready is None and self._queue is None:
            self._take_up()
        return super().next_message()

    def close(self) -> None:
        """The connection has closed."""
        super().close()
        self._stream = None
        self._announced = 0

    def _begin(self, request: HttpRequest, framing: Framing, size: int) -> None:
        if not (framing.chunked or framing.length):
            super()._begin(request, framing, size)
            return
        # As for a whole body; but when it is judged, its own limit is known.
        self._limit = None
        super()._begin(request, framing, size)
        self._limit = self._params_limit
        self._expecting = False
        self._size = size + framing.length
        self._stream = IncomingStream(CONTINUE.data if framing.expects_continue else b"")
        self._request = announced = streamed(request, self._stream)
        self._announced = self._state
        self._state = HELD
        self._say(Arriving(announced, self._stream))

    def _take_up(self) -> None:
        """The request was taken, and its settings are known: go on with its body."""
        stream = self._stream
        assert stream is not None
        self._state, self._announced = self._announced, 0
        if stream.limit is not None:
            self._limit = stream.limit
        try:
            self._judge_size(self._size)
        except RequestError as fault:
            self._fail(fault)
            return
        rest, self._rest = self._rest, b""
        if rest:
            self.feed(rest)

    def _take_body(self, data: bytes, pos: int, stop: int) -> int:
        stream = self._stream
        if stream is None:
            return super()._take_body(data, pos, stop)
        end = min(stop, pos + self._left)
        self._left -= end - pos
        stream.feed(data[pos:end])
        if not self._left:
            self._complete(b"")
        return end

    def _take_chunks(self, data: bytes, pos: int, stop: int) -> int:
        chunks = self._chunks
        assert chunks is not None
        try:
            return super()._take_chunks(data, pos, stop)
        finally:
            self._pass_on(chunks)

    def _pass_on(self, chunks: ChunkedBody) -> None:
        assert self._stream is not None
        if chunks.body:
            body, chunks.body = chunks.body, bytearray()
            self._stream.feed(bytes(body))

    def _complete(self, body: bytes) -> None:
        stream, request = self._stream, self._request
        if stream is None or not isinstance(request, StreamedRequest):
            super()._complete(body)
            return
        self._stream = None
        self._limit = self._params_limit
        if stream.collecting:
            request.take(stream.whole())
        self._go_past(request)
        stream.end()


def new_parser(params: ServerParams) -> HttpRequestParser:
    """The parser of a new connection."""
    if isinstance(params, HttpParams) and params.stream_bodies:
        return StreamingRequestParser(params)
    return HttpRequestParser(params)
