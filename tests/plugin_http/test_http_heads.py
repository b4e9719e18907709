"""What we judge in a head ourselves, also where llhttp refuses it before us today."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from protoserve_http import fields
from protoserve_http.faults import RequestError
from protoserve_http.fields import Facts, HeaderBlock, is_host, persistence, repeated
from protoserve_http.heads import (
    MAX_METHOD,
    Framing,
    authority,
    is_head,
    is_plain_line,
    judge_fields,
    judge_line,
    judge_method,
)


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
    assert judge(("Expect", "")) == Framing(False, 0, False)
    assert judge(("Expect", "100-continue"), ("Expect", "")) == Framing(False, 0, True)
    assert judge(("Expect", "100-continue, 100-continue")) == Framing(False, 0, True)


@pytest.mark.parametrize("expectation", ["x", "100-continue, x", "200-ok", "100-continue x"])
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
        (b"GET / HTTP/1.x\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\n", 501),
    ],
)
def test_request_lines(line: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        judge_line(line)
    assert caught.value.status == status


@pytest.mark.parametrize("version", [b"1.0", b"1.1", b"1.2", b"1.9"])
def test_versions_that_are_served(version: bytes) -> None:
    judge_line(b"GET / HTTP/%b\r\n" % version)


@pytest.mark.parametrize(
    ("method", "status"),
    [
        (b"", 400),
        (b"G\0", 400),
        (b"(", 400),
        (b"G\xe9", 400),
        (b"M" * MAX_METHOD + b"(", 400),
        (b"M" * (MAX_METHOD + 1), 501),
    ],
)
def test_no_methods(method: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        judge_method(method)
    assert caught.value.status == status


@pytest.mark.parametrize("method", [b"GET", b"get", b"VERSION-CONTROL", b"M" * MAX_METHOD])
def test_methods(method: bytes) -> None:
    judge_method(method)


@pytest.mark.parametrize(
    "line", [b"HEAD", b"HEAD ", b"HEAD / x", b"HEAD\t", b"HEAD\r\n", b"HEAD/"]
)
def test_lines_of_head(line: bytes) -> None:
    assert is_head(line)


@pytest.mark.parametrize("line", [b"", b"HEA", b"HEADER / ", b"HEAD-", b"head / ", b" HEAD / "])
def test_lines_of_others(line: bytes) -> None:
    assert not is_head(line)


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.2\r\n",
        b"GET / HTTP/1.1\n",
        b"GET /#a HTTP/1.1\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET * HTTP/1.1\r\n",
        b"GET /\x7f HTTP/1.1\r\n",
        b"GET /\xe9 HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nX",
        b"GET / HTTP/1.1\r\n\n",
        b"LABEL / HTTP/1.1\r\n",
        b"CONNECT / HTTP/1.1\r\n",
    ],
)
def test_lines_that_are_judged(line: bytes) -> None:
    assert is_plain_line(b"GET /a?b=c HTTP/1.0\r\n")
    assert not is_plain_line(line)


@pytest.mark.parametrize("value", ["a" * 5000, "[" + ":" * 5000 + "]", "x" * 5000 + "/"])
def test_long_hosts(value: str) -> None:
    assert is_host(value) == value.isalpha()


@pytest.mark.parametrize(
    ("values", "modern", "old"),
    [
        ([""], True, False),
        (["Keep-Alive"], True, True),
        (["x", "keep-alive"], True, True),
        (["x,\tCLOSE"], False, False),
        (["keep-alive", "close"], False, False),
        (["keep-alive close"], True, False),
        (["close;x", '"close"', "closed"], True, False),
        (["x, " * 5000 + "close"], False, False),
        (["x, " * 5000 + "keep-alive"], True, True),
    ],
)
def test_persistence(values: list[str], modern: bool, old: bool) -> None:
    assert persistence(values) == (modern, old)


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


NAMES = [
    *("Host", "host", "X-A", "x-a", "User-Agent", "Connection", "CONTENT-LENGTH", "Expect", ""),
    *("Upgrade", "Transfer-Encoding", "Keep-Alive", "Proxy-Connection", "Hos", "Hosts"),
]
VALUES = ["a", " a", "\tclose ", " 5", "timeout=3", " \xe9x\xa0", "x: y", "", "keep-alive"]
LINES = st.lists(
    st.builds("{}:{}".format, st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4
)


def block_of(data: bytes, before: HeaderBlock | None = None) -> HeaderBlock:
    return HeaderBlock(data + b"\r\n\r\n", data.split(b"\r\n"), before)


@given(blocks=st.lists(LINES, max_size=6))
def test_what_is_remembered_of_lines(blocks: list[list[str]]) -> None:
    """A block of lines that were there before, also in the request before, is the one that was
    read afresh."""
    facts = [name for name in dir(Facts) if not name.startswith("_")]
    assert "offers_upgrade" in facts
    before = None
    for lines in blocks:
        data = "".join(f"\r\n{line}" for line in lines).encode("latin-1")
        block = block_of(data)
        before = following = block_of(data, before)
        fields._lines.clear()
        fields._facts.clear()
        fresh = block_of(data)
        for known in (block, following):
            for fact in facts:
                assert getattr(known.facts, fact) == getattr(fresh.facts, fact)
            assert list(known.headers.items()) == list(fresh.headers.items())
        wanted = [line.partition(":") for line in lines]
        assert list(fresh.headers.items()) == [(n, v.strip(" \t")) for n, _, v in wanted]


def test_what_is_repeated_is_not_judged_again() -> None:
    before = block_of(b"\r\nHost: a\r\nX: 1\r\nConnection: close")
    assert block_of(b"\r\nHost: a\r\nX: 2\r\nConnection: close").facts is before.facts
    following = block_of(b"\r\nHost: a\r\nX: 3\r\nConnection: close", before)
    assert following.facts is before.facts
    assert [line is same for line, same in zip(following.lines, before.lines, strict=True)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("name", [b"Cookie", b"authorization", b"Proxy-Authorization", b"X" * 300])
def test_what_is_secret_or_long_is_not_kept(name: bytes) -> None:
    line = name + b": remember me not"
    assert not repeated(block_of(b"\r\nHost: a\r\n" + line)).kept
    assert line not in fields._lines
    assert repeated(block_of(b"\r\nHost: a\r\nX-B: c")).kept


def test_lines_that_come_again_are_kept() -> None:
    fields._seen[:] = bytes(len(fields._seen))
    fields._lines.clear()
    block_of(b"\r\nX-A: once")
    assert b"X-A: once" not in fields._lines
    block_of(b"\r\nX-A: again")
    first = block_of(b"\r\nX-A: again").lines[0]
    assert block_of(b"\r\nX-A: again").lines[0] is first
    for number in range(2 * fields._REMEMBERED):
        block_of(b"\r\nX-A: %d" % number)
    assert fields._lines[b"X-A: again"] is first


def test_no_more_lines_are_kept_than_there_is_room_for() -> None:
    for number in range(3 * fields._REMEMBERED):
        for _ in range(2):
            block_of(b"\r\nHost: h%d\r\nX-Number: %d" % (number, number))
        assert len(fields._lines) <= fields._REMEMBERED
        assert len(fields._facts) <= fields._REMEMBERED


def test_no_more_blocks_are_kept_than_there_is_room_for() -> None:
    for number in range(3 * fields._KEPT_BLOCKS):
        data = b"\r\nHost: h\r\nX-Number: %d" % number
        assert repeated(block_of(data)) is repeated(block_of(data))
        assert len(fields._blocks) <= fields._KEPT_BLOCKS


@pytest.mark.parametrize(("line", "times"), [(b"a:", 32), (b"x: " + b"y" * 197, 5)])
def test_what_takes_much_memory_is_not_kept_by_a_connection(line: bytes, times: int) -> None:
    data = (b"\r\n" + line) * times
    assert block_of(data).small
    assert not block_of(data + b"\r\n" + line).small
