"""A server in the hands of a run: started, pushed through, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

from names import SPEECHES
from servers import CHANNEL, LineServer
from work import Work

from protoserve_redis import WFRedisServer


class Served:
    """One server of a run, and what pushes to its clients."""

    def __init__(self, name: str, work: Work, params: dict[str, Any]) -> None:
        self.name = name
        self.speech = SPEECHES[name]
        self.server = self.speech.serve(work, params)
        self.address: Any = None
        self._pusher: threading.Thread | None = None
        self._quiet = threading.Event()
        self._ready = threading.Event()
        self._leave: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._cut = 0
        self._adopts = False
        self._joining = threading.Lock()

    def start(self, *, adopts: bool) -> None:
        """Listen on a free port; ``adopts``: on a socket of ours, whose connections have
        little room for what is sent."""
        self._adopts = adopts
        if self.name == "loop":
            self._ready.clear()
            self._thread = threading.Thread(target=asyncio.run, args=(self._main(),), name="loop")
            self._thread.start()
            self._ready.wait()
        else:
            self._listen()
        self.address = self.server.address
        if isinstance(self.server, (LineServer, WFRedisServer)):
            self._quiet.clear()
            self._pusher = threading.Thread(target=self._push, name="pusher")
            self._pusher.start()

    def _listen(self) -> None:
        if not self._adopts:
            self.server.start("127.0.0.1", 0)
            return
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            sock.bind(("127.0.0.1", 0))
            sock.listen(100)
            self.server.serve(sock)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave = asyncio.Event()
        self._listen()
        self._ready.set()
        await self._leave.wait()
        self._cut = await self.server.aclose()

    def _push(self) -> None:
        number = 0
        while not self._quiet.is_set():
            if isinstance(self.server, LineServer):
                self.server.push_to_all()
            else:
                assert isinstance(self.server, WFRedisServer)
                table: Any = self.server.process
                table.publish(CHANNEL, b"%d" % number)
                number += 1
            time.sleep(0.002)

    def stop(self) -> int:
        """Stop it, and what pushes; how much had to be cut. Any thread; a loop's from one."""
        if self._thread is None:
            cut = self.server.stop()
        else:
            assert self._loop is not None
            assert self._leave is not None
            self._loop.call_soon_threadsafe(self._leave.set)
            self._thread.join()
            self._thread = self._loop = self._leave = None
            cut = self._cut
        with self._joining:  # Thread.join() is not made for two callers at once
            self._quiet.set()
            if self._pusher is not None:
                self._pusher.join()
                self._pusher = None
        return cut

    def ended(self) -> bool:
        """Whether it has ended, although nobody asked for it."""
        with contextlib.suppress(Exception):
            return self.server.wait_finish(0)
        return False
