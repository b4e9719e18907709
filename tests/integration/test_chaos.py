"""Clients that behave as badly as they can, for three seconds; and a server after that."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import struct
import threading
import time

import pytest
from loopback import PATIENCE, RawClient, get, post

from protoserve import SubTask
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

SECONDS = 3.0
CLIENTS = 6
RESET = struct.pack("ii", 1, 0)

BIG = bytes(2 * 1024 * 1024)


class Later(SubTask):
    """Ends on another thread."""

    def dispatch(self) -> None:
        threading.Timer(0.01, self.subtask_done).start()


def process(task: WFHttpTask) -> None:
    match task.req.path:
        case "/sleep":
            time.sleep(0.02)
        case "/raise":
            raise RuntimeError("chaos")
        case "/noreply":
            task.noreply()
        case "/close":
            task.connection.close()
        case "/big":
            task.resp.write(BIG)
        case "/last":
            task.set_keep_alive(0)
        case "/later":
            task.series.push_back(Later())
        case "/cancel":
            task.series.cancel()
        case "/callback":
            task.set_callback(lambda task: task.series.push_back(Later()))
        case "/bad":
            task.resp.headers["X"] = "a\r\nb"
    task.resp.write(task.req.body)


def requests(rng: random.Random) -> bytes:
    """A few requests, sometimes cut, sometimes damaged."""
    paths = ["sleep", "raise", "noreply", "close", "big", "last", "later", "cancel", "callback"]
    paths += ["bad", "", "", "", ""]
    parts = []
    for _ in range(rng.randrange(1, 6)):
        path = "/" + rng.choice(paths)
        parts.append(
            post(path, rng.randbytes(rng.randrange(3000))) if rng.random() < 0.3 else get(path)
        )
    data = bytearray(b"".join(parts))
    fate = rng.random()
    if fate < 0.2:
        data[rng.randrange(len(data))] = rng.randrange(256)
    elif fate < 0.3:
        data = bytearray(rng.randbytes(rng.randrange(1, 500)))
    elif fate < 0.5:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def misbehave(address: tuple[str, int], seed: int, end: float, done: list[int]) -> None:
    rng = random.Random(seed)
    count = 0
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(address, 5) as sock:
            sock.settimeout(0.05)
            count += 1
            data = requests(rng)
            while data:
                size = rng.choice([1, 7, 100, len(data)])
                sock.sendall(data[:size])
                data = data[size:]
                if rng.random() < 0.1:
                    break
            fate = rng.random()
            if fate < 0.2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                continue
            if fate < 0.4:
                continue
            if fate < 0.6:
                sock.shutdown(socket.SHUT_WR)
            for _ in range(rng.randrange(20)):
                if not sock.recv(rng.choice([1, 1000, 1_000_000])):
                    break
    done.append(count)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3, None])
def test_chaos(limit: int | None, caplog: pytest.LogCaptureFixture) -> None:
    # The log tells of each handler that raised: a few are enough.
    caplog.set_level(logging.CRITICAL, logger="protoserve")
    params = HTTP_SPEC.params.replace(
        max_connections=limit,
        peer_response_timeout=0.2,
        receive_timeout=0.5,
        keep_alive_timeout=0.1,
        handler_threads=4,
    )
    server = WFHttpServer(process, params).start("127.0.0.1", 0)
    end = time.monotonic() + SECONDS / 2
    done: list[int] = []
    threads = [
        threading.Thread(target=misbehave, args=(server.address, seed, end, done))
        for seed in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + PATIENCE)
    assert len(done) == CLIENTS
    assert sum(done) > CLIENTS
    with RawClient(server.address) as client:
        client.send(post("/", b"still there"))
        assert client.reply().body == b"still there"
    assert server.stop() == 0
    assert server.conn_count == 0
