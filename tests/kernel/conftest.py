"""The engine that the test moves by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protoserve.testing import MemoryEngine


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    engine = MemoryEngine()
    yield engine
    engine.close()
