"""From an HttpResponse to the bytes of the reply."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from email.utils import formatdate
from time import time
from typing import Any, Final

from protoserve import IncomingStream, MessageOut, Piece, UsageError
from protoserve_http.fields import CONNECTION, list_tokens, remember_repeated
from protoserve_http.messages import PHRASES, Data, HttpResponse
from protoserve_http.sent import SENT_WHOLE, Sent

JOIN_SIZE: Final = 16 * 1024
"""Bodies up to this size are copied behind the head; larger ones are sent as they are."""

CLOSE: Final = b"Connection: close\r\n"
STAY: Final = b"Connection: keep-alive\r\n"

_MAX_PARTS: Final = 16  # of a large body that go out one by one
_CACHED_LINES: Final = 1024
_CACHED_VALUE: Final = 128

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")
# RFC 9110, 15.2.2, 15.3.5, 15.3.6 and 15.4.5.
WITHOUT_BODY: Final = frozenset({101, 204, 205, 304})

SWITCHING: Final = "Switching Protocols"
"""The reason of a 101 that is a reply: this object, which only an upgrade has."""

_SMALL: Final = 1024
_LENGTHS: Final = [b"Content-Length: %d\r\n\r\n" % size for size in range(_SMALL)]

# Fields that decide about the message itself, and so are not simply copied.
_SPECIAL: Final = frozenset({"connection", "content-length", "date", "transfer-encoding"})

# Header lines by (name, value), once checked. Applications use few different ones.
_lines: Final[dict[tuple[str, str], bytes]] = {}


class _Heads:
    """What all replies of one second start with: status line and Date, by status."""

    __slots__ = ("by_status", "date", "end", "second")

    def __init__(self, second: int) -> None:
        self.second = float(second)
        self.end = self.second + 1.0
        self.date = f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
        self.by_status: dict[int, bytes] = {}


class _Clock:
    __slots__ = ("heads",)

    def __init__(self) -> None:
        self.heads = _Heads(0)  # replaced as a whole: threads see this second or the next

    def current(self) -> _Heads:
        heads = self.heads
        now = time()
        if not heads.second <= now < heads.end:
            self.heads = heads = _Heads(int(now))
        return heads


_clock: Final = _Clock()


def status_line(status: Any, reason: str | None = None) -> bytes:
    """The status line of a final reply; raises ``ValueError`` for what is none."""
    if not isinstance(status, int) or not 100 <= status <= 999:
        raise ValueError(f"status {status!r}: expected a whole number from 200 to 999")
    if status < 200 and reason is not SWITCHING:
        raise ValueError(
            f"status {int(status)} is interim and cannot be the reply; use 200 or more"
        )
    if reason is None:
        reason = PHRASES.get(status, "")
    if _FORBIDDEN.search(reason):
        raise ValueError(f"reason {reason!r}: control characters cannot be sent")
    return b"HTTP/1.1 %d %b\r\n" % (status, _latin(reason, "reason"))


def _latin(text: str, what: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} {text!r}: only Latin-1 can be sent; encode other text, see RFC 8187"
        ) from None


def header_line(name: Any, value: Any) -> bytes:
    """One header line; raises ``ValueError`` naming the header when it is no legal one.

    A name is a token; a value has no control characters: CR and LF would let whoever chose the
    value write headers and replies of their own (RFC 9110, 5.5).
    """
    if not isinstance(value, str):
        raise ValueError(f"header {name!r}: expected a str, not {type(value).__name__}")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"header name {name!r} is not a token (RFC 9110, 5.6.2)")
    if _FORBIDDEN.search(value):
        raise ValueError(f"header {name!r}: control characters cannot be sent, got {value!r}")
    return b"%b: %b\r\n" % (name.encode(), _latin(value, f"header {name!r}:"))


def _remembered_line(name: Any, value: Any) -> bytes:
    line = header_line(name, value)
    if len(value) <= _CACHED_VALUE:
        # Exact strings only: a subclass may compare as it likes.
        remember_repeated(_lines, _CACHED_LINES, (str(name), str(value)), line)
    return line


def wants_close(response: HttpResponse) -> bool:
    """Whether the response itself asks for ``Connection: close``."""
    headers = response._headers
    if headers is None or CONNECTION not in headers:
        return False
    return "close" in list_tokens(headers.getall(CONNECTION))


def _connection_line(response: HttpResponse, ours: bytes) -> bytes:
    """What the response says in ``Connection``, with our decision about staying."""
    tokens = list_tokens(response.headers.getall(CONNECTION))
    others = [token for token in tokens if token not in ("close", "keep-alive")]
    if ours == CLOSE or "close" in tokens:
        others.append("close")
    elif ours == STAY or "keep-alive" in tokens:
        others.append("keep-alive")
    return header_line(CONNECTION, ", ".join(others)) if others else b""


def _special_lines(
    response: HttpResponse, size: int, counted: bool, ours: bytes
) -> tuple[list[bytes], bool, bool]:
    """The checked lines of the special fields, and whether they have a length, a date."""
    headers = response.headers
    if "Transfer-Encoding" in headers:
        raise ValueError(
            "header 'Transfer-Encoding': the server decides how a reply is framed; leave it out"
        )
    lines = []
    lengths = headers.getall("Content-Length", [])
    for length in lengths:
        if len(lengths) > 1 or not (str(length).isascii() and str(length).isdecimal()):
            raise ValueError(f"header 'Content-Length': expected one number, got {lengths!r}")
        if counted and int(length) != size:
            raise ValueError(
                f"header 'Content-Length': says {length}, but the body has {size} bytes; "
                "leave it out, it is set for you"
            )
        lines.append(header_line("Content-Length", length))
    dates = headers.getall("Date", [])
    lines += [header_line("Date", date) for date in dates]
    if CONNECTION in headers:
        lines.append(_connection_line(response, ours))
    elif ours:
        lines.append(ours)
    return lines, bool(lengths), bool(dates)


def encode(response: HttpResponse, *, head_only: bool, connection: bytes) -> MessageOut:
    """The reply as it goes out. ``head_only`` for HEAD; ``connection`` is the line that
    says whether the connection stays, or empty where that goes without saying.

    Raises ``ValueError`` for a response that cannot be sent.
    """
    status = response._status
    reason = response._reason
    heads = _clock.current()
    head = heads.by_status.get(status) if reason is None else None
    if head is None:
        head = status_line(status, reason) + heads.date
        if reason is None:
            heads.by_status[int(status)] = head
    parts = response._parts
    if len(parts) == 1:
        body = parts[0]
        size = len(body)
    else:
        size = sum(map(len, parts))
        body = b"".join(parts) if size <= JOIN_SIZE or len(parts) > _MAX_PARTS else b""
    out = [head]
    headers = response._headers
    has_length = False
    special = False
    if headers is not None:
        known = _lines
        fields: Iterable[Any] = headers.items()
        for field in fields:
            line = known.get(field)
            if line is not None:
                out.append(line)
            elif field[0].lower() in _SPECIAL:
                special = True
            else:
                out.append(_remembered_line(*field))
    if special:
        counted = not (head_only or status in WITHOUT_BODY)
        lines, has_length, has_date = _special_lines(response, size, counted, connection)
        if has_date:
            out[0] = status_line(status, reason)
        if status in (101, 204, 205):
            lines = [line for line in lines if not line.startswith(b"Content-Length")]
        out += lines
    elif connection:
        out.append(connection)
    if status in WITHOUT_BODY:
        if status == 101 and size:
            raise ValueError("an upgrade has no body: write to the response of another status")
        if status == 205:
            out.append(b"Content-Length: 0\r\n")
        out.append(b"\r\n")
        return b"".join(out)
    if has_length or (head_only and not size):
        out.append(b"\r\n")
    else:
        out.append(_LENGTHS[size] if size < _SMALL else b"Content-Length: %d\r\n\r\n" % size)
    if head_only:
        return b"".join(out)
    if size <= JOIN_SIZE:
        out.append(body)
        return b"".join(out)
    return [b"".join(out), body] if body else [b"".join(out), *parts]


class _Framer:
    """Puts the pieces of a body into the frame that the head announces."""

    __slots__ = ("_body", "_chunked", "_head", "_left", "sent")

    def __init__(
        self, head: bytes, length: int | None, chunked: bool, body: IncomingStream | None
    ) -> None:
        self._head = head  # goes out with the first piece
        self._body = body
        self._left = length
        self._chunked = chunked
        self.sent = 0

    def frame(self, piece: Data) -> Piece:
        """A piece as it goes out; an empty one, with which a source only looks around, as
        nothing."""
        if isinstance(piece, str):
            data = piece.encode()
        elif isinstance(piece, (bytes, bytearray, memoryview)):
            # A copy of what the iterator might change before it is sent.
            data = bytes(piece)
        else:
            raise TypeError(f"a piece of a body is text or bytes, not {type(piece).__name__}")
        size = len(data)
        if not size:
            return b""
        self.sent += size
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise ValueError(f"the body is {-self._left} bytes longer than Content-Length")
        head = self._take_head()
        if not self._chunked:
            return [head, data] if head else data
        if size <= JOIN_SIZE:
            return b"%b%x\r\n%b\r\n" % (head, size, data)
        return [b"%b%x\r\n" % (head, size), data, b"\r\n"]

    def end(self) -> bytes:
        """What follows the last piece."""
        if self._left:
            raise ValueError(f"the body is {self._left} bytes shorter than Content-Length")
        head = self._take_head()
        return head + b"0\r\n\r\n" if self._chunked else head

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        body = self._body
        if head and body is not None:
            self._body = None
            # Whoever has begun to read it may yet come to its end, as one that echoes does.
            if not (body.over or body.begun):
                body.last = True
                return closing(head)
        return head


def closing(head: bytes) -> bytes:
    """The same head, of a reply that is the last of its connection."""
    return head[:-2] + CLOSE + b"\r\n"


def _frames(framer: _Framer, pieces: Iterator[Data]) -> Iterator[Piece]:
    try:
        for piece in pieces:
            yield framer.frame(piece)
        yield framer.end()
    finally:
        close_stream(pieces)


class _AsyncSource(ABC):
    """What comes of an async iterator of pieces, which is closed once, whether it has begun or
    not. (An async generator around it would not close it before it has begun itself.)"""

    __slots__ = ("_over", "_pieces")

    def __init__(self, pieces: AsyncIterator[Data]) -> None:
        self._pieces: AsyncIterator[Data] | None = pieces
        self._over = False  # everything was given out

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    @abstractmethod
    async def __anext__(self) -> Piece: ...

    async def aclose(self) -> None:
        """Tell the source that no more are wanted."""
        pieces, self._pieces = self._pieces, None
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


class _AsyncFrames(_AsyncSource):
    """The pieces in their frames."""

    __slots__ = ("_framer",)

    def __init__(self, framer: _Framer, pieces: AsyncIterator[Data]) -> None:
        super().__init__(pieces)
        self._framer = framer

    async def __anext__(self) -> Piece:
        if self._over or self._pieces is None:
            raise StopAsyncIteration
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            self._over = True
            return self._framer.end()
        return self._framer.frame(piece)


class _HeadOnly(_AsyncSource):
    """The head of a reply whose body is not wanted."""

    __slots__ = ("_head",)

    def __init__(self, head: bytes, pieces: AsyncIterator[Data]) -> None:
        super().__init__(pieces)
        self._head = head

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        await self.aclose()
        self._over = True
        return self._head


def close_stream(pieces: object) -> None:
    """Tell a source of pieces that no more are wanted."""
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


def encode_stream(
    response: HttpResponse,
    *,
    head_only: bool,
    connection: bytes,
    chunked: bool,
    body: IncomingStream | None = None,
) -> MessageOut:
    """The reply to go out piece by piece. ``chunked``: where no length is stated, else the
    body ends with the connection. ``body``: of the request, where it is on its way; it is the
    last on its connection where nobody has begun to read that. Raises ``ValueError`` as
    ``encode`` does, and ``UsageError`` when the pieces were sent before."""
    pieces = response._stream
    if isinstance(pieces, Sent):
        raise UsageError(
            "the pieces of this body were sent before; make a response for each reply"
        )
    without_body = head_only or response.status in WITHOUT_BODY
    head, length = _stream_head(response, connection, chunked)
    if without_body:
        if body is not None:
            body.last = True
            head = closing(head)
        if isinstance(pieces, AsyncIterator):
            return _HeadOnly(head, pieces) if hasattr(pieces, "aclose") else head
        close_stream(pieces)
        return head
    framer = response._counted = _Framer(head, length, chunked and length is None, body)
    if isinstance(pieces, AsyncIterator):
        return _AsyncFrames(framer, pieces)
    assert pieces is not None
    return _frames(framer, pieces)


def _stream_head(
    response: HttpResponse, connection: bytes, chunked: bool
) -> tuple[bytes, int | None]:
    status = response.status
    lines = [status_line(status, response._reason)]
    headers = response.headers
    special, has_length, has_date = _special_lines(response, 0, False, connection)
    lines += [header_line(*field) for field in headers.items() if field[0].lower() not in _SPECIAL]
    if status in (204, 205):
        special = [line for line in special if not line.startswith(b"Content-Length")]
    lines += special
    if not has_date:
        lines.append(_clock.current().date)
    length = int(headers["Content-Length"]) if has_length else None
    if status == 205:
        lines.append(b"Content-Length: 0\r\n")
    elif length is None and chunked and status not in WITHOUT_BODY:
        # For HEAD as well: without it, or a length, clients take the connection for one that
        # ends with the reply, and let go of it (RFC 9112, 6.1).
        lines.append(b"Transfer-Encoding: chunked\r\n")
    lines.append(b"\r\n")
    return b"".join(lines), length


def serialise(response: HttpResponse) -> MessageOut:
    """The reply to an ordinary HTTP/1.1 request on a connection that stays open, or that
    closes because the response says so. Raises ``ValueError`` as ``encode`` does."""
    if response._stream is not None and response._stream is not SENT_WHOLE:
        return encode_stream(response, head_only=False, connection=b"", chunked=True)
    return encode(response, head_only=False, connection=b"")


def farewell(status: int, text: str, *, head_only: bool = False) -> bytes:
    """The last reply on a connection whose client broke a rule: ``text`` says which."""
    response = HttpResponse(status, text + "\n", {"Content-Type": "text/plain; charset=utf-8"})
    out = encode(response, head_only=head_only, connection=CLOSE)
    assert isinstance(out, bytes)  # it is short
    return out
