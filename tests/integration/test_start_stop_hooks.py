"""on_start and on_stop of an application, and how a handler learns that the stop has begun."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from loops import PLACES, RUNNING

from protoserve import ConfigError, timer
from protoserve.events import ListenerStarted
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask
from protoserve_redis import CommandTable, WFRedisServer


def test_functions_are_called_around_everything_else() -> None:
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        notes.append("request")
        task.set_callback(
            lambda t: t.series.push_back(timer(0.02, lambda _: notes.append("rest")))
        )

    server = WFHttpServer(
        process,
        on_start=lambda s: notes.append(f"start {s.address[1] > 0}"),
        on_stop=lambda s: notes.append(f"stop {s.conn_count}"),
    )
    server.subscribe(lambda e: notes.append("listens") if isinstance(e, ListenerStarted) else None)
    for _ in range(2):
        notes.clear()
        with server.start("127.0.0.1", 0), RawClient(server.address) as client:
            client.ask()
        assert notes == ["start True", "listens", "request", "rest", "stop 0"]


def test_an_object_with_the_hooks_is_an_application() -> None:
    class Application:
        def __init__(self) -> None:
            self.notes: list[Any] = []

        async def on_start(self, server: WFHttpServer) -> None:
            await asyncio.sleep(0.001)
            self.loop = asyncio.get_running_loop()
            self.notes.append("start")

        async def on_stop(self, server: WFHttpServer) -> None:
            await asyncio.sleep(0.001)
            self.notes.append(("stop", asyncio.get_running_loop() is self.loop))

        async def __call__(self, task: WFHttpTask) -> None:
            assert asyncio.get_running_loop() is self.loop
            self.notes.append("request")

    application = Application()
    with (
        WFHttpServer(application).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask().status == 200
    assert application.notes == ["start", "request", ("stop", True)]


def test_in_the_running_loop_requests_wait_for_on_start() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        notes: list[str] = []
        opened = asyncio.Event()

        async def on_start(server: WFHttpServer) -> None:
            assert asyncio.get_running_loop() is loop
            await opened.wait()
            notes.append("start")

        async def on_stop(server: WFHttpServer) -> None:
            await asyncio.sleep(0)
            notes.append("stop")

        async def process(task: WFHttpTask) -> None:
            notes.append("request")

        server = WFHttpServer(process, on_start=on_start, on_stop=on_stop)
        server.start("127.0.0.1", 0)

        def ask() -> int:
            with RawClient(server.address) as client:
                return client.ask().status

        asked = asyncio.create_task(asyncio.to_thread(ask))
        await asyncio.sleep(0.05)
        assert notes == []
        opened.set()
        async with server:
            assert await asked == 200
        assert notes == ["start", "request", "stop"]

    asyncio.run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_on_start_raises_ends_the_start(asynchronous: bool) -> None:
    notes: list[str] = []

    def on_start(server: WFHttpServer) -> None:
        raise ValueError("no database")

    async def on_start_later(server: WFHttpServer) -> None:
        await asyncio.sleep(0)
        raise ValueError("no database")

    async def coroutine(task: WFHttpTask) -> None:
        """Is never called."""

    server = WFHttpServer(
        coroutine if asynchronous else lambda task: None,
        on_start=on_start_later if asynchronous else on_start,
        on_stop=lambda s: notes.append("stop"),
    )
    with pytest.raises(ValueError, match="no database"):
        server.start("127.0.0.1", 0)
    assert server.wait_finish(PATIENCE)
    assert notes == []  # what was not opened is not closed
    # It may be started again.
    server.set_hooks(None, None)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        assert client.ask().status == 200


def test_what_on_start_raises_in_the_running_loop() -> None:
    async def main() -> None:
        async def on_start(server: WFHttpServer) -> None:
            await asyncio.sleep(0)
            raise ValueError("no database")

        async def process(task: WFHttpTask) -> None:
            """Is never called."""

        with pytest.raises(ValueError, match="no database"):
            async with WFHttpServer(process, on_start=on_start).start("127.0.0.1", 0):
                raise AssertionError("it does not serve")

    asyncio.run(main())


def test_a_stop_during_on_start_in_the_running_loop() -> None:
    async def main() -> None:
        notes: list[str] = []
        opened = asyncio.Event()

        async def on_start(server: WFHttpServer) -> None:
            await opened.wait()
            notes.append("start")

        async def process(task: WFHttpTask) -> None:
            """Is never called."""

        server = WFHttpServer(
            process, on_start=on_start, on_stop=lambda s: notes.append("stop")
        ).start("127.0.0.1", 0)
        server.shutdown()
        asyncio.get_running_loop().call_later(0.02, opened.set)
        await server.aclose()
        assert notes == ["start", "stop"]

    asyncio.run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_on_stop_raises_is_logged(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def on_stop(server: WFHttpServer) -> None:
        raise ValueError("a fault")

    async def on_stop_later(server: WFHttpServer) -> None:
        raise ValueError("a fault")

    server = WFHttpServer(lambda task: None, on_stop=on_stop_later if asynchronous else on_stop)
    server.start("127.0.0.1", 0)
    assert server.stop() == 0
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "on_stop" in record.getMessage()


def test_an_on_stop_that_does_not_end_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    canceled = threading.Event()

    async def on_stop(server: WFHttpServer) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            canceled.set()

    params = HTTP_SPEC.params.replace(shutdown_timeout=0.1)
    server = WFHttpServer(lambda task: None, params, on_stop=on_stop).start("127.0.0.1", 0)
    server.stop()
    assert canceled.wait(PATIENCE)


def test_on_stop_comes_after_handlers_that_were_cut() -> None:
    gate = threading.Event()
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        gate.wait(PATIENCE)

    params = HTTP_SPEC.params.replace(shutdown_timeout=0.05)
    server = WFHttpServer(process, params, on_stop=lambda s: notes.append("stop"))
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(get())
        eventually(lambda: [c for c in server.connections() if c.session])
        assert server.stop() == 1
        assert notes == ["stop"]
        gate.set()
    assert notes == ["stop"]


@pytest.mark.parametrize("hook", [5, "open", lambda: None, lambda a, b: None])
def test_hooks_that_cannot_be_called(hook: Any) -> None:
    for name in "on_start", "on_stop":
        with pytest.raises(ConfigError, match=name):
            WFHttpServer(lambda task: None, **{name: hook})


def test_redis_has_them_too() -> None:
    notes: list[str] = []
    server = WFRedisServer(
        CommandTable(),
        on_start=lambda s: notes.append("start"),
        on_stop=lambda s: notes.append("stop"),
    )
    with server.start("127.0.0.1", 0):
        assert notes == ["start"]
    assert notes == ["start", "stop"]


# -- learning of the stop ------------------------------------------------------------------


def test_a_function_that_waits_for_the_stop() -> None:
    entered = threading.Event()

    def process(task: WFHttpTask) -> None:
        entered.set()
        rounds = 0
        while not task.server.wait_stopping(0.005):
            rounds += 1
        task.resp.write(str(rounds > 0))

    server = WFHttpServer(process).start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        client.send(get())
        assert entered.wait(PATIENCE)
        threading.Timer(0.05, server.shutdown).start()
        assert client.reply().body == b"True"
        assert server.stop() == 0
    assert server.wait_stopping(0)  # it has


@pytest.mark.parametrize("place", PLACES)
def test_a_coroutine_that_waits_for_the_stop(place: str) -> None:
    from loops import serving

    async def process(task: WFHttpTask) -> None:
        asyncio.get_running_loop().call_later(0.02, task.server.shutdown)
        await task.server.until_stopping()
        await task.server.until_stopping()  # at once
        task.resp.write("stopping")

    with serving(place, process) as server, RawClient(server.address) as client:
        assert client.ask().body == b"stopping"
        if place in RUNNING:
            eventually(lambda: server.conn_count == 0)


def test_task_on_stopping_ends_with_the_task() -> None:
    notes: list[str] = []
    entered = threading.Semaphore(0)

    def process(task: WFHttpTask) -> None:
        task.on_stopping(lambda t: notes.append(t.req.path))
        entered.release()
        if task.req.path == "/wait":
            task.server.wait_stopping(PATIENCE)

    server = WFHttpServer(process).start("127.0.0.1", 0)
    with RawClient(server.address) as client, RawClient(server.address) as other:
        for _ in range(3):
            client.ask("/over")
        other.send(get("/wait"))
        for _ in range(4):
            assert entered.acquire(timeout=PATIENCE)
        assert len(server._stop_notice) == 1 + 1  # its own, and that of wait_stopping
        server.shutdown()
        assert other.reply().status == 200
        assert server.stop() == 0
    assert notes == ["/wait"]


def test_server_on_stopping(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    calls: list[Callable[[], object]] = [lambda: notes.append("a"), lambda: 1 / 0]
    server = WFHttpServer(lambda task: None).start("127.0.0.1", 0)
    for call in calls:
        server.on_stopping(call)
    never = server.on_stopping(lambda: notes.append("never"))
    assert never.cancel()
    assert not never.cancel()
    # While it stops: at once.
    server.on_stopping(lambda: server.on_stopping(lambda: notes.append("late")))
    server.stop()
    assert notes == ["a", "late"]
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(TypeError):
        server.on_stopping("no function")  # type: ignore[arg-type]
