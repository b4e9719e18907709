"""What the tests of the examples share: their server, a real one, a client for bytes, patience."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hiredis
import pytest

from protoserve_redis import WFRedisServer

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Seconds until something that has to happen counts as missing."""

_NOT_YET = object()


def tool(name: str) -> str:
    """The path of one of Redis' programs. Skips the test without it, fails it in CI."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed (Debian: redis-server, redis-tools)")
    return path


def missing(reason: str) -> NoReturn:
    """Skip the test; in CI, where everything has to be there, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def module(name: str) -> Any:
    """One of the examples. Skips the test, or fails it in CI, without what it needs."""
    if name == "redis_full" and importlib.util.find_spec("fakeredis") is None:
        missing("fakeredis is not installed (pip install 'protoserve[examples]')")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))  # as `protoserve run` does with the current folder
        return importlib.import_module(f"examples.{name}")


@contextlib.contextmanager
def example(name: str = "redis_full") -> Iterator[int]:
    """A server of one of the examples, empty, on some port."""
    kv = module(name)
    with WFRedisServer(kv.commands).start("127.0.0.1", 0) as server:
        with Wire(server.address[1]) as wire:
            assert wire.ask(packed("FLUSHALL")) == b"+OK\r\n"
        yield server.address[1]


@contextlib.contextmanager
def real() -> Iterator[int]:
    """A redis-server that keeps nothing, on some port."""
    program = tool("redis-server")
    end = time.monotonic() + PATIENCE
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly",
             "no"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if _answers(port, process):
                yield port
                return
        finally:
            process.terminate()
            process.wait(PATIENCE)
        # Somebody else took the port in between: another run of these tests, for example.
        assert time.monotonic() < end, "redis-server does not start"


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until this very process answers there; False when it has ended, or another does."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
                sock.sendall(b"INFO server\r\nQUIT\r\n")
                said = sock.makefile("rb").read()
                return b"\r\nprocess_id:%d\r\n" % process.pid in said
        except (ConnectionRefusedError, ConnectionResetError):
            assert time.monotonic() < end, "redis-server does not answer"
            time.sleep(0.01)
    return False


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so; fail when it is not to be."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def packed(*words: bytes | str) -> bytes:
    """A command as clients send it."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Wire:
    """A connection that sends bytes and reads whole replies, as bytes."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, data: bytes, replies: int = 1) -> bytes:
        """What is answered to ``data``."""
        self.sock.sendall(data)
        return self.answer(replies)

    def answer(self, replies: int = 1) -> bytes:
        """The next so many replies."""
        seen = bytearray()
        while replies:
            data = self.sock.recv(65536)
            assert data, f"the connection closed after {bytes(seen)!r}"
            seen += data
            self._reader.feed(data)
            while replies and self._reader.gets() is not _NOT_YET:
                replies -= 1
        return bytes(seen)
