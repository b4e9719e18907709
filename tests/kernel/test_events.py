"""Events: small frozen facts, observers that may fail, and what reaches the log."""

from __future__ import annotations

import dataclasses
import logging
from typing import get_args

import pytest
from line_service import LineService

from protoserve import events
from protoserve.events import (
    AcceptFailed,
    ConnectionOpened,
    Event,
    HandlersBlocked,
    LimitReached,
    log_event,
)


def test_all_are_small_frozen_facts() -> None:
    kinds = {
        value
        for value in vars(events).values()
        if dataclasses.is_dataclass(value) and isinstance(value, type)
    }
    assert set(get_args(Event)) == kinds
    for kind in kinds:
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert not hasattr(kind, "__dict__") or "__slots__" in vars(kind)
        assert kind.__doc__


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (LimitReached("max_connections", 5, "waited"), "max_connections=5 reached: waited"),
        (AcceptFailed(24, "Too many open files", 0.1), "Too many open files"),
        (HandlersBlocked(20), "all 20 handler threads are blocked; raise handler_threads"),
    ],
)
def test_rare_events_are_logged(
    event: Event, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    log_event(event)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("protoserve", logging.WARNING)
    assert words in record.getMessage()
    assert record.__dict__["event"] == type(event).__name__
    for field in dataclasses.fields(event):
        assert record.__dict__[f"event_{field.name}"] == getattr(event, field.name)


def test_frequent_events_are_not(caplog: pytest.LogCaptureFixture) -> None:
    log_event(ConnectionOpened("peer"))
    assert caplog.records == []


def test_observers(caplog: pytest.LogCaptureFixture) -> None:
    service = LineService()
    seen: list[Event] = []

    def fail(event: Event) -> None:
        raise SystemExit("a fault of an observer")

    service.subscribe(fail)
    service.subscribe(seen.append)
    service.emit(ConnectionOpened("a"))
    service.notify(HandlersBlocked(1))
    assert seen == [ConnectionOpened("a"), HandlersBlocked(1)]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    service.unsubscribe(seen.append)
    service.unsubscribe(fail)
    service.unsubscribe(fail)
    service.emit(ConnectionOpened("b"))
    assert len(seen) == 2
