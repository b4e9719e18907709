"""The text protocol of memcached (its doc/protocol.txt): requests, replies, and how they look
on the wire. What they do is the application's: see :mod:`memcached_protocol.cache`."""

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from protoserve import NeedData, ProtocolError, ProtocolSpec, ServerParams, WFServerTask
from protoserve.framing import FramedParser, Parsing

__all__ = ["MEMCACHED_SPEC", "MemcachedParser", "MemcachedTask", "Reply", "Request"]

LINE_LIMIT: Final = 256 * 1024
"""Bytes of a command line: a thousand keys of 250."""

WORDS: Final = {
    **dict.fromkeys([b"set", b"add", b"replace", b"append", b"prepend"], 4),
    **dict.fromkeys([b"incr", b"decr", b"touch"], 2),
    **dict.fromkeys([b"delete", b"verbosity"], 1),
    b"cas": 5,
    b"flush_all": 0,
}
"""How many words follow a command, at least, that may end with ``noreply``."""

STORAGE: Final = frozenset([b"set", b"add", b"replace", b"append", b"prepend", b"cas"])
"""Commands that data follow."""


class Request(NamedTuple):
    """A command line, and the data that follow it where it stores something."""

    verb: bytes
    words: list[bytes]
    data: bytes = b""
    noreply: bool = False


@dataclass(slots=True)
class Reply:
    """Lines with their ends, and data."""

    pieces: list[bytes] = field(default_factory=list)


MemcachedTask: TypeAlias = WFServerTask[Request, Reply]


class MemcachedParser(FramedParser[Request]):
    """Command lines end with LF or CR LF, data with CR LF. Where nobody could know how much
    follows, the connection ends: data must not be taken for commands."""

    _data_follow = False

    def messages(self) -> Parsing[Request]:
        while True:
            line = (yield from self.inbox.until(b"\n", limit=LINE_LIMIT)).removesuffix(b"\r")
            verb, *words = [word for word in line.split(b" ") if word] or [b""]
            noreply = len(words) > WORDS.get(verb, len(words)) and words[-1] == b"noreply"
            if noreply:
                words.pop()
            data = b""
            if verb in STORAGE:
                data = yield from self._data(verb, words)
            yield Request(verb, words, data, noreply)

    def _data(self, verb: bytes, words: list[bytes]) -> Generator[NeedData, None, bytes]:
        if len(words) != WORDS[verb]:
            raise ProtocolError(f"{len(words)} words after {verb.decode()}", reply=b"ERROR\r\n")
        if not re.fullmatch(rb"[0-9]{1,10}", words[3]):
            raise ProtocolError("bad command line format")
        self._data_follow = True
        data = yield from self.inbox.exactly(int(words[3]) + 2)
        self._data_follow = False
        if not data.endswith(b"\r\n"):
            raise ProtocolError("bad data chunk")
        return data[:-2]

    def farewell(self, fault: str) -> bytes:
        if self._data_follow:
            return b"SERVER_ERROR object too large for cache\r\n"
        return f"CLIENT_ERROR {fault}\r\n".encode()


def _reply_to_failure(request: Request, error: BaseException) -> Reply:
    return Reply([] if request.noreply else [b"SERVER_ERROR internal error\r\n"])


MEMCACHED_SPEC: Final = ProtocolSpec[Request, Reply](
    name="memcached",
    message_in=MemcachedParser,
    message_out=lambda reply: reply.pieces,
    response=Reply,
    error_response=_reply_to_failure,
    summary=lambda request, reply: {"command": request.verb.decode("latin-1")},
    demo="memcached_protocol.cache:process",
    # memcached has no time limits either: clients keep their connections in pools.
    params=ServerParams(
        keep_alive_timeout=None, peer_response_timeout=None, request_size_limit=4 * 1024 * 1024
    ),
    url_scheme="memcached",
)
