"""From frames to messages. wsproto knows frames and UTF-8; here is what a message may have."""

from typing import Any, Final

from wsproto.frame_protocol import (
    CloseReason,
    Frame,
    FrameDecoder,
    MessageDecoder,
    Opcode,
    ParseFailed,
)

from protoserve import NEED_DATA, MessageParser, NeedData, ProtocolError, ServerParams
from websocket_protocol.messages import Close, Message, Ping, encode_close, may_be_sent

# Two bytes and the mask; lengths above have two more, or eight.
_HEADER: Final = 6
_SHORT: Final = 125
_MIDDLE: Final = 0xFFFF


def _header_size(length: int) -> int:
    return _HEADER + (0 if length <= _SHORT else 2 if length <= _MIDDLE else 8)


def refusal(code: int, words: str) -> ProtocolError:
    """The fault of a client, who is told."""
    return ProtocolError(
        words, reply=encode_close(Close(int(code), words)), summary={"code": int(code)}
    )


def close_of(payload: bytes) -> Close:
    """The meaning of a Close frame. Raises ``ProtocolError`` for what is none."""
    if not payload:
        return Close(CloseReason.NO_STATUS_RCVD)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not may_be_sent(code):
        raise refusal(CloseReason.PROTOCOL_ERROR, "a Close frame without a code that may be sent")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise refusal(
            CloseReason.INVALID_FRAME_PAYLOAD_DATA, "the reason of a Close frame is not UTF-8"
        ) from None


class WebSocketParser(MessageParser[Message | Ping | Close]):
    """The messages of one connection. ``request_size_limit`` is for a message with the headers of
    all its frames; a frame that would exceed it is refused by its length."""

    def __init__(self, params: ServerParams) -> None:
        self._limit = params.request_size_limit
        self._frames = FrameDecoder(client=False)
        self._messages = MessageDecoder()
        self._pieces: list[Any] = []  # of a message
        self._size = 0  # of what is complete of a message's frames
        self._length = 0  # of what is there of a frame's content
        self._unfinished = False  # frames of a message came, and more follow
        self._closed = False
        self._fault: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        if self._fault is None and not self._closed:  # nothing follows a Close frame
            self._frames.receive_bytes(data)

    def next_message(self) -> Message | Ping | Close | NeedData:
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        try:
            while not self._closed:
                frame = self._frames.process_buffer()
                if frame is None:
                    self._check()
                    return NEED_DATA
                control = frame.opcode.iscontrol()
                found = self._take_control(frame) if control else self._take(frame)
                if found is not None:
                    return found
        except ParseFailed as error:
            # Where in the text the fault is, depends on how it came.
            not_text = error.code is CloseReason.INVALID_FRAME_PAYLOAD_DATA
            self._fail(refusal(error.code, "text that is not UTF-8" if not_text else str(error)))
        except ProtocolError as error:
            self._fail(error)
        return NEED_DATA

    def _take(self, frame: Frame) -> Message | None:
        self._unfinished = True
        self._length += len(frame.payload)
        self._check()
        if frame.frame_finished:
            self._size += _header_size(self._length) + self._length
            self._length = 0
            self._check()
        text = self._messages.process_frame(frame)
        if text.payload:
            self._pieces.append(text.payload)
        if not text.message_finished:
            return None
        pieces, self._pieces = self._pieces, []
        self._size = 0
        self._unfinished = False
        return "".join(pieces) if text.opcode is Opcode.TEXT else b"".join(pieces)

    def _take_control(self, frame: Frame) -> Ping | Close | None:
        # They come whole, and between the frames of a message.
        payload = frame.payload
        assert isinstance(payload, bytes)
        match frame.opcode:
            case Opcode.PING:
                return Ping(payload)
            case Opcode.CLOSE:
                close = close_of(payload)
                self._closed = True
                self._drop()
                return close
        return None

    def _check(self) -> None:
        if self._limit is None:
            return
        header = self._frames.header
        coming = 0
        if header is not None and not header.opcode.iscontrol():
            coming = header.payload_len + _header_size(header.payload_len)
        elif self._length:
            coming = self._length + _header_size(self._length)
        if self._size + coming > self._limit:
            raise refusal(
                CloseReason.MESSAGE_TOO_BIG, f"a message of more than {self._limit} bytes"
            )

    def _fail(self, fault: ProtocolError) -> None:
        self._fault = fault
        self._drop()
        raise fault

    def _drop(self) -> None:
        self._frames = FrameDecoder(client=False)
        self._pieces = []
        self._unfinished = False

    @property
    def partial(self) -> bool:
        frames = self._frames
        return self._unfinished or frames.header is not None or len(frames.buffer) > 0
