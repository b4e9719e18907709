"""HTTP keeps the contract of protocols, with all that is known to be delicate."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from http_exchanges import vectors

from protoserve.testing import check_protocol
from protoserve_http import HTTP_SPEC

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"

# Where heads end, where they only seem to, and what of it takes the fast way.
SAMPLES = [
    *HTTP_SPEC.samples,
    POST + b"Content-Length: 6\r\n\r\nxx\r\n\r\n",
    POST + b"Content-Length: 4\r\n\r\n\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Expect:\r\nContent-Length: 4\r\n\r\nabcd",
    POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n123456789",
    b"\r\n" + GET,
    b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.2\r\nHost: a\r\nProxy-Connection: close\r\n\r\n",
]
LAST = [
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"HEAD http://b/x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",
]
REFUSED = [
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"X\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
]
STATUSES = {400, 413, 414, 417, 431, 500, 501, 505}


def is_reply(reply: bytes) -> bool:
    """Whole, the last one, and of a status that is a farewell's."""
    head, end, _ = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    assert int(head.split(b" ")[1]) in {*STATUSES, 408}
    assert b"\r\nContent-Length: " in head
    return bool(end)


@pytest.mark.parametrize("stream_bodies", [False, True])
def test_any_bytes_however_they_come(stream_bodies: bool) -> None:
    params = HTTP_SPEC.params.replace(stream_bodies=stream_bodies)
    check_protocol(
        dataclasses.replace(HTTP_SPEC, params=params),
        SAMPLES,
        last=LAST,
        refused=[*REFUSED, *(GET * 3 + data for data in REFUSED)],
        is_reply=is_reply,
        examples=600,
    )


def stays(expected: Any) -> bool:
    return bool(expected["requests"][-1]["keep_alive"])


def test_the_vectors_however_they_come() -> None:
    valid = [*vectors("valid").values()]
    invalid = [data for data, _ in vectors("invalid").values()]
    check_protocol(
        HTTP_SPEC,
        [data for data, expected in valid if stays(expected)],
        last=[data for data, expected in valid if not stays(expected)],
        refused=[*invalid, *(GET + data for data in invalid)],
        handle=lambda parser, request: None,  # so that one may be several requests
        is_reply=is_reply,
    )
