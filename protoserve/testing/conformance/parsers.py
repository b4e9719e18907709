"""Checks of a parser: whatever is fed, and in whatever pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from protoserve.protocol import HOLD, MessageParser
from protoserve.testing.conformance.error import ConformanceError, NotTried, bytes_as_text
from protoserve.testing.conformance.run import (
    FAULTS,
    Outcome,
    Run,
    described,
    difference,
    drive,
    drive_run,
)
from protoserve.testing.conformance.suite import (
    Sample,
    Suite,
    cut,
    places,
    random_cuts,
    slices,
)

_MOST_PLACES: Final = 1024
_MOST_PAIRS: Final = 144
_MOST_JOINED: Final = 64 * 1024
_READ: Final = 64 * 1024
"""What the engine reads at once."""
_RANDOM: Final = 20
_BYTES_ALONE: Final = 16 * 1024
"""Of longer input, more than a byte is fed at once."""
_METHODS: Final = ("feed", "next_message", "feed_eof", "close", "leftover")


def check_samples(suite: Suite) -> str:
    """Each sample is one whole message; answers have the form that they must have."""
    parser: Any = Run(suite.subject).parser
    missing = [name for name in _METHODS if not callable(getattr(parser, name, None))]
    if missing:
        raise ConformanceError(
            f"the parser {type(parser).__qualname__} has no {', '.join(missing)}",
            remedy="Derive it from protoserve.MessageParser.",
        )
    suite.take_samples()
    return "1 message" if len(suite.samples) == 1 else f"{len(suite.samples)} messages"


def check_separate(suite: Suite) -> str:
    """Two connections at the same time do not know of each other."""
    first, second = Run(suite.subject), Run(suite.subject)
    remedy = (
        "What a parser holds belongs in self, made in __init__: not in the class, a module, "
        "or a default argument. Or do messages differ from one run to the next, as by the time or "
        "by chance? Then give same=f, which leaves that out."
    )
    if first.parser is second.parser:
        raise ConformanceError(
            "message_in returned the same parser twice: connections share state", remedy=remedy
        )
    for number, one in enumerate(suite.samples):
        other = suite.samples[(number + 1) % len(suite.samples)]
        runs = (Run(suite.subject), Run(suite.subject))
        pieces = [_bytes_of(sample.data, 256) for sample in (one, other)]
        try:
            alone = [drive(suite.subject, its) for its in pieces]
            whole = [drive(suite.subject, [b"".join(its)]) for its in pieces]
        except ConformanceError:
            continue  # other checks say what is wrong with one alone
        for turn in range(max(map(len, pieces))):
            for run, its in zip(runs, pieces, strict=True):
                if turn < len(its):
                    _feed(run, its[turn], remedy)
        _compare_separate(runs, alone, "fed in turns", remedy)
        runs = (Run(suite.subject), Run(suite.subject))
        for run, its in zip(runs, pieces, strict=True):
            _feed(run, b"".join(its), remedy, take=False)
        for run in runs:
            _feed(run, b"", remedy)
        _compare_separate(runs, whole, "fed, and only then asked", remedy)
    _one_after_another(suite, remedy)
    return ""


def _compare_separate(
    runs: Sequence[Run], alone: Sequence[Outcome], how: str, remedy: str
) -> None:
    for run, expected in zip(runs, alone, strict=True):
        partial = run.partial() if run.fault is None else None
        run.end()
        run.close()
        if details := difference(run.outcome(partial), expected):
            raise ConformanceError(
                f"connections share state: two parsers, {how}, give what one alone does not",
                fed=run.fed,
                details=[*details, f"to the other: {runs[run is runs[0]].fed!r}"],
                remedy=remedy,
            )


def _one_after_another(suite: Suite, remedy: str) -> None:
    """What one connection came to is nothing to the next."""
    first = suite.samples[0]
    for data in [b"", *(sample.data[:-1] for sample in suite.samples), *_spoiled(suite)]:
        run = Run(suite.subject)
        try:
            run.feed(data)
            run.close()
        except ConformanceError:
            continue  # other checks say what is wrong with one alone
        again = Run(suite.subject)
        _feed(again, first.data, f"Before it, {data!r} was fed to another, and closed. {remedy}")
        partial = again.partial() if again.fault is None else None
        again.end()
        again.close()
        if details := difference(again.outcome(partial), first.outcome):
            raise ConformanceError(
                "connections share state: one, after another has closed, gives what it did not "
                "before",
                fed=again.fed,
                details=[*details, f"to the other, before: {run.fed!r}"],
                remedy=remedy,
            )


def _feed(run: Run, piece: bytes, remedy: str, *, take: bool = True) -> None:
    try:
        if piece:
            run.feed(piece, take=take)
        else:
            run.drain()
    except ConformanceError as error:
        raise ConformanceError(
            f"{error.fault}, while there was another connection",
            fed=error.fed,
            details=error.details,
            remedy=f"{error.remedy} {remedy}",
        ) from error


def _bytes_of(data: bytes, most: int) -> list[bytes]:
    return slices(data, max(1, -(-len(data) // most)))


def check_splits(suite: Suite) -> str:
    """The same bytes lead to the same messages, however they are split."""
    source = suite.random()
    number = 0

    def same(data: bytes, expected: Outcome, most: int) -> None:
        nonlocal number
        for pieces in (
            *(cut(data, [place]) for place in places(len(data), most)),
            _bytes_of(data, _BYTES_ALONE),
            *random_cuts(data, source, _RANDOM),
        ):
            number += 1
            suite.expect(
                pieces,
                expected,
                "what comes of the bytes depends on how they were split",
                "Keep what is not used yet until the rest comes, and decide nothing by what "
                "happens to be there: a delimiter may be half there, and so may a length.",
            )

    for sample in suite.samples:
        same(sample.data, sample.outcome, _MOST_PLACES)
    for data in suite.refused:
        same(data, drive(suite.subject, [data]), _MOST_PLACES)
    if chain := _chain(suite):
        same(b"".join(sample.data for sample in chain), suite.joined(chain), 64)
    return f"{number} ways to split"


def _chain(suite: Suite) -> list[Sample]:
    """Samples in one connection, as many as are not too long."""
    chain: list[Sample] = []
    size = 0
    for sample in suite.joinable:
        size += len(sample.data)
        if size > _MOST_JOINED:
            break
        chain.append(sample)
    if final := [sample for sample in suite.samples if sample.final]:
        chain.append(final[0])
    return chain


def check_order(suite: Suite) -> str:
    """Messages that come together are those that come one by one, in their order."""
    source = suite.random()
    joinable = suite.joinable
    if not joinable:
        raise NotTried("nothing can follow any of the samples")
    final = [sample for sample in suite.samples if sample.final]
    chains: list[list[Sample]] = [[a, b] for a in joinable for b in [*joinable, *final]]
    if len(chains) > _MOST_PAIRS:
        chains = source.sample(chains, _MOST_PAIRS)
    chains.sort(key=lambda chain: sum(len(sample.data) for sample in chain))
    for sample in joinable:
        chains.append([sample] * max(3, min(100, _MOST_JOINED // len(sample.data))))
    for _ in range(_RANDOM):
        chain = source.choices(joinable, k=source.randint(3, 20))
        chains.append(chain + final[:1] if source.random() < 0.5 else chain)
    for chain in chains:
        data = b"".join(sample.data for sample in chain)
        expected = suite.joined(chain)
        for pieces in ([data], [sample.data for sample in chain]):
            run = _compare_order(suite, pieces, expected)
            run.check_unchanged()
    size = sum(len(sample.data) for sample in joinable)
    chains.append(joinable * max(1, _READ // size))
    data = b"".join(sample.data for sample in chains[-1])
    _compare_order(suite, [data], suite.joined(chains[-1]))
    return f"{len(chains)} pipelines"


def _compare_order(suite: Suite, pieces: Sequence[bytes], expected: Outcome) -> Run:
    run, outcome = drive_run(suite.subject, pieces)
    details = difference(outcome, expected)
    if not details:
        return run
    if sorted(map(repr, outcome.events)) == sorted(map(repr, expected.events)):
        raise ConformanceError(
            "messages come out in another order than they came in",
            fed=pieces,
            details=details,
            remedy="next_message returns the oldest first: popleft() of a deque.",
        )
    raise ConformanceError(
        "messages that are sent one after the other are not those that they are alone",
        fed=pieces,
        details=details,
        remedy="What follows a message must stay held when it is returned, and nothing of it "
        "may last. One after which nothing is read belongs into last=, and a sample that goes "
        "on after its message is to be shorter.",
    )


def check_partial(suite: Suite) -> str:
    """``partial`` is true exactly while something of a message is held."""
    run = Run(suite.subject)
    if run.partial():
        raise run.broken(
            "partial is true in a connection to which nothing was sent",
            "It decides which timeout runs: it is true only while a part of a message is held.",
        )
    for sample in suite.samples:
        _partial_along(suite, [sample])
    if len(chain := [sample for sample in _chain(suite) if not sample.final]) > 1:
        _partial_along(suite, chain[:4])
    return ""


def _partial_along(suite: Suite, chain: Sequence[Sample]) -> None:
    run = Run(suite.subject)
    for sample in chain:
        begun = run.count
        step = max(1, len(sample.data) // _MOST_PLACES)
        for place in range(0, len(sample.data), step):
            run.feed(sample.data[place : place + step])
            fed = sample.data[: place + step]
            if run.count == begun and fed != sample.data and not run.partial():
                _nothing_held(suite, run, sample, fed)
        if not sample.final and run.partial():
            raise run.broken(
                "partial is true after a whole message, with nothing else held",
                "It decides which timeout runs: it must be false once the message was returned. "
                "Or this sample goes on after its message: then make it shorter.",
            )


def _nothing_held(suite: Suite, run: Run, sample: Sample, fed: bytes) -> None:
    """It says that nothing is held: then what follows must be the message all the same."""
    rest = sample.data[len(fed) :]
    try:
        events = drive(suite.subject, [rest]).events
    except ConformanceError:
        events = []
    if events != sample.outcome.events:
        raise run.broken(
            f"partial is false while {fed!r} is held",
            "It decides which timeout runs: a peer that sends part of a message and then stalls "
            "would be taken for one that is idle. It is true while anything of one is held.",
        )


def check_leftover(suite: Suite) -> str:
    """What an upgrade goes on with is what was fed and is in no message."""
    if type(Run(suite.subject).parser).leftover is MessageParser.leftover:
        raise NotTried("leftover is not overridden: this protocol is never left")
    tails = [
        b"",
        b"\x16\x03\x01\x00\xa5tail",
        suite.samples[0].data,
        b"\r\n \0",  # what may be skipped between messages
        bytes(range(256)) * 4,
    ]
    for sample in suite.samples:
        if HOLD in sample.outcome.events[:-1]:
            continue  # what follows in it is its own
        for tail in tails if sample.holds else tails[:1]:
            pieces = [sample.data + tail]
            _compare_leftover(suite, pieces, tail)
            for place in places(len(sample.data), 64):
                _compare_leftover(suite, cut(sample.data + tail, [place]), tail)
    return ""


def _compare_leftover(suite: Suite, pieces: Sequence[bytes], tail: bytes) -> None:
    run = Run(suite.subject)
    run.stays = True
    for piece in pieces:
        if run.held:
            return  # nothing is read any more
        run.feed(piece)
    found = run.leftover()
    if found == tail:
        return
    if tail:
        fault = f"leftover is {found!r} after HOLD, and must be {tail!r}"
        remedy = (
            "When a connection goes on in another protocol, that begins with what was fed and "
            "belongs to no message, all of it and nothing else."
        )
    else:
        fault = f"leftover is {found!r} after a whole message with nothing behind it"
        remedy = "What is in a message that was returned belongs no more to it."
    raise run.broken(fault, remedy)


def check_ends(suite: Suite) -> str:
    """The peer may end its side at any place: no call fails, hangs or repeats itself."""
    cases: list[tuple[bytes, bytes, int]] = []
    for sample in suite.samples:
        data = sample.data
        cases += [(b"", data, place) for place in (0, *places(len(data), _MOST_PLACES), len(data))]
    for first in suite.joinable[:1]:
        for sample in suite.samples:
            cases += [(first.data, sample.data, place) for place in places(len(sample.data), 32)]
    for before, data, place in cases:
        run = Run(suite.subject)
        run.feed(before + data[:place])
        count = run.count
        run.end()
        if place == len(data) and count and run.count > count:
            raise run.broken(
                f"the end of the connection makes another message: {run.messages[-1]!r}",
                "In feed_eof, complete a message only where part of one is held.",
            )
        run.close()
    return f"{len(cases)} places"


def check_faults(suite: Suite) -> str:
    """Input that is spoiled leads to messages or to an error that stays."""
    spoiled = _spoiled(suite)
    faults = 0
    for data in spoiled:
        run = Run(suite.subject)
        run.feed(data)
        if run.fault is not None:
            faults += 1
            run.feed(suite.samples[0].data)
            run.end()
        run.close()
    return f"{faults} of {len(spoiled)} refused"


def _spoiled(suite: Suite) -> list[bytes]:
    """Input that may be wrong: what must be refused, and samples with a byte changed."""
    source = suite.random()
    spoiled = [bytes([byte]) * 64 for byte in (0, 255, 10, 13, 32, 48, 97)]
    for sample in suite.samples:
        data = sample.data[:4096]
        for change in (_replaced, _removed, _inserted) * 12:
            spoiled.append(change(data, source.randrange(len(data)), source.randrange(256)))
    return [*suite.refused, *sorted(spoiled, key=len)]


def _replaced(data: bytes, place: int, byte: int) -> bytes:
    return data[:place] + bytes([byte]) + data[place + 1 :]


def _removed(data: bytes, place: int, byte: int) -> bytes:
    return data[:place] + data[place + 1 :]


def _inserted(data: bytes, place: int, byte: int) -> bytes:
    return data[:place] + bytes([byte]) + data[place:]


def check_round_trip(suite: Suite) -> str:
    """What a message is encoded as, is that message."""
    if suite.encode is None:
        raise NotTried("without encode=, which makes the bytes of a request")
    encode: Callable[[Any], Any] = suite.encode
    for sample in suite.samples:
        if sample.holds or len(sample.messages) != 1:
            continue
        try:
            data = encoded(encode(sample.messages[0]))
        except FAULTS as error:
            raise ConformanceError(
                f"encode, or a piece of what it returned, is at fault: {described(error)}",
                fed=[sample.data],
                remedy="encode(request) makes the bytes of any request: bytes-like, or a list "
                "of such.",
            ) from error
        # Twice where another may follow: the end of the connection would take the place of a
        # delimiter that encode forgot.
        times = 1 if sample.final else 2
        expected = sample.outcome.events * times
        outcome = drive(suite.subject, [data * times])
        if outcome.events != expected:
            raise ConformanceError(
                "a message does not survive the way out and in again"
                + (", sent twice" if times > 1 else ""),
                fed=[data * times],
                details=[f"was: {expected!r}", f"got: {outcome.events!r}"],
                remedy=f"It came from {bytes_as_text(sample.data)}; what encode makes of it must "
                "be the same, with all that ends it.",
            )
    return ""


def encoded(out: Any) -> bytes:
    """The bytes of what ``encode`` returned: bytes, or a list of them."""
    return bytes(out) if isinstance(out, (bytes, bytearray, memoryview)) else b"".join(out)
