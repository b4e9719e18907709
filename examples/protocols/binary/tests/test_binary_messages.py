"""The protocol without a server: bytes in, messages out, and back."""

from __future__ import annotations

import pytest
from binary_protocol import BINARY_SPEC, Message

from protoserve import NEED_DATA, ProtocolError
from protoserve.testing import check_protocol

# Each is one whole request on the wire.
SAMPLES: list[bytes] = [
    b"\0\0\0\0",
    b"\0\0\0\5hello",
    b"\0\0\1\0" + bytes(range(256)),
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_message_goes_in_bytewise(sample: bytes) -> None:
    parser = BINARY_SPEC.message_in(BINARY_SPEC.params)
    for number, byte in enumerate(sample):
        assert parser.next_message() is NEED_DATA
        assert parser.partial == (number > 0)
        parser.feed(bytes([byte]))
    assert parser.next_message() == sample[4:]
    assert not parser.partial


def test_a_message_comes_out_as_it_went_in() -> None:
    for sample in SAMPLES:
        out = BINARY_SPEC.message_out(Message(sample[4:]))
        assert isinstance(out, list)
        assert b"".join(out) == sample


def test_a_length_above_the_limit_is_refused_without_its_body() -> None:
    parser = BINARY_SPEC.message_in(BINARY_SPEC.params.replace(request_size_limit=100))
    parser.feed((96).to_bytes(4, "big") + bytes(96) + (97).to_bytes(4, "big"))
    assert parser.next_message() == bytes(96)
    with pytest.raises(ProtocolError, match="more than 100 bytes"):
        parser.next_message()


def test_it_keeps_the_contract() -> None:
    check_protocol(BINARY_SPEC, SAMPLES)
