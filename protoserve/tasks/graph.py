"""GraphTask: tasks with an order among them, written with ``>``."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from protoserve.errors import UsageError
from protoserve.kernel.subtask import SubTask
from protoserve.tasks.result import ResultTask
from protoserve.tasks.series import SeriesWork


class GraphNode:
    """One series in a graph. ``a > b`` says that ``b`` starts when ``a`` has ended; an
    iterable of nodes may stand on either side, and ``a > b > c`` means what it looks like."""

    __slots__ = ("_after", "_graph", "_waits_for", "series")

    def __init__(self, graph: GraphTask, series: SeriesWork) -> None:
        self.series = series
        self._graph = graph
        self._after: list[GraphNode] = []
        self._waits_for = 0

    def precede(self, other: GraphNode) -> None:
        """``other`` starts when this has ended. The same as ``self > other``."""
        if not isinstance(other, GraphNode):
            raise TypeError(f"a graph's order is between nodes, not {type(other).__name__}")
        if other._graph is not self._graph:
            raise UsageError("the nodes are of different graphs")
        if self._graph.begun:
            raise UsageError("the graph has begun; order its nodes before")
        self._after.append(other)
        other._waits_for += 1

    def __gt__(self, other: GraphNode | Iterable[GraphNode]) -> GraphNode | Iterable[GraphNode]:
        for node in (other,) if isinstance(other, GraphNode) else other:
            self.precede(node)
        return other

    def __lt__(self, other: GraphNode | Iterable[GraphNode]) -> GraphNode | Iterable[GraphNode]:
        for node in (other,) if isinstance(other, GraphNode) else other:
            node.precede(self)
        return other

    def __bool__(self) -> bool:
        # Python reads a > b > c as (a > b) and (b > c).
        return True


class GraphTask(ResultTask[None]):
    """Runs its nodes, each when those before it have ended (the article's graph task).

    When a node's series fails or is cancelled, the nodes after it are cancelled without
    having run. Ends when every node has; the first failure is its exception.
    """

    __slots__ = ("_draining", "_left", "_lock", "_nodes", "_ready", "begun")

    def __init__(self, callback: Callable[[GraphTask], object] | None = None) -> None:
        super().__init__(callback)
        self._nodes: list[GraphNode] = []
        self._lock = threading.Lock()  # guards what follows once the graph has begun
        self._left = 0
        self._ready: deque[GraphNode] = deque()
        self._draining = False
        self.begun = False

    def node(self, work: SubTask | SeriesWork) -> GraphNode:
        """Add a task, or a series, as a node."""
        if self.begun:
            raise UsageError("the graph has begun; add its nodes before")
        series = work if isinstance(work, SeriesWork) else SeriesWork(work)
        node = GraphNode(self, series)
        series.adopt(lambda _: self._ended(node))
        self._nodes.append(node)
        return node

    def begin(self) -> None:
        """Start the nodes that wait for none. Raises ``UsageError`` for a circle."""
        try:
            self._refuse_circles()
        except UsageError:
            self.interrupt()  # closes coroutines, which would never run
            raise
        self.begun = True
        if not self._nodes:
            self.complete()
            return
        for node in self._nodes:
            node.series.engine = self.series.engine
            node.series.service = self.series.service
        self._start_nodes()

    def _start_nodes(self) -> None:
        self._left = len(self._nodes)
        with self._lock:
            self._ready.extend(node for node in self._nodes if not node._waits_for)
        self._drain()

    def interrupt(self) -> None:
        """The series was cancelled: cancel every node; they end it."""
        self._canceled = True
        for node in self._nodes:
            node.series.cancel()

    def discard(self) -> None:
        """The series was cancelled before this began: what is in here ends without having
        run, and its callbacks learn of it."""
        super().discard()
        self.begun = True
        self.interrupt()
        self._start_nodes()

    def _refuse_circles(self) -> None:
        waits = {node: node._waits_for for node in self._nodes}
        free = [node for node, number in waits.items() if not number]
        seen = 0
        while free:
            seen += 1
            for after in free.pop()._after:
                waits[after] -= 1
                if not waits[after]:
                    free.append(after)
        if seen != len(self._nodes):
            raise UsageError("the graph has a circle: its nodes would wait for each other")

    def _ended(self, node: GraphNode) -> None:
        canceled = node.series.canceled or node.series.failure is not None
        with self._lock:
            self._left -= 1
            last = not self._left
            for after in node._after:
                after._waits_for -= 1
                if canceled:
                    after.series.cancel()
                if not after._waits_for:
                    self._ready.append(after)
        if last:
            failures = [n.series.failure for n in self._nodes if n.series.failure is not None]
            self.complete(None, failures[0] if failures else None)
        else:
            self._drain()

    def _drain(self) -> None:
        """Start what is ready, one after the other: a long chain of nodes that end at once
        must not become a deep stack."""
        while True:
            with self._lock:
                if self._draining or not self._ready:
                    return
                self._draining = True
                node = self._ready.popleft()
            try:
                node.series.start()
            finally:
                self._draining = False


def graph(callback: Callable[[GraphTask], object] | None = None) -> GraphTask:
    """A task made of others with an order among them: ``a = g.node(task)``, ``a > b``."""
    return GraphTask(callback)
