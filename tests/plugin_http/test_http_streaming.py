"""The parser that announces requests by their heads: it makes the same of everything."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from http_exchanges import Outcome, every_byte, messages
from hypothesis import given, settings
from hypothesis import strategies as st
from test_http_fuzz import FRAGMENTS
from test_http_vectors import GOOD, load

from protoserve import (
    NEED_DATA,
    Arriving,
    ConfigError,
    IncomingStream,
    ProtocolError,
    ServerParams,
    UsageError,
)
from protoserve_http import HTTP_SPEC, HttpParams, HttpRequest, HttpRequestParser

WHOLE = HTTP_SPEC.params
STREAMED = WHOLE.replace(stream_bodies=True)


def parse(
    pieces: Iterable[bytes],
    params: ServerParams = STREAMED,
    *,
    collect: bool = True,
    limit: int | None = None,
) -> Outcome:
    """As the engine does: ``collect`` takes bodies in whole, else they are read as they come.
    ``limit`` is that of each request."""
    parser = HTTP_SPEC.message_in(params)
    outcome = Outcome()
    streams: list[IncomingStream] = []
    bodies: list[bytes] = []
    for piece in pieces:
        parser.feed(piece)
        for message in messages(parser, outcome):
            if isinstance(message, Arriving):
                message.stream.limit = limit
                if collect:
                    message.stream.collect()
                streams.append(message.stream)
                bodies.append(b"")
                outcome.requests.append(message.request)
            else:
                outcome.requests.append(message)
        for number, stream in enumerate(streams if not collect else ()):
            while found := stream.pull(lambda: None):
                bodies[number] += found
    if streams and not streams[-1].over:
        outcome.requests.pop()  # it did not become whole
    outcome.partial = parser.partial
    parser.close()
    for request in outcome.requests:
        if request.stream is not None:
            request.take(bodies[streams.index(request.stream)])  # type: ignore[attr-defined]
    return outcome


def splits(data: bytes) -> list[list[bytes]]:
    """The same bytes in several ways."""
    generator = random.Random(data)
    ways = [[data], every_byte(data)]
    ways += [[data[:at], data[at:]] for at in range(1, len(data))]
    for _ in range(10):
        points = sorted(generator.choices(range(len(data) + 1), k=4))
        edges = [0, *points, len(data)]
        ways.append([data[a:b] for a, b in itertools.pairwise(edges)])
    return ways


VECTORS = [param.values[0] for kind in ("valid", "invalid") for param in load(kind)]


@pytest.mark.parametrize("data", VECTORS)
def test_every_vector_is_the_same_in_both(data: bytes) -> None:
    whole = parse([data], WHOLE)
    for pieces in splits(data):
        assert parse(pieces).facts == whole.facts
    for pieces in ([data], every_byte(data)):
        streamed = parse(pieces, collect=False)
        assert streamed.facts == whole.facts
        assert streamed.reply.partition(b"Date")[0] == whole.reply.partition(b"Date")[0]
    for pieces in ([GOOD + data + GOOD], [GOOD + data, GOOD], every_byte(GOOD + data + GOOD)):
        assert parse(pieces).facts == parse(pieces, WHOLE).facts


STREAMS = st.lists(
    st.one_of(
        FRAGMENTS,
        FRAGMENTS,
        st.sampled_from(
            [
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd",
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
                b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 150\r\n\r\n" + bytes(150),
            ]
        ),
    ),
    max_size=15,
)


@given(STREAMS, st.lists(st.integers(0, 600), max_size=6))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_the_same_in_both(stream: list[bytes], points: list[int]) -> None:
    data = b"".join(stream)
    edges = [0, *sorted(min(point, len(data)) for point in points), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    for limit in (None, 200):
        whole = parse([data], WHOLE.replace(request_size_limit=limit or WHOLE.request_size_limit))
        small = STREAMED.replace(request_size_limit=limit or WHOLE.request_size_limit)
        for other in ([data], pieces, every_byte(data), stream):
            assert parse(other, small).facts == whole.facts
            assert parse(other, small, collect=False).facts == whole.facts


def announced(head: str, *fields: str) -> tuple[HttpRequestParser, HttpRequest]:
    parser = HTTP_SPEC.message_in(STREAMED)
    lines = [head, "Host: a", *fields, "", ""]
    parser.feed("\r\n".join(lines).encode())
    arriving = parser.next_message()
    assert isinstance(arriving, Arriving)
    assert arriving.request.stream is arriving.stream
    return parser, arriving.request  # type: ignore[return-value]


def test_a_request_with_a_body_is_announced_by_its_head() -> None:
    parser, request = announced("PUT /x HTTP/1.1", "Content-Length: 5", "X: y")
    assert (request.method, request.target, request.headers["x"]) == ("PUT", "/x", "y")
    assert (request.version, request.keep_alive, request.path) == ("1.1", True, "/x")
    assert parser.next_message() is NEED_DATA
    assert parser.partial
    parser.feed(b"ab")
    stream = request.stream
    assert stream is not None
    assert stream.pull(lambda: None) == b"ab"
    parser.feed(b"cdeGET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert stream.pull(lambda: None) == b"cde"
    assert stream.pull(lambda: None) == b""
    assert not parser.partial
    following = parser.next_message()
    assert isinstance(following, HttpRequest)
    assert following.stream is None


@pytest.mark.parametrize("head", ["GET / HTTP/1.1", "HEAD / HTTP/1.1", "POST / HTTP/1.1"])
@pytest.mark.parametrize("fields", ["", "Content-Length: 0\r\n", "Expect: 100-continue\r\n"])
def test_a_request_without_a_body_is_whole(head: str, fields: str) -> None:
    parser = HTTP_SPEC.message_in(STREAMED)
    parser.feed(f"{head}\r\nHost: a\r\n{fields}\r\n".encode())
    request = parser.next_message()
    assert isinstance(request, HttpRequest)
    assert (request.stream, request.body) == (None, b"")


def test_it_is_announced_however_it_came() -> None:
    data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
    for pieces in splits(data):
        parser = HTTP_SPEC.message_in(STREAMED)
        words = []
        for piece in pieces:
            parser.feed(piece)
            while (message := parser.next_message()) is not NEED_DATA:
                words.append(message)
        assert [type(word) for word in words] == [Arriving]


def test_the_body_is_not_there_to_be_asked_for() -> None:
    _, request = announced("PUT /x HTTP/1.1", "Content-Length: 5")
    for ask in (lambda: request.body, request.text, request.json):
        with pytest.raises(UsageError, match=r"task\.req\.stream.*streams = False"):
            ask()


def test_http_1_0() -> None:
    parser = HTTP_SPEC.message_in(STREAMED)
    parser.feed(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\na")
    arriving: Any = parser.next_message()
    assert (arriving.request.version, arriving.request.keep_alive) == ("1.0", False)


def test_trailers_are_there_after_the_end() -> None:
    parser, request = announced("PUT /x HTTP/1.1", "Transfer-Encoding: chunked")
    assert parser.next_message() is NEED_DATA
    parser.feed(b"3\r\nabc\r\n0\r\nX-Sum: 1")
    assert request.stream is not None
    assert not request.stream.over
    assert not request.trailers
    parser.feed(b"\r\n\r\n")
    assert request.stream.read() == b"abc"
    assert dict(request.trailers) == {"X-Sum": "1"}


@pytest.mark.parametrize(
    ("expects", "interim"), [(True, b"HTTP/1.1 100 Continue\r\n\r\n"), (False, b"")]
)
def test_who_waits_for_100_continue(expects: bool, interim: bytes) -> None:
    fields = ["Expect: 100-continue"] if expects else []
    _, request = announced("PUT /x HTTP/1.1", "Content-Length: 5", *fields)
    assert request.stream is not None
    assert request.stream.interim == interim


BODY = b"".join(b"%x\r\n%b\r\n" % (size, bytes(size)) for size in (7, 30, 63)) + b"0\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY
COUNTED = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n" + bytes(100)


@pytest.mark.parametrize("data", [CHUNKED, COUNTED])
def test_the_limit_of_one_request(data: bytes) -> None:
    size = len(data)
    for pieces in ([data], [data[:-1], data[-1:]], every_byte(data)):
        assert parse(pieces, limit=size).error is None
        assert parse(pieces, limit=size - 1).status == 413
        assert parse([*pieces, *pieces], limit=size).error is None


def test_a_limit_holds_for_its_request_only() -> None:
    params = STREAMED.replace(request_size_limit=200)
    parser = HTTP_SPEC.message_in(params)
    large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)
    parser.feed(large + large)
    first: Any = parser.next_message()
    first.stream.limit = 5000
    second: Any = parser.next_message()
    assert first.stream.over
    assert isinstance(second, Arriving)
    with pytest.raises(ProtocolError, match="larger than the server allows"):
        parser.next_message()


def test_the_parameter() -> None:
    assert isinstance(HTTP_SPEC.params, HttpParams)
    assert not HTTP_SPEC.params.stream_bodies
    assert HttpParams(stream_bodies=True).stream_bodies
    assert isinstance(WHOLE.replace(keep_alive_timeout=1), HttpParams)
    with pytest.raises(ConfigError, match="stream_bodies='yes': expected True or False"):
        HttpParams(stream_bodies="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep_alive_timeout=-1"):
        HttpParams(keep_alive_timeout=-1)
    with pytest.raises(ConfigError, match="HttpParams has no field 'streams'"):
        WHOLE.replace(streams=True)
    assert type(HTTP_SPEC.message_in(ServerParams())) is HttpRequestParser
