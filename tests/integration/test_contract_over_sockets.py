"""The contract with a protocol over real sockets, with functions and with coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, Together, eventually

from protoserve import (
    HOLD,
    NEED_DATA,
    CloseReason,
    CommConnection,
    MessageParser,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
    TaskState,
    UsageError,
    WFServer,
    WFServerTask,
)
from protoserve.events import ConnectionClosed

MIB = 1024 * 1024
RESET = struct.pack("ii", 1, 0)


class Lines(MessageParser[str]):
    """Lines; after ``data`` what follows is read by the reply: a block, or more lines.
    ``!`` breaks the protocol."""

    def __init__(self, params: ServerParams) -> None:
        self._held = b""
        self._back = False
        self.block = False

    def feed(self, data: bytes) -> None:
        self._held += data

    def next_message(self) -> Any:
        if self._back:
            self._back = False
            return HOLD
        end = b"\n.\n" if self.block else b"\n"
        text, found, rest = self._held.partition(end)
        if text.startswith(b"!"):
            raise ProtocolError("a fault", reply=b"ERR\n")
        if not found:
            return NEED_DATA
        self._held = rest
        self._back = text == b"data" and not self.block
        self.block = False
        return text.decode()

    @property
    def partial(self) -> bool:
        return bool(self._held)


class Answer:
    """``out`` is what is sent; by default nothing."""

    def __init__(self, out: Any = b"") -> None:
        self.out = out


Task = WFServerTask[str, Answer]


def spec(**changes: Any) -> ProtocolSpec[str, Answer]:
    fields: dict[str, Any] = {
        "name": "lines",
        "message_in": Lines,
        "message_out": lambda answer: answer.out,
        "response": Answer,
        "error_response": lambda request, error: Answer(f"ERR {request} {error}\n".encode()),
    }
    return ProtocolSpec(**{**fields, **changes})


class Server(WFServer[str, Answer]):
    """Notes why connections closed."""

    def __init__(
        self,
        process: Callable[[Any], object],
        params: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(spec(**changes), process, ServerParams(**(params or {})))
        self.ends: list[CloseReason] = []
        self.subscribe(self._note)

    def _note(self, event: object) -> None:
        if isinstance(event, ConnectionClosed):
            self.ends.append(event.reason)

    def here(self) -> Server:
        return self.start("127.0.0.1", 0)


def echo(task: Task) -> None:
    task.resp.out = task.req.encode() + b"\n"


async def echo_in_loop(task: Task) -> None:
    echo(task)


ECHOES = pytest.mark.parametrize("process", [echo, echo_in_loop], ids=["threads", "loop"])
BOTH = pytest.mark.parametrize("loop", [False, True], ids=["threads", "loop"])


def either(loop: bool, function: Any, coroutine: Any) -> Any:
    return coroutine if loop else function


def line(client: RawClient) -> bytes:
    return client._file.readline()


def lines(client: RawClient, count: int) -> list[bytes]:
    return [line(client) for _ in range(count)]


def reset(client: RawClient) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


# -- greeting ------------------------------------------------------------------------------


@ECHOES
def test_greeting_and_state(process: Any) -> None:
    def greet(conn: CommConnection) -> list[bytes]:
        conn.state = next(numbers)
        return [b"hello ", b"%d\n" % conn.state]

    numbers = iter(range(100))
    with Server(process, greeting=greet).here() as server:
        clients = [RawClient(server.address) for _ in range(10)]
        assert sorted(line(client) for client in clients) == [b"hello %d\n" % n for n in range(10)]
        assert sorted(conn.state for conn in server.connections()) == list(range(10))
        for client in clients:
            client.send(b"a\nb\n")
            assert lines(client, 2) == [b"a\n", b"b\n"]
            client.close()


@ECHOES
def test_nothing_overtakes_the_greeting(process: Any) -> None:
    over = threading.Event()

    def tell_all() -> None:
        while not over.is_set():
            for conn in server.connections():
                conn.push(b"news\n")

    with Server(process, greeting=lambda conn: b"hello\n").here() as server:
        thread = threading.Thread(target=tell_all)
        thread.start()
        try:
            for _ in range(100):
                with RawClient(server.address) as client:
                    assert line(client) == b"hello\n"
        finally:
            over.set()
            thread.join()


@ECHOES
def test_a_greeting_that_is_taken_slowly(process: Any) -> None:
    with (
        Server(process, greeting=lambda conn: bytes(4 * MIB) + b"\n").here() as server,
        RawClient(server.address, receive_buffer=4096) as client,
    ):
        client.send(b"a\n")
        time.sleep(0.1)
        assert server.connections()[0].pending > 0
        assert line(client) == bytes(4 * MIB) + b"\n"
        assert line(client) == b"a\n"


@ECHOES
def test_a_greeting_that_raises_ends_its_connection_only(process: Any) -> None:
    def greet(conn: CommConnection) -> bytes:
        if not server.ends:
            raise ValueError("a fault")
        return b"hello\n"

    with Server(process, greeting=greet).here() as server:
        with RawClient(server.address) as client:
            client.send(b"a\n")
            assert client.rest() == b""
        eventually(lambda: server.ends)
        assert server.ends == [CloseReason.PROTOCOL_FAILED]
        with RawClient(server.address) as client:
            assert line(client) == b"hello\n"


@ECHOES
def test_a_greeting_that_comes_later(process: Any) -> None:
    held: deque[CommConnection] = deque()

    def greet(conn: CommConnection) -> Any:
        held.append(conn)
        return HOLD

    with Server(process, greeting=greet).here() as server:
        clients = [RawClient(server.address) for _ in range(10)]
        for client in clients[::2]:
            client.send(b"a\nb\n")  # before it was greeted
        for client in clients[::4]:
            client.end_sending()
        eventually(lambda: len(held) == 10)
        time.sleep(0.05)
        assert {conn.seq for conn in held} == {0}
        for conn in held:
            assert conn.push(b"hello\n")
        for client in clients[1::2]:
            client.send(b"a\nb\n")
        for client in clients:
            assert lines(client, 3) == [b"hello\n", b"a\n", b"b\n"]
            client.close()


@ECHOES
def test_a_greeting_that_never_comes(process: Any) -> None:
    params = {"peer_response_timeout": 0.3}
    reasons: list[CloseReason] = []

    def farewell(conn: CommConnection, reason: CloseReason) -> bytes:
        reasons.append(reason)
        return b"bye\n"

    with Server(process, params, greeting=lambda conn: HOLD, farewell=farewell).here() as server:
        begun = time.monotonic()
        with RawClient(server.address) as client:
            client.send(b"a\nb\n")
            assert client.rest() == b"bye\n"
            assert 0.2 < time.monotonic() - begun < 5
        with RawClient(server.address) as client:
            eventually(lambda: server.conn_count == 1)
            reset(client)
            eventually(lambda: server.conn_count == 0)
    assert reasons == [CloseReason.NO_REQUEST]
    assert server.ends[1:] == [CloseReason.PEER_GONE]


@ECHOES
@pytest.mark.parametrize("word", [b"", b"bye\n"])
def test_a_stop_before_the_greeting(process: Any, word: bytes) -> None:
    server = Server(process, greeting=lambda conn: HOLD, farewell=lambda conn, reason: word)
    server.here()
    with RawClient(server.address) as client, RawClient(server.address) as other:
        other.send(b"a\n")
        eventually(lambda: server.conn_count == 2)
        server.shutdown()
        assert client.rest() == word
        with contextlib.suppress(ConnectionResetError):  # no word, and input that nobody read
            assert other.rest() == word
        assert server.stop() == 0


# -- farewell ------------------------------------------------------------------------------


def last_word(conn: CommConnection, reason: CloseReason) -> bytes:
    return b"bye: " + reason.encode() + b"\n"


@ECHOES
@pytest.mark.parametrize(
    ("before", "reason", "rest"),
    [
        (b"", CloseReason.NO_REQUEST, b""),
        (b"a\nb\n", CloseReason.IDLE, b""),
        (b"", CloseReason.REQUEST_TOO_SLOW, b"half of a requ"),
        (b"a\nb\n", CloseReason.REQUEST_TOO_SLOW, b"half of a requ"),
        (b"", CloseReason.SERVER_STOPPED, b""),
        (b"a\nb\n", CloseReason.SERVER_STOPPED, b""),
        (b"", CloseReason.MADE_ROOM, b""),
        (b"a\nb\n", CloseReason.MADE_ROOM, b""),
    ],
)
def test_farewell(process: Any, before: bytes, reason: CloseReason, rest: bytes) -> None:
    params: dict[str, Any] = {}
    if reason is CloseReason.NO_REQUEST:
        params["peer_response_timeout"] = 0.2
    elif reason is CloseReason.IDLE:
        params["keep_alive_timeout"] = 0.2
    elif reason is CloseReason.REQUEST_TOO_SLOW:
        params["receive_timeout"] = 0.2
    elif reason is CloseReason.MADE_ROOM:
        params["max_connections"] = 1
    server = Server(process, params, farewell=last_word).here()
    with RawClient(server.address) as client:
        client.send(before + rest)
        assert client._file.read(len(before)) == before
        other = None
        if reason is CloseReason.SERVER_STOPPED:
            eventually(lambda: server.conn_count == 1)
            server.shutdown()
        elif reason is CloseReason.MADE_ROOM:
            other = RawClient(server.address)
        assert client.rest() == b"bye: " + reason.encode() + b"\n"
        if other is not None:
            other.send(b"c\n")
            assert line(other) == b"c\n"
            other.close()
    server.stop()


@BOTH
def test_all_that_was_asked_is_answered_before_the_farewell(loop: bool) -> None:
    def process(task: Task) -> None:
        time.sleep(0.02)
        echo(task)

    async def in_loop(task: Task) -> None:
        await asyncio.sleep(0.02)
        echo(task)

    asked = b"".join(b"%d\n" % number for number in range(10))
    server = Server(either(loop, process, in_loop), farewell=last_word).here()
    with RawClient(server.address) as client, RawClient(server.address) as half_closed:
        client.send(asked)
        half_closed.send(asked)
        half_closed.end_sending()
        eventually(lambda: len([conn for conn in server.connections() if conn.seq]) == 2)
        server.shutdown()
        assert client.rest() == asked + last_word(None, CloseReason.SERVER_STOPPED)  # type: ignore[arg-type]
        assert half_closed.rest() == asked
    assert server.stop() == 0


@ECHOES
def test_the_farewell_reaches_a_client_that_goes_on_to_send(process: Any) -> None:
    with (
        Server(process, {"receive_timeout": 0.2}, farewell=last_word).here() as server,
        RawClient(server.address) as client,
    ):
        over = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    client.sock.send(b"x" * 10)
                    time.sleep(0.01)

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            word = last_word(None, CloseReason.REQUEST_TOO_SLOW)  # type: ignore[arg-type]
            assert client._file.read(len(word)) == word
        finally:
            over.set()
            thread.join()


@ECHOES
def test_a_farewell_that_raises(process: Any) -> None:
    def farewell(conn: CommConnection, reason: CloseReason) -> bytes:
        raise ValueError("a fault")

    with (
        Server(process, {"keep_alive_timeout": 0.1}, farewell=farewell).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"a\n")
        assert client.rest() == b"a\n"
        eventually(lambda: server.ends == [CloseReason.IDLE])


# -- HOLD, one way, many -------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("bytewise", [False, True])
def test_what_follows_is_read_by_the_reply(loop: bool, bytewise: bool) -> None:
    def answer(task: Task) -> None:
        if task.req == "data":
            task.connection.parser.block = True  # type: ignore[attr-defined]
        task.resp.out = task.req.replace("\n", "|").encode() + b"\n"

    def process(task: Task) -> None:
        if task.req == "data":
            time.sleep(0.1)
        answer(task)

    async def in_loop(task: Task) -> None:
        if task.req == "data":
            await asyncio.sleep(0.1)
        answer(task)

    asked = b"a\ndata\nx\ny\n.\nb\ndata\nz\n.\nc\n"
    with (
        Server(either(loop, process, in_loop)).here() as server,
        RawClient(server.address) as client,
    ):
        (client.send_bytewise if bytewise else client.send)(asked)
        client.end_sending()
        assert client.rest() == b"a\ndata\nx|y\nb\ndata\nz\nc\n"


@BOTH
def test_a_peer_that_resets_after_hold_is_missed(loop: bool) -> None:
    begun = threading.Event()
    closed = threading.Event()

    def process(task: Task) -> None:
        task.on_close(lambda task: closed.set())
        begun.set()
        closed.wait(PATIENCE)

    async def in_loop(task: Task) -> None:
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        task.on_close(lambda task: loop.call_soon_threadsafe(gone.set))
        begun.set()
        await asyncio.wait_for(gone.wait(), PATIENCE)
        closed.set()

    with Server(either(loop, process, in_loop)).here() as server:
        client = RawClient(server.address)
        client.send(b"data\nx\n")
        assert begun.wait(PATIENCE)
        client.send(b"y\n")
        time.sleep(0.05)
        reset(client)
        assert closed.wait(PATIENCE / 2)


@BOTH
def test_one_way_and_many(loop: bool) -> None:
    def process(task: Task) -> None:
        task.resp.out = [task.req.encode() + b"\n"] * (len(task.req) - 1)

    async def in_loop(task: Task) -> None:
        await asyncio.sleep(0)
        process(task)

    with (
        Server(either(loop, process, in_loop)).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"a\nbb\nc\nccc\nd\n")
        assert lines(client, 3) == [b"bb\n", b"ccc\n", b"ccc\n"]
        client.send(b"e\n" * 1000 + b"ff\n")
        assert line(client) == b"ff\n"
        client.send(b"g\n")
        client.end_sending()
        assert client.rest() == b""


# -- in flight -----------------------------------------------------------------------------


@BOTH
def test_handlers_of_one_connection_run_at_the_same_time(loop: bool) -> None:
    count = 4
    together = threading.Barrier(count)

    def process(task: Task) -> None:
        together.wait(PATIENCE)
        echo(task)

    waiting: list[asyncio.Event] = []

    async def in_loop(task: Task) -> None:
        waiting.append(asyncio.Event())
        if len(waiting) == count:
            for event in waiting:
                event.set()
        await asyncio.wait_for(waiting[-1].wait(), PATIENCE)
        echo(task)

    with (
        Server(either(loop, process, in_loop), in_flight=count).here() as server,
        RawClient(server.address) as client,
    ):
        for _ in range(3):
            waiting.clear()
            client.send(b"0\n1\n2\n3\n")
            assert sorted(lines(client, count)) == [b"0\n", b"1\n", b"2\n", b"3\n"]


@BOTH
def test_not_more_than_so_many(loop: bool) -> None:
    together = Together()

    def process(task: Task) -> None:
        with together:
            time.sleep(0.01)
        echo(task)

    async def in_loop(task: Task) -> None:
        with together:
            await asyncio.sleep(0.01)
        echo(task)

    with (
        Server(either(loop, process, in_loop), in_flight=3).here() as server,
        RawClient(server.address) as client,
    ):
        asked = [b"%d\n" % number for number in range(60)]
        client.send(b"".join(asked))
        assert sorted(lines(client, 60)) == sorted(asked)
    assert together.most == 3


@BOTH
def test_answers_come_as_they_are_there(loop: bool) -> None:
    opened = {word: threading.Event() for word in ("0", "10", "20", "30")}

    def process(task: Task) -> None:
        assert opened[task.req].wait(PATIENCE)
        echo(task)

    async def in_loop(task: Task) -> None:
        while not opened[task.req].is_set():
            await asyncio.sleep(0.001)
        echo(task)

    with (
        Server(either(loop, process, in_loop), in_flight=8).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"30\n20\n10\n0\n")
        for word, event in opened.items():
            event.set()
            assert lines(client, 1) == [f"{word}\n".encode()]


class Gate:
    """Handlers that wait until the test lets them go, each by its line."""

    def __init__(self) -> None:
        self.begun: dict[str, Task] = {}
        self.results: list[tuple[str, TaskState]] = []
        self.closes: list[str] = []
        self._open: set[str] = set()
        self._changed = threading.Condition()

    def _begin(self, task: Task) -> None:
        task.set_callback(lambda task: self.results.append((task.req, task.state)))
        task.on_close(lambda task: self.closes.append(task.req))
        if task.req == "last":
            task.set_keep_alive(0)
        self.begun[task.req] = task

    def process(self, task: Task) -> None:
        if not task.req.startswith("now"):
            self._begin(task)
            with self._changed:
                assert self._changed.wait_for(lambda: task.req in self._open, PATIENCE)
        self._end(task)

    async def in_loop(self, task: Task) -> None:
        if not task.req.startswith("now"):
            self._begin(task)
            end = time.monotonic() + PATIENCE
            while task.req not in self._open:
                assert time.monotonic() < end
                await asyncio.sleep(0.001)
        self._end(task)

    def _end(self, task: Task) -> None:
        if task.req == "noreply":
            task.noreply()
        elif task.req == "raise":
            raise ValueError("a fault")
        else:
            echo(task)

    def handler(self, loop: bool) -> Any:
        return either(loop, self.process, self.in_loop)

    def await_begun(self, *names: str) -> None:
        eventually(lambda: set(names) <= set(self.begun))

    def open(self, *names: str) -> None:
        with self._changed:
            self._open.update(names)
            self._changed.notify_all()


@BOTH
def test_a_fault_waits_for_those_in_flight(loop: bool) -> None:
    gate = Gate()
    with (
        Server(gate.handler(loop), in_flight=4).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"a\nb\n!\nc\n")
        gate.await_begun("a", "b")
        gate.open("b")
        assert line(client) == b"b\n"
        gate.open("a")
        assert client.rest() == b"a\nERR\n"
        client.close()
        eventually(lambda: len(gate.results) == 2)
        eventually(lambda: server.ends == [CloseReason.PROTOCOL_ERROR])
    assert gate.results == [("b", TaskState.SUCCESS), ("a", TaskState.SUCCESS)]
    assert set(gate.begun) == {"a", "b"}


@BOTH
@pytest.mark.parametrize("how", ["last", "noreply"])
def test_a_close_waits_for_those_in_flight(loop: bool, how: str) -> None:
    gate = Gate()
    with (
        Server(gate.handler(loop), in_flight=3).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"a\n%b\nb\nc\nd\n" % how.encode())
        gate.await_begun("a", how, "b")
        gate.open(how)
        if how == "last":
            assert line(client) == b"last\n"
        else:
            eventually(lambda: server.connections()[0].closing)
        gate.open("b")
        assert line(client) == b"b\n"
        gate.open("a")
        assert client.rest() == b"a\n"
    assert set(gate.begun) == {"a", "b", how}


@BOTH
@pytest.mark.parametrize("how", ["last", "noreply"])
def test_those_in_flight_may_push_when_another_was_the_last(loop: bool, how: str) -> None:
    gate = Gate()
    with (
        Server(gate.handler(loop), in_flight=2).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"a\n%b\n" % how.encode())
        gate.await_begun("a", how)
        gate.open(how)
        eventually(lambda: server.connections()[0].closing)
        gate.begun["a"].push(b"first\n")
        gate.open("a")
        assert client.rest() == (b"last\n" if how == "last" else b"") + b"first\na\n"


@BOTH
def test_a_failure_among_those_in_flight(loop: bool) -> None:
    gate = Gate()
    with (
        Server(gate.handler(loop), in_flight=3).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"a\nraise\nb\n")
        gate.await_begun("a", "raise", "b")
        gate.open("raise")
        assert line(client) == b"ERR raise a fault\n"
        gate.open("a", "b")
        assert sorted(lines(client, 2)) == [b"a\n", b"b\n"]
        client.send(b"now\n")
        assert line(client) == b"now\n"


@BOTH
def test_a_reset_while_several_are_in_flight(loop: bool) -> None:
    gate = Gate()
    with Server(gate.handler(loop), in_flight=3).here() as server:
        client = RawClient(server.address)
        client.send(b"a\nb\nc\nd\n")
        gate.await_begun("a", "b", "c")
        gate.open("b")
        assert line(client) == b"b\n"
        gate.await_begun("d")
        reset(client)
        eventually(lambda: server.conn_count == 0)
        gate.open("a", "c", "d")
        eventually(lambda: len(gate.results) == 4)
    assert Counter(gate.results) == Counter(
        [("b", TaskState.SUCCESS)] + [(name, TaskState.SYS_ERROR) for name in "acd"]
    )
    assert sorted(gate.closes) == ["a", "c", "d"]
    assert len(server.ends) == 1


@BOTH
def test_a_half_closed_client_gets_all_that_is_in_flight(loop: bool) -> None:
    gate = Gate()
    with (
        Server(gate.handler(loop), in_flight=2).here() as server,
        RawClient(server.address) as client,
    ):
        client.send(b"a\nb\nc\n")
        client.end_sending()
        gate.await_begun("a", "b")
        gate.open("b")
        gate.await_begun("c")
        gate.open("c")
        assert lines(client, 2) == [b"b\n", b"c\n"]
        gate.open("a")
        assert client.rest() == b"a\n"
        eventually(lambda: len(gate.results) == 3)
    assert {state for _, state in gate.results} == {TaskState.SUCCESS}


@BOTH
def test_a_stop_waits_for_those_in_flight(loop: bool) -> None:
    gate = Gate()
    server = Server(gate.handler(loop), in_flight=3, farewell=last_word).here()
    with RawClient(server.address) as client:
        client.send(b"a\nb\nc\nd\n")
        gate.await_begun("a", "b", "c")
        server.shutdown()
        gate.open("c", "d")
        assert lines(client, 2) == [b"c\n", b"d\n"]
        gate.open("a", "b")
        *rest, word = client.rest().splitlines()
        assert sorted(rest) == [b"a", b"b"]
        assert word == b"bye: the server stopped"
    assert server.stop() == 0
    assert len(gate.results) == 4


@BOTH
def test_a_stop_cuts_those_in_flight_when_the_time_is_over(loop: bool) -> None:
    gate = Gate()
    server = Server(gate.handler(loop), {"shutdown_timeout": 0.2}, in_flight=3).here()
    with RawClient(server.address) as client:
        client.send(b"a\nb\n")
        gate.await_begun("a", "b")
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        with contextlib.suppress(ConnectionResetError):
            assert client.rest() == b""
        gate.open("a", "b")
        stopper.join(PATIENCE)
        assert not stopper.is_alive()
    assert sorted(gate.closes) == ["a", "b"]


@BOTH
@pytest.mark.parametrize("kind", ["iterator", "async iterator"])
def test_a_reply_in_pieces_among_those_in_flight(loop: bool, kind: str) -> None:
    def whole(name: str) -> bytes:
        return name.encode() * 300_000 + b"\n"

    def pieces(name: str) -> Iterator[bytes]:
        for _ in range(30):
            yield name.encode() * 10_000
        yield b"\n"

    async def pieces_later(name: str) -> AsyncIterator[bytes]:
        for piece in pieces(name):
            await asyncio.sleep(0)
            yield piece

    def process(task: Task) -> None:
        if task.req.isdigit():
            time.sleep(0.01)
            echo(task)
        else:
            task.resp.out = either(kind == "async iterator", pieces, pieces_later)(task.req)

    async def in_loop(task: Task) -> None:
        await asyncio.sleep(0.01)
        if task.req.isdigit():
            echo(task)
        else:
            process(task)

    with (
        Server(either(loop, process, in_loop), in_flight=4).here() as server,
        RawClient(server.address, receive_buffer=4096) as client,
    ):
        client.send(b"1\na\n2\nb\n3\nc\n4\n5\nd\n6\n")
        time.sleep(0.1)
        got = sorted(lines(client, 10))
        assert got == sorted(
            [b"%d\n" % number for number in range(1, 7)] + [whole(name) for name in "abcd"]
        )


@BOTH
def test_many_connections_with_many_in_flight(loop: bool) -> None:
    called: Counter[str] = Counter()
    lock = threading.Lock()

    def note(task: Task) -> None:
        with lock:
            called[task.req] += 1

    def process(task: Task) -> None:
        number = int(task.req.split()[1])
        task.set_callback(note)
        if number % 7 == 0:
            time.sleep(0.002)
        if number % 5 == 0:
            task.resp.out = iter([task.req.encode(), b"\n"])
        else:
            echo(task)

    async def in_loop(task: Task) -> None:
        number = int(task.req.split()[1])
        task.set_callback(note)
        if number % 7 == 0:
            await asyncio.sleep(0.002)
        if number % 5 == 0:
            task.resp.out = iter([task.req.encode(), b"\n"])
        else:
            echo(task)

    names = [f"{client} {number}" for client in range(8) for number in range(300)]
    with Server(either(loop, process, in_loop), in_flight=5).here() as server:
        clients = [RawClient(server.address) for _ in range(8)]
        for number, client in enumerate(clients):
            client.send(b"".join(f"{number} {n}\n".encode() for n in range(300)))
        got = [answer for client in clients for answer in lines(client, 300)]
        for client in clients:
            client.close()
    assert Counter(got) == Counter(f"{name}\n".encode() for name in names)
    assert called == Counter(names)


# -- pace, times ---------------------------------------------------------------------------


@BOTH
def test_a_sender_waits_for_its_peer(loop: bool) -> None:
    most = 0

    def look(conn: CommConnection) -> None:
        nonlocal most
        most = max(most, conn.pending)

    def process(task: Task) -> None:
        for _ in range(64):
            task.connection.push(b"x" * 65536)
            look(task.connection)
            task.connection.drained()
        task.resp.out = b"\n"

    async def in_loop(task: Task) -> None:
        for _ in range(64):
            task.connection.push(b"x" * 65536)
            look(task.connection)
            await task.connection.drained()
        task.resp.out = b"\n"

    with (
        Server(either(loop, process, in_loop)).here() as server,
        RawClient(server.address, receive_buffer=4096) as client,
    ):
        client.send(b"go\n")
        time.sleep(0.1)
        assert line(client) == b"x" * 64 * 65536 + b"\n"
    assert most <= 65536


@BOTH
@pytest.mark.parametrize("how", ["reset", "close", "too slow"])
def test_drained_when_the_peer_goes(loop: bool, how: str) -> None:
    waiting = threading.Event()
    over: list[bool] = []

    def process(task: Task) -> None:
        task.connection.push(bytes(16 * MIB))
        waiting.set()
        task.connection.drained()
        over.append(task.connection.closed)

    async def in_loop(task: Task) -> None:
        task.connection.push(bytes(16 * MIB))
        waiting.set()
        await task.connection.drained()
        over.append(task.connection.closed)

    params = {"peer_response_timeout": 0.3} if how == "too slow" else {}
    with (
        Server(either(loop, process, in_loop), params).here() as server,
        RawClient(server.address, receive_buffer=4096) as client,
    ):
        client.send(b"go\n")
        assert waiting.wait(PATIENCE)
        time.sleep(0.05)
        assert not over
        if how == "reset":
            reset(client)
        elif how == "close":
            server.connections()[0].close()
        eventually(lambda: over)
    assert over == [True]


def test_drained_in_a_thread_of_ones_own() -> None:
    with (
        Server(echo, greeting=lambda conn: b"hello\n").here() as server,
        RawClient(server.address, receive_buffer=4096) as client,
    ):
        assert line(client) == b"hello\n"
        (conn,) = server.connections()
        conn.push(bytes(8 * MIB))
        threads = [threading.Thread(target=conn.drained) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert all(thread.is_alive() for thread in threads)
        assert client._file.read(8 * MIB) == bytes(8 * MIB)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@ECHOES
def test_drained_in_the_middle_of_the_connections_work(process: Any) -> None:
    seen: list[BaseException] = []

    def greet(conn: CommConnection) -> bytes:
        for call in (conn.drained, lambda: conn.push(b"x"), lambda: conn.set_timeout(receive=1)):
            with pytest.raises(UsageError) as raised:
                call()
            seen.append(raised.value)
        return b"hello\n"

    with Server(process, greeting=greet).here() as server, RawClient(server.address) as client:
        assert line(client) == b"hello\n"
    assert len(seen) == 3


@BOTH
def test_times_of_ones_own(loop: bool) -> None:
    def process(task: Task) -> None:
        if task.req == "short":
            task.connection.set_timeout(keep_alive=0.1)
            task.set_keep_alive(task.connection.keep_alive_limit)
        echo(task)

    async def in_loop(task: Task) -> None:
        process(task)

    with (
        Server(either(loop, process, in_loop), farewell=last_word).here() as server,
        RawClient(server.address) as short,
        RawClient(server.address) as other,
    ):
        other.send(b"a\n")
        assert line(other) == b"a\n"
        short.send(b"short\n")
        assert short.rest() == b"short\nbye: the keep-alive time has passed\n"
        assert other.open
