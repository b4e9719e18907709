"""Any bytes, split anywhere, give messages or one ProtocolError, and the same ones."""

from __future__ import annotations

import itertools

import httptools
from http_exchanges import every_byte, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from protoserve_http import HTTP_SPEC

SMALL = HTTP_SPEC.params.replace(request_size_limit=200)

# Pieces of requests, so that random sequences get somewhere.
FRAGMENTS = st.sampled_from(
    [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"OPTIONS ",
        b"PRI ",
        b"/",
        b"/a?b",
        b"*",
        b"http://h/p",
        b" ",
        b"  ",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b" HTTP/2.0\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n",
        b"Host: a\r\n",
        b"Host: b\r\n",
        b"X: y\r\n",
        b"X:\r\n",
        b"Content-Length: 4\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 150\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"4\r\nabcd\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"1;e=f\r\n",
        b"abcd",
        b"\0",
        b"\xff",
    ]
)
STREAMS = st.lists(st.one_of(FRAGMENTS, FRAGMENTS, FRAGMENTS, st.binary(max_size=5)), max_size=25)


@given(STREAMS, st.lists(st.integers(0, 600), max_size=6))
@settings(max_examples=600, deadline=None)
def test_splits_do_not_matter(stream: list[bytes], points: list[int]) -> None:
    data = b"".join(stream)
    edges = [0, *sorted(min(point, len(data)) for point in points), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    for params in (HTTP_SPEC.params, SMALL):
        whole = parse([data], params)
        for other in (pieces, every_byte(data), stream):
            assert parse(other, params).facts == whole.facts
        if whole.error is not None:
            assert whole.status in {400, 413, 414, 417, 431, 501, 505}
            assert b"\r\nConnection: close\r\n" in whole.reply


WHOLE = st.sampled_from(
    [b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method for method in (b"GET", b"HEAD", b"OPTIONS")]
    + [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", b"GET / HTTP/1.0\r\n\r\n"]
)
LINE_ENDS = st.text("\r\n", max_size=3).map(str.encode)


@given(st.lists(st.tuples(LINE_ENDS, WHOLE), max_size=4))
@settings(max_examples=300, deadline=None)
def test_line_ends_between_requests_do_not_matter(stream: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(ends + request for ends, request in stream)
    whole = parse([data])
    assert parse(every_byte(data)).facts == whole.facts
    for request in whole.requests:
        assert request.method.isalpha()


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes) -> None:
    whole = parse([data])
    assert parse(every_byte(data)).facts == whole.facts
    assert whole.error or whole.requests or whole.partial or not data.strip(b"\r\n")


TOKEN = st.text("abcXYZ019-_!", min_size=1, max_size=8).filter(
    lambda name: name.lower() not in {"te", "host"}
)
VALUE = st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=12
)


@given(st.lists(st.tuples(TOKEN, VALUE), max_size=8), st.binary(max_size=40), st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_was_sent_arrives(fields: list[tuple[str, str]], body: bytes, chunked: bool) -> None:
    lines = [f"{name}: {value}\r\n" for name, value in fields]
    head = "".join(["PUT /x HTTP/1.1\r\nHost: a\r\n", *lines]).encode("latin-1")
    if chunked:
        chunks = [b"1\r\n%c\r\n" % byte for byte in body]
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n"
    else:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    outcome = parse([data * 2])
    assert outcome.error is None
    for request in outcome.requests:
        assert list(request.headers.items())[1:-1] == fields
        assert request.body == body
    assert len(outcome.requests) == 2


class _Judge:
    """llhttp on its own, with its own idea of headers."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))


@given(st.lists(st.one_of(FRAGMENTS, st.binary(max_size=6)), max_size=8))
@settings(max_examples=300, deadline=None)
def test_headers_are_those_of_llhttp(stream: list[bytes]) -> None:
    data = (
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(stream).replace(b"\r\n\r\n", b"") + b"\r\n\r\n"
    )
    outcome = parse([data])
    judge = _Judge()
    try:
        judge.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return
    if outcome.error is None and len(outcome.requests) == 1 and not outcome.requests[0].body:
        assert outcome.requests[0].raw_headers == judge.fields
