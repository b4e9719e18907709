"""A line protocol: a request is a line, and so is its reply. UTF-8, ended by LF or CR LF."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from protoserve import (
    NEED_DATA,
    MessageParser,
    NeedData,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
    WFServerTask,
)

__all__ = ["LINE_SPEC", "LineParser", "LineReply", "LineTask"]


@dataclass(slots=True)
class LineReply:
    """What the application fills in. Line ends in ``text`` become spaces."""

    text: str = ""


LineTask: TypeAlias = WFServerTask[str, LineReply]
"""What the application is called with: ``req`` is the line, ``resp`` the reply."""


class LineParser(MessageParser[str]):
    """The lines of one connection."""

    def __init__(self, params: ServerParams) -> None:
        self._limit = params.request_size_limit
        self._held = bytearray()
        self._searched = 0  # so many bytes of it hold no line end
        self._error: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        if self._error is None:
            self._held += data

    def next_message(self) -> str | NeedData:
        if self._error is not None:
            raise self._error
        end = self._held.find(b"\n", self._searched)
        size = len(self._held) if end < 0 else end + 1
        # A line that is not complete counts too: nobody fills our memory.
        if self._limit is not None and size > self._limit:
            raise self._fault("line too long")
        if end < 0:
            self._searched = size
            return NEED_DATA
        line = self._held[:end].removesuffix(b"\r")
        del self._held[:size]
        self._searched = 0
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise self._fault("not UTF-8") from None

    @property
    def partial(self) -> bool:
        return bool(self._held)

    def _fault(self, message: str) -> ProtocolError:
        self._held.clear()
        self._error = ProtocolError(message, reply=f"error: {message}\n".encode())
        return self._error


def line_bytes(reply: LineReply) -> bytes:
    return " ".join(reply.text.splitlines()).encode() + b"\n"


LINE_SPEC: Final = ProtocolSpec[str, LineReply](
    name="line",
    message_in=LineParser,
    message_out=line_bytes,
    response=LineReply,
    error_response=lambda request, error: LineReply("error: internal error"),
    params=ServerParams(request_size_limit=64 * 1024),
    url_scheme="line",
)
