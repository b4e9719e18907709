"""Leader/followers: handlers that block their thread do not block the others."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
from loopback import RawClient, Together, ask_together, eventually, get

from protoserve import CommConnection, ServerParams, WFServer
from protoserve.kernel.engine import ThreadEngine
from protoserve.kernel.leader_followers import LeaderFollowers
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask


class Sleeper:
    """A handler that sleeps at ``/sleep``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.entered = threading.Semaphore(0)

    def __call__(self, task: WFHttpTask) -> None:
        if task.req.path == "/sleep":
            self.entered.release()
            time.sleep(self.seconds)
        task.resp.write(task.req.path)


def threads(count: int) -> ServerParams:
    return HTTP_SPEC.params.replace(handler_threads=count)


def test_ninth_request_beside_eight_that_sleep() -> None:
    sleeper = Sleeper(0.5)
    with WFHttpServer(sleeper).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(8)]
        with RawClient(server.address) as ninth:
            start = time.monotonic()
            for client in clients:
                client.send(get("/sleep"))
            sent = time.monotonic()
            assert ninth.ask("/quick").body == b"/quick"
            took = time.monotonic() - sent
        for client in clients:
            assert client.reply().body == b"/sleep"
            client.close()
        all_took = time.monotonic() - start
    # On a quiet machine: below 50 ms and 1 s.
    assert took < 0.25
    assert all_took < 2.0


def test_request_while_eight_are_asleep() -> None:
    sleeper = Sleeper(0.5)
    with WFHttpServer(sleeper).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(8)]
        for client in clients:
            client.send(get("/sleep"))
            assert sleeper.entered.acquire(timeout=10)
        with RawClient(server.address) as ninth:
            start = time.monotonic()
            for _ in range(5):
                assert ninth.ask("/quick").body == b"/quick"
            assert time.monotonic() - start < 0.25
        for client in clients:
            client.close()


def test_twenty_one_sleepers_are_all_answered() -> None:
    events: list[object] = []
    sleeper = Sleeper(0.3)
    server = WFHttpServer(sleeper)
    server.subscribe(events.append)
    with server.start("127.0.0.1", 0):
        clients = [RawClient(server.address) for _ in range(21)]
        for client in clients:
            client.send(get("/sleep"))
        for client in clients:
            assert client.reply().body == b"/sleep"
            client.close()
        names = [t.name for t in threading.enumerate() if t.name.startswith("protoserve-handler")]
        assert len(names) <= 21  # one of them never runs handlers
    blocked = [event for event in events if type(event).__name__ == "HandlersBlocked"]
    # Once, or again after one freed up and blocked again.
    assert {getattr(event, "threads", 0) for event in blocked} == {20}


def test_with_one_thread_everybody_waits_and_is_answered() -> None:
    sleeper = Sleeper(0.1)
    with (
        WFHttpServer(sleeper, threads(1)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as one,
        RawClient(server.address) as two,
    ):
        one.send(get("/sleep"))
        assert sleeper.entered.acquire(timeout=10)
        assert two.ask("/quick").body == b"/quick"
        assert one.reply().body == b"/sleep"


def test_a_connection_stays_in_order_when_its_handlers_block() -> None:
    sleeper = Sleeper(0.03)
    with WFHttpServer(sleeper).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(b"".join(get("/sleep") + get(f"/{i}") for i in range(10)))
        for i in range(10):
            assert c.reply().body == b"/sleep"
            assert c.reply().body == b"/%d" % i


def test_a_reply_before_a_blocking_request_is_not_held_back() -> None:
    opened = threading.Event()

    def process(task: WFHttpTask) -> None:
        if task.req.path == "/block":
            assert opened.wait(10)
        task.resp.write(task.req.path)

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.send(get("/first") + get("/block"))
        assert c.reply().body == b"/first"
        opened.set()
        assert c.reply().body == b"/block"


def test_client_that_leaves_while_its_handler_blocks() -> None:
    opened = threading.Event()
    entered = threading.Event()
    closed: list[bool] = []

    def process(task: WFHttpTask) -> None:
        entered.set()
        assert opened.wait(10)
        closed.append(task.closed)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        client = RawClient(server.address)
        client.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset
        client.send(get())
        assert entered.wait(10)
        client.close()
        eventually(lambda: server.conn_count == 0)
        opened.set()
    assert closed == [True]


def test_idle_server_has_one_handler_thread_and_no_work() -> None:
    sleeper = Sleeper(0.05)
    with WFHttpServer(sleeper).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        c.ask("/quick")
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.05
        # It wakes up as if nothing had been.
        c.send(get("/sleep"))
        assert sleeper.entered.acquire(timeout=10)
        with RawClient(server.address) as other:
            assert other.ask("/quick").body == b"/quick"
        assert c.reply().body == b"/sleep"


def test_a_handler_known_to_block_is_called_behind_another_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once it was seen, nobody waits for the monitor; a fast one keeps its thread."""
    gate = threading.Event()
    entered = threading.Semaphore(0)
    names: dict[str, set[str]] = {"/fast": set(), "/block": set()}

    def process(task: WFHttpTask) -> None:
        names.setdefault(task.req.path, set()).add(threading.current_thread().name)
        if task.req.path == "/sleep":
            time.sleep(0.002)
        if task.req.path == "/block":
            entered.release()
            assert gate.wait(10)
        task.resp.write(task.req.path)

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as one:
        engine = server.engine
        assert isinstance(engine, ThreadEngine)
        for _ in range(4):
            one.ask("/sleep")
        assert server.habits.known
        # No help from the monitor.
        monkeypatch.setattr(LeaderFollowers, "take_over", lambda threads, mark, waits: False)
        with RawClient(server.address) as two, RawClient(server.address) as three:
            server.habits.surprise(("GET", "/block"))
            two.send(get("/block"))
            assert entered.acquire(timeout=10)
            for _ in range(50):
                assert three.ask("/fast").body == b"/fast"
            gate.set()
            assert two.reply().body == b"/block"
        assert not names["/fast"] & names["/block"]


@pytest.mark.parametrize("may_block", [False, True])
def test_a_handler_that_says_that_it_does_not_block(
    may_block: bool,
) -> None:
    """It is called like a fast one, whatever was seen of it."""
    leads: list[bool] = []

    class Handler:
        def __call__(self, task: WFHttpTask) -> None:
            leader = threads.leader
            leads.append(leader is not None and leader.ident == threading.get_ident())
            time.sleep(0.002)

    handler = Handler()
    if not may_block:  # it may by default
        handler.may_block = False  # type: ignore[attr-defined]
    with WFHttpServer(handler).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        engine = server.engine
        assert isinstance(engine, ThreadEngine)
        threads = engine._threads
        for _ in range(8):
            assert c.ask().status == 200
        server.habits.surprise(("GET", "/"))  # as the monitor does, who sees it asleep
        assert c.ask().status == 200
        assert bool(server.habits.known) == may_block
    assert all(leads) != may_block  # else another thread was promoted to lead before


def test_a_handler_that_computes_keeps_its_thread() -> None:
    names: set[str] = set()

    def process(task: WFHttpTask) -> None:
        names.add(threading.current_thread().name)
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass

    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        for _ in range(40):
            c.ask()
        # A busy machine may look like blocking now and then.
        assert len(names) <= 3


def test_many_that_sleep_sleep_together() -> None:
    """Not one after the other: a ratio, which a busy machine leaves alone."""
    together = Together()

    def process(task: WFHttpTask) -> None:
        with together:
            time.sleep(0.003)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        ask_together(server.address, clients=20, times=10)
    assert together.most >= 8


def test_the_key_of_a_handler_is_looked_at_without_the_connection_s_lock() -> None:
    connections: list[CommConnection] = []
    held: list[bool] = []

    class Key:
        def __hash__(self) -> int:
            held.extend(connection.entry.locked_here for connection in connections)
            return 1

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key)

    def process(task: WFHttpTask) -> None:
        connections[:] = [task.connection]
        time.sleep(0.002)
        task.resp.write("x")

    spec = dataclasses.replace(HTTP_SPEC, handler_key=lambda request: Key())
    with (
        WFServer(spec, process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        for _ in range(6):
            assert client.ask().body == b"x"
    assert held
    assert not any(held)
