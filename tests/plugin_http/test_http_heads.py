"""What we judge in a head ourselves, also where llhttp refuses it before us today."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from protoserve_http.faults import RequestError
from protoserve_http.heads import Framing, authority, judge_fields, judge_line


def judge(*fields: tuple[str, str], modern: bool = True) -> Framing:
    return judge_fields(CIMultiDictProxy(CIMultiDict([("Host", "a"), *fields])), modern=modern)


CODING = "Transfer-Encoding"


@pytest.mark.parametrize(
    ("codings", "status"),
    [
        (["chunked", "chunked"], 400),
        (["chunked, chunked"], 400),
        (["chunked, gzip"], 400),
        (["chunked", "gzip"], 400),
        (["identity"], 400),
        ([""], 400),
        (["chunked;q=1"], 400),
        (["gzip, chunked"], 501),
        (["gzip", "chunked"], 501),
    ],
)
def test_transfer_codings(codings: list[str], status: int) -> None:
    with pytest.raises(RequestError) as caught:
        judge(*((CODING, coding) for coding in codings))
    assert caught.value.status == status


def test_framing() -> None:
    assert judge() == Framing(False, 0, False)
    assert judge(("content-length", "7")) == Framing(False, 7, False)
    assert judge((CODING, "Chunked")) == Framing(True, 0, False)
    assert judge(("Expect", "100-CONTINUE")) == Framing(False, 0, True)
    assert judge(("Expect", "x"), modern=False) == Framing(False, 0, False)


@pytest.mark.parametrize("expectation", ["", "x", "100-continue, x", "200-ok"])
def test_other_expectations(expectation: str) -> None:
    with pytest.raises(RequestError) as caught:
        judge(("Expect", expectation))
    assert caught.value.status == 417


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1 \r\n", 400),
        (b"GET  / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.11\r\n", 505),
        (b"GET / HTTP/2\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\n", 501),
    ],
)
def test_request_lines(line: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        judge_line(line)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://a", "a"),
        ("HTTP://a:80/", "a:80"),
        ("https://[::1]:1?x/y", "[::1]:1"),
        ("http://a#b", "a"),
    ],
)
def test_authority(target: str, host: str) -> None:
    assert authority(target) == host


@pytest.mark.parametrize(
    "target", ["http://", "http://:80/", "http://u@a/", "x", "a:b", "http:/a"]
)
def test_no_authority(target: str) -> None:
    with pytest.raises(RequestError):
        authority(target)
