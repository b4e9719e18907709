"""Parsers that the engine calls as C functions, where both are compiled."""

from __future__ import annotations

from typing import Any

import pytest
from line_service import LineParser, LineService

from protoserve import NEED_DATA, CommConnection, MessageParser, NativeParser
from protoserve.testing import MemoryEngine


class Lines(NativeParser[str]):
    """In Python, as a user's may be."""

    def __init__(self, partial: Any = None) -> None:
        self.data = b""
        self.said: Any = partial

    def feed(self, data: bytes) -> None:
        self.data += data

    def next_message(self) -> Any:
        line, end, rest = self.data.partition(b"\n")
        if not end:
            return NEED_DATA
        self.data = rest
        return line.decode()

    @property
    def partial(self) -> bool:
        return bool(self.data)


class Service(LineService):
    parsers: list[MessageParser[Any]]

    def new_parser(self) -> MessageParser[Any]:
        return self.parsers.pop(0)


def only(service: LineService) -> CommConnection:
    (conn,) = service.connections()
    return conn


def service_of(*parsers: MessageParser[Any]) -> Service:
    service = Service(lambda session: session.reply())
    service.parsers = list(parsers)
    return service


@pytest.mark.parametrize("make", [Lines, LineParser])
def test_both_kinds_are_served(engine: MemoryEngine, make: Any) -> None:
    service = service_of(make())
    peer = engine.connect(service)
    for piece in (b"a\nb", b"c\n", b"d"):
        peer.send(piece)
        engine.run()
    assert peer.received == b"a\nbc\n"
    assert only(service).entry.intake.partial
    peer.send(b"\n")
    engine.run()
    assert peer.received == b"a\nbc\nd\n"
    assert not only(service).entry.intake.partial


def test_methods_that_are_overridden_are_called(engine: MemoryEngine) -> None:
    class Upper(Lines):
        def feed(self, data: bytes) -> None:
            super().feed(data.upper())

        def next_message(self) -> Any:
            message = super().next_message()
            return message if message is NEED_DATA else f"<{message}>"

        @property
        def partial(self) -> bool:
            return False

    service = service_of(Upper())
    peer = engine.connect(service)
    peer.send(b"a\nb")
    engine.run()
    assert peer.received == b"<A>\n"
    assert only(service).entry.intake.partial is False


def test_what_it_raises_is_met_as_ever(
    engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Lines):
        def feed(self, data: bytes) -> None:
            raise RuntimeError("of the parser")

    peer = engine.connect(service_of(Broken()))
    peer.send(b"a\n")
    engine.run()
    assert peer.closed
    assert "raised in feed()" in caplog.text


def test_it_is_a_parser() -> None:
    assert issubclass(NativeParser, MessageParser)
    parser = Lines()
    assert isinstance(parser, MessageParser)
    parser.feed_eof()
    assert parser.leftover() == b""
    parser.close()


def test_without_its_methods() -> None:
    class Nothing(NativeParser[str]):
        pass

    with pytest.raises((TypeError, NotImplementedError), match="next_message"):
        Nothing().next_message()  # type: ignore[abstract]
