"""From HTTP to WebSocket: the opening handshake (RFC 6455, 4.2), and what follows it."""

import base64
import binascii
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from wsproto.utilities import generate_accept_token

from protoserve import (
    CloseReason,
    CommConnection,
    MessageOut,
    ProtocolSpec,
    ServerParams,
    WFServer,
    WFServerTask,
)
from protoserve_http import WFHttpServer, WFHttpTask
from websocket_protocol.messages import (
    Close,
    Message,
    Ping,
    Reply,
    encode,
    encode_close,
    encode_pong,
)
from websocket_protocol.parser import WebSocketParser

VERSION: Final = "13"

_FAREWELLS: Final = {
    CloseReason.IDLE: 1001,
    CloseReason.SERVER_STOPPED: 1001,
    CloseReason.MADE_ROOM: 1013,
}


class WebSocketTask(WFServerTask[Message, Reply]):
    """What an application is called with: ``req`` is ``str`` or ``bytes``."""

    def message_out(self) -> MessageOut:
        if self.resp.closes:
            self.keep_alive = 0.0  # the client's Close is taken in, and the connection ends
        return self.resp.data


def last_word(connection: CommConnection, reason: CloseReason) -> bytes:
    return encode_close(Close(_FAREWELLS.get(reason, 1008), str(reason)))


def failed(request: Message, error: BaseException) -> Reply:
    """RFC 6455, 7.4.1: what was not to be expected prevented it."""
    reply = Reply()
    reply.close(1011, "internal error")
    return reply


def serve(process: Callable[[Any], object], params: ServerParams) -> WFServer[Any, Any]:
    """A server that speaks HTTP for as long as it takes to upgrade, for ``protoserve run``."""

    def upgrades(task: WFHttpTask) -> None:
        accept(task, process, params=params)

    async def upgrades_in_a_loop(task: WFHttpTask) -> None:
        upgrades(task)

    handler = upgrades_in_a_loop if inspect.iscoroutinefunction(process) else upgrades
    return WFHttpServer(handler, params)


# What is spoken after the handshake.
FRAMES: Final = ProtocolSpec[Message, Reply](
    name="websocket",
    message_in=WebSocketParser,  # type: ignore[arg-type]  # see _answers
    message_out=lambda reply: reply.data,
    response=Reply,
    task=WebSocketTask,
    error_response=failed,
    farewell=last_word,
    # Pings count as use. Size as in the library websockets; the time is that of API gateways.
    params=ServerParams(request_size_limit=1024 * 1024, keep_alive_timeout=600),
    url_scheme="ws",
    url_scheme_tls="wss",
)
WEBSOCKET_SPEC: Final = replace(FRAMES, server=serve, demo="websocket_protocol.demo:process")
"""What ``protoserve run websocket`` serves, handshake and all."""


def _answers(process: Callable[[Any], object]) -> Callable[[Any], object]:
    """``process``, for messages; pings and the end are answered here."""

    def answer(task: WebSocketTask) -> object:
        request: object = task.req
        match request:
            case Ping():
                task.resp.data += encode_pong(request.data)
                return None
            case Close():
                task.resp._end(request)  # the same code, RFC 6455, 5.5.1
                return None
        return process(task)

    return answer


def accept(
    task: WFHttpTask,
    process: Callable[[Any], object],
    *,
    subprotocols: Sequence[str] = (),
    params: ServerParams = FRAMES.params,
) -> bool:
    """Go on in WebSocket where the client asks for it, with the first of ``subprotocols`` that it
    offers, and ``process`` for its messages. Otherwise the response says what is wrong, and False
    is returned. Who may come from where (``Origin``) is the caller's to look at, before.
    """
    request, response = task.req, task.resp
    headers = request.headers
    if request.method != "GET" or "websocket" not in _tokens(request.upgrade or ""):
        return _refuse(task, 426, "this is a WebSocket")
    if headers.get("Sec-WebSocket-Version") != VERSION:
        response.headers["Sec-WebSocket-Version"] = VERSION
        return _refuse(task, 426, f"expected version {VERSION}")
    key = headers.get("Sec-WebSocket-Key", "").strip()
    try:
        whole = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        whole = False
    if not whole:
        return _refuse(task, 400, "expected a Sec-WebSocket-Key of 16 bytes")
    task.upgrade(FRAMES, _answers(process), params)
    response.headers["Upgrade"] = "websocket"
    response.headers["Sec-WebSocket-Accept"] = generate_accept_token(key.encode()).decode()
    offered = headers.getall("Sec-WebSocket-Protocol", [])
    both = [name.strip() for line in offered for name in line.split(",")]
    chosen = next((name for name in subprotocols if name in both), None)
    if chosen is not None:
        response.headers["Sec-WebSocket-Protocol"] = chosen
    return True


def push(connection: CommConnection, message: Message) -> bool:
    """Send a message that answers none. Any thread; False when the connection is closed."""
    return connection.push(encode(message))


def _tokens(field: str) -> list[str]:
    return [token.strip().lower() for token in field.split(",")]


def _refuse(task: WFHttpTask, status: int, words: str) -> bool:
    task.resp.status = status
    if status == 426:
        task.resp.headers["Upgrade"] = "websocket"
        task.resp.headers["Connection"] = "upgrade"
    task.resp.headers["Content-Type"] = "text/plain"
    task.resp.write(words + "\n")
    return False
