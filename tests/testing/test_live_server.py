"""Servers on a port, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shouting import SHOUT, Task, shout, shout_later

from protoserve import BindError, ConfigError, WFServer, get_scheduler, timer
from protoserve.testing import LiveServer, live_server, no_leaks
from protoserve_redis import REDIS_SPEC, CommandTable, WFRedisServer

Handler = Callable[[Task], object]

PATIENCE = 0.05
"""Seconds that leaks in these tests, which do not end by themselves, have."""


def ask(live: LiveServer[bytes, object], data: bytes) -> bytes:
    with live.connect() as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            return file.read()


@pytest.mark.parametrize("process", [shout, shout_later])
def test_it_serves_and_is_gone(process: Handler) -> None:
    with live_server(SHOUT, process) as live:
        assert ask(live, b"a\nb\n") == b"hello\nA\nB\n"
        host, port = live.address
        assert host == "127.0.0.1"
        assert live.url == f"tcp://127.0.0.1:{port}"
        assert live.server.address == live.address
    with pytest.raises(ConnectionRefusedError):
        live.connect()
    assert not get_scheduler().running


@pytest.mark.parametrize("process", [shout, shout_later])
def test_in_a_coroutine(process: Handler) -> None:
    async def main() -> None:
        with live_server(SHOUT, process) as live:
            reader, writer = await asyncio.open_connection(*live.address)
            writer.write(b"a\n")
            assert await reader.readline() == b"hello\n"
            assert await reader.readline() == b"A\n"
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_a_failed_start_in_a_coroutine_is_told() -> None:
    async def on_start(server: object) -> None:
        raise BindError(1, "no")

    async def process(task: Task) -> None:
        """Has a hook."""

    process.on_start = on_start  # type: ignore[attr-defined]

    async def main() -> None:
        with pytest.raises(BindError, match="no"), live_server(SHOUT, process):
            raise AssertionError("it was served")

    asyncio.run(main())


def test_the_server_is_the_protocol_s_own() -> None:
    with live_server(REDIS_SPEC, CommandTable(), max_pipelined=3) as live:
        assert type(live.server) is WFRedisServer
        assert live.server.params == REDIS_SPEC.params.replace(max_pipelined=3)


def test_senseless_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="no field 'keepalive'"):
        live_server(SHOUT, shout, keepalive=1).__enter__()


def test_what_the_block_raises_is_raised() -> None:
    def block(live: LiveServer[bytes, object]) -> None:
        assert ask(live, b"a\n") == b"hello\nA\n"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), live_server(SHOUT, shout) as live:
        block(live)
    assert not get_scheduler().running


def test_two_side_by_side() -> None:
    with live_server(SHOUT, shout) as one, live_server(SHOUT, shout_later) as two:
        assert ask(one, b"a\n") == ask(two, b"a\n") == b"hello\nA\n"


def test_within_the_life_of_another() -> None:
    """The threads that serve both are no leftovers of the one that ends first."""
    with WFServer(SHOUT, shout).start("127.0.0.1", 0), live_server(SHOUT, shout) as live:
        assert ask(live, b"a\n") == b"hello\nA\n"
        assert get_scheduler().running


# -- leaks ---------------------------------------------------------------------------------


def left_by(begin: Callable[[], Callable[[], object]]) -> str:
    """What the error says is left by what ``begin`` does; what that returns ends it."""
    with pytest.raises(AssertionError) as caught, no_leaks(PATIENCE):
        end = begin()
    end()
    return str(caught.value)


def test_a_thread_is_left() -> None:
    def begin() -> Callable[[], object]:
        over = threading.Event()
        thread = threading.Thread(target=over.wait, name="forgotten")
        thread.start()

        def end() -> None:
            over.set()
            thread.join()

        return end

    assert left_by(begin).startswith("left behind: thread 'forgotten'; stop the servers")


def test_a_socket_is_left() -> None:
    def begin() -> Callable[[], object]:
        return socket.create_server(("127.0.0.1", 0)).close

    assert "socket" in left_by(begin)


def test_a_file_is_left(tmp_path: Path) -> None:
    def begin() -> Callable[[], object]:
        return (tmp_path / "notes").open("w").close

    assert left_by(begin).count("descriptor") == 1


def test_a_pipe_is_left() -> None:
    def begin() -> Callable[[], object]:
        ends = os.pipe()
        return lambda: [os.close(end) for end in ends]

    assert left_by(begin).count("pipe") == 2


def test_a_server_is_left() -> None:
    def begin() -> Callable[[], object]:
        return WFServer(SHOUT, shout).start("127.0.0.1", 0).stop

    assert "an engine that runs: a server that was not stopped" in left_by(begin)


def test_a_timer_is_left() -> None:
    def begin() -> Callable[[], object]:
        waiting = timer(60)
        waiting.start()
        return waiting.cancel

    assert "an engine that runs" in left_by(begin)


def test_what_ends_by_itself_has_a_moment() -> None:
    with no_leaks():
        threading.Timer(0.1, lambda: None).start()


def test_garbage_is_no_leak() -> None:
    """What nobody holds any more is collected before it counts."""

    class Node:
        def __init__(self) -> None:
            self.me = self
            self.ends = os.pipe()

        def __del__(self) -> None:
            for end in self.ends:
                os.close(end)

    with no_leaks():
        Node()


def test_the_first_error_is_the_block_s() -> None:
    def block() -> None:
        ends.extend(os.pipe())
        raise ZeroDivisionError

    ends: list[int] = []
    with pytest.raises(ZeroDivisionError), no_leaks(PATIENCE):
        block()
    for end in ends:
        os.close(end)


def test_a_client_that_stays_open_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoserve.testing.live.no_leaks", lambda: no_leaks(PATIENCE))
    clients: list[socket.socket] = []
    with (
        pytest.raises(AssertionError, match=r"left behind: descriptor \d+ \(socket"),
        live_server(SHOUT, shout) as live,
    ):
        clients.append(live.connect())
    for client in clients:
        client.close()


@pytest.mark.parametrize("patience", [-1, "x", None, float("nan"), True])
def test_how_long_to_wait_for_what_ends(patience: Any) -> None:
    with pytest.raises(ConfigError, match="patience="), no_leaks(patience):
        pass


def test_what_is_live_is_a_protocol() -> None:
    spec: Any = "x"
    with pytest.raises(ConfigError, match="spec must be a ProtocolSpec"), live_server(spec, print):
        pass
