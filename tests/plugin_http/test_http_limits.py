"""Every limit: exactly at it passes, one more fails, however the bytes arrive."""

from __future__ import annotations

import pytest
from http_exchanges import Outcome, every_byte, parse

from protoserve import ServerParams
from protoserve_http import HTTP_SPEC
from protoserve_http.chunks import MAX_LINE
from protoserve_http.fields import MAX_BLOCK, MAX_FIELDS
from protoserve_http.heads import MAX_TARGET
from protoserve_http.parser import MAX_BLANK

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def limited(size: int | None) -> ServerParams:
    return HTTP_SPEC.params.replace(request_size_limit=size)


def outcomes(data: bytes, params: ServerParams | None = None) -> Outcome:
    """The one outcome of ``data``, checked to be the same for several splits."""
    whole = parse([data], params)
    middle = len(data) // 2
    thousands = [data[i : i + 1000] for i in range(0, len(data), 1000)]
    for pieces in ([data[:middle], data[middle:]], thousands, [data[:-1], data[-1:]]):
        assert parse(pieces, params).facts == whole.facts
    if len(data) < 10_000:
        assert parse(every_byte(data), params).facts == whole.facts
    return whole


def block(size: int) -> bytes:
    """Header lines of ``size`` bytes in all, a Host and one long field."""
    start = b"Host: a\r\nX: "
    return start + b"x" * (size - len(start) - 2) + b"\r\n"


class TestTarget:
    def test_at_the_limit(self) -> None:
        outcome = outcomes(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * (MAX_TARGET - 1)))
        assert len(outcome.requests[0].target) == MAX_TARGET

    def test_one_more(self) -> None:
        assert outcomes(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * MAX_TARGET)).status == 414

    def test_refused_while_unfinished(self) -> None:
        assert parse([b"GET /" + b"x" * (MAX_TARGET - 1)]).error is None
        assert parse([b"GET /" + b"x" * MAX_TARGET]).status == 414

    def test_before_a_fault_that_follows(self) -> None:
        assert outcomes(b"GET /" + b"x" * MAX_TARGET + b"\x01").status == 414
        assert outcomes(b"GET /" + b"x" * (MAX_TARGET - 1) + b"\x01").status == 400

    def test_of_one_pipelined_among_others(self) -> None:
        long = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * MAX_TARGET)
        outcome = outcomes(NEXT + long + NEXT)
        assert len(outcome.requests) == 1
        assert outcome.status == 414


class TestHeaders:
    def test_block_at_the_limit(self) -> None:
        outcome = outcomes(b"GET / HTTP/1.1\r\n" + block(MAX_BLOCK) + b"\r\n" + NEXT)
        assert len(outcome.requests) == 2

    def test_block_of_one_more(self) -> None:
        data = b"GET / HTTP/1.1\r\n" + block(MAX_BLOCK + 1) + b"\r\n" + NEXT
        assert outcomes(data).status == 431

    def test_endless_value(self) -> None:
        # httptools keeps it without a callback.
        piece = b"x" * 1024
        pieces = [GET, b"X: ", *[piece] * (MAX_BLOCK // 1024)]
        assert parse(pieces).status == 431

    def test_fields_at_the_limit(self) -> None:
        fields = [f"X{i}: {i}\r\n".encode() for i in range(MAX_FIELDS - 1)]
        outcome = outcomes(GET + b"".join(fields) + b"\r\n" + NEXT)
        assert [len(request.headers) for request in outcome.requests] == [MAX_FIELDS, 1]

    def test_one_field_more(self) -> None:
        fields = [f"X{i}: {i}\r\n".encode() for i in range(MAX_FIELDS)]
        assert outcomes(GET + b"".join(fields) + b"\r\n" + NEXT).status == 431

    def test_endless_fields(self) -> None:
        outcome = parse([GET, *[b"X: y\r\n"] * MAX_FIELDS])
        assert outcome.status == 431

    def test_endless_empty_lines(self) -> None:
        assert outcomes(b"\r\n" * (MAX_BLANK // 2) + NEXT).error is None
        assert outcomes(b"\r\n" * (MAX_BLANK // 2) + b"\r" + NEXT).status == 400


class TestSize:
    def test_head_at_the_limit(self) -> None:
        data = GET + b"\r\n"
        assert outcomes(data, limited(len(data))).error is None
        assert outcomes(data, limited(len(data) - 1)).status == 413

    def test_limit_is_of_each_request(self) -> None:
        assert len(outcomes(NEXT * 5, limited(len(NEXT))).requests) == 5

    @pytest.mark.parametrize("length", [1, 5000, 200_000])
    def test_length_at_the_limit(self, length: int) -> None:
        data = HEAD + b"Content-Length: %d\r\n\r\n" % length + b"x" * length
        outcome = outcomes(data + NEXT, limited(len(data)))
        assert [len(request.body) for request in outcome.requests] == [length, 0]
        assert outcomes(data + NEXT, limited(len(data) - 1)).status == 413

    def test_length_is_refused_before_the_body(self) -> None:
        outcome = parse([HEAD + b"Content-Length: 1000\r\n\r\n"], limited(1000))
        assert outcome.status == 413

    def test_too_large_wins_over_continue(self) -> None:
        head = HEAD + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
        outcome = parse([head], limited(1000))
        assert outcome.interim == []
        assert outcome.status == 413

    def test_chunked_at_the_limit(self) -> None:
        data = CHUNKED + b"3;x\r\nabc\r\n" * 10 + b"0\r\nX: y\r\n\r\n"
        outcome = outcomes(data + NEXT, limited(len(data)))
        assert outcome.requests[0].body == b"abc" * 10
        assert len(outcome.requests) == 2
        assert outcomes(data + NEXT, limited(len(data) - 1)).status == 413

    def test_chunk_is_refused_at_its_size(self) -> None:
        outcome = parse([CHUNKED + b"400\r\n"], limited(1000))
        assert outcome.status == 413

    def test_endless_chunks(self) -> None:
        outcome = parse([CHUNKED, *[b"1;xxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n"] * 100], limited(2000))
        assert outcome.status == 413

    def test_no_limit(self) -> None:
        size = 3_000_000
        data = HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
        assert len(outcomes(data, limited(None)).requests[0].body) == size
        data = CHUNKED + b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
        assert len(outcomes(data, limited(None)).requests[0].body) == size


class TestChunks:
    def test_extension_at_the_limit(self) -> None:
        line = b"1;" + b"x" * (MAX_LINE - 4) + b"\r\n"
        assert outcomes(CHUNKED + line + b"a\r\n0\r\n\r\n").requests[0].body == b"a"

    def test_extension_of_one_more(self) -> None:
        line = b"1;" + b"x" * (MAX_LINE - 3) + b"\r\n"
        assert outcomes(CHUNKED + line + b"a\r\n0\r\n\r\n").status == 400

    def test_endless_extension(self) -> None:
        assert parse([CHUNKED + b"1;", *[b"x" * 100] * (MAX_LINE // 100 + 1)]).status == 400

    def test_trailers_at_the_limit(self) -> None:
        trailers = b"X: y\r\n" * MAX_FIELDS
        outcome = outcomes(CHUNKED + b"0\r\n" + trailers + b"\r\n" + NEXT)
        assert len(outcome.requests[0].trailers) == MAX_FIELDS
        assert outcomes(CHUNKED + b"0\r\n" + trailers + b"X: y\r\n\r\n").status == 431

    def test_long_trailers(self) -> None:
        line = b"X: " + b"x" * 1019 + b"\r\n"
        fits = line * (MAX_BLOCK // len(line) - 1)
        assert outcomes(CHUNKED + b"0\r\n" + fits + b"\r\n").error is None
        assert outcomes(CHUNKED + b"0\r\n" + fits + line * 2 + b"\r\n").status == 431

    def test_endless_trailer(self) -> None:
        pieces = [CHUNKED, b"0\r\nX: ", *[b"x" * 1024] * (MAX_BLOCK // 1024)]
        assert parse(pieces).status == 431
