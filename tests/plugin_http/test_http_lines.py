"""Request lines that are remembered for all connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_exchanges import counted_feeds

from protoserve_http import HTTP_SPEC, HttpRequest, HttpRequestParser, fields
from protoserve_http import lines as module
from protoserve_http.lines import judged, recalled, remember, taken_apart

FIELDS = b"\r\nHost: a\r\nX-A: 1\r\n\r\n"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    _forget()
    yield
    _forget()


def _forget() -> None:
    module._lines.clear()
    fields._seen[:] = bytes(len(fields._seen))


def ask(parser: HttpRequestParser, request: bytes) -> tuple[str, str, str]:
    parser.feed(request)
    message = parser.next_message()
    assert isinstance(message, HttpRequest)
    return message.method, message.target, message.version


def texts() -> list[bytes]:
    return list(module._lines)


def test_what_is_remembered_is_found() -> None:
    line = judged(b"GET /a HTTP/1.1")
    assert line is not None
    remember(line)
    assert recalled(line.text) is None  # it has come but once
    remember(line)
    assert recalled(b"GET /a HTTP/1.1") is line
    for other in (b"GET /b HTTP/1.1", b"GET /a HTTP/1.0", b"PUT /a HTTP/1.1", b"GET /a", b""):
        assert recalled(other) is None


@pytest.mark.parametrize(
    "target", [b"/a?token=1", b"/a?", b"/a;jsessionid=1", b"/" + b"a" * 256], ids=len
)
def test_not_what_may_be_secret_or_is_long(target: bytes) -> None:
    line = judged(b"GET %b HTTP/1.1" % target)
    assert line is not None
    assert line.target == target.decode()
    for _ in range(3):
        remember(line)
    assert texts() == []


@pytest.mark.parametrize("secret", [b"Cookie: a", b"Authorization: Basic a"])
def test_not_what_came_with_something_secret(secret: bytes) -> None:
    fields = b"\r\nHost: a\r\n%b\r\n\r\n" % secret
    parser = HttpRequestParser(HTTP_SPEC.params)
    for target in (b"/reset/1", b"/reset/1", b"/reset/2"):
        asked = ask(parser, b"GET %b HTTP/1.1" % target + fields)
        assert asked == ("GET", target.decode(), "1.1")
    parser.feed((b"GET /reset/3 HTTP/1.1" + fields) * 3)
    assert texts() == []


def test_no_more_than_there_is_room_for() -> None:
    for number in range(3 * module._REMEMBERED):
        line = judged(b"GET /%d HTTP/1.1" % number)
        assert line is not None
        for _ in range(2):
            remember(line)
        assert recalled(line.text) is line
        assert len(texts()) <= module._REMEMBERED


@pytest.mark.parametrize(
    ("one", "other"), [(b"GET /x", b"PUT /x"), (b"GET /x", b"GET /y"), (b"GET /x", b"GET /xx")]
)
def test_those_that_differ_little_do_not_take_each_other_s_place(one: bytes, other: bytes) -> None:
    known = [judged(line + b" HTTP/1.1") for line in (one, other)]
    for line in known * 2:
        assert line is not None
        remember(line)
    assert [recalled(line + b" HTTP/1.1") for line in (one, other)] == known


def test_what_is_known_makes_no_room_for_itself() -> None:
    for number in range(module._REMEMBERED):
        line = judged(b"GET /%d HTTP/1.1" % number)
        assert line is not None
        for _ in range(3):
            remember(line)
    assert len(texts()) == module._REMEMBERED


def test_what_comes_but_once_does_not_push_out_what_comes_again() -> None:
    common = judged(b"GET /common HTTP/1.1")
    assert common is not None
    for _ in range(2):
        remember(common)
    for number in range(4 * module._REMEMBERED):
        line = judged(b"GET /%d HTTP/1.1" % number)
        assert line is not None
        remember(line)
    assert recalled(common.text) is common


def test_a_line_of_another_connection_is_neither_split_nor_judged() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, counted_feeds(monkeypatch) as fed:
        first, second = (HttpRequestParser(HTTP_SPEC.params) for _ in range(2))
        for parser in (first, second):
            ask(parser, b"GET / HTTP/1.1" + FIELDS)
        ask(first, b"REPORT /x HTTP/1.1" + FIELDS)
        before = len(fed)
        # llhttp is asked of methods that are not common.
        for parser in (first, first, second):
            asked = ask(parser, b"REPORT /x HTTP/1.1" + FIELDS)
            assert asked == ("REPORT", "/x", "1.1")
        assert len(fed) == before + 1
        # In one piece with others as well.
        second.feed((b"REPORT /x HTTP/1.1" + FIELDS) * 3 + b"GET /y HTTP/1.1" + FIELDS)
        targets = []
        for _ in range(4):
            message = second.next_message()
            assert isinstance(message, HttpRequest)
            targets.append(message.target)
        assert targets == ["/x", "/x", "/x", "/y"]
        assert len(fed) == before + 1


def test_versions_are_told_apart() -> None:
    parser = HttpRequestParser(HTTP_SPEC.params)
    ask(parser, b"GET / HTTP/1.1" + FIELDS)
    old = HttpRequestParser(HTTP_SPEC.params)
    keep = b"\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
    for other in (old, HttpRequestParser(HTTP_SPEC.params)):
        assert ask(other, b"GET /x HTTP/1.0" + keep) == ("GET", "/x", "1.0")
    assert recalled(b"GET /x HTTP/1.0") is not None
    assert ask(parser, b"GET /x HTTP/1.1" + FIELDS) == ("GET", "/x", "1.1")
    assert ask(old, b"GET /x HTTP/1.0" + keep) == ("GET", "/x", "1.0")


@pytest.mark.parametrize(
    "text",
    [
        b"GET /a", b"GET a HTTP/1.1", b"GET /a#b HTTP/1.1", b"CONNECT /a HTTP/1.1",
        b"GET  /a HTTP/1.1", b"GET /a HTTP/1.2", b"\r\nGET /a HTTP/1.1", b"",
    ],
)  # fmt: skip
def test_what_is_not_plain(text: bytes) -> None:
    assert taken_apart(text) is None
    assert judged(text) is None


@pytest.mark.parametrize(
    "text", [b"get /a HTTP/1.1", b"GET\t/a HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET /a HTTP/1.0"]
)
def test_what_is_not_judged_here_or_refused(text: bytes) -> None:
    assert judged(text) is None
