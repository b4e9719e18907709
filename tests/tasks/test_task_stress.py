"""Series that go on on other threads, while clients pipeline, wait and leave at random."""

from __future__ import annotations

import queue
import random
import socket
import threading
from collections.abc import Iterator

import pytest
from line_server import LineServer, Task

from protoserve import CommScheduler, SubTask
from protoserve.kernel.transport import SocketTransport
from protoserve.kernel.waiting import stop_connection

PATIENCE = 20.0


class Elsewhere(SubTask):
    """A task that is done on one of the stand's threads."""

    def __init__(self, stand: Stand) -> None:
        super().__init__()
        self.stand = stand

    def dispatch(self) -> None:
        self.stand.work.put(self)


class Stand:
    """A server on socket pairs, and threads that complete its tasks."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Elsewhere | None] = queue.SimpleQueue()
        self.unbound = threading.Event()
        self.server = LineServer(self.process)
        self.server.handle_unbound = self.unbound.set  # type: ignore[method-assign]
        self.scheduler = CommScheduler()
        self.communicator = self.scheduler.bind(self.server)
        self.counted = threading.Lock()
        self.processed = self.callbacks = self.series = 0
        self.threads = [threading.Thread(target=self.complete) for _ in range(3)]
        for thread in self.threads:
            thread.start()

    def process(self, task: Task) -> None:
        kind, _, number = task.req.partition(" ")
        with self.counted:
            self.processed += 1
        if kind != "cancel":
            task.set_callback(self.callback)
        if kind != "plain":
            task.series.set_callback(self.series_callback)
            for _ in range(int(number) % 4):
                task.series.push_back(Elsewhere(self))
        if kind == "cancel":
            task.series.cancel()
        elif kind == "end":
            task.noreply()
        task.resp.text = task.req

    def callback(self, task: Task) -> None:
        with self.counted:
            self.callbacks += 1
        if task.req.startswith("after"):
            task.series.push_back(Elsewhere(self))

    def series_callback(self, series: object) -> None:
        with self.counted:
            self.series += 1

    def complete(self) -> None:
        while (task := self.work.get()) is not None:
            task.subtask_done()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.server.retain()
        self.communicator.attach(SocketTransport(ours), "peer", self.server)
        theirs.settimeout(PATIENCE)
        return theirs

    def close(self) -> None:
        self.server.stopping = True
        for conn in self.server.connections():
            stop_connection(conn.entry)
        self.server.release()
        ended = self.unbound.wait(PATIENCE)
        for _ in self.threads:
            self.work.put(None)
        for thread in self.threads:
            thread.join(PATIENCE)
        self.scheduler.service_ended(self.server)
        assert self.scheduler.join(PATIENCE)
        assert ended
        assert self.server.alive == 0


@pytest.fixture
def stand() -> Iterator[Stand]:
    stand = Stand()
    yield stand
    stand.close()


def test_series_on_other_threads(stand: Stand) -> None:
    sent = {"cancel": 0, "plain": 0, "all": 0}
    errors: list[BaseException] = []

    def client(i: int) -> None:
        rng = random.Random(i)
        leaves = i % 4 == 0
        kinds = ["plain", "series", "after"] * 4 + (["cancel", "end"] if i % 4 == 1 else [])
        lines = [f"{rng.choice(kinds)} {n}" for n in range(rng.randint(1, 40))]
        data = "".join(f"{line}\n" for line in lines).encode()
        ends = [n for n, line in enumerate(lines) if line[:3] in ("can", "end")]
        expected = "".join(f"{line}\n" for line in lines[: ends[0] if ends else None]).encode()
        with stand.connect() as sock:
            sock.sendall(data)
            if leaves:
                sock.recv(rng.randint(1, 100))
                return
            sock.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: sock.recv(4096), b"")) == expected
        with stand.counted:
            answered = lines[: ends[0] + 1] if ends else lines
            sent["all"] += len(answered)
            sent["cancel"] += sum(line.startswith("cancel") for line in answered)

    def run(start: int) -> None:
        try:
            for i in range(start, 160, 8):
                client(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not errors
    stand.close()
    stand.close = lambda: None  # type: ignore[method-assign]
    assert stand.processed >= sent["all"] > 0
    # Every request that was not cancelled had its callback, exactly once.
    assert stand.series > 0
    canceled = stand.processed - stand.callbacks
    assert canceled == sent["cancel"] > 0
