"""Starting, stopping, restarting: behaviour.md's "Stopping" and cases 9, 10 and 11."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from loopback import PATIENCE, RawClient, eventually, get

from protoserve import ServerParams, SubTask, UsageError, get_scheduler
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

PARAMS = HTTP_SPEC.params.replace(peer_response_timeout=5.0)


class Gate:
    """A handler that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, task: WFHttpTask) -> None:
        if task.req.path == "/busy":
            self.entered.release()
            assert self.opened.wait(10)
        task.resp.write(task.req.target)


class Serve:
    """Makes servers that do not outlive their test, also when it fails."""

    def __init__(self) -> None:
        self.servers: list[WFHttpServer] = []
        self.gate = Gate()

    def __call__(
        self,
        process: Callable[[WFHttpTask], object] | None = None,
        params: ServerParams = PARAMS,
        *,
        start: bool = True,
    ) -> WFHttpServer:
        server = WFHttpServer(process or self.gate, params)
        self.servers.append(server)
        return server.start("127.0.0.1", 0) if start else server


@pytest.fixture
def serve() -> Iterator[Serve]:
    serve = Serve()
    yield serve
    serve.gate.opened.set()
    for server in serve.servers:
        server.stop()
    assert get_scheduler().join(10)


def received(server: WFHttpServer, count: int) -> bool:
    """Whether so many connections hold the beginning of a request."""
    return [conn.phase for conn in server.connections()].count("RECEIVING") == count


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionError:
        return True
    return False


def test_case_9_stop_with_idle_busy_half_sent_and_silent(serve: Serve) -> None:
    gate = serve.gate
    server = serve()
    address = server.address
    with (
        RawClient(address) as idle,
        RawClient(address) as busy,
        RawClient(address) as half,
        RawClient(address) as silent,
    ):
        idle.ask()
        busy.send(get("/busy"))
        assert gate.entered.acquire(timeout=10)
        data = get("/half")
        half.send(data[:20])
        eventually(lambda: received(server, 1))
        server.shutdown()
        assert refused(address)
        assert idle.rest() == b""
        assert silent.rest() == b""
        assert not server.wait_finish(0.01)
        assert busy.open
        assert half.open
        half.send(data[20:])
        answer = half.reply()
        assert answer.body == b"/half"
        assert answer.closes
        assert half.rest() == b""
        gate.opened.set()
        answer = busy.reply()
        assert answer.body == b"/busy"
        assert answer.closes
        assert busy.rest() == b""
    assert server.stop() == 0
    assert server.conn_count == 0


def test_half_sent_request_times_out_while_stopping(serve: Serve) -> None:
    params = PARAMS.replace(peer_response_timeout=0.3)
    server = serve(params=params)
    with RawClient(server.address) as half:
        half.send(b"GET / HT")
        eventually(lambda: received(server, 1))
        server.shutdown()
        assert half.reply().status == 408
        assert half.rest() == b""
    assert server.stop() == 0


def test_request_that_arrived_before_the_stop_is_answered(serve: Serve) -> None:
    gate = serve.gate
    server = serve()
    with RawClient(server.address) as client:
        client.send(get("/busy") + get("/2") + get("/3"))
        assert gate.entered.acquire(timeout=10)
        server.shutdown()
        gate.opened.set()
        # The first reply says that it is the last: the others can be repeated elsewhere.
        assert client.reply().closes
        assert client.rest() == b""
    assert server.stop() == 0


def test_case_10_shutdown_in_a_handler(serve: Serve) -> None:
    finished = []

    def process(task: WFHttpTask) -> None:
        server.shutdown()
        server.shutdown()
        task.resp.write("bye")

    server = serve(process)
    waiter = threading.Thread(target=lambda: finished.append(server.wait_finish()))
    waiter.start()
    with RawClient(server.address) as client:
        answer = client.ask()
        assert answer.body == b"bye"
        assert answer.closes
        assert client.rest() == b""
    waiter.join(10)
    assert finished == [True]
    assert server.stop() == 0


@pytest.mark.parametrize("method", ["stop", "wait_finish"])
def test_waiting_in_a_handler_raises(serve: Serve, method: str) -> None:
    def process(task: WFHttpTask) -> None:
        with pytest.raises(UsageError, match=r"call shutdown\(\) there"):
            getattr(server, method)()
        task.resp.write("refused")

    with serve(process) as server, RawClient(server.address) as c:
        assert c.ask().body == b"refused"
        assert c.ask().body == b"refused"


def test_stopping_another_server_in_a_handler_raises_too(serve: Serve) -> None:
    # They share their threads: waiting for the other one may be waiting for oneself.
    def process(task: WFHttpTask) -> None:
        with pytest.raises(UsageError):
            other.stop()
        other.shutdown()
        task.resp.write("done")

    with (
        serve(process) as server,
        serve() as other,
    ):
        with RawClient(server.address) as client:
            assert client.ask().body == b"done"
        assert other.wait_finish(10)
        assert refused(other.address)
        with RawClient(server.address) as client:
            assert client.ask().body == b"done"


def test_case_11_the_same_object_again(serve: Serve) -> None:
    server = serve(start=False)
    address = ("127.0.0.1", 0)
    for _ in range(5):
        server.start(address)
        address = server.address
        with RawClient(address) as client:
            assert client.ask("/x").body == b"/x"
            assert server.conn_count == 1
            assert server.stop() == 0
            assert client.rest() == b""
        assert refused(address)
        assert not get_scheduler().running


def test_wait_finish_before_the_start(serve: Serve) -> None:
    server = serve(start=False)
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(server.wait_finish()))
    waiter.start()
    assert not server.wait_finish(0.02)
    server.start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        assert client.ask().status == 200
    assert not server.wait_finish(0.02)
    assert waiter.is_alive()
    server.stop()
    waiter.join(10)
    assert results == [True]
    assert server.wait_finish()


def test_wait_finish_sees_an_end_that_a_restart_follows(serve: Serve) -> None:
    server = serve(start=False)
    # With the scheduler kept in use, stopping takes no time in which waiters could look.
    with serve():
        for _ in range(20):
            server.start("127.0.0.1", 0)
            waiters = [threading.Thread(target=server.wait_finish) for _ in range(3)]
            for waiter in waiters:
                waiter.start()
            server.stop()
            server.start("127.0.0.1", 0)
            for waiter in waiters:
                waiter.join(5)
            missed = [waiter for waiter in waiters if waiter.is_alive()]
            server.stop()
            assert not missed


def test_stop_from_many_threads(serve: Serve) -> None:
    server = serve()
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(server.stop())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [0] * 8
    assert server.stop() == 0


def test_block_stops_also_after_an_exception(serve: Serve) -> None:
    with pytest.raises(KeyError), serve() as server:
        raise KeyError
    assert refused(server.address)
    assert not get_scheduler().running


def test_several_servers_share_the_scheduler_and_stop_together(serve: Serve) -> None:
    gate = serve.gate
    servers = [serve() for _ in range(3)]
    monitors = [t for t in threading.enumerate() if t.name == "protoserve-monitor"]
    assert len(monitors) == 1
    clients = [RawClient(server.address) for server in servers]
    for client in clients:
        client.send(get("/busy"))
        assert gate.entered.acquire(timeout=10)
    for server in servers:
        server.shutdown()
    for server in servers:
        assert not server.wait_finish(0.01)
    gate.opened.set()
    for client in clients:
        assert client.reply().closes
        client.close()
    for server in servers:
        assert server.wait_finish(10)
    assert not get_scheduler().running


def test_one_of_two_servers_stops(serve: Serve) -> None:
    with serve() as stays:
        goes = serve()
        with RawClient(stays.address) as client, RawClient(goes.address) as other:
            other.ask()
            client.ask()
            assert goes.stop() == 0
            assert other.rest() == b""
            assert client.ask("/still").body == b"/still"
            assert get_scheduler().running


def test_shutdown_timeout_cuts_and_stop_says_how_much(serve: Serve) -> None:
    gate = serve.gate
    params = PARAMS.replace(shutdown_timeout=0.2)
    server = serve(params=params)
    try:
        with RawClient(server.address) as busy, RawClient(server.address) as half:
            busy.send(get("/busy"))
            half.send(b"GET /")
            assert gate.entered.acquire(timeout=10)
            eventually(lambda: received(server, 1))
            start = time.monotonic()
            assert server.stop() == 2
            assert 0.2 <= time.monotonic() - start < 5
            assert server.stop() == 2
            assert busy.rest() == b""
            assert half.rest() == b""
        assert server.conn_count == 0
    finally:
        gate.opened.set()


def test_cut_server_starts_again(serve: Serve) -> None:
    gate = serve.gate
    params = PARAMS.replace(shutdown_timeout=0.05)
    server = serve(params=params)
    with RawClient(server.address) as busy:
        busy.send(get("/busy"))
        assert gate.entered.acquire(timeout=10)
        assert server.stop() == 1
    server.start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        assert client.ask("/again").body == b"/again"
        # The handler of the first life ends in the second, and changes nothing.
        gate.opened.set()
        assert client.ask("/again").body == b"/again"
    assert server.stop() == 0


def test_two_threads_cut_once(serve: Serve) -> None:
    gate = serve.gate
    params = PARAMS.replace(shutdown_timeout=0.05)
    server = serve(params=params)
    results: list[int] = []
    with RawClient(server.address) as busy:
        busy.send(get("/busy"))
        assert gate.entered.acquire(timeout=10)
        threads = [threading.Thread(target=lambda: results.append(server.stop())) for _ in "12"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert results == [1, 1]


def test_nothing_runs_when_stop_returns(serve: Serve) -> None:
    server = serve(start=False)
    for _ in range(30):
        server.start("127.0.0.1", 0)
        assert server.stop() == 0
        assert not get_scheduler().running
        assert not [t for t in threading.enumerate() if t.name.startswith("protoserve")]


def test_stop_does_not_wait_for_clients_that_stay(serve: Serve) -> None:
    gate = serve.gate
    server = serve()
    with RawClient(server.address) as busy:
        busy.send(get("/busy"))
        assert gate.entered.acquire(timeout=10)
        server.shutdown()
        gate.opened.set()
        assert busy.reply().closes
        # All it sent was read: no reset can overtake the reply, so nothing is waited for.
        assert server.wait_finish(1.0)


def late_shutdown(serve: Serve, shutdown_timeout: float) -> WFHttpServer:
    """A server that shuts down when a reply, which says nothing of that, is half sent."""

    def pieces() -> Iterator[bytes]:
        yield b"a"
        server.shutdown()
        yield b"b"

    def process(task: WFHttpTask) -> None:
        task.resp.headers["Content-Length"] = "2"
        task.resp.body = pieces()

    server = serve(process, PARAMS.replace(shutdown_timeout=shutdown_timeout))
    return server


def test_what_is_delivered_is_not_cut(serve: Serve) -> None:
    server = late_shutdown(serve, 0.05)
    with RawClient(server.address) as stays:
        reply = stays.ask()
        assert (reply.body, reply.closes) == (b"ab", False)
        assert stays.rest() == b""
        assert server.stop() == 0


def test_stop_waits_a_round_trip_for_a_client_that_stays(serve: Serve) -> None:
    server = late_shutdown(serve, 15)
    with RawClient(server.address) as stays:
        assert stays.ask().body == b"ab"
        assert server.wait_finish(1.5)


def test_stop_shortens_the_wait_for_a_client_that_stays(serve: Serve) -> None:
    server = serve()
    with RawClient(server.address) as stays:
        stays.send(b"garbage\r\n\r\n")
        assert stays.reply().closes
        assert stays.rest() == b""
        server.shutdown()
        assert server.wait_finish(1.5)


def test_stop_does_not_wait_for_the_abandoned_handler_of_an_earlier_life(serve: Serve) -> None:
    gate = serve.gate
    params = PARAMS.replace(shutdown_timeout=0.05)
    server = serve(params=params)
    with RawClient(server.address) as busy:
        busy.send(get("/busy"))
        assert gate.entered.acquire(timeout=10)
        assert server.stop() == 1
    other = serve()
    stopper = threading.Thread(target=other.stop)
    stopper.start()
    stopper.join(2)
    waits = stopper.is_alive()
    gate.opened.set()
    stopper.join(10)
    assert not waits


def test_no_shutdown_timeout_waits(serve: Serve) -> None:
    gate = serve.gate
    params = PARAMS.replace(shutdown_timeout=None)
    server = serve(params=params)
    with RawClient(server.address) as busy:
        busy.send(get("/busy"))
        assert gate.entered.acquire(timeout=10)
        server.shutdown()
        assert not server.wait_finish(0.1)
        gate.opened.set()
        assert busy.reply().closes
        assert server.stop() == 0


class Elsewhere(SubTask):
    """Ends on another thread, when the test says so."""

    def __init__(self, go: threading.Event) -> None:
        super().__init__()
        self.go = go
        self.thread = threading.Thread(target=self._work)

    def dispatch(self) -> None:
        self.thread.start()

    def _work(self) -> None:
        assert self.go.wait(10)
        self.subtask_done()


def test_stop_waits_for_what_a_callback_pushed(serve: Serve) -> None:
    go = threading.Event()
    ended = []

    def after(task: WFHttpTask) -> None:
        work = Elsewhere(go)
        task.series.set_callback(lambda _: ended.append(True))
        task.series.push_back(work)

    def process(task: WFHttpTask) -> None:
        task.set_callback(after)
        task.resp.write("first the reply")

    server = serve(process)
    with RawClient(server.address) as client:
        assert client.ask().body == b"first the reply"
    server.shutdown()
    assert not server.wait_finish(0.05)
    assert not ended
    go.set()
    assert server.stop() == 0
    assert ended == [True]


def test_many_threads_stop_a_server_at_once() -> None:
    for asynchronous in (False, True):

        async def coroutine(task: WFHttpTask) -> None:
            """Replies with nothing."""

        for _ in range(30):
            server = WFHttpServer(coroutine if asynchronous else lambda task: None)
            server.start("127.0.0.1", 0)
            results: list[object] = []

            def stop(server: WFHttpServer = server, results: list[object] = results) -> None:
                try:
                    results.append(server.stop())
                except BaseException as error:
                    results.append(error)

            threads = [threading.Thread(target=stop) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert results == [0] * 6
