"""What every check of a protocol works on: its samples, and what they are alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protoserve.errors import ConfigError
from protoserve.params import ServerParams
from protoserve.protocol import HOLD, ProtocolSpec
from protoserve.testing.conformance.error import ConformanceError
from protoserve.testing.conformance.run import Outcome, Run, Subject, compared, difference, drive

_SEED: Final = 1


@dataclass(slots=True)
class Sample:
    """One message on the wire, and what it is alone."""

    data: bytes
    outcome: Outcome
    messages: list[Any]
    final: bool
    """What follows it is not read, or it ends with the connection: no other is sent after it."""

    @property
    def holds(self) -> bool:
        """Whether ``HOLD`` follows."""
        return self.outcome.events[-1] is HOLD


class Suite:
    """One protocol and its samples, shortest first, so that what fails first is short."""

    def __init__(
        self,
        subject: Subject,
        samples: Sequence[bytes],
        last: Sequence[bytes],
        refused: Sequence[bytes],
        encode: Any,
        examples: int,
    ) -> None:
        self.subject = subject
        self.encode = encode
        self.examples = examples
        self.refused = sorted(refused, key=len)
        self.samples: list[Sample] = []
        self._given = [(data, False) for data in samples] + [(data, True) for data in last]
        self._given.sort(key=lambda given: len(given[0]))

    @property
    def spec(self) -> ProtocolSpec[Any, Any]:
        """The protocol."""
        return self.subject.spec

    @property
    def joinable(self) -> list[Sample]:
        """Those that others may follow."""
        return [sample for sample in self.samples if not sample.final]

    def params(self, limit: int) -> ServerParams | None:
        """Those with this ``request_size_limit``; ``None`` where they do not allow it, or what
        each connection begins with is too large for it."""
        if limit < len(self.subject.before):
            return None
        try:
            params = self.spec.params.replace(request_size_limit=limit)
        except ConfigError:
            return None
        if self.subject.before:
            try:
                Run(self.subject, params)
            except ConformanceError:
                return None
        return params

    def random(self) -> random.Random:
        """The same numbers each time."""
        return random.Random(_SEED)

    def take_samples(self) -> None:
        """Each sample is one whole message."""
        self.samples = []
        for data, last in self._given:
            self.samples.append(self._sample(data, last))
        for data in self.refused:
            if drive(self.subject, [data]).fault is None:
                raise ConformanceError(
                    "an input of `refused` leads to no ProtocolError",
                    fed=[data],
                    remedy="Raise it in next_message; or is this input right?",
                )

    def _sample(self, data: bytes, last: bool) -> Sample:
        run = Run(self.subject)
        run.feed(data)
        partial = run.partial() if run.fault is None else None
        final = last
        if (not run.count or run.streaming) and run.fault is None:
            run.end()  # it may be one that ends with the connection
            final = True
        run.close()
        remedy = (
            "Each sample is one whole message as a client sends it. One that needs others before "
            "it: give those with it as one sample, and handle=f where it takes a handler's word; "
            "or before=, for what begins each connection. One after which nothing is read, as "
            "before an upgrade, belongs into last=."
        )
        if run.fault is not None and not (last and run.events and run.events[-1] is HOLD):
            raise run.broken(f"a sample is refused: {run.fault}", remedy)
        if not run.count:
            raise run.broken("a sample is no whole message: nothing came of it", remedy)
        if run.streaming:
            raise run.broken("a sample is no whole message: its body does not end", remedy)
        if run.count > 1 and self.subject.handle is None:
            raise run.broken(
                f"one sample gave {run.count} messages",
                remedy,
                f"got: {run.messages!r}",
            )
        run.check_unchanged()
        if last:
            self._look_behind(data, run.outcome(partial))
        outcome = drive(self.subject, [data])
        return Sample(data, outcome, run.messages, final)

    def _look_behind(self, data: bytes, alone: Outcome) -> None:
        more = min((given for given, last in self._given if not last), key=len, default=data)
        for pieces in ([data + more], [data, more]):
            outcome = drive(self.subject, pieces, end=False)
            if outcome.events != alone.events or outcome.fault != alone.fault:
                raise ConformanceError(
                    "what follows a sample of `last` is read",
                    fed=pieces,
                    details=difference(outcome, alone),
                    remedy="After the last message, all bytes are ignored; or it is not the last.",
                )

    def expect(self, pieces: Sequence[bytes], expected: Outcome, fault: str, remedy: str) -> None:
        """Feed this to a new parser, and compare."""
        if details := compared(self.subject, pieces, expected):
            raise ConformanceError(fault, fed=pieces, details=details, remedy=remedy)

    def joined(self, samples: Sequence[Sample]) -> Outcome:
        """What several samples must be, one after the other."""
        events = [event for sample in samples for event in sample.outcome.events]
        return Outcome(events, samples[-1].outcome.fault, samples[-1].outcome.partial)


def places(size: int, most: int) -> list[int]:
    """Where to cut that many bytes: everywhere, or of many bytes both ends and spread."""
    if size - 1 <= most:
        return [*range(1, size)]
    step = max(1, size // (most // 2))
    near = most // 4
    found = {*range(1, near), *range(near, size - near, step), *range(size - near, size)}
    return sorted(found)


def slices(data: bytes, size: int) -> list[bytes]:
    """Pieces of ``size`` bytes."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    """Pieces that end at these places."""
    ends = sorted({place for place in at if 0 < place < len(data)})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def random_cuts(data: bytes, source: random.Random, number: int) -> Iterator[list[bytes]]:
    """The same bytes, each time in other pieces."""
    for _ in range(number if len(data) > 2 else 0):
        pieces = source.randint(1, min(12, len(data) - 1))
        yield cut(data, [source.randrange(1, len(data)) for _ in range(pieces)])
