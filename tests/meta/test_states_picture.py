"""The picture of a connection's states in the documentation is that of the table."""

from __future__ import annotations

from pathlib import Path

from protoserve.kernel.connection import TRANSITIONS

BEHAVIOUR = Path(__file__).parent.parent.parent / "docs" / "behaviour.md"


def test_picture_is_drawn_from_the_table() -> None:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> CONNECTED"]
    lines += [
        f"    {state!r} --> {following!r}: {signal}"
        for (state, signal), following in TRANSITIONS.items()
    ]
    lines += ["    CLOSED --> [*]", "```"]
    assert "\n".join(lines) in BEHAVIOUR.read_text(), "replace the picture with this one"
