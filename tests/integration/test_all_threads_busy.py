"""When every handler thread is busy: bytes move and time passes all the same.

These tests hang where that is not so; their time limit makes a failure of it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, Together, ask_together, eventually, get

from protoserve import (
    NEED_DATA,
    MessageParser,
    NeedData,
    ProtocolSpec,
    ServerParams,
    WaitGroup,
    WFServer,
    WFServerTask,
    timer,
)
from protoserve.events import HandlersBlocked
from protoserve.kernel.engine import ThreadEngine
from protoserve.kernel.leader_followers import LeaderFollowers
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

pytestmark = pytest.mark.timeout(30)


def deferred(server: WFHttpServer) -> int:
    """How many connections wait for a handler thread."""
    return sum(conn.entry.exchanges.deferred for conn in server.connections())


def params(threads: int, **changes: Any) -> ServerParams:
    return HTTP_SPEC.params.replace(handler_threads=threads, **changes)


class Gate:
    """A handler that waits at ``/wait`` until the gate is open."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.waiting = 0
        self.order: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, task: WFHttpTask) -> None:
        with self._lock:
            self.order.append(task.req.target)
            self.waiting += task.req.path == "/wait"
        if task.req.path == "/wait":
            assert self.opened.wait(PATIENCE)
        task.resp.write(task.req.target)


@contextlib.contextmanager
def all_busy(threads: int, **changes: Any) -> Iterator[tuple[WFHttpServer, Gate]]:
    """A server whose handler threads are all at the gate, which opens at the end."""
    gate = Gate()
    with WFHttpServer(gate, params(threads, **changes)).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(threads)]
        for i, client in enumerate(clients, 1):
            client.send(get("/wait"))
            eventually(lambda i=i: gate.waiting == i)
        try:
            yield server, gate
        finally:
            gate.opened.set()
            for client in clients:
                assert client.reply().body == b"/wait"
                client.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_deadlines_run(threads: int) -> None:
    with (
        all_busy(threads, peer_response_timeout=0.2, keep_alive_timeout=0.2) as (server, _),
        RawClient(server.address) as silent,
        RawClient(server.address) as half,
    ):
        half.send(b"GET / HTTP/1.1\r\nHost")
        assert silent.rest() == b""
        assert half.reply().status == 408


def test_connections_are_accepted_and_closed() -> None:
    with all_busy(2) as (server, _):
        clients = [RawClient(server.address) for _ in range(30)]
        eventually(lambda: server.conn_count == 32)
        for client in clients:
            client.close()
        eventually(lambda: server.conn_count == 2)


def test_requests_are_served_in_order_of_arrival() -> None:
    with all_busy(1) as (server, gate):
        clients = []
        for i in range(20):
            clients.append(RawClient(server.address))
            clients[-1].send(get(f"/{i}"))
            # Read, and seen to be complete: what comes later comes behind it.
            eventually(lambda i=i: deferred(server) == i + 1)
        gate.opened.set()
        for i, client in enumerate(clients):
            assert client.reply().body == b"/%d" % i
            client.close()
        assert gate.order == ["/wait", *(f"/{i}" for i in range(20))]


def test_pipelined_requests_wait_too() -> None:
    with all_busy(2) as (server, gate), RawClient(server.address) as client:
        client.send(b"".join(get(f"/{i}") for i in range(100)))
        client.end_sending()
        time.sleep(0.05)
        gate.opened.set()
        for i in range(100):
            assert client.reply().body == b"/%d" % i
        assert client.rest() == b""


def test_a_client_that_leaves_while_it_waits_is_let_go() -> None:
    with all_busy(2) as (server, gate):
        client = RawClient(server.address)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.send(get("/left"))
        eventually(lambda: deferred(server) > 0)
        client.close()
        eventually(lambda: server.conn_count == 2)
        gate.opened.set()
    assert "/left" not in gate.order


def test_a_stop_waits_for_requests_that_wait() -> None:
    gate = Gate()
    server = WFHttpServer(gate, params(1)).start("127.0.0.1", 0)
    with RawClient(server.address) as first, RawClient(server.address) as second:
        first.send(get("/wait"))
        eventually(lambda: gate.waiting == 1)
        second.send(get("/second"))
        eventually(lambda: deferred(server) > 0)
        server.shutdown()
        gate.opened.set()
        assert first.reply().closes
        assert second.reply().body == b"/second"
        assert server.stop() == 0


class Pusher:
    """A handler that pushes at ``/push`` until its client is gone, which it tells."""

    def __init__(self) -> None:
        self.ended = threading.Semaphore(0)

    def __call__(self, task: WFHttpTask) -> None:
        if task.req.path == "/push":
            try:
                while True:
                    task.push(bytes(65536))
            except ConnectionResetError:
                self.ended.release()
                raise
        task.resp.write("here")


def test_pushers_whose_clients_do_not_read_are_cut() -> None:
    pusher = Pusher()
    with WFHttpServer(pusher, params(3, peer_response_timeout=0.3)).start(
        "127.0.0.1", 0
    ) as server:
        clients = [RawClient(server.address, receive_buffer=4096) for _ in range(3)]
        for client in clients:
            client.send(get("/push"))
        for _ in clients:
            assert pusher.ended.acquire(timeout=PATIENCE)
        with RawClient(server.address) as other:
            assert other.ask().body == b"here"
        for client in clients:
            client.close()


def test_pushers_whose_clients_reset_are_woken() -> None:
    pusher = Pusher()
    with WFHttpServer(pusher, params(3, peer_response_timeout=None)).start(
        "127.0.0.1", 0
    ) as server:
        clients = [RawClient(server.address, receive_buffer=4096) for _ in range(3)]
        for client in clients:
            client.send(get("/push"))
        eventually(lambda: sum(c.pending >= c.unsent_limit for c in server.connections()) == 3)
        for client in clients:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        for _ in clients:
            assert pusher.ended.acquire(timeout=PATIENCE)


def looking_around(pause: float, closed: Callable[[], object]) -> Iterator[bytes]:
    """A body that has nothing more to send, and looks every ``pause`` seconds."""
    try:
        yield b"begun"
        while True:
            time.sleep(pause)
            yield b""
    finally:
        closed()


def test_generators_that_look_around_share_the_threads_and_are_closed() -> None:
    closed = threading.Semaphore(0)

    def process(task: WFHttpTask) -> None:
        if task.req.path == "/stream":
            task.resp.body = looking_around(0.005, closed.release)
        else:
            task.resp.write("here")

    with WFHttpServer(process, params(2)).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(6)]
        for client in clients:
            client.send(get("/stream"))
            assert client._file.readline() == b"HTTP/1.1 200 OK\r\n"
        with RawClient(server.address) as other:
            assert other.ask().body == b"here"
        for client in clients:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        for _ in clients:
            assert closed.acquire(timeout=PATIENCE)
        eventually(lambda: server.conn_count == 0)


def test_a_generator_is_closed_whose_client_read_all_and_left() -> None:
    """A client that has read everything leaves without a reset; its system tells on being
    asked, when it has forgotten the connection."""
    if not hasattr(socket, "TCP_LINGER2"):
        pytest.skip("this system cannot shorten the time after which it forgets")
    closed = threading.Event()

    def process(task: WFHttpTask) -> None:
        task.resp.body = looking_around(0.01, closed.set)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        client = RawClient(server.address)
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
        client.send(get())
        assert client._file.read(len(b"HTTP/1.1 200 OK\r\n")) == b"HTTP/1.1 200 OK\r\n"
        eventually(lambda: b"begun" in client._file.peek())
        client._file.read(len(client._file.peek()))
        client.close()
        assert closed.wait(20)


@pytest.mark.parametrize("handlers", [1, 5, 20])
def test_handlers_that_wait_for_their_own_timers(handlers: int) -> None:
    def process(task: WFHttpTask) -> None:
        group = WaitGroup(1)
        timer(0.05, lambda t: group.done()).start()
        assert group.wait(PATIENCE)
        task.resp.write("waited")

    with WFHttpServer(process, params(min(handlers, 5))).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(handlers)]
        for client in clients:
            client.send(get())
        for client in clients:
            assert client.reply().body == b"waited"
        with RawClient(server.address) as other:
            assert other.ask().body == b"waited"
        for client in clients:
            client.close()
        # Those that were hired for the time have gone, or go with their next event.
        names = [t.name for t in threading.enumerate() if t.name.startswith("protoserve-handler")]
        assert len(names) <= handlers + 7


def test_timers_callbacks_wait_for_a_thread_as_handlers_do() -> None:
    rang = threading.Event()
    with all_busy(1) as (_, gate):
        timer(0.01, lambda t: rang.set()).start()
        assert not rang.wait(0.1)
        gate.opened.set()
        assert rang.wait(PATIENCE)


def test_a_callback_that_blocks_does_not_stop_the_bytes() -> None:
    opened = threading.Event()
    entered = threading.Semaphore(0)

    def callback(task: WFHttpTask) -> None:
        entered.release()
        assert opened.wait(PATIENCE)

    def process(task: WFHttpTask) -> None:
        if task.req.path == "/callback":
            task.set_callback(callback)
        task.resp.write("here")

    with WFHttpServer(process, params(2, peer_response_timeout=0.2)).start(
        "127.0.0.1", 0
    ) as server:
        clients = [RawClient(server.address) for _ in range(4)]
        for client in clients:
            client.send(get("/callback"))
        for _ in range(2):
            assert entered.acquire(timeout=PATIENCE)
        with RawClient(server.address) as silent:
            assert silent.rest() == b""  # its time has run
        opened.set()
        for client in clients:
            assert client.reply().body == b"here"
            client.close()


def test_it_is_reported_once_a_minute() -> None:
    events: list[object] = []
    gate = Gate()
    gate.opened.set()

    def process(task: WFHttpTask) -> None:
        time.sleep(0.002)

    server = WFHttpServer(process, params(2))
    server.subscribe(events.append)
    with server.start("127.0.0.1", 0):
        ask_together(server.address, clients=6, times=20)
    assert sum(isinstance(event, HandlersBlocked) for event in events) <= 1


def test_the_thread_beyond_is_not_replaced_where_parsing_is_slow() -> None:
    """It runs no handlers, so that it is slow for other reasons: it must stay what it is."""

    class Slow(MessageParser[bytes]):
        def __init__(self, params: ServerParams) -> None:
            self.held = b""

        def feed(self, data: bytes) -> None:
            self.held += data

        def next_message(self) -> bytes | NeedData:
            end = time.monotonic() + 0.03
            while time.monotonic() < end:
                pass
            line, newline, rest = self.held.partition(b"\n")
            if not newline:
                return NEED_DATA
            self.held = rest
            return line

        @property
        def partial(self) -> bool:
            return bool(self.held)

    together = Together()

    def process(task: WFServerTask[bytes, bytearray]) -> None:
        with together:
            for _ in range(100):
                task.push(bytes(65536))

    spec = ProtocolSpec(
        name="slow",
        message_in=Slow,
        message_out=bytes,
        response=bytearray,
        params=ServerParams(handler_threads=2, peer_response_timeout=5),
    )
    with WFServer(spec, process).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address, receive_buffer=4096) for _ in range(5)]
        for client in clients:
            client.send(b"go\n")
            time.sleep(0.02)
        received = [0] * len(clients)

        def read(number: int) -> None:
            while received[number] < 6_553_600:
                received[number] += len(clients[number].sock.recv(1 << 20)) or 10**9

        readers = [threading.Thread(target=read, args=(i,)) for i in range(len(clients))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(25)
            assert not reader.is_alive()
        for client in clients:
            client.close()
    assert received == [6_553_600] * 5
    assert together.most <= 2


def test_a_place_that_was_lent_and_is_taken_back_leaves_somebody_to_poll() -> None:
    group = WaitGroup(1)
    entered = threading.Event()

    def process(task: WFHttpTask) -> None:
        if task.req.path == "/lend":
            entered.set()
            group.wait(PATIENCE)
        elif task.req.path == "/done":
            group.done()
        if task.req.path != "/here":
            while True:  # until the peer, which does not read, is cut
                task.push(bytes(65536))
        task.resp.write("here")

    with WFHttpServer(process, params(1, peer_response_timeout=0.3)).start(
        "127.0.0.1", 0
    ) as server:
        clients = [RawClient(server.address, receive_buffer=4096) for _ in range(2)]
        clients[0].send(get("/lend"))
        assert entered.wait(PATIENCE)
        clients[1].send(get("/done"))
        with RawClient(server.address) as other:
            assert other.ask("/here").body == b"here"
        for client in clients:
            client.close()


def test_an_idle_thread_takes_what_waits_when_a_place_is_lent() -> None:
    def process(task: WFHttpTask) -> None:
        if task.req.path == "/wait":
            for pause in 0.0, 0.1:
                group = WaitGroup(1)
                timer(0.05 if not pause else 0.0, lambda t, g=group: g.done()).start()
                time.sleep(pause)
                assert group.wait(PATIENCE)

    with (
        WFHttpServer(process, params(1)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as first,
        RawClient(server.address) as second,
    ):
        first.send(get("/wait"))
        time.sleep(0.02)
        assert second.ask().status == 200
        assert first.reply().status == 200


def test_what_waits_for_a_thread_is_not_lost_by_a_stop_that_cuts() -> None:
    closed = threading.Event()
    opened, entered = threading.Event(), threading.Event()

    def body() -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
                time.sleep(0.002)
        finally:
            closed.set()

    def process(task: WFHttpTask) -> None:
        if task.req.path == "/stream":
            task.resp.body = body()
            return
        entered.set()
        opened.wait(PATIENCE)

    server = WFHttpServer(process, params(1, shutdown_timeout=0.2)).start("127.0.0.1", 0)
    with RawClient(server.address) as stream, RawClient(server.address) as block:
        stream.send(get("/stream"))
        stream.sock.recv(1)
        block.send(get("/block"))
        assert entered.wait(PATIENCE)
        assert server.stop() >= 2
        opened.set()
        assert closed.wait(PATIENCE)
    eventually(lambda: server._references == 0)
    with server.start("127.0.0.1", 0):
        pass
    assert server.stop() == 0


def test_requests_that_wait_for_a_thread_count_as_cut() -> None:
    opened = threading.Event()
    gate = Gate()
    gate.opened = opened
    server = WFHttpServer(gate, params(1, shutdown_timeout=0.2)).start("127.0.0.1", 0)
    clients = [RawClient(server.address) for _ in range(4)]
    for client in clients:
        client.send(get("/wait"))
    eventually(lambda: deferred(server) == 3)
    assert server.stop() >= 4
    opened.set()
    for client in clients:
        client.close()


def test_a_stop_is_told_to_handlers_where_no_thread_is_left_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``shutdown()`` leaves that to the engine, whose leader is in the handler that waits for
    it: who waits for the stop does it."""
    told: list[bool] = []
    entered = threading.Event()

    def process(task: WFHttpTask) -> None:
        entered.set()
        told.append(server.wait_stopping(PATIENCE))

    server = WFHttpServer(process).start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        engine = server.engine
        assert isinstance(engine, ThreadEngine)
        # No help from the monitor.
        monkeypatch.setattr(LeaderFollowers, "take_over", lambda threads, mark, waits: False)
        client.send(get())
        assert entered.wait(PATIENCE)
        assert server.stop() == 0
        assert told == [True]
        assert client.reply().closes
