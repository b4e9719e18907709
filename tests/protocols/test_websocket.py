"""examples/protocols/websocket, with the library websockets, and frames of our own."""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from websocket_protocol import WEBSOCKET_SPEC, WebSocketTask, accept, push
from websocket_protocol.demo import process as echo
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from protoserve import ServerParams, WFServer
from protoserve_http import WFHttpServer, WFHttpTask


async def echo_in_a_loop(task: WebSocketTask) -> None:
    echo(task)


def started(process: Any = echo, **changes: Any) -> WFServer[Any, Any]:
    """As ``protoserve run websocket`` makes it."""
    assert WEBSOCKET_SPEC.server is not None
    server = WEBSOCKET_SPEC.server(process, WEBSOCKET_SPEC.params.replace(**changes))
    return server.start("127.0.0.1", 0)


@pytest.fixture(params=[echo, echo_in_a_loop], ids=["threads", "loop"])
def server(request: pytest.FixtureRequest) -> Iterator[WFServer[Any, Any]]:
    with started(request.param) as server:
        yield server


@contextlib.contextmanager
def client_of(server: WFServer[Any, Any], **options: Any) -> Iterator[ClientConnection]:
    host, port = server.address[:2]
    settings = {"proxy": None, "open_timeout": PATIENCE, "close_timeout": PATIENCE, **options}
    with connect(f"ws://{host}:{port}/", **settings) as client:
        yield client


def heard(client: ClientConnection) -> str | bytes:
    return client.recv(timeout=PATIENCE)


def end_of(client: ClientConnection) -> tuple[int, str]:
    """The code and reason of the server's Close frame."""
    with pytest.raises(ConnectionClosed) as ended:
        heard(client)
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


# -- the library ---------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["grün", "", b"\0\xff", b"", "x" * 126, b"x" * 70_000])
def test_text_and_binary(server: WFServer[Any, Any], message: str | bytes) -> None:
    with client_of(server) as client:
        for _ in range(3):
            client.send(message)
            assert heard(client) == message
    assert (client.close_code, client.close_reason) == (1000, "")
    eventually(lambda: server.conn_count == 0)


def test_messages_in_fragments(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        client.send(iter(["gr", "", "ün", "!"]))
        assert heard(client) == "grün!"
        client.send(iter([b"a", b"b", b"c"]))
        assert heard(client) == b"abc"


def test_pings(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        for data in (None, b"", b"x" * 125):
            assert client.ping(data).wait(PATIENCE)
        client.pong(b"nobody asked")
        client.send("after")
        assert heard(client) == "after"


def test_many_at_once(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        for number in range(300):
            client.send(str(number))
        assert [heard(client) for _ in range(300)] == [str(number) for number in range(300)]


@pytest.mark.parametrize(("code", "reason"), [(1000, "bye"), (1001, ""), (4711, "grün")])
def test_the_client_ends(server: WFServer[Any, Any], code: int, reason: str) -> None:
    with client_of(server) as client:
        client.send("a")
        client.close(code, reason)
    # What the server sent, which is the same.
    assert client.protocol.close_rcvd is not None
    assert (client.protocol.close_rcvd.code, client.protocol.close_rcvd.reason) == (code, reason)
    eventually(lambda: server.conn_count == 0)


def test_the_server_ends() -> None:
    # The client loses what it has received when it notices the end while it sends.
    sent = threading.Event()

    def once(task: WebSocketTask) -> None:
        assert sent.wait(PATIENCE)
        task.resp.send("the last")
        task.resp.close(4000, "enough")

    with started(once) as server, client_of(server) as client:
        client.send("a")
        client.send("b")
        sent.set()
        assert heard(client) == "the last"
        assert end_of(client) == (4000, "enough")
        eventually(lambda: server.conn_count == 0)


def test_messages_that_are_too_large(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        client.send("first")
        assert heard(client) == "first"
        with contextlib.suppress(ConnectionClosed):  # it may have heard of the end
            client.send(b"x" * (1024 * 1024))
        assert end_of(client) == (1009, "a message of more than 1048576 bytes")
    with client_of(server) as client:
        with contextlib.suppress(ConnectionClosed):
            client.send(bytes(1024) for _ in range(2000))
        assert end_of(client)[0] == 1009
    eventually(lambda: server.conn_count == 0)


def test_a_client_that_is_silent_is_told_that_it_ends() -> None:
    with started(keep_alive_timeout=0.2) as server, client_of(server) as client:
        assert end_of(client) == (1001, "the keep-alive time has passed")


@pytest.mark.slow
def test_a_client_that_pings_stays() -> None:
    with (
        started(keep_alive_timeout=2.5) as server,
        client_of(server, ping_interval=0.1, ping_timeout=PATIENCE) as client,
    ):
        client.send("a")
        assert heard(client) == "a"
        with pytest.raises(TimeoutError):
            client.recv(timeout=4)
        client.send("b")
        assert heard(client) == "b"


def test_the_server_stops(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        client.send("a")
        assert heard(client) == "a"
        server.shutdown()
        assert end_of(client) == (1001, "the server stopped")
    assert server.stop() == 0


def test_a_handler_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fails(task: WebSocketTask) -> None:
        raise ValueError("a fault of the application")

    with started(fails) as server, client_of(server) as client:
        client.send("a")
        assert end_of(client) == (1011, "internal error")
        eventually(lambda: server.conn_count == 0)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_messages_that_answer_none() -> None:
    def process(task: WebSocketTask) -> None:
        connection = task.connection
        for word in task.req.split():  # type: ignore[union-attr]
            threading.Timer(0.05, push, [connection, word]).start()

    with started(process) as server, client_of(server) as client:
        client.send("one two three")
        assert sorted(heard(client) for _ in range(3)) == ["one", "three", "two"]  # type: ignore[type-var]


def test_subprotocols() -> None:
    def process(task: WFHttpTask) -> None:
        accept(task, echo, subprotocols=["b", "c"])

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with client_of(server, subprotocols=["a", "c", "b"]) as client:
            assert client.subprotocol == "b"
        with client_of(server, subprotocols=["a"]) as client:
            assert client.subprotocol is None
            client.send("a")
            assert heard(client) == "a"


def test_a_refusal_is_the_application_s() -> None:
    def process(task: WFHttpTask) -> None:
        task.resp.status = 403

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with pytest.raises(InvalidStatus) as refused, client_of(server):
            pass
        assert refused.value.response.status_code == 403


# -- frames of our own ---------------------------------------------------------------------

KEY = base64.b64encode(bytes(16)).decode()
FIELDS = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
)


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


@contextlib.contextmanager
def raw_client(server: WFServer[Any, Any], ahead: bytes = b"") -> Iterator[RawClient]:
    with RawClient(server.address) as client:
        client.send(get("/", *FIELDS) + ahead)
        assert client._file.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        fields = list(iter(client._file.readline, b"\r\n"))
        assert b"Upgrade: websocket\r\n" in fields
        assert b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n" in fields
        yield client


@pytest.mark.parametrize("bytewise", [False, True])
def test_frames_that_come_with_the_handshake(server: WFServer[Any, Any], bytewise: bool) -> None:
    data = (
        frame(Opcode.TEXT, b"a", fin=False)
        + frame(Opcode.PING, b"!")
        + frame(Opcode.CONT, b"b")
        + frame(Opcode.CLOSE, b"\x03\xe8")
        + frame(Opcode.TEXT, b"lost")
    )
    with raw_client(server, b"" if bytewise else data) as client:
        if bytewise:
            with contextlib.suppress(ConnectionError):  # what follows the end
                client.send_bytewise(data)
        answers = b"\x8a\x01!" + b"\x81\x02ab" + b"\x88\x02\x03\xe8"
        assert client._file.read(len(answers)) == answers
        assert client.rest() == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(Opcode.TEXT, b"\xff"), 1007),
        (frame(Opcode.TEXT, b"\xc3", fin=False) + frame(Opcode.CONT, b"\x28"), 1007),
        (frame(Opcode.TEXT, b"\xc3"), 1007),
        (frame(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
        (Frame(Opcode.TEXT, b"a").serialize(mask=False), 1002),
        (frame(Opcode.CONT, b"a"), 1002),
        (b"\x83\x80" + bytes(4), 1002),
        (frame(Opcode.CLOSE, b"\x03\xed"), 1002),
        (b"\x82\xff\0\0\1\0\0\0\0\0" + bytes(4), 1009),
    ],
    ids=[  # of their own, since the masks are random
        "no text",
        "no text in fragments",
        "half a letter",
        "reason",
        "no mask",
        "continuation",
        "opcode",
        "code",
        "length",
    ],
)
def test_who_breaks_the_protocol_hears_so(
    server: WFServer[Any, Any], data: bytes, code: int
) -> None:
    with raw_client(server, frame(Opcode.TEXT, b"good") + data) as client:
        assert client._file.read(6) == b"\x81\x04good"
        first, size = client._file.read(2)
        assert first == 0x88
        assert client._file.read(size)[:2] == code.to_bytes(2, "big")
        assert client.rest() == b""


def test_a_message_that_does_not_come_whole() -> None:
    with started(receive_timeout=0.2) as server, raw_client(server) as client:
        client.send(frame(Opcode.TEXT, b"a", fin=False))
        assert client._file.read(4)[2:] == (1008).to_bytes(2, "big")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((), 426),
        (FIELDS[:1] + FIELDS[2:], 426),
        (FIELDS[1:], 426),
        ((*FIELDS[:1], "Upgrade: other", *FIELDS[2:]), 426),
        (FIELDS[:2] + FIELDS[3:], 426),
        ((*FIELDS[:2], "Sec-WebSocket-Version: 8", *FIELDS[3:]), 426),
        (FIELDS[:3], 400),
        ((*FIELDS[:3], "Sec-WebSocket-Key: c2hvcnQ="), 400),
        ((*FIELDS[:3], "Sec-WebSocket-Key: ?"), 400),
    ],
)
def test_handshakes_that_are_none(
    server: WFServer[Any, Any], fields: tuple[str, ...], status: int
) -> None:
    with RawClient(server.address) as client:
        reply = client.ask("/", *fields)
        assert reply.status == status
        if status == 426:
            assert reply.headers["upgrade"] == "websocket"
        # And goes on in HTTP.
        assert client.ask("/", *fields).status == status


def test_clients_that_leave_in_the_middle(server: WFServer[Any, Any]) -> None:
    data = get("/", *FIELDS) + frame(Opcode.TEXT, b"abc") + frame(Opcode.CLOSE, b"")
    for cut in range(0, len(data), 5):
        with RawClient(server.address) as client:
            client.send(data[:cut])
    eventually(lambda: server.conn_count == 0)
    with client_of(server) as whole:
        whole.send("a")
        assert heard(whole) == "a"


def test_the_limit_is_the_application_s() -> None:
    def process(task: WFHttpTask) -> None:
        accept(task, echo, params=ServerParams(request_size_limit=20))

    with WFHttpServer(process).start("127.0.0.1", 0) as server, client_of(server) as client:
        client.send("x" * 14)
        assert heard(client) == "x" * 14
        client.send("x" * 15)
        assert end_of(client)[0] == 1009
