"""Connections that come in the moment of the stop: served or refused, never lost or forgotten."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, get

from protoserve.events import ConnectionOpened, Event
from protoserve_http import WFHttpServer, WFHttpTask


def process(task: WFHttpTask) -> None:
    task.resp.write("x")


async def async_process(task: WFHttpTask) -> None:
    task.resp.write("x")


KINDS = [process, async_process]


class Door(WFHttpServer):
    """A server that is caught in the middle of accepting, until the test opens."""

    def __init__(self, kind: Callable[[WFHttpTask], Any]) -> None:
        super().__init__(kind)
        self.caught, self.opened = threading.Event(), threading.Event()

    def new_connection(self, *args: Any) -> Any:
        self.caught.set()
        assert self.opened.wait(PATIENCE)
        return super().new_connection(*args)


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_backlog_is_served(kind: Callable[[WFHttpTask], Any], adopted: bool) -> None:
    server = Door(kind)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server.serve(sock) if adopted else server.start("127.0.0.1", 0)
        first = RawClient(server.address)
        assert server.caught.wait(PATIENCE)
        clients = [first, *(RawClient(server.address) for _ in range(50))]
        for client in clients:
            client.send(get())
        server.shutdown()
        server.opened.set()
        for client in clients:
            reply = client.reply()
            assert reply.status == 200
            assert reply.closes
            client.close()
        assert server.stop() == 0


def test_backlog_that_is_silent_is_closed_in_order() -> None:
    server = Door(process)
    server.start("127.0.0.1", 0)
    with RawClient(server.address) as first:
        assert server.caught.wait(PATIENCE)
        with RawClient(server.address) as silent, RawClient(server.address) as late:
            server.shutdown()
            server.opened.set()
            late.send(get())
            assert late.reply().closes
            assert silent.rest() == b""
            assert first.rest() == b""
    assert server.stop() == 0


def test_backlog_within_the_limit_of_connections() -> None:
    server = Door(process)
    server.params = server.params.replace(max_connections=3)
    server.start("127.0.0.1", 0)
    clients = [RawClient(server.address)]
    assert server.caught.wait(PATIENCE)
    clients += [RawClient(server.address) for _ in range(5)]
    for client in clients:
        client.send(get())
    opened = []
    server.subscribe(lambda event: opened.append(event) if type(event) is ConnectionOpened else 0)
    server.shutdown()
    server.opened.set()
    assert server.stop() == 0
    assert 1 < len(opened) <= 4
    for client in clients[:3]:
        assert client.reply().status == 200
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_accepted_in_the_moment_of_the_stop(kind: Callable[[WFHttpTask], Any]) -> None:
    server = Door(kind)
    server.start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        assert server.caught.wait(PATIENCE)
        server.shutdown()
        assert not server.wait_finish(0.05), "it has accepted a connection"
        client.send(get())
        server.opened.set()
        assert client.reply().closes
    assert server.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_request_that_crosses_the_stop(kind: Callable[[WFHttpTask], Any]) -> None:
    connected = threading.Event()

    def observer(event: Event) -> None:
        if isinstance(event, ConnectionOpened):
            connected.set()

    server = WFHttpServer(kind)
    server.subscribe(observer)
    for _ in range(20):
        connected.clear()
        server.start("127.0.0.1", 0)
        with RawClient(server.address) as client:
            assert connected.wait(PATIENCE)
            server.shutdown()
            client.send(get())
            assert client.reply().closes
        assert server.stop() == 0


CHILD = """
import sys
from protoserve_http import WFHttpServer

with WFHttpServer(lambda task: task.resp.write("x")).serve(int(sys.argv[1])) as server:
    print("serving", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_processes_that_take_turns_at_one_socket_lose_nothing() -> None:
    failures: list[str] = []
    answers = [0]
    over = threading.Event()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(100)
        address = sock.getsockname()

        def ask() -> None:
            while not over.is_set():
                try:
                    with RawClient(address) as client:
                        if client.ask().status == 200:
                            answers[0] += 1
                except (OSError, AssertionError) as error:
                    failures.append(repr(error))

        def child() -> subprocess.Popen[str]:
            program = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(sock.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[sock.fileno()],
                text=True,
            )
            assert program.stdout is not None
            assert program.stdout.readline() == "serving\n"
            return program

        programs = [child()]
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                programs.append(child())
                before = answers[0]
                with programs[-2] as program:
                    assert program.stdin is not None
                    program.stdin.close()
                    assert program.wait(PATIENCE) == 0
                end = time.monotonic() + PATIENCE
                while answers[0] < before + 50:
                    assert time.monotonic() < end
                    time.sleep(0.005)
        finally:
            over.set()
            for thread in threads:
                thread.join()
            with programs[-1] as program:
                program.communicate("")
    assert not failures


def test_loop_that_is_closed_takes_nothing_from_the_backlog() -> None:
    server = WFHttpServer(async_process)

    async def main() -> None:
        server.start("127.0.0.1", 0)

    asyncio.run(main())
    with RawClient(server.address) as client:
        assert server.stop() == 0
        with pytest.raises(ConnectionResetError):
            client.rest()
