"""One start and stop: servers, clients, foreign threads, and what must be true afterwards."""

from __future__ import annotations

import faulthandler
import random
import socket
import threading
import time
import traceback
from collections.abc import Set

from clients import STEPS, Client
from ledger import Ledger, Leftovers
from names import NAMES
from served import Served
from servers import LineServer
from work import Foreign, Work

STOPS = ("quiet", "busy", "cut", "twice", "together", "handler", "again")
"""How a run ends: when its clients have; under load; under load and at once; by two threads;
``shutdown`` of all first, also in a handler; and the last, after a second start of the same
servers."""

_CLIENTS = 8
_LEFTOVER_PATIENCE = 5.0
_GONE_PATIENCE = 60.0


class Run:
    """A run, the ``number``-th of a seed."""

    def __init__(
        self, ledger: Ledger, seed: str, number: int, without: Set[str], only: Set[str]
    ) -> None:
        self.ledger = ledger
        self.without = without
        self.rng = rng = random.Random(f"{seed}:{number}")
        self.stopping = threading.Event()
        self.abandoned = threading.Event()
        self._over = threading.Event()
        self._hanging = threading.Lock()
        self._suspicions: list[str] = []
        names = [name for name in NAMES if name in only]
        self.names = rng.sample(names, min(len(names), rng.choice((1, 1, 2, 3))))
        self.stop = rng.choice([stop for stop in STOPS if stop not in without])
        self.tight = rng.random() < 0.2 and "tight" not in without
        self.greets = "greeting" not in without
        self.refuses = rng.random() < 0.2 and "refuse" not in without
        self.params: dict[str, float | int | None] = {
            "handler_threads": rng.choice((2, 5, 20)),
            "shutdown_timeout": 0.05 if self.stop == "cut" else 30.0,
            "peer_response_timeout": 30.0,
            "max_pipelined": rng.choice((1, 64)),
        }
        if self.tight:
            self.params |= {
                "peer_response_timeout": 0.3,
                "receive_timeout": 0.5,
                "keep_alive_timeout": 0.1,
                "max_connections": 4,
            }
        self.adopts = rng.random() < 0.5
        self.favourite = rng.choice(STEPS) if rng.random() < 0.5 else ""
        """The step at which half of the clients leave, so that many do at once."""
        ledger.run = f"run {number}"

    def __str__(self) -> str:
        extras = ["tight"] * self.tight + ["refusing"] * self.refuses + ["adopting"] * self.adopts
        if self.favourite:
            extras.append(f"mostly {self.favourite}")
        threads = f"{self.params['handler_threads']} threads"
        return ", ".join(["+".join(self.names), threads, *extras, f"stop: {self.stop}"])

    @property
    def forgiving(self) -> bool:
        """Whether connections may end at any moment."""
        return self.tight or (self.stop == "cut" and self.stopping.is_set())

    def fault(self, what: str) -> None:
        """Any thread."""
        if not self.abandoned.is_set():
            self.ledger.fault(f"({self}) {what}")

    def fault_unless_cut(self, what: str) -> None:
        """One, unless the server tells that it had to cut. Any thread."""
        if self.stopping.is_set():
            self._suspicions.append(what)
        else:
            self.fault(what)

    def hang(self, what: str) -> None:
        """One client hangs, and so do others most likely. Any thread."""
        with self._hanging:
            if not self.abandoned.is_set():
                self.fault(what)
                faulthandler.dump_traceback(all_threads=True)
                self.abandoned.set()

    def play(self, seconds: float) -> None:
        """From the start to nothing left."""
        leftovers = Leftovers()
        self._play(seconds)
        end = time.monotonic() + _LEFTOVER_PATIENCE
        while left := leftovers.found():
            if time.monotonic() > end:
                self.abandoned.clear()
                self.fault(f"left behind: {', '.join(left)}")
                return
            time.sleep(0.01)

    def _play(self, seconds: float) -> None:
        foreign = Foreign(3)
        work = Work(self.ledger, foreign)
        all_served = [Served(name, work, self.params) for name in self.names]
        for served in all_served:
            if isinstance(served.server, LineServer):
                served.server.greets = self.greets
                served.server.refuses = self.refuses
        for again in (False, True) if self.stop == "again" else (False,):
            self._serve(all_served, work, seconds / 2 if self.stop == "again" else seconds)
            if again or self.abandoned.is_set():
                break
        foreign.close()
        if self.stop != "cut" and not self.abandoned.is_set():
            for what, watched in (("callbacks", work.callbacks), ("on_close", work.closings)):
                if watched.missing:
                    self.fault(f"{watched.missing} {what} were never called")

    def _serve(self, all_served: list[Served], work: Work, seconds: float) -> None:
        self.stopping.clear()
        self._over.clear()
        for served in all_served:
            served.start(adopts=self.adopts)
        seeds = [self.rng.randrange(1 << 60) for _ in range(_CLIENTS)]
        clients = [
            threading.Thread(target=self._be_client, args=(all_served, seed), name="client")
            for seed in seeds
        ]
        for client in clients:
            client.start()
        self._wait(all_served, seconds)
        if self.stop == "quiet":
            self._over.set()
            self._join(clients)
        self.stopping.set()
        cut = self._stop(all_served, work)
        self._over.set()
        self._join(clients)
        self.ledger.count("stops")
        if cut == 0:
            for suspicion in self._suspicions:
                self.fault(suspicion)
        elif self.stop != "cut":
            self.fault(f"stop() had to cut {cut}")
        self._suspicions.clear()
        for served in all_served:
            self._check_gone(served)

    def _wait(self, all_served: list[Served], seconds: float) -> None:
        """Until the time is over, or a server has ended by itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.abandoned.is_set():
            time.sleep(0.02)
            for served in all_served:
                if served.ended():
                    self.fault(f"{served.name}: the server ended by itself")
                    self.abandoned.set()

    def _stop(self, all_served: list[Served], work: Work) -> int:
        if self.abandoned.is_set():
            for served in all_served:
                served.server.cut()
        if self.stop == "handler" and not self.abandoned.is_set():
            asked = threading.Event()
            for served in all_served:
                work.errands.put(served.server.shutdown)
            work.errands.put(asked.set)
            if not asked.wait(20):
                self.fault("no handler ran in 20 s")
        if self.stop == "together":
            for served in all_served:
                served.server.shutdown()
        second = threading.Thread(
            target=self._stop_each,
            args=([s for s in all_served if s.name != "loop"],),
            name="second stop",
        )
        if self.stop == "twice":
            second.start()
        cut = self._stop_each(all_served)
        if self.stop == "twice":
            second.join()
        return cut

    def _stop_each(self, all_served: list[Served]) -> int:
        """How much had to be cut. Any thread."""
        cut = 0
        for served in all_served:
            try:
                cut += served.stop()
            except Exception:
                self.fault(f"{served.name}: stop() raised\n{traceback.format_exc()}")
                self.abandoned.set()
        return cut

    def _be_client(self, all_served: list[Served], seed: int) -> None:
        rng = random.Random(seed)
        while not self._over.is_set() and not self.abandoned.is_set():
            client = Client(self, rng.choice(all_served), rng.randrange(1 << 60))
            if not client.play() and self.stopping.is_set():
                return

    def _join(self, threads: list[threading.Thread]) -> None:
        end = time.monotonic() + _GONE_PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self.fault("a client hangs")
                self.abandoned.set()

    def _check_gone(self, served: Served) -> None:
        if served.server.conn_count:
            self.fault(f"{served.name}: conn_count is {served.server.conn_count} after the stop")
        try:
            socket.create_connection(served.address, timeout=1).close()
        except OSError:
            return
        self.fault(f"{served.name}: still accepts connections after the stop")
