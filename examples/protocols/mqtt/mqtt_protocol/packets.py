"""The packets of MQTT 3.1.1, as far as QoS 0 and 1 need them. Numbers in brackets are sections
of the standard."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from protoserve import ProtocolError
from protoserve.framing import encode_varint

__all__ = [
    "PINGRESP",
    "Connect",
    "Disconnect",
    "Packet",
    "Pingreq",
    "Puback",
    "Publish",
    "Subscribe",
    "Unsubscribe",
    "connack",
    "decode",
    "puback",
    "suback",
    "unsuback",
]

CONNECT: Final = 1
PUBLISH: Final = 3
PUBACK: Final = 4
SUBSCRIBE: Final = 8
UNSUBSCRIBE: Final = 10
PINGREQ: Final = 12
DISCONNECT: Final = 14

FLAGS: Final = {CONNECT: 0, PUBACK: 0, SUBSCRIBE: 2, UNSUBSCRIBE: 2, PINGREQ: 0, DISCONNECT: 0}
"""Of a packet's first byte, the lower half (2.2.2). PUBLISH has flags of its own."""

ACCEPTED: Final = 0
WRONG_VERSION: Final = 1
WRONG_IDENTIFIER: Final = 2
"""Return codes of CONNACK (3.2.2.3)."""

REFUSED: Final = 0x80
"""In place of a QoS in SUBACK (3.9.3)."""

PINGRESP: Final = b"\xd0\0"


@dataclass(frozen=True, slots=True)
class Publish:
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    packet_id: int = 0
    """0 for QoS 0."""
    dup: bool = False

    def encode(self) -> bytes:
        flags = self.dup << 3 | self.qos << 1 | self.retain
        number = self.packet_id.to_bytes(2, "big") if self.qos else b""
        topic = self.topic.encode()
        body = len(topic).to_bytes(2, "big") + topic + number + self.payload
        return _packet(PUBLISH << 4 | flags, body)


@dataclass(frozen=True, slots=True)
class Connect:
    client_id: str
    clean: bool
    keep_alive: int
    """Seconds; 0 for no limit."""
    will: Publish | None
    user: str | None = None
    password: bytes | None = None


@dataclass(frozen=True, slots=True)
class Puback:
    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    packet_id: int
    filters: tuple[tuple[str, int], ...]
    """Each with the QoS that is asked for."""


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pingreq:
    pass


@dataclass(frozen=True, slots=True)
class Disconnect:
    pass


Packet: TypeAlias = Connect | Publish | Puback | Subscribe | Unsubscribe | Pingreq | Disconnect


def connack(code: int, *, session_present: bool = False) -> bytes:
    return bytes([0x20, 2, session_present, code])


def puback(packet_id: int) -> bytes:
    return b"\x40\2" + packet_id.to_bytes(2, "big")


def suback(packet_id: int, codes: list[int]) -> bytes:
    return _packet(0x90, packet_id.to_bytes(2, "big") + bytes(codes))


def unsuback(packet_id: int) -> bytes:
    return b"\xb0\2" + packet_id.to_bytes(2, "big")


def _packet(head: int, body: bytes) -> bytes:
    return bytes([head]) + encode_varint(len(body)) + body


class _Fields:
    """What a packet's body has, one after the other."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._body)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._body):
            raise ProtocolError("a packet that ends too early")
        data = self._body[self._at : end]
        self._at = end
        return data

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def data(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        text = self.data().decode()  # the ValueError is the peer's fault
        if "\0" in text:
            raise ProtocolError("a text with U+0000 (1.5.3)")
        return text

    def topic(self) -> str:
        topic = self.text()
        if not topic or "+" in topic or "#" in topic:
            raise ProtocolError(f"{topic!r} is no topic name (4.7)")
        return topic

    def filter(self) -> str:
        levels = (pattern := self.text()).split("/")
        if (
            not pattern
            or "#" in levels[:-1]
            or any(len(level) > 1 and ("+" in level or "#" in level) for level in levels)
        ):
            raise ProtocolError(f"{pattern!r} is no topic filter (4.7)")
        return pattern

    def packet_id(self) -> int:
        number = self.number()
        if number == 0:
            raise ProtocolError("a packet identifier of 0 (2.3.1)")
        return number

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._at)


def decode(head: int, body: bytes) -> Packet:
    """The packet with this first byte, and what follows the length. Raises ``ProtocolError``, or
    ``ValueError`` for what is no UTF-8."""
    kind, flags = head >> 4, head & 15
    fields = _Fields(body)
    packet: Packet
    if kind == PUBLISH:
        return _publish(flags, fields)
    if FLAGS.get(kind) != flags:
        raise ProtocolError(f"a packet of type {kind} with flags {flags}")
    if kind == CONNECT:
        packet = _connect(fields)
    elif kind == PUBACK:
        packet = Puback(fields.packet_id())
    elif kind == SUBSCRIBE:
        packet = _subscribe(fields)
    elif kind == UNSUBSCRIBE:
        number = fields.packet_id()
        filters = [fields.filter()]
        while fields:
            filters.append(fields.filter())
        packet = Unsubscribe(number, tuple(filters))
    else:
        packet = Pingreq() if kind == PINGREQ else Disconnect()
    if fields:
        raise ProtocolError(f"a packet of type {kind} that is too long")
    return packet


def _publish(flags: int, fields: _Fields) -> Publish:
    qos = flags >> 1 & 3
    if qos > 1:
        raise ProtocolError(f"QoS {qos}: there are 0 and 1 here")
    if flags & 8 and not qos:
        raise ProtocolError("a duplicate of QoS 0 (3.3.1.1)")
    topic = fields.topic()
    number = fields.packet_id() if qos else 0
    return Publish(topic, fields.rest(), qos, bool(flags & 1), number, bool(flags & 8))


def _connect(fields: _Fields) -> Connect:
    name, level = fields.data(), fields.byte()
    if (name, level) != (b"MQTT", 4):
        if name not in (b"MQTT", b"MQIsdp"):
            raise ProtocolError(f"the protocol {name[:10]!r} (3.1.2.1)")
        raise ProtocolError(f"{name!r} of level {level}", reply=connack(WRONG_VERSION))
    flags = fields.byte()
    will_qos = flags >> 3 & 3
    if flags & 1 or will_qos == 3 or (not flags & 4 and flags & 0x38) or flags & 0xC0 == 0x40:
        raise ProtocolError(f"connect flags {flags:#x} (3.1.2.3)")
    keep_alive = fields.number()
    client_id = fields.text()
    will = None
    if flags & 4:
        topic, payload = fields.topic(), fields.data()
        # A broker that has no QoS 2 delivers such a will with 1.
        will = Publish(topic, payload, min(will_qos, 1), bool(flags & 0x20))
    user = fields.text() if flags & 0x80 else None
    password = fields.data() if flags & 0x40 else None
    return Connect(client_id, bool(flags & 2), keep_alive, will, user, password)


def _subscribe(fields: _Fields) -> Subscribe:
    number = fields.packet_id()
    filters: list[tuple[str, int]] = []
    while fields or not filters:
        pattern, qos = fields.filter(), fields.byte()
        if qos > 2:
            raise ProtocolError(f"a requested QoS of {qos} (3.8.3)")
        filters.append((pattern, qos))
    return Subscribe(number, tuple(filters))
