"""What the integration tests share: a client that writes bytes and reads HTTP replies."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

PATIENCE = 10.0
"""Seconds until something that has to happen counts as missing."""


def get(target: str = "/", *fields: str, version: str = "1.1") -> bytes:
    """A request without a body; ``fields`` are header lines besides ``Host``."""
    lines = [f"GET {target} HTTP/{version}", "Host: a", *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(target: str, body: bytes, *fields: str) -> bytes:
    """A request with a body and its length."""
    lines = [f"POST {target} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


class Reply(NamedTuple):
    """A reply as it was read from the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class RawClient:
    """One connection; what it sends is up to the test. Closes at the end of its block."""

    def __init__(self, address: Any, *, receive_buffer: int | None = None) -> None:
        family = socket.AF_UNIX
        if not isinstance(address, str):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    @property
    def name(self) -> Any:
        return self.sock.getsockname()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_bytewise(self, data: bytes) -> None:
        """One segment for each byte."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(data)):
            self.sock.sendall(data[i : i + 1])

    def end_sending(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reply(self, *, head_only: bool = False) -> Reply:
        """Read one reply; fails when it is not complete."""
        line = self._file.readline().decode("latin-1")
        assert line.startswith("HTTP/1.1 "), f"no status line: {line!r}"
        assert line.endswith("\r\n"), f"the status line is cut: {line!r}"
        headers = {}
        while (field := self._file.readline().decode("latin-1")) != "\r\n":
            assert field.endswith("\r\n"), f"the head is cut: {field!r}"
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if head_only else int(headers["content-length"])
        body = self._file.read(length)
        assert len(body) == length, f"the body is cut: {len(body)} of {length}"
        return Reply(int(line.split(" ")[1]), headers, body)

    def ask(self, target: str = "/", *fields: str, version: str = "1.1") -> Reply:
        """A request and its reply."""
        self.send(get(target, *fields, version=version))
        return self.reply()

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        return self._file.read()

    def rest_until_reset(self) -> bytes:
        """Everything up to the reset that ends the connection; fails at an orderly end."""
        data = b""
        try:
            while piece := self._file.read1(65536):
                data += piece
        except ConnectionResetError:
            return data
        raise AssertionError(f"the connection ended in order after {data!r}")

    @property
    def open(self) -> bool:
        """Whether the server has not closed the connection up to now."""
        self.sock.settimeout(0)
        try:
            return self.sock.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        finally:
            self.sock.settimeout(PATIENCE)


def ask_together(address: Any, *, clients: int, times: int) -> None:
    """So many clients, each of which asks so many times, all at once each time."""
    connections = [RawClient(address) for _ in range(clients)]
    for _ in range(times):
        for client in connections:
            client.send(get())
        for client in connections:
            client.reply()
    for client in connections:
        client.close()


class Together:
    """Counts the threads that are within its block; ``most`` is how many were at once."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


def eventually(condition: Callable[[], object]) -> None:
    """Wait until ``condition()`` is true; fails when that does not happen."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.002)
