"""The frames without a server."""

from __future__ import annotations

import pytest
from websocket_protocol import WEBSOCKET_SPEC, Close, Ping, Reply, WebSocketParser
from websocket_protocol.upgrade import FRAMES

from protoserve import NEED_DATA, ProtocolError, ServerParams
from protoserve.testing import check_protocol

MASK = b"\x11\x22\x33\x44"
TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A


def frame(first: int, content: bytes = b"") -> bytes:
    """As a client sends it."""
    size = len(content)
    if size <= 125:
        length = bytes([0x80 | size])
    elif size <= 0xFFFF:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    masked = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(content))
    return bytes([first]) + length + MASK + masked


SPLIT = "ü".encode()
REQUESTS: list[tuple[bytes, object]] = [
    (frame(TEXT, "grün".encode()), "grün"),
    (frame(TEXT), ""),
    (frame(BINARY, b"\0\xff"), b"\0\xff"),
    (frame(BINARY), b""),
    (frame(BINARY, b"x" * 126), b"x" * 126),
    (frame(BINARY, b"x" * 70_000), b"x" * 70_000),
    (frame(0x01, b"a" + SPLIT[:1]) + frame(0x00) + frame(0x80, SPLIT[1:]), "aü"),
    (frame(0x02, b"a") + frame(PONG, b"whatever") + frame(0x80, b"b"), b"ab"),
    (frame(PING), Ping(b"")),
    (frame(PING, b"x" * 125), Ping(b"x" * 125)),
]
# Each is one whole request on the wire...
SAMPLES: list[bytes] = [data for data, _ in REQUESTS]
# ... and after these a client says nothing.
LAST: list[bytes] = [frame(CLOSE), frame(CLOSE, b"\x03\xe8bye"), frame(CLOSE, b"\x0f\xa0")]

REFUSED: list[bytes] = [
    b"\x81\x01x",  # without a mask
    frame(0x83),  # of no kind
    frame(0xC1),  # with a bit that means nothing
    frame(0x80, b"x"),  # the rest of nothing
    frame(0x01, b"a") + frame(TEXT, b"b"),  # a message in another
    frame(0x09),  # a ping in pieces
    b"\x89\xfe",  # a ping that is too long
    b"\x82\xfe\0\x01" + MASK + b"x",  # a length that is longer than it need be
    frame(CLOSE, b"\x03"),
    frame(CLOSE, b"\x03\xed"),  # 1005
    frame(CLOSE, b"\x03\xe8\xff"),
    frame(TEXT, b"\xff"),
    frame(0x01, SPLIT[:1]) + frame(0x80),
    frame(0x01, b"\xc3\x28"),
]
NOT_UTF8 = REFUSED[-4:]


def parser_of(data: bytes = b"", limit: int | None = None) -> WebSocketParser:
    params = WEBSOCKET_SPEC.params
    parser = WebSocketParser(params if limit is None else params.replace(request_size_limit=limit))
    parser.feed(data)
    return parser


@pytest.mark.parametrize(("sample", "meant"), REQUESTS[:5] + REQUESTS[6:])
def test_a_request_however_it_is_split(sample: bytes, meant: object) -> None:
    whole = parser_of(sample)
    assert whole.next_message() == meant
    assert whole.next_message() is NEED_DATA
    assert not whole.partial
    split = parser_of()
    for byte in sample:
        assert split.next_message() is NEED_DATA
        split.feed(bytes([byte]))
        assert split.partial
    assert split.next_message() == meant
    assert not split.partial


def test_a_large_message() -> None:
    data, meant = REQUESTS[5]
    parser = parser_of()
    for start in range(0, len(data), 999):
        assert parser.next_message() is NEED_DATA
        parser.feed(data[start : start + 999])
    assert parser.next_message() == meant


def test_a_ping_in_the_middle_of_a_message() -> None:
    parser = parser_of(frame(0x01, b"a") + frame(PING, b"!") + frame(0x80, b"b"))
    assert parser.next_message() == Ping(b"!")
    assert parser.next_message() == "ab"


@pytest.mark.parametrize(("data", "code"), [(LAST[0], 1005), (LAST[1], 1000), (LAST[2], 4000)])
def test_nothing_follows_a_close(data: bytes, code: int) -> None:
    parser = parser_of(SAMPLES[0] + frame(0x01, b"a") + data + b"whatever")
    assert parser.next_message() == "grün"
    found = parser.next_message()
    assert isinstance(found, Close)
    assert found.code == code
    parser.feed(SAMPLES[0])
    assert parser.next_message() is NEED_DATA
    assert not parser.partial


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused(fault: bytes) -> None:
    parser = parser_of(SAMPLES[0] + fault)
    assert parser.next_message() == "grün"
    for _ in range(2):
        with pytest.raises(ProtocolError) as refused:
            parser.next_message()
        assert refused.value.summary["code"] == (1007 if fault in NOT_UTF8 else 1002)
        assert refused.value.reply[0] == CLOSE


def test_bytes_that_are_no_text_are_refused_at_once() -> None:
    parser = parser_of(b"\x81\xfe\xff\xff" + MASK + bytes([0xFF ^ MASK[0]]))
    with pytest.raises(ProtocolError):
        parser.next_message()


@pytest.mark.parametrize(
    "data",
    [
        frame(BINARY, b"x" * 94),
        frame(0x02, b"x" * 44) + frame(0x80, b"x" * 44),
        frame(0x01, b"x") + frame(0x00) * 14 + frame(0x80, b"x" * 3),
        frame(0x02, b"x" * 60) + frame(PING, b"x" * 100) + frame(0x80, b"x" * 28),
    ],
)
def test_a_message_may_have_the_size_limit_and_no_more(data: bytes) -> None:
    size = len(data) - (106 if PING in data[1:] else 0)
    assert size == 100
    requests = []
    parser = parser_of(data, 100)
    while (found := parser.next_message()) is not NEED_DATA:
        requests.append(found)
    assert not isinstance(requests[-1], Ping)
    for step in (1, 10, len(data)):
        parser = parser_of(limit=99)
        with pytest.raises(ProtocolError) as refused:  # noqa: PT012
            for start in range(0, len(data), step):
                parser.feed(data[start : start + step])
                while parser.next_message() is not NEED_DATA:
                    pass
        assert refused.value.summary["code"] == 1009


def test_a_length_is_refused_before_its_bytes_come() -> None:
    parser = parser_of(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK)
    with pytest.raises(ProtocolError, match="more than 1048576 bytes"):
        parser.next_message()
    assert parser_of(b"\x82\xff", None).next_message() is NEED_DATA
    unlimited = WebSocketParser(ServerParams(request_size_limit=None))
    unlimited.feed(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK)
    assert unlimited.next_message() is NEED_DATA


def test_replies() -> None:
    reply = Reply()
    reply.send("ü")
    reply.send(b"x" * 200)
    for wrong in (999, 1005, 1006, 1015, 2000, 5000):
        with pytest.raises(ValueError, match="RFC 6455"):
            reply.close(wrong)
    with pytest.raises(ValueError, match="123"):
        reply.close(1000, "ü" * 62)
    reply.close(3000, "bye")
    assert reply.data == b"\x81\x02\xc3\xbc\x82\x7e\0\xc8" + b"x" * 200 + b"\x88\x05\x0b\xb8bye"
    with pytest.raises(RuntimeError):
        reply.send("more")


def test_it_keeps_the_contract() -> None:
    check_protocol(FRAMES, SAMPLES, last=LAST, refused=REFUSED)
