"""Everything that may happen to a connection, in every order that Hypothesis thinks of.

``PROTOSERVE_MACHINE=2000`` has it run so many examples of up to 100 steps; the suite runs few.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import weakref
from collections.abc import Iterator
from math import inf
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from word_service import WordService, WordSession

from protoserve import HOLD, CommConnection, ProtocolError, TaskState, UsageError
from protoserve.events import CloseReason
from protoserve.kernel.deadline import NO_LIMIT
from protoserve.kernel.life import FORGOTTEN, OPEN, SHUT
from protoserve.kernel.states import state_of
from protoserve.kernel.waiting import stop_connection
from protoserve.testing import MemoryEngine, connection_of

EXAMPLES = int(os.environ.get("PROTOSERVE_MACHINE", "0"))

KINDS = ("now", "later", "pieces", "empty", "nothing", "raise", "none", "push", "bad0", "bad1")
"""What a handler does; ``later`` and ``nothing`` leave it to a rule."""

TOKEN = re.compile(rb"<\d+:x*>|\[\d+\]|HELLO|BYE|ERR no\n|#\d+\n")
PART = re.compile(rb"<\d*:?x*|\[\d*|H|HE|HEL|HELL|B|BY|E(R(R( (no?)?)?)?)?|#\d*|")


class Session(WordSession):
    """One request. Its line is ``[word] kind number``, its reply ``<number:>``."""

    service: Service
    size = 0

    def message_in(self, message: str) -> None:
        super().message_in(message)
        *_, self.kind, number = message.split()
        self.number = int(number)
        self.answer = self.whole()
        self.calls = 0
        self.over = False
        self.replied = False

    def whole(self) -> bytes:
        return b"<%d:%s>" % (self.number, b"x" * self.size)

    def pieces(self, fails_at: int | None = None) -> Iterator[bytes]:
        """The reply in pieces; it may fail before the first, or later."""
        for index, piece in enumerate((b"<%d" % self.number, b"", b":" + b"x" * self.size, b">")):
            if index == fails_at:
                raise ValueError("a reply's fault")
            yield piece

    def handle(self, state: TaskState, error: int) -> None:
        assert not self.calls, "told within another call"
        assert not self.connection.entry.locked_here
        self.calls += 1
        try:
            super().handle(state, error)
        finally:
            self.calls -= 1
        if state is not TaskState.TOREPLY:
            assert self.replied
            self.over = True

    def reply(self, answer: Any = None) -> bool:
        assert not self.replied
        self.replied = True
        try:
            sent = super().reply(answer)
        except BaseException:
            self.replied = False
            raise
        self.over = self.over or not sent
        return sent

    def end(self) -> None:
        self.replied = self.over = True
        super().end()

    def abandon(self) -> None:
        self.replied = self.over = True
        self.connection.communicator.abandon(self)
        self.connection.communicator.forget(self)

    def reply_failed(self, error: BaseException | None) -> None:
        self.replied = False
        if error is None:
            self.replied = self.over = True
            self.connection.communicator.forget(self)
        else:
            self.reply(self.whole())

    def end_quietly(self) -> bool:
        quiet = super().end_quietly()
        self.over = self.over or quiet
        return quiet


class Service(WordService):
    """A server of it."""

    word: Any = b""
    bye: Any = b""

    def greeting(self, conn: CommConnection) -> Any:
        return self.word

    def farewell(self, conn: CommConnection, reason: CloseReason) -> Any:
        return self.bye


def handler(session: Session) -> None:
    kind = session.kind
    if kind == "now":
        session.reply()
    elif kind == "empty":
        session.reply(b"")
    elif kind == "pieces":
        session.reply(session.pieces())
    elif kind == "bad0":
        try:
            session.reply(session.pieces(0))
        except ValueError:
            session.reply()
    elif kind == "bad1":
        session.reply(session.pieces(2))
    elif kind == "none":
        session.end()
    elif kind == "push":
        session.connection.push(b"[%d]" % session.number)
        session.reply()
    elif kind == "raise":
        session.replied = session.over = True
        raise ValueError("a handler's fault")


class ConnectionMachine(RuleBasedStateMachine):
    """One connection, its client and its server."""

    @initialize(
        in_flight=st.sampled_from([1, 3]),
        word=st.sampled_from([b"", b"HELLO", HOLD]),
        bye=st.sampled_from([b"", b"BYE", ProtocolError("bye", reply=b"BYE")]),
        record=st.sampled_from([None, 7]),
        room=st.sampled_from([None, 0, 5]),
        quiet=st.booleans(),
        unsent_limit=st.sampled_from([20, 100_000]),
        forgets=st.booleans(),
    )
    def connect(
        self,
        in_flight: int,
        word: Any,
        bye: Any,
        record: int | None,
        room: int | None,
        quiet: bool,
        unsent_limit: int,
        forgets: bool,
    ) -> None:
        gc.disable()
        logging.disable()  # pytest keeps exceptions, with their frames
        self.engine = MemoryEngine()
        self.service = Service(
            handler,  # type: ignore[arg-type]
            in_flight=in_flight,
            session=Session,
            peer_response_timeout=10,
            receive_timeout=30,
            send_timeout=40,
            keep_alive_timeout=20,
            unsent_limit=unsent_limit,
            max_pipelined=4,
            request_size_limit=500,
        )
        self.service.quiet = quiet
        self.service.word = word
        self.service.bye = bye
        self.forgets = forgets
        self.closed: list[object] = []
        self.ended: list[object] = []
        self.peer = self.engine.connect(self.service, room=room, record=record)
        conn = connection_of(self.service)
        self.entry = conn.entry
        conn.on_close(self.closed.append)
        conn.on_peer_end(self.ended.append)
        self.conn = weakref.ref(conn)
        self.number = 0
        self.climbed = OPEN
        self.outgoing = bytearray()
        self.gone = False
        self.settled = False

    @property
    def rung(self) -> int:
        return self.entry.life.rung

    # -- the client ----------------------------------------------------------------------

    @rule(
        word=st.sampled_from(["", "", "hold ", "body ", "whole "]),
        kind=st.sampled_from(KINDS),
        size=st.integers(0, 60),
    )
    def write(self, word: str, kind: str, size: int) -> None:
        self.number += 1
        if word in ("body ", "whole "):
            word += f"{size} "
        self.outgoing += f"{word}{kind} {self.number}\n".encode()
        if word[:1] in ("b", "w"):
            self.outgoing += b"z" * size

    @rule(what=st.sampled_from([b"?#1\n", b"!\n", b"!no\n", b"crash\n", b"\0"]))
    def write_oddly(self, what: bytes) -> None:
        self.outgoing += what

    @precondition(lambda self: self.outgoing and not self.gone)
    @rule(size=st.one_of(st.just(10_000), st.integers(1, 30)), turns=st.integers(0, 3))
    def deliver(self, size: int, turns: int) -> None:
        data = bytes(self.outgoing[:size])
        del self.outgoing[:size]
        self.peer.send(data)
        self.turns(turns)

    @precondition(lambda self: not self.gone)
    @rule(size=st.sampled_from([1, 3, 50, None]))
    def make_room(self, size: int | None) -> None:
        self.peer.read(size)

    @rule(size=st.sampled_from([0, 1, 4]))
    def take_away_room(self, size: int) -> None:
        self.peer.room = size if self.peer.room is None else min(size, self.peer.room)

    @rule(size=st.sampled_from([None, 1, 3]))
    def take_at_most(self, size: int | None) -> None:
        self.peer.at_most = size

    @precondition(lambda self: not self.gone)
    @rule()
    def half_close(self) -> None:
        self.gone = True
        self.peer.shutdown()

    @rule()
    def reset(self) -> None:
        self.gone = True
        self.peer.reset()

    @rule(size=st.sampled_from([0, 5]))
    def acknowledge(self, size: int) -> None:
        self.peer.under_way = size

    # -- the server ----------------------------------------------------------------------

    def waiting(self) -> list[Session]:
        """The sessions that have not replied."""
        return [s for s in self.service.sessions if not s.replied]  # type: ignore[attr-defined]

    def answer_all(self) -> None:
        """In a function of its own, whose variables end with it: a session would keep the
        connection."""
        for session in self.waiting():
            session.reply()

    @precondition(lambda self: self.waiting())
    @rule(
        which=st.integers(0, 5),
        how=st.sampled_from(["whole", "pieces", "empty", "bad1", "bad0", "end", "abandon"]),
        size=st.sampled_from([0, 0, 30]),
        last=st.booleans(),
    )
    def answer(self, which: int, how: str, size: int, last: bool) -> None:
        waiting = self.waiting()
        session = waiting[which % len(waiting)]
        session.size = size
        if last:
            session.keep_alive = 0
        if how == "whole":
            session.reply(session.whole())
        elif how == "pieces":
            session.reply(session.pieces())
        elif how == "empty":
            session.reply(b"")
        elif how == "bad1":
            session.reply(session.pieces(2))
        elif how == "bad0":
            if not session.connection.closed:
                try:
                    session.reply(session.pieces(0))
                except ValueError:
                    return
        elif how == "end":
            session.end()
        else:
            session.abandon()

    @precondition(lambda self: self.waiting())
    @rule(which=st.integers(0, 5))
    def read_a_body(self, which: int) -> None:
        waiting = self.waiting()
        session = waiting[which % len(waiting)]
        if session.body is not None:
            try:
                while session.body.pull(lambda: None):
                    continue
            except (ConnectionResetError, TimeoutError, ProtocolError, RuntimeError):
                return

    @rule(which=st.integers(0, 5))
    def answer_again(self, which: int) -> None:
        done = [s for s in self.service.sessions if s.replied]  # type: ignore[attr-defined]
        if not done:
            return
        session = done[-1 - which % len(done)]
        try:
            self.engine.communicator.reply(session)
        except UsageError:
            return
        raise AssertionError("a second reply was taken")

    @rule(size=st.sampled_from([0, 40]))
    def push(self, size: int) -> None:
        conn = self.conn()
        if conn is not None:
            self.number += 1
            conn.push(b"[" + str(self.number).encode().zfill(size + 1) + b"]")

    @rule(seconds=st.sampled_from([0.1, 3, 9, 11, 25, 45]))
    def wait(self, seconds: float) -> None:
        self.engine.advance(seconds)

    @rule(turns=st.integers(1, 5))
    def turns(self, turns: int) -> None:
        for _ in range(turns):
            self.engine.turn()

    @rule()
    def run(self) -> None:
        self.engine.run(300)
        self.settled = True

    @rule()
    def times(self) -> None:
        conn = self.conn()
        if conn is not None:
            conn.set_timeout(keep_alive=15, receive=25)

    @rule()
    def stop(self) -> None:
        self.service.stopping = True
        for conn in self.service.connections():
            stop_connection(conn.entry)

    @rule()
    def close(self) -> None:
        conn = self.conn()
        if conn is not None:
            conn.close()

    # -- what holds always ---------------------------------------------------------------

    @invariant()
    def it_only_climbs(self) -> None:
        rung = self.rung
        assert rung >= self.climbed
        self.climbed = rung
        assert (rung >= SHUT) == self.peer.closed
        assert len(self.closed) <= 1
        assert len(self.ended) <= 1
        assert len(self.service.ends) <= 1

    @invariant()
    def counts_are_right(self) -> None:
        output = self.entry.output
        assert output.size == sum(map(len, output.buffers))
        assert all(output.buffers)
        if self.rung < SHUT:
            assert output.end - output.size == output.sent
        assert output.sent == len(self.peer.received)
        assert self.service._references == 1 + (self.rung < FORGOTTEN)
        assert (self.rung < SHUT) == (self.service.conn_count == 1)
        exchanges = self.entry.exchanges
        assert not exchanges.pumping
        assert not exchanges.deferred
        assert not exchanges.running
        assert exchanges.held_size == sum(map(len, exchanges.held or ()))
        ends = [end for _, end in output.marks]
        assert ends == sorted(ends)
        assert not exchanges.finished
        assert exchanges.dropped is None
        in_hand = {exchanges.session, *(exchanges.others or ())} - {None}
        assert len(in_hand) <= self.service.in_flight
        if exchanges.collecting is None:
            for session in self.service.sessions:
                replied = session.replied  # type: ignore[attr-defined]
                if session not in in_hand:
                    assert replied
                elif replied:
                    stream = exchanges.stream
                    assert (stream is not None and stream.session is session) or any(
                        waits is session for waits, _, _ in exchanges.replies or ()
                    )

    @invariant()
    def nobody_is_told_twice(self) -> None:
        for session in self.service.sessions:
            assert [state for state, _ in session.states][:1] == [TaskState.TOREPLY]
            assert len(session.states) <= 2

    @invariant()
    def what_came_makes_sense(self) -> None:
        data = bytes(self.peer.received)
        at = 0
        numbers = []
        while found := TOKEN.match(data, at):
            at = found.end()
            if found[0][:1] == b"<":
                numbers.append(int(found[0][1:].partition(b":")[0]))
        assert PART.fullmatch(data, at), data
        assert len(set(numbers)) == len(numbers)
        if self.service.in_flight == 1:
            assert numbers == sorted(numbers)
        given = {s.number for s in self.service.sessions if s.replied}  # type: ignore[attr-defined]
        assert given.issuperset(numbers)

    @invariant()
    def a_limit_runs_that_the_state_names(self) -> None:
        settled, self.settled = self.settled, False
        deadline = self.entry.deadline
        if self.rung >= SHUT:
            assert deadline.limit is NO_LIMIT
            assert deadline._timer is None
            return
        assert deadline.looks_at <= deadline.at
        assert (deadline._timer is None) == (deadline.looks_at == inf)
        if deadline.limit is NO_LIMIT:
            assert deadline.at == inf or self.entry.exchanges.posted
        if settled:
            assert not self.entry.exchanges.posted
            state = state_of(self.entry)
            assert deadline.limit is state.limit, state.meaning
            if deadline.limit is not NO_LIMIT:
                assert deadline.at < inf
            self.nothing_is_left_undone()

    def nothing_is_left_undone(self) -> None:
        """... when the poller has nothing to do."""
        entry = self.entry
        exchanges = entry.exchanges
        output = entry.output
        peer = self.peer
        if output.buffers:
            assert peer.room == 0
        if not exchanges.in_hand and not output.buffers:
            # LAST and FAREWELL wait for nothing else.
            assert entry.life.rung not in range(OPEN + 1, OPEN + 3)
            if entry.life.rung == OPEN and not entry.intake.held:
                assert not peer.unread
                assert not entry.intake.more
                assert not entry.intake.queue
                assert not entry.intake.eof
        assert not (exchanges.stream is not None and not output.buffers)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        engine, service = self.engine, self.service
        try:
            if not self.forgets:
                self.run()
                self.a_limit_runs_that_the_state_names()
            else:
                self.peer.reset()
            self.answer_all()
            engine.advance(200)
            while self.waiting():  # each that is answered lets others be handed over
                self.answer_all()
                engine.advance(200)
            self.peer.room = None
            engine.advance(200)
            self.it_only_climbs()
            self.counts_are_right()
            self.nobody_is_told_twice()
            self.what_came_makes_sense()
            assert self.rung == FORGOTTEN
            assert len(self.closed) == len(service.ends) == 1
            assert all(s.over for s in service.sessions)  # type: ignore[attr-defined]
            service.release()
            assert service.unbound == 1
            self.closed.clear()
            self.ended.clear()
            service.sessions.clear()
            service.parsers.clear()
            self.peer._gone = None
            assert self.conn() is None
        finally:
            gc.enable()
            logging.disable(logging.NOTSET)
            engine.close()


TestConnection = ConnectionMachine.TestCase
TestConnection.settings = settings(
    max_examples=EXAMPLES or 60,
    stateful_step_count=100 if EXAMPLES else 30,
    deadline=None,
    # Not the phase that explains, which traces every line and takes minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
