"""Who keeps a connection and who closes it: cases 1, 2 and 8, and the factories."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from loopback import RawClient, get, post

from protoserve import CommConnection, CommSession, TaskState, WFServerTask
from protoserve.testing import MemoryPeer, memory_server
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.transport import Transport


def process(task: WFHttpTask) -> None:
    task.resp.write(f"{task.seq}")


def test_case_1_the_tenth_request_ends_the_connection() -> None:
    def process(task: WFHttpTask) -> None:
        if task.seq == 9:
            task.set_keep_alive(0)
        task.resp.write(f"{task.seq}")

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        for seq in range(10):
            answer = c.ask()
            assert answer.body == str(seq).encode()
            assert answer.closes == (seq == 9)
        assert c.rest() == b""


def test_case_2_versions_and_wishes() -> None:
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            assert client.ask(version="1.0").closes
            assert client.rest() == b""
        with RawClient(server.address) as client:
            for _ in range(2):
                answer = client.ask("/", "Connection: Keep-Alive", version="1.0")
                assert answer.headers["connection"] == "keep-alive"
            assert client.open
        with RawClient(server.address) as client:
            assert "connection" not in client.ask().headers
            assert client.ask("/", "Connection: close").closes
            assert client.rest() == b""


def test_case_8_a_handler_may_take_longer_than_every_timeout() -> None:
    params = HTTP_SPEC.params.replace(
        peer_response_timeout=0.3,
        receive_timeout=0.3,
        keep_alive_timeout=0.3,
        send_timeout=0.3,
        shutdown_timeout=0.3,
    )

    def process(task: WFHttpTask) -> None:
        time.sleep(0.6)
        task.resp.write("late")

    with (
        WFHttpServer(process, params).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        for _ in range(2):
            answer = client.ask()
            assert answer.body == b"late"
            assert not answer.closes
        assert client.rest() == b""


def test_idle_connection_closes_after_its_time() -> None:
    params = HTTP_SPEC.params.replace(keep_alive_timeout=0.3)
    with (
        WFHttpServer(process, params).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.ask()
        start = time.monotonic()
        assert client.rest() == b""
        assert 0.25 <= time.monotonic() - start < 5


def test_silent_connection_closes_after_the_peer_timeout() -> None:
    params = HTTP_SPEC.params.replace(peer_response_timeout=0.3)
    with (
        WFHttpServer(process, params).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        start = time.monotonic()
        # No request, so no 408 either: browsers open connections on suspicion.
        assert client.rest() == b""
        assert 0.25 <= time.monotonic() - start < 5


class Counting(CommConnection):
    """A connection of the user's own."""

    __slots__ = ("posts",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.posts = 0


class OwnServer(WFHttpServer):
    """A session lets the third request of a connection be the last; connections count."""

    def __init__(self) -> None:
        super().__init__(self.count)
        self.closed: list[tuple[Any, list[str]]] = []
        self.all_closed = threading.Semaphore(0)

    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> Counting:
        conn = Counting(self, communicator, transport, peername)
        conn.context = []
        conn.on_close(self.note)
        return conn

    def note(self, conn: CommConnection) -> None:
        assert conn.closed
        self.closed.append((conn.peername, conn.context))
        self.all_closed.release()

    def new_session(self, seq: int, conn: CommConnection) -> CommSession:
        session = super().new_session(seq, conn)
        assert isinstance(session, WFServerTask)
        if seq == 2:
            session.set_keep_alive(0)
        return session

    def count(self, task: WFHttpTask) -> None:
        conn = task.connection
        assert isinstance(conn, Counting)
        conn.posts += task.req.method == "POST"
        conn.context.append(task.req.path)
        task.resp.write(f"{conn.posts}")


def test_own_sessions_and_connections() -> None:
    with OwnServer().start("127.0.0.1", 0) as server:
        with RawClient(server.address) as one, RawClient(server.address) as two:
            names = [one.name, two.name]
            one.send(post("/a", b"x") + post("/b", b"x"))
            assert [one.reply().body, one.reply().body] == [b"1", b"2"]
            assert two.ask("/z").body == b"0"
            last = one.ask("/c")
            assert last.body == b"2"
            assert last.closes
            assert one.rest() == b""
        for _ in names:
            assert server.all_closed.acquire(timeout=10)
    assert sorted(server.closed) == sorted(zip(names, [["/a", "/b", "/c"], ["/z"]], strict=True))


def test_factories_that_raise_cost_their_connection_only() -> None:
    class Failing(WFHttpServer):
        def new_session(self, seq: int, conn: CommConnection) -> CommSession:
            if seq == 1:
                raise RuntimeError("no session")
            return super().new_session(seq, conn)

    with Failing(process).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            assert client.ask().body == b"0"
            client.send(get())
            assert client.rest() == b""
        with RawClient(server.address) as client:
            assert client.ask().body == b"0"


def test_connection_factory_that_raises_costs_its_connection_only() -> None:
    class Failing(WFHttpServer):
        failures = 3

        def new_connection(
            self, communicator: Communicator, transport: Transport, peername: Any
        ) -> CommConnection:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("no connection")
            return super().new_connection(communicator, transport, peername)

    def block(task: WFHttpTask) -> None:
        if task.req.path == "/block":
            inside.set()
            assert go.wait(10)

    inside, go = threading.Event(), threading.Event()
    server = Failing(block, HTTP_SPEC.params.replace(handler_threads=1))
    with server.start("127.0.0.1", 0):
        server.failures = 0
        with RawClient(server.address) as blocker:
            blocker.send(get("/block"))
            assert inside.wait(10)
            server.failures = 3
            # All wait in the backlog, and are announced together.
            clients = [RawClient(server.address) for _ in range(5)]
            go.set()
            blocker.reply()
            clients[-1].send(get("/"))
            assert clients[-1].reply().status == 200
            for client in clients:
                client.close()


def test_on_close_of_a_closed_connection_runs_at_once() -> None:
    ran: list[bool] = []
    kept: list[CommConnection] = []

    def process(task: WFHttpTask) -> None:
        kept.append(task.connection)
        task.connection.close()
        task.connection.close()
        assert task.closed
        task.connection.on_close(lambda conn: ran.append(conn.closed))
        assert ran == [True]

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get())
        assert c.rest() == b""
    assert ran == [True]
    assert kept[0].closed


def test_noreply_closes_after_what_was_answered() -> None:
    states: list[TaskState] = []

    def process(task: WFHttpTask) -> None:
        task.set_callback(lambda task: states.append(task.state))
        if task.req.path == "/none":
            task.noreply()
        task.resp.write("x")

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get("/1") + get("/none") + get("/never"))
        assert c.reply().body == b"x"
        assert c.rest() == b""
    assert sorted(states) == [TaskState.SUCCESS, TaskState.NOREPLY]


def test_what_comes_while_the_last_reply_is_made_costs_no_reset() -> None:
    """It would be one where the server closed over what it has not read."""
    clients: list[MemoryPeer] = []

    def process(task: WFHttpTask) -> None:
        clients[0].send(get("/never"))
        task.set_keep_alive(0)

    with memory_server(HTTP_SPEC, process) as memory:
        clients.append(memory.connect())
        clients[0].send(get())
        assert clients[0].receive().startswith(b"HTTP/1.1 200 OK\r\n")
        # Our side has ended; what the client sends is taken in until it ends its own.
        assert clients[0].eof
        assert not clients[0].closed
        clients[0].half_close()
        assert clients[0].closed
        assert clients[0].receive() == b""
