"""A process that was forked from one that serves keeps nothing of it alive."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from own_process import run_alone

PROGRAM = """
import asyncio, contextlib, ctypes, multiprocessing, os, signal, sys, threading, time, warnings
from loopback import RawClient, eventually
from protoserve_http import WFHttpServer

warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: this is about them
kind, how, path = sys.argv[1:]
children = []


def fork():
    if how == "hooks":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        child.start()
        children.append(child.pid)
    else:  # in C, where Python's hooks are not called; the child does not get far
        pid = ctypes.CDLL(None).fork()
        if not pid:
            signal.pause()
            os._exit(0)
        children.append(pid)


def function(task):
    if task.req.path == "/fork":
        fork()
    task.resp.write("x")


async def coroutine(task):
    function(task)


def sockets(pid):
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sum(link.startswith("socket:") for link in links)


def ask(address):
    with RawClient(address) as early:
        assert early.ask().body == b"x"
        with RawClient(address) as forks:
            assert forks.ask("/fork").body == b"x"
            # The parent goes on: with connections from before, and new ones.
            for _ in range(3):
                assert early.ask().body == b"x"
                assert forks.ask().body == b"x"
                with RawClient(address) as late:
                    assert late.ask().body == b"x"
                    late.end_sending()
                    assert late.rest() == b""
            if how == "hooks":
                # Two are the clients here, and a pair wakes the loop, where there is one.
                eventually(lambda: sockets(children[-1]) <= (2 if kind == "function" else 4))
            server.shutdown()
            assert early.rest() == b""
            assert forks.rest() == b""
    try:
        RawClient(address)
    except (ConnectionRefusedError, FileNotFoundError):
        print("refused")


server = WFHttpServer(function if kind == "function" else coroutine)
where = ("unix:" + path,) if path else ("127.0.0.1", 0)
try:
    for _ in range(2):
        if kind == "main":
            async def main():
                async with server.start(*where):
                    await asyncio.get_running_loop().run_in_executor(None, ask, server.address)

            asyncio.run(main())
        else:
            with server.start(*where):
                ask(server.address)
        assert server.stop() == 0
        if not path:
            where = server.address  # again the same, while the children live
finally:
    for child in children:
        os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks with threads")
@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("how", ["hooks", "C"])
@pytest.mark.parametrize("kind", ["function", "own", "main"])
def test_child_that_lives_on(kind: str, how: str, unix: bool, tmp_path: Path) -> None:
    said = run_alone(PROGRAM, kind, how, str(tmp_path / "s") if unix else "")
    assert said.lines == ["refused"] * 2


ADOPTED = """
import os, socket, sys, time, warnings
from loopback import RawClient
from protoserve_http import WFHttpServer

warnings.simplefilter("ignore", DeprecationWarning)
with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    sock.listen(10)
    with WFHttpServer(lambda task: task.resp.write("parent")).serve(sock) as server:
        with RawClient(server.address) as client:
            assert client.ask().body == b"parent"
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            with WFHttpServer(lambda task: task.resp.write("child")).serve(sock) as server:
                os.write(writing, b"x")
                os.close(writing)
                server.wait_for_signal()
            os._exit(0)
        os.read(reading, 1)
    # The parent stopped; the child goes on with the socket that they share.
    for _ in range(3):
        with RawClient(sock.getsockname()) as client:
            print(client.ask().body.decode())
    os.kill(child, 15)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_shared_socket_is_not_shut_down() -> None:
    assert run_alone(ADOPTED).lines == ["child"] * 3


RETURNING = """
import os, warnings
from loopback import RawClient
from protoserve_http import WFHttpServer

warnings.simplefilter("ignore", DeprecationWarning)
children = []


def process(task):
    if task.req.path == "/fork":
        child = os.fork()
        if child == 0:
            return  # as code does that forgets os._exit()
        children.append(child)
    task.resp.write(task.req.path)


with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as client:
    for _ in range(3):
        assert client.ask("/fork").body == b"/fork"
        for _ in range(50):
            assert client.ask("/more").body == b"/more"
    for child in children:
        assert os.waitpid(child, 0)[0] == child
print("ended")
"""


def test_a_child_that_returns_into_the_engine_ends_there() -> None:
    """It must not poll what it shares with its parent, and take the parent's events."""
    assert run_alone(RETURNING).lines == ["ended"]


REPLYING = """
import os, sys, threading, time
from loopback import RawClient
from protoserve_http import WFHttpServer

path = sys.argv[1]


def process(task):
    task.resp.write("a reply")
    if task.req.path == "/fork":
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        else:
            # These have the numbers of the sockets that were closed here.
            for _ in range(20):
                os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            threading.Timer(0.5, os._exit, [0]).start()


with WFHttpServer(process).start("127.0.0.1", 0) as server:
    with RawClient(server.address) as client:
        assert client.ask("/fork").body == b"a reply"
print(os.path.getsize(path))
"""


def test_a_child_s_reply_is_not_written_to_what_it_opened(tmp_path: Path) -> None:
    assert run_alone(REPLYING, str(tmp_path / "file")).lines == ["0"]
