"""Executor: compute threads and fair queues."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from protoserve.kernel import executor as module
from protoserve.kernel.executor import Executor

PATIENCE = 10.0


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = Executor(2)
    yield executor
    executor.linger(False)
    assert executor.join(PATIENCE)
    assert executor.threads == 0


class Gate:
    """A job that waits until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE)


def occupy(executor: Executor) -> list[Gate]:
    """Gates that hold every thread."""
    gates = [Gate() for _ in range(executor.max_threads)]
    for n, gate in enumerate(gates):
        executor.submit(f"gate {n}", gate)
    for gate in gates:
        assert gate.entered.wait(PATIENCE)
    return gates


def release(gates: list[Gate]) -> None:
    for gate in gates:
        gate.opened.set()


def test_as_many_threads_as_concurrent_futures_takes() -> None:
    assert Executor().max_threads == ThreadPoolExecutor()._max_workers


def test_no_more_threads_than_allowed(executor: Executor) -> None:
    gates = occupy(executor)
    done = threading.Semaphore(0)
    for _ in range(10):
        executor.submit("", done.release)
    assert executor.threads == 2
    release(gates)
    for _ in range(10):
        assert done.acquire(timeout=PATIENCE)


def test_threads_are_started_by_need(executor: Executor) -> None:
    assert executor.threads == 0
    gate = Gate()
    executor.submit("", gate)
    assert executor.threads == 1
    assert gate.entered.wait(PATIENCE)
    gate.opened.set()


def test_one_queue_keeps_its_order() -> None:
    executor = Executor(1)
    notes: list[int] = []
    for n in range(100):
        executor.submit("", lambda n=n: notes.append(n))  # type: ignore[misc]
    assert executor.join(PATIENCE)
    assert notes == list(range(100))


def test_queues_take_turns() -> None:
    executor = Executor(1)
    notes: list[str] = []
    gates = occupy(executor)
    for queue, jobs in (("long", 6), ("middle", 3), ("short", 1)):
        for _ in range(jobs):
            executor.submit(queue, lambda queue=queue: notes.append(queue))  # type: ignore[misc]
    release(gates)
    assert executor.join(PATIENCE)
    assert notes == ["long", "middle", "short", "long", "middle", "long", "middle"] + ["long"] * 3


def test_idle_threads_end_at_once_without_a_server(executor: Executor) -> None:
    done = threading.Event()
    executor.submit("", done.set)
    assert done.wait(PATIENCE)
    assert executor.join(PATIENCE)
    assert executor.threads == 0


def test_idle_threads_stay_while_a_server_runs(executor: Executor) -> None:
    executor.linger(True)
    idents: set[int] = set()
    for _ in range(20):
        done = threading.Event()

        def job(done: threading.Event = done) -> None:
            idents.add(threading.get_ident())
            done.set()

        executor.submit("", job)
        assert done.wait(PATIENCE)
    assert not executor.join(0.01)
    assert len(idents) <= 2
    executor.linger(False)
    assert executor.join(PATIENCE)


def test_idle_threads_end_in_the_end(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_TIME", 0.01)
    executor.linger(True)
    done = threading.Event()
    executor.submit("", done.set)
    assert done.wait(PATIENCE)
    assert executor.join(PATIENCE)
    executor.submit("", done.set)


def test_two_jobs_for_one_idle_thread(executor: Executor) -> None:
    """The second gets a thread of its own: the first may take for ever."""
    executor.linger(True)
    done = threading.Event()
    executor.submit("", done.set)
    assert done.wait(PATIENCE)
    for _ in range(20):
        gate, other = Gate(), threading.Event()
        executor.submit("a", gate)
        executor.submit("b", other.set)
        assert other.wait(PATIENCE)
        gate.opened.set()


def test_idle_thread_and_a_job_that_submits(executor: Executor) -> None:
    executor.linger(True)
    done = threading.Event()
    left = 1000

    def job() -> None:
        nonlocal left
        left -= 1
        if left:
            executor.submit("", job)
        else:
            done.set()

    executor.submit("", job)
    assert done.wait(PATIENCE)


def test_many_threads_submit(executor: Executor) -> None:
    ran = threading.Semaphore(0)

    def submit(n: int) -> None:
        for _ in range(500):
            executor.submit(str(n), ran.release)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for _ in range(2000):
        assert ran.acquire(timeout=PATIENCE)


def test_owns_and_join_in_a_job(executor: Executor) -> None:
    notes: list[bool] = []
    done = threading.Event()

    def job() -> None:
        notes.append(executor.owns(threading.current_thread()))
        notes.append(executor.join(None))  # must not wait for itself
        done.set()

    executor.submit("", job)
    assert done.wait(PATIENCE)
    assert notes == [True, False]
    assert not executor.owns(threading.current_thread())


# -- a size that changes -------------------------------------------------------------------


def test_more_threads_take_what_waits(executor: Executor) -> None:
    gates = occupy(executor)
    more = [Gate() for _ in range(3)]
    for n, gate in enumerate(more):
        executor.submit(f"more {n}", gate)
    executor.resize(4)
    assert executor.threads == 4
    assert more[0].entered.wait(PATIENCE)
    assert more[1].entered.wait(PATIENCE)
    assert not more[2].entered.is_set()
    executor.resize(20)
    assert executor.threads == 5, "one for each job that waits"
    assert more[2].entered.wait(PATIENCE)
    release([*gates, *more])


def test_fewer_threads_end_as_they_finish(executor: Executor) -> None:
    executor.linger(True)
    gates = occupy(executor)
    done = threading.Semaphore(0)
    for _ in range(10):
        executor.submit("", done.release)
    executor.resize(1)
    release(gates)
    for _ in range(10):
        assert done.acquire(timeout=PATIENCE)
    for _ in range(1000):
        if executor.threads == 1:
            break
        threading.Event().wait(0.005)
    assert executor.threads == 1


def test_an_idle_thread_that_is_too_many_passes_its_job_on() -> None:
    """Woken for a job, it ends: another one that idles must come to it at once."""
    executor = Executor(8)
    executor.linger(True)
    release(occupy(executor))
    for _ in range(1000):
        if executor._idle == 8:
            break
        threading.Event().wait(0.005)
    executor.resize(2)
    done = threading.Semaphore(0)
    for _ in range(20):
        executor.submit("", done.release)
        assert done.acquire(timeout=module.IDLE_TIME / 2)
    assert executor.threads == 2
    executor.linger(False)
    assert executor.join(PATIENCE)


def test_threads_that_idle_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may go to a thread that has just ended one, before the one that was woken for it."""
    monkeypatch.setattr(module, "IDLE_TIME", 60.0)
    executor = Executor(8)
    executor.linger(True)
    release(occupy(executor))
    names: set[str] = set()
    done = threading.Semaphore(0)

    def job() -> None:
        names.add(threading.current_thread().name)
        done.release()

    for _ in range(2000):
        executor.submit("", job)
        assert done.acquire(timeout=PATIENCE)
    assert len(names) <= executor.max_threads
    assert executor.threads == executor.max_threads
    executor.linger(False)
    assert executor.join(PATIENCE)


# -- a system that refuses a thread --------------------------------------------------------


def refuse_threads(patch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patch.setattr(threading.Thread, "start", start)


def test_a_job_that_no_thread_can_run_is_refused(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Semaphore(0)
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        for queue in ("a", "a", "b"):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(queue, done.release)
        assert executor.threads == 0
        assert executor.join(0)
    executor.submit("a", done.release)
    assert done.acquire(timeout=PATIENCE)
    assert not done.acquire(timeout=0.01), "those that were refused never run"


def test_a_job_that_another_thread_can_run_waits_for_it(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    executor.submit("", gate)
    assert gate.entered.wait(PATIENCE)
    done = threading.Semaphore(0)
    with monkeypatch.context() as patch:
        refuse_threads(patch)
        for _ in range(3):
            executor.submit("", done.release)
        executor.resize(10)
        assert executor.threads == 1
    gate.opened.set()
    for _ in range(3):
        assert done.acquire(timeout=PATIENCE)
