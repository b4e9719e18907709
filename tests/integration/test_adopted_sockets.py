"""serve(): sockets that somebody else bound, and case 12."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopback import RawClient, eventually, get

from protoserve import ConfigError
from protoserve_http import WFHttpServer, WFHttpTask

CHILD = """
import os, sys
from protoserve_http import WFHttpServer

with WFHttpServer(lambda task: task.resp.write(sys.argv[2])).serve(int(sys.argv[1])) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def process(task: WFHttpTask) -> None:
    task.resp.write(task.req.target)


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def works(server: WFHttpServer) -> bool:
    with RawClient(server.address) as client:
        return client.ask("/x").body == b"/x"


def test_bound_socket(bound: socket.socket) -> None:
    with WFHttpServer(process).serve(bound) as server:
        assert server.address == bound.getsockname()
        assert works(server)


def test_bound_descriptor(bound: socket.socket) -> None:
    with WFHttpServer(process).serve(bound.fileno()) as server:
        assert server.url == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert works(server)


@pytest.mark.parametrize("as_number", [True, False])
def test_listening(bound: socket.socket, as_number: bool) -> None:
    bound.listen(5)
    with WFHttpServer(process).serve(bound.fileno() if as_number else bound) as server:
        assert works(server)
    # Still the caller's, open and listening.
    with WFHttpServer(process).serve(bound) as server:
        assert works(server)


def test_unix_socket_file_stays_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        with WFHttpServer(process).serve(sock) as server:
            assert server.address == str(path)
            assert works(server)
        assert path.exists()


@pytest.mark.skipif(not socket.has_ipv6, reason="this system has no IPv6")
def test_ipv6_socket() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        with WFHttpServer(process).serve(sock.fileno()) as server:
            assert server.url == f"http://[::1]:{server.address[1]}"
            assert works(server)


def test_what_cannot_be_adopted(bound: socket.socket) -> None:
    server = WFHttpServer(process)
    with socket.socket() as unbound, pytest.raises(ConfigError, match=r"call bind\(\)"):
        server.serve(unbound)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(ConfigError, match="stream socket is needed"),
    ):
        server.serve(datagrams)
    reading, writing = os.pipe()
    try:
        with pytest.raises(ConfigError, match="no open socket"):
            server.serve(reading)
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(ConfigError, match="no open socket"):
        server.serve(-1)
    gone = socket.socket()
    gone.close()
    with pytest.raises(ConfigError, match="no open socket"):
        server.serve(gone)
    with server.serve(bound):
        assert works(server)


def test_connections_between_two_servers_are_answered_by_the_second(
    bound: socket.socket,
) -> None:
    bound.listen(5)
    with (
        WFHttpServer(lambda task: task.resp.write("first")).serve(bound) as first,
        RawClient(first.address) as client,
    ):
        assert client.ask().body == b"first"
    with RawClient(bound.getsockname()) as early:
        early.send(get())
        with WFHttpServer(lambda task: task.resp.write("second")).serve(bound):
            assert early.reply().body == b"second"


@contextmanager
def child(sock: socket.socket, name: str) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(sock.fileno()), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[sock.fileno()],
        text=True,
    )
    with program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline().startswith("http://127.0.0.1:")
            yield program
        finally:
            program.kill()


def end(program: subprocess.Popen[str]) -> None:
    assert program.stdin is not None
    program.stdin.close()
    assert program.wait(20) == 0


def ask(sock: socket.socket) -> bytes:
    with RawClient(sock.getsockname()) as client:
        return client.ask().body


def test_case_12_two_processes_share_a_listening_socket(bound: socket.socket) -> None:
    bound.listen(50)
    with child(bound, "first") as first:
        assert ask(bound) == b"first"
        with child(bound, "second") as second:
            # Both accept; whoever is first. Nobody is forgotten.
            assert {ask(bound) for _ in range(30)} <= {b"first", b"second"}
            end(first)
            assert {ask(bound) for _ in range(5)} == {b"second"}
            end(second)
    clients = [RawClient(bound.getsockname()) for _ in range(10)]
    for client in clients:
        client.send(get())
    with child(bound, "third") as third:
        for client in clients:
            assert client.reply().body == b"third"
            client.close()
        end(third)


def test_another_server_on_the_same_socket_stops(bound: socket.socket) -> None:
    bound.listen(50)
    with WFHttpServer(process).serve(bound) as stays:
        with WFHttpServer(process).serve(bound):
            assert works(stays)
        for _ in range(5):
            assert works(stays)
        eventually(lambda: stays.conn_count == 0)
