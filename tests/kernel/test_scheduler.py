"""CommScheduler: threads and descriptors exist while a service is bound."""

from __future__ import annotations

import threading
import time

import pytest
from line_service import LineService

from protoserve import CommScheduler, get_scheduler
from protoserve.events import HandlersBlocked
from protoserve.kernel.communicator import Communicator
from protoserve.kernel.engine import ThreadEngine

PATIENCE = 10.0


def set_event(event: threading.Event, mask: int) -> None:
    event.set()


def handler_threads() -> int:
    return sum(thread.name.startswith("protoserve-") for thread in threading.enumerate())


def test_shared_by_two_services() -> None:
    scheduler = CommScheduler()
    first, second = LineService(), LineService()
    assert not scheduler.running
    communicator = scheduler.bind(first)
    assert scheduler.bind(second) is communicator
    assert scheduler.running
    assert handler_threads() == 2  # a leader and its monitor
    scheduler.service_ended(first)
    scheduler.service_ended(first)  # twice is harmless
    ran = threading.Event()
    communicator.poller.post(set_event, ran)
    assert ran.wait(PATIENCE), "the engine runs on for the other"
    scheduler.service_ended(second)
    assert scheduler.join(PATIENCE)
    assert not scheduler.running
    assert handler_threads() == 0


def test_bind_again() -> None:
    scheduler = CommScheduler()
    service = LineService()
    engines = set()
    for _ in range(5):
        communicator = scheduler.bind(service)
        engines.add(communicator.poller)
        ran = threading.Event()
        communicator.poller.post(set_event, ran)
        assert ran.wait(PATIENCE)
        scheduler.service_ended(service)
        assert scheduler.join(PATIENCE)
    assert len(engines) == 5
    assert handler_threads() == 0


def test_bind_again_before_the_threads_are_joined() -> None:
    scheduler = CommScheduler()
    gate, began = threading.Event(), threading.Event()

    def block(_: None, mask: int) -> None:
        began.set()
        gate.wait(PATIENCE)

    service = LineService()
    scheduler.bind(service).poller.post(block, None)
    assert began.wait(PATIENCE)
    scheduler.service_ended(service)
    assert not scheduler.join(0)
    ran = threading.Event()
    scheduler.bind(service).poller.post(set_event, ran)
    assert ran.wait(PATIENCE)
    gate.set()
    assert scheduler.join(PATIENCE)
    assert scheduler.running
    scheduler.service_ended(service)
    assert scheduler.join(PATIENCE)


def test_nobody_waits_for_the_handlers_of_others() -> None:
    scheduler = CommScheduler()
    gate, began = threading.Event(), threading.Event()

    def block(_: None, mask: int) -> None:
        began.set()
        gate.wait(PATIENCE)

    first, second = LineService(), LineService()
    scheduler.bind(first).poller.post(block, None)
    assert began.wait(PATIENCE)
    scheduler.service_ended(first)
    assert not scheduler.join(0, first)
    scheduler.bind(second)
    scheduler.service_ended(second)
    assert scheduler.join(PATIENCE, second)
    scheduler.bind(first)  # its second life is not held up by the first
    scheduler.service_ended(first)
    assert scheduler.join(PATIENCE, first)
    assert scheduler.running
    gate.set()
    assert scheduler.join(PATIENCE)
    assert not scheduler.running


def test_the_most_demanding_service_counts() -> None:
    scheduler = CommScheduler()
    services = [LineService(handler_threads=n) for n in (2, 4, 1)]
    gate = threading.Event()
    for service in services:
        communicator = scheduler.bind(service)
    events: list[object] = []
    blocked = threading.Event()

    def note(event: object) -> None:
        events.append(event)
        blocked.set()

    services[0].subscribe(note)
    began = threading.Semaphore(0)

    def block(_: None, mask: int) -> None:
        engine = services[0].engine
        assert engine is not None
        if engine.defer(block, None):
            return
        began.release()
        gate.wait(PATIENCE)

    for _ in range(5):
        communicator.poller.post(block, None)
    for _ in range(4):
        assert began.acquire(timeout=PATIENCE)
    assert blocked.wait(PATIENCE)
    assert not began.acquire(timeout=0.05)
    assert events == [HandlersBlocked(4)]
    gate.set()
    for service in services:
        scheduler.service_ended(service)
    assert scheduler.join(PATIENCE)


def test_a_service_that_is_bound_later_is_told_that_all_are_busy() -> None:
    scheduler = CommScheduler()
    first, second = LineService(), LineService()
    told: list[str] = []
    first.subscribe(lambda event: told.append("first"))
    second.subscribe(lambda event: told.append("second"))
    scheduler.bind(first)
    for _ in range(3):
        scheduler.on_exhausted(1)
    before = list(told)
    scheduler.bind(second)
    for _ in range(3):
        scheduler.on_exhausted(1)
    scheduler.service_ended(first)
    scheduler.service_ended(second)
    assert scheduler.join(PATIENCE)
    assert before == ["first"]  # once a minute
    assert told == ["first", "first", "second"]


def test_what_is_to_be_called_where_handlers_run_waits_for_a_thread() -> None:
    scheduler = CommScheduler()
    service = LineService(handler_threads=1)
    communicator = scheduler.bind(service)
    engine = service.engine
    assert isinstance(engine, ThreadEngine)
    gate, began = threading.Event(), threading.Event()

    def block(_: None, mask: int) -> None:
        engine._threads.promote()
        began.set()
        gate.wait(PATIENCE)

    communicator.poller.post(block, None)
    assert began.wait(PATIENCE)
    called, behind = threading.Event(), threading.Event()
    engine.call(called.set)
    communicator.poller.post(set_event, behind)
    assert behind.wait(PATIENCE), "the leader goes on"
    too_early = called.is_set()
    gate.set()
    assert called.wait(PATIENCE)
    scheduler.service_ended(service)
    assert scheduler.join(PATIENCE)
    assert not too_early


def test_in_handler() -> None:
    scheduler = CommScheduler()
    service = LineService()
    inside: list[bool] = []
    done = threading.Event()

    def look(_: None, mask: int) -> None:
        inside.append(scheduler.in_handler())
        scheduler.service_ended(service)  # never blocks, not even here
        inside.append(scheduler.in_handler())
        done.set()

    scheduler.bind(service).poller.post(look, None)
    assert done.wait(PATIENCE)
    assert inside == [True, True]
    assert not scheduler.in_handler()
    assert scheduler.join(PATIENCE)


def test_an_event_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = CommScheduler()
    service = LineService()
    communicator = scheduler.bind(service)

    def fail(_: None, mask: int) -> None:
        raise ValueError("a fault of the engine")

    ran = threading.Event()
    communicator.poller.post(fail, None)
    communicator.poller.post(set_event, ran)
    assert ran.wait(PATIENCE)
    scheduler.service_ended(service)
    assert scheduler.join(PATIENCE)
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scheduler = CommScheduler()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="refused a thread"):
            scheduler.bind(LineService())
    assert not scheduler.running
    service = LineService()
    scheduler.bind(service)
    scheduler.service_ended(service)
    assert scheduler.join(PATIENCE)


def test_a_clock_of_its_own() -> None:
    scheduler = CommScheduler(clock=lambda: time.monotonic() + 1000)
    service = LineService()
    poller = scheduler.bind(service).poller
    assert isinstance(scheduler.bind(LineService()), Communicator)
    assert poller.time() > time.monotonic() + 900
    for bound in list(scheduler._services):
        scheduler.service_ended(bound)
    assert scheduler.join(PATIENCE)


def test_one_a_process() -> None:
    found: list[CommScheduler] = []
    threads = [threading.Thread(target=lambda: found.append(get_scheduler())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {get_scheduler()}
