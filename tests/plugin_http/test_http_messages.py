"""HttpRequest and HttpResponse as a handler uses them."""

from __future__ import annotations

import pytest
from http_exchanges import parse, request

from protoserve_http import HttpResponse


class TestRequest:
    def test_headers_are_case_insensitive_and_read_only(self) -> None:
        headers = request("GET / HTTP/1.1|Host: a|X-Y: 1|x-y: 2").headers
        assert headers["HOST"] == "a"
        assert headers.getall("X-y") == ["1", "2"]
        assert not hasattr(headers, "__setitem__")

    def test_raw_headers(self) -> None:
        found = request("GET / HTTP/1.1|hOST:a|X:  \xe9 ").raw_headers
        assert found == [(b"hOST", b"a"), (b"X", b"\xe9")]

    def test_trailers_default_to_none(self) -> None:
        assert len(request("GET / HTTP/1.1|Host: a").trailers) == 0

    @pytest.mark.parametrize(
        ("target", "path", "query"),
        [
            ("/", "/", ""),
            ("/a//b/?", "/a//b/", ""),
            ("/%2e%2E/x?a=%20?b", "/%2e%2E/x", "a=%20?b"),
            ("//x", "//x", ""),
            ("http://h", "/", ""),
            ("http://h/p?q", "/p", "q"),
            ("HTTPS://h?q/r", "/", "q/r"),
        ],
    )
    def test_target(self, target: str, path: str, query: str) -> None:
        found = request(f"GET {target} HTTP/1.1|Host: a")
        assert (found.target, found.path, found.query) == (target, path, query)

    def test_body(self) -> None:
        data = b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n{"a": "\xc3\xa9"}'
        (found,) = parse([data.replace(b"11", b"%d" % len(b'{"a": "\xc3\xa9"}'))]).requests
        assert found.text() == '{"a": "é"}'
        assert found.json() == {"a": "é"}

    def test_repr(self) -> None:
        assert repr(request("GET /x HTTP/1.1|Host: a")) == "<HttpRequest GET '/x' HTTP/1.1>"


class TestResponse:
    def test_body(self) -> None:
        response = HttpResponse(body="é")
        response.write(bytearray(b"1"))
        response.write(memoryview(b"2"))
        response.write("3")
        assert response.body == b"\xc3\xa9123"
        response.body = "new"
        assert response.body == b"new"

    def test_buffers_are_copied(self) -> None:
        response = HttpResponse()
        buffer = bytearray(b"before")
        response.write(buffer)
        buffer[:] = b"after."
        assert response.body == b"before"

    @pytest.mark.parametrize("data", [None, 5, ["x"]])
    def test_other_types(self, data: str) -> None:
        with pytest.raises(TypeError, match="text or bytes"):
            HttpResponse().write(data)

    def test_reason(self) -> None:
        assert HttpResponse(404).reason == "Not Found"
        assert HttpResponse(299).reason == ""
        assert HttpResponse(413).reason == "Content Too Large"  # RFC 9110, 15.5.14
        assert HttpResponse([]).reason == ""  # type: ignore[arg-type]
        response = HttpResponse(404)
        response.reason = "Gone fishing"
        assert response.reason == "Gone fishing"
        assert repr(response) == "<HttpResponse 404 Gone fishing>"

    def test_headers_can_be_replaced(self) -> None:
        response = HttpResponse(headers={"A": "1"})
        response.headers = {"B": "2"}
        assert list(response.headers.items()) == [("B", "2")]
