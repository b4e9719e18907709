"""Many connections, replies from other threads, blocking handlers and clients that leave
at random: order, completeness and an end without leftovers. Socket pairs, real threads.
"""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from line_service import LineService, LineSession

from protoserve import CommScheduler, TaskState
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.transport import SocketTransport
from protoserve.kernel.waiting import stop_connection

PATIENCE = 20.0


class Stand:
    """A scheduler, a service on it, and threads that give the replies it defers."""

    def __init__(self, seed: int, **params: float | None) -> None:
        self.random = random.Random(seed)
        self.scheduler = CommScheduler()
        self.service = LineService(self.handle, handler_threads=4, **params)
        self.service.on_result = self.note_result
        self.communicator: Communicator = self.scheduler.bind(self.service)
        self.deferred: queue.SimpleQueue[LineSession | None] = queue.SimpleQueue()
        self.undelivered: list[LineSession] = []
        self.results: list[LineSession] = []
        self.repliers = [threading.Thread(target=self.give_replies) for _ in range(3)]
        for thread in self.repliers:
            thread.start()

    def handle(self, session: LineSession) -> None:
        kind = session.line[:1]
        if kind == "d":
            self.deferred.put(session)
        elif kind == "x":
            session.connection.close()
            self.reply(session)
        else:
            if kind == "b":
                time.sleep(0.007)
            self.reply(session)

    def give_replies(self) -> None:
        while (session := self.deferred.get()) is not None:
            self.reply(session)

    def reply(self, session: LineSession) -> None:
        if not session.reply():
            self.undelivered.append(session)

    def note_result(self, session: LineSession) -> None:
        self.results.append(session)

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.service.retain()
        self.communicator.attach(SocketTransport(ours), "peer", self.service)
        theirs.settimeout(PATIENCE)
        return theirs

    def wait_for_sessions(self) -> None:
        """Until every session has ended; a client sees the end a little earlier."""
        end = time.monotonic() + PATIENCE
        while len(self.results) + len(self.undelivered) < len(self.service.sessions):
            assert time.monotonic() < end, "sessions hang"
            time.sleep(0.002)

    def wait_for_ends(self, number: int) -> None:
        """Until so many connections were reported as closed, which is after their sockets are."""
        end = time.monotonic() + PATIENCE
        while len(self.service.ends) < number:
            assert time.monotonic() < end, "connections are not reported"
            time.sleep(0.002)

    def close(self) -> None:
        """Everything must come to its end."""
        self.service.stopping = True
        for conn in self.service.connections():
            stop_connection(conn.entry)
        self.service.release()
        end = time.monotonic() + PATIENCE
        while not self.service.unbound and time.monotonic() < end:
            time.sleep(0.002)
        left = [f"{conn!r} {conn.entry.exchanges.session}" for conn in self.service.connections()]
        for _ in self.repliers:
            self.deferred.put(None)
        for thread in self.repliers:
            thread.join(PATIENCE)
        self.scheduler.service_ended(self.service)
        assert self.scheduler.join(PATIENCE)
        assert not left
        assert self.service.unbound == 1
        assert self.service._references == 0


@pytest.fixture
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    stand = Stand(getattr(request, "param", 1))
    yield stand
    stand.close()


def lines(rng: random.Random, kinds: str, number: int) -> list[bytes]:
    return [f"{rng.choice(kinds)}{i}\n".encode() for i in range(number)]


def send_in_pieces(sock: socket.socket, data: bytes, rng: random.Random) -> None:
    while data:
        cut = rng.randint(1, len(data))
        sock.sendall(data[:cut])
        data = data[cut:]


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def run_clients(client: object, number: int) -> None:
    """``client(i)`` on threads; what they raise is raised here."""
    errors: list[BaseException] = []

    def run(start: int) -> None:
        for i in range(start, number, 8):
            try:
                client(i)  # type: ignore[operator]
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 2)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("stand", [1, 2], indirect=True)
def test_everything_is_answered_in_order(stand: Stand) -> None:
    """Inline, deferred and blocking replies mixed in one pipeline; then a half-close."""

    def client(i: int) -> None:
        rng = random.Random(i)
        sent = lines(rng, "iiiiddddddb" if i % 4 == 0 else "iiiddd", rng.randint(1, 120))
        with stand.connect() as sock:
            send_in_pieces(sock, b"".join(sent), rng)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"".join(sent)

    run_clients(client, 80)
    stand.wait_for_sessions()
    assert not stand.undelivered
    sessions = stand.service.sessions
    assert all(
        session.states == [(TaskState.TOREPLY, 0), (TaskState.SUCCESS, 0)] for session in sessions
    )
    stand.wait_for_ends(80)
    assert sum(event.requests for event in stand.service.ends) == len(sessions)


@pytest.mark.parametrize("stand", [3], indirect=True)
def test_clients_that_leave_at_random(stand: Stand) -> None:
    def client(i: int) -> None:
        rng = random.Random(1000 + i)
        sent = lines(rng, "iidddb" if i % 8 == 0 else "iiddd", rng.randint(1, 60))
        if rng.random() < 0.2:
            sent.insert(rng.randrange(len(sent)), b"x\n")
        data = b"".join(sent)
        got = b""
        with stand.connect() as sock:
            try:
                send_in_pieces(sock, data[: rng.randint(1, len(data))], rng)
                wanted = rng.randint(0, len(data))
                sock.settimeout(0.02)
                while len(got) < wanted:
                    piece = sock.recv(rng.randint(1, 500))
                    if not piece:
                        break
                    got += piece
            except (ConnectionError, TimeoutError):
                pass
            assert data.startswith(got)

    run_clients(client, 160)
    # Each session ended exactly once: with a result, or without its peer.
    stand.wait_for_sessions()
    ended = [*stand.results, *stand.undelivered]
    assert len(ended) == len(set(map(id, ended))) == len(stand.service.sessions)
    assert all(len(session.states) <= 2 for session in ended)


def test_closing_from_everywhere_at_once(stand: Stand) -> None:
    """The service, the client and the handler close the same connections."""
    done = threading.Event()

    def closer() -> None:
        while not done.is_set():
            for conn in stand.service.connections():
                conn.on_close(lambda c: c.close())
                if stand.random.random() < 0.3:
                    conn.close()
            time.sleep(0.001)

    thread = threading.Thread(target=closer)
    thread.start()

    def client(i: int) -> None:
        rng = random.Random(2000 + i)
        with stand.connect() as sock:
            try:
                for line in lines(rng, "ddddddix", 50):
                    sock.sendall(line)
                read_all(sock)
            except ConnectionError:
                pass

    run_clients(client, 200)
    done.set()
    thread.join(PATIENCE)
    stand.wait_for_sessions()
    assert len(stand.service.ends) + stand.service.conn_count == 200


def test_slow_readers(stand: Stand) -> None:
    """Output that waits for room, while handlers block and others reply."""
    big = "y" * 3000

    def client(i: int) -> None:
        rng = random.Random(3000 + i)
        sent = [f"{rng.choice('iid')}{big}{n}\n".encode() for n in range(300)]
        data = b"".join(sent)
        with stand.connect() as sock:
            writer = threading.Thread(target=send_in_pieces, args=(sock, data, rng))
            writer.start()
            got = bytearray()
            while len(got) < len(data):
                piece = sock.recv(rng.choice((100, 5000, 65536)) if i % 2 else 65536)
                assert piece
                got += piece
            writer.join(PATIENCE)
            assert bytes(got) == data

    run_clients(client, 16)
