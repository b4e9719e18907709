"""HTTP over TCP, HTTP over a Unix socket and Redis in one process, stopped together."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

from protoserve import timer
from protoserve_http import WFHttpServer, WFHttpTask
from protoserve_redis import CommandTable, WFRedisServer

HTTP = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
REDIS = b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n"


def http(task: WFHttpTask) -> None:
    if task.seq % 3 == 0:
        task.series.push_back(timer(0.002))
    task.resp.write("hi")


async def coroutine(task: WFHttpTask) -> None:
    task.resp.write("hi")


class Client(threading.Thread):
    """Asks again and again; each request is answered whole, or not begun to be served."""

    def __init__(self, address: Any, request: bytes, end: bytes) -> None:
        super().__init__()
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.settimeout(20)
        self.sock.connect(address)
        self.request, self.end = request, end
        self.answers = 0
        self.partial = b""

    def run(self) -> None:
        with self.sock:
            while True:
                try:
                    self.sock.sendall(self.request)
                    answer = b""
                    while not answer.endswith(self.end):
                        data = self.sock.recv(4096)
                        if not data:
                            self.partial = answer
                            return
                        answer += data
                except (BrokenPipeError, ConnectionResetError):
                    return
                self.answers += 1
                if b"Connection: close" in answer:
                    return


def test_stopped_together_under_load(tmp_path: Path) -> None:
    table = CommandTable()
    servers = [
        WFHttpServer(http).start("127.0.0.1", 0),
        WFHttpServer(http).start(f"unix:{tmp_path}/s.sock"),
        WFHttpServer(coroutine).start("127.0.0.1", 0),
        WFRedisServer(table).start("127.0.0.1", 0),
    ]
    clients = [Client(s.address, HTTP, b"\r\n\r\nhi") for s in servers[:3] for _ in range(3)]
    clients += [Client(servers[3].address, REDIS, b"$2\r\nhi\r\n") for _ in range(3)]
    for client in clients:
        client.start()
    reached = threading.Event()
    while any(client.answers < 50 for client in clients) and clients[0].is_alive():
        reached.wait(0.01)
    for server in servers:
        server.shutdown()
    assert all(server.wait_finish(20) for server in servers)
    for client in clients:
        client.join(20)
        assert not client.is_alive()
        assert client.answers >= 50
        assert not client.partial
    assert not (tmp_path / "s.sock").exists()
