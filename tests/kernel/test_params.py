"""ServerParams and ProtocolSpec: bad values fail early, naming field, value and remedy."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from line_service import LineParser

from protoserve import SERVER_PARAMS_DEFAULT, ConfigError, Feedback, ProtocolSpec, ServerParams

TIMEOUTS = [f.name for f in dataclasses.fields(ServerParams) if f.name.endswith("_timeout")]
COUNTS = [f.name for f in dataclasses.fields(ServerParams) if not f.name.endswith("_timeout")]
ENDLESS = ["max_connections", "request_size_limit", "receive_rate"]
ZERO = ["keep_alive_timeout", "shutdown_timeout"]


def make(**changes: Any) -> ServerParams:
    return ServerParams(**changes)


def fails(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(ConfigError) as info:
        ServerParams(**{name: value})
    message = str(info.value)
    assert name in message
    assert repr(value) in message
    assert remedy in message


def test_the_fields_are_those_of_the_design() -> None:
    assert {**dataclasses.asdict(SERVER_PARAMS_DEFAULT)} == {
        "max_connections": 10_000,
        "peer_response_timeout": 10,
        "receive_timeout": 60,
        "receive_rate": 4096,
        "keep_alive_timeout": 60,
        "send_timeout": None,
        "ssl_accept_timeout": 10,
        "shutdown_timeout": 15,
        "request_size_limit": 16 * 1024 * 1024,
        "max_pipelined": 64,
        "handler_threads": 20,
        "unsent_limit": 256 * 1024,
        "compute_threads": ThreadPoolExecutor()._max_workers,
        "backlog": 2048,
    }


@pytest.mark.parametrize("name", TIMEOUTS)
def test_timeouts(name: str) -> None:
    value: Any
    for value in (None, 1, 0.001, 366 * 86_400):
        assert getattr(make(**{name: value}), name) == value
    for value in ("10", True, b"1", [1]):
        fails(name, value, "expected seconds as a number, or None for no limit")
    for value in (-1, -0.5, math.inf, math.nan):
        fails(name, value, "use None for no limit")
    for value in (366 * 86_400 + 1, 1e10, 10**400):
        fails(name, value, "expected at most a year, 31622400 seconds; use None for no limit")
    if name in ZERO:
        assert getattr(make(**{name: 0}), name) == 0
    else:
        fails(name, 0, "give a positive number of seconds, or None for no limit")


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    value: Any
    for value in (1, 2**31 - 1 if name == "backlog" else 2**40):
        assert getattr(make(**{name: value}), name) == value
    for value in ("10", True, 1.0, 1.5):
        fails(name, value, "expected a whole number")
    for value in (0, -1):
        fails(name, value, "expected at least 1")
    if name in ENDLESS:
        assert getattr(make(**{name: None}), name) is None
        fails(name, 0, "None for no limit")
    else:
        fails(name, None, "expected a whole number")


def test_positions_and_unknown_fields() -> None:
    with pytest.raises(TypeError):
        ServerParams(10)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ServerParams(no_such_field=1)  # type: ignore[call-arg]


def test_immutable() -> None:
    params = ServerParams()
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.backlog = 5  # type: ignore[misc]
    assert params == ServerParams()
    assert hash(params) == hash(ServerParams())


def test_replace() -> None:
    params = ServerParams(backlog=7).replace(keep_alive_timeout=5)
    assert (params.backlog, params.keep_alive_timeout) == (7, 5)
    with pytest.raises(ConfigError, match="backlog=0"):
        params.replace(backlog=0)
    with pytest.raises(ConfigError, match=r"no field 'keepalive'; it has: .*keep_alive_timeout"):
        params.replace(keepalive=5)


# -- ProtocolSpec --------------------------------------------------------------------------


def spec(**changes: Any) -> ProtocolSpec[Any, Any]:
    fields: dict[str, Any] = {
        "name": "line",
        "message_in": lambda params: LineParser(),
        "message_out": bytes,
        "response": bytes,
    }
    return ProtocolSpec(**{**fields, **changes})


@pytest.mark.parametrize("name", ["http", "a", "http2", "redis-3.0+x", "a_b"])
def test_protocol_names(name: str) -> None:
    assert spec(name=name).name == name


@pytest.mark.parametrize("name", ["", "HTTP", "2http", "a b", "a\n", "-a", "ä", None, b"http"])
def test_protocol_names_that_are_none(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"protocol name .*for example 'http'") as info:
        spec(name=name)
    assert repr(name) in str(info.value)


@pytest.mark.parametrize("field", ["message_in", "message_out", "response"])
def test_what_must_be_callable(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"'line': {field} must be callable, not int"):
        spec(**{field: 5})


def test_params_of_a_protocol() -> None:
    assert spec().params == ServerParams()
    with pytest.raises(ConfigError, match="'line': params must be a ServerParams"):
        spec(params={"backlog": 5})


def test_a_spec_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("data", ["text", None, [b"bytes"], 5])
def test_feedback_is_bytes(data: Any) -> None:
    with pytest.raises(TypeError, match=f"data of Feedback is bytes, not {type(data).__name__}"):
        Feedback(data)
    for good in (b"", bytearray(b"x"), memoryview(b"x")):
        assert Feedback(good).data is good  # type: ignore[arg-type]
