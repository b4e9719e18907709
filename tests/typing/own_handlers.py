"""What a checker knows of ``task.req`` and ``task.resp`` in handlers: functions, coroutine
functions, methods and lambdas, of a server class, of a spec, and of a spec with a task class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

from own_protocol import Answer, Lines, LineServer, LineTask, whole

from protoserve import ProtocolSpec, WFServer, WFServerTask, load_protocol
from protoserve_http import HTTP_SPEC, HttpRequest, HttpResponse, WFHttpServer, WFHttpTask
from protoserve_redis import REDIS_SPEC, RedisRequest, RedisResponse, WFRedisServer, WFRedisTask

PLAIN = ProtocolSpec[str, Answer](
    name="plain", message_in=Lines, message_out=whole, response=Answer
)
INFERRED = ProtocolSpec(name="plain", message_in=Lines, message_out=whole, response=Answer)
TASKS = ProtocolSpec[str, Answer, LineTask](
    name="tasks", message_in=Lines, message_out=whole, response=Answer, task=LineTask
)
INFERRED_TASKS = ProtocolSpec(
    name="tasks", message_in=Lines, message_out=whole, response=Answer, task=LineTask
)


class Spec(ProtocolSpec[str, Answer]):
    """Without a task class of its own."""


class TaskSpec(ProtocolSpec[str, Answer, LineTask]):
    """With one."""


SPEC = Spec(name="spec", message_in=Lines, message_out=whole, response=Answer)
TASK_SPEC = TaskSpec(name="spec", message_in=Lines, message_out=whole, response=Answer)


def function(task: WFServerTask[str, Answer]) -> None:
    assert_type(task.req, str)
    assert_type(task.resp, Answer)
    assert_type(task.server, WFServer[str, Answer])


async def coroutine(task: WFServerTask[str, Answer]) -> None:
    assert_type(task.req, str)
    assert_type(task.resp, Answer)


def own_task(task: LineTask) -> None:
    assert_type(task.req, str)
    assert_type(task.resp, Answer)
    assert_type(task.words, list[str])


async def own_task_later(task: LineTask) -> None:
    assert_type(task.req, str)


class Application:
    def __call__(self, task: WFServerTask[str, Answer]) -> None:
        task.resp.text = task.req

    async def later(self, task: WFServerTask[str, Answer]) -> None:
        task.resp.text = task.req


def anything(task: Any) -> None:
    task.resp.text = task.req


def set_text(answer: Answer, text: str) -> None:
    answer.text = text


assert_type(WFServer(PLAIN, function), WFServer[str, Answer])
for handler in (function, coroutine, Application(), Application().later, anything):
    WFServer(PLAIN, handler)
WFServer(INFERRED, function)
WFServer(SPEC, coroutine)
# The task of a lambda is known, too: it could not be given to set_text otherwise.
assert_type(WFServer(PLAIN, lambda task: set_text(task.resp, task.req)), WFServer[str, Answer])

# A task class of its own: handlers take that, or what it is made from.
WFServer(TASKS, own_task)
WFServer(TASKS, own_task_later)
WFServer(INFERRED_TASKS, own_task)
WFServer(TASK_SPEC, own_task)
WFServer(TASKS, function)
WFServer(TASKS, lambda task: set_text(task.resp, task.words[0]))
LineServer(own_task)
LineServer(own_task_later)


def http(task: WFHttpTask) -> None:
    assert_type(task.req, HttpRequest)
    assert_type(task.resp, HttpResponse)


async def http_later(task: WFHttpTask) -> None:
    assert_type(task.req, HttpRequest)


def http_then_lines(task: WFHttpTask) -> None:
    task.upgrade(TASKS, own_task)


def redis(task: WFRedisTask) -> None:
    assert_type(task.req, RedisRequest)
    assert_type(task.resp, RedisResponse)


assert_type(WFServer(HTTP_SPEC, http), WFServer[HttpRequest, HttpResponse])
WFServer(HTTP_SPEC, http_later)
WFHttpServer(http)
WFHttpServer(http_then_lines)
WFHttpServer(http_later)
WFHttpServer(lambda task: task.resp.write(task.req.method))
WFServer(REDIS_SPEC, redis)
WFRedisServer(redis)

# Of a protocol that is asked for by name nothing is known.
WFServer(load_protocol("http"), http)


def register_all(register: Callable[[ProtocolSpec[Any, Any]], None]) -> None:
    register(PLAIN)
    register(TASKS)
