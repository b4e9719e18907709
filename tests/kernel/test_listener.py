"""Listener: opening and adopting sockets, accepting, and what happens at the limits."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from line_service import LineService, later

from protoserve import BindError, ConfigError
from protoserve.events import AcceptFailed, ConnectionOpened, LimitReached
from protoserve.kernel import service as service_module
from protoserve.kernel.binding import Address, adopt_listener, open_listener
from protoserve.kernel.listener import _ACCEPTS_A_TURN, ACCEPT_PAUSE, SILENT_TIME, Listener
from protoserve.testing import MemoryEngine, MemoryPeer, MemoryTransport

# -- opening -------------------------------------------------------------------------------


def test_port_0_picks_one() -> None:
    with open_listener(("127.0.0.1", 0), 5) as sock:
        assert sock.getsockname()[1] > 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(sock.fileno())


def test_no_host_is_every_ipv4_interface() -> None:
    with open_listener((None, 0), 5) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


def test_ipv6() -> None:
    with open_listener(("::1", 0), 5) as sock:
        assert sock.family == socket.AF_INET6
        port = sock.getsockname()[1]
        # IPv6 only: the same port is free for an IPv4 server.
        open_listener(("127.0.0.1", port), 5).close()


@pytest.mark.parametrize("port", [-1, 65536, True, "80", 1.5, None])
def test_a_port_that_makes_no_sense(port: Any) -> None:
    with pytest.raises(ConfigError, match=r"port .*0 to 65535"):
        open_listener(("127.0.0.1", port), 5)


@pytest.mark.parametrize("address", ["127.0.0.1:80", "unix:", "", "unix", "unix:a\0b"])
def test_an_address_that_makes_no_sense(address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a port, \(host, port\), or 'unix:/path'"):
        open_listener(address, 5)


def test_a_busy_port() -> None:
    with open_listener(("127.0.0.1", 0), 5) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(BindError, match=rf"127\.0\.0\.1:{port}.*choose another port") as info:
            open_listener(("127.0.0.1", port), 5)
        assert info.value.errno == errno.EADDRINUSE


def test_an_address_of_another_machine() -> None:
    with pytest.raises(BindError, match=r"192\.0\.2\.1.*use one of its own") as info:
        open_listener(("192.0.2.1", 0), 5)
    assert info.value.errno == errno.EADDRNOTAVAIL


def test_a_name_that_is_none() -> None:
    with pytest.raises(BindError, match=r"no-such\.invalid.*give an address of this machine"):
        open_listener(("no-such.invalid", 0), 5)


@pytest.mark.parametrize(
    ("address", "remedy"), [(("127.0.0.1", 0), "from 1024 on"), ("unix:", "folder")]
)
def test_missing_permission(
    address: Address, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: socket.socket, target: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    if isinstance(address, str):
        address += str(tmp_path / "sock")
    with pytest.raises(BindError, match=f"permission is missing.*{remedy}") as info:
        open_listener(address, 5)
    assert info.value.errno == errno.EACCES


# -- Unix sockets --------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def test_unix(path: Path) -> None:
    with open_listener(f"unix:{path}", 5) as sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert sock.getsockname() == str(path)


def test_a_stale_socket_file_is_replaced(path: Path) -> None:
    open_listener(f"unix:{path}", 5).close()
    assert path.exists()
    open_listener(f"unix:{path}", 5).close()


def test_a_live_socket_file_is_not(path: Path) -> None:
    with open_listener(f"unix:{path}", 5) as sock:
        with pytest.raises(BindError, match="choose another path") as info:
            open_listener(f"unix:{path}", 5)
        assert info.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert sock.fileno() >= 0


def test_a_live_socket_file_with_a_full_backlog_is_not(path: Path) -> None:
    with open_listener(f"unix:{path}", 0):
        clients = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            clients.append(client)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(BindError):
            open_listener(f"unix:{path}", 5)
        for client in clients:
            client.close()


def test_a_file_that_is_no_stream_socket_is_not(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(BindError, match="the file is no socket"):
        open_listener(f"unix:{path}", 5)
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(path))
        with pytest.raises(BindError):
            open_listener(f"unix:{path}", 5)
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_unix_paths_that_cannot_be(path: Path) -> None:
    with pytest.raises(BindError, match="make it first"):
        open_listener(f"unix:{path}/below", 5)
    with pytest.raises(BindError, match="path too long"):
        open_listener(f"unix:/{'x' * 200}", 5)


# -- adopting ------------------------------------------------------------------------------


@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize("as_descriptor", [False, True])
def test_adopt(listening: bool, as_descriptor: bool) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if listening:
            sock.listen(5)
        with adopt_listener(sock.fileno() if as_descriptor else sock, 5) as adopted:
            assert adopted.family == socket.AF_INET
            assert adopted.fileno() != sock.fileno()
            assert adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert not os.get_inheritable(adopted.fileno())
        assert sock.getsockname()[1], "the caller's own stays open"


def test_adopt_unix(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        with pytest.raises(ConfigError, match="not bound"):
            adopt_listener(sock, 5)
        sock.bind(str(path))
        adopt_listener(sock, 5).close()


def test_adopt_unbound() -> None:
    with socket.socket() as sock, pytest.raises(ConfigError, match=r"call bind\(\) on it first"):
        adopt_listener(sock, 5)


def test_adopt_closed() -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(ConfigError, match=r"no open socket .*pass a bound"):
        adopt_listener(sock, 5)


def test_adopt_udp() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match="a stream socket is needed"):
            adopt_listener(sock, 5)


def test_adopt_what_is_no_socket() -> None:
    reader, writer = os.pipe()  # a duplicate that stays open is found by the fixture
    try:
        with pytest.raises(ConfigError, match="no open socket"):
            adopt_listener(reader, 5)
    finally:
        os.close(reader)
        os.close(writer)


def test_adopt_a_connected_socket() -> None:
    with (
        open_listener(("127.0.0.1", 0), 5) as sock,
        socket.create_connection(sock.getsockname()) as client,
        pytest.raises(BindError, match="descriptor"),
    ):
        adopt_listener(client, 5)


# -- accepting -----------------------------------------------------------------------------


class FakeSocket:
    """A listening socket whose accept() does what the test wants, in order."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.pending: list[BaseException | str] = []
        self.accepts = 0
        self.closed = False
        self.fd = MemoryPeer(lambda fd, mask: None).fd

    def setblocking(self, flag: bool) -> None:
        assert flag is False

    def fileno(self) -> int:
        return self.fd

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_RDWR

    def close(self) -> None:
        self.closed = True

    def accept(self) -> tuple[Any, str]:
        if self.closed:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self.accepts += 1
        if not self.pending:
            raise BlockingIOError(errno.EAGAIN, "nobody waits")
        item = self.pending[0]
        if not isinstance(item, OSError) or item.errno not in (errno.EMFILE, errno.ENOMEM):
            self.pending.pop(0)
        if isinstance(item, BaseException):
            raise item
        return FakeAccepted(), item


class FakeAccepted:
    """What accept() returned: only its transport is ever looked at."""

    family = socket.AF_INET
    closed = False

    def close(self) -> None:
        self.closed = True


class MemoryListener(Listener):
    def _someone_waits(self) -> bool:
        return bool(self._sock.pending)  # type: ignore[attr-defined]


class Door:
    """A listener in memory, the peers it let in, and what it reported."""

    def __init__(
        self, engine: MemoryEngine, service: LineService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.engine = engine
        self.service = service
        self.sock = FakeSocket()
        self.events: list[Any] = []
        self.peers: dict[str, MemoryPeer] = {}
        service.subscribe(self.events.append)

        def transport(sock: FakeAccepted) -> MemoryTransport:
            peer = MemoryPeer(engine.readiness.announce)
            self.newest = peer
            return MemoryTransport(peer)

        def note(event: Any) -> None:
            if isinstance(event, ConnectionOpened):
                self.peers[event.peername] = self.newest

        service.subscribe(note)
        monkeypatch.setattr(service_module, "SocketTransport", transport)
        self.listener = MemoryListener(
            self.sock,  # type: ignore[arg-type]
            engine.communicator,
            service,
            adopted=False,
        )
        self.listener.start()

    def knock(self, *names: BaseException | str) -> None:
        """Connections arrive, or accept() is going to fail."""
        self.sock.pending += names
        self.engine.readiness.announce(self.sock.fd, 1)
        self.engine.run()

    def request(self, name: str, line: bytes = b"x\n") -> None:
        self.peers[name].send(line)
        self.engine.run()

    @property
    def inside(self) -> list[str]:
        return sorted(conn.peername for conn in self.service.connections())

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


DoorMaker = Callable[..., Door]


@pytest.fixture
def door(engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> DoorMaker:
    def make(**params: Any) -> Door:
        return Door(engine, LineService(**params), monkeypatch)

    return make


def test_accepts_all_that_wait(door: DoorMaker) -> None:
    here = door()
    names = [f"{i:03}" for i in range(200)]
    here.knock(*names)
    assert here.inside == names
    here.request("007")
    assert here.peers["007"].received == b"x\n"


def test_accepting_gives_way_to_others(door: DoorMaker, engine: MemoryEngine) -> None:
    here = door()
    here.sock.pending += [str(i) for i in range(200)]
    engine.readiness.announce(here.sock.fd, 1)
    engine.turn()
    assert 0 < here.service.conn_count < 200
    engine.run()
    assert here.service.conn_count == 200


@pytest.mark.parametrize(
    "number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EINTR]
)
def test_a_connection_that_failed_is_passed_over(door: DoorMaker, number: int) -> None:
    here = door()
    here.knock("a", OSError(number, "gone"), "b")
    assert here.inside == ["a", "b"]
    assert here.of(AcceptFailed) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_out_of_descriptors(
    door: DoorMaker, engine: MemoryEngine, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    here = door()
    here.knock("a", OSError(number, os.strerror(number)))
    assert here.inside == ["a"]
    accepts = here.sock.accepts
    # No spinning: neither by itself nor when more connections arrive.
    for _ in range(10):
        here.knock("later")
        engine.advance(ACCEPT_PAUSE / 20)
    assert here.sock.accepts == accepts
    engine.advance(ACCEPT_PAUSE)
    assert accepts < here.sock.accepts <= accepts + 2
    accepts = here.sock.accepts
    engine.advance(30)
    # 300 pauses of 100 ms: one call each, and one report for all of them.
    assert 250 < here.sock.accepts - accepts < 350
    assert here.of(AcceptFailed) == [AcceptFailed(number, os.strerror(number), ACCEPT_PAUSE)]
    engine.advance(60)
    assert len(here.of(AcceptFailed)) == 2
    assert len(caplog.records) == 2
    here.sock.pending.pop(0)
    engine.advance(ACCEPT_PAUSE)
    assert here.inside == ["later"] * 10


def test_a_connection_that_cannot_be_made(
    door: DoorMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those behind it in the backlog are not announced again, and are taken all the same."""
    here = door()
    right = here.service.new_connection

    def fail(communicator: Any, transport: Any, peername: str) -> Any:
        if peername == "bad":
            raise ValueError("a fault of the service")
        return right(communicator, transport, peername)

    monkeypatch.setattr(here.service, "new_connection", fail)
    here.knock("a", "bad", "b")
    assert here.inside == ["a", "b"]
    assert len(caplog.records) == 1


def test_close(door: DoorMaker, engine: MemoryEngine) -> None:
    here = door()
    here.knock("a")
    assert here.listener.close() is True
    assert here.listener.close() is False
    assert here.sock.closed
    here.knock("b")
    here.listener.on_ready(here.listener, 0)
    assert here.inside == ["a"]


def test_an_observer_may_close_the_listener(door: DoorMaker) -> None:
    here = door()
    here.service.subscribe(
        lambda event: isinstance(event, ConnectionOpened) and here.listener.close()
    )
    here.knock("a", "b")
    assert here.inside == ["a"]
    assert here.sock.closed


# -- at the limit --------------------------------------------------------------------------


def test_the_least_recently_used_idle_connection_goes(
    door: DoorMaker, engine: MemoryEngine
) -> None:
    here = door(max_connections=3)
    here.knock("a", "b", "c")
    for name in ("b", "a", "c", "b"):
        here.request(name)
        engine.advance(1)
    order = []
    for name in ("d", "e", "f"):
        before = set(here.inside)
        here.knock(name)
        order += sorted(before - set(here.inside))
        here.request(name)
        engine.advance(1)
    assert order == ["a", "c", "b"]
    assert here.service.reasons == ["made room for another"] * 3
    assert len(here.of(LimitReached)) == 3
    assert here.of(LimitReached)[0].value == 3


def test_a_busy_connection_is_not_closed_for_another(door: DoorMaker) -> None:
    here = door(max_connections=2, handler=later)
    here.knock("busy", "idle")
    here.request("busy")
    here.service.handler = lambda session: session.reply()
    here.request("idle")
    here.knock("new")
    assert here.inside == ["busy", "new"]


def test_silent_connections_go_after_a_second(door: DoorMaker, engine: MemoryEngine) -> None:
    here = door(max_connections=2)
    here.knock("a")
    engine.advance(0.5)
    here.knock("b", "c", "d")
    assert here.inside == ["a", "b"]
    engine.advance(0.4)
    assert here.inside == ["a", "b"]
    engine.advance(SILENT_TIME)
    # The oldest first.
    assert "a" not in here.inside
    assert "c" in here.inside
    engine.advance(3 * SILENT_TIME)
    assert "d" in here.inside


def test_half_a_request_goes_too(door: DoorMaker, engine: MemoryEngine) -> None:
    here = door(max_connections=1)
    here.knock("a")
    here.request("a", b"par")
    engine.advance(SILENT_TIME * 1.5)
    here.knock("b")
    assert here.inside == ["b"]


def test_a_request_that_has_just_begun_does_not(door: DoorMaker, engine: MemoryEngine) -> None:
    """What counts is how long it has been silent, not how long it is open."""
    here = door(max_connections=1)
    here.knock("a")
    here.request("a")
    engine.advance(30)
    here.request("a", b"par")
    here.knock("b")
    assert here.inside == ["a"]
    here.request("a", b"tial\n")
    assert here.peers["a"].received == b"x\npartial\n"
    assert here.inside == ["b"], "and once idle it makes room"


def test_starved_until_a_connection_closes(door: DoorMaker, engine: MemoryEngine) -> None:
    here = door(max_connections=1, handler=later)
    here.knock("a")
    here.request("a")
    here.knock("b")
    engine.advance(100)
    assert here.inside == ["a"]
    assert here.sock.pending == ["b"]
    here.service.sessions[0].connection.close()
    engine.run()
    assert here.inside == ["b"]


def test_starved_until_a_connection_is_idle(door: DoorMaker, engine: MemoryEngine) -> None:
    here = door(max_connections=1, handler=later)
    here.knock("a")
    here.request("a")
    here.knock("b")
    here.service.sessions[0].reply()
    engine.run()
    assert here.peers["a"].received == b"x\n"
    assert here.inside == ["b"]


def test_starving_costs_little_however_many_knock(
    door: DoorMaker, engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    here = door(max_connections=1, handler=later)
    here.knock("a")
    here.request("a")
    timers = len(engine.poller._timers)
    for i in range(100):
        here.knock(f"b{i}")
    assert len(engine.poller._timers) <= timers + 1
    engine.advance(10 * SILENT_TIME)
    assert len(engine.poller._timers) <= timers + 1
    assert here.sock.accepts == 1
    assert len(caplog.records) == 1, "one line a minute"
    engine.advance(60)
    assert len(caplog.records) == 2


def test_closing_for_another_may_stop_the_server(door: DoorMaker) -> None:
    here = door(max_connections=1)
    here.knock("a")
    here.request("a")
    (conn,) = here.service.connections()
    conn.on_close(lambda _: here.listener.close())
    here.knock("b")
    assert here.sock.closed
    assert here.inside == []


@pytest.mark.parametrize("adopted", [True, False])
def test_of_an_adopted_socket_a_stop_takes_only_some_of_those_who_wait(
    engine: MemoryEngine, adopted: bool
) -> None:
    """Others may accept there: a stop must not take in all that comes to them."""
    service = LineService()
    sock = FakeSocket()
    sock.pending += [f"client {i}" for i in range(_ACCEPTS_A_TURN + 6)]
    listener = MemoryListener(
        sock,  # type: ignore[arg-type]
        engine.communicator,
        service,
        adopted=adopted,
    )
    assert listener.close(drain=True)
    assert len(listener._last) == _ACCEPTS_A_TURN + (0 if adopted else 6)
    assert len(sock.pending) == (6 if adopted else 0)
    assert sock.closed


# -- the file of a Unix socket -------------------------------------------------------------


def open_at(path: Path, engine: MemoryEngine, *, adopted: bool = False) -> Listener:
    sock = open_listener(f"unix:{path}", 5)
    return Listener(sock, engine.communicator, LineService(), adopted=adopted)


def test_the_file_is_removed(path: Path, engine: MemoryEngine) -> None:
    listener = open_at(path, engine)
    listener.start()
    listener.close()
    assert not path.exists()


def test_the_file_is_removed_from_another_folder(
    path: Path, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    listener = open_at(Path(path.name), engine)
    monkeypatch.chdir("/")
    listener.close()
    assert not path.exists()


def test_a_successor_s_file_is_not_removed(path: Path, engine: MemoryEngine) -> None:
    listener = open_at(path, engine)
    path.rename(path.with_suffix(".old"))  # keeps its inode from being used again
    with open_listener(f"unix:{path}", 5):
        listener.close()
        assert path.exists()


def test_a_file_that_is_gone(path: Path, engine: MemoryEngine) -> None:
    listener = open_at(path, engine)
    path.unlink()
    assert listener.close() is True


def test_an_adopted_socket_s_file_stays(path: Path, engine: MemoryEngine) -> None:
    listener = open_at(path, engine, adopted=True)
    listener.close()
    assert path.exists()
