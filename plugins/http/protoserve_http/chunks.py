"""ChunkedBody: a chunked body (RFC 9112, 7.1) up to the size line of its last chunk."""

from __future__ import annotations

import re
from typing import Final

from protoserve_http.faults import RequestError

MAX_LINE: Final = 4096
"""Bytes of a size line with its extensions, which nobody uses."""

_MAX_DIGITS: Final = 16

# RFC 9112, 7.1.1 with the "bad whitespace" that it lets pass, and RFC 9110, 5.6. What was
# matched once is not given back, so that no line takes more than its length in steps.
_BWS: Final = rb"[ \t]*+"
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+'
_NAME: Final = _BWS + b";" + _BWS + _TOKEN
_EXTENSION: Final = (
    _NAME + b"(?:" + _BWS + b"=" + _BWS + b"(?:" + _TOKEN + b"|" + _QUOTED + b'"))?+'
)

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]++)(?:" + _EXTENSION + rb")*+\r\n")

# How a size line may begin. After the extensions that are whole comes the end of the line,
# or a part of another extension; the last that is whole may go on, and is tried as a part.
_VALUE_BEGUN: Final = b"(?:" + _TOKEN + b"|" + _QUOTED + rb"\\?)?"
_NAME_BEGUN: Final = b"(?:" + _TOKEN + b"(?:" + _BWS + b"(?:=" + _BWS + _VALUE_BEGUN + b")?)?)?"
_BEGUN: Final = re.compile(
    rb"(?:[0-9A-Fa-f]++(?:" + _EXTENSION + rb")*"
    rb"(?:\r|" + _BWS + b"(?:;" + _BWS + _NAME_BEGUN + b")?)?)?"
)

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

    __slots__ = ("_left", "_line", "_state", "_terminator", "body")

    def __init__(self) -> None:
        self.body = bytearray()
        self._state = _LINE
        self._line = b""  # an unfinished line
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
        self._line = line = self._line + data[pos:end]
        if not line.endswith(b"\n"):
            # A fault is raised at its byte: nobody is to wait for the rest of the line.
            if not _BEGUN.fullmatch(line):
                raise _malformed(line)
            if len(line) == MAX_LINE:
                raise RequestError(400, "a chunk's size line is too long")
        return end

    def _start_chunk(self, line: bytes, room: int | None) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise _malformed(line)
        digits = match[1]
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


def _malformed(line: bytes) -> RequestError:
    """The error for a line that is no size line, or cannot become one: the same for both."""
    rest = line.lstrip(b"0123456789abcdefABCDEF")
    if rest == line or not (rest.startswith((b"\r", b"\n")) or rest.lstrip(b" \t")[:1] == b";"):
        return RequestError(400, "a chunk's size is not a hexadecimal number")
    return RequestError(400, "a chunk's size line is malformed")
