"""Replies on the wire: framing, Date, and headers that would break out of their line."""

from __future__ import annotations

import email.utils
import re
import time
from http import HTTPStatus

import pytest

from protoserve_http import HttpResponse, serialise
from protoserve_http import serialiser as module
from protoserve_http.serialiser import JOIN_SIZE


def text(response: HttpResponse) -> bytes:
    out = serialise(response)
    return out if isinstance(out, bytes) else b"".join(bytes(part) for part in out)


def fields(response: HttpResponse) -> list[bytes]:
    return text(response).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


class TestForm:
    def test_small_reply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "time", lambda: 784111777.9)
        response = HttpResponse()
        response.headers["Content-Type"] = "text/html"
        response.write("<p>")
        response.write(b"caf\xc3\xa9")
        assert serialise(response) == (
            b"HTTP/1.1 200 OK\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b"Content-Type: text/html\r\n"
            b"Content-Length: 8\r\n"
            b"\r\n"
            b"<p>caf\xc3\xa9"
        )

    def test_date_follows_the_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        for second in (10.0, 10.9, 11.0, 9.0):
            monkeypatch.setattr(module, "time", lambda second=second: second)
            seen.append(fields(HttpResponse())[0][-6:])
        assert seen == [b"10 GMT", b"10 GMT", b"11 GMT", b"09 GMT"]

    def test_date_is_now(self) -> None:
        (date,) = (line for line in fields(HttpResponse()) if line.startswith(b"Date: "))
        assert re.fullmatch(
            rb"Date: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT",
            date,
        )
        parsed = email.utils.parsedate_to_datetime(date[6:].decode())
        assert abs(parsed.timestamp() - time.time()) < 60

    def test_date_of_the_user_stays(self) -> None:
        response = HttpResponse(headers={"date": "Sun, 06 Nov 1994 08:49:37 GMT"})
        dates = [line for line in fields(response) if line.lower().startswith(b"date:")]
        assert dates == [b"Date: Sun, 06 Nov 1994 08:49:37 GMT"]

    def test_repeated_fields_keep_their_order(self) -> None:
        response = HttpResponse()
        response.headers.add("Set-Cookie", "a=1")
        response.headers.add("Set-Cookie", "b=2")
        assert fields(response)[1:3] == [b"Set-Cookie: a=1", b"Set-Cookie: b=2"]

    @pytest.mark.parametrize("size", [JOIN_SIZE, JOIN_SIZE + 1])
    def test_large_bodies_are_not_copied(self, size: int) -> None:
        body = b"x" * size
        out = serialise(HttpResponse(body=body))
        if size <= JOIN_SIZE:
            assert isinstance(out, bytes)
        else:
            assert not isinstance(out, bytes)
            assert out[1] is body

    @pytest.mark.parametrize("parts", [2, 16, 17, 1000])
    def test_large_bodies_of_parts(self, parts: int) -> None:
        response = HttpResponse()
        for i in range(parts):
            response.write(b"%d" % (i % 10) * (2 * JOIN_SIZE // parts))
        out = serialise(response)
        assert len(out) <= 17
        assert b"".join(bytes(part) for part in out).endswith(b"\r\n\r\n" + response.body)

    def test_reply_stays_the_same_when_made_again(self) -> None:
        response = HttpResponse(body="x", headers={"A": "b"})
        assert fields(response)[1:] == fields(response)[1:]


# Python's own before 3.13 are those of RFC 7231 and older ones.
RFC_9110 = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


class TestStatus:
    @pytest.mark.parametrize("status", [s for s in HTTPStatus if s >= 200])
    def test_standard_ones_have_their_phrase(self, status: HTTPStatus) -> None:
        line = text(HttpResponse(status)).split(b"\r\n")[0]
        phrase = RFC_9110.get(status, status.phrase)
        assert line == f"HTTP/1.1 {status.value} {phrase}".encode()

    def test_others(self) -> None:
        assert text(HttpResponse(299)).startswith(b"HTTP/1.1 299 \r\n")
        response = HttpResponse(200)
        response.reason = "Fine, thanks"
        assert text(response).startswith(b"HTTP/1.1 200 Fine, thanks\r\nDate: ")

    @pytest.mark.parametrize("status", [100, 101, 103, 199])
    def test_interim_ones_are_no_reply(self, status: int) -> None:
        with pytest.raises(ValueError, match="interim"):
            serialise(HttpResponse(status))

    @pytest.mark.parametrize("status", [-1, 0, 99, 1000, "200", None, 200.5])
    def test_nonsense(self, status: int) -> None:
        with pytest.raises(ValueError, match="status"):
            serialise(HttpResponse(status))

    @pytest.mark.parametrize("reason", ["a\r\nX: y", "a\nb", "\0", "日"])
    def test_reason_cannot_end_the_line(self, reason: str) -> None:
        response = HttpResponse()
        response.reason = reason
        with pytest.raises(ValueError, match="reason"):
            serialise(response)


class TestSplitting:
    @pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\rb", "\0", "x\r\n\r\n<script>"])
    def test_values(self, value: str) -> None:
        for _ in range(2):  # nothing is remembered of it
            with pytest.raises(ValueError, match="'Location'"):
                serialise(HttpResponse(302, headers={"Location": value}))

    @pytest.mark.parametrize(
        "name", ["", "A B", "A:", "A\r\nB", "Ä", "A\0", "(A)", "A/B", "A\n", " A"]
    )
    def test_names(self, name: str) -> None:
        with pytest.raises(ValueError, match="token"):
            serialise(HttpResponse(headers={name: "x"}))

    @pytest.mark.parametrize("name", ["Date", "Content-Length", "Connection"])
    def test_fields_with_a_meaning(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            serialise(HttpResponse(headers={name: "0\r\nX: y"}))

    def test_text_outside_latin_1(self) -> None:
        assert b"X: caf\xe9" in fields(HttpResponse(headers={"X": "café"}))
        with pytest.raises(ValueError, match="'X'"):
            serialise(HttpResponse(headers={"X": "日本"}))

    def test_values_of_other_types(self) -> None:
        response = HttpResponse()
        response.headers["X"] = 5  # type: ignore[assignment]
        with pytest.raises(ValueError, match="expected a str, not int"):
            serialise(response)

    def test_remembered_lines_are_bounded(self) -> None:
        for i in range(3000):
            for _ in range(2):  # what comes but once is not remembered
                assert b"X: %d" % i in fields(HttpResponse(headers={"X": str(i)}))
            assert len(module._lines) <= 1024
        serialise(HttpResponse(headers={"X": "x" * 10_000}))
        serialise(HttpResponse(headers={"X": "x" * 10_000}))
        assert max(len(value) for _, value in module._lines) < 1000

    def test_a_line_that_comes_but_once_does_not_push_out_one_that_comes_again(self) -> None:
        for _ in range(2):
            serialise(HttpResponse(headers={"X": "common"}))
        assert ("X", "common") in module._lines
        module._lines.clear()  # room for the few that are taken for others
        serialise(HttpResponse(headers={"X": "common"}))
        for i in range(3000):
            serialise(HttpResponse(headers={"X": f"once-{i}"}))
        assert ("X", "common") in module._lines


class TestFraming:
    def test_stated_length_that_matches(self) -> None:
        lines = fields(HttpResponse(body="hello", headers={"content-length": "5"}))
        assert [line for line in lines if b"ength" in line] == [b"Content-Length: 5"]

    @pytest.mark.parametrize("length", ["4", "6", "0", "", "-5", "+5", "5, 5", "0x5", "٥"])
    def test_stated_length_that_does_not(self, length: str) -> None:
        with pytest.raises(ValueError, match="Content-Length"):
            serialise(HttpResponse(body="hello", headers={"Content-Length": length}))

    def test_stated_twice(self) -> None:
        response = HttpResponse(body="x")
        response.headers.add("Content-Length", "1")
        response.headers.add("Content-Length", "1")
        with pytest.raises(ValueError, match="Content-Length"):
            serialise(response)

    @pytest.mark.parametrize("coding", ["chunked", "gzip", "identity"])
    def test_transfer_coding_is_ours(self, coding: str) -> None:
        with pytest.raises(ValueError, match="Transfer-Encoding"):
            serialise(HttpResponse(headers={"transfer-encoding": coding}))

    @pytest.mark.parametrize(("status", "length"), [(204, None), (304, None), (205, b"0")])
    def test_statuses_without_a_body(self, status: int, length: bytes | None) -> None:
        data = text(HttpResponse(status, "never sent"))
        assert data.endswith(b"\r\n\r\n")
        expected = [] if length is None else [length]
        assert re.findall(rb"Content-Length: (.*)\r\n", data) == expected

    def test_stated_length_without_a_body(self) -> None:
        stated = {"Content-Length": "42"}
        assert b"Content-Length: 42" in fields(HttpResponse(304, headers=stated))
        assert b"Content-Length" not in text(HttpResponse(204, headers=stated))
        assert b"Content-Length: 0" in fields(HttpResponse(205, headers=stated))
