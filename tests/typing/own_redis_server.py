"""What an application makes of the Redis plugin's classes."""

from __future__ import annotations

from protoserve import CommConnection
from protoserve_redis import (
    CommandTable,
    RedisError,
    RedisParser,
    RedisRequest,
    RedisResponse,
    RedisServerTask,
    WFRedisServer,
    WFRedisTask,
)


class Commands(CommandTable): ...


class Error(RedisError): ...


class Parser(RedisParser): ...


class Request(RedisRequest): ...


class Response(RedisResponse): ...


class Task(RedisServerTask): ...


class Server(WFRedisServer):
    def new_session(self, seq: int, conn: CommConnection) -> WFRedisTask:
        task = super().new_session(seq, conn)
        task.limit_unauthenticated(True)
        return task


commands = Commands()


@commands.command("VISIT", arity=2)
def visit(task: WFRedisTask, page: bytes) -> int:
    return len(page)


def serve() -> None:
    with Server(commands).start("127.0.0.1", 0) as server:
        server.wait_for_signal()
