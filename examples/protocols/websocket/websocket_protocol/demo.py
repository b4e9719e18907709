"""An application: says what it hears. ``protoserve run websocket``."""

from websocket_protocol import WebSocketTask


def process(task: WebSocketTask) -> None:
    task.resp.send(task.req)
