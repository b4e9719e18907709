"""on_start and on_stop of an application, and how a handler learns that the stop has begun."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from loopback import PATIENCE, RawClient, eventually, get
from loops import PLACES, RUNNING, serving
from own_process import run_alone

from protoserve import BindError, ConfigError, UsageError, get_scheduler, timer
from protoserve.application import SharedHooks
from protoserve.events import ListenerStarted
from protoserve.kernel.listener import Listener
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask
from protoserve_redis import CommandTable, WFRedisServer


def function(task: WFHttpTask) -> None:
    task.resp.write("x")


async def coroutine(task: WFHttpTask) -> None:
    task.resp.write("x")


HANDLERS = [function, coroutine]


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
        eventually(lambda: [c for c in server.connections() if c.entry.exchanges.session])
        assert server.stop() == 1
        assert notes == ["stop"]
        gate.set()
    assert notes == ["stop"]


def test_a_hook_without_a_signature() -> None:
    # A function in C, of which inspect knows nothing in some versions of Python.
    with WFHttpServer(function, on_start=dir, on_stop=vars).start("127.0.0.1", 0) as server:
        assert server.hooks == (dir, vars)


def test_on_stop_comes_once_when_handlers_that_were_cut_end_during_it() -> None:
    ends, opened = threading.Event(), threading.Event()
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        assert ends.wait(PATIENCE)

    def on_stop(server: WFHttpServer) -> None:
        notes.append("begins")
        assert opened.wait(PATIENCE)
        notes.append("ends")

    params = HTTP_SPEC.params.replace(shutdown_timeout=None)
    server = WFHttpServer(process, params, on_stop=on_stop)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(get())
        eventually(lambda: [c for c in server.connections() if c.entry.exchanges.session])
        assert server.cut() == 1
        eventually(lambda: notes)
        ends.set()
        eventually(lambda: server._references == 0)
        assert not server.wait_finish(0.01)
        opened.set()
        assert server.stop() == 1
    assert notes == ["begins", "ends"]


def test_all_who_stop_it_learn_how_much_was_cut() -> None:
    async def process(task: WFHttpTask) -> None:
        await asyncio.sleep(1000)

    params = HTTP_SPEC.params.replace(shutdown_timeout=0.02)
    server = WFHttpServer(process, params)
    for _ in range(20):
        results: list[int] = []
        server.start("127.0.0.1", 0)
        with RawClient(server.address) as client:
            client.send(get())
            eventually(lambda: [c for c in server.connections() if c.entry.exchanges.session])
            threads = [
                threading.Thread(target=lambda results=results: results.append(server.stop()))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
        assert results == [1] * 4


def test_a_shutdown_that_was_left_to_the_engine_is_of_its_run() -> None:
    server = WFHttpServer(function).start("127.0.0.1", 0)
    before = server._run
    server.stop()
    with server.start("127.0.0.1", 0):
        server._shutdown_run(before)  # as on top of a lock, in a signal handler
        assert not server.stopping
        server._shutdown_run(server._run)
        assert server.stopping


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


# -- starts that do not come to their end ---------------------------------------------------


def start_again(server: WFHttpServer) -> None:
    """Nothing is left of the start before, which is not waited for here."""
    assert server.wait_finish(0)
    server.set_hooks(None, None)
    with server.start(*server.address), RawClient(server.address) as client:
        assert client.ask().status == 200


@pytest.mark.parametrize("process", HANDLERS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_is_left_of_a_start_that_on_start_ended(
    asynchronous: bool, process: Callable[[WFHttpTask], Any]
) -> None:
    def on_start(server: WFHttpServer) -> None:
        raise ValueError("no database")

    async def on_start_later(server: WFHttpServer) -> None:
        await asyncio.sleep(0.001)
        raise ValueError("no database")

    events: list[object] = []
    server = WFHttpServer(process, on_start=on_start_later if asynchronous else on_start)
    server.subscribe(events.append)
    for _ in range(20):
        with pytest.raises(ValueError, match="no database"):
            server.start("127.0.0.1", 0)
        assert server.wait_finish(0)
    assert events == []  # it never listened, so it does not stop to
    start_again(server)


def test_a_function_that_ends_a_start_in_the_running_loop() -> None:
    def on_start(server: WFHttpServer) -> None:
        raise ValueError("no database")

    async def main() -> None:
        server = WFHttpServer(coroutine, on_start=on_start)
        for _ in range(3):
            with pytest.raises(ValueError, match="no database"):
                server.start("127.0.0.1", 0)
            with pytest.raises(ConnectionRefusedError):
                RawClient(server.address)
        server.set_hooks(None, None)
        async with server.start(*server.address):
            pass

    asyncio.run(main())


@pytest.mark.parametrize("process", HANDLERS)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_start_that_is_cancelled(steps: int, process: Callable[[WFHttpTask], Any]) -> None:
    ended: list[str] = []

    async def on_start(server: WFHttpServer) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("on_start")

    async def main() -> None:
        async def serve() -> None:
            async with server.start("127.0.0.1", 0):
                raise AssertionError("it does not serve")

        serving = asyncio.create_task(serve())
        await asyncio.sleep(0)  # it waits; on_start has not made a step
        for _ in range(steps):
            await asyncio.sleep(0.001)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await asyncio.to_thread(lambda: None)
        with pytest.raises(ConnectionRefusedError):
            RawClient(server.address)
        # Whoever ends the loop ends a start in it.
        server.start("127.0.0.1", 0)
        assert await server.aclose() == 0

    params = HTTP_SPEC.params.replace(shutdown_timeout=0.1)
    server = WFHttpServer(process, params, on_start=on_start)
    asyncio.run(main())
    assert len(ended) >= 1
    start_again(server)


def test_a_stop_cancels_an_on_start_in_the_running_loop() -> None:
    ended: list[bool] = []

    async def on_start(server: WFHttpServer) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    async def main() -> None:
        server.start("127.0.0.1", 0)
        stopper = asyncio.create_task(server.aclose())
        with pytest.raises(UsageError, match="the server was stopped while it ran"):
            async with server:
                raise AssertionError("it does not serve")
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        assert await stopper == 0
        assert ended == [True]

    params = HTTP_SPEC.params.replace(shutdown_timeout=0.05)
    server = WFHttpServer(coroutine, params, on_start=on_start)
    asyncio.run(main())
    start_again(server)


@pytest.mark.parametrize("process", HANDLERS)
def test_a_stop_cancels_an_on_start_that_another_thread_waits_for(
    process: Callable[[WFHttpTask], Any],
) -> None:
    began, ended = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    async def on_start(server: WFHttpServer) -> None:
        began.set()
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.05)  # it is cancelled once
            ended.set()

    def start() -> None:
        try:
            server.start("127.0.0.1", 0)
        except UsageError as error:
            raised.append(error)

    params = HTTP_SPEC.params.replace(shutdown_timeout=0.05)
    server = WFHttpServer(process, params, on_start=on_start)
    starter = threading.Thread(target=start)
    starter.start()
    assert began.wait(PATIENCE)
    assert server.stop() == 0
    assert ended.is_set()
    starter.join(PATIENCE)
    assert "the server was stopped while it ran" in str(raised[0])
    start_again(server)


def test_an_on_start_that_cancels_itself() -> None:
    async def on_start(server: WFHttpServer) -> None:
        raise asyncio.CancelledError

    server = WFHttpServer(function, on_start=on_start)
    with pytest.raises(UsageError, match="not by us"):
        server.start("127.0.0.1", 0)
    start_again(server)


INTERRUPTED = """
import asyncio, os, signal, sys, threading
from protoserve_http import WFHttpServer


async def on_start(server):
    began.set()
    try:
        await asyncio.sleep(1000)
    finally:
        await asyncio.sleep(0.05)
        print("cancelled")


async def coroutine(task):
    pass


def interrupt():
    began.wait()
    os.kill(os.getpid(), signal.SIGINT)


# What runs in the background of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
began = threading.Event()
server = WFHttpServer(coroutine if sys.argv[1] else lambda task: None, on_start=on_start)
threading.Thread(target=interrupt).start()
try:
    server.start("127.0.0.1", 0)
except KeyboardInterrupt:
    print("interrupted", server.stop(), server.wait_finish(0))
"""


@pytest.mark.parametrize("kind", ["", "coroutine"])
def test_ctrl_c_in_on_start(kind: str) -> None:
    assert run_alone(INTERRUPTED, kind).lines == ["cancelled", "interrupted 0 True"]


@pytest.mark.parametrize("awaited", [False, True])
def test_a_failure_in_the_running_loop_is_told_once(
    awaited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_start(server: WFHttpServer) -> None:
        await asyncio.sleep(0)
        raise ValueError("no database")

    async def main() -> None:
        server = WFHttpServer(coroutine, on_start=on_start)
        if awaited:
            with pytest.raises(ValueError, match="no database"):
                async with server.start("127.0.0.1", 0):
                    raise AssertionError("it does not serve")
        else:
            server.start("127.0.0.1", 0)
            await server.until_stopping()
            await server.aclose()

    asyncio.run(main())
    assert len(caplog.records) == (not awaited)
    assert caplog.text.count("ValueError: no database") == (not awaited)


def test_a_socket_that_cannot_be_watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []

    async def on_start(server: WFHttpServer) -> None:
        await asyncio.sleep(0)
        notes.append("start")

    async def on_stop(server: WFHttpServer) -> None:
        await asyncio.sleep(0.02)
        notes.append("stop")

    def refuse(listener: Listener) -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        server = WFHttpServer(coroutine, on_start=on_start, on_stop=on_stop)
        with pytest.raises(BindError, match="one more watched descriptor"):
            async with server.start("127.0.0.1", 0):
                raise AssertionError("it does not serve")
        assert notes == ["start", "stop"]

    monkeypatch.setattr(Listener, "start", refuse)
    asyncio.run(main())
    assert not caplog.records
    server = WFHttpServer(function, on_start=on_start, on_stop=on_stop)
    with pytest.raises(BindError, match="one more watched descriptor"):
        server.start("127.0.0.1", 0)
    assert notes == ["start", "stop"] * 2
    assert server.wait_finish(0)


def test_a_stop_before_the_first_connection_is_taken() -> None:
    events: list[object] = []

    async def on_start(server: WFHttpServer) -> None:
        client.connect(server.address)
        client.sendall(get())
        server.shutdown()
        await asyncio.sleep(0.01)

    async def process(task: WFHttpTask) -> None:
        raise AssertionError("on_start has not ended")

    async def main() -> None:
        server = WFHttpServer(process, on_start=on_start)
        server.subscribe(events.append)
        async with server.start("127.0.0.1", 0):
            await server.until_stopping()
            assert await server.aclose() == 0

    with socket.socket() as client:
        client.settimeout(PATIENCE)
        asyncio.run(main())
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
    assert events == []


@pytest.mark.parametrize("place", PLACES)
def test_a_start_in_a_handler_that_is_a_coroutine(place: str) -> None:
    async def on_start(server: WFHttpServer) -> None:
        await asyncio.sleep(0.001)

    async def process(task: WFHttpTask) -> None:
        # Functions serve there, but its hook is for the loop that waits here.
        async with WFHttpServer(function, on_start=on_start).start("127.0.0.1", 0) as other:
            with socket.create_connection(other.address):
                task.resp.write("started")

    with serving(place, process) as server, RawClient(server.address) as client:
        assert client.ask().body == b"started"


def test_a_start_in_a_handler_that_is_a_function() -> None:
    started: list[WFHttpServer] = []

    async def on_start(server: WFHttpServer) -> None:
        await asyncio.sleep(0.001)

    def process(task: WFHttpTask) -> None:
        started.append(WFHttpServer(function, on_start=on_start).start("127.0.0.1", 0))

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        with RawClient(server.address) as client:
            assert client.ask().status == 200
        started[0].stop()


# -- the end ----------------------------------------------------------------------------------


def test_an_on_stop_that_is_late_does_not_end_the_next_run() -> None:
    gate, first = threading.Event(), threading.Event()

    def on_stop(server: WFHttpServer) -> None:
        if not first.is_set():
            first.set()
            assert gate.wait(PATIENCE)
            late.append(threading.current_thread())

    late: list[threading.Thread] = []
    params = HTTP_SPEC.params.replace(shutdown_timeout=0.05)
    server = WFHttpServer(function, params, on_stop=on_stop).start("127.0.0.1", 0)
    assert server.stop() == 0
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        gate.set()
        eventually(lambda: late)
        late[0].join(PATIENCE)
        assert not server.wait_finish(0)
        assert client.ask().status == 200
    assert server.stop() == 0


def test_a_cancelled_on_stop_that_is_late() -> None:
    notes: list[str] = []

    async def on_stop(server: WFHttpServer) -> None:
        notes.append("begins")
        if len(notes) == 1:
            try:
                await asyncio.sleep(1000)
            finally:
                await gate.wait()
                notes.append("ends")

    async def main() -> None:
        nonlocal gate
        gate = asyncio.Event()
        server.start("127.0.0.1", 0)
        assert await server.aclose() == 0
        assert notes == ["begins"]
        async with server.start("127.0.0.1", 0):
            gate.set()
            while len(notes) == 1:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            assert not await asyncio.to_thread(lambda: server.stopping)

            def ask() -> int:
                with RawClient(server.address) as client:
                    return client.ask().status

            assert await asyncio.to_thread(ask) == 200

    gate: asyncio.Event
    params = HTTP_SPEC.params.replace(shutdown_timeout=0.05)
    server = WFHttpServer(coroutine, params, on_stop=on_stop)
    asyncio.run(main())
    assert notes == ["begins", "ends", "begins"]


def test_after_a_cut_on_stop_has_its_time() -> None:
    notes: list[str] = []

    async def process(task: WFHttpTask) -> None:
        await asyncio.sleep(1000)

    async def on_stop(server: WFHttpServer) -> None:
        notes.append("begins")
        await asyncio.sleep(0.8)  # more than what was cut has to end
        notes.append("ends")

    server = WFHttpServer(process, on_stop=on_stop)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(get())
        eventually(lambda: [c for c in server.connections() if c.entry.exchanges.session])
        assert server.cut() == 1
        assert server.stop() == 1
    assert notes == ["begins", "ends"]


def test_the_time_of_on_stop_begins_with_it() -> None:
    notes: list[str] = []

    def process(task: WFHttpTask) -> None:
        task.server.wait_stopping()
        time.sleep(1.2)

    async def on_stop(server: WFHttpServer) -> None:
        await asyncio.sleep(0.6)
        notes.append("stop")

    params = HTTP_SPEC.params.replace(shutdown_timeout=1.5)
    server = WFHttpServer(process, params, on_stop=on_stop)
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        client.send(get())
        eventually(lambda: [c for c in server.connections() if c.entry.exchanges.session])
        server.stop()
    assert notes == ["stop"]


def test_shutdown_does_not_wait_for_on_stop() -> None:
    gate = threading.Event()
    threads: list[threading.Thread] = []

    def on_stop(server: WFHttpServer) -> None:
        threads.append(threading.current_thread())
        assert gate.wait(PATIENCE)

    server = WFHttpServer(function, on_stop=on_stop).start("127.0.0.1", 0)
    caller = threading.Thread(target=server.shutdown)
    caller.start()
    caller.join(PATIENCE)
    assert not server.wait_finish(0.01)
    gate.set()
    assert server.stop() == 0
    assert threads[0].name == "protoserve-on-stop"
    assert not threads[0].is_alive()


@pytest.mark.parametrize("process", HANDLERS)
def test_the_loop_goes_on_while_on_stop_runs(process: Callable[[WFHttpTask], Any]) -> None:
    notes: list[bool] = []

    async def main() -> None:
        gate = threading.Event()
        server = WFHttpServer(process, on_stop=lambda s: notes.append(gate.wait(PATIENCE)))
        server.start("127.0.0.1", 0)
        closing = asyncio.create_task(server.aclose())
        await asyncio.sleep(0.02)
        gate.set()
        assert await closing == 0
        assert notes == [True]

    asyncio.run(main())


def test_stop_leaves_no_thread_of_on_stop() -> None:
    server = WFHttpServer(function, on_stop=lambda s: None)
    for _ in range(50):
        server.start("127.0.0.1", 0).stop()
        assert "protoserve-on-stop" not in [thread.name for thread in threading.enumerate()]


def test_no_thread_for_on_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    notes: list[str] = []

    def limited(thread: threading.Thread) -> None:
        if thread.name == "protoserve-on-stop":
            raise RuntimeError("can't start new thread")
        start(thread)

    server = WFHttpServer(function, on_stop=lambda s: notes.append("stop")).start("127.0.0.1", 0)
    monkeypatch.setattr(threading.Thread, "start", limited)
    assert server.stop() == 0
    assert notes == ["stop"]


def test_on_stop_when_its_loop_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def on_stop(server: WFHttpServer) -> None:
        raise AssertionError("there is no loop")

    async def main() -> None:
        server.start("127.0.0.1", 0)

    params = HTTP_SPEC.params.replace(shutdown_timeout=None)
    server = WFHttpServer(coroutine, params, on_stop=on_stop)
    asyncio.run(main())
    assert server.stop() == 0
    assert "the loop of the server is closed" in caplog.text


def test_a_function_that_makes_a_coroutine() -> None:
    notes: list[str] = []

    async def note(what: str) -> None:
        await asyncio.sleep(0.001)
        notes.append(what)

    hooks: dict[str, Any] = {
        "on_start": lambda s: note("start"),
        "on_stop": lambda s: note("stop"),
    }
    with WFHttpServer(function, **hooks).start("127.0.0.1", 0):
        assert notes == ["start"]
    assert notes == ["start", "stop"]


def test_an_on_stop_that_becomes_a_coroutine_too_late() -> None:
    gate, canceled = threading.Event(), threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            canceled.set()

    def on_stop(server: WFHttpServer) -> Any:
        assert gate.wait(PATIENCE)
        return wait()

    server = WFHttpServer(function, on_stop=on_stop).start("127.0.0.1", 0)
    server.shutdown()
    eventually(lambda: server._run.drained)
    assert server.cut() == 0  # a function cannot be ended; what it makes is
    gate.set()
    eventually(lambda: not get_scheduler().running)
    assert not canceled.is_set()  # it had not begun


# -- waiting for itself -----------------------------------------------------------------------


@pytest.mark.parametrize("process", HANDLERS)
@pytest.mark.parametrize("method", ["stop", "wait_finish"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_hooks_do_not_wait_for_themselves(
    asynchronous: bool, method: str, process: Callable[[WFHttpTask], Any]
) -> None:
    said: list[str] = []

    def attempt(server: WFHttpServer) -> None:
        with pytest.raises(UsageError) as caught:
            getattr(server, method)()
        said.append(str(caught.value))

    async def attempt_later(server: WFHttpServer) -> None:
        await asyncio.sleep(0)
        attempt(server)
        with pytest.raises(UsageError) as caught:
            await server.aclose()
        said.append(str(caught.value))

    hook = attempt_later if asynchronous else attempt
    server = WFHttpServer(process, on_start=hook, on_stop=hook)
    with server.start("127.0.0.1", 0):
        server.on_stopping(lambda: attempt(server))
        server.subscribe(lambda event: attempt(server))  # told that the listener stopped
    assert len(said) == 4 + 2 * asynchronous
    for text in said:
        assert "call shutdown() there" in text


def test_hooks_in_the_running_loop_do_not_wait_for_themselves() -> None:
    notes: list[str] = []

    async def attempt(server: WFHttpServer) -> None:
        with pytest.raises(UsageError, match=r"on_start or on_stop.*call shutdown\(\) there"):
            await server.aclose()
        notes.append("refused")

    async def main() -> None:
        async with WFHttpServer(coroutine, on_start=attempt, on_stop=attempt).start(0):
            assert notes == ["refused"]
        assert notes == ["refused"] * 2

    asyncio.run(main())


def test_another_thread_may_stop_it_in_a_callback_of_the_stop() -> None:
    stopped: list[int] = []
    stopper = threading.Thread(target=lambda: stopped.append(server.stop()))
    server = WFHttpServer(function).start("127.0.0.1", 0)
    server.on_stopping(stopper.start)
    assert server.stop() == 0
    stopper.join(PATIENCE)
    assert stopped == [0]


# -- several servers --------------------------------------------------------------------------


def test_shared_hooks() -> None:
    notes: list[Any] = []
    servers = [WFHttpServer(function) for _ in range(3)]
    shared = SharedHooks(
        lambda s: notes.append(("start", servers.index(s))),
        lambda s: notes.append(("stop", servers.index(s))),
    )
    for server in servers:
        server.set_hooks(shared.on_start, shared.on_stop)
        server.start("127.0.0.1", 0)
    assert notes == [("start", 0)]
    for server in servers:
        assert notes == [("start", 0)]
        server.stop()
    assert notes == [("start", 0), ("stop", 0)]


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
    calls = [sys.exit, lambda: notes.append("a"), lambda: 1 / 0]
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


def test_on_stopping_before_a_start() -> None:
    notes: list[str] = []
    server = WFHttpServer(lambda task: None)
    for _ in range(3):
        notes.clear()
        server.on_stopping(lambda: notes.append("stopping"))
        with server.start("127.0.0.1", 0):
            assert notes == []
        assert notes == ["stopping"]


def test_who_waits_for_the_stop_between_two_runs_has_missed_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> None:
        raise OSError(24, "Too many open files")

    server = WFHttpServer(lambda task: None)
    assert not server.wait_stopping(0)
    server.start("127.0.0.1", 0).stop()
    assert server.wait_stopping(0)
    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", refuse)
        with pytest.raises(BindError):
            server.start("127.0.0.1", 0)
    assert server.wait_stopping(0)
    with server.start("127.0.0.1", 0):
        assert not server.wait_stopping(0)


def test_until_stopping_in_a_loop_that_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    server = WFHttpServer(lambda task: None).start("127.0.0.1", 0)
    loop = asyncio.new_event_loop()
    waiting = server.until_stopping()
    task = loop.create_task(waiting)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert server.stop() == 0
    assert not caplog.records
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    waiting.close()


def test_a_callback_that_takes_longer_than_the_stop() -> None:
    gate = threading.Event()
    params = HTTP_SPEC.params.replace(shutdown_timeout=0.05)
    server = WFHttpServer(lambda task: None, params).start("127.0.0.1", 0)
    server.on_stopping(lambda: gate.wait(PATIENCE))
    caller = threading.Thread(target=server.shutdown)
    caller.start()
    eventually(lambda: server.stopping and not server._run.closing)
    server.stop()
    with server.start("127.0.0.1", 0), RawClient(server.address) as client:
        assert client.ask().status == 200
        gate.set()
        caller.join(PATIENCE)
        assert client.ask().status == 200


FORKED = """
import os, warnings
from loopback import RawClient, eventually, get
from protoserve_http import WFHttpServer

warnings.simplefilter("ignore", DeprecationWarning)
parent = os.getpid()


def process(task):
    task.on_stopping(lambda t: print(os.getpid() == parent, flush=True))
    task.server.wait_stopping()


server = WFHttpServer(process).start("127.0.0.1", 0)
with RawClient(server.address) as client:
    client.send(get())
    eventually(lambda: len(server._stop_notice) == 2)
    child = os.fork()
    if not child:
        assert not server.stopping
        server.start("127.0.0.1", 0)
        server.stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    server.stop()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks with threads")
def test_a_forked_process_has_no_callbacks() -> None:
    assert run_alone(FORKED).lines == ["True"]


def test_who_waits_does_what_a_busy_loop_does_not() -> None:
    entered, opened = threading.Event(), threading.Event()

    async def process(task: WFHttpTask) -> None:
        entered.set()
        assert opened.wait(PATIENCE)  # which a coroutine should not

    server = WFHttpServer(process).start("127.0.0.1", 0)
    told = threading.Event()
    server.on_stopping(told.set)
    with RawClient(server.address) as client:
        client.send(get())
        assert entered.wait(PATIENCE)
        waiter = threading.Thread(target=server.wait_finish)
        waiter.start()
        server.shutdown()  # in the main thread, where it leaves the rest to the loop
        assert told.wait(PATIENCE / 2)
        opened.set()
        assert client.reply().closes
    assert server.stop() == 0
    waiter.join(PATIENCE)
