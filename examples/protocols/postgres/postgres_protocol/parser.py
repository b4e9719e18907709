"""From bytes to requests (protocol-message-formats of PostgreSQL's documentation)."""

from typing import Final

from postgres_protocol.replies import encode_error
from postgres_protocol.requests import (
    Bind,
    Cancel,
    Close,
    Describe,
    Execute,
    Flush,
    Parse,
    Query,
    Request,
    Startup,
    Sync,
    Terminate,
    Unsupported,
)
from protoserve import Feedback, ProtocolError
from protoserve.framing import FramedParser, Parsing

STARTUP_LIMIT: Final = 10_000  # PostgreSQL's own
CANCEL: Final = 1234 << 16 | 5678
SSL: Final = 1234 << 16 | 5679
GSS_ENCRYPTION: Final = 1234 << 16 | 5680
MAJOR: Final = 3

# Without COPY nobody may say the first three: they are what is on its way when it has failed,
# and are passed over, as PostgreSQL does.
PASSED_OVER: Final = b"dcf"


class Fields:
    """The content of a message, field by field. Raises ``ValueError`` where it is too short."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if size < 0 or end > len(self._data):
            raise ValueError(f"{size} bytes expected, {len(self._data) - self._at} left")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def int16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def int32(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def text(self) -> str:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise ValueError("a text without an end")
        taken = self.take(end - self._at)
        self._at += 1
        return taken.decode(errors="surrogateescape")

    def kind(self) -> str:
        kind = self.take(1)
        if kind not in b"SP":
            raise ValueError(f"neither a statement nor a portal: {kind!r}")
        return kind.decode()

    def value(self) -> bytes | None:
        size = self.int32()
        return None if size == -1 else self.take(size)

    def int16s(self) -> tuple[int, ...]:
        return tuple(self.int16() for _ in range(self.int16()))

    def values(self) -> tuple[bytes | None, ...]:
        return tuple(self.value() for _ in range(self.int16()))

    def oids(self) -> tuple[int, ...]:
        return tuple(self.int32() & 0xFFFFFFFF for _ in range(self.int16()))

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes too many")


def startup(minor: int, fields: Fields) -> Startup:
    parameters = {}
    while name := fields.text():
        parameters[name] = fields.text()
    return Startup(minor, parameters)


def decode(kind: bytes, fields: Fields) -> Request:
    """The request that a message of this kind is."""
    match kind:
        case b"Q":
            return Query(fields.text())
        case b"P":
            return Parse(fields.text(), fields.text(), fields.oids())
        case b"B":
            return Bind(
                fields.text(), fields.text(), fields.int16s(), fields.values(), fields.int16s()
            )
        case b"D":
            return Describe(fields.kind(), fields.text())
        case b"E":
            return Execute(fields.text(), fields.int32())
        case b"C":
            return Close(fields.kind(), fields.text())
        case b"S":
            return Sync()
        case b"H":
            return Flush()
        case b"X":
            return Terminate()
        case _:  # F
            fields.take(len(fields._data))
            return Unsupported("function calls")


class PostgresParser(FramedParser[Request]):
    """The messages of one session. Before the first one a client may ask for encryption, which
    is refused with one byte, so that it goes on without or leaves."""

    def messages(self) -> Parsing[Request]:
        inbox = self.inbox
        while True:
            packet = yield from inbox.prefixed(4, includes_header=True, limit=STARTUP_LIMIT)
            fields = Fields(packet)
            code = fields.int32()
            if code not in (SSL, GSS_ENCRYPTION):
                break
            fields.end()
            inbox.discard()
            yield Feedback(b"N")
        if code == CANCEL:
            yield Cancel(fields.int32(), fields.take(len(packet) - 8))
        elif code >> 16 == MAJOR:
            first = startup(code & 0xFFFF, fields)
            fields.end()
            yield first
        else:
            raise ProtocolError(
                f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: server supports 3.0"
            )
        while True:
            kind = yield from inbox.exactly(1)
            if kind not in b"QPBDECSHXF" + PASSED_OVER:
                raise ProtocolError(f"invalid frontend message type {kind[0]}")
            body = yield from inbox.prefixed(4, includes_header=True)
            if kind in PASSED_OVER:
                inbox.discard()
                continue
            fields = Fields(body)
            message = decode(kind, fields)
            fields.end()
            yield message

    def farewell(self, fault: str) -> bytes:
        return encode_error("08P01", fault, severity="FATAL")
