"""RedisParser: the requests of one connection, from its bytes."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import hiredis
from mypy_extensions import mypyc_attr

from protoserve import NEED_DATA, NativeParser, NeedData, ProtocolError, ServerParams
from protoserve_redis.framing import Framing, FramingError, split_inline
from protoserve_redis.messages import RedisRequest

_FAST_SIZE: Final = 64 * 1024
_KEPT_READER: Final = 16 * 1024
"""A reader that read more than this in a piece has a buffer that is not worth keeping."""

# What begins a request of few strings, and the number of lines of the request; what is before
# a short string, by its length.
_COUNTS: Final = {b"*%d" % i: 2 * i + 1 for i in range(1, 65)}
_LENGTHS: Final = [b"$%d" % size for size in range(1025)]

_UNFINISHED: Final = object()


@mypyc_attr(allow_interpreted_subclasses=True)
class RedisParser(NativeParser[RedisRequest]):
    """The parser of one connection: RESP arrays of strings, and inline commands.

    There are two ways through. Input of whole, small requests without line ends in their
    strings, as nearly all is, needs but one split into lines (the fast way), which is
    quicker than any guard together with hiredis. All other input is walked over by
    ``Framing``, which alone knows the limits and Redis' words about each fault; a request
    that has passed it is read by hiredis in one piece, so that hiredis never waits, never
    sees a number that is out of bounds, and answers nothing.

    ``authenticated`` is False while the peer has still to say who it is: then Redis'
    narrow limits hold, and requests are read one at a time, so that a request after the
    one that authenticates is measured as it should be.
    """

    __slots__ = (
        "_error",
        "_fast_size",
        "_framing",
        "_held",
        "_input",
        "_pos",
        "_reader",
        "_ready",
    )

    def __init__(self, params: ServerParams, *, authenticated: bool = True) -> None:
        limit = params.request_size_limit
        self._fast_size = _FAST_SIZE if limit is None else min(_FAST_SIZE, limit)
        self._framing = Framing(limit, authenticated=authenticated)
        self._ready: deque[RedisRequest] = deque()
        self._input = b""  # from _pos on it was not looked at
        self._pos = 0
        self._held = bytearray()  # of an unfinished request
        self._error: ProtocolError | None = None
        self._reader: Any = None

    @property
    def authenticated(self) -> bool:
        """Whether the peer is known, or need not be."""
        return self._framing.authenticated

    @authenticated.setter
    def authenticated(self, value: bool) -> None:
        self._framing.authenticated = value

    # -- the contract ------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer. Never raises; faults come from ``next_message``."""
        if self._error is not None:
            return
        if self._input:
            self._input = self._input[self._pos :] + data
            self._pos = 0
            return
        self._pos = 0
        if (
            not self._held
            and self._framing.authenticated
            and len(data) <= self._fast_size
            and data[-2:] == b"\r\n"
        ):
            lines = data.split(b"\r\n")
            pos = 0
            last = len(lines) - 1
            while pos < last:
                count = _COUNTS.get(lines[pos])
                if count is None or pos + count > last:
                    break
                end = pos + count
                args = _strings(lines, pos + 1, end)
                if args is None:
                    break
                self._ready.append(RedisRequest(args))
                pos = end
            else:
                return
            self._pos = sum(map(len, lines[:pos])) + 2 * pos
        self._input = data

    def next_message(self) -> RedisRequest | NeedData:
        """The next request. Raises ``ProtocolError`` with Redis' words as its reply."""
        if self._ready:
            return self._ready.popleft()
        if self._input:
            try:
                request = self._walk()
            except FramingError as fault:
                text = f"Protocol error: {fault}".translate({10: " ", 13: " "})
                self._error = ProtocolError(text, reply=f"-ERR {text}\r\n".encode("latin-1"))
                self._input = b""
                self._held.clear()
            else:
                if request is not None:
                    return request
        if self._error is not None:
            raise self._error.with_traceback(None)
        return NEED_DATA

    @property
    def partial(self) -> bool:
        """Whether an unfinished request is held."""
        return bool(self._held or self._input)

    def close(self) -> None:
        """The connection has closed."""
        self._error = None
        self._reader = None
        self._ready.clear()
        self._input = b""
        self._held.clear()

    # -- the careful way ---------------------------------------------------------------

    def _walk(self) -> RedisRequest | None:
        """The next request of the input; None when it holds no whole one any more."""
        framing = self._framing
        data = self._input
        while self._pos < len(data):
            start = self._pos
            self._pos, complete = framing.take(data, start)
            if not complete:
                self._held += memoryview(data)[start:]
                break
            if framing.inline:
                self._held.clear()
                args = split_inline(framing.line)
                if args:
                    self._trim()
                    return RedisRequest(args)
                continue
            piece: bytes | bytearray
            if self._held:
                piece = self._held
                piece += memoryview(data)[start : self._pos]
                self._held = bytearray()
            else:
                piece = data[start : self._pos]
            self._trim()
            return RedisRequest(self._read(piece))
        self._input = b""
        self._pos = 0
        return None

    def _trim(self) -> None:
        if self._pos == len(self._input):
            self._input = b""
            self._pos = 0

    def _read(self, piece: bytes | bytearray) -> list[bytes]:
        """The strings of a request that is whole and sound."""
        reader = self._reader
        if reader is None:
            reader = self._reader = hiredis.Reader(notEnoughData=_UNFINISHED)
        reader.feed(piece)
        if len(piece) > _KEPT_READER:
            self._reader = None
            # The bytes are in the reader's buffer now: no second copy while it reads.
            if type(piece) is bytearray:
                piece.clear()
        args: list[bytes] = reader.gets()
        return args


def _strings(lines: list[bytes], pos: int, end: int) -> list[bytes] | None:
    """Each second line, where it is as long as the line before it says."""
    strings: list[bytes] = []
    while pos < end:
        string = lines[pos + 1]
        size = len(string)
        length = _LENGTHS[size] if size < len(_LENGTHS) else b"$%d" % size
        if lines[pos] != length:
            return None
        strings.append(string)
        pos += 2
    return strings
