"""What the Redis plugin's tests share: ways to feed a parser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from protoserve import NEED_DATA, ProtocolError, ServerParams
from protoserve_redis import REDIS_SPEC, RedisParser


@dataclass
class Outcome:
    """What a parser made of some bytes."""

    requests: list[list[bytes]] = field(default_factory=list)
    reply: bytes = b""
    partial: bool = False


def parse(
    pieces: Iterable[bytes],
    params: ServerParams = REDIS_SPEC.params,
    *,
    authenticated: bool = True,
) -> Outcome:
    """Feed ``pieces`` to a new parser, taking requests after each."""
    parser = RedisParser(params, authenticated=authenticated)
    outcome = Outcome()
    for piece in pieces:
        parser.feed(piece)
        while not outcome.reply:
            try:
                message = parser.next_message()
            except ProtocolError as error:
                outcome.reply = bytes(error.reply)
                with pytest.raises(ProtocolError):
                    parser.next_message()
                break
            if message is NEED_DATA:
                break
            outcome.requests.append(message.args)
    outcome.partial = parser.partial
    parser.close()
    return outcome


def every_byte(data: bytes) -> list[bytes]:
    """``data`` in pieces of one byte."""
    return [data[i : i + 1] for i in range(len(data))]


def command(*args: bytes) -> bytes:
    """A request as clients send it."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in args)
