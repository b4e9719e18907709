"""What the HTTP plugin's tests share: ways to feed a parser, and a task without a kernel."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import pytest

from protoserve import HOLD, NEED_DATA, Feedback, MessageParser, ProtocolError, ServerParams
from protoserve.testing import MemoryEngine, connection_of
from protoserve_http import (
    HTTP_SPEC,
    HttpRequest,
    HttpRequestParser,
    HttpServerTask,
    WFHttpServer,
    judge,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "http"


def vectors(kind: str) -> dict[str, tuple[bytes, Any]]:
    """The ``valid`` or ``invalid`` ones on file by name: what is sent, and what is expected."""
    return {
        path.stem: (path.read_bytes(), json.loads(path.with_suffix(".json").read_text()))
        for path in sorted((VECTORS / kind).glob("*.http"))
    }


@dataclass
class Outcome:
    """What a parser made of some bytes."""

    requests: list[HttpRequest] = field(default_factory=list)
    interim: list[bytes] = field(default_factory=list)
    error: str | None = None
    reply: bytes = b""
    partial: bool = False

    @property
    def facts(self) -> list[Any]:
        """What must not depend on how the bytes were split."""
        return [
            *(
                (
                    request.method,
                    request.target,
                    request.version,
                    list(request.headers.items()),
                    request.raw_headers,
                    list(request.trailers.items()),
                    request.body,
                    request.keep_alive,
                )
                for request in self.requests
            ),
            self.error,
            self.partial,
        ]

    @property
    def status(self) -> int:
        """The status of the farewell."""
        return int(self.reply.split(b" ", 2)[1])


def messages(parser: MessageParser[Any], outcome: Outcome) -> Iterator[Any]:
    """What the parser has, besides what it says; that, and its error, is the outcome's."""
    while outcome.error is None:
        try:
            message = parser.next_message()
        except ProtocolError as error:
            outcome.error = str(error)
            outcome.reply = error.reply
            with pytest.raises(ProtocolError):
                parser.next_message()
            return
        if message is NEED_DATA:
            return
        if isinstance(message, Feedback):
            outcome.interim.append(message.data)
        elif message is not HOLD:  # until it is answered, which it is
            yield message


def parse(pieces: Iterable[bytes], params: ServerParams | None = None) -> Outcome:
    """Feed ``pieces`` to a new parser, taking messages after each."""
    parser = HttpRequestParser(params or HTTP_SPEC.params)
    outcome = Outcome()
    for piece in pieces:
        parser.feed(piece)
        outcome.requests += messages(parser, outcome)
    outcome.partial = parser.partial
    parser.close()
    return outcome


def every_byte(data: bytes) -> list[bytes]:
    """``data`` in pieces of one byte."""
    return [data[i : i + 1] for i in range(len(data))]


def request(head: str, **kwargs: Any) -> HttpRequest:
    """The one request of ``head``, lines separated by ``|`` without the last empty one."""
    data = "".join(f"{line}\r\n" for line in [*head.split("|"), ""]).encode("latin-1")
    outcome = parse([data], **kwargs)
    assert outcome.error is None
    (found,) = outcome.requests
    return found


def task_for(head: str, *, closing: bool = False, keep_alive: float = 75.0) -> HttpServerTask:
    """A task that holds the request of ``head``, on a connection that does nothing."""
    server = WFHttpServer(print, HTTP_SPEC.params.replace(keep_alive_timeout=keep_alive))
    engine = MemoryEngine()
    engine.connect(server)
    engine.close()
    connection = connection_of(server)
    server.stopping = closing
    task = HttpServerTask(server, print, 0, connection)
    task.message_in(request(head))
    return task


def sent(task: HttpServerTask) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """The status line, the header fields and the body of the task's reply."""
    out = task.message_out()
    data = bytes(out) if isinstance(out, bytes) else b"".join(bytes(part) for part in out)
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    fields = dict(field.split(b": ", 1) for field in lines)
    assert len(fields) == len(lines)
    return line, fields, body


@contextlib.contextmanager
def counted_feeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What every llhttp is fed that is made meanwhile, in order."""
    feeds: list[bytes] = []
    real = httptools.HttpRequestParser

    class Counting:
        def __init__(self, protocol: object) -> None:
            self.parser = real(protocol)

        def feed_data(self, data: bytes) -> None:
            feeds.append(data)
            self.parser.feed_data(data)

    judge._judges.clear()  # those of before are not counted
    monkeypatch.setattr(httptools, "HttpRequestParser", Counting)
    try:
        yield feeds
    finally:
        judge._judges.clear()
