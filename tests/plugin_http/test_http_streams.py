"""The framing of bodies that come in pieces."""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest
from multidict import CIMultiDict

from protoserve_http import HttpResponse
from protoserve_http.serialiser import CLOSE, encode_stream


def pieces_of(
    response: HttpResponse, *, chunked: bool = True, head_only: bool = False
) -> list[bytes]:
    out = encode_stream(response, head_only=head_only, connection=b"", chunked=chunked)
    if isinstance(out, bytes):
        return [out]
    assert isinstance(out, Iterator)
    return [
        b"".join(map(bytes, piece)) if isinstance(piece, list) else bytes(piece) for piece in out
    ]


def body_of(response: HttpResponse, *, chunked: bool = True) -> bytes:
    return b"".join(pieces_of(response, chunked=chunked)).partition(b"\r\n\r\n")[2]


def test_the_head_goes_with_the_first_piece() -> None:
    first, *rest = pieces_of(HttpResponse(body=iter(["a", "b"])))
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    assert rest == [b"1\r\nb\r\n", b"0\r\n\r\n"]


def test_empty_pieces_do_not_end_a_chunked_body() -> None:
    body = body_of(HttpResponse(body=iter(["", b"a", b"", memoryview(b""), "b", ""])))
    assert body == b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 15, 16, 255, 4096, 100_000])
def test_chunk_sizes(size: int) -> None:
    assert body_of(HttpResponse(body=iter([bytes(size)]))) == (
        b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size))
    )


def test_until_the_connection_closes() -> None:
    assert body_of(HttpResponse(body=iter(["a", "b"])), chunked=False) == b"ab"


@pytest.mark.parametrize("chunked", [False, True])
def test_counted(chunked: bool) -> None:
    response = HttpResponse(body=iter(["a", "b"]), headers={"Content-Length": "2"})
    assert body_of(response, chunked=chunked) == b"ab"


@pytest.mark.parametrize("length", [0, 1, 3])
def test_length_must_match(length: int) -> None:
    response = HttpResponse(body=iter(["a", "b"]), headers={"Content-Length": str(length)})
    with pytest.raises(ValueError, match="Content-Length"):
        pieces_of(response)


@pytest.mark.parametrize("piece", [1, None, [b"a"], object()])
def test_pieces_are_text_or_bytes(piece: object) -> None:
    with pytest.raises(TypeError, match="text or bytes"):
        pieces_of(HttpResponse(body=iter([piece])))  # type: ignore[arg-type, list-item]


def test_reused_buffers_are_copied() -> None:
    buffer = bytearray(b"aaa")

    def reuse() -> Iterator[bytearray]:
        yield buffer
        buffer[:] = b"bbb"
        yield buffer

    assert body_of(HttpResponse(body=reuse())) == b"3\r\naaa\r\n3\r\nbbb\r\n0\r\n\r\n"


@pytest.mark.parametrize("status", [200, 204, 205, 206, 304])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("length", [None, "1"])
def test_head_has_the_fields_of_get(status: int, chunked: bool, length: str | None) -> None:
    def fields(head_only: bool) -> bytes:
        headers = None if length is None else {"Content-Length": length}
        response = HttpResponse(status, iter(["a"]), headers)
        first = pieces_of(response, chunked=chunked, head_only=head_only)[0]
        return re.sub(rb"Date: .*", b"", first.partition(b"\r\n\r\n")[0])

    assert fields(head_only=True) == fields(head_only=False)


@pytest.mark.parametrize(("status", "head_only"), [(200, True), (204, False), (304, False)])
def test_without_body_the_source_is_closed(status: int, head_only: bool) -> None:
    class Source:
        closed = False

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> bytes:
            raise AssertionError("nobody wants a piece")

        def close(self) -> None:
            self.closed = True

    source = Source()
    out = encode_stream(
        HttpResponse(status, source), head_only=head_only, connection=CLOSE, chunked=True
    )
    assert isinstance(out, bytes)
    assert out.endswith(b"\r\n\r\n")
    assert (b"Transfer-Encoding: chunked\r\n" in out) == head_only
    assert b"Connection: close\r\n" in out
    assert source.closed


def test_the_source_is_closed_when_the_reply_is_abandoned() -> None:
    closed: list[bool] = []

    def source() -> Iterator[bytes]:
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append(True)

    out = encode_stream(HttpResponse(body=source()), head_only=False, connection=b"", chunked=True)
    next(out)  # type: ignore[arg-type]
    out.close()  # type: ignore[union-attr]
    assert closed == [True]


def test_a_body_in_pieces_is_not_read_back_or_written_to() -> None:
    response = HttpResponse(body=iter(["a"]))
    with pytest.raises(TypeError, match="iterator"):
        _ = response.body
    with pytest.raises(TypeError, match="iterator"):
        response.write("b")
    response.body = "whole"
    assert response.body == b"whole"


async def coroutine() -> str:
    return "a"


async def async_pieces() -> AsyncIterator[str]:
    yield "a"


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (1, "str"),
        (0, "str"),
        (False, "str"),
        (object(), "str"),
        (1.5, "str"),
        (Path("x"), "str"),
        (None, 'assign b""'),
        ({"a": 1}, "json.dumps"),
        ({}, "json.dumps"),
        (CIMultiDict(a="b"), "json.dumps"),
        ([1, 2], "str"),
        (("a", None), 'assign b""'),
        ([{"a": 1}], "json.dumps"),
        ([["a"]], "json.dumps"),
        ({"a"}, "str"),
        (frozenset("a"), "str"),
        (array("b", [1]), "bytes"),
        (async_pieces, "call it"),
        (lambda: "a", "call it"),
        (HttpResponse, "call it"),
        (HttpResponse(), "str"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
def test_what_is_no_body(body: object, remedy: str) -> None:
    with pytest.raises(TypeError, match=rf"body is text.* {re.escape(remedy)}"):
        HttpResponse(body=body)  # type: ignore[arg-type]
    response = HttpResponse(body="before")
    with pytest.raises(TypeError, match=re.escape(remedy)):
        response.body = body  # type: ignore[assignment]
    with pytest.raises(TypeError, match="text or bytes"):
        response.write(body)  # type: ignore[arg-type]
    assert response.body == b"before"  # nothing was lost


def test_a_coroutine_is_no_body() -> None:
    body = coroutine()
    with pytest.raises(TypeError, match="coroutine; await it first"):
        HttpResponse(body=body)  # type: ignore[arg-type]
    body.close()


@pytest.mark.parametrize(
    "body",
    [["a", b"b"], ("a", "b"), io.StringIO("a\nb"), {1: "a", 2: "b"}.values(), map(str, "ab")],
)
def test_what_is_a_body(body: Iterable[str]) -> None:
    sent = body_of(HttpResponse(body=body), chunked=False)
    assert sent.replace(b"\n", b"") == b"ab"


def test_no_pieces_at_all() -> None:
    assert body_of(HttpResponse(body=[])) == b"0\r\n\r\n"
