"""ChunkedBody: a chunked body (RFC 9112, 7.1) up to the size line of its last chunk."""

from __future__ import annotations

import re
from typing import Final

from protoserve_http.faults import RequestError

MAX_LINE: Final = 4096
"""Bytes of a size line with its extensions, which nobody uses."""

_MAX_DIGITS: Final = 16
_PLAIN_LINE: Final = re.compile(rb"[0-9A-Fa-f]{1,%d}\r\n" % _MAX_DIGITS)

_HEX: Final = b"0123456789ABCDEFabcdef"
_SPACE: Final = b" \t"
_LETTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789" + _LETTERS
_ESCAPABLE: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_QUOTABLE: Final = _ESCAPABLE.translate(None, b'"\\')

# Where a size line is: RFC 9112, 7.1.1 with RFC 9110, 5.6, and the "bad whitespace" that they
# let pass before and after ";" and "=". For each place, which bytes lead to which other.
_GRAMMAR: Final[dict[str, dict[bytes, str]]] = {
    "start": {_HEX: "size"},
    "size": {_HEX: "size", _SPACE: "space", b";": "extension", b"\r": "end"},
    "space": {_SPACE: "space", b";": "extension"},
    "extension": {_SPACE: "extension", _TOKEN: "name"},
    "name": {_TOKEN: "name", _SPACE: "named", b"=": "equals", b";": "extension", b"\r": "end"},
    "named": {_SPACE: "named", b"=": "equals", b";": "extension"},
    "equals": {_SPACE: "equals", _TOKEN: "value", b'"': "quoted"},
    "value": {_TOKEN: "value", _SPACE: "space", b";": "extension", b"\r": "end"},
    "quoted": {_QUOTABLE: "quoted", b"\\": "escape", b'"': "quote"},
    "escape": {_ESCAPABLE: "quoted"},
    "quote": {_SPACE: "space", b";": "extension", b"\r": "end"},
    "end": {b"\n": "whole"},
    "whole": {},
    "fault": {},
}
_PLACES: Final = list(_GRAMMAR)
_START: Final = _PLACES.index("start")
_FAULT: Final = _PLACES.index("fault")


def _row(steps: dict[bytes, str]) -> bytes:
    row = bytearray([_FAULT]) * 256
    for found, place in steps.items():
        for byte in found:
            row[byte] = _PLACES.index(place)
    return bytes(row)


_NEXT: Final = [_row(steps) for steps in _GRAMMAR.values()]

_LINE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_COMPLETE: Final = 3


class ChunkedBody:
    """Decodes one chunked body, strictly: only CR LF ends a line, no spaces after sizes, and
    extensions, which mean nothing to us, as the standard has them.

    llhttp would take all of it too, but does not tell where a message ends, and the end
    is where the next request begins. What follows the last chunk's line, trailers or none, is
    left to the caller.
    """

    __slots__ = ("_left", "_line", "_place", "_state", "_terminator", "body")

    def __init__(self) -> None:
        self.body = bytearray()
        self._state = _LINE
        self._line = b""  # an unfinished line
        self._place = _START  # of its end in the grammar
        self._left = 0  # of the chunk
        self._terminator = b""

    @property
    def complete(self) -> bool:
        """Whether the last chunk's line was seen."""
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
                    self._state = _LINE
            else:
                pos = self._take_line(data, pos, stop)
                if self._line.endswith(b"\n"):
                    line, self._line = self._line, b""
                    self._start_chunk(line, None if end is None else end - pos)
        return pos

    def _take_line(self, data: bytes, pos: int, stop: int) -> int:
        stop = min(stop, pos + MAX_LINE - len(self._line))
        end = data.find(b"\n", pos, stop) + 1 or stop
        piece = data[pos:end]
        if not self._line and _PLAIN_LINE.fullmatch(piece):
            self._line = piece
            return end
        place = self._place if self._line else _START
        for byte in piece:
            place = _NEXT[place][byte]
        self._place = place
        self._line += piece
        # A fault is raised at its byte: nobody is to wait for the rest of the line.
        if place == _FAULT:
            raise _fault(self._line)
        if len(self._line) == MAX_LINE and not piece.endswith(b"\n"):
            raise RequestError(400, "a chunk's size line is too long")
        return end

    def _start_chunk(self, line: bytes, room: int | None) -> None:
        digits = line[:-2].partition(b";")[0].rstrip(_SPACE)
        # Leading zeros are legal, and bounded by the line's length.
        if len(digits) > _MAX_DIGITS and len(digits.lstrip(b"0")) > _MAX_DIGITS:
            raise RequestError(413, "a chunk is too large")
        size = int(digits, 16)
        if size:
            if room is not None and size > room:
                raise RequestError(413, "the request is larger than the server allows")
            self._left = size
            self._state = _DATA
        else:
            self._state = _COMPLETE


def _fault(line: bytes) -> RequestError:
    """The error for what is no size line, and does not begin like one."""
    rest = line.lstrip(_HEX)
    if rest == line or not (rest.startswith((b"\r", b"\n")) or rest.lstrip(_SPACE)[:1] == b";"):
        return RequestError(400, "a chunk's size is not a hexadecimal number")
    return RequestError(400, "a chunk's size line is malformed")
