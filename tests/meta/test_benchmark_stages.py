"""What the benchmark takes apart of a request goes with the engine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark pins itself to a core")
def test_the_stages_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    stages = importlib.import_module("benchmarks.stages")
    monkeypatch.setattr(stages, "_RUNS", 10)
    monkeypatch.setattr(stages, "_REPEATS", 3)
    monkeypatch.setattr(stages, "SERVER_CORE", min(stages.os.sched_getaffinity(0)))
    found = stages.echo_stages()
    assert len(found) == 4
    assert all(found[name] > 0 for name in ("parser", "handler: the page", "serialiser"))
