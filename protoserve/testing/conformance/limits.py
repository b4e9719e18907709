"""Checks of what a peer can cost: memory, and work."""

from __future__ import annotations

import gc
import re
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Final

from protoserve.errors import ProtocolError
from protoserve.params import ServerParams
from protoserve.protocol import NEED_DATA
from protoserve.testing.conformance.error import ConformanceError, NotTried
from protoserve.testing.conformance.run import FAULTS, Run, compared, described, drive
from protoserve.testing.conformance.suite import Suite, places, slices

FILLERS: Final = (b"a", b"0", b" ", b"\0", b"\x80")
"""Endless messages go on with one of these."""

_LEAST_LIMIT: Final = 8 * 1024
"""Twice the longest that is looked at."""
_LONGEST_BEGUN: Final = 4 * 1024
"""Longer samples are not looked at here."""
_POSITIONS: Final = 24
_WORDS: Final = re.compile(rb"\w+|\W+")
_WORDS_OF_A_PART: Final = 6
_NUMBER: Final = re.compile(rb"\d+")
_NUMBERS: Final = 8
"""Numbers of a sample that are made large."""
_MOST_BEGUN: Final = 600
_MOST_PARTS: Final = 400

_SLACK: Final = 64 * 1024
_TIMES_HELD: Final = 4
"""Times the limit that a parser may hold: a list of pieces, a copy in hand."""
_TIMES_FED: Final = 12
_TIMES_TAKEN: Final = 64
"""Times the limit that may be taken for a moment, besides the slack: small objects are many
times as large as what they were made of."""
_SLACK_TAKEN: Final = 512 * 1024

_MANY: Final = 8192
"""Messages after which nothing of them may be left, of large ones fewer."""
_MANY_BYTES: Final = 4 * 1024 * 1024

_SMALL_PIECE: Final = 64
_PIECE: Final = 4 * 1024
"""Bytes of a pipeline that come at once."""
_MEASURED: Final = 8
"""Unfinished messages of which the work is measured."""
_MEASURED_PARTS: Final = 4
"""And of those that repeat a part, and that announce many bytes."""
_LEAST: Final = 4 * 1024
_LARGEST: Final = 1024 * 1024
_LONG_ENOUGH: Final = 0.03
"""Seconds: less is noise."""
_TOO_LONG: Final = 0.3
_MOST_TIMES: Final = 8.0
"""4 times the bytes may take so many times the work; 16 are what a quadratic parser takes."""


def _begun(suite: Suite, positions: int) -> Iterator[tuple[bytes, bytes]]:
    """Beginnings of messages, and the byte that they go on with for ever."""
    seen: set[tuple[bytes, bytes]] = set()
    for sample in suite.samples:
        data = sample.data
        if len(data) > _LONGEST_BEGUN:
            continue
        for place in (0, *places(len(data), positions)):
            for filler in dict.fromkeys((*FILLERS, data[max(0, place - 1) : place] or b"a")):
                if (case := (data[:place], filler)) not in seen:
                    seen.add(case)
                    yield case


def _parts(suite: Suite) -> Iterator[tuple[bytes, bytes]]:
    """Beginnings of messages, and the part before that they repeat for ever: a line, a chunk, a
    field."""
    seen: set[tuple[bytes, bytes]] = set()
    for sample in suite.samples:
        data = sample.data[:_LONGEST_BEGUN]
        starts: list[int] = []  # of words, and of what is between them
        lines = [0]
        for word in _WORDS.finditer(data):
            starts.append(word.start())
            place = word.end()
            if place == len(sample.data):
                break
            found = starts[-_WORDS_OF_A_PART:-1]
            if word[0].endswith(b"\n"):
                found += lines[-2:]
                lines.append(place)
            for start in found:
                if (case := (data[:place], data[start:place])) not in seen:
                    seen.add(case)
                    yield case


def _announced(suite: Suite) -> Iterator[tuple[bytes, bytes]]:
    """Beginnings of messages in which a number, which may be a length, is large."""
    for sample in suite.samples:
        data = sample.data[:_LONGEST_BEGUN]
        for number in islice(_NUMBER.finditer(data), _NUMBERS):
            beginning = data[: number.start()] + b"%d" % (4 * _LARGEST)
            following = _WORDS.finditer(data, number.end())
            for word in islice(following, _WORDS_OF_A_PART):
                beginning += word[0]
                yield beginning, b"a"


def _repeated(part: bytes, size: int) -> bytes:
    """About so many bytes of it."""
    return part * max(1, size // len(part))


def check_limit(suite: Suite) -> str:
    """A message above ``request_size_limit`` is refused before it takes memory."""
    limit = max(_LEAST_LIMIT, 2 * len(suite.subject.before))
    params = suite.params(limit)
    if params is None:
        raise NotTried(f"the parameters do not allow request_size_limit={limit}")
    endless = 0
    cases = _some(suite, _begun(suite, _POSITIONS), _MOST_BEGUN)
    for more in (_parts(suite), _announced(suite)):
        cases += _some(suite, more, _MOST_PARTS)
    with _memory_traced():
        for beginning, part in cases:
            endless += _goes_on(suite, params, limit, beginning, part)
    tried, refused = _check_small_limits(suite)
    _check_forgets(suite)
    if not refused and not endless:
        raise NotTried(
            "nothing shows whether request_size_limit is looked at: no message can be made "
            "endless, and none is refused with a limit below its size"
        )
    return f"{endless} endless messages bounded, {refused} of {tried} short limits kept"


_REFUSE: Final = (
    "Raise ProtocolError as soon as more than params.request_size_limit is held, or announced by "
    "a length; not when the message is whole."
)


def _goes_on(
    suite: Suite, params: ServerParams, limit: int, beginning: bytes, part: bytes
) -> bool:
    """Whether an unfinished message goes on beyond the limit: it is refused, or not held."""
    run = Run(suite.subject, params)
    empty = _size_held(run.parser)
    tracemalloc.reset_peak()
    taken = tracemalloc.get_traced_memory()[0]
    run.feed(beginning)
    begun = run.count
    piece = _repeated(part, limit // 4)
    for _ in range(4 * _TIMES_FED):
        if run.fault is not None or run.count > begun:
            break
        run.feed(piece)
    endless = run.fault is None and run.count == begun
    taken = tracemalloc.get_traced_memory()[1] - taken
    held = _size_held(run.parser) - empty if endless else 0
    if held > _TIMES_HELD * limit + _SLACK:
        raise run.broken(
            f"no limit: {held} bytes of an unfinished message are held, and "
            f"request_size_limit is {limit}",
            _REFUSE,
        )
    if taken > _TIMES_TAKEN * max(limit, len(beginning) + len(piece)) + _SLACK_TAKEN:
        raise run.broken(
            f"no limit: {taken} bytes of memory were taken for a message, and "
            f"request_size_limit is {limit}",
            _REFUSE,
        )
    run.close()
    return endless or (run.fault is not None and sum(map(len, run.fed)) > limit)


@contextmanager
def _memory_traced() -> Iterator[None]:
    """Python tells how much memory it has taken."""
    if tracemalloc.is_tracing():
        yield
        return
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def _check_forgets(suite: Suite) -> None:
    """Of a message that was returned, nothing is left."""
    joined = b"".join(sample.data for sample in suite.joinable)
    if not joined:
        return
    run = Run(suite.subject, record=False)
    times = max(2, min(_MANY // len(suite.joinable), _MANY_BYTES // len(joined)))
    held = 0
    for turn in range(times):
        run.feed(joined)
        if turn == times // 8:
            held = _size_held(run.parser)
    grown = _size_held(run.parser) - held
    if grown > _SLACK:
        raise ConformanceError(
            f"what a parser holds grows with the messages that it has returned: by {grown} bytes, "
            f"with {run.count} messages",
            fed=[joined] * times,
            remedy="A connection may last for years: forget a message when it is returned.",
        )
    run.close()


def _check_small_limits(suite: Suite) -> tuple[int, int]:
    """Whether a message is too large does not depend on how it was split. Returns how many
    were given a limit that is a byte too small, and how many of them were refused: those that
    are short by the protocol's own rules, as WebSocket's pings, need not be."""
    tried = refused = 0
    for sample in suite.samples:
        size = len(sample.data)
        if size > _LONGEST_BEGUN:
            continue
        for limit in sorted({size // 2, size - 1} - {0}):
            params = suite.params(limit)
            if params is None:
                continue
            expected = drive(suite.subject, [sample.data], params=params)
            for pieces in (slices(sample.data, 1), slices(sample.data, max(1, size // 2))):
                if details := compared(suite.subject, pieces, expected, params):
                    raise ConformanceError(
                        f"with request_size_limit={limit}, what comes of {size} bytes depends on "
                        "how they were split",
                        fed=pieces,
                        details=details,
                        remedy="Hold messages that come whole to the limit, too.",
                    )
            if limit == size - 1:
                tried += 1
                refused += expected.fault is not None and sample.outcome.fault is None
    return tried, refused


_SHARED: Final = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType, ServerParams)


def _size_held(parser: object) -> int:
    """Bytes of all objects that a parser has, as far as Python knows them."""
    seen: dict[int, object] = {}
    found: list[object] = [parser]
    size = 0
    while found:
        item = found.pop()
        if id(item) in seen or isinstance(item, _SHARED):
            continue
        seen[id(item)] = item
        size += sys.getsizeof(item)
        found += gc.get_referents(item)
    return size


def check_linear(suite: Suite) -> str:
    """Four times the bytes take about four times the work."""
    params = suite.params(64 * 1024 * 1024) or suite.spec.params
    unfinished = _go_on(suite, params, _begun(suite, 8), _MEASURED)
    for more in (_parts(suite), _announced(suite)):
        unfinished += _go_on(suite, params, _some(suite, more, _MOST_PARTS), _MEASURED_PARTS)
    for beginning, filler in unfinished:
        _measure(
            lambda size, b=beginning, f=filler: _cost_unfinished(suite, params, b, f, size),  # type: ignore[misc]
            _LEAST,
            "an unfinished message takes work that grows with the square of its size",
            [beginning, _repeated(filler, _SMALL_PIECE)],
            "Each byte is looked at once: search only what is new (from where the search before "
            "ended), hold input in a bytearray or a list, never `held += data` with bytes. "
            "protoserve.framing does it.",
        )
    joined = b"".join(sample.data for sample in suite.joinable)
    if joined:
        _measure(
            lambda size: _cost_joined(suite, params, joined, size),
            _LEAST,
            "many messages take work that grows with the square of their number",
            [joined],
            "A message that was returned must leave nothing behind that is looked at again.",
        )
    return f"{len(unfinished) + bool(joined)} inputs measured"


def _go_on(
    suite: Suite, params: ServerParams, begun: Iterable[tuple[bytes, bytes]], most: int
) -> list[tuple[bytes, bytes]]:
    """Those unfinished messages that may go on for long, of many some."""
    found: list[tuple[bytes, bytes]] = []
    for beginning, part in begun:
        run = Run(suite.subject, params)
        run.feed(beginning)
        count = run.count
        run.feed(_repeated(part, 1024))
        if run.fault is None and run.count == count and run.partial():
            found.append((beginning, part))
        run.close()
    return _some(suite, found, most)


def _some(
    suite: Suite, cases: Iterable[tuple[bytes, bytes]], most: int
) -> list[tuple[bytes, bytes]]:
    """Of many some, the same each time."""
    found = [*cases]
    if len(found) <= most:
        return found
    # Not each n-th: those might all go on with the same byte.
    return [found[place] for place in sorted(suite.random().sample(range(len(found)), most))]


def _cost_unfinished(
    suite: Suite, params: ServerParams, beginning: bytes, part: bytes, size: int
) -> float | None:
    """Seconds of CPU time of ``size`` bytes in small pieces; ``None`` where they are refused, or
    end the message."""
    run = Run(suite.subject, params)
    run.feed(beginning)
    feed, next_message = run.parser.feed, run.parser.next_message
    piece = _repeated(part, _SMALL_PIECE)
    times = max(1, size // len(piece))
    run.fed.append(piece * times)
    watch = suite.subject.watch
    watch.enter(run, f"a parser that is fed {len(piece)} bytes at a time")
    try:
        begun = time.thread_time()
        for _ in range(times):
            feed(piece)
            if next_message() is not NEED_DATA:
                return None
        cost = time.thread_time() - begun
    except ProtocolError:
        return None
    except FAULTS as error:
        raise run.broken(
            f"a parser that is fed {len(piece)} bytes at a time raised {described(error)}",
            "Whatever the peer sends leads to messages, or to a ProtocolError raised by "
            "next_message.",
        ) from error
    finally:
        watch.leave()
    run.close()
    return cost


def _cost_joined(suite: Suite, params: ServerParams, data: bytes, size: int) -> float | None:
    times = max(1, size // len(data))
    pieces = slices(data * times, _PIECE)
    run = Run(suite.subject, params, record=False)
    begun = time.thread_time()
    for piece in pieces:
        run.feed(piece)
    cost = time.thread_time() - begun
    run.close()
    return cost * size / (times * len(data))


def _measure(
    cost: Callable[[int], float | None], size: int, fault: str, fed: list[bytes], remedy: str
) -> None:
    """Compare the work of ``size`` bytes with that of four times as many, up to where it is
    enough to tell. Only the thread's own time counts, and the best of several."""
    before = cost(size)
    while size < _LARGEST and before is not None and before < _TOO_LONG:
        size *= 4
        after = cost(size)
        if after is None:
            return
        if after > _LONG_ENOUGH and after > _MOST_TIMES * before:
            less = [cost(size // 4) or before for _ in range(4)]
            more = [cost(size) or after for _ in range(2)]
            before, after = min(before, *less), min(after, *more)
            if after > _MOST_TIMES * before:
                raise ConformanceError(
                    fault,
                    fed=[*filter(None, fed[:-1]), *fed[-1:] * 3],
                    details=[
                        "and so on: "
                        f"{size // 4} bytes took {before * 1000:.1f} ms of CPU time, {size} bytes "
                        f"{after * 1000:.1f} ms, {after / before:.1f} times as long"
                    ],
                    remedy=remedy,
                )
        before = after
