"""MQTT 3.1.1 (OASIS, 2014) with QoS 0 and 1: packets, and how they look on the wire. What they do
is the application's: see :mod:`mqtt_protocol.broker`."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from mqtt_protocol.packets import CONNECT, Connect, Packet, decode
from protoserve import ProtocolError, ProtocolSpec, ServerParams, WFServerTask
from protoserve.framing import FramedParser, Parsing

__all__ = ["MQTT_SPEC", "MqttParser", "MqttTask", "Reply"]

CONNECT_LIMIT: Final = 400_000
"""Bytes of a CONNECT: at most five fields of 64 KiB."""


@dataclass(slots=True)
class Reply:
    """One packet, or none."""

    packet: bytes = b""


MqttTask: TypeAlias = WFServerTask[Packet, Reply]


class MqttParser(FramedParser[Packet]):
    """CONNECT, and then anything else."""

    def messages(self) -> Parsing[Packet]:
        connected = False
        while True:
            (head,) = yield from self.inbox.exactly(1)
            if (head >> 4 == CONNECT) == connected:
                raise ProtocolError("CONNECT comes first, and once (3.1)")
            limit = None if connected else CONNECT_LIMIT
            body = yield from self.inbox.varint_prefixed(max_bytes=4, limit=limit)
            connected = True
            yield decode(head, body)


def _summary(packet: Packet, reply: Reply) -> dict[str, object]:
    facts: dict[str, object] = {"packet": type(packet).__name__.upper()}
    if isinstance(packet, Connect):
        facts["client"] = packet.client_id
    return facts


MQTT_SPEC: Final = ProtocolSpec[Packet, Reply](
    name="mqtt",
    message_in=MqttParser,
    message_out=lambda reply: reply.packet,
    response=Reply,
    summary=_summary,
    demo="mqtt_protocol.broker:process",
    # How long a connection may be silent each client says in its CONNECT.
    params=ServerParams(request_size_limit=1024 * 1024),
    url_scheme="mqtt",
)
