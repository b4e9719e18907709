"""The table of a connection's states in the documentation is the engine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.kernel.deadline import NO_LIMIT
from protoserve.kernel.life import RUNGS
from protoserve.kernel.states import STATES

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.parametrize("document", ["behaviour.md", "design.md"])
def test_the_table_is_the_engine_s(document: str) -> None:
    rows = [
        f"| {state.name} | {state.meaning} | "
        f"{'' if state.limit is NO_LIMIT else f'`{state.limit.name}`'} |"
        for state in STATES
    ]
    table = "\n".join(["| state | what | which limit runs |", "|---|---|---|", *rows])
    assert table in (DOCS / document).read_text(), f"put this into docs/{document}:\n{table}"


def test_the_ladder_is_the_engine_s() -> None:
    assert " < ".join(RUNGS) in (DOCS / "design.md").read_text()
