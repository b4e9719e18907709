"""Resource pools."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flow import (
    PATIENCE,
    RawClient,
    WFHttpServer,
    WFHttpTask,
    closed_by,
    depth,
    get,
    in_thread,
    run,
    start,
)

from protoserve import ConfigError, ResourcePool, ResourceTask, counter, empty, go, timer


def fail() -> None:
    raise ValueError("a fault")


def free(pool: ResourcePool[Any]) -> int:
    return len(pool._free)


def test_resources() -> None:
    pool = ResourcePool(["a", "b"])
    notes: list[str] = []
    run(pool.get(lambda t: notes.append(t.result)), pool.get(lambda t: notes.append(t.result)))
    assert notes == ["a", "b"]
    _, ended = start(pool.get(lambda t: notes.append(t.result)))
    assert not ended.is_set()
    in_thread(lambda: pool.post("c"))
    assert ended.wait(PATIENCE)
    assert notes == ["a", "b", "c"]


def test_first_come_first_served() -> None:
    pool: ResourcePool[None] = ResourcePool(1)
    order: list[int] = []
    run(pool.get())
    ends = []
    for n in range(100):

        def callback(task: ResourceTask[None], n: int = n) -> None:
            order.append(n)
            pool.post()

        ends.append(start(pool.get(callback))[1])
    assert order == []
    pool.post()
    assert all(end.is_set() for end in ends)
    assert order == list(range(100))
    assert free(pool) == 1


@pytest.mark.parametrize("resources", [0, -1, True])
def test_no_resources(resources: Any) -> None:
    with pytest.raises(ConfigError, match="expected at least 1"):
        ResourcePool(resources)


def test_filled_later() -> None:
    pool: ResourcePool[str] = ResourcePool([])
    notes: list[str] = []
    _, ended = start(pool.get(lambda t: notes.append(t.result)))
    pool.post("late")
    assert ended.wait(PATIENCE)
    assert notes == ["late"]


def test_ten_thousand_waiters_flat() -> None:
    pool: ResourcePool[None] = ResourcePool(1)
    run(pool.get())
    depths: set[int] = set()

    def callback(task: ResourceTask[None]) -> None:
        depths.add(depth())
        pool.post()

    every = counter(10_000)
    for _ in range(10_000):
        start(pool.get(callback), empty(lambda t: every.count()))
    _, ended = start(every)
    pool.post()
    assert ended.wait(PATIENCE)
    assert len(depths) == 1


def test_ten_thousand_runs_flat() -> None:
    pool: ResourcePool[None] = ResourcePool(1)
    depths: set[int] = set()
    every = counter(10_000)
    run(pool.get())
    for _ in range(10_000):
        start(
            pool.run(lambda r: empty(lambda t: depths.add(depth()))),
            empty(lambda t: every.count()),
        )
    _, ended = start(every)
    pool.post()
    assert ended.wait(PATIENCE)
    assert len(depths) == 1
    assert free(pool) == 1


def test_run_bounds_what_runs_at_once() -> None:
    pool: ResourcePool[None] = ResourcePool(3)
    lock = threading.Lock()
    now, most = 0, 0

    def change(by: int) -> None:
        nonlocal now, most
        with lock:
            now += by
            most = max(most, now)

    def process(task: WFHttpTask) -> None:
        def create(_: None) -> Any:
            change(1)
            return timer(0.005, lambda t: change(-1))

        task.series.push_back(pool.run(create))

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(20)]
        for client in clients:
            client.send(get())
        for client in clients:
            assert client.reply().status == 200
            client.close()
    assert most == 3
    assert free(pool) == 3


@pytest.mark.parametrize("where", ["create", "task"])
def test_run_gives_back_after_a_failure(where: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = ResourcePool(["a"])

    def create(resource: str) -> Any:
        if where == "create":
            fail()
        return go(fail)

    series = run(pool.run(create), empty())
    assert isinstance(series.failure, ValueError)
    assert free(pool) == 1
    assert len(caplog.records) == 1


def test_run_gives_back_when_it_is_cancelled() -> None:
    pool: ResourcePool[None] = ResourcePool(1)
    series, ended = start(pool.run(lambda r: timer(60)))
    assert free(pool) == 0
    series.cancel()
    assert ended.wait(PATIENCE)
    assert free(pool) == 1


def test_a_cancelled_waiter_is_passed_over() -> None:
    pool = ResourcePool(["a"])
    notes: list[str] = []
    run(pool.get())
    one, one_ended = start(pool.get(lambda t: notes.append("one")))
    _, two_ended = start(pool.get(lambda t: notes.append("two")))
    one.cancel()
    assert one_ended.wait(PATIENCE)
    pool.post("a")
    assert two_ended.wait(PATIENCE)
    assert notes == ["two"]
    assert free(pool) == 0


def test_cancelled_before_its_turn_takes_nothing() -> None:
    pool: ResourcePool[None] = ResourcePool(1)
    series, ended = start(timer(60), pool.run(lambda r: timer(60)))
    series.cancel()
    assert ended.wait(PATIENCE)
    assert free(pool) == 1


def test_cancelled_when_it_is_handed_out(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the moment is, the resource is in the pool at the end."""
    pool: ResourcePool[None] = ResourcePool(1)
    for _ in range(300):
        series, ended = start(timer(0), pool.run(lambda r: timer(0)), pool.run(lambda r: empty()))
        in_thread(series.cancel)
        assert ended.wait(PATIENCE)
        assert free(pool) == 1
    assert caplog.records == []


def test_cancelled_between_the_grant_and_the_callback() -> None:
    pool: ResourcePool[None] = ResourcePool(1)

    class Cancelling(ResourceTask[None]):
        """Stands for a thread that cancels at the worst moment."""

        def begin(self) -> None:
            super().begin()
            self.series.cancel()

    notes: list[str] = []
    run(Cancelling(pool, lambda t: notes.append("callback")))
    assert notes == []
    assert free(pool) == 1


def test_cancelled_request() -> None:
    pool: ResourcePool[None] = ResourcePool(1)
    run(pool.get())

    def process(task: WFHttpTask) -> None:
        series = task.series
        series.push_back(pool.get())
        timer(0.01, lambda t: series.cancel()).start()

    assert closed_by(process) == b""
    pool.post()
    assert free(pool) == 1
