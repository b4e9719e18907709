"""Job queues, rate limiters and channel layers do their own work on ``examples/redis_full.py``.

Each runs in a process of its own (``clients/``), some with a worker in another one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kv_server import example, missing

HERE = Path(__file__).parent

PACKAGES = {
    "rq_jobs": "rq",
    "celery_tasks": "celery",
    "huey_tasks": "huey",
    "dramatiq_actors": "dramatiq",
    "limits_windows": "limits",
    "flask_limits": "flask_limiter",
    "channel_layers": "channels_redis",
}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_library_does_its_work(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        missing(f"{PACKAGES[name]} is not installed (pip install 'protoserve[clients]')")
    with example("redis_full") as port:
        environment = {
            **os.environ,
            "STORE": f"redis://127.0.0.1:{port}/2",
            "PYTHONPATH": str(HERE),
        }
        # By its name, so that workers in other processes know its functions by the same.
        code = f"from clients import {name} as program; program.run()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment, cwd=HERE, capture_output=True, text=True, timeout=150, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
