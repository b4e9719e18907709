"""Our server and a real redis-server asked the same, over several connections in lockstep.

After each step every connection is asked for a sign of life of its own, up to which both
must have sent the same bytes: replies and whatever else was sent meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any

from redis_tables import Store

from protoserve_redis import CommandTable

PATIENCE = 20.0
"""Seconds until a server that says nothing counts as hung."""

VERSION = "7.0.15"
"""The version whose answers are compared."""

# What differs between any two servers: numbers, times, places.
_OWN = (
    (re.compile(rb"(\$2\r\nid\r\n):\d+"), rb"\1:0"),
    (re.compile(rb"(redirect\r\n|redir-broken\r\n):\d+"), rb"\1:0"),
    (re.compile(rb"^\+\d+\.\d+ \[(\d+) [^]]*\]", re.MULTILINE), rb"+0.0 [\1 peer]"),
)


def table(**options: Any) -> CommandTable:
    """The store that is compared, with the version of the real one."""
    return Store(server_version=VERSION, **options).commands


class Peer:
    """One connection to one server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._seen = b""

    def send(self, pieces: Iterable[bytes]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was let go
            for piece in pieces:
                self.sock.sendall(piece)

    def wait(self) -> None:
        """Until it sends something."""
        self._seen += self.sock.recv(65536)

    def until(self, mark: bytes) -> bytes:
        """What it sends up to a mark; what follows stays for the next time."""
        sought = b"$%d\r\n%b\r\n" % (len(mark), mark)
        while sought not in self._seen:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            except TimeoutError:
                seen, self._seen = self._seen, b""
                return seen + b"<silence>"
            if not data:
                seen, self._seen = self._seen, b""
                return seen + b"<end>"
            self._seen += data
        seen, _, self._seen = self._seen.partition(sought)
        return seen

    def close(self) -> None:
        self.sock.close()


class Lockstep(contextlib.ExitStack):
    """Connections by name, each to both servers; ``step`` gives what differed."""

    def __init__(self, ours: tuple[str, int], theirs: tuple[str, int], names: str = "abc") -> None:
        super().__init__()
        self.pairs = {name: (Peer(ours), Peer(theirs)) for name in names}
        for peer in itertools.chain.from_iterable(self.pairs.values()):
            self.callback(peer.close)
        self._marks = itertools.count(1)
        self.ended: set[str] = set()

    def identify(self) -> dict[str, tuple[bytes, bytes]]:
        """The numbers of the connections, ours and theirs."""
        found = {}
        for name, pair in self.pairs.items():
            numbers = []
            for peer in pair:
                peer.send([b"CLIENT ID\r\nPING id\r\n"])
                numbers.append(peer.until(b"id")[1:-2])
            found[name] = (numbers[0], numbers[1])
        return found

    def step(
        self,
        name: str,
        pieces: Callable[[int], Iterable[bytes]],
        *,
        answered: bool = False,
    ) -> list[tuple[str, bytes, bytes]]:
        """Send what ``pieces(which)`` gives, 0 for ours; where answers differ, the name of
        the connection, our bytes, and theirs. With ``answered`` nothing more is sent before
        something has come back: what Redis sends when it has nothing more to do comes then."""
        different = []
        for which, peer in enumerate(self.pairs[name]):
            peer.send(pieces(which))
            if answered:
                peer.wait()
        # The one that did something first: then it has happened for the others, too.
        for other in sorted(self.pairs, key=lambda n: n != name):
            if other in self.ended:
                continue
            mark = b"mark%d" % next(self._marks)
            answers = []
            for peer in self.pairs[other]:
                peer.send([b"PING %b\r\n" % mark])
                answers.append(_alike(peer.until(mark)))
            if any(answer.endswith((b"<end>", b"<silence>")) for answer in answers):
                self.ended.add(other)
            if answers[0] != answers[1]:
                different.append((other, answers[0], answers[1]))
        return different


def _alike(answer: bytes) -> bytes:
    for pattern, put in _OWN:
        answer = pattern.sub(put, answer)
    return re.sub(rb'"mark\d+"', b'"mark"', answer)
