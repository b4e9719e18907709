"""wait_for_signal(): in a process of its own, and what it does not do in this one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from loopback import RawClient, eventually, get

from protoserve import UsageError
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
        try:
            RawClient(self.address).close()
        except ConnectionError:
            return False
        return True


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
