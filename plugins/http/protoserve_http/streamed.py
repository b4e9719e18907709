"""StreamedRequest: a request whose body is on its way."""

from __future__ import annotations

from typing import ClassVar

from protoserve import IncomingStream, UsageError
from protoserve_http.messages import Http10Request, HttpRequest


class StreamedRequest(HttpRequest):
    """A request that was announced by its head, with its body on its way."""

    __slots__ = ("_body",)

    def __init__(self, request: HttpRequest, stream: IncomingStream) -> None:
        super().__init__(request.method, request.target, request._block, request.keep_alive)
        self._headers = request._headers
        self.stream = stream

    @property
    def body(self) -> bytes:
        """The body, where it was collected. Otherwise raises ``UsageError``."""
        return self._whole_body()

    @body.setter
    def body(self, body: bytes) -> None:
        self._body = body

    def _whole_body(self) -> bytes:
        if self.stream is not None:
            raise UsageError(
                "the body of this request is on its way: read task.req.stream (for piece in "
                "stream, async for, stream.read() or await stream.aread()); or override "
                "new_session and set conn.arriving.streams = False to have it whole"
            )
        return self._body

    def take(self, body: bytes) -> None:
        """It was collected."""
        self._body = body
        self.stream = None


class StreamedHttp10Request(StreamedRequest):
    """The same of an HTTP/1.0 client."""

    __slots__ = ()

    version: ClassVar[str] = "1.0"


def streamed(request: HttpRequest, stream: IncomingStream) -> StreamedRequest:
    """The request as one whose body is on its way."""
    if isinstance(request, Http10Request):
        return StreamedHttp10Request(request, stream)
    return StreamedRequest(request, stream)
