"""A start that the system refuses says so in one way, and leaves nothing behind."""

from __future__ import annotations

import select
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import RawClient
from own_process import run_alone

from protoserve import BindError, ConfigError, UsageError, get_scheduler, timer
from protoserve.events import ListenerStarted
from protoserve_http import WFHttpServer, WFHttpTask


def process(task: WFHttpTask) -> None:
    task.resp.write("x")


async def async_process(task: WFHttpTask) -> None:
    task.resp.write("x")


KINDS = [process, async_process]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allowed", [0, 1])
def test_no_thread_to_be_had(
    kind: Callable[[WFHttpTask], Any],
    allowed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    path = tmp_path / "s"
    server = WFHttpServer(kind)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        if kind is async_process and allowed:
            server.start(f"unix:{path}")  # it needs no other
            assert server.stop() == 0
        else:
            with pytest.raises(BindError, match=r"thread.*ulimit -u"):
                server.start(f"unix:{path}")
    assert not path.exists()
    assert not get_scheduler().running
    assert server.stop() == 0
    with server.start(f"unix:{path}"), RawClient(str(path)) as client:
        assert client.ask().body == b"x"
    assert not caplog.records


NO_DESCRIPTORS = """
import asyncio, gc, os, resource, sys, warnings
from protoserve import BindError, get_scheduler
from protoserve_http import WFHttpServer

if sys.argv[1] == "asyncio":
    sys.modules["uvloop"] = None
    # A loop that could not be made whole is left to the garbage collector by asyncio.
    warnings.simplefilter("ignore", ResourceWarning)
else:
    import uvloop

    uvloop.new_event_loop().close()  # a pipe that the process keeps


async def coroutine(task):
    pass


path = sys.argv[2]
server = WFHttpServer(coroutine if sys.argv[1] != "threads" else lambda task: None)
listing = lambda: sorted(os.listdir("/proc/self/fd"))
before = listing()
highest = max(map(int, before))
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
refused = 0
for more in range(1, 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, hard))
    try:
        server.start("unix:" + path)
    except BindError as error:
        assert "ulimit -n" in str(error), error
        refused += 1
        assert not os.path.exists(path)
        assert not get_scheduler().running
        assert server.stop() == 0
    else:
        server.stop()
        break
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    assert listing() == before, (more, listing(), before)
print(refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["threads", "asyncio", "uvloop"])
def test_no_descriptors_to_be_had(kind: str, tmp_path: Path) -> None:
    said = run_alone(NO_DESCRIPTORS, kind, str(tmp_path / "s"))
    assert int(said.out) >= 2
    # asyncio has something to say about the half of a loop that it made.
    assert "Traceback" not in said.log or kind == "asyncio"
    assert "/protoserve/" not in said.log


def test_no_descriptor_for_a_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    def dup(fd: int) -> int:
        raise OSError(24, "Too many open files")

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        monkeypatch.setattr("os.dup", dup)
        with pytest.raises(BindError, match="ulimit -n"):
            WFHttpServer(process).serve(sock)


OBSERVER = """
import logging, sys
from loopback import RawClient
from protoserve import UsageError
from protoserve.events import ListenerStarted
from protoserve_http import WFHttpServer

def observer(event):
    if isinstance(event, ListenerStarted):
        try:
            getattr(server, sys.argv[1])()
        except UsageError as error:
            print(error)
            server.shutdown()

async def coroutine(task):
    pass

server = WFHttpServer(coroutine if sys.argv[2] == "coroutine" else lambda task: None)
server.subscribe(observer)
server.start("127.0.0.1", 0)
print(server.wait_finish(10), server.stop())
try:
    RawClient(server.address)
except ConnectionRefusedError:
    print("refused")
"""


@pytest.mark.parametrize("kind", ["function", "coroutine"])
@pytest.mark.parametrize("what", ["stop", "wait_finish"])
def test_observer_of_the_start_stops_the_server(what: str, kind: str) -> None:
    said = run_alone(OBSERVER, what, kind).lines
    assert "call shutdown() there" in said[0]
    assert said[1:] == ["True 0", "refused"]


def test_stop_from_another_thread_while_it_starts() -> None:
    stopped: list[int] = []
    stopper = threading.Thread(target=lambda: stopped.append(server.stop()))

    def observer(event: object) -> None:
        if isinstance(event, ListenerStarted):
            stopper.start()
            with pytest.raises(UsageError, match="runs already"):
                server.start("127.0.0.1", 0)

    server = WFHttpServer(process)
    server.subscribe(observer)
    server.start("127.0.0.1", 0)
    stopper.join(10)
    assert stopped == [0]


def test_failed_start_keeps_the_address_of_the_run_before() -> None:
    server = WFHttpServer(process)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(BindError, match="another program listens"):
            server.start(*busy.getsockname())
        with pytest.raises(UsageError, match="no address"):
            server.address  # noqa: B018
        server.start("127.0.0.1", 0)
        address = server.address
        server.stop()
        with pytest.raises(BindError, match="another program listens"):
            server.start(*busy.getsockname())
        assert server.address == address


@pytest.mark.skipif(sys.platform != "linux", reason="there are others beside epoll elsewhere")
def test_select_without_epoll(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(select, "epoll")
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"select\.epoll"):
            WFHttpServer(kind).start(f"unix:{tmp_path}/s")
    task = timer(0)
    assert isinstance(task.start().failure, ConfigError)
    assert not (tmp_path / "s").exists()


PATCHED = """
import {module}
{patch}
from protoserve import ConfigError
from protoserve_http import WFHttpServer

async def coroutine(task):
    pass

for kind in (coroutine, lambda task: None):
    try:
        WFHttpServer(kind).start("127.0.0.1", 0)
    except ConfigError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("module", "patch"),
    [
        ("gevent.monkey", "gevent.monkey.patch_all()"),
        ("gevent.monkey", "gevent.monkey.patch_thread()"),
        ("eventlet.patcher", "eventlet.monkey_patch()"),
    ],
)
def test_green_threads(module: str, patch: str) -> None:
    package = module.partition(".")[0]
    pytest.importorskip(package)
    prologue = "import warnings\nwarnings.simplefilter('ignore')\n"
    said = run_alone(prologue + PATCHED.format(module=module, patch=patch))
    assert len(said.lines) == 2
    for line in said.lines:
        assert line.startswith(f"{package}'s monkey patching has replaced ")
        assert "do not patch" in line


class FakePatcher:
    """gevent.monkey, as far as it is asked."""

    @staticmethod
    def is_module_patched(name: str) -> bool:
        return name == "threading"


def test_green_threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", FakePatcher)
    with pytest.raises(ConfigError, match="gevent's monkey patching has replaced threading"):
        WFHttpServer(process).start("127.0.0.1", 0)
