"""The ways to say where a server listens, and what is said about the wrong ones."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from loopback import RawClient

from protoserve import BindError, ConfigError, UsageError
from protoserve_http import WFHttpServer, WFHttpTask


def process(task: WFHttpTask) -> None:
    task.resp.write(task.req.target)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def answers(server: WFHttpServer, address: Any = None) -> bool:
    with RawClient(address or server.address) as client:
        return client.ask("/here").body == b"/here"


def test_port() -> None:
    port = free_port()
    with WFHttpServer(process).start(port) as server:
        assert server.address == ("0.0.0.0", port)
        assert server.url == f"http://127.0.0.1:{port}"
        assert answers(server, ("127.0.0.1", port))


def test_host_and_port() -> None:
    port = free_port()
    with WFHttpServer(process).start("127.0.0.1", port) as server:
        assert server.address == ("127.0.0.1", port)
        assert answers(server)


def test_port_zero_picks_one() -> None:
    with WFHttpServer(process).start(("127.0.0.1", 0)) as server:
        assert server.address[1] > 0
        assert server.url == f"http://127.0.0.1:{server.address[1]}"
        assert answers(server)


@pytest.mark.skipif(not socket.has_ipv6, reason="this system has no IPv6")
@pytest.mark.parametrize("where", ["::1", "::"])
def test_ipv6(where: str) -> None:
    with WFHttpServer(process).start((where, 0)) as server:
        assert server.address[0] == where
        assert server.url == f"http://[::1]:{server.address[1]}"
        assert answers(server, ("::1", server.address[1]))


def test_host_name() -> None:
    with WFHttpServer(process).start("localhost", 0) as server:
        assert server.address[0] in ("127.0.0.1", "::1")
        assert answers(server)


def test_unix_path(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with WFHttpServer(process).start(f"unix:{path}") as server:
        assert server.address == str(path)
        assert server.url == f"http+unix:{path}"
        assert answers(server)
    assert not path.exists()


def test_unix_path_left_by_a_dead_server(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with WFHttpServer(process).start(f"unix:{path}") as server:
        assert answers(server)


def test_unix_path_of_a_living_server(tmp_path: Path) -> None:
    where = f"unix:{tmp_path / 'http.sock'}"
    with WFHttpServer(process).start(where) as server:
        with pytest.raises(BindError, match="Address already in use") as caught:
            WFHttpServer(process).start(where)
        assert where in str(caught.value)
        assert answers(server)


def test_unix_path_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindError):
        WFHttpServer(process).start(f"unix:{path}")
    assert path.read_text() == "data"


def test_a_successors_unix_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with WFHttpServer(process).start(f"unix:{path}") as server:
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            assert server.stop() == 0
            assert path.exists()


def test_busy_port() -> None:
    server = WFHttpServer(process)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(BindError) as caught:
            server.start("127.0.0.1", port)
    assert caught.value.errno == errno.EADDRINUSE
    text = str(caught.value)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in text
    assert "another program listens there" in text
    assert "port 0" in text
    # The failure has left nothing behind: the same object can try again.
    with server.start("127.0.0.1", port):
        assert answers(server)


def test_address_of_another_machine() -> None:
    with pytest.raises(BindError, match="this machine has no such address") as caught:
        WFHttpServer(process).start("192.0.2.1", 0)  # RFC 5737: belongs to nobody
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_host_that_is_none() -> None:
    with pytest.raises(BindError, match=r"cannot listen on 'not a host'.*of this machine"):
        WFHttpServer(process).start("not a host", 0)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BindError) as caught:
        WFHttpServer(process).start(f"unix:{tmp_path}/no/http.sock")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    "where",
    [
        (),
        (70_000,),
        (-1,),
        (True,),
        ("127.0.0.1",),
        ("127.0.0.1:80",),
        ("unix:",),
        ("127.0.0.1", "80"),
        (80, "127.0.0.1"),
        (None,),
        (8.5,),
        (("127.0.0.1",),),
    ],
    ids=repr,
)
def test_addresses_that_make_no_sense(where: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        WFHttpServer(process).start(*where)


def test_starting_twice() -> None:
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with pytest.raises(UsageError, match="runs already on http://127") as caught:
            server.start("127.0.0.1", 0)
        assert "stop()" in str(caught.value)
        assert answers(server)


def test_two_threads_start_at_once() -> None:
    server = WFHttpServer(process)
    barrier = threading.Barrier(4)
    outcomes: list[str] = []

    def start() -> None:
        barrier.wait()
        try:
            server.start("127.0.0.1", 0)
            outcomes.append("started")
        except UsageError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "refused", "refused", "started"]
    assert answers(server)
    assert server.stop() == 0


def test_no_address_before_the_start() -> None:
    server = WFHttpServer(process)
    for what in ("address", "url"):
        with pytest.raises(UsageError, match=r"before start\(\)"):
            getattr(server, what)
    assert server.stop() == 0
    server.shutdown()


def test_descriptor_limit_bounds_connections(caplog: pytest.LogCaptureFixture) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Room for what this process has open, far below the default of 10,000.
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        with WFHttpServer(process).start("127.0.0.1", 0) as server:
            assert server.max_connections == 436
            assert server.params.max_connections == 10_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (record,) = caplog.records
    assert "max_connections lowered from 10000 to 436" in record.getMessage()


def test_descriptors_are_not_inherited() -> None:
    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        assert c.ask().status == 200
        inheritable = [
            fd
            for fd in map(int, os.listdir("/proc/self/fd"))
            if fd > 2 and _is_socket(fd) and os.get_inheritable(fd)
        ]
        assert inheritable == []


def _is_socket(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False
