"""What is measured: the requests of each workload and the answer that they must get."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from http.client import HTTPResponse

from benchmarks.load import CONNECTIONS, RATE, H2load, Load, RedisBenchmark, Wrk

BODY = bytes(range(33, 127)).replace(b"\\", b"/").replace(b'"', b"'") * 700
BODY = BODY[: 64 * 1024]

PIPELINED = 16


_ECHO_FIELDS = {
    "Host": "www.example.com",
    "User-Agent": "wrk/000000",
    "Accept": "text/html",
    "Accept-Language": "en",
    "Accept-Encoding": "gzip",
    "Referer": "http://example.com/?a=1&b=2",
    "Cache-Control": "no-cache",
    "Connection": "keep-alive",
}


def echo_request(number: int = 0, path: str = "/hello") -> bytes:
    """A GET with eight header fields, one of which needs escaping in HTML."""
    fields = _ECHO_FIELDS | {"User-Agent": f"wrk/{number:06d}"}
    lines = [f"GET {path} HTTP/1.1", *map(": ".join, fields.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def _echo_at_a_rate(paths: list[str], rate: int = RATE) -> H2load:
    """The same request from h2load, which has its own way to say ``Host``; from each
    connection once in 10 ms."""
    fields = {":authority" if name == "Host" else name: v for name, v in _ECHO_FIELDS.items()}
    return H2load(paths, fields, rate, rate // 100)


def echo_page(request: bytes) -> bytes:
    """The page that answers an echo request, about 300 bytes."""
    lines = escape(request.decode().strip(), quote=False).split("\r\n")
    body = "</p>\n<p>".join(lines)
    return f"<!DOCTYPE html>\n<title>Echo</title>\n<p>{body}</p>\n".encode()


# More than any server remembers; and no two on one connection are the same in a row.
_VARIED = range(313 * CONNECTIONS + 1)
_VARIED_PATHS = [f"/hello-{number:06d}" for number in _VARIED]

PLAIN_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
PLAIN_ANSWER = b"Hello, World!"
POST_REQUEST = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


CLOSED, PACED = "closed loop", "fixed rate"
"""The figures: each connection asks again when it has its answer, or at a rate that the
server has no influence on."""


@dataclass(frozen=True)
class Target:
    """CPU per request may be at most ``factor`` times that of the best of ``peers``."""

    peers: tuple[str, ...]
    factor: float
    ours: str = "protoserve"
    """Which of our servers is meant."""
    figure: str = CLOSED


@dataclass(frozen=True)
class Workload:
    """``app`` is the name of the application in ``benchmarks.peers.*``; ``verify`` raises
    ``ValueError`` when a server's answer is not the one that all must give."""

    name: str
    title: str
    app: str
    load: Load
    verify: Callable[[int, str], None]
    targets: tuple[Target, ...] = ()
    protocol: str = "http"
    ours: str = "protoserve"
    """The server of ours that the others are compared with."""
    paced: H2load | None = None
    note: str = ""

    def figures(self) -> dict[str, Load]:
        """What is measured, in this order, and the load for it."""
        return {CLOSED: self.load} | ({PACED: self.paced} if self.paced else {})


class _Stream(io.BufferedReader):
    """What several ``HTTPResponse`` read from, one after the other."""

    def makefile(self, mode: str) -> _Stream:
        return self

    def close(self) -> None:
        """Left open for the next response; the socket is closed by its owner."""


def fetch(port: int, request: bytes, count: int = 1) -> list[tuple[int, bytes]]:
    """Status and body of the ``count`` answers to ``request``, on one connection."""
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(request)
        stream = _Stream(socket.SocketIO(sock, "r"))
        for _ in range(count):
            response = HTTPResponse(stream)  # type: ignore[arg-type]
            response.begin()
            answers.append((response.status, response.read()))
    return answers


def expect(answers: list[tuple[int, bytes]], body: bytes) -> None:
    """Raise ``ValueError`` unless each answer is a 200 with that body."""
    for status, got in answers:
        if status != 200:
            raise ValueError(f"status {status} instead of 200")
        if got != body:
            raise ValueError(f"{len(got)} bytes {got[:400]!r} instead of {body[:400]!r}")


def _verify_varied(port: int, peer: str) -> None:
    _verify_echo(port, peer)
    if peer != "nginx":
        _verify_echo(port, peer, echo_request(path=_VARIED_PATHS[0]))


def _verify_echo(port: int, peer: str, request: bytes = echo_request()) -> None:
    [(status, got)] = fetch(port, request)
    page = echo_page(request)
    if peer != "nginx":
        # Gateways change the case and the order of header fields: that is their work.
        got, page = (b"\n".join(sorted(text.lower().split(b"\n"))) for text in (got, page))
    elif len(got) == len(page):
        got = page
    expect([(status, got)], page)


def _verify_plain(port: int, peer: str) -> None:
    expect(fetch(port, PLAIN_REQUEST), PLAIN_ANSWER)


def _verify_pipelined(port: int, peer: str) -> None:
    expect(fetch(port, PLAIN_REQUEST * PIPELINED, PIPELINED), PLAIN_ANSWER)


def _verify_post(port: int, peer: str) -> None:
    expect(fetch(port, POST_REQUEST), BODY)


def _verify_redis(port: int, peer: str) -> None:
    # fakeredis answers GET with a simple string.
    answers = {b"SET k v": (b"+OK\r\n",), b"GET k": (b"$1\r\nv\r\n", b"+v\r\n")}
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        # One by one: not every peer takes a pipeline in one segment.
        for command, wanted in answers.items():
            words = command.split()
            sock.sendall(
                b"*%d\r\n" % len(words)
                + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
            )
            answer = b""
            while answer not in wanted and (data := sock.recv(4096)):
                answer += data
            if answer not in wanted:
                raise ValueError(f"{peer} answered {command!r} with {answer!r}")


def _redis(test: str, depth: int, *targets: Target) -> Workload:
    several = f", {depth} in a pipeline" if depth > 1 else ", one at a time"
    return Workload(
        f"redis-{test}-{depth}",
        f"Redis {test.upper()}{several}",
        "redis",
        RedisBenchmark(test, depth),
        _verify_redis,
        targets,
        "redis",
        REDIS,
    )


REDIS = "protoserve redis"
BLOCKING = "blocking"
"""What only servers with a pool of threads are asked for; see ``benchmarks.blocking``."""

_ONE_BY_ONE = (Target(("redis-server",), 2.2, REDIS),)
_SIXTEEN = (Target(("redis-server",), 4, REDIS),)

_PAGE = f"GET with 8 headers, {len(echo_page(echo_request()))} bytes of HTML"
_AT_A_RATE = (
    Target(("uvicorn",), 0.5, figure=PACED),
    Target(("bjoern",), 0.9, figure=PACED),
)

WORKLOADS = [
    Workload(
        "varied",
        f"Echo page, different every time: {_PAGE}",
        "echo",
        Wrk([echo_request(number) for number in _VARIED]),
        _verify_varied,
        (
            Target(("uvicorn",), 0.6),
            Target(("granian RSGI",), 0.75),
            Target(("bjoern", "fastpysgi"), 1.0),
            *_AT_A_RATE,
        ),
        paced=_echo_at_a_rate(_VARIED_PATHS),
        note="In the closed loop one header field differs, at the fixed rate the path: h2load "
        "has the same header for all.",
    ),
    Workload(
        "echo",
        f"Echo page, always the same: {_PAGE}",
        "echo",
        Wrk([echo_request()]),
        _verify_echo,
        (
            Target(("uvicorn",), 0.5),
            Target(("bjoern",), 0.8),
            Target(("uvicorn",), 0.6, "protoserve async"),
            *_AT_A_RATE,
        ),
        paced=_echo_at_a_rate(["/hello"]),
    ),
    Workload(
        "plaintext",
        "Plaintext: 13 bytes",
        "plaintext",
        Wrk([PLAIN_REQUEST]),
        _verify_plain,
        (Target(("bjoern",), 1.1),),
        paced=H2load(["/"], {}),
    ),
    Workload(
        "pipelined",
        f"Plaintext, {PIPELINED} requests in a pipeline",
        "plaintext",
        Wrk([PLAIN_REQUEST * PIPELINED]),
        _verify_pipelined,
        paced=H2load(["/"], {}, connections=10, depth=PIPELINED),
        note="At the fixed rate each of 10 connections sends 10 requests every 10 ms.",
    ),
    Workload(
        "post",
        "POST echo: 64 KiB",
        "post",
        Wrk([POST_REQUEST]),
        _verify_post,
        (Target(("bjoern",), 1.1),),
        paced=H2load(["/"], {"Content-Type": "text/plain"}, rate=RATE // 5, body=BODY),
        note=f"The fixed rate is {RATE // 5:,} requests/s: more than that, and the slowest "
        "servers have no rest.",
    ),
    _redis("set", 1, *_ONE_BY_ONE),
    _redis("get", 1, *_ONE_BY_ONE),
    _redis("set", PIPELINED, *_SIXTEEN),
    _redis("get", PIPELINED, *_SIXTEEN),
]

ECHO = next(workload for workload in WORKLOADS if workload.name == "echo")

FEW = 10
SPARSE = replace(ECHO, name="connections", paced=_echo_at_a_rate(["/hello"], 100 * FEW))
"""The echo page for few connections, beside many that are idle."""
