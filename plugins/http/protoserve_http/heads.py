"""The judgement of a request's head: what llhttp lets pass and we do not (RFC 9110, 9112)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from protoserve_http.faults import RequestError
from protoserve_http.fields import (
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TRANSFER_ENCODING,
    is_host,
    list_tokens,
)

MAX_METHOD: Final = 64  # the longest registered one, UPDATEREDIRECTREF, has 17
MAX_TARGET: Final = 8 * 1024  # nginx, Apache; RFC 9112, 3 asks for 8000 at least

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# Whole, and nothing in it that ``judge_line`` or a limit would object to.
_PLAIN_LINE: Final = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) /[!-\"$-~]{0,%d} HTTP/1\.[01]\r\n"
    % (MAX_TARGET - 1)
)


class Framing(NamedTuple):
    """What follows a head."""

    chunked: bool
    length: int
    expects_continue: bool


def is_plain_line(line: bytes) -> bool:
    """Whether ``line`` is one that all but a few clients send."""
    return _PLAIN_LINE.fullmatch(line) is not None


def judge_method(method: bytes) -> None:
    """Raise ``RequestError`` unless ``method``, which may go on, is one or begins like one:
    a token. Which of them it serves is the application's to say (RFC 9110, 9.1)."""
    if not _TOKEN.fullmatch(method, 0, MAX_METHOD + 1):
        raise RequestError(400, "malformed request: the method is not a token")
    if len(method) > MAX_METHOD:
        raise RequestError(501, f"no method is longer than {MAX_METHOD} bytes")


def is_head(line: bytes) -> bool:
    """Whether ``line``, which may be malformed and unfinished, is that of a HEAD request: no
    reply to it has content (RFC 9110, 9.3.2)."""
    return line.startswith(b"HEAD") and not _TOKEN.match(line, 4)


def judge_line(line: bytes) -> None:
    """Raise ``RequestError`` unless ``line``, with its CR LF, is a request line for us."""
    words = line.rstrip(b"\r\n").split(b" ")
    if len(words) != 3:
        raise RequestError(400, "malformed request: the request line has no HTTP version")
    method, target, version = words
    if not version.startswith(b"HTTP/"):
        raise RequestError(400, "malformed request: the protocol is not HTTP")
    # A higher minor version is served as the highest that we speak (RFC 9110, 2.5).
    if len(version) != 8 or not version.startswith(b"HTTP/1.") or not version[7:].isdigit():
        raise RequestError(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    if method == b"CONNECT":
        raise RequestError(501, "this server is no proxy: CONNECT is not implemented")
    if b"#" in target:
        raise RequestError(400, "malformed request: a target has no fragment")
    if target == b"*":
        if method != b"OPTIONS":
            raise RequestError(400, "malformed request: the target * is for OPTIONS only")
    elif not target.startswith(b"/"):
        authority(target.decode("latin-1"))


def authority(target: str) -> str:
    """The authority of an absolute-form target (RFC 9112, 3.2.2); raises for none."""
    scheme, separator, rest = target.partition("://")
    found = rest.partition("/")[0].partition("?")[0].partition("#")[0]
    if not separator or scheme.lower() not in ("http", "https"):
        raise RequestError(400, "malformed request: the target is no path and no http URL")
    if not found or found.startswith(":") or not is_host(found):
        raise RequestError(400, "malformed request: the target's host is invalid")
    return found


def with_host(headers: CIMultiDictProxy[str], host: str) -> CIMultiDictProxy[str]:
    """``headers`` with the target's authority, which wins over ``Host``."""
    replaced = CIMultiDict(headers)
    replaced[HOST] = host
    return CIMultiDictProxy(replaced)


def judge_fields(headers: CIMultiDictProxy[str], *, modern: bool) -> Framing:
    """What the header fields of an HTTP/1.1 (``modern``) or HTTP/1.0 request announce.

    Raises ``RequestError`` for fields that are missing, contradictory or not implemented.
    """
    hosts = headers.getall(HOST, [])
    if not hosts and modern:
        raise RequestError(400, "an HTTP/1.1 request needs a Host header")
    if len(hosts) > 1:
        raise RequestError(400, "more than one Host header")
    if hosts and not is_host(hosts[0]):
        raise RequestError(400, "the Host header is invalid")
    coded = headers.getall(TRANSFER_ENCODING, [])
    length = 0
    if coded:
        if not modern:
            # RFC 9112, 6.1: its framing is to be taken as faulty.
            raise RequestError(400, "Transfer-Encoding is not of HTTP/1.0")
        codings = list_tokens(coded)
        if "" in (member.strip(" \t") for value in coded for member in value.split(",")):
            raise RequestError(400, "Transfer-Encoding has an empty member")
        if codings[-1:] != ["chunked"] or codings.count("chunked") > 1:
            raise RequestError(400, "the last transfer coding of a request must be chunked")
        if len(codings) > 1:
            coding = codings[0]
            # What a client makes up has no place in a log line.
            named = coding.isascii() and coding.isalnum() and len(coding) <= 16
            name = coding if named else "before chunked"
            raise RequestError(501, f"the transfer coding {name} is not implemented")
    else:
        # llhttp has seen to it that there is one length, and that it is a number.
        length = int(headers.get(CONTENT_LENGTH, "0"))
    expectations = set(list_tokens(headers.getall(EXPECT))) if modern and EXPECT in headers else ()
    if expectations and expectations != {"100-continue"}:
        raise RequestError(417, "the only expectation that is met is 100-continue")
    return Framing(bool(coded), length, bool(expectations))
