"""What was measured, kept on file while it is: a run that was cut short goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.connections import Step
from benchmarks.measure import Sample


@dataclass
class Results:
    """Everything that was measured; one sample for each round, in the rounds' order."""

    seconds: float
    versions: Mapping[str, str]
    facts: list[str] = field(default_factory=list)
    samples: dict[tuple[str, str], dict[str, list[Sample]]] = field(default_factory=dict)
    """By the workload's name and the figure; then by server."""
    connections: dict[str, list[list[Step]]] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    """For each measurement, the share of the processors that others took meanwhile."""
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    """By server: microseconds of each stage of an echo request."""
    no_stages: dict[str, str] = field(default_factory=dict)
    """By server: why there are none."""

    def add(self, workload: str, peer: str, samples: Mapping[str, Sample]) -> None:
        """One round of one server."""
        for figure, sample in samples.items():
            self.samples.setdefault((workload, figure), {}).setdefault(peer, []).append(sample)

    @property
    def rounds(self) -> int:
        """Of the server that had most."""
        counts = [len(each) for by_peer in self.samples.values() for each in by_peer.values()]
        return max([*counts, *map(len, self.connections.values())], default=0)


class Journal:
    """Every measurement as a line of JSON, after a first one that says of what."""

    def __init__(self, path: Path, results: Results) -> None:
        self._path = path
        self._of = {"seconds": results.seconds, "versions": dict(results.versions)}
        self.results = results
        self._done: set[tuple[int, str, str]] = set()

    @classmethod
    def started(cls, path: Path, results: Results) -> Self:
        """An empty one, in place of what was there."""
        journal = cls(path, results)
        path.write_text(json.dumps(journal._of | {"facts": results.facts}) + "\n")
        return journal

    @classmethod
    def resumed(cls, path: Path, results: Results) -> Self:
        """What there is, to go on with; ``ValueError`` when it is of something else."""
        journal = cls(path, results)
        first, *rest = path.read_text().splitlines() or ["{}"]
        of = json.loads(first)
        results.facts = of.pop("facts", [])
        if of != journal._of:
            raise ValueError(f"{path} was measured with {of}, this is {journal._of}")
        for line in rest:
            journal._take(json.loads(line))
        return journal

    def has(self, number: int, workload: str, peer: str) -> bool:
        return (number, workload, peer) in self._done

    def add(
        self,
        number: int,
        workload: str,
        peer: str,
        measured: Mapping[str, Sample] | list[Step],
        others: float,
    ) -> None:
        """What the round has, at once on file."""
        if isinstance(measured, list):
            what: dict[str, Any] = {"steps": [asdict(step) for step in measured]}
        else:
            what = {"samples": {figure: asdict(sample) for figure, sample in measured.items()}}
        entry = {"round": number, "workload": workload, "peer": peer, "others": others, **what}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        workload, peer = entry["workload"], entry["peer"]
        self._done.add((entry["round"], workload, peer))
        self.results.others.append(entry["others"])
        if "steps" in entry:
            steps = [
                Step(**step | {"sample": Sample(**step["sample"])}) for step in entry["steps"]
            ]
            self.results.connections.setdefault(peer, []).append(steps)
        else:
            samples = {figure: Sample(**sample) for figure, sample in entry["samples"].items()}
            self.results.add(workload, peer, samples)
