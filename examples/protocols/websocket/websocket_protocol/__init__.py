"""WebSocket (RFC 6455), which begins as a request of HTTP's.

    def chat(task: WebSocketTask) -> None:
        task.resp.send(task.req)  # text is str, binary bytes

    def process(task: WFHttpTask) -> None:
        accept(task, chat)

A request is a message, a reply any number of them. Pings and the closing handshake are answered
before the application is asked.
"""

from websocket_protocol.messages import Close, Message, Ping, Reply, encode
from websocket_protocol.parser import WebSocketParser
from websocket_protocol.upgrade import WEBSOCKET_SPEC, WebSocketTask, accept, push

__all__ = [
    "WEBSOCKET_SPEC",
    "Close",
    "Message",
    "Ping",
    "Reply",
    "WebSocketParser",
    "WebSocketTask",
    "accept",
    "encode",
    "push",
]
