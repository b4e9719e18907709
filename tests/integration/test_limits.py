"""At the limits: number of connections (case 13), output nobody reads (case 7)."""

from __future__ import annotations

import errno
import threading
import time
import tracemalloc

import pytest
from loopback import RawClient, eventually, get

from protoserve import TaskState
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

TWO = HTTP_SPEC.params.replace(max_connections=2)
MIB = 1024 * 1024


def process(task: WFHttpTask) -> None:
    task.resp.write(task.req.path)


def idle(server: WFHttpServer) -> int:
    return [conn.phase for conn in server.connections()].count("KEEPALIVE")


def all_settled(server: WFHttpServer) -> bool:
    return {conn.phase for conn in server.connections()} <= {"KEEPALIVE", "CONNECTED"}


def test_case_13_the_least_recently_used_idle_connection_goes() -> None:
    with (
        WFHttpServer(process, TWO).start("127.0.0.1", 0) as server,
        RawClient(server.address) as one,
        RawClient(server.address) as two,
    ):
        one.ask()
        eventually(lambda: idle(server) == 1)
        two.ask()
        one.ask()
        eventually(lambda: idle(server) == 2)
        with RawClient(server.address) as three:
            assert three.ask("/3").body == b"/3"
            assert two.rest() == b""
            assert one.ask("/1").body == b"/1"
            assert server.conn_count == 2


def test_at_the_limit_many_idle_ones_go_in_order_of_their_last_use() -> None:
    params = HTTP_SPEC.params.replace(max_connections=8)
    with WFHttpServer(process, params).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(8)]
        order = [3, 0, 7, 5, 1, 2, 6, 4]
        for i in order:
            clients[i].ask()
            eventually(lambda: all_settled(server))
        clients[order[0]].ask()  # used again: now the last
        eventually(lambda: idle(server) == 8)
        for gone in (*order[1:], order[0]):
            newcomer = RawClient(server.address)
            clients.append(newcomer)
            newcomer.send(b"G")  # busy, so that it is not the next to go
            assert clients[gone].rest() == b""
            assert server.conn_count <= 8
        for client in clients:
            client.close()


def test_silent_connections_cannot_lock_others_out() -> None:
    with (
        WFHttpServer(process, TWO).start("127.0.0.1", 0) as server,
        RawClient(server.address) as one,
        RawClient(server.address) as two,
    ):
        two.send(b"GET / HT")
        start = time.monotonic()
        with RawClient(server.address) as three:
            assert three.ask("/3").body == b"/3"
            # Only after a second of silence.
            assert 0.8 < time.monotonic() - start < 6
            assert one.rest() == b""
            assert two.open


def test_with_busy_connections_accepting_waits() -> None:
    entered, opened = threading.Semaphore(0), threading.Event()

    def process(task: WFHttpTask) -> None:
        if task.req.path == "/busy":
            entered.release()
            assert opened.wait(10)
        task.resp.write(task.req.path)

    with WFHttpServer(process, TWO).start("127.0.0.1", 0) as server:
        busy = [RawClient(server.address) for _ in range(2)]
        for client in busy:
            client.send(get("/busy"))
            assert entered.acquire(timeout=10)
        with RawClient(server.address) as late:
            late.send(get("/late"))
            late.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                late.sock.recv(1)
            late.sock.settimeout(10)
            assert server.conn_count == 2
            opened.set()
            assert late.reply().body == b"/late"
        for client in busy:
            client.close()


def test_five_hundred_idle_connections() -> None:
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(500)]
        try:
            for client in clients:
                assert client.ask("/i").body == b"/i"
            eventually(lambda: idle(server) == 500)
            with RawClient(server.address) as other:
                for _ in range(100):
                    assert other.ask("/other").body == b"/other"
            assert clients[0].ask("/first").body == b"/first"
            assert server.stop() == 0
            for client in clients:
                assert client.rest() == b""
        finally:
            for client in clients:
                client.close()


def test_case_7_a_client_that_never_reads_is_cut() -> None:
    # As one object: what the engine adds is what is measured.
    big = bytes(64 * MIB)
    ends: list[tuple[TaskState, int, str | None]] = []
    ended = threading.Event()
    handled: list[int] = []

    def after(task: WFHttpTask) -> None:
        ends.append((task.state, task.error, task.timeout_reason))
        ended.set()

    def process(task: WFHttpTask) -> None:
        handled.append(task.seq)
        task.set_callback(after)
        task.resp.write(big)

    params = HTTP_SPEC.params.replace(peer_response_timeout=0.3)
    with (
        WFHttpServer(process, params).start("127.0.0.1", 0) as server,
        RawClient(server.address, receive_buffer=4096) as client,
    ):
        tracemalloc.start()
        try:
            start = time.monotonic()
            client.send(get() * 100)
            assert ended.wait(10)
            took = time.monotonic() - start
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        eventually(lambda: server.conn_count == 0)
    assert 0.3 <= took < 5
    assert ends == [(TaskState.SYS_ERROR, errno.ETIMEDOUT, "TRANSMIT")]
    # With so much unsent, the other requests of the client have to wait.
    assert handled == [0]
    assert peak < 4 * MIB


def test_a_slow_reader_is_not_cut() -> None:
    big = bytes(4 * MIB)

    def process(task: WFHttpTask) -> None:
        task.resp.write(big)

    params = HTTP_SPEC.params.replace(peer_response_timeout=0.5)
    with (
        WFHttpServer(process, params).start("127.0.0.1", 0) as server,
        RawClient(server.address, receive_buffer=64 * 1024) as client,
    ):
        client.send(get("/", "Connection: close"))
        size = 0
        start = time.monotonic()
        while piece := client.sock.recv(16 * 1024):
            size += len(piece)
            if time.monotonic() - start < 1.2:
                time.sleep(0.02)
        assert size > len(big)


def test_send_timeout_cuts_a_slow_reader() -> None:
    ends: list[str | None] = []
    ended = threading.Event()

    def after(task: WFHttpTask) -> None:
        ends.append(task.timeout_reason)
        ended.set()

    def process(task: WFHttpTask) -> None:
        task.set_callback(after)
        task.resp.write(bytes(64 * MIB))

    params = HTTP_SPEC.params.replace(peer_response_timeout=5.0, send_timeout=0.4)
    with (
        WFHttpServer(process, params).start("127.0.0.1", 0) as server,
        RawClient(server.address, receive_buffer=64 * 1024) as client,
    ):
        client.send(get())
        start = time.monotonic()
        while not ended.wait(0.02):
            assert time.monotonic() - start < 5
            client.sock.recv(16 * 1024)
    assert ends == ["TRANSMIT"]


def test_client_that_resets_while_the_reply_is_written() -> None:
    ends: list[TaskState] = []
    ended = threading.Event()

    def after(task: WFHttpTask) -> None:
        ends.append(task.state)
        ended.set()

    def process(task: WFHttpTask) -> None:
        task.set_callback(after)
        task.resp.write(bytes(32 * MIB))

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with RawClient(server.address, receive_buffer=4096) as client:
            client.send(get())
            eventually(lambda: [c.phase for c in server.connections()] == ["REPLYING"])
        assert ended.wait(10)
        eventually(lambda: server.conn_count == 0)
    assert ends == [TaskState.SYS_ERROR]
