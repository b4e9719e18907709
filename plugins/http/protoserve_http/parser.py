"""HttpRequestParser: the requests of one connection, from its bytes."""

from __future__ import annotations

import re
from typing import Final, TypeAlias

import httptools
from multidict import CIMultiDict, CIMultiDictProxy
from mypy_extensions import mypyc_attr

from protoserve import (
    HOLD,
    NEED_DATA,
    Arriving,
    Feedback,
    Hold,
    NativeParser,
    NeedData,
    ProtocolError,
    ServerParams,
)
from protoserve_http.chunks import ChunkedBody
from protoserve_http.faults import RequestError
from protoserve_http.fields import (
    MAX_BLOCK,
    MAX_FIELDS,
    HeaderBlock,
    repeated,
    shared,
    split_fields,
)
from protoserve_http.heads import (
    MAX_TARGET,
    Framing,
    authority,
    is_head,
    is_plain_line,
    judge_fields,
    judge_line,
    judge_method,
    with_host,
)
from protoserve_http.judge import are_requests
from protoserve_http.lines import RequestLine, judged, recalled, remember, taken_apart
from protoserve_http.messages import Http10Request, HttpRequest
from protoserve_http.serialiser import farewell

MAX_BLANK: Final = 4 * 1024
"""Bytes of empty lines before a request, which old clients send after a body."""

CONTINUE: Final = Feedback(b"HTTP/1.1 100 Continue\r\n\r\n")

_FAST_SIZE: Final = 64 * 1024

_SMALL: Final = 1024  # where to copy what follows a head costs less than to look for its end

_TOO_LARGE: Final = "the request is larger than the server allows"

_LARGE_PIECE: Final = 4 * 1024  # of a body; smaller ones do not wait as objects of their own

_NOTHING: Final = NEED_DATA  # a name of this module is found faster in the compiled build
_END: Final = b"\r\n\r\n"

_LATER: Final = re.compile(rb"HTTP/1\.[2-9]")

# What is being read: the states of the careful way.
_LINE: Final = 0
_HEADERS: Final = 1
_BODY: Final = 2
_CHUNKS: Final = 3
_TRAILERS: Final = 4
_CLOSED: Final = 5
HELD: Final = 6

_ASK_AGAIN: Final = ProtocolError("")
"""In place of an error, while it is held: what follows may be another protocol's."""


_Said: TypeAlias = HttpRequest | Feedback | Hold | Arriving[HttpRequest]

Message: TypeAlias = _Said | NeedData
"""What a parser says."""


@mypyc_attr(allow_interpreted_subclasses=True)
class HttpRequestParser(NativeParser[HttpRequest]):
    """The parser of one connection (RFC 9112), strict in everything that has to do with
    where a request ends.

    llhttp (httptools) judges all that is new in a head, and the trailers as one; it is given
    nothing else.
    It does not tell how much it consumed, so the ends of heads and bodies are found here.
    It knows a list of methods and of versions; where others are served as well, it is told
    one that it knows, and judges the rest.

    There are three ways through. A request with the fields of the one before it, which llhttp has
    judged, needs at most its request line judged (the short way); and that only where it is not
    remembered, and has an uncommon method, or characters that llhttp does not take everywhere.
    What input begins with whole plain requests, as nearly all does, is split, and goes to llhttp
    in one piece (the fast way); so does the head of one whose body is on its way. Where anything
    at all is unusual, the input is taken from there, or, where llhttp refuses it, again, step by
    step (the careful way), which alone knows limits, codings and errors: every answer to a fault
    comes from one place, and does not depend on how the bytes were split.
    """

    __slots__ = (
        "_alike",
        "_blank",
        "_body",
        "_chunks",
        "_error",
        "_expecting",
        "_fast_size",
        "_head",
        "_heads",
        "_last",
        "_left",
        "_limit",
        "_line_feeds",
        "_parser",
        "_queue",
        "_ready",
        "_request",
        "_rest",
        "_section",
        "_state",
        "_taken",
        "_used",
    )

    _collects: bool = True
    """Whether a body that is there with its head is the request's at once."""

    def __init__(self, params: ServerParams) -> None:
        # First what most requests need: the compiled build lays it out in this order.
        self._ready: _Said | None = None  # what is said next...
        self._queue: list[_Said] | None = None  # ... and what follows
        self._error: ProtocolError | None = None
        self._state = _LINE
        self._head = b""  # the request line, or what is there of it
        # Of the last request that the fast way took, for the next that begins or goes on alike:
        self._last: HeaderBlock | None = None  # its fields
        self._alike = False  # whether nothing but these fields followed its request line
        self._blank = 0
        limit = params.request_size_limit
        self._fast_size = _FAST_SIZE if limit is None else min(_FAST_SIZE, limit)
        self._limit = limit
        self._taken = 0  # of the queue
        self._parser: httptools.HttpRequestParser | None = None  # made when it is needed
        self._heads = 0  # that it saw the end of
        self._section = b""  # field lines, after the line end before them
        self._line_feeds = 0
        self._expecting = False
        self._request: HttpRequest | None = None  # its body is awaited
        self._body: list[bytes | bytearray | memoryview] = []  # its pieces
        self._left = 0  # that are yet to come
        self._used = 0  # bytes of the request
        self._chunks: ChunkedBody | None = None
        self._rest = b""  # what follows such a request

    def _renew(self) -> None:
        """Expect a request line: a llhttp of before is asked no more."""
        self._heads = 0
        self._parser = None

    # llhttp's only callback. It has no others, so that no objects are made for them.
    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self._heads += 1

    # -- the contract ------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer. Never raises; faults come from ``next_message``."""
        pos = 0
        if self._state == _LINE and not self._head:
            size = len(data)
            if size <= self._fast_size:
                pos = self._take_quickly(data, size)
                if pos == size:
                    return
        try:
            self._feed_carefully(data, pos)
        except RequestError as fault:
            self._fail(fault)

    def next_message(self) -> Message:
        """The next request, or ``100 Continue`` for one whose body is awaited."""
        ready = self._ready
        if ready is not None:
            self._ready = None
            return ready
        queue = self._queue
        if queue is not None:
            ready = queue[self._taken]
            self._taken += 1
            if self._taken == len(queue):
                self._queue = None
                self._taken = 0
            return ready
        if self._error is not None:
            if self._error is not _ASK_AGAIN:
                raise self._error.with_traceback(None)
            return self._go_on()
        return _NOTHING

    def _say(self, message: _Said) -> None:
        """What ``next_message`` returns, after what it has yet to."""
        if self._queue is not None:
            self._queue.append(message)
        elif self._ready is None:
            self._ready = message
        else:
            self._queue = [message]

    def _go_on(self) -> Message:
        """The client's wish for another protocol was not fulfilled."""
        self._error = None
        self._state = _LINE
        rest, self._rest = self._rest, b""
        if rest:
            self.feed(rest)
        return self.next_message()

    def leftover(self) -> bytes:
        """What follows a request that asked for another protocol."""
        return self._rest

    @property
    def partial(self) -> bool:
        """Whether an unfinished request is held."""
        return bool(self._head)

    def close(self) -> None:
        """The connection has closed."""
        self._error = None
        self._state = _CLOSED
        self._head = b""
        self._parser = None

    def timeout_reply(self) -> bytes | ProtocolError:
        """``408 Request Timeout``."""
        if not self._head:
            return b""
        return self._refusal(408, "the request took too long to arrive")

    # -- the short and the fast way ----------------------------------------------------

    def _take_quickly(self, data: bytes, size: int) -> int:
        """Take what ``data`` begins with and the short and the fast way can take; returns how much
        that is. Many clients send the same fields with every request."""
        last = self._last
        if last is None or not self._alike:
            return self._take_plain(data, 0)
        fields = last.text
        line_end = size - len(fields)
        if line_end > len(fields):
            return self._take_alike(data, size, last)
        if not data.endswith(fields):
            return self._take_plain(data, 0)
        if not last.sent_again:
            self._last = last = repeated(last)
        line = self._line(data[:line_end], last)
        if line is None:
            return self._take_plain(data, 0)
        self._say(HttpRequest(line.method, line.target, last, True))
        self._blank = 0
        return size

    def _take_alike(self, data: bytes, size: int, last: HeaderBlock) -> int:
        """As ``_take_quickly``, where there may be several requests with the fields ``last``."""
        fields = last.text
        pos = 0
        while pos < size:
            line_end = data.find(b"\r\n", pos)
            if not data.startswith(fields, line_end):
                break
            if not last.sent_again:
                self._last = last = repeated(last)
            line = self._line(data[pos:line_end], last)
            if line is None:
                break
            self._blank = 0
            head = line.text + fields
            while True:
                self._say(HttpRequest(line.method, line.target, last, True))
                pos += len(head)
                if not data.startswith(head, pos):
                    break
        return pos if pos == size else self._take_plain(data, pos)

    def _line(self, text: bytes, fields: HeaderBlock) -> RequestLine | None:
        """A request line of HTTP/1.1 that llhttp has judged, or does now, in front of these
        fields; ``None`` for any other."""
        line = recalled(text)
        if line is None:
            line = judged(text)
            if line is not None and fields.kept:
                remember(line)
        return line if line is not None and line.modern else None

    def _take_plain(self, data: bytes, start: int) -> int:
        """Take the plain requests at ``data[start:]``: those with nothing to judge. Returns where
        what is left to the careful way begins."""
        size = len(data)
        requests: list[HttpRequest] = []
        begun: HttpRequest | None = None  # one whose body is taken step by step
        last = self._last
        last_line: RequestLine | None = None
        pos = stop = start
        while pos < size:
            if size - pos <= _SMALL:
                head, found, rest = (data[pos:] if pos else data).partition(_END)
                if not found:
                    break
                end = size - len(rest)
            else:
                head_end = data.find(_END, pos)
                if head_end < 0:
                    break
                head = data[pos:head_end]
                end = head_end + 4
            lines = head.split(b"\r\n")
            line = recalled(lines[0]) or taken_apart(lines[0])
            if line is None or len(lines) > 1 + MAX_FIELDS:
                break
            fields = HeaderBlock(data[pos + len(line.text) : end], lines, last)
            facts = fields.facts
            if not facts.plain:
                break
            if line.modern:
                request = HttpRequest(line.method, line.target, fields, facts.persists)
            else:
                request = Http10Request(line.method, line.target, fields, facts.persists_http10)
            length = facts.length
            if length:
                if end + length > size or not self._collects:
                    if self._limit is not None and end - pos + length > self._limit:
                        break
                    begun = request
                    stop = end
                    break
                request.body = data[end : end + length]
                end += length
            if not request.keep_alive and end != size:
                break  # what follows is ignored
            last = fields
            last_line = line
            requests.append(request)
            pos = stop = end
        if stop == start:
            return start
        taken = data if stop - start == size else data[start:stop]
        if begun is not None:
            if not self._begins_with(taken, len(requests) + 1):
                return start
        elif not are_requests(taken, len(requests), last=not requests[-1].keep_alive):
            return start
        for request in requests:
            self._say(request)
        self._blank = 0
        if last_line is not None:
            assert last is not None
            if not last.small:
                self._last = None
            elif self._last is None:
                self._last = shared(last)  # many clients ask but once
            else:
                self._last = last
            if self._last is not None and self._last.kept:
                remember(last_line)
            self._alike = requests[-1].keep_alive and last_line.modern and not last.facts.length
        if begun is not None:
            self._last = begun._block if begun._block.small else None
            self._alike = False
            line_end = data.find(b"\n", pos) + 1
            self._head = data[pos:line_end]
            self._used = stop - pos
            facts = begun._block.facts
            self._begin(begun, Framing(False, facts.length, False), self._used)
            return stop
        if not requests[-1].keep_alive:
            self._state = _CLOSED
        return stop

    def _begins_with(self, data: bytes, heads: int) -> bool:
        """Whether ``data`` are whole requests, and the head of one whose body is on its way; so
        many heads in all."""
        self._renew()
        try:
            self._judge(data)
        except RequestError:
            return False
        finally:
            seen = self._heads
            self._renew()
        return seen == heads

    # -- the careful way ---------------------------------------------------------------

    def _refusal(self, status: int, text: str) -> ProtocolError:
        reply = farewell(status, text, head_only=is_head(self._head))
        facts: dict[str, object] = {}
        if self._state != _LINE:  # the request line was judged, and is one
            method, target, version = self._head.decode("latin-1").split(" ")
            version = "1.0" if version.startswith("HTTP/1.0") else "1.1"
            facts = {"method": method, "target": target, "version": version}
        return ProtocolError(text, reply=reply, summary={**facts, "status": status})

    def _fail(self, fault: RequestError) -> None:
        self._error = self._refusal(fault.status, fault.text)
        self._finish()
        self._state = _CLOSED
        self._parser = None

    def _finish(self) -> None:
        """Expect the next request."""
        self._state = _LINE
        self._head = self._section = b""
        self._blank = 0

    def _feed_carefully(self, data: bytes, pos: int) -> None:
        size = len(data)
        while pos < size:
            state = self._state
            if state == HELD:
                self._rest += data[pos:]
                return
            if state == _CLOSED:
                # After `Connection: close`, bytes are ignored (RFC 9112, 9.6).
                return
            if state == _LINE and not self._head:
                self._used = 0
                pos = self._skip_blank(data, pos)
                if pos == size:
                    return
            limit = self._limit
            stop = size if limit is None else min(size, pos + limit - self._used)
            if stop == pos:
                raise RequestError(413, _TOO_LARGE)
            start = pos
            if state == _LINE:
                pos = self._take_line(data, pos, stop)
            elif state == _HEADERS:
                pos = self._take_headers(data, pos, stop)
            elif state == _BODY:
                pos = self._take_body(data, pos, stop)
            elif state == _CHUNKS:
                pos = self._take_chunks(data, pos, stop)
            else:
                pos = self._take_trailers(data, pos, stop)
            self._used += pos - start
        if self._expecting and self._state in (_BODY, _CHUNKS, _TRAILERS):
            self._expecting = False
            self._say(CONTINUE)

    def _judge(self, piece: bytes) -> None:
        """Give ``piece`` of a head to llhttp."""
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # what follows is looked at when the request is whole
        except httptools.HttpParserError as error:
            reason = str(error)
            # The one text that is looked at; a test holds it.
            status = 505 if reason == "Invalid HTTP version" else 400
            raise RequestError(status, f"malformed request: {reason}") from None

    def _skip_blank(self, data: bytes, pos: int) -> int:
        # RFC 9112, 2.2: ignore empty lines before a request line.
        if data[pos] not in b"\r\n":
            return pos
        blank = data[pos : pos + MAX_BLANK + 1]
        skipped = len(blank) - len(blank.lstrip(b"\r\n"))
        self._blank += skipped
        if self._blank > MAX_BLANK:
            raise RequestError(400, "malformed request: empty lines instead of a request line")
        return pos + skipped

    def _take_line(self, data: bytes, pos: int, stop: int) -> int:
        end = data.find(b"\n", pos, stop) + 1 or stop
        old = len(self._head)
        self._head = line = self._head + data[pos:end]
        if not old and is_plain_line(line):
            self._judge(line)
            self._expect_fields(_HEADERS)
            return end
        stand_in = b""
        space = line.find(b" ")
        if space < 0 or space >= old:
            # llhttp knows some methods only, and is told of none before its end was seen.
            judge_method(line if space < 0 else line[:space])
            if space < 0:
                return end
            stand_in = b"CONNECT" if line.startswith(b"CONNECT ") else b"GET"
            old = space
        # A fault is raised at its byte, after llhttp has judged the bytes before it.
        cut = len(line)
        fault = None
        spaces = line.find(b"  ", old - 1 if old > space else old)
        if spaces >= 0:
            cut = spaces + 1
            fault = RequestError(400, "malformed request: two spaces in the request line")
        target = space + 1
        target_end = line.find(b" ", target)
        length = (cut if target_end < 0 else target_end) - target
        if length > MAX_TARGET:
            cut = target + MAX_TARGET + 1
            fault = RequestError(414, f"the request target is longer than {MAX_TARGET} bytes")
        piece = line[old : max(old, cut)]
        if target_end >= 0:
            version = target_end + 1
            # Compiled, a slice must not end before it begins.
            name_end = max(version, min(version + 5, cut))
            if not b"HTTP/".startswith(line[version:name_end]):
                piece = line[old:version] if old < version else b""
                fault = RequestError(400, "malformed request: the protocol is not HTTP")
            elif old <= version + 7 < cut and _LATER.fullmatch(line, version, version + 8):
                # llhttp does not know it, and is told the one that it is served as.
                piece = line[old : version + 7] + b"1" + line[version + 8 : cut]
        self._judge(stand_in + piece)
        if fault is not None:
            raise fault
        if line.endswith(b"\n"):
            judge_line(line)
            self._expect_fields(_HEADERS)
        return end

    def _expect_fields(self, state: int) -> None:
        self._state = state
        self._section = b"\r\n"
        self._line_feeds = 0

    def _take_fields(self, data: bytes, pos: int, stop: int, what: str) -> tuple[int, bool]:
        """Take field lines up to the empty line after them. Returns where it stopped, and
        whether the empty line was seen."""
        section = self._section
        # The fields may have their limit and the empty line; then they must be over.
        full = pos + MAX_BLOCK + 4 - len(section)
        end = min(stop, full)
        # The end may straddle what came before and what comes now.
        old = section[-3:]
        found = (old + data[pos:end]).find(b"\r\n\r\n")
        if found >= 0:
            end = pos + found + 4 - len(old)
        room = MAX_FIELDS + 1 - self._line_feeds
        feeds = data.count(b"\n", pos, end)
        too_many = feeds >= room
        if feeds > room or (too_many and found < 0):
            end = pos
            for _ in range(room):
                end = data.find(b"\n", end) + 1
            found = -1
        piece = data[pos:end]
        self._line_feeds += feeds
        self._judge(piece)
        self._section = section + piece
        if found < 0:
            if too_many:
                raise RequestError(431, f"more than {MAX_FIELDS} {what} fields")
            if end == full:
                raise RequestError(431, f"the {what} fields are longer than {MAX_BLOCK} bytes")
        return end, found >= 0

    def _take_headers(self, data: bytes, pos: int, stop: int) -> int:
        end, whole = self._take_fields(data, pos, stop, "header")
        if whole:
            self._open()
        return end

    def _open(self) -> None:
        """The head is complete: judge it as a whole, and expect what follows it."""
        if not self._heads:
            raise RequestError(400, "malformed request: the head is not complete")
        line = self._head
        method, target, version = line[:-2].decode("latin-1").split(" ")
        block = self._section[:-4]
        fields = HeaderBlock(self._section, block.split(b"\r\n"), None)
        modern = version != "HTTP/1.0"
        framing = judge_fields(fields.headers, modern=modern)
        request: HttpRequest
        if modern:
            request = HttpRequest(method, target, fields, fields.facts.persists)
        else:
            request = Http10Request(method, target, fields, fields.facts.persists_http10)
        if target[0] not in "/*":
            request.headers = with_host(fields.headers, authority(target))
        self._begin(request, framing, len(line) + len(block) + 2)

    def _begin(self, request: HttpRequest, framing: Framing, size: int) -> None:
        """Expect what follows the head, which has so many bytes."""
        self._judge_size(size + framing.length)
        self._request = request
        self._expecting = framing.expects_continue
        if framing.chunked:
            self._chunks = ChunkedBody()
            self._state = _CHUNKS
        elif framing.length:
            self._body = []
            self._left = framing.length
            self._state = _BODY
        else:
            self._complete(b"")

    def _judge_size(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise RequestError(413, _TOO_LARGE)

    def _take_body(self, data: bytes, pos: int, stop: int) -> int:
        end = min(stop, pos + self._left)
        self._left -= end - pos
        body = self._body
        if not self._left and not body:
            self._complete(data[pos:end])  # it came in one piece
            return end
        if end - pos >= _LARGE_PIECE:
            # Copied once, when all of them are there.
            body.append(data if end - pos == len(data) else memoryview(data)[pos:end])
        elif body and isinstance(body[-1], bytearray):
            body[-1] += data[pos:end]
        else:
            body.append(bytearray(data[pos:end]))
        if not self._left:
            self._body = []
            self._complete(b"".join(body))
        return end

    def _take_chunks(self, data: bytes, pos: int, stop: int) -> int:
        chunks = self._chunks
        assert chunks is not None
        room = None if self._limit is None else self._limit - self._used
        end = chunks.feed(data, pos, stop, room)
        if chunks.complete:
            self._expect_fields(_TRAILERS)
        return end

    def _take_trailers(self, data: bytes, pos: int, stop: int) -> int:
        chunks = self._chunks
        assert chunks is not None
        assert self._request is not None
        if len(self._section) == 2:
            if stop - pos >= 2 and data[pos : pos + 2] == b"\r\n":
                self._complete(bytes(chunks.body))  # there are none, as nearly always
                return pos + 2
            # The fields' syntax is judged as that of a head.
            self._renew()
            self._judge(b"GET / HTTP/1.1\r\n")
        end, whole = self._take_fields(data, pos, stop, "trailer")
        if whole:
            trailers = CIMultiDict(split_fields(self._section[:-4]))
            if trailers:
                self._request._trailers = CIMultiDictProxy(trailers)
            self._complete(bytes(chunks.body))
        return end

    def _complete(self, body: bytes) -> None:
        """The request is whole."""
        request = self._request
        assert request is not None
        request.body = body
        self._say(request)
        self._go_past(request)

    def _go_past(self, request: HttpRequest) -> None:
        """It has ended: expect the next."""
        self._request = self._chunks = None
        self._finish()
        if request.keep_alive:
            if request.upgrade is not None:
                # Until it is answered nobody knows what follows.
                self._say(HOLD)
                self._error = _ASK_AGAIN
                self._state = HELD
            # llhttp did not see the end, or may believe that nothing follows.
            self._renew()
        else:
            self._state = _CLOSED
