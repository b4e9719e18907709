"""The distributions of examples/protocols, and what the tests of each need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from protoserve import ProtocolSpec, ServerParams, WFServer

FOLDER = Path(__file__).parents[1] / "examples" / "protocols"
PACKAGES = sorted(path.parent for path in FOLDER.glob("*/pyproject.toml"))


@contextmanager
def serving(
    spec: ProtocolSpec[Any, Any],
    process: Callable[[Any], object],
    how: str,
    params: ServerParams | None = None,
) -> Iterator[WFServer[Any, Any]]:
    """A server on a free port; ``how``: its handlers run in ``threads``, or in a ``loop``."""

    async def in_a_loop(task: Any) -> None:
        process(task)

    handler = process if how == "threads" else in_a_loop
    with WFServer(spec, handler, params).start("127.0.0.1", 0) as server:
        yield server


def program(name: str, package: str) -> str:
    """The path of a client of others; the test is skipped where there is none, but not in CI."""
    path = shutil.which(name)
    if path is None:
        remedy = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(remedy)
        pytest.skip(remedy)
    return path
