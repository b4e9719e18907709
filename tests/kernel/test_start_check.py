"""What a protocol's parser must have is looked at when the server starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from line_service import LineParser

from protoserve import ConfigError, ProtocolSpec, ServerParams, WFServer


def spec(message_in: Callable[[ServerParams], Any]) -> ProtocolSpec[Any, Any]:
    return ProtocolSpec(
        name="odd", message_in=message_in, message_out=lambda out: b"", response=object
    )


class MethodForProperty(LineParser):
    def partial(self) -> bool:  # type: ignore[override]
        return False


class NoParser:
    def feed(self, data: bytes) -> None:
        """Alone it is not enough."""


def no_arguments() -> LineParser:
    return LineParser()


@pytest.mark.parametrize(
    ("message_in", "remedy"),
    [
        (lambda params: MethodForProperty(), "put @property above it"),
        (lambda params: NoParser(), "derive it from MessageParser"),
        (lambda params: None, "a NoneType, which has no method feed()"),
        (lambda params: 1 / 0, "message_in raised ZeroDivisionError"),
    ],
)
def test_refused_at_the_start(message_in: Any, remedy: str) -> None:
    server = WFServer(spec(message_in), lambda task: None)
    with pytest.raises(ConfigError) as info:
        server.start("127.0.0.1", 0)
    assert remedy in str(info.value)
    assert "protocol 'odd'" in str(info.value)


def test_refused_before() -> None:
    with pytest.raises(ConfigError) as info:
        spec(no_arguments)
    assert "message_in is called as message_in(params)" in str(info.value)
    assert "protocol 'odd'" in str(info.value)


def test_the_parser_that_was_looked_at_is_closed() -> None:
    made: list[LineParser] = []

    def message_in(params: ServerParams) -> LineParser:
        made.append(LineParser())
        return made[-1]

    with WFServer(spec(message_in), lambda task: None).start("127.0.0.1", 0):
        assert [parser.closed for parser in made] == [1]
