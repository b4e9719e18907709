"""Ends that come while something else is told, waits or runs."""

from __future__ import annotations

import pytest
from line_service import LineService, LineSession, later

from protoserve.testing import MemoryEngine, connection_of


def finish(engine: MemoryEngine, service: LineService) -> None:
    """Nothing keeps the service alive but its listener."""
    assert service.unbound == 0
    service.release()
    engine.run()
    assert service.unbound == 1


@pytest.mark.parametrize("how", ["end", "abandon"])
def test_an_end_while_a_session_is_told_of_its_own(engine: MemoryEngine, how: str) -> None:
    """It is asked for while the connection tells an earlier session that it was sent."""
    service = LineService(lambda session: session.line == "b" or session.reply())

    def result(session: LineSession) -> None:
        if session.line == "a":
            other = service.sessions[1]
            if how == "end":
                other.end()
            else:
                engine.communicator.abandon(other)

    service.on_result = result
    peer = engine.connect(service)
    closed: list[object] = []
    connection_of(service).on_close(closed.append)
    peer.send(b"a\nb\n")
    engine.run()
    assert peer.closed
    assert len(closed) == 1
    assert len(service.ends) == 1
    finish(engine, service)


def test_a_handler_that_raises_when_all_is_over(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """It has replied, and the connection has closed and was given back."""

    def handler(session: LineSession) -> None:
        session.reply()
        entry = session.connection.entry
        entry.lock.acquire()
        entry.output.flush(entry)  # as another thread would, that was told that this blocks
        entry.release()
        session.connection.close()
        raise ValueError("a fault")

    service = LineService(handler)
    service.quiet = True
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    assert peer.closed
    assert service.reasons == ["closed by the server"]
    assert "the session failed" in caplog.text
    entry = service.sessions[0].connection.entry
    assert not entry.locked_here
    finish(engine, service)


def test_drained_waits_for_what_is_held_behind_a_reply(engine: MemoryEngine) -> None:
    service = LineService(later)
    peer = engine.connect(service)
    peer.send(b"a\n")
    engine.run()
    conn = connection_of(service)
    pieces = iter([b"x", b"y\n"])
    service.sessions[0].reply(pieces)
    conn.push(b"news\n")
    woken: list[None] = []
    assert conn.pending
    assert conn.entry.wait_for_room(0, lambda: woken.append(None))
    engine.run()
    assert bytes(peer.received) == b"xy\nnews\n"
    assert woken == [None]
    assert conn.pending == 0
