"""HttpServerTask, the task of a request, and WFHttpServer."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar, cast

from mypy_extensions import mypyc_attr

from protoserve import (
    CloseReason,
    CommConnection,
    MessageOut,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
    TaskState,
    UsageError,
    WFServer,
    WFServerTask,
)
from protoserve_http.messages import HttpRequest, HttpResponse
from protoserve_http.params import HttpParams
from protoserve_http.parser import HttpRequestParser
from protoserve_http.sent import SENT_PIECES, SENT_WHOLE, Sent
from protoserve_http.serialiser import (
    CLOSE,
    STAY,
    SWITCHING,
    WITHOUT_BODY,
    encode,
    encode_stream,
    serialise,
    wants_close,
)
from protoserve_http.streaming import new_parser

TASK = TypeVar("TASK", bound=WFServerTask[Any, Any])

# Names of this module are found faster in the compiled build.
_WHOLE: Final = SENT_WHOLE
_DESCRIBED: Final = 200
"""Characters of a target that log lines show."""


@mypyc_attr(allow_interpreted_subclasses=True)
class HttpServerTask(WFServerTask[HttpRequest, HttpResponse]):
    """One HTTP request and its reply (the article's ``WFHttpServerTask``)."""

    __slots__ = ()

    def describe(self) -> str:
        """Method and target."""
        target = self.req.target
        if len(target) > _DESCRIBED:
            target = target[:_DESCRIBED] + "..."
        return f"{self.req.method} {target}"

    def new_response(self, make: Callable[[], HttpResponse]) -> HttpResponse:
        """See ``WFServerTask``."""
        return HttpResponse() if make is HttpResponse else make()  # the former is compiled

    def message_in(self, message: HttpRequest) -> None:
        """The complete request, which has a say in how long the connection stays."""
        self.req = message
        if not message.keep_alive:
            self.keep_alive = 0.0
            return
        wish = message._block.facts.keep_alive_timeout
        # The client may shorten the time, never extend it.
        if wish is not None and (self.keep_alive is None or wish < self.keep_alive):
            self.keep_alive = wish

    def upgrade(
        self,
        spec: ProtocolSpec[Any, Any, TASK],
        process: Callable[[TASK], object],
        params: ServerParams | None = None,
    ) -> None:
        """Reply ``101 Switching Protocols``, with the first protocol that the client offered
        unless the response has an ``Upgrade`` field already, and go on in that (RFC 9110,
        7.8). See ``WFServerTask.upgrade``; raises ``UsageError`` also where the client asked for
        no upgrade. A server that stops replies 503 instead."""
        offered = self.req.upgrade
        if offered is None:
            raise UsageError(
                "this request asks for no upgrade: see task.req.upgrade (RFC 9110, 7.8)"
            )
        super().upgrade(spec, process, params)
        resp = self.resp
        resp._status = 101
        resp._reason = SWITCHING
        resp.headers["Connection"] = "upgrade"
        resp.headers.setdefault("Upgrade", offered.partition(",")[0].strip())

    def message_out(self) -> MessageOut:
        """The reply's bytes, with the ``Connection`` that is due (RFC 9112, 9.6).

        Raises ``ValueError`` for a response that cannot be sent.
        """
        req = self.req
        resp = self.resp
        keep_alive = self.keep_alive
        stream = resp._stream
        if stream is _WHOLE:
            stream = None  # a response that serves many requests
        if (
            not req.keep_alive
            or (keep_alive is not None and keep_alive == 0.0)
            or self.closing
            or (resp._headers is not None and wants_close(resp))
            or (stream is not None and not self._delimits_streams)
            or (req.stream is not None and self._cuts_body(stream is None))
        ):
            self.keep_alive = 0.0
            connection = CLOSE
            if resp._status == 101:  # there is nothing to go on with
                resp = self.resp = HttpResponse(503, "This connection ends.\n")
        elif type(req) is HttpRequest or req.version != "1.0":
            connection = b""
        else:
            connection = STAY
        head_only = req.method == "HEAD"
        # What is changed from here on would be lost; the response is told to refuse it.
        if stream is None:
            out = encode(resp, head_only=head_only, connection=connection)
            resp._stream = _WHOLE
            return out
        body = req.stream
        out = encode_stream(
            resp,
            head_only=head_only,
            connection=connection,
            chunked=req.version != "1.0",
            body=None if body is None or body.over else body,
        )
        resp._stream = SENT_PIECES
        return out

    def _cuts_body(self, whole: bool) -> bool:
        """Whether the reply comes before the request's body has ended, so that what is left of
        that is cut: a reply in pieces may wait for it, where it can still say so."""
        body = self.req.stream
        assert body is not None
        return not body.over and (whole or self.req.version == "1.0")

    def summary(self) -> Mapping[str, object]:
        """The facts of the exchange; of a reply that did not go out neither status nor length,
        and of a body in one piece that did not go out wholly no length, which nobody knows."""
        facts = super().summary()
        if self.state is TaskState.SUCCESS:
            return facts
        unknown = {"length"}
        task: Any = self
        form = getattr(task.resp, "_stream", None)  # whatever a handler has put there
        if (
            self.state is TaskState.NOREPLY
            or self.error == errno.ENOENT  # the peer was gone before
            or not isinstance(form, Sent)
            # The head goes out with the first piece.
            or (form is SENT_PIECES and not self.resp.length_sent)
        ):
            unknown.add("status")
        elif form is SENT_PIECES:
            return facts  # up to where it broke off
        return {name: value for name, value in facts.items() if name not in unknown}

    @property
    def _delimits_streams(self) -> bool:
        """Whether a body in pieces has an end that is not the connection's."""
        return self.req.version != "1.0" or "Content-Length" in self.resp.headers


WFHttpServerTask: TypeAlias = HttpServerTask
"""The article's name."""

WFHttpTask: TypeAlias = HttpServerTask
"""What ``process`` is called with."""


def summary(request: HttpRequest, response: HttpResponse) -> dict[str, object]:
    """The facts of an exchange. ``length``: bytes of content in the reply. A reply that did
    not go out has neither ``status`` nor ``length``: see ``HttpServerTask.summary``."""
    status = response._status
    bare = request.method == "HEAD" or status in WITHOUT_BODY
    return {
        "method": request.method,
        "target": request.target,
        "version": request.version,
        "status": status,
        "length": 0 if bare else response.length_sent,
    }


def handler_key(request: HttpRequest) -> tuple[str, str]:
    """What stands for the handler of a request: applications choose it by these."""
    return request.method, request.path


def error_response(request: HttpRequest, error: BaseException) -> HttpResponse:
    """The reply when a handler raised: 500, which tells nothing about the reason; or, when it
    read a body that broke off, what the client did wrong."""
    status, text = 500, "Internal Server Error"
    body = request.stream
    if body is not None and body.raised(error):
        status, text = _broken_off(error)
    return HttpResponse(status, f"{text}\n", {"Content-Type": "text/plain; charset=utf-8"})


def _broken_off(error: BaseException) -> tuple[int, str]:
    if isinstance(error, ProtocolError):
        status = error.summary.get("status")
        return (status if isinstance(status, int) else 400), str(error)
    if isinstance(error, TimeoutError):
        return 408, "the request took too long to arrive"
    if isinstance(error, ConnectionResetError):
        return 400, "the request ended before its body did"
    return 500, "Internal Server Error"


def farewell(connection: CommConnection, reason: CloseReason) -> bytes | ProtocolError:
    """``408 Request Timeout`` to a request that was too slow; to the rest, nothing."""
    if reason is CloseReason.REQUEST_TOO_SLOW:
        return cast(HttpRequestParser, connection.parser).timeout_reply()
    return b""


_SAMPLES: Final = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /x?y HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"\r\nOPTIONS * HTTP/1.1\r\nhost:a\r\nX-Empty:\r\nX: 1\r\nX: 2\r\n\r\n",
    b"POST /f HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nDigest: d\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
)

HTTP_SPEC: Final = ProtocolSpec[HttpRequest, HttpResponse, HttpServerTask](
    name="http",
    message_in=new_parser,
    message_out=serialise,
    response=HttpResponse,
    task=HttpServerTask,
    error_response=error_response,
    farewell=farewell,
    summary=summary,
    handler_key=handler_key,
    demo="protoserve_http.demo:process",
    params=HttpParams(keep_alive_timeout=75.0),  # nginx
    samples=_SAMPLES,
    url_scheme="http",
    url_scheme_tls="https",
)
"""HTTP/1.1 and HTTP/1.0, as the ``protoserve`` command and ``WFHttpServer`` use it."""


@mypyc_attr(allow_interpreted_subclasses=True)
class WFHttpServer(WFServer[HttpRequest, HttpResponse]):
    """An HTTP server (the article's ``WFHttpServer``).

    ``process(task)`` fills in ``task.resp`` from ``task.req``. ``params`` defaults to
    ``HTTP_SPEC.params``.
    """

    def __init__(
        self,
        process: Callable[[WFHttpTask], object],
        params: ServerParams | None = None,
        *,
        on_start: Callable[[Any], object] | None = None,
        on_stop: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(HTTP_SPEC, process, params, on_start=on_start, on_stop=on_stop)

    def new_session(self, seq: int, conn: CommConnection) -> HttpServerTask:
        """See ``WFServer``. With ``HttpParams.stream_bodies``, ``conn.arriving`` is the request
        that has a body (``.request``), and settings of its own may be given to it: ``streams``
        (False: the handler gets it whole), ``receive_timeout``, ``size_limit``."""
        return HttpServerTask(self, self.process, seq, conn)
