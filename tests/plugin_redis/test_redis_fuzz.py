"""Random requests and replies survive the way. That any bytes give the same however they are split
is in test_redis_conformance."""

from __future__ import annotations

import hiredis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_exchanges import command, parse

from protoserve_redis import encode


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
