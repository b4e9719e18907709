"""ChunkedBody: a chunked body (RFC 9112, 7.1) from its first size line to its trailers."""

from __future__ import annotations

from typing import Final

from protoserve_http.faults import RequestError
from protoserve_http.fields import MAX_BLOCK, MAX_FIELDS

MAX_LINE: Final = 4096
"""Bytes of a size line with its extensions, which nobody uses."""

_HEX: Final = b"0123456789abcdefABCDEF"
_MAX_DIGITS: Final = 16
_CONTROL: Final = bytes(i for i in range(32) if i != 9) + b"\x7f"

_SIZE_LINE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILERS: Final = 3
_COMPLETE: Final = 4


class ChunkedBody:
    """Decodes one chunked body, strictly: only CR LF ends a line, no spaces around sizes.

    llhttp would take all of it too, but does not tell where a message ends, and the end
    is where the next request begins. The trailers' syntax is left to the caller.
    """

    __slots__ = ("_fields", "_left", "_line", "_state", "_terminator", "body", "trailers")

    def __init__(self) -> None:
        self.body = bytearray()
        self.trailers = bytearray()
        self._state = _SIZE_LINE
        self._line = b""  # an unfinished line
        self._left = 0  # of the chunk
        self._terminator = b""
        self._fields = 0

    @property
    def complete(self) -> bool:
        """Whether the last line was seen."""
        return self._state == _COMPLETE

    def feed(self, data: bytes, pos: int, stop: int, room: int | None) -> int:
        """Take ``data[pos:stop]``; returns where it stopped, which is ``stop`` until the
        body is complete. Raises ``RequestError``, with 413 for a chunk larger than ``room``,
        the bytes that may still come, counted from ``pos``."""
        end = None if room is None else pos + room
        while pos < stop and self._state != _COMPLETE:
            if self._state == _DATA:
                taken = min(self._left, stop - pos)
                self.body += data[pos : pos + taken]
                self._left -= taken
                pos += taken
                if not self._left:
                    self._state = _DATA_END
            elif self._state == _DATA_END:
                self._terminator += data[pos : pos + 1]
                pos += 1
                if not b"\r\n".startswith(self._terminator):
                    raise RequestError(400, "a chunk does not end with CR LF")
                if len(self._terminator) == 2:
                    self._terminator = b""
                    self._state = _SIZE_LINE
            elif self._state == _SIZE_LINE:
                pos = self._take_line(data, pos, stop, MAX_LINE, 400, "a chunk's size line")
                if self._line.endswith(b"\n"):
                    line, self._line = self._line, b""
                    self._start_chunk(line, None if end is None else end - pos)
            else:
                room_left = MAX_BLOCK - len(self.trailers)
                pos = self._take_line(data, pos, stop, room_left, 431, "the trailer section")
                if self._line.endswith(b"\n"):
                    line, self._line = self._line, b""
                    self._take_trailer(line)
        return pos

    def _take_line(
        self, data: bytes, pos: int, stop: int, limit: int, status: int, what: str
    ) -> int:
        end = data.find(b"\n", pos, stop) + 1 or stop
        if len(self._line) + end - pos > limit:
            raise RequestError(status, f"{what} is too long")
        self._line += data[pos:end]
        return end

    def _start_chunk(self, line: bytes, room: int | None) -> None:
        if not line.endswith(b"\r\n") or line.translate(None, _CONTROL) != line[:-2]:
            raise RequestError(400, "a chunk's size line is malformed")
        digits, _, _ = line[:-2].partition(b";")
        if not digits or digits.strip(_HEX):
            raise RequestError(400, "a chunk's size is not a hexadecimal number")
        # Leading zeros are legal, and bounded by the line's length.
        if len(digits.lstrip(b"0")) > _MAX_DIGITS:
            raise RequestError(413, "a chunk is too large")
        size = int(digits, 16)
        if size:
            if room is not None and size > room:
                raise RequestError(413, "the request is larger than the server allows")
            self._left = size
            self._state = _DATA
        else:
            self._state = _TRAILERS

    def _take_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self._state = _COMPLETE
            return
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise RequestError(431, f"more than {MAX_FIELDS} trailer fields")
        self.trailers += line
