"""shutdown() in a signal handler, which may have interrupted whoever holds any of our locks."""

from __future__ import annotations

import pytest
from own_process import run_alone

HOLDING = """
import asyncio, contextlib, signal, sys, threading
from loopback import RawClient, eventually
from protoserve import get_scheduler
from protoserve.events import ListenerStopped
from protoserve_http import WFHttpServer

kind = sys.argv[1]
what = ""
if kind == "own asyncio":
    sys.modules["uvloop"] = None
stopped = threading.Event()
told = []


def function(task):
    task.resp.write("x")


async def coroutine(task):
    task.resp.write("x")


server = WFHttpServer(function if kind == "threads" else coroutine)
server.subscribe(lambda event: told.append(event) if type(event) is ListenerStopped else None)
signal.signal(signal.SIGTERM, lambda *_: server.shutdown())


def lock(client):
    engine, listener = server.engine, server._run.listener
    return {
        "nothing": contextlib.nullcontext(),
        "condition": server._condition,
        "references": server._reference_lock,
        "listener": listener._lock,
        "poller": engine.poller._lock,
        "scheduler": get_scheduler()._lock,
        "connection": next(iter(server._connections)).entry.lock,
    }[what]


def interrupt():
    with RawClient(server.address) as client:
        assert client.ask().body == b"x"
        with lock(client):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        yield
        assert client.rest() == b""
        for _ in range(2):
            try:
                RawClient(server.address)
            except ConnectionRefusedError:
                pass
            else:
                raise AssertionError("it still listens")


LOCKS = ["nothing", "condition", "references", "listener", "poller", "scheduler", "connection"]
for what in LOCKS:
    print(what, flush=True)
    if kind.startswith("main"):
        async def main():
            async with server.start("127.0.0.1", 0):
                client = interrupt()
                await asyncio.get_running_loop().run_in_executor(None, ask)
                with lock(None):
                    signal.raise_signal(signal.SIGTERM)
                while not told:
                    await asyncio.sleep(0.001)
                assert server.stopping

        def ask():
            client = RawClient(server.address)
            assert client.ask().body == b"x"
            clients.append(client)

        clients = []
        if kind == "main uvloop":
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        else:
            asyncio.run(main())
        for client in clients:
            assert client.rest() == b""
            client.close()
    else:
        with server.start("127.0.0.1", 0):
            steps = interrupt()
            next(steps)
            assert server.wait_finish(10)
            next(steps, None)
    assert server.stop() == 0
    assert len(told) == 1
    told.clear()
print("ended")
"""

KINDS = ["threads", "own uvloop", "own asyncio", "main uvloop", "main asyncio"]


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_on_top_of_a_lock(kind: str) -> None:
    assert run_alone(HOLDING, kind).lines[-1] == "ended"


UNDER_LOAD = """
import asyncio, random, signal, sys, threading
from loopback import RawClient
from protoserve_http import WFHttpServer

if sys.argv[1] == "uvloop":
    from uvloop import new_event_loop
else:
    new_event_loop = None
chance = random.Random(1)


async def process(task):
    task.resp.write("x")


server = WFHttpServer(process)
signal.signal(signal.SIGALRM, lambda *_: server.shutdown())


def ask(address):
    while True:
        try:
            with RawClient(address) as client:
                while not client.ask().closes:
                    pass
        except (ConnectionError, AssertionError):
            return


async def main():
    async with server.start("127.0.0.1", 0):
        threads = [threading.Thread(target=ask, args=(server.address,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.02, 0.06), 0.001)
        while not server.stopping:
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().run_in_executor(None, server.wait_finish)
        signal.setitimer(signal.ITIMER_REAL, 0)
    for thread in threads:
        thread.join()


sys.setswitchinterval(1e-4)
for _ in range(25):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
    assert server.stop() == 0
print("ended")
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_shutdown_under_load(loop: str) -> None:
    assert run_alone(UNDER_LOAD, loop).lines == ["ended"]


STARTING = """
import signal, threading
from protoserve_http import WFHttpServer
from protoserve.events import ListenerStarted

class Interrupted(WFHttpServer):
    def _apply_descriptor_limit(self):
        signal.raise_signal(signal.SIGTERM)
        super()._apply_descriptor_limit()

server = Interrupted(lambda task: None)
signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
server.start("127.0.0.1", 0)
assert server.wait_finish(10)
assert server.stop() == 0
print("ended")
"""


def test_shutdown_in_the_middle_of_a_start() -> None:
    assert run_alone(STARTING).lines == ["ended"]
