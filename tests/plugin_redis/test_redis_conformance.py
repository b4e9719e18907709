"""Redis keeps the contract of protocols, with all that is known to be delicate."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from redis_exchanges import command
from test_redis_parser import BAD, GOOD

from protoserve import MessageOut
from protoserve.testing import check_protocol
from protoserve_redis import REDIS_SPEC, RedisParser
from protoserve_redis.framing import UNAUTHENTICATED_ARGS

SHORT = 4096
SAMPLES = [
    *REDIS_SPEC.samples,
    *(
        data
        for data, requests in GOOD
        if len(requests) == 1 and len(data) <= SHORT and not data.startswith(b"*-")
    ),
]
REFUSED = [data for data, _ in BAD if len(data) <= SHORT]
PING = command(b"PING")


def is_reply(reply: bytes) -> bool:
    return reply.startswith(b"-ERR ") and reply.find(b"\r\n") == len(reply) - 2


def encode(request: Any) -> MessageOut:
    return command(*request.args)


def words(data: bytes) -> int:
    return int(data[1 : data.index(b"\r")]) if data.startswith(b"*") else 1


@pytest.mark.timeout(240)  # it computes for long, where the machine is slow
@pytest.mark.parametrize("authenticated", [True, False])
def test_any_bytes_however_they_come(authenticated: bool) -> None:
    spec = dataclasses.replace(
        REDIS_SPEC, message_in=lambda params: RedisParser(params, authenticated=authenticated)
    )
    check_protocol(
        spec,
        [data for data in SAMPLES if authenticated or words(data) <= UNAUTHENTICATED_ARGS],
        refused=[*REFUSED, *(PING + data for data in REFUSED)],
        is_reply=is_reply,
        encode=encode if authenticated else None,  # arguments may be shorter than lines
        examples=300,
    )
