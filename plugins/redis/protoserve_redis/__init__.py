"""Redis' protocol, RESP2 and RESP3, for protoserve."""

from protoserve_redis.arguments import integer, options, real, text_of, timeout
from protoserve_redis.command import Command
from protoserve_redis.commands import CommandTable
from protoserve_redis.glob import Glob, glob
from protoserve_redis.messages import RedisRequest, RedisResponse
from protoserve_redis.parser import RedisParser
from protoserve_redis.serialiser import encode
from protoserve_redis.server import REDIS_SPEC, RedisServerTask, WFRedisServer, WFRedisTask
from protoserve_redis.session import RedisSession, session_of
from protoserve_redis.values import (
    NO_REPLY,
    NULL_ARRAY,
    OK,
    PONG,
    QUEUED,
    Attributed,
    BigNumber,
    Push,
    Raw,
    RedisError,
    SimpleString,
    Verbatim,
)

__all__ = [
    "NO_REPLY",
    "NULL_ARRAY",
    "OK",
    "PONG",
    "QUEUED",
    "REDIS_SPEC",
    "Attributed",
    "BigNumber",
    "Command",
    "CommandTable",
    "Glob",
    "Push",
    "Raw",
    "RedisError",
    "RedisParser",
    "RedisRequest",
    "RedisResponse",
    "RedisServerTask",
    "RedisSession",
    "SimpleString",
    "Verbatim",
    "WFRedisServer",
    "WFRedisTask",
    "encode",
    "glob",
    "integer",
    "options",
    "real",
    "session_of",
    "text_of",
    "timeout",
]
