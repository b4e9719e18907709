"""What both sides say, and the server's side as bytes."""

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from wsproto.frame_protocol import CloseReason, FrameProtocol

Message: TypeAlias = str | bytes
"""Text or binary, whole."""

REASON_LIMIT: Final = 123  # a control frame has 125 bytes, and the code is two of them


@dataclass(frozen=True, slots=True)
class Ping:
    """A client's; the reply is a pong."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The end of what a side says, and why (RFC 6455, 7.4)."""

    code: int = 1000
    reason: str = ""


def _frames() -> FrameProtocol:
    # A whole message is one frame, so that nothing need be known of those before.
    return FrameProtocol(client=False, extensions=[])


def encode(message: Message) -> bytes:
    """A message as one frame. Raises ``TypeError`` for what is neither text nor bytes."""
    return bytes(_frames().send_data(message))


def encode_pong(data: bytes) -> bytes:
    return bytes(_frames().pong(data))


def encode_close(close: Close) -> bytes:
    """A Close frame; what is too long of its reason is cut. Code 1005 is that of none."""
    if close.code == CloseReason.NO_STATUS_RCVD:
        return bytes(_frames().close())
    return bytes(_frames().close(close.code, close.reason))


@dataclass(slots=True)
class Reply:
    """What the application fills in: messages, and perhaps the end."""

    data: bytearray = field(default_factory=bytearray)
    closes: bool = False

    def send(self, message: Message) -> None:
        """Add a message. Raises ``RuntimeError`` after ``close``."""
        if self.closes:
            raise RuntimeError("a message after close(): nothing follows that")
        self.data += encode(message)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection after this. Raises ``ValueError`` for a code that no side may
        send, or a reason of more than 123 bytes."""
        if not may_be_sent(code):
            raise ValueError(f"close({code}): expected 1000, or 3000 to 4999; see RFC 6455, 7.4")
        if len(reason.encode()) > REASON_LIMIT:
            raise ValueError(f"a reason has at most {REASON_LIMIT} bytes")
        self._end(Close(code, reason))

    def _end(self, close: Close) -> None:
        if not self.closes:
            self.data += encode_close(close)
            self.closes = True


_NEVER_SENT: Final = {1004, 1005, 1006, 1015}


def may_be_sent(code: int) -> bool:
    """Whether a Close frame may have this code (RFC 6455, 7.4; 1012 to 1014 were added)."""
    return (1000 <= code <= 1014 and code not in _NEVER_SENT) or 3000 <= code <= 4999
