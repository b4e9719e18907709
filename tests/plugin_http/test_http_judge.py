"""What llhttp is asked, and what it need not be asked again."""

from __future__ import annotations

import gc
import threading
from typing import Any

import httptools
import pytest
from http_exchanges import counted_feeds, parse
from hypothesis import given
from hypothesis import strategies as st

from protoserve import NEED_DATA, Arriving, ProtocolError
from protoserve_http import HTTP_SPEC, HttpParams, HttpRequest, HttpRequestParser
from protoserve_http import judge as judge_module
from protoserve_http.judge import VISIBLE, Judge, are_requests
from protoserve_http.streaming import new_parser

FIELDS = b"\r\nHost: a\r\nX-A: 1\r\n\r\n"
GET = b"GET / HTTP/1.1" + FIELDS


def said(parser: HttpRequestParser) -> Any:
    """The next message, as far as it says what was asked; or the error's text."""
    try:
        message = parser.next_message()
    except ProtocolError as error:
        return str(error)
    if isinstance(message, HttpRequest):
        return message.method, message.target, dict(message.headers), message.keep_alive
    return message


class TestTargets:
    @given(st.lists(st.sampled_from(VISIBLE), max_size=40).map(bytes))
    def test_llhttp_takes_what_is_made_of_its_bytes(self, rest: bytes) -> None:
        assert Judge().takes(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % rest, 1)

    def test_they_are_what_is_printable(self) -> None:
        assert judge_module.TAKES_VISIBLE
        text = [chr(byte) for byte in range(256) if byte not in b"# "]
        assert [c for c in text if c.isascii() and c.isprintable()] == list(VISIBLE.decode())

    @pytest.mark.parametrize(
        "where", [b"/%c", b"/%ca", b"/a%c", b"/?%c", b"/?a%cb", b"%c/", b"%c"]
    )
    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    def test_each_byte_is_judged_as_on_a_new_connection(self, where: bytes, method: bytes) -> None:
        for byte in range(256):
            request = b"%b %b HTTP/1.1%b" % (method, where % byte, FIELDS)
            fresh = HttpRequestParser(HTTP_SPEC.params)
            fresh.feed(request)
            again = HttpRequestParser(HTTP_SPEC.params)
            again.feed(GET)
            assert said(again)[1] == "/"
            again.feed(request)
            assert said(again) == said(fresh), request

    @pytest.mark.parametrize(
        "line",
        [b"GETX /", b"get /", b"G@T /", b"GET  /", b"PRI /", b"\x00 /", b"GET\t/", b"GET\x0b/"],
    )
    def test_another_line_is_judged(self, line: bytes) -> None:
        request = line + b" HTTP/1.1" + FIELDS
        fresh = HttpRequestParser(HTTP_SPEC.params)
        fresh.feed(request)
        again = HttpRequestParser(HTTP_SPEC.params)
        again.feed(GET)
        said(again)
        again.feed(request)
        assert said(again) == said(fresh)

    def test_not_asked_again_for_another_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with counted_feeds(monkeypatch) as asked:
            parser = HttpRequestParser(HTTP_SPEC.params)
            parser.feed(GET)
            assert said(parser)[1] == "/"
            parser.feed(b"GET /a?b=%7E HTTP/1.1" + FIELDS)
            assert said(parser)[:2] == ("GET", "/a?b=%7E")
            assert asked == [GET]
            parser.feed(b"HEAD / HTTP/1.1" + FIELDS)
            assert said(parser)[0] == "HEAD"
            assert asked == [GET]
            for method in ("REPORT", "SEARCH"):
                parser.feed(b"%b / HTTP/1.1" % method.encode() + FIELDS)
                assert said(parser)[0] == method
            assert len(asked) == 3


class TestOneJudgeForAll:
    """Between two requests it remembers nothing, whoever sent them."""

    BEFORE = (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nConnection: close\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-",
        b"GET / HT",
    )

    @pytest.mark.parametrize("before", BEFORE)
    @pytest.mark.parametrize("after", BEFORE)
    def test_what_one_sent_is_nothing_to_another(self, before: bytes, after: bytes) -> None:
        alone = parse([after])
        parse([before])
        other = parse([after])
        assert [r.raw_headers for r in other.requests] == [r.raw_headers for r in alone.requests]
        assert str(other.error) == str(alone.error)
        assert len(parse([GET]).requests) == 1

    def test_requests_that_end_the_connection_leave_none_behind(self) -> None:
        for _ in range(3):
            assert are_requests(
                b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 1, last=True
            )
            assert are_requests(GET, 1)

    def test_it_counts(self) -> None:
        assert are_requests(GET + GET, 2)
        assert not are_requests(GET + GET, 1)
        assert not are_requests(GET, 2)
        assert not are_requests(GET[:-1], 1)
        assert are_requests(GET, 1)

    def test_many_threads_ask_at_once(self) -> None:
        good, bad = GET * 3, GET * 2 + b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"
        wrong: list[bool] = []

        def ask() -> None:
            for _ in range(300):
                wrong.append(not are_requests(good, 3) or are_requests(bad, 3))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == 2400
        assert not any(wrong)

    @pytest.mark.parametrize(
        "request_", [b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"X" + GET]
    )
    def test_what_is_of_no_more_use_is_freed_at_once(self, request_: bytes) -> None:
        gc.collect()
        gc.disable()
        try:
            are_requests(GET, 1)
            before = sum(type(o) in (Judge, httptools.HttpRequestParser) for o in gc.get_objects())
            for _ in range(20):
                parse([request_])
            are_requests(GET, 1)
            after = sum(type(o) in (Judge, httptools.HttpRequestParser) for o in gc.get_objects())
        finally:
            gc.enable()
        assert after <= before

    def test_an_idle_connection_has_no_llhttp(self) -> None:
        gc.collect()
        before = sum(type(o) is httptools.HttpRequestParser for o in gc.get_objects())
        parsers = [HttpRequestParser(HTTP_SPEC.params) for _ in range(50)]
        for parser in parsers:
            parser.feed(GET)
            assert said(parser)[1] == "/"
        after = sum(type(o) is httptools.HttpRequestParser for o in gc.get_objects())
        assert after - before <= 1


def test_a_closed_parser_has_nothing() -> None:
    for fed in (b"GET /x", GET[:-3], b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1"):
        for params in (HTTP_SPEC.params, HttpParams(stream_bodies=True)):
            parser = new_parser(params)
            parser.feed(fed)
            parser.close()
            parser.feed(GET)
            assert parser.partial is False
            assert parser.timeout_reply() == b""
            message = parser.next_message()
            while message is not NEED_DATA:
                assert isinstance(message, Arriving)
                message = parser.next_message()
