"""What holds for every test: afterwards no thread, descriptor or engine of ours is left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from record_transport import RecordTransport

from protoserve import get_scheduler
from protoserve.kernel import service
from protoserve.testing import no_leaks

# Wheels that tests build are not compiled, which takes a minute.
os.environ["PROTOSERVE_PURE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transport",
        choices=("socket", "records"),
        default="socket",
        help="what servers of this process read through; see tests/record_transport.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sockets(reason): looks at how sockets behave; not for other transports"
    )
    if config.getoption("--transport") == "records":
        service.SocketTransport = RecordTransport  # type: ignore[misc]


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("sockets")
    if mark is not None and item.config.getoption("--transport") != "socket":
        pytest.skip(mark.args[0])


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with no_leaks():
        yield
    assert not get_scheduler().running, "left behind by a test before"
