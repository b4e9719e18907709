"""Graphs: tasks with an order among them."""

# ruff: noqa: B015 - a graph's order is written with comparisons

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import pytest
from flow import PATIENCE, WFHttpTask, ask, closed_by, depth, run, start

from protoserve import (
    EmptyTask,
    GraphNode,
    SeriesWork,
    UsageError,
    coroutine,
    empty,
    go,
    graph,
    timer,
)


def fail() -> None:
    raise ValueError("a fault")


class Notes(list[str]):
    """Makes tasks that note their names."""

    def task(self, name: str) -> EmptyTask:
        return empty(lambda t: self.append(name))


def test_the_order() -> None:
    notes = Notes()
    g = graph(lambda t: notes.append("all"))
    d, c, b, a = (g.node(notes.task(name)) for name in "dcba")
    a > b > d
    a > c
    c > d
    run(g)
    assert notes[0] == "a"
    assert sorted(notes[1:3]) == ["b", "c"]
    assert notes[3:] == ["d", "all"]


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_on_a_side(kind: Any) -> None:
    notes = Notes()
    g = graph()
    e, d, c, b, a = (g.node(notes.task(name)) for name in "edcba")
    a > kind((b, c))
    kind((b, c)) > d
    d > e
    run(g)
    assert notes[0] == "a"
    assert notes[3:] == ["d", "e"]


def test_chain_through_a_tuple_and_other_ways_to_say_it() -> None:
    notes = Notes()
    g = graph()
    e, d, c, b, a = (g.node(notes.task(name)) for name in "edcba")
    a > (b, c) > d
    e < d
    a.precede(e)
    run(g)
    assert notes[0] == "a"
    assert notes[3:] == ["d", "e"]


def test_said_twice_is_said_once() -> None:
    notes = Notes()
    g = graph()
    b, a = g.node(notes.task("b")), g.node(notes.task("a"))
    a > b
    a > b
    run(g)
    assert notes == ["a", "b"]


def test_no_nodes_and_no_order() -> None:
    notes = Notes()
    run(graph(lambda t: notes.append("all")))
    g = graph(lambda t: notes.append("all"))
    for name in "abc":
        g.node(notes.task(name))
    run(g)
    assert notes == ["all", "a", "b", "c", "all"]


def test_nodes_that_take_their_time() -> None:
    notes = Notes()
    g = graph()
    slow = g.node(timer(0.05, lambda t: notes.append("slow")))
    quick = g.node(go(notes.append, "quick"))
    last = g.node(notes.task("last"))
    (slow, quick) > last
    run(g)
    assert notes == ["quick", "slow", "last"]


def test_a_series_as_a_node() -> None:
    notes = Notes()
    series = SeriesWork(notes.task("a"))
    series.push_back(notes.task("b"))
    g = graph()
    last, first = g.node(notes.task("last")), g.node(series)
    first > last
    assert first.series is series
    run(g)
    assert notes == ["a", "b", "last"]


def test_in_a_server() -> None:
    def process(task: WFHttpTask) -> None:
        g = graph()
        a = g.node(timer(0.01, lambda t: task.resp.write("a")))
        b = g.node(go(task.resp.write, "b"))
        c = g.node(empty(lambda t: task.resp.write("c")))
        a > b > c
        task.series.push_back(g)

    assert ask(process).body == b"abc"


@pytest.mark.parametrize("backwards", [False, True])
def test_ten_thousand_in_a_row(backwards: bool) -> None:
    depths: list[int] = []
    g = graph()
    nodes = [g.node(empty(lambda t: depths.append(depth()))) for _ in range(10_000)]
    if backwards:
        nodes.reverse()
    for one, other in pairwise(nodes):
        one > other
    run(g)
    assert len(depths) == 10_000
    assert max(depths) - min(depths) < 10


def test_ten_thousand_that_are_cancelled_in_a_row() -> None:
    notes = Notes()
    g = graph(lambda t: notes.append(str(t.exception)))
    nodes = [g.node(go(fail))] + [g.node(notes.task("never")) for _ in range(10_000)]
    for one, other in pairwise(nodes):
        one > other
    run(g)
    assert notes == ["a fault"]


# -- misuse --------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_a_circle(nodes: int) -> None:
    notes = Notes()

    async def never() -> None:
        notes.append("ran")

    g = graph()
    free = g.node(notes.task("free"))
    circle = [g.node(coroutine(never())) for _ in range(nodes)]
    free > circle[0]
    for one, other in zip(circle, [*circle[1:], circle[0]], strict=True):
        one > other
    series = run(g)
    gc.collect()  # a coroutine that nobody closed would warn
    assert isinstance(series.failure, UsageError)
    assert "circle" in str(series.failure)
    assert notes == [], "nothing of it has run"


def test_misuse() -> None:
    g, other = graph(), graph()
    a = g.node(empty())
    with pytest.raises(UsageError, match="different graphs"):
        a > other.node(empty())
    wrong: Any = empty()
    with pytest.raises(TypeError, match="between nodes, not EmptyTask"):
        a > (wrong,)
    run(g)
    with pytest.raises(UsageError, match="has begun; add"):
        g.node(empty())
    with pytest.raises(UsageError, match="has begun; order"):
        a > a
    nothing = graph()
    run(nothing)
    with pytest.raises(UsageError, match="has begun"):
        nothing.node(empty())


# -- failure and cancelling ----------------------------------------------------------------


def diamond(notes: Notes, first: Any) -> tuple[Any, GraphNode]:
    """``first`` before b before d; c beside them before d and e; e after c only."""
    g = graph(lambda t: notes.append(f"all: {t.exception}"))
    a, b, c = g.node(first), g.node(notes.task("b")), g.node(notes.task("c"))
    d, e = g.node(notes.task("d")), g.node(notes.task("e"))
    a > b > d
    c > (d, e)
    return g, a


def test_a_node_fails() -> None:
    notes = Notes()
    g, a = diamond(notes, go(fail))
    series = run(g)
    assert sorted(notes) == ["all: a fault", "c", "e"]
    assert isinstance(a.series.failure, ValueError)
    assert series.failure is None


def test_a_node_s_series_is_cancelled() -> None:
    notes = Notes()
    g, a = diamond(notes, empty(lambda t: t.series.cancel()))
    run(g)
    assert sorted(notes) == ["all: None", "c", "e"]
    assert a.series.canceled


def test_failure_in_a_server_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        g = graph()
        g.node(timer(0.01)) > g.node(go(fail)) > g.node(timer(60))
        task.series.push_back(g)

    assert ask(process).status == 500
    assert len(caplog.records) == 1


def test_cancel_while_it_runs() -> None:
    notes = Notes()
    g, _ = diamond(notes, timer(60))
    series, ended = start(g)
    series.cancel()
    assert ended.wait(PATIENCE)
    assert sorted(notes) == ["c", "e"], "what had run before"
    assert g.canceled


def test_cancel_before_its_turn() -> None:
    notes = Notes()

    async def never() -> None:
        notes.append("ran")

    g = graph()
    b, a = g.node(notes.task("b")), g.node(coroutine(never()))
    a > b
    b.series.set_callback(lambda s: notes.append(f"canceled {s.canceled}"))
    series, ended = start(timer(60), g)
    series.cancel()
    assert ended.wait(PATIENCE)
    gc.collect()
    assert notes == ["canceled True"]


def test_cancelled_request() -> None:
    def process(task: WFHttpTask) -> None:
        series = task.series
        g = graph()
        g.node(timer(60)) > g.node(timer(60))
        series.push_back(g)
        timer(0.01, lambda t: series.cancel()).start()

    assert closed_by(process) == b""
