"""The benchmark's servers are loaded in turn, and what is counted of that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the benchmark pins itself to a core", allow_module_level=True)

from benchmarks import __main__ as program
from benchmarks import load, measure, report
from benchmarks.figures import paired_ratio
from benchmarks.load import LoadResult
from benchmarks.measure import Sample
from benchmarks.peers import Peer
from benchmarks.processes import ServerProcess
from benchmarks.results import Journal, Results
from benchmarks.workloads import CLOSED, ECHO, PACED, Workload


class _Server(ServerProcess):
    """One that is no process. It ends at the load after ``loads`` others."""

    def __init__(self, port: int, loads: int) -> None:
        self.port = port
        self.loads = loads
        self.spent = 0.0
        self.spins = 0.0

    def check(self) -> None:
        if self.loads < 0:
            raise RuntimeError("the server ended")

    def cpu_clock(self) -> Callable[[], float]:
        return lambda: self.spent

    def cpu_seconds(self) -> float:
        return self.spent

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
                for other in servers.running.values():
                    other.spent += other.spins
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


def test_a_turn_is_one_line_and_one_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    file, results = tmp_path / "samples.jsonl", Results(1, 1, {"1": "one", "2": "two"})
    journal = Journal.started(file, results)
    samples = {name: {CLOSED: Sample(cpu=1, idle_others=0.5)} for name in ("1", "2")}
    journal.add_turn(0, 0, "fake", samples, 0.1)
    whole = file.read_text()
    assert len(whole.splitlines()) == 2
    journal.add_turn(1, 0, "fake", samples, 0.1)
    file.write_text(file.read_text()[:-9])
    journal = Journal.resumed(file, Results(1, 1, results.versions))
    assert file.read_text() == whole
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    for name in ("1", "2"):
        assert [journal.has(number, "fake", name) for number in (0, 1)] == [True, False]
        assert journal.results.samples["fake", CLOSED][name] == [samples[name][CLOSED]]
    assert journal.results.others == [0.1]


def test_a_journal_that_cannot_be_gone_on_with_is_left_as_it_is(tmp_path: Path) -> None:
    file, results = tmp_path / "samples.jsonl", Results(1, 1, {"1": "one"})
    _turn(Journal.started(file, results), 0, 0, 1)
    first, turn = file.read_text().splitlines()
    file.write_text(f"{first}\n{turn[:-9]}\n{turn}\n")
    before = file.read_text()
    with pytest.raises(ValueError, match="delimiter"):
        Journal.resumed(file, Results(1, 1, {"1": "one"}))
    assert file.read_text() == before


def test_what_servers_take_that_are_not_loaded_is_kept(
    tmp_path: Path, servers: _Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Time:
        """In which a load takes 2 s."""

        def monotonic(self) -> float:
            return 2.0 * len(servers.loaded)

    monkeypatch.setattr(measure, "time", Time())
    part = _part(servers, 1, 3)
    with measure.standing(part.peers, part.workload) as alive:
        servers.running[3].spins = 0.4
        measured = measure.measure_turn(alive, part.workload, 1, backwards=False)
    assert measured["1"][CLOSED].idle_others == pytest.approx(0.2)
    assert measured["3"][CLOSED].idle_others == 0


def test_what_servers_take_that_are_not_loaded_is_said() -> None:
    quiet, spins, none = Sample(), Sample(idle_others=0.04), Sample(faults="no", idle_others=1)
    results = Results(1, 3, {})
    by_peer = {"one": [spins, quiet, spins], "two": [quiet] * 3, "three": [none] * 3}
    results.samples[ECHO.name, CLOSED] = by_peer
    assert report._caveats(results) == [
        "**Servers that were not loaded took 4.0% of the core** while another was loaded with "
        "echo: alive were one, two"
    ]
    by_peer["one"][0] = quiet
    assert report._caveats(results) == []


def test_the_turns_in_which_a_server_did_not_keep_up_are_counted() -> None:
    fast, slow = Sample(rate=9_700), Sample(rate=8_123)
    assert report._lagged("one", [fast, fast, fast, fast, slow], 10_000) == []
    assert report._lagged("one", [Sample(faults="no")], 10_000) == []
    samples = [slow, *[Sample(rate=9_600)] * 2, *[fast] * 4, Sample(faults="no")]
    assert report._lagged("one", samples, 10_000) == [
        "one did not keep up with 10,000/s in 3 of 7 turns: at worst it answered 8,123."
    ]


@pytest.mark.parametrize(
    ("began", "each", "begun"),
    [(9.8, 100, True), (10.01, 100, True), (10.03, 100, False), (10.5, 100, False),
     (9.8, 40, True), (10.03, 40, False)],
)  # fmt: skip
def test_a_load_has_begun_when_it_is_counted(began: float, each: int, begun: bool) -> None:
    bursts = range(round(began * 1e6) + 1000, 11_100_000, 10_000)
    log = "".join(f"{start}\t200\t700\n" * each for start in bursts)
    assert load._had_begun(log, load._Window(10.0, 11.0, 0.5), 10_000, 0.05) == begun


def test_a_log_without_rows_says_nothing_of_the_beginning() -> None:
    assert load._had_begun("", load._Window(10.0, 11.0, 0.5), 10_000, 0.05)


@pytest.mark.parametrize(
    ("slowest", "faults"), [(900_000, ""), (970_000, "an answer took 0.97 s of 1.00 s")]
)
def test_no_answer_of_wrk_takes_nearly_all_of_the_run(
    slowest: int, faults: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"requests": 100, "micros": 1_000_000, "socket": 0, "timeouts": 0, "status": 0}
    said = json.dumps(seen | {"times": [[1_000, 99], [slowest, 1]]})
    done = subprocess.CompletedProcess([], 0, "", said)
    monkeypatch.setattr(load.subprocess, "run", lambda *_, **__: done)
    result = load.Wrk([b"GET / HTTP/1.1\r\n\r\n"]).run(1, 1)
    assert result.faults == faults


def test_a_process_of_the_server_that_ends_makes_a_fault(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 60 & echo; read line; kill $!; wait $!; echo; read line"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, out = process.stdin, process.stdout
        out.readline()
        server = ServerProcess(process, 0, tmp_path / "log")

        class EndsOne:
            tool = "none"

            def run(self, port: int, seconds: float, clock: load.Clock = float) -> LoadResult:
                before = clock()
                to.write(b"\n")
                out.readline()
                return LoadResult(100, 1.0, clock() - before, 0.001, 0.002)

            def said(self, seconds: float) -> str:
                return "none"

        sample = measure._load_or_fault(server, EndsOne(), 1)
        assert sample.faults == "RuntimeError: a process of the server ended"
        assert server.cpu_seconds() > 0
        to.write(b"\n")
