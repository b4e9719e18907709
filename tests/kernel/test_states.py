"""The table of a connection's states."""

from __future__ import annotations

import pytest

from protoserve.kernel import connection
from protoserve.kernel.connection import CLOSED, CONNECTED, TRANSITIONS, State

STATES = sorted({state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()), key=repr)
SIGNALS = sorted({signal for _, signal in TRANSITIONS})
ILLEGAL = [
    (state, signal) for state in STATES for signal in SIGNALS if (state, signal) not in TRANSITIONS
]


@pytest.mark.parametrize(("state", "signal"), list(TRANSITIONS))
def test_legal(state: State, signal: str) -> None:
    assert getattr(state, signal) is TRANSITIONS[state, signal]


@pytest.mark.parametrize(("state", "signal"), ILLEGAL)
def test_illegal_names_state_and_signal(state: State, signal: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{state.name}.*'{signal}'"):
        getattr(state, signal)


def test_the_table_knows_every_state_and_signal() -> None:
    named = {value for value in vars(connection).values() if isinstance(value, State)}
    assert set(STATES) == named
    assert set(SIGNALS) == set(State.__slots__) - {"name"}


def test_nothing_follows_closed_and_everything_can_close() -> None:
    assert not [signal for state, signal in TRANSITIONS if state is CLOSED]
    assert all((state, "close") in TRANSITIONS for state in STATES if state is not CLOSED)


def test_every_state_is_reached() -> None:
    reached = {CONNECTED}
    while (
        found := {after for (before, _), after in TRANSITIONS.items() if before in reached}
        - reached
    ):
        reached |= found
    assert reached == set(STATES)
