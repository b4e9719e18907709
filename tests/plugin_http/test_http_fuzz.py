"""What random input gives, beside llhttp's judgement and the grammar. That it is the same however
it is split is in test_http_conformance."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import httptools
from http_exchanges import every_byte, parse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protoserve_http import HTTP_SPEC

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
        b'1 ; e = "f\\" ',
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get ",
        b"HTTP/1.2\r\n",
        b"Proxy-Connection: close\r\n",
        b"Proxy-Connection: keep-alive\r\n",
        b"Connection: keep-alive, close\r\n",
        b"Expect:\r\n",
        b"abcd",
        b"\0",
        b"\xff",
    ]
)
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
def test_nothing_of_any_bytes_is_lost(data: bytes) -> None:
    whole = parse([data])
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
    whole = outcome.error is None and not outcome.partial
    if whole and len(outcome.requests) == 1 and not outcome.requests[0].body:
        assert outcome.requests[0].raw_headers == judge.fields


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


class _BodyJudge:
    """llhttp on its own, with its own idea of where bodies and requests end."""

    def __init__(self, data: bytes) -> None:
        self.body = b""
        self.bodies: list[bytes] = []
        self.targets: list[bytes] = []
        self.good = True
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            self.good = False

    def on_url(self, url: bytes) -> None:
        self.targets.append(url)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.bodies.append(self.body)
        self.body = b""


OWS = st.text(" \t", max_size=2).map(str.encode)
NAMES = st.text("abzAZ019!#$%&'*+-.^_`|~", min_size=1, max_size=4).map(str.encode)
QUOTED = st.lists(
    st.one_of(
        st.sampled_from(
            [b'\\"', b"\\\\", b";", b"=", b",", b" ", b"\t", b"\xff", b"1", b"\\\xfe"]
        ),
        st.integers(0x23, 0x5B).map(lambda byte: b"%c" % byte),
    ),
    max_size=5,
).map(lambda parts: b'"' + b"".join(parts) + b'"')
SPACED_EXTENSIONS = st.lists(
    st.tuples(OWS, OWS, NAMES, st.none() | st.tuples(OWS, OWS, NAMES | QUOTED)), max_size=4
)


@given(SPACED_EXTENSIONS, st.binary(min_size=1, max_size=5), SPACED_EXTENSIONS)
@settings(max_examples=300, deadline=None)
def test_all_chunk_extensions_of_the_grammar(first: Any, body: bytes, last: Any) -> None:
    def line(size: int, extensions: Any, spaces: bool) -> bytes:
        text = b"%x" % size
        for before, after, name, value in extensions:
            text += (before if spaces else b"") + b";" + (after if spaces else b"") + name
            if value is not None:
                text += (value[0] if spaces else b"") + b"=" + (value[1] if spaces else b"")
                text += value[2]
        return text + b"\r\n"

    def chunked(spaces: bool) -> bytes:
        lines = line(len(body), first, spaces) + body + b"\r\n" + line(0, last, spaces) + b"\r\n"
        return CHUNKED + lines + NEXT

    for spaces in (False, True):
        outcome = parse([chunked(spaces)])
        assert outcome.error is None
        assert [request.body for request in outcome.requests] == [body, b""]
        assert parse(every_byte(chunked(spaces))).facts == outcome.facts
    # llhttp lets no spaces pass, which the grammar does.
    judge = _BodyJudge(chunked(False))
    assert judge.good
    assert judge.bodies == [body, b""]


CHUNK_BYTES = st.sampled_from(
    [bytes([byte]) for byte in b'012ag;="\\ \t\r\n,[\0\x7f\xff']
    + [b"\r\n", b";a", b';a="', b";a=b", b"X: y\r\n"]
)
CHUNK_LINES = st.tuples(
    st.sampled_from([b"", b"1", b"01", b"2", b"0"]),
    st.lists(CHUNK_BYTES, max_size=4).map(b"".join),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""]),
    st.sampled_from([b"X\r\n", b"X\r\n", b"XX\r\n", b"\r\n", b"", b"X\n"]),
).map(b"".join)
CHUNK_ENDS = st.sampled_from([b"", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n"])
# What llhttp lets pass, and the grammar does not: an extension without a name, one with an
# empty value, and quotes in the middle of one.
LAX = re.compile(rb";[;=\r]|=[;\r]|=[^\";\r]+\"")
QUOTED_OR_SPACE = re.compile(rb'("(?:[^"\\]|\\.)*")|[ \t]+')
NO_LIMIT = HTTP_SPEC.params.replace(request_size_limit=None)  # llhttp has none either


@given(st.lists(CHUNK_LINES, max_size=3), CHUNK_ENDS)
@example([b"0\r\n\r\n", b"1"], b"")
@example([b"20 ;a\r\nX\r\n"], b"")
@example([b"100000000000000"], b"0\r\n\r\n")
@settings(max_examples=1500, deadline=None)
def test_chunks_end_where_llhttp_sees_their_end(lines: list[bytes], end: bytes) -> None:
    sent = b"".join(lines) + end
    outcome = parse([CHUNKED + sent + NEXT], NO_LIMIT)
    assert parse(every_byte(CHUNKED + sent + NEXT), NO_LIMIT).facts == outcome.facts
    judge = _BodyJudge(CHUNKED + sent + NEXT)
    if outcome.error is not None:
        assert not judge.good or LAX.search(sent)
        return
    if not judge.good and outcome.requests and outcome.requests[-1].method != "GET":
        # What follows the end stands before the next method, of which llhttp knows a list.
        assert [request.body for request in outcome.requests[:1]] == judge.bodies
        return
    if not judge.good:
        # Spaces, which the grammar lets pass.
        without = QUOTED_OR_SPACE.sub(rb"\1", sent)
        assert without != sent
        judge = _BodyJudge(CHUNKED + without + NEXT)
        assert judge.good
    # A request that is not whole shows in neither.
    assert [request.body for request in outcome.requests] == judge.bodies
    targets = [request.target.encode() for request in outcome.requests]
    assert targets == judge.targets[: len(targets)]


OPTIONS = st.lists(
    st.sampled_from(["close", "keep-alive", "Close", "KEEP-ALIVE", "x", "upgrade", "closed", ""]),
    max_size=3,
).map(", ".join)
CONNECTIONS = st.lists(st.tuples(st.sampled_from(["Connection"]), OPTIONS), max_size=3)


@given(CONNECTIONS, st.sampled_from(["1.1", "1.0"]))
@settings(max_examples=300, deadline=None)
def test_who_closes_as_llhttp_says_but_that_close_wins(
    fields: list[tuple[str, str]], version: str
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    data = f"GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n".encode()
    (request,) = parse([data]).requests
    assert parse(every_byte(data)).requests[0].keep_alive == request.keep_alive
    said: list[bool] = []

    class Judge:
        def on_headers_complete(self) -> None:
            said.append(parser.should_keep_alive())

    parser = httptools.HttpRequestParser(Judge())
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(data)
    closes = "close" in [word.strip().lower() for _, value in fields for word in value.split(",")]
    assert request.keep_alive == (said[0] and not closes)


@given(
    st.sampled_from(["1.1", "1.0", "1.2"]),
    CONNECTIONS,
    st.sampled_from(["close", "keep-alive", "x", ""]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_proxy_connection_decides_nothing(
    version: str, fields: list[tuple[str, str]], option: str, first: bool
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    proxy = f"Proxy-Connection: {option}\r\n"
    start = f"GET / HTTP/{version}\r\nHost: a\r\n"
    plain = f"{start}{lines}\r\n".encode()
    other = f"{start}{proxy if first else ''}{lines}{'' if first else proxy}\r\n".encode()
    expected = [request.keep_alive for request in parse([plain * 3]).requests]
    for pieces in ([other * 3], [other] * 3, every_byte(other * 3)):
        outcome = parse(pieces)
        assert outcome.error is None
        assert [request.keep_alive for request in outcome.requests] == expected
