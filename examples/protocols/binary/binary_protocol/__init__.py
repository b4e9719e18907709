"""A message is its length, four bytes big endian, and its body; a reply is one, too."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from protoserve import ProtocolSpec, ServerParams, WFServerTask
from protoserve.framing import encode_prefixed, prefixed

__all__ = ["BINARY_SPEC", "BinaryTask", "Message", "process"]


@dataclass(slots=True)
class Message:
    body: bytes = b""


BINARY_SPEC: Final = ProtocolSpec[bytes, Message](
    name="binary",
    message_in=prefixed(4),
    message_out=lambda message: encode_prefixed(message.body, 4),
    response=Message,
    demo="binary_protocol:process",
    params=ServerParams(request_size_limit=1024 * 1024),
    url_scheme="binary",
)

BinaryTask: TypeAlias = WFServerTask[bytes, Message]


def process(task: BinaryTask) -> None:
    """Answers in capitals."""
    task.resp.body = task.req.upper()
