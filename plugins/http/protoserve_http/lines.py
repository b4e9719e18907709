"""Request lines of plain requests: taken apart, and those that clients repeat remembered."""

from __future__ import annotations

from typing import Final

from protoserve_http.fields import remember_repeated
from protoserve_http.heads import MAX_TARGET
from protoserve_http.judge import TAKES_VISIBLE, are_requests

_METHODS: Final = {
    method: method
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
    if are_requests(b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method.encode(), 1)
}
"""Those that llhttp takes, as it was asked; one string for all requests."""

_ANY_FIELDS: Final = b"\r\nHost: a\r\n\r\n"
"""For llhttp, behind a request line that it has yet to judge."""

_REMEMBERED: Final = 256
"""Lines that are remembered at most: less than 256 KiB."""

_LONGEST: Final = 256
"""Bytes of a line that is remembered."""


class RequestLine:
    """A request line in the origin form (RFC 9112, 3.2.1), without its CR LF, and its words.

    Immutable, and shared by all requests that have this line.
    """

    __slots__ = ("method", "modern", "target", "text")

    def __init__(self, text: bytes, method: str, target: str, modern: bool) -> None:
        self.text: Final = text
        self.method: Final = method
        self.target: Final = target
        self.modern: Final = modern
        """Whether this is HTTP/1.1, not 1.0."""


_lines: Final[dict[bytes, RequestLine]] = {}


def recalled(text: bytes) -> RequestLine | None:
    """A request line, without its CR LF, if it is remembered."""
    return _lines.get(text)


def remember(line: RequestLine) -> None:
    """Keep a line that llhttp has judged, for all connections, where it comes again; unless it is
    long, or has a query or parameters, which may be secret."""
    text = line.text
    target = line.target
    if len(text) <= _LONGEST and "?" not in target and ";" not in target:
        remember_repeated(_lines, _REMEMBERED, text, line)


def taken_apart(text: bytes) -> RequestLine | None:
    """The words of a request line, without its CR LF, which llhttp has yet to judge. ``None`` for
    one that is not plain."""
    words = text.decode("latin-1").split()
    if len(words) != 3 or len(text) > MAX_TARGET:
        return None
    method, target, version = words
    if (
        # llhttp passes over line ends before a request line; only the careful way does too.
        len(method) + len(target) + len(version) + 2 != len(text)
        or target[0] != "/"
        or "#" in target
        or method == "CONNECT"
        or (version != "HTTP/1.1" and version != "HTTP/1.0")
    ):
        return None
    return RequestLine(text, _METHODS.get(method, method), target, version == "HTTP/1.1")


def judged(text: bytes) -> RequestLine | None:
    """The words of a request line of HTTP/1.1, without its CR LF, which llhttp takes. ``None`` for
    any other."""
    line = taken_apart(text)
    if line is None or not line.modern:
        return None
    target = line.target
    plain = (
        TAKES_VISIBLE
        and line.method in _METHODS
        and text.count(b" ") == 2  # no tabs
        and target.isascii()
        and target.isprintable()
    )
    return line if plain or are_requests(text + _ANY_FIELDS, 1) else None
