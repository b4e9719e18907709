"""What was measured, kept on file while it is: a run that was cut short goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.connections import Step
from benchmarks.measure import Sample


@dataclass
class Results:
    """Everything that was measured: one sample for each turn, of ``seconds``, of each round, in
    that order; of open connections one for each round."""

    seconds: float
    turns: int
    versions: Mapping[str, str]
    facts: list[str] = field(default_factory=list)
    samples: dict[tuple[str, str], dict[str, list[Sample]]] = field(default_factory=dict)
    """By the workload's name and the figure; then by server."""
    connections: dict[str, list[list[Step]]] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    """For each turn, and each round of open connections, the share of the processors that others
    took meanwhile."""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """By server: microseconds of each stage of an echo request."""
    no_stages: dict[str, str] = field(default_factory=dict)
    """By server: why there are none."""

    def add(self, workload: str, peer: str, samples: Mapping[str, Sample]) -> None:
        """One turn of one server."""
        for figure, sample in samples.items():
            self.samples.setdefault((workload, figure), {}).setdefault(peer, []).append(sample)

    @property
    def rounds(self) -> int:
        """Of the server that had most."""
        counts = [len(each) for by_peer in self.samples.values() for each in by_peer.values()]
        turns = max(counts, default=0)
        return max([turns // self.turns, *map(len, self.connections.values())])

    @property
    def seconds_a_round(self) -> float:
        """For which a server is loaded, for each of its figures."""
        return self.turns * self.seconds


class Journal:
    """A turn of all servers of a workload as a line of JSON, after a first one that says of what;
    with open connections, a round of one server."""

    def __init__(self, path: Path, results: Results) -> None:
        self._path = path
        self.results = results
        self._done: set[tuple[int, str, str]] = set()

    @classmethod
    def started(cls, path: Path, results: Results) -> Self:
        """An empty one, in place of what was there."""
        path.write_text(json.dumps(_measured_with(results) | {"facts": results.facts}) + "\n")
        return cls(path, results)

    @classmethod
    def resumed(cls, path: Path, results: Results) -> Self:
        """What there is of whole rounds, to go on with; ``ValueError`` when it is of something
        else. A round whose last turn is not there is dropped, on file, too, and so is a last line
        that was not written to its end."""
        first, *rest = path.read_text().splitlines() or ["{}"]
        of = json.loads(first)
        results.facts = of.pop("facts", [])
        if of != _measured_with(results):
            raise ValueError(f"{path} was measured with {of}, this is {_measured_with(results)}")
        if rest and not _is_json(rest[-1]):
            rest.pop()
        entries = [json.loads(line) for line in rest]
        last = results.turns - 1
        whole = {_round(entry) for entry in entries if entry.get("turn", last) == last}
        journal, kept = cls(path, results), [first]
        for line, entry in zip(rest, entries, strict=True):
            if _round(entry) in whole:
                journal._take(entry)
                kept.append(line)
        beside = path.with_name(f"{path.name}.new")
        beside.write_text("".join(f"{line}\n" for line in kept))
        os.replace(beside, path)
        return journal

    def has(self, number: int, workload: str, peer: str) -> bool:
        """Whether the whole round of this server was there already."""
        return (number, workload, peer) in self._done

    def add_turn(
        self,
        number: int,
        turn: int,
        workload: str,
        samples: Mapping[str, Mapping[str, Sample]],
        others: float,
    ) -> None:
        """What a turn of all servers of the round has, by server, at once on file."""
        by_peer = {
            peer: {figure: asdict(sample) for figure, sample in by_figure.items()}
            for peer, by_figure in samples.items()
        }
        entry = {"round": number, "turn": turn, "workload": workload, "others": others}
        self._write(entry | {"samples": by_peer})

    def add_steps(
        self, number: int, workload: str, peer: str, steps: list[Step], others: float
    ) -> None:
        """What a round of open connections has, at once on file."""
        entry = {"round": number, "workload": workload, "peer": peer, "others": others}
        self._write(entry | {"steps": [asdict(step) for step in steps]})

    def _write(self, entry: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        number, workload = entry["round"], entry["workload"]
        self.results.others.append(entry["others"])
        if "steps" in entry:
            peer = entry["peer"]
            self._done.add((number, workload, peer))
            steps = [
                Step(**step | {"sample": Sample(**step["sample"])}) for step in entry["steps"]
            ]
            self.results.connections.setdefault(peer, []).append(steps)
            return
        for peer, by_figure in entry["samples"].items():
            self._done.add((number, workload, peer))
            samples = {figure: Sample(**sample) for figure, sample in by_figure.items()}
            self.results.add(workload, peer, samples)


def _measured_with(results: Results) -> dict[str, Any]:
    return {
        "seconds": results.seconds,
        "turns": results.turns,
        "versions": dict(results.versions),
    }


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _round(entry: Mapping[str, Any]) -> tuple[int, str]:
    return entry["round"], entry["workload"]
