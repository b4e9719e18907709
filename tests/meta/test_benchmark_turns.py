"""The benchmark's servers are loaded in turn, and what is counted of that."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the benchmark pins itself to a core", allow_module_level=True)

from benchmarks import __main__ as program
from benchmarks import load, measure
from benchmarks.figures import paired_ratio
from benchmarks.load import LoadResult
from benchmarks.measure import Sample
from benchmarks.peers import Peer
from benchmarks.processes import ServerProcess
from benchmarks.results import Journal, Results
from benchmarks.workloads import CLOSED, PACED, Workload


class _Server(ServerProcess):
    """One that is no process. It ends at the load after ``loads`` others."""

    def __init__(self, port: int, loads: int) -> None:
        self.port = port
        self.loads = loads
        self.spent = 0.0

    def check(self) -> None:
        if self.loads < 0:
            raise RuntimeError("the server ended")

    def cpu_clock(self) -> Callable[[], float]:
        return lambda: self.spent

    def stop(self) -> None:
        self.loads = -1


class _Servers:
    """By port, what there is; each load takes 2 s, for 100 requests of 1 ms of CPU."""

    def __init__(self) -> None:
        self.running: dict[int, _Server] = {}
        self.loaded: list[tuple[str, int]] = []

    @contextmanager
    def serving(self, peer: Peer, workload: Workload, warm_up: float) -> Iterator[_Server]:
        port = int(peer.name)
        if port == 0:
            raise ValueError("status 404 instead of 200")
        self.running[port] = server = _Server(port, 2 if port == 2 else 99)
        yield server
        server.stop()

    def load(self, figure: str) -> load.Load:
        servers = self

        class Fake:
            tool = "none"

            def run(self, port: int, seconds: float, clock: load.Clock) -> LoadResult:
                servers.loaded.append((figure, port))
                server = servers.running[port]
                before = clock()
                server.loads -= 1
                server.spent += 0.1
                return LoadResult(100, 2.0, clock() - before, 0.001, 0.002)

            def said(self, seconds: float) -> str:
                return "none"

        return Fake()

    def workload(self) -> Workload:
        return Workload(
            "fake", "Fake", "fake", self.load(CLOSED), lambda port, peer: None,
            paced=self.load(PACED),  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> _Servers:
    servers = _Servers()
    monkeypatch.setattr(measure, "serving", servers.serving)
    return servers


def _journal(folder: Path, turns: int) -> Journal:
    return Journal.started(folder / "samples.jsonl", Results(1, turns, {"1": "one"}))


def _part(servers: _Servers, *ports: int) -> program.Part:
    peers = tuple(Peer(str(port), lambda *_: [], lambda: "") for port in ports)
    return program.Part(servers.workload(), peers)


def test_every_second_turn_is_in_the_opposite_order(tmp_path: Path, servers: _Servers) -> None:
    program._measure_turns(_journal(tmp_path, 3), 0, _part(servers, 1, 3, 4))
    there = [(figure, port) for figure in (CLOSED, PACED) for port in (1, 3, 4)]
    back = [(figure, port) for figure in (CLOSED, PACED) for port in (4, 3, 1)]
    assert servers.loaded == there + back + there
    servers.loaded.clear()
    program._measure_turns(_journal(tmp_path, 1), 1, _part(servers, 1, 3, 4))
    assert servers.loaded == back


def test_a_server_that_fails_does_not_stop_the_others(tmp_path: Path, servers: _Servers) -> None:
    journal = _journal(tmp_path, 3)
    said = program._measure_turns(journal, 0, _part(servers, 0, 1, 2))
    by_peer = journal.results.samples["fake", PACED]
    assert [sample.faults for sample in by_peer["0"]] == [
        "ValueError: status 404 instead of 200"
    ] * 3
    assert [sample.faults for sample in by_peer["1"]] == [""] * 3
    ended = "RuntimeError: the server ended"
    assert [sample.faults for sample in by_peer["2"]] == ["", ended, ended]
    assert by_peer["1"][0] == Sample(rate=50, p99=0.002, cpu=pytest.approx(1000), p50=0.001)
    assert said["1"] == f"{CLOSED} 50/s 1000.0 µs; {PACED} 50/s 1000.0 µs"
    assert said["2"].endswith(f"{PACED} 50/s 1000.0 µs {ended}")


def _turn(journal: Journal, number: int, turn: int, cpu: float) -> None:
    journal.add_turn(number, turn, "fake", {"1": {CLOSED: Sample(cpu=cpu)}}, 0.0)


def test_a_round_that_is_not_whole_is_measured_again(tmp_path: Path) -> None:
    journal = _journal(tmp_path, 2)
    for cpu, (number, turn) in enumerate([(0, 0), (0, 1), (1, 0)]):
        _turn(journal, number, turn, cpu)
    for turn in (0, 1):
        file = tmp_path / "samples.jsonl"
        journal = Journal.resumed(file, Results(1, 2, {"1": "one"}))
        assert [journal.has(number, "fake", "1") for number in (0, 1)] == [True, False]
        kept = journal.results.samples["fake", CLOSED]["1"]
        assert [sample.cpu for sample in kept] == [0, 1]
        assert len(file.read_text().splitlines()) == 3
        assert journal.results.rounds == 1
        _turn(journal, 1, 0, 4 + turn)
    _turn(journal, 1, 1, 6)
    journal = Journal.resumed(file, Results(1, 2, {"1": "one"}))
    cpus = [sample.cpu for sample in journal.results.samples["fake", CLOSED]["1"]]
    assert cpus == [0, 1, 5, 6]


def test_what_was_measured_in_other_turns_is_not_gone_on_with(tmp_path: Path) -> None:
    _turn(_journal(tmp_path, 2), 0, 0, 1)
    file = tmp_path / "samples.jsonl"
    before = file.read_text()
    assert json.loads(before.splitlines()[0])["turns"] == 2
    with pytest.raises(ValueError, match=r"'turns': 2.* this is .*'turns': 3"):
        Journal.resumed(file, Results(1, 3, {"1": "one"}))
    assert file.read_text() == before


def test_what_was_answered_in_the_window_is_counted() -> None:
    rows = [
        (9_000_000, 200, 999_999),  # before
        (9_000_000, 200, 1_000_000),
        (10_500_000, 204, 700),
        (10_600_000, 200, 700),
        (10_700_000, 500, 700),
        (10_800_000, -1, 700),
        (10_999_000, 200, 1_000),  # after
    ]
    log = "".join(f"{started}\t{status}\t{micros}\n" for started, status, micros in rows)
    times = load._answered(log, load._Window(10.0, 11.0, 0.5))
    assert times == {1_000_000: 1, 700: 2}


def test_the_window_begins_when_the_connections_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    class Time:
        def sleep(self, seconds: float) -> None:
            nonlocal now
            now += seconds

        def time(self) -> float:
            return now

    monkeypatch.setattr(load, "time", Time())
    window = load._watch(2.0, lambda: now / 10)
    assert (window.began, window.seconds) == (100.2, pytest.approx(2))
    assert window.cpu == pytest.approx(0.2)
    assert "-D2300ms" in load.H2load(["/"], {}).said(2)


def test_ratios_are_those_of_the_same_turn() -> None:
    ours, one, other = (
        [Sample(cpu=cpu) for cpu in cpus]
        for cpus in [(10, 30, 10, 10), (20, 20, 5, 1), (40, 10, 5, 2)]
    )
    one[3] = Sample(faults="it ended")
    assert paired_ratio(ours, [one, other], lambda sample: sample.cpu) == [0.5, 3, 2]
