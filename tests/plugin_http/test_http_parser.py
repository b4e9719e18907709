"""The parser as the engine uses it: order, interim answers, states, farewells."""

from __future__ import annotations

import gc
import weakref

import httptools
import pytest
from http_exchanges import counted_feeds, every_byte, parse
from hypothesis import given
from hypothesis import strategies as st

from protoserve import HOLD, NEED_DATA, Feedback, ProtocolError
from protoserve_http import HTTP_SPEC, HttpRequest, HttpRequestParser
from protoserve_http import fields as fields_module

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LINES = [b"GET / HTTP/1.1", b"GET /other HTTP/1.1", b"POST / HTTP/1.1", b"GET / HTTP/1.0"]
FIELDS = [
    *(b"X-A: 1", b"X-A: 2", b"x-a: 1", b"Cookie: s=1", b"Content-Length: 3", b"Content-Length: 0"),
    *(b"Connection: close", b"Connection: keep-alive", b"Keep-Alive: timeout=9", b"X-\xe4: 1"),
    *(b"Host: a", b"Expect: 100-continue", b"Transfer-Encoding: chunked", b" folded", b"X: \xe4"),
    *(
        b"Upgrade: x",
        b"Connection: upgrade",
        b"Proxy-Connection: close",
        b"X-A : 1",
        b"X-Long: " + b"y" * 900,
    ),
]
EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"


def make() -> HttpRequestParser:
    return HttpRequestParser(HTTP_SPEC.params)


class TestContinue:
    def test_sent_when_the_body_is_awaited(self) -> None:
        parser = make()
        parser.feed(EXPECT + b"Content-Length: 2\r\n\r\n")
        message = parser.next_message()
        assert isinstance(message, Feedback)
        assert message.data == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert parser.next_message() is NEED_DATA
        parser.feed(b"hi")
        message = parser.next_message()
        assert isinstance(message, HttpRequest)
        assert message.body == b"hi"

    def test_sent_once(self) -> None:
        outcome = parse(every_byte(EXPECT + b"Content-Length: 9\r\n\r\n123456789"))
        assert len(outcome.interim) == 1

    def test_for_a_chunked_body(self) -> None:
        head = EXPECT + b"Transfer-Encoding: chunked\r\n\r\n"
        assert len(parse([head, b"0\r\n\r\n"]).interim) == 1
        assert parse([head + b"0\r\n\r\n"]).interim == []

    @pytest.mark.parametrize("rest", [b"\r\n", b"Content-Length: 0\r\n\r\n"])
    def test_not_without_a_body(self, rest: bytes) -> None:
        outcome = parse([EXPECT + rest])
        assert outcome.interim == []
        assert len(outcome.requests) == 1

    def test_not_when_the_body_is_there(self) -> None:
        assert parse([EXPECT + b"Content-Length: 2\r\n\r\nhi"]).interim == []

    def test_not_to_http_1_0(self) -> None:
        head = EXPECT.replace(b"1.1", b"1.0") + b"Content-Length: 2\r\n\r\n"
        assert parse([head]).interim == []

    def test_after_the_requests_before_it(self) -> None:
        parser = make()
        parser.feed(GET + EXPECT + b"Content-Length: 2\r\n\r\n")
        assert isinstance(parser.next_message(), HttpRequest)
        assert isinstance(parser.next_message(), Feedback)


class TestStates:
    def test_empty_lines_are_no_request(self) -> None:
        parser = make()
        parser.feed(b"\r\n")
        assert not parser.partial
        assert parser.timeout_reply() == b""

    def test_partial_after_whole_requests(self) -> None:
        parser = make()
        parser.feed(GET + GET + b"GE")
        assert parser.partial
        parser.feed(b"T / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not parser.partial
        for _ in range(3):
            assert isinstance(parser.next_message(), HttpRequest)
        assert parser.next_message() is NEED_DATA

    def test_timeout_reply(self) -> None:
        parser = make()
        assert parser.timeout_reply() == b""
        parser.feed(b"GET / HT")
        farewell = parser.timeout_reply()
        assert isinstance(farewell, ProtocolError)
        assert farewell.reply.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert farewell.summary == {"status": 408}
        assert b"\r\nConnection: close\r\n" in farewell.reply

    def test_fed_after_a_fault(self) -> None:
        parser = make()
        parser.feed(b"rubbish\r\n\r\n")
        parser.feed(GET)
        parser.feed_eof()
        assert not parser.partial
        with pytest.raises(ProtocolError):
            parser.next_message()

    def test_fed_after_close(self) -> None:
        parser = make()
        parser.close()
        parser.close()
        parser.feed(GET)
        assert parser.next_message() is NEED_DATA

    @pytest.mark.parametrize("data", [b"", GET, GET[:9], b"rubbish"])
    def test_close_leaves_no_cycle(self, data: bytes) -> None:
        class Watched(HttpRequestParser):
            # Compiled, it can be referred to weakly anyway.
            __slots__ = () if HttpRequestParser.__weakrefoffset__ else ("__weakref__",)

        parser = Watched(HTTP_SPEC.params)
        parser.feed(data)
        parser.close()
        reference = weakref.ref(parser)
        gc.disable()
        try:
            del parser
            assert reference() is None
        finally:
            gc.enable()


class TestFarewells:
    def test_none_has_a_body_for_head(self) -> None:
        outcome = parse([b"HEAD / HTTP/1.1\r\n\r\n"])
        assert outcome.status == 400
        assert outcome.reply.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize(
        "data",
        [
            b"HEAD / HTTP/1.2\r\n\r\n",
            b"HEAD / HTTP/2.0\r\n",
            b"HEAD / HTTP/1.a",
            b"HEAD / HTTP/1.1 \r\n",
            b"HEAD / RTSP/1.0\r\n",
            b"HEAD /a b HTTP/1.1\r\n\r\n",
            b"HEAD /\xe9 HTTP/1.1\r\n\r\n",
            b"HEAD  / HTTP/1.1\r\n\r\n",
            b"HEAD\t/ HTTP/1.1\r\n\r\n",
            b"HEAD\r\n\r\n",
            b"HEAD * HTTP/1.1\r\n",
            b"HEAD /#a HTTP/1.1\r\n",
            b"HEAD /" + b"x" * 9000,
            b"HEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"HEAD / HTTP/1.1\r\nHost: a\r\n b\r\n",
            b"HEAD / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n",
            b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
            b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx",
            b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n",
        ],
    )
    def test_none_to_head_has_content(self, data: bytes) -> None:
        for before in (b"", GET, b"\r\n"):
            for pieces in ([before + data], every_byte(before + data)):
                outcome = parse(pieces)
                assert outcome.status >= 400
                head, end, content = outcome.reply.partition(b"\r\n\r\n")
                assert b"\r\nConnection: close" in head
                assert b"\r\nContent-Length: " in head
                assert end
                assert not content

    @pytest.mark.parametrize("data", [b"HEADER / HTTP/2.0\r\n", b"head / HTTP/2.0\r\n", b"HEA("])
    def test_those_to_others_have(self, data: bytes) -> None:
        assert parse([data]).reply.endswith(b"\n")
        assert not parse([data]).reply.endswith(b"\r\n\r\n")

    def test_time_is_over_for_head(self) -> None:
        parser = make()
        parser.feed(b"HEAD /")
        farewell = parser.timeout_reply()
        assert isinstance(farewell, ProtocolError)
        assert farewell.reply.endswith(b"\r\n\r\n")
        parser.feed(b" HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
        farewell = parser.timeout_reply()
        assert isinstance(farewell, ProtocolError)
        assert farewell.reply.endswith(b"\r\n\r\n")

    def test_http_2_over_the_wire(self) -> None:
        outcome = parse([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"])
        assert outcome.reply.startswith(b"HTTP/1.1 505 HTTP Version Not Supported\r\n")

    def test_errors_of_llhttp_are_not_shown_as_exceptions(self) -> None:
        outcome = parse([b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"])
        assert outcome.error == "malformed request: Invalid header value char"


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class TestAtOnce:
    """A fault is answered when its byte has come, and nobody waits for what would follow."""

    @pytest.mark.parametrize(
        ("good", "bad"),
        [
            (b"G", b"("),
            (b"BREW", b"\t"),
            (b"BREW /", b"\xe9"),
            (b"M" * 64, b"M"),
            (b"GET / ", b"X"),
            (b"GET / HTTP/1.", b"x"),
            (b"GET / HTTP/1.2", b"0"),
            (CHUNKED, b"x"),
            (CHUNKED, b"\r"),
            (CHUNKED + b"5 ", b"\r"),
            (CHUNKED + b"5", b"\n"),
            (CHUNKED + b"5\r", b"\r"),
            (CHUNKED + b"5;", b"\r"),
            (CHUNKED + b"5;a ", b"b"),
            (CHUNKED + b"5;a=", b"\xff"),
            (CHUNKED + b'5;a="\xff', b"\n"),
            (CHUNKED + b'5;a="\\', b"\x7f"),
            (CHUNKED + b'5;a="\\""', b"a"),
            (CHUNKED + b"5;" + b"a" * 4093, b"a"),
            (CHUNKED + b"1\r\na", b"0"),
            (CHUNKED + b"0\r\n", b"\n"),
            (CHUNKED + b"0\r\n\r", b"x"),
            (CHUNKED + b"0\r\n", b" "),
            (CHUNKED + b"0\r\nX: y\r\n", b" "),
            (CHUNKED + b"0\r\nX", b" "),
            (CHUNKED + b"0\r\nX: y", b"\n"),
        ],
    )
    def test_byte(self, good: bytes, bad: bytes) -> None:
        for pieces in ([good], every_byte(good)):
            assert parse(pieces).error is None
            assert parse(pieces).partial
            outcome = parse([*pieces, bad])
            assert outcome.error is not None
            assert outcome.facts == parse([good + bad]).facts


class TestUpgrade:
    ASK = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_it_holds_back_once_and_keeps_what_follows(self, size: int) -> None:
        parser = HttpRequestParser(HTTP_SPEC.params)
        data = self.ASK + b"\0 of another protocol"
        for start in range(0, len(data), size):
            parser.feed(data[start : start + size])
        request = parser.next_message()
        assert isinstance(request, HttpRequest)
        assert request.upgrade == "x"
        assert parser.next_message() is HOLD
        assert not parser.partial
        parser.feed(b", and more")
        assert parser.leftover() == b"\0 of another protocol, and more"

    def test_without_an_upgrade_what_follows_is_read_as_before(self) -> None:
        parser = HttpRequestParser(HTTP_SPEC.params)
        parser.feed(self.ASK + self.ASK + b"GE")
        for _ in range(2):
            assert isinstance(parser.next_message(), HttpRequest)
            assert parser.next_message() is HOLD
        assert parser.next_message() is NEED_DATA
        assert parser.partial
        assert parser.leftover() == b""


class TestFastWay:
    """Input of whole heads takes another way through; it must lead to the same place."""

    def test_llhttp_is_fed_once_for_pipelined_requests(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feeds: list[int] = []
        real = httptools.HttpRequestParser

        class Counting:
            def __init__(self, protocol: object) -> None:
                self.parser = real(protocol)
                self.should_keep_alive = self.parser.should_keep_alive

            def feed_data(self, data: bytes) -> None:
                feeds.append(len(data))
                self.parser.feed_data(data)

        monkeypatch.setattr(httptools, "HttpRequestParser", Counting)
        data = b"".join(GET.replace(b"/ ", b"/%d " % i) for i in range(16))
        outcome = parse([data])
        assert [request.target for request in outcome.requests] == [f"/{i}" for i in range(16)]
        assert feeds == [len(data)]

    def test_llhttp_is_fed_once_for_requests_with_bodies(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
        bodies = [b"x" * 5, b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
        data = b"".join(post % (len(body), body) for body in bodies)
        with counted_feeds(monkeypatch) as feeds:
            outcome = parse([data + GET[:9], GET[9:]])
        assert [request.body for request in outcome.requests] == [*bodies, b""]
        assert len(feeds[0]) == len(data)

    def test_a_body_of_known_length_in_pieces(self) -> None:
        body = bytes(range(256)) * 300
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        for cuts in ([0, 65536], [0, 100, 9000], [0, len(head) + 1, 30000, 30001, 30003, 70000]):
            data = GET + head + body + GET
            pieces = [data[a:b] for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True)]
            outcome = parse(pieces)
            assert [request.body for request in outcome.requests] == [b"", body, b""]
            assert type(outcome.requests[1].body) is bytes

    def test_small_pieces_of_a_body_do_not_wait_as_objects(self) -> None:
        parser = make()
        parser.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n")
        for _ in range(8999):
            parser.feed(b"x")
        assert len(parser._body) == 1
        parser.feed(b"y")
        message = parser.next_message()
        assert isinstance(message, HttpRequest)
        assert message.body == b"x" * 8999 + b"y"

    @pytest.mark.parametrize(
        "following",
        [
            b"GET / HTTP/1.0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
    )
    def test_llhttp_is_not_believed_that_proxy_connection_ends_it(self, following: bytes) -> None:
        data = GET[:-2] + b"Proxy-Connection: close\r\n\r\n" + following
        for pieces in ([data], [data[: -len(following)], following], every_byte(data)):
            outcome = parse(pieces)
            assert outcome.error is None
            assert len(outcome.requests) == 2

    def test_repeated_heads_are_shared(self) -> None:
        outcome = parse([GET, GET, GET, GET.replace(b"a", b"b"), GET])
        _, second, third, fourth, fifth = outcome.requests
        assert second.headers is third.headers
        assert [r.headers["Host"] for r in (second, fourth, fifth)] == ["a", "b", "a"]
        parser = make()
        parser.feed(GET.replace(b"/ ", b"/once "))
        assert parser._last is second._block, "with which the connection may rest for long"
        [_, other, _] = parse([GET.replace(b"/ ", b"/%d " % i) for i in range(3)]).requests
        assert other.headers is second.headers, "of another connection, with another target"

    def test_a_head_is_known_on_all_connections_and_changed_by_nobody(self) -> None:
        head = GET[:-2] + b"X-Known: by all\r\n\r\n"
        *_, first = parse([head, head]).requests
        first.method, first.target = "PUT", "/changed"
        first.headers = parse([GET]).requests[0].headers
        first.body = b"changed"
        [other] = parse([head]).requests
        assert (other.method, other.target, other.body) == ("GET", "/", b"")
        assert other.headers["X-Known"] == "by all"
        pipelined = parse([3 * head + GET]).requests
        assert [r.headers.get("X-Known") for r in pipelined] == ["by all"] * 3 + [None]

    def test_a_head_with_secrets_is_not_kept(self) -> None:
        head = GET[:-2] + b"Cookie: session=42\r\n\r\n"
        assert [r.headers["Cookie"] for r in parse([head] * 3).requests] == ["session=42"] * 3
        assert not any(b"session=42" in text for text in fields_module._blocks)

    @pytest.mark.parametrize("more", [0, 1])
    def test_a_head_of_many_short_fields_is_not_kept(self, more: int) -> None:
        """What is made of it takes far more memory than its bytes."""
        fields = [b"Host: a", *[b"%d:" % i for i in range(31 + more)]]
        head = b"GET /short HTTP/1.1\r\n" + b"\r\n".join(fields) + b"\r\n\r\n"
        assert [len(r.headers) for r in parse([head] * 3).requests] == [32 + more] * 3
        fields_text = head.removeprefix(b"GET /short HTTP/1.1")
        assert (fields_text in fields_module._blocks) == (not more)

    @pytest.mark.parametrize(
        "line",
        [
            *(b"GET /a\nX:y HTTP/1.1", b"GET /a\r\nX:y HTTP/1.1", b"GET /a\tb HTTP/1.1", b""),
            *(b"GET  /a HTTP/1.1", b" GET /a HTTP/1.1", b"GET /a HTTP/1.1 ", b"GET /a#b HTTP/1.1"),
            *(b"GET /a HTTP/1.0", b"GET /a HTTP/1.2", b"GET /a", b"get /\xe4 HTTP/1.1", b"\r\n"),
            *(b"CONNECT /a HTTP/1.1", b"GET a HTTP/1.1", b"GET * HTTP/1.1", b"X /a HTTP/1.1"),
            *(b"GET /a\x0bb HTTP/1.1", b"GET /a\xa0 HTTP/1.1", b"PRI /a HTTP/1.1", b"HEAD /a"),
            *(b"POST /a HTTP/1.1", b"GET /a HTTP/1.1\r\nContent-Length: 3", b"\r\nGET / HTTP/1.1"),
            *(
                b"GET /a HTTP/1.1\r\nHost: b",
                GET + b"GET /a HTTP/1.1",
                GET + GET + b"GET / HTTP/1.1",
            ),
        ],
    )
    def test_another_request_line_before_the_same_fields(self, line: bytes) -> None:
        pieces = [GET, GET, line + GET[len(b"GET / HTTP/1.1") :], GET]
        assert parse(pieces).facts == parse(every_byte(b"".join(pieces))).facts

    @given(
        sent=st.lists(
            st.tuples(
                st.sampled_from(LINES),
                st.lists(st.sampled_from(FIELDS), max_size=4),
                st.sampled_from([b"", b"", b"", b"abc"]),
                st.integers(1, 2),
            ),
            max_size=7,
        )
    )
    def test_what_was_sent_before_makes_no_difference(
        self, sent: list[tuple[bytes, list[bytes], bytes, int]]
    ) -> None:
        pieces = [
            b"\r\n".join([line, b"Host: a", *fields, b"", body]) * times
            for line, fields, body, times in sent
        ]
        assert parse(pieces).facts == parse(every_byte(b"".join(pieces))).facts

    def test_blank_lines_between_known_requests_are_counted_anew(self) -> None:
        blank = b"\r\n" * 1000
        pieces = [GET, GET, *[blank, GET] * 6]
        outcome = parse(pieces)
        assert outcome.error is None
        assert len(outcome.requests) == 8

    @pytest.mark.parametrize(
        "tail",
        [
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nxx\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + GET,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
            b"\r\n\r\n",
            b"\r\n" + GET,
            b"GET /n HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"GET /w HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET,
            b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nhalf\r\n\r\n",
            b"X\r\n\r\n",
        ],
    )
    def test_agrees_with_the_careful_way(self, tail: bytes) -> None:
        for data in (tail, GET + tail, GET * 2 + tail + GET):
            assert parse([data]).facts == parse(every_byte(data)).facts
