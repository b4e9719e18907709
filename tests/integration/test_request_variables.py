"""Each request has context variables of its own, wherever its work runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from loops import PLACES, serving

from protoserve import dynamic, empty, go, timer
from protoserve_http import WFHttpServer, WFHttpTask

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


def name(task: WFHttpTask) -> str:
    return task.req.path.strip("/")


def test_nothing_leaks_from_one_request_to_another() -> None:
    def process(task: WFHttpTask) -> None:
        task.resp.write(user.get())
        user.set(name(task))

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        for _ in range(2):
            with RawClient(server.address) as client:
                for path in "/a", "/b", "/c":
                    assert client.ask(path).body == b"nobody"
                client.send(get("/d") + get("/e"))
                assert client.reply().body == client.reply().body == b"nobody"
    assert user.get() == "nobody"


@pytest.mark.parametrize("place", PLACES)
def test_nothing_leaks_between_coroutines(place: str) -> None:
    async def process(task: WFHttpTask) -> None:
        task.resp.write(user.get())
        user.set(name(task))
        if task.req.path == "/wait":
            await asyncio.sleep(0.001)
        task.resp.write(f" {user.get()}")

    with serving(place, process) as server, RawClient(server.address) as client:
        for path in "a", "wait", "b", "wait":
            assert client.ask(f"/{path}").body == f"nobody {path}".encode()


def test_it_is_a_copy_of_where_the_server_was_made() -> None:
    def process(task: WFHttpTask) -> None:
        task.resp.write(user.get())

    token = user.set("maker")
    try:
        server = WFHttpServer(process)
    finally:
        user.reset(token)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        assert client.ask().body == b"maker"


def serving_at(
    place: str,
    function: Callable[[WFHttpTask], object],
    process: Callable[[WFHttpTask], Awaitable[object]],
) -> AbstractContextManager[WFHttpServer]:
    """A server with the function as its handler, or with the coroutine in a loop."""
    if place == "function":
        return WFHttpServer(function).start("127.0.0.1", 0)
    return serving(place, process)


def pushed(kind: str, note: Callable[[], None]) -> Any:
    def noting(_: object = None) -> None:
        note()

    async def noting_later(_: object) -> None:
        await asyncio.sleep(0)
        note()

    if kind == "timer":
        return timer(0.001, noting)
    if kind == "go":
        return go(note)
    if kind == "go's callback":
        return go(int, callback=noting)
    if kind == "coroutine callback":
        return timer(0.001, noting_later)
    if kind == "dynamic":
        return dynamic(lambda t: empty(noting))
    return empty(noting)


KINDS = ["timer", "go", "go's callback", "coroutine callback", "dynamic", "empty"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["function", *PLACES])
def test_what_is_pushed_and_the_callback_see_them(place: str, kind: str) -> None:
    seen: list[str] = []

    def function(task: WFHttpTask) -> None:
        user.set(name(task))
        task.series.push_back(pushed(kind, lambda: seen.append(user.get())))
        task.set_callback(lambda t: seen.append(user.get()))

    async def process(task: WFHttpTask) -> None:
        await asyncio.sleep(0)
        function(task)

    with serving_at(place, function, process) as server, RawClient(server.address) as client:
        for path in "first", "second":
            seen.clear()
            assert client.ask(f"/{path}").status == 200
            eventually(lambda: len(seen) == 2)
            assert seen == [path, path]


def test_what_a_task_sets_the_next_one_sees() -> None:
    def process(task: WFHttpTask) -> None:
        task.series.push_back(timer(0.001, lambda t: user.set("first") and None))
        task.series.push_back(timer(0.001, lambda t: task.resp.write(user.get())))

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().body == b"first"


@pytest.mark.parametrize("place", ["function", *PLACES])
def test_the_pieces_of_a_reply_see_them(place: str) -> None:
    def pieces() -> Iterator[str]:
        for _ in range(200):
            yield user.get()

    def function(task: WFHttpTask) -> None:
        user.set(name(task))
        task.resp.headers["Content-Length"] = str(200 * len(name(task)))
        task.resp.body = pieces()

    async def process(task: WFHttpTask) -> None:
        function(task)

    with serving_at(place, function, process) as server, RawClient(server.address) as client:
        for path in "one", "two":
            assert client.ask(f"/{path}").body == path.encode() * 200


def test_on_close_sees_them() -> None:
    seen: list[str] = []
    entered, opened = threading.Event(), threading.Event()

    def process(task: WFHttpTask) -> None:
        user.set("mine")
        task.on_close(lambda t: seen.append(user.get()))
        entered.set()
        assert opened.wait(PATIENCE)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        client = RawClient(server.address)
        client.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset
        client.send(get())
        assert entered.wait(PATIENCE)
        client.close()
        eventually(lambda: seen)
        opened.set()
    assert seen == ["mine"]


def test_they_carry_through_one_series() -> None:
    seen: list[str] = []

    def process(task: WFHttpTask) -> None:
        task.series.push_back(empty(lambda t: user.set("by the first") and None))
        task.series.push_back(empty(lambda t: seen.append(user.get())))
        task.series.push_back(timer(0.001, lambda t: seen.append(user.get())))
        task.set_callback(lambda t: seen.append(user.get()))

    with (
        WFHttpServer(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 200
        eventually(lambda: len(seen) == 3)
    assert seen == ["by the first"] * 3


@pytest.mark.parametrize("kind", ["generator", "async generator"])
@pytest.mark.parametrize("place", PLACES)
def test_the_pieces_after_a_coroutine_that_waited(place: str, kind: str) -> None:
    def pieces() -> Iterator[str]:
        yield user.get()
        yield user.get()

    async def async_pieces() -> AsyncIterator[str]:
        yield user.get()
        await asyncio.sleep(0.001)
        yield user.get()

    async def process(task: WFHttpTask) -> None:
        user.set("mine")
        await asyncio.sleep(0.001)
        task.resp.headers["Content-Length"] = "8"
        task.resp.body = pieces() if kind == "generator" else async_pieces()

    with serving(place, process) as server, RawClient(server.address) as client:
        assert client.ask().body == b"minemine"
