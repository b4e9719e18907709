"""Tasks of an application's own, and the types of those that it makes with functions."""

from __future__ import annotations

import asyncio

from protoserve import (
    ConditionalTask,
    CoroutineTask,
    CounterTask,
    DynamicTask,
    EmptyTask,
    GoTask,
    GraphNode,
    GraphTask,
    MailboxTask,
    ParallelWork,
    RepeaterTask,
    ResourcePool,
    ResourceTask,
    ResultTask,
    SelectorTask,
    SeriesWork,
    SubTask,
    TimerTask,
    WaitGroup,
    cancel_by_name,
    conditional,
    coroutine,
    count_by_name,
    counter,
    dynamic,
    empty,
    go,
    graph,
    mailbox,
    parallel,
    repeater,
    selector,
    send_by_name,
    series_of,
    signal_by_name,
    timer,
)


class Step(SubTask):
    def dispatch(self) -> None:
        self.subtask_done()

    def done(self) -> SubTask | None:
        return super().done()


class Fetch(ResultTask[bytes]):
    def begin(self) -> None:
        self.complete(b"fetched")


class Timer(TimerTask): ...


class Counter(CounterTask): ...


class Mailbox(MailboxTask[str]): ...


class Selector(SelectorTask[int]): ...


class Conditional(ConditionalTask[str]): ...


class Go(GoTask[int]): ...


class Coroutine(CoroutineTask[int]): ...


class Dynamic(DynamicTask): ...


class Repeater(RepeaterTask): ...


class Empty(EmptyTask): ...


class Node(GraphNode): ...


class Graph(GraphTask): ...


class Parallel(ParallelWork): ...


class Resource(ResourceTask[str]): ...


class Pool(ResourcePool[str]): ...


class Group(WaitGroup): ...


class Series(SeriesWork): ...


async def later() -> int:
    await asyncio.sleep(0)
    return 1


def note(task: GoTask[int]) -> None:
    number: int = task.result
    print(number)


def use() -> None:
    group = WaitGroup(1)
    chosen: SelectorTask[str] = selector(2, lambda t: print(t.result))
    chosen.submit("first")
    chosen.submit(None)
    box: MailboxTask[str] = mailbox(lambda t: print(t.result), name="box")
    box.send("value")
    waiting = conditional(timer(1, name="clock"), lambda t: print(t.result), name="signal")
    waiting.signal("now")
    counted = counter(2, lambda t: group.done(), name="both")
    ended: int = cancel_by_name("clock", 1) + count_by_name("both", 2)
    ended += send_by_name("box", "value", 1) + signal_by_name("signal", max=2)
    pool = ResourcePool(["first", "second"])
    pool.run(lambda name: timer(len(name))).start()
    ordered = graph(lambda t: group.done())
    first, second = ordered.node(empty()), ordered.node(Fetch())
    _ = first > second
    series = SeriesWork(go(len, "word", callback=note), lambda s: group.done())
    series.push_back(parallel(waiting, counted, coroutine(later()), callback=lambda t: len(t)))
    series.push_back(dynamic(lambda t: Step()))
    series.push_front(repeater(lambda t: Step() if t.times < 3 else None))
    same: SeriesWork = series_of(counted)
    same.start()
    group.wait(ended)


async def use_later() -> str:
    number: int = await go(len, "word")
    body: bytes = await Fetch()
    value: int = await coroutine(later())
    all_of_them: list[SeriesWork] = await parallel(timer(1), timer(2))
    return f"{number} {body!r} {value} {len(all_of_them)}"
