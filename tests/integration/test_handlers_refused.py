"""Handlers that cannot work are refused when the server is made; those that return
something, at the request."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from loopback import RawClient
from loops import PLACES, serving

from protoserve import ConfigError
from protoserve_http import WFHttpServer, WFHttpTask


def generator(task: WFHttpTask) -> Iterator[str]:
    yield "hello"


async def async_generator(task: WFHttpTask) -> AsyncIterator[str]:
    yield "hello"


class Class:
    def __init__(self, task: WFHttpTask) -> None:
        self.task = task


class Generating:
    def __call__(self, task: WFHttpTask) -> Iterator[str]:
        yield "hello"


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An application object, as frameworks make them."""


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return [b"hello"]


@pytest.mark.parametrize(
    ("process", "remedy"),
    [
        (generator, "is a generator function"),
        (async_generator, "is a generator function"),
        (functools.partial(generator), "is a generator function"),
        (Generating(), "is a generator function"),
        (Class, "is the class Class"),
        (wsgi, "looks like a WSGI application"),
        (Asgi(), "looks like an ASGI application"),
        (lambda: None, "process takes ()"),
        (lambda a, b, c, d: None, "process takes (a, b, c, d)"),
        (lambda *, task: None, "process takes (task)"),
    ],
)
def test_refused_when_the_server_is_made(process: Any, remedy: str) -> None:
    with pytest.raises(ConfigError) as info:
        WFHttpServer(process)
    assert remedy in str(info.value)
    assert "process(task)" in str(info.value)


class Method:
    def handle(self, task: WFHttpTask) -> None:
        task.resp.write("ok")

    async def later(self, task: WFHttpTask) -> None:
        task.resp.write("ok")

    def __call__(self, task: WFHttpTask) -> None:
        task.resp.write("ok")

    @staticmethod
    def static(task: WFHttpTask) -> None:
        task.resp.write("ok")


def with_more(task: WFHttpTask, more: int = 1, *rest: object, **options: object) -> None:
    task.resp.write("ok")


@pytest.mark.parametrize(
    "process",
    [
        Method(),
        Method().handle,
        Method().later,
        Method.static,
        with_more,
        functools.partial(with_more, more=2),
        lambda *everything: everything[0].resp.write("ok"),
    ],
)
def test_taken(process: Any) -> None:
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().body == b"ok"


def returning(value: Any) -> dict[str, Callable[[WFHttpTask], Any]]:
    def function(task: WFHttpTask) -> Any:
        task.resp.write("lost")
        return value

    async def at_once(task: WFHttpTask) -> Any:
        return value

    async def later(task: WFHttpTask) -> Any:
        await asyncio.sleep(0.001)
        return value

    def coroutine(task: WFHttpTask) -> Any:
        return later(task)

    return {"function": function, "at once": at_once, "later": later, "coroutine": coroutine}


@pytest.mark.parametrize("kind", ["function", "at once", "later", "coroutine"])
@pytest.mark.parametrize("value", ["hello", {"a": 1}, False, 0, b""])
def test_a_value_that_is_returned_is_an_error(
    kind: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    process = returning(value)[kind]
    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 500
        assert client.ask().status == 500
    records = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(records) == 2
    assert records[0].exc_info is not None
    text = str(records[0].exc_info[1])
    assert f"returned a {type(value).__name__}" in text
    assert "assign to task.resp" in text


@pytest.mark.parametrize("place", PLACES)
def test_in_every_loop(place: str) -> None:
    with (
        serving(place, returning("hello")["later"]) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 500


def test_pushing_as_the_last_thing_is_no_returned_value() -> None:
    def process(task: WFHttpTask) -> Any:
        return task.push(b"HTTP/1.1 103 Early Hints\r\n\r\n")

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client._file.readline() == b"HTTP/1.1 103 Early Hints\r\n"
        client._file.readline()
        assert client.reply().status == 200
