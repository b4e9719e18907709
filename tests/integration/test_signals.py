"""wait_for_signal(): in a process of its own, and what it does not do in this one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from own_process import run_alone

from protoserve import UsageError
from protoserve.signals import wait_for_signal
from protoserve_http import WFHttpServer, WFHttpTask

CHILD = """
import signal, sys, threading, time
from protoserve_http import HTTP_SPEC, WFHttpServer

def process(task):
    if task.req.path == "/slow":
        print("running", flush=True)
        time.sleep(float(sys.argv[1]))
    task.resp.write("done")

def mine(number, frame):
    pass

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

def announce():
    while any(now is then for now, then in zip(handlers(), before)):
        time.sleep(0.001)
    print(server.address[1], flush=True)

signal.signal(signal.SIGTERM, mine)
before = handlers()
params = HTTP_SPEC.params.replace(shutdown_timeout=float(sys.argv[2]))
with WFHttpServer(process, params).start("127.0.0.1", 0) as server:
    threading.Thread(target=announce).start()
    received = server.wait_for_signal()
    print(int(received), before == handlers(), server.stop(), flush=True)
"""


class Child:
    def __init__(self, program: subprocess.Popen[str]) -> None:
        self.program = program
        self.address = ("127.0.0.1", int(self.line()))

    def line(self) -> str:
        assert self.program.stdout is not None
        return self.program.stdout.readline().strip()

    def end(self) -> str:
        """The last line, once the program has ended well."""
        line = self.line()
        assert self.program.wait(20) == 0
        return line

    def listens(self) -> bool:
        return listens(f"http://127.0.0.1:{self.address[1]}")


@contextmanager
def child(handler_time: float, shutdown_timeout: float = 15.0) -> Iterator[Child]:
    program = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(handler_time), str(shutdown_timeout)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        try:
            yield Child(program)
        finally:
            program.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_graceful(number: signal.Signals) -> None:
    with child(0.4) as server, RawClient(server.address) as client:
        client.send(get("/slow"))
        assert server.line() == "running"
        server.program.send_signal(number)
        answer = client.reply()
        assert answer.body == b"done"
        assert answer.closes
        assert client.rest() == b""
        assert server.end() == f"{int(number)} True 0"


def test_second_signal_cuts_short() -> None:
    with child(30.0) as server, RawClient(server.address) as client:
        client.send(get("/slow"))
        assert server.line() == "running"
        server.program.send_signal(signal.SIGTERM)
        eventually(lambda: not server.listens())
        assert client.open
        server.program.send_signal(signal.SIGINT)
        assert client.rest() == b""
        assert server.end() == f"{int(signal.SIGTERM)} True 1"


def test_shutdown_timeout_holds_after_the_first_signal() -> None:
    with child(30.0, shutdown_timeout=0.3) as server, RawClient(server.address) as client:
        client.send(get("/slow"))
        assert server.line() == "running"
        server.program.send_signal(signal.SIGTERM)
        assert client.rest() == b""
        assert server.end() == f"{int(signal.SIGTERM)} True 1"


def process(task: WFHttpTask) -> None:
    task.resp.write("x")


def test_returns_when_the_server_was_stopped_otherwise() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        timer = threading.Timer(0.05, server.stop)
        timer.start()
        start = time.monotonic()
        assert server.wait_for_signal() == 0
        assert time.monotonic() - start < 5
        timer.join()
        assert signal.getsignal(signal.SIGTERM) is before
        assert server.wait_for_signal() == 0


def test_returns_when_a_handler_shut_the_server_down() -> None:
    def last(task: WFHttpTask) -> None:
        server.shutdown()

    with WFHttpServer(last).start("127.0.0.1", 0) as server:

        def ask() -> None:
            with RawClient(server.address) as client:
                client.ask()

        thread = threading.Thread(target=ask)
        thread.start()
        assert server.wait_for_signal() == 0
        thread.join(10)


def test_only_in_the_main_thread() -> None:
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            server.wait_for_signal()
        except UsageError as error:
            raised.append(error)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(10)
    assert "main thread only" in str(raised[0])


def test_starting_touches_no_signal() -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with WFHttpServer(process).start("127.0.0.1", 0):
        now = {number: signal.getsignal(number) for number in signal.valid_signals()}
        assert now == before


ON_STOP = """
import asyncio, os, signal, sys, threading
from protoserve_http import HTTP_SPEC, WFHttpServer


async def on_stop(server):
    print("on_stop", flush=True)
    begun.set()
    await asyncio.sleep(1000)


def send():
    os.kill(os.getpid(), signal.SIGTERM)
    begun.wait()
    os.kill(os.getpid(), signal.SIGINT)


begun = threading.Event()
params = HTTP_SPEC.params.replace(shutdown_timeout=None)
server = WFHttpServer(lambda task: None, params, on_stop=on_stop).start("127.0.0.1", 0)
sender = threading.Thread(target=send)
print(server.wait_for_signal(ready=sender.start), server.stop())
"""


def test_second_signal_cuts_on_stop_short() -> None:
    said = run_alone(ON_STOP)
    assert said.lines == ["on_stop", f"{int(signal.SIGTERM)} 0"]
    assert "on_stop" in said.log
    assert "was cancelled" in said.log


def test_a_signal_while_it_stops_otherwise_is_the_first() -> None:
    entered, opened = threading.Event(), threading.Event()

    def process(task: WFHttpTask) -> None:
        entered.set()
        assert opened.wait(PATIENCE)
        task.resp.write("done")

    def stop() -> None:
        with RawClient(server.address) as client:
            client.send(get())
            assert entered.wait(PATIENCE)
            server.shutdown()
            signal.raise_signal(signal.SIGTERM)
            threading.Timer(0.05, opened.set).start()
            replies.append(client.reply().body)

    replies: list[bytes] = []
    stopper = threading.Thread(target=stop)
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        assert server.wait_for_signal(ready=stopper.start) == signal.SIGTERM
        stopper.join(PATIENCE)
    assert replies == [b"done"]


def test_waiting_subscribes_nobody() -> None:
    """With an observer every request would make an event."""

    def ready() -> None:
        assert [server.observers for server in servers] == [()] * 2
        servers[1].shutdown()

    before = signal.getsignal(signal.SIGTERM)
    servers = [WFHttpServer(process).start("127.0.0.1", 0) for _ in range(2)]
    assert wait_for_signal(servers, (signal.SIGTERM,), ready) == 0
    assert [server.wait_finish(0) for server in servers] == [True, True]
    assert [len(server._stop_notice) for server in servers] == [0, 0]
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_left_when_ready_raises() -> None:
    def ready() -> None:
        raise KeyError

    before = signal.getsignal(signal.SIGTERM)
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with pytest.raises(KeyError):
            server.wait_for_signal(ready=ready)
        assert len(server._stop_notice) == 0
        assert signal.getsignal(signal.SIGTERM) is before


STOPPED_BEFORE = """
import signal
from protoserve.signals import wait_for_signal
from protoserve_http import WFHttpServer

servers = [WFHttpServer(lambda task: None).start("127.0.0.1", 0) for _ in range(2)]
servers[1].stop()
print(wait_for_signal(servers, (signal.SIGTERM,), None), servers[0].wait_finish(0))
"""


def test_one_of_several_has_stopped_before() -> None:
    assert run_alone(STOPPED_BEFORE).lines == ["0 True"]


APPLICATION = """
import asyncio, logging, sys

# In debug mode it says what took long, as anything does on a busy machine.
logging.getLogger("asyncio").setLevel(logging.ERROR)

def say(*words):
    print(*words, file=sys.stderr, flush=True)

async def process(task):
    if task.req.path == "/slow":
        say("running")
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.1)
            say("handler ended")
    task.resp.write("x")

async def on_start(server):
    say("on_start")

async def on_stop(server):
    await asyncio.sleep(0.6)
    say("on_stop", server.url)

process.on_start = on_start
process.on_stop = on_stop
"""


@contextmanager
def application(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """An application with hooks at two addresses, and their URLs."""
    (folder / "the_app.py").write_text(APPLICATION)
    command = [sys.executable, "-m", "protoserve", "run", "http", "the_app:process", *options]
    for _ in range(2):
        command += ["--bind", "127.0.0.1:0"]
    program = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with program:
        try:
            assert program.stdout is not None
            yield program, [program.stdout.readline().split()[-1] for _ in range(2)]
        finally:
            program.kill()


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


def listens(url: str) -> bool:
    try:
        RawClient(("127.0.0.1", port(url))).close()
    except ConnectionError:
        return False
    return True


def test_an_application_at_two_addresses_has_its_hooks_once(tmp_path: Path) -> None:
    with application(tmp_path) as (program, urls):
        for url in urls:
            with RawClient(("127.0.0.1", port(url))) as client:
                assert client.ask().body == b"x"
        program.send_signal(signal.SIGTERM)
        _, log = program.communicate(timeout=30)
        assert log.splitlines() == ["on_start", f"on_stop {urls[0]}"]
        assert program.returncode == 0


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("which", [0, 1])
def test_on_stop_comes_after_the_requests_of_all_addresses(
    which: int, signals: int, tmp_path: Path
) -> None:
    seconds = "2" if signals == 1 else "none"
    with application(tmp_path, "--shutdown-timeout", seconds) as (program, urls):
        assert program.stderr is not None
        assert program.stderr.readline() == "on_start\n"
        with RawClient(("127.0.0.1", port(urls[which]))) as client:
            client.send(get("/slow"))
            assert program.stderr.readline() == "running\n"
            program.send_signal(signal.SIGTERM)
            if signals == 2:
                eventually(lambda: not any(map(listens, urls)))
                program.send_signal(signal.SIGTERM)
            _, log = program.communicate(timeout=30)
        assert program.returncode == 0
        *before, last = log.splitlines()
        # A busy machine may cut before it has let the handler end.
        cut, ended = sorted(before)
        assert ended == "handler ended"
        assert f"{urls[which]}: cut 1 connections or requests" in cut
        assert last == f"on_stop {urls[0]}"
