"""Clients: each knows what it must get, and many leave before they got it."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from typing import TYPE_CHECKING

from dialogues import (
    SMALL,
    Abandoned,
    Dialogue,
    Ended,
    Exchange,
    Hanging,
    LineDialogue,
    RedisDialogue,
    WrongAnswer,
)
from served import Served
from work import ANSWERED, CUTS, DROPS, LARGE, LAST, NO_ANSWER, STREAMS

if TYPE_CHECKING:
    from run import Run

FAREWELLS = ("NO_REQUEST", "IDLE", "REQUEST_TOO_SLOW", "MADE_ROOM")
_RESET = struct.pack("ii", 1, 0)

_PROBES = tuple(
    (getattr(socket, name), 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL")  # one is macOS' name
    if hasattr(socket, name)
)
"""Seconds of silence after which the system asks whether the server's socket is there."""

STEPS = ("end", "before", "request", "asked", "reply", "in-stream", "pushed", "pipeline", "unread")
"""Where a client leaves: at the end; before it said a byte; within a request; when it has
asked; within a reply; within a streamed one; while it is pushed to; in a long pipeline; when
the handler waits, because it has read nothing for a while."""

MANNERS = ("reset", "half-close", "close")
"""How: with SO_LINGER 0; by ending its own side, after which it gets what is due; at once."""


def _probe(sock: socket.socket) -> None:
    """Have a connection end that has no other side.

    Linux drops the last packet of a handshake without a word where the listening socket is
    closed at that moment: the client is connected, to nobody, and is not told before it sends
    something. One that waits for a greeting does not.
    """
    for option, seconds in _PROBES:
        sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class Client:
    """One connection to one server: a plan, what is sent, and what must come."""

    def __init__(self, run: Run, served: Served, seed: int) -> None:
        self._run = run
        self._served = served
        self.rng = rng = random.Random(seed)
        lacks = {*run.without, *served.speech.dialogue.lacks}
        steps = [step for step in STEPS if step not in lacks]
        # Most play to the end: they are the ones who would notice.
        self.step = "end" if rng.random() < 0.4 else rng.choice(steps)
        if run.favourite in steps and rng.random() < 0.5:
            self.step = run.favourite
        manners = [how for how in MANNERS if how not in run.without] or ["close"]
        self.manner = "close" if self.step == "end" else rng.choice(manners)
        self.exchanges: list[Exchange] = []
        self._due: list[Exchange] = []
        """Asked, and not answered."""
        self._told = 0
        self._heard_last = False

    def __str__(self) -> str:
        kinds = " ".join(str(exchange) for exchange in self.exchanges[: self._told + 3][-12:])
        if len(self.exchanges) > 12:
            kinds = f"... {kinds} ... of {len(self.exchanges)}"
        leaves = "" if self.step == "end" else f", {self.manner} at {self.step!r}"
        return f"{self._served.name}: [{kinds}]{leaves}, answer {self._told}"

    def play(self) -> bool:
        """Returns False when nobody listens any more."""
        run = self._run
        sock = socket.socket()
        sock.settimeout(10)
        if self.step == "unread":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        try:
            sock.connect(self._served.address)
        except OSError as error:
            sock.close()
            if not run.stopping.is_set():
                run.fault(f"{self}: cannot connect: {error!r}")
            return False
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _probe(sock)
            dialogue = self._served.speech.dialogue(sock, run.abandoned.is_set)
            try:
                self._play(dialogue)
            except Hanging as hanging:
                run.hang(f"{self}: {hanging}")
                return False
            except WrongAnswer as wrong:
                run.fault(f"{self}: {wrong}")
            except Ended as end:
                self._judge(end, dialogue)
            except Abandoned:
                return False
        how = "played to the end" if self.step == "end" else f"left at {self.step!r}"
        run.ledger.count(how)
        return True

    def _judge(self, end: Ended, dialogue: Dialogue) -> None:
        """Whether the connection may have ended there."""
        run = self._run
        ahead = self._due
        kind = ahead[0].kind if ahead else "nothing"
        refused = isinstance(dialogue, LineDialogue) and run.refuses and not dialogue.heard
        if dialogue.speaker.farewell and not self._may_hear(dialogue.speaker.farewell):
            run.fault(f"{self}: {end}")
            return
        if run.forgiving or refused or dialogue.may_end:
            return
        if any(exchange.kind in DROPS for exchange in self.exchanges):
            return
        if dialogue.shares and any(exchange.kind in CUTS for exchange in ahead):
            return
        if kind in NO_ANSWER:
            if end.partial and kind != "broken-stream":
                run.fault(f"{self}: {end}")
            return
        if not ahead and not end.partial and self._expects_end:
            return
        if run.stopping.is_set() and not end.partial:
            if dialogue.speaker.parts and end.how == "EOF" and not self._parted_first:
                run.fault_unless_cut(f"{self}: no farewell")
            return
        run.fault_unless_cut(f"{self}: {end}, instead of {kind!r}")

    def _may_hear(self, reason: str) -> bool:
        """Whether this reason for an end may be true."""
        if reason == "SERVER_STOPPED":
            return self._run.stopping.is_set()
        return self._run.tight and reason in FAREWELLS

    @property
    def _parted_first(self) -> bool:
        """Whether it was the client, or a handler, that ended the connection."""
        if self.manner == "half-close":
            return True
        return any(exchange.kind not in ANSWERED for exchange in self.exchanges)

    @property
    def _expects_end(self) -> bool:
        return self._heard_last or self.manner == "half-close"

    def _play(self, dialogue: Dialogue) -> None:
        rng = self.rng
        if isinstance(dialogue, RedisDialogue) and (self.step == "pushed" or rng.random() < 0.1):
            self._subscribe(dialogue)
            return
        greets = dialogue.greeted and (self._run.greets or dialogue.parts)
        if self.step == "before":
            time.sleep(rng.choice((0, 0, 0.001, 0.01)))
            if self._leave(dialogue):
                if greets:
                    dialogue.greeting()
                dialogue.end()
            return
        greeted = not greets
        if greets and rng.random() < 0.8:
            dialogue.greeting()
            greeted = True
        if self.step == "pushed":
            assert isinstance(dialogue, LineDialogue)
            if not greeted:
                dialogue.greeting()
            dialogue.await_push()
            if self._leave(dialogue):
                dialogue.end()
            return
        self._choose(dialogue)
        self._ask(dialogue)
        if self.step == "unread":
            time.sleep(rng.choice((0.05, 0.3)))
        if self.step in ("request", "asked", "unread") and not self._leave(dialogue):
            return
        if not greeted:
            dialogue.greeting()
        if self.step in ("reply", "in-stream", "pipeline"):
            if self.step == "pipeline":
                self._take(dialogue, rng.randrange(len(self._due)))
            dialogue.peek()
            if not self._leave(dialogue):
                return
        self._take(dialogue, len(self._due))
        if self.step == "end" and rng.random() < 0.5:
            self.manner = "half-close"
            self._leave(dialogue)
        if self._expects_end:
            dialogue.end()

    def _choose(self, dialogue: Dialogue) -> None:
        rng, without = self.rng, self._run.without
        kinds = tuple(kind for kind in dialogue.kinds if kind not in without)
        number = rng.choice((1, 1, 2, 3, 8))
        if self.step == "in-stream":
            kinds = tuple(kind for kind in STREAMS if kind in kinds) or kinds
            number = 1
        elif self.step == "unread":
            kinds = tuple(kind for kind in LARGE if kind in kinds) or kinds
            number = 1
        elif self.step == "pipeline":
            kinds = tuple(kind for kind in SMALL if kind in kinds)
            number = rng.randrange(20, 100)
        elif rng.random() < 0.5:
            # Else most pipelines would end at their first request.
            kinds = tuple(kind for kind in ANSWERED if kind in kinds)
        for _ in range(number):
            self.exchanges.append(dialogue.exchange(rng, kinds))
            if dialogue.is_last(self.exchanges[-1]):
                break

    def _ask(self, dialogue: Dialogue) -> None:
        """Send, in pieces; what was sent whole is due."""
        rng = self.rng
        data = b"".join(exchange.request for exchange in self.exchanges)
        if self.step == "request":
            dialogue.unfinished = last = self.exchanges.pop()
            data = data[: len(data) - rng.randrange(1, len(last.request))]
        self._due = list(self.exchanges)
        while data:
            size = rng.choice((1, 10, 100, len(data), len(data)))
            dialogue.send(data[:size])
            data = data[size:]
            if rng.random() < 0.1:
                time.sleep(0.001)

    def _take(self, dialogue: Dialogue, number: int) -> None:
        """Read so many answers."""
        for _ in range(number):
            large = self._due[0].kind in ("big", "flood")
            if large and self.rng.random() < 0.3:
                time.sleep(self.rng.choice((0.01, 0.3)))  # the server's output waits
            exchange = dialogue.answer(self._due)
            self._due.remove(exchange)
            self._told += 1
            self._heard_last |= exchange.kind in LAST
            self._run.ledger.count(f"answers of {self._served.name}")
            if exchange.kind in NO_ANSWER:
                raise WrongAnswer("an answer, although the connection should have ended")

    def _leave(self, dialogue: Dialogue) -> bool:
        """Whether there is something to read yet."""
        if self.manner == "half-close":
            dialogue.ended = True
            with contextlib.suppress(OSError):  # the server's side may be gone already
                dialogue.sock.shutdown(socket.SHUT_WR)
            return True
        if self.manner == "reset":
            dialogue.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        return False

    def _subscribe(self, dialogue: RedisDialogue) -> None:
        rng = self.rng
        dialogue.subscribe()
        last = None
        for _ in range(rng.randrange(1, 10)):
            last = dialogue.news(last)
            self._run.ledger.count("pushed messages")
        if self.step == "pushed" and self.manner != "half-close":
            self._leave(dialogue)
            return
        dialogue.unsubscribe(last)
