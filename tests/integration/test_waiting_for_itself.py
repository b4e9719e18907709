"""stop() and its kin where they would wait for themselves: refused, with advice that works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from loops import PLACES, serving

from protoserve import (
    UsageError,
    coroutine,
    counter,
    empty,
    go,
    mailbox,
    parallel,
    timer,
)
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask

PARAMS = HTTP_SPEC.params.replace(shutdown_timeout=5)


class Attempts:
    """Calls a method of the server where it must be refused, and keeps what it said."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.said: list[str] = []
        self.made = threading.Event()

    def __call__(self, *_: object) -> None:
        try:
            getattr(self.server, self.method)()
        except UsageError as error:
            self.said.append(str(error))
        else:
            self.said.append("it was not refused")
        self.made.set()

    server: WFHttpServer

    def check(self) -> None:
        assert self.made.wait(PATIENCE)
        for said in self.said:
            assert "call shutdown() there" in said, self.said


def elsewhere(function: Callable[..., object], *args: object) -> None:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def later_elsewhere(function: Callable[..., object], *args: object) -> None:
    """Call it on a thread of the test's, when the handler has returned."""
    timer = threading.Timer(0.03, function, args)
    timer.start()


def in_go(task: WFHttpTask, attempt: Attempts) -> None:
    task.series.push_back(go(attempt))


def in_go_callback(task: WFHttpTask, attempt: Attempts) -> None:
    task.series.push_back(go(int, callback=attempt))


def in_go_after_go(task: WFHttpTask, attempt: Attempts) -> None:
    task.series.push_back(go(int))
    task.series.push_back(go(attempt))


def in_parallel(task: WFHttpTask, attempt: Attempts) -> None:
    task.series.push_back(parallel(parallel(go(attempt), empty()), empty()))


def in_parallel_callback(task: WFHttpTask, attempt: Attempts) -> None:
    task.series.push_back(parallel(go(int), go(int), callback=attempt))


def in_mailbox(task: WFHttpTask, attempt: Attempts) -> None:
    box = mailbox(callback=attempt)
    task.series.push_back(box)
    later_elsewhere(box.send, 1)


def in_counter_and_after(task: WFHttpTask, attempt: Attempts) -> None:
    count = counter(1)
    task.series.push_back(count)
    task.series.push_back(empty(attempt))
    later_elsewhere(count.count)


def in_series_callback(task: WFHttpTask, attempt: Attempts) -> None:
    task.series.push_back(go(int))
    task.set_callback(lambda task: task.series.push_back(go(int)))
    task.series.set_callback(attempt)


def in_timer(task: WFHttpTask, attempt: Attempts) -> None:
    task.series.push_back(timer(0, callback=attempt))


def in_task_callback(task: WFHttpTask, attempt: Attempts) -> None:
    task.set_callback(attempt)


def in_on_close(task: WFHttpTask, attempt: Attempts) -> None:
    task.connection.on_close(attempt)
    task.series.push_back(go(task.connection.close))


def in_on_close_elsewhere(task: WFHttpTask, attempt: Attempts) -> None:
    task.connection.on_close(attempt)
    box = mailbox()
    task.series.push_back(box)

    def close() -> None:
        task.connection.close()
        box.send(None)

    later_elsewhere(close)


PLACES_OF_FUNCTIONS = [
    in_go,
    in_go_callback,
    in_go_after_go,
    in_parallel,
    in_parallel_callback,
    in_mailbox,
    in_counter_and_after,
    in_series_callback,
    in_timer,
    in_task_callback,
    in_on_close,
    in_on_close_elsewhere,
]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("method", ["stop", "wait_finish"])
@pytest.mark.parametrize("prepare", PLACES_OF_FUNCTIONS)
def test_refused(
    prepare: Callable[[WFHttpTask, Attempts], None], method: str, asynchronous: bool
) -> None:
    attempt = Attempts(method)

    def process(task: WFHttpTask) -> None:
        prepare(task, attempt)

    async def async_process(task: WFHttpTask) -> None:
        prepare(task, attempt)

    server = WFHttpServer(async_process if asynchronous else process, PARAMS)
    attempt.server = server
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(get())
        attempt.check()
        assert server.stop() == 0


async def go_awaited(attempt: Attempts) -> None:
    await go(attempt)


async def go_awaited_later(attempt: Attempts) -> None:
    await asyncio.sleep(0)
    await go(attempt)


async def mailbox_awaited(attempt: Attempts) -> None:
    box = mailbox(callback=attempt)
    asyncio.get_running_loop().call_later(0, elsewhere, box.send, 1)
    await box


async def parallel_awaited(attempt: Attempts) -> None:
    await parallel(go(attempt), empty())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wait", [go_awaited, go_awaited_later, mailbox_awaited, parallel_awaited])
def test_refused_in_what_a_coroutine_awaits(
    wait: Callable[[Attempts], Awaitable[None]], place: str
) -> None:
    attempt = Attempts("stop")

    async def process(task: WFHttpTask) -> None:
        await wait(attempt)

    with serving(place, process, PARAMS) as server:
        attempt.server = server
        with RawClient(server.address) as client:
            assert client.ask().status == 200
        attempt.check()


async def at_once(task: WFHttpTask, attempt: Callable[[], Awaitable[None]]) -> None:
    await attempt()


async def later(task: WFHttpTask, attempt: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(0)
    await attempt()


async def pushed(task: WFHttpTask, attempt: Callable[[], Any]) -> None:
    task.series.push_back(coroutine(attempt()))


async def callback(task: WFHttpTask, attempt: Callable[[], Any]) -> None:
    async def after(_: WFHttpTask) -> None:
        await attempt()

    task.set_callback(after)


async def callback_of_a_task(task: WFHttpTask, attempt: Callable[[], Any]) -> None:
    async def after(_: object) -> None:
        await attempt()

    task.series.push_back(go(int, callback=after))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", [at_once, later, pushed, callback, callback_of_a_task])
def test_aclose_is_refused(
    way: Callable[[WFHttpTask, Callable[[], Any]], Awaitable[None]], place: str
) -> None:
    said: list[str] = []
    tried = threading.Event()

    async def process(task: WFHttpTask) -> None:
        async def attempt() -> None:
            try:
                await task.server.aclose()
            except UsageError as error:
                said.append(str(error))
            tried.set()

        await way(task, attempt)

    with serving(place, process, PARAMS) as server:
        for _ in range(2):
            with RawClient(server.address) as client:
                assert client.ask().status == 200
            assert tried.wait(PATIENCE)
            tried.clear()
    assert len(said) == 2
    for text in said:
        assert "call shutdown() there" in text
        assert "asyncio.create_task(server.aclose())" in text


def test_aclose_is_refused_in_a_coroutine_that_a_function_pushed() -> None:
    said: list[str] = []

    def process(task: WFHttpTask) -> None:
        async def attempt() -> None:
            with pytest.raises(UsageError) as caught:
                await task.server.aclose()
            said.append(str(caught.value))

        task.series.push_back(coroutine(attempt()))

    with serving(PLACES[0], process, PARAMS) as server, RawClient(server.address) as client:
        assert client.ask().status == 200
    assert "call shutdown() there" in said[0]


@pytest.mark.parametrize("place", PLACES)
def test_advice_for_coroutines_works(place: str) -> None:
    kept = []

    async def process(task: WFHttpTask) -> None:
        kept.append(asyncio.create_task(task.server.aclose()))
        await asyncio.sleep(0.01)
        task.resp.write("the last")

    with serving(place, process, PARAMS) as server:
        with RawClient(server.address) as client:
            reply = client.ask()
            assert (reply.body, reply.closes) == (b"the last", True)
        assert server.wait_finish(PATIENCE)
        eventually(kept[0].done)
        assert server.stop() == 0


def test_advice_for_functions_works() -> None:
    stopped: list[int] = []
    stopper = threading.Thread(target=lambda: stopped.append(server.stop()))

    def process(task: WFHttpTask) -> None:
        stopper.start()
        while not task.server.stopping:
            pass
        task.resp.write("the last")

    server = WFHttpServer(process, PARAMS).start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        reply = client.ask()
        assert (reply.body, reply.closes) == (b"the last", True)
    stopper.join(PATIENCE)
    assert stopped == [0]


def test_what_waits_for_nobody_may_stop_the_server() -> None:
    """A go function, or a callback on a thread of the user's, in a series of its own."""
    stopped: list[object] = []

    def process(task: WFHttpTask) -> None:
        go(lambda: stopped.append(task.server.stop())).start()

    server = WFHttpServer(process, PARAMS).start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        assert client.ask().status == 200
    assert server.wait_finish(PATIENCE)
    count = counter(1, callback=lambda _: stopped.append(server.stop()))
    count.start()
    server.start("127.0.0.1", 0)
    count.count()
    assert stopped[-1] == 0
    server.stop()


def test_another_server_may_be_closed_in_a_coroutine() -> None:
    other = WFHttpServer(lambda task: None, PARAMS).start("127.0.0.1", 0)

    async def process(task: WFHttpTask) -> None:
        task.resp.write(str(await other.aclose()))

    with serving(PLACES[0], process, PARAMS) as server, RawClient(server.address) as client:
        assert client.ask().body == b"0"


def test_waiting_for_a_signal_in_the_loops_thread_is_refused() -> None:
    async def process(task: WFHttpTask) -> None:
        task.resp.write("x")

    async def main() -> None:
        async with WFHttpServer(process, PARAMS).start("127.0.0.1", 0) as server:
            with pytest.raises(UsageError, match="wait_for_signal"):
                server.wait_for_signal()

    asyncio.run(main())
