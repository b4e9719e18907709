"""Random pipelines to us and to a real redis-server, see ``redis_differential``."""

from __future__ import annotations

import os

import pytest
from redis_differential import runs

SECONDS = 30.0 if os.environ.get("CI") else 3.0


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_random_pipelines_are_answered_as_redis_answers_them() -> None:
    # The same runs each time, as many as there is time for; others by the command in
    # CONTRIBUTING.md.
    count, different = runs(SECONDS, first=0)
    assert not different, "\n".join(different)
    assert count
