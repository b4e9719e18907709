"""The ladder that a connection climbs, and the table that names its states."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from line_service import LineService, later

from protoserve.events import CloseReason
from protoserve.kernel.life import LAST, LINGERING, OPEN, RUNGS, SHUT, Life
from protoserve.kernel.states import STATES, state_of
from protoserve.testing import MemoryEngine, connection_of


@pytest.mark.parametrize("here", range(len(RUNGS)))
@pytest.mark.parametrize("there", range(len(RUNGS)))
def test_the_ladder_is_only_climbed(here: int, there: int) -> None:
    life = Life()
    life.rung = here
    if there > here:
        life.climb(there)
        assert life.rung == there
        return
    with pytest.raises(RuntimeError, match=rf"{RUNGS[here]} cannot become {RUNGS[there]}"):
        life.climb(there)
    assert life.rung == here


def test_an_end_on_top_of_another_goes_no_step_back() -> None:
    life = Life()
    life.end(CloseReason.CUT, LINGERING)
    life.end(CloseReason.LAST_REPLY)
    assert life.rung == LINGERING
    assert life.reason is CloseReason.LAST_REPLY


def _walk(engine: MemoryEngine) -> Iterator[str]:
    """The states that a connection passes, by its own deeds."""
    service = LineService(later)
    peer = engine.connect(service, room=0)
    entry = connection_of(service).entry
    engine.run()
    yield "CONNECTED"
    peer.send(b"part")
    engine.run()
    yield "RECEIVING"
    peer.send(b"\n")
    engine.run()
    yield "PROCESSING"
    service.sessions[0].reply()
    yield "REPLYING"
    peer.read()
    engine.run()
    yield "KEEPALIVE"
    peer.send(b"!no")
    peer.send(b"\n")
    engine.run()
    yield "DRAINING"
    assert OPEN < LAST < entry.life.rung < SHUT
    peer.shutdown()
    engine.run()
    yield "CLOSED"


def test_the_state_names_the_limit_that_runs(engine: MemoryEngine) -> None:
    service_states = set()
    for name in (walk := _walk(engine)):
        assert walk.gi_frame is not None  # type: ignore[attr-defined]
        entry = walk.gi_frame.f_locals["entry"]  # type: ignore[attr-defined]
        state = state_of(entry)
        assert state.name == name
        assert state.limit is entry.deadline.limit
        service_states.add(name)
    assert service_states == {state.name for state in STATES}


def test_every_row_says_what_it_means() -> None:
    assert all(state.meaning for state in STATES)
    assert STATES[-1].holds(None)  # type: ignore[arg-type]
