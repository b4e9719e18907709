"""Packets, the parser and topics without a server."""

from __future__ import annotations

import pytest
from mqtt_protocol import MQTT_SPEC, MqttParser
from mqtt_protocol.broker import matches
from mqtt_protocol.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Publish,
    Subscribe,
    Unsubscribe,
    connack,
    decode,
    suback,
)

from protoserve import NEED_DATA, ProtocolError
from protoserve.testing import check_protocol

CONNECTION = b"\x10\x0d\0\4MQTT\4\2\0\x3c\0\1a"

PACKETS: list[tuple[bytes, Packet]] = [
    (b"\x30\4\0\1th", Publish("t", b"h")),
    (b"\x3b\x08\0\3a/b\0\7x", Publish("a/b", b"x", 1, True, 7, True)),
    (b"\x30\x83\1\0\1t" + bytes(128), Publish("t", bytes(128))),
    (b"\x40\2\0\7", Puback(7)),
    (b"\x82\x0e\0\1\0\3a/+\1\0\3b/#\2", Subscribe(1, (("a/+", 1), ("b/#", 2)))),
    (b"\xa2\7\0\2\0\3a/+", Unsubscribe(2, ("a/+",))),
    (b"\xc0\0", Pingreq()),
    (b"\xe0\0", Disconnect()),
]

# Each is one whole request on the wire, of a connection's first.
SAMPLES: list[bytes] = [
    CONNECTION,
    b"\x10\x0c\0\4MQTT\4\2\0\0\0\0",
    b"\x10\x1c\0\4MQTT\4\xee\0\x0a\0\1a\0\1w\0\3bye\0\1u\0\2\xff\xfe",
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_connection_begins(sample: bytes) -> None:
    parser = MQTT_SPEC.message_in(MQTT_SPEC.params)
    for byte in sample:
        assert parser.next_message() is NEED_DATA
        parser.feed(bytes([byte]))
    assert isinstance(parser.next_message(), Connect)
    assert not parser.partial


def test_what_a_client_may_say_of_itself() -> None:
    assert decode(0x10, CONNECTION[2:]) == Connect("a", True, 60, None)
    will = Publish("w", b"bye", 1, True)
    assert decode(0x10, SAMPLES[2][2:]) == Connect("a", True, 10, will, "u", b"\xff\xfe")


@pytest.mark.parametrize(("wire", "packet"), PACKETS)
def test_packets(wire: bytes, packet: Packet) -> None:
    parser = MqttParser(MQTT_SPEC.params)
    parser.feed(CONNECTION + wire[:-1])
    assert isinstance(parser.next_message(), Connect)
    assert parser.next_message() is NEED_DATA
    parser.feed(wire[-1:] + wire)
    assert parser.next_message() == packet
    assert parser.next_message() == packet
    assert not parser.partial
    if isinstance(packet, Publish):
        assert packet.encode() == wire


def test_replies() -> None:
    assert connack(0, session_present=True) == b"\x20\2\1\0"
    assert suback(258, [0, 1, 0x80]) == b"\x90\5\1\2\0\1\x80"


@pytest.mark.parametrize(
    "wire",
    [
        b"\xc0\0",  # not CONNECT
        CONNECTION + CONNECTION,
        CONNECTION + b"\0\0",
        CONNECTION + b"\xf0\0",
        CONNECTION + b"\xc1\0",  # flags
        CONNECTION + b"\xc0\1x",
        CONNECTION + b"\x80\x08\0\1\0\3a/+\1",
        CONNECTION + b"\x82\x08\0\0\0\3a/+\1",  # no identifier
        CONNECTION + b"\x82\2\0\1",  # no filter
        CONNECTION + b"\x82\x08\0\1\0\3a/+\3",
        CONNECTION + b"\x82\x08\0\1\0\3a+b\1",
        CONNECTION + b"\x82\x08\0\1\0\3#/a\1",
        CONNECTION + b"\x82\5\0\1\0\0\1",
        CONNECTION + b"\xa2\2\0\1",
        CONNECTION + b"\x40\1\0",
        CONNECTION + b"\x30\3\0\1+",  # a topic that is a filter
        CONNECTION + b"\x30\2\0\0",
        CONNECTION + b"\x30\3\0\1\0",
        CONNECTION + b"\x30\3\0\1\xff",
        CONNECTION + b"\x30\3\0\2a",
        CONNECTION + b"\x38\3\0\1a",  # a duplicate of QoS 0
        CONNECTION + b"\x32\5\0\1a\0\0",
        CONNECTION + b"\x34\5\0\1a\0\1",  # QoS 2
        CONNECTION + b"\x30\xff\xff\xff\xff\1",
        CONNECTION + b"\x30\xff\xff\x7f",  # larger than the limit
        b"\x10\xff\xff\x7f",
        b"\x10\x0d\0\4MQTT\4\3\0\x3c\0\1a",
        b"\x10\x0d\0\4MQTT\4\x0a\0\x3c\0\1a",
        b"\x10\x0d\0\4MQTT\4\x42\0\x3c\0\1a",
        b"\x10\x0e\0\4MQTT\4\2\0\x3c\0\1ax",
        b"\x10\x0d\0\4HTTP\4\2\0\x3c\0\1a",
    ],
)
def test_what_is_wrong_ends_the_connection_without_a_word(wire: bytes) -> None:
    parser = MqttParser(MQTT_SPEC.params)
    parser.feed(wire)
    if wire.startswith(CONNECTION):
        assert isinstance(parser.next_message(), Connect)
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            parser.next_message()
        assert caught.value.reply == b""


@pytest.mark.parametrize("start", [b"\0\4MQTT\5\2\0\x3c\0\0\1a", b"\0\6MQIsdp\3\2\0\x3c\0\1a"])
def test_another_version_is_told(start: bytes) -> None:
    parser = MqttParser(MQTT_SPEC.params)
    parser.feed(bytes([0x10, len(start)]) + start)
    with pytest.raises(ProtocolError) as caught:
        parser.next_message()
    assert caught.value.reply == b"\x20\2\0\1"


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a/b", ["a/b"], ["a", "a/b/c", "a/c", "/a/b", "a/b/", "A/b"]),
        ("a/+", ["a/b", "a/"], ["a", "a/b/c"]),
        ("+", ["a"], ["/a", "a/b", "$a"]),
        ("+/+", ["a/b", "/a"], ["a", "$a/b"]),
        ("/+", ["/a", "/"], ["a"]),
        ("a/#", ["a", "a/", "a/b", "a/b/c"], ["ab", "b"]),
        ("#", ["a", "/", "a/b/c"], ["$SYS", "$SYS/a"]),
        ("$SYS/#", ["$SYS", "$SYS/a/b"], ["a"]),
        ("+/b/#", ["a/b", "a/b/c/d", "/b"], ["a", "a/c/b", "$a/b"]),
    ],
)
def test_filters(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [topic for topic in yes + no if matches(pattern, topic)] == yes


def test_it_keeps_the_contract() -> None:
    check_protocol(MQTT_SPEC, [wire for wire, _ in PACKETS], before=CONNECTION)
