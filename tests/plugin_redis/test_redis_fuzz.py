"""Any bytes, split anywhere: the same requests and the same fault."""

from __future__ import annotations

from itertools import pairwise

import hiredis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis_exchanges import command, every_byte, parse

from protoserve_redis import REDIS_SPEC, encode

PARTS = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [
            *(b"*", b"$", b"\r\n", b"\r", b"\n", b"*1\r\n", b"*2\r\n", b"$3\r\nGET\r\n"),
            *(
                b"$1\r\na\r\n",
                b"$0\r\n\r\n",
                b"PING\r\n",
                b'"',
                b"'",
                b"\\",
                b" ",
                b"\0",
                b"*-1\r\n",
            ),
        ]
    ),
    st.lists(st.binary(max_size=20), min_size=1, max_size=4).map(lambda args: command(*args)),
)
INPUTS = st.lists(PARTS, max_size=12).map(b"".join)
LIMITS = st.sampled_from([8, 20, 40, 64 * 1024 * 1024])


@given(data=INPUTS, limit=LIMITS, authenticated=st.booleans(), cuts=st.lists(st.integers(0, 200)))
@example(data=b"*1\r\n$1\r\na\r\r\n", limit=40, authenticated=True, cuts=[])
@settings(deadline=None, max_examples=300)
def test_splits_change_nothing(
    data: bytes, limit: int, authenticated: bool, cuts: list[int]
) -> None:
    params = REDIS_SPEC.params.replace(request_size_limit=limit)
    whole = parse([data], params, authenticated=authenticated)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(places)]
    assert parse(pieces, params, authenticated=authenticated) == whole
    assert parse(every_byte(data), params, authenticated=authenticated) == whole


@given(requests=st.lists(st.lists(st.binary(), min_size=1), max_size=5))
@settings(deadline=None)
def test_requests_round_trip(requests: list[list[bytes]]) -> None:
    data = b"".join(command(*args) for args in requests)
    assert parse([data]).requests == requests
    assert parse([data], authenticated=False).requests == requests or any(
        len(args) > 10 for args in requests
    )


VALUES = st.recursive(
    st.one_of(st.none(), st.binary(), st.integers(-(2**63), 2**63 - 1), st.booleans())
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.binary(), inner),
    max_leaves=20,
)


@given(value=VALUES)
@settings(deadline=None)
def test_replies_round_trip(value: object) -> None:
    missing = object()
    reader = hiredis.Reader(notEnoughData=missing)
    reader.feed(encode(value, 3))
    assert reader.gets() == value
    assert reader.gets() is missing
    reader.feed(encode(value, 2))
    assert reader.gets() is not missing
    assert reader.gets() is missing
