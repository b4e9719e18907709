"""The properties, and how they are gone through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protoserve.errors import ConfigError
from protoserve.protocol import MessageOut, MessageParser, ProtocolSpec
from protoserve.testing.conformance.error import ConformanceError, NotTried
from protoserve.testing.conformance.garbage import check_garbage, require_hypothesis
from protoserve.testing.conformance.limits import check_limit, check_linear
from protoserve.testing.conformance.parsers import (
    check_ends,
    check_faults,
    check_leftover,
    check_order,
    check_partial,
    check_round_trip,
    check_samples,
    check_separate,
    check_splits,
)
from protoserve.testing.conformance.replies import check_replies
from protoserve.testing.conformance.run import Subject
from protoserve.testing.conformance.suite import Suite
from protoserve.testing.conformance.watch import Stuck, Watch

EXAMPLES: Final = 200
CALL_LIMIT: Final = 5.0
MOST_CALL_LIMIT: Final = 3600.0

CHECKS: Final[dict[str, Callable[[Suite], str]]] = {
    "samples": check_samples,
    "separate": check_separate,
    "order": check_order,
    "splits": check_splits,
    "partial": check_partial,
    "leftover": check_leftover,
    "ends": check_ends,
    "faults": check_faults,
    "limit": check_limit,
    "linear": check_linear,
    "garbage": check_garbage,
    "round trip": check_round_trip,
    "replies": check_replies,
}
"""The properties, in the order in which they are looked at."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of one property."""

    name: str
    meaning: str
    """The property, in a sentence."""
    tried: bool
    """Whether it applies."""
    note: str
    """How much was tried, or why not."""
    error: ConformanceError | None
    """What is wrong; ``None`` for nothing."""


def check_protocol(
    spec: ProtocolSpec[Any, Any],
    samples: Sequence[bytes] | None = None,
    *,
    last: Sequence[bytes] = (),
    refused: Sequence[bytes] = (),
    before: bytes = b"",
    same: Callable[[Any, Any], bool] | None = None,
    encode: Callable[[Any], MessageOut] | None = None,
    handle: Callable[[MessageParser[Any], Any], object] | None = None,
    is_reply: Callable[[bytes], object] | None = None,
    examples: int = EXAMPLES,
    call_limit: float = CALL_LIMIT,
) -> None:
    """Raise :class:`ConformanceError` for the first property of the contract that ``spec`` does
    not have, with the shortest input that shows it.

    ``samples``: requests as they come over the wire, each one whole message, as different from
    each other as possible; by default ``spec.samples``. Those that stream in (``Arriving``) are
    read to their end, and every ``HOLD`` is answered at once.

    ``last``: samples after which the parser reads nothing more; one that ends in ``HOLD`` may
    raise ``ProtocolError`` when it is asked again, as where an upgrade must follow.
    ``refused``: input that must lead to ``ProtocolError``. ``before``: what each connection
    begins with, such as a handshake, before the first sample.

    ``same``: whether two requests are the same, where their class has no equality and their
    public attributes do not tell. ``encode``: makes the bytes of a request, for the round trip;
    may be ``spec.message_out`` where requests and responses look alike.
    ``handle(parser, request)``: called with each request, in place of a handler that tells the
    parser what follows; then a sample may be several messages. ``is_reply``: looks at what a
    client is sent (farewells, replies to failures); raises or returns ``False`` where a client
    could not read it.

    ``examples``: how many random inputs, made by Hypothesis (``protoserve[testing]``); 0 for
    none. ``call_limit``: seconds of CPU time after which a call of the parser is said to hang.

    Raises :class:`~protoserve.errors.ConfigError` where there are no samples, and for
    arguments that make no sense; ``ModuleNotFoundError`` where Hypothesis is missing. Any
    thread; takes some seconds.
    """
    for result in check_results(
        spec,
        samples,
        last=last,
        refused=refused,
        before=before,
        same=same,
        encode=encode,
        handle=handle,
        is_reply=is_reply,
        examples=examples,
        call_limit=call_limit,
    ):
        if result.error is not None:
            raise result.error


def check_results(
    spec: ProtocolSpec[Any, Any],
    samples: Sequence[bytes] | None = None,
    *,
    last: Sequence[bytes] = (),
    refused: Sequence[bytes] = (),
    before: bytes = b"",
    same: Callable[[Any, Any], bool] | None = None,
    encode: Callable[[Any], MessageOut] | None = None,
    handle: Callable[[MessageParser[Any], Any], object] | None = None,
    is_reply: Callable[[bytes], object] | None = None,
    examples: int = EXAMPLES,
    call_limit: float = CALL_LIMIT,
) -> Iterator[CheckResult]:
    """The same, one property after the other, those that fail included. Where the samples are
    no messages, nothing else is tried. To be used up by the thread that began it, or closed."""
    if not isinstance(spec, ProtocolSpec):
        raise ConfigError(f"spec must be a ProtocolSpec, not {type(spec).__name__}")
    samples = spec.samples if samples is None else samples
    for what, given in {"samples": samples, "last": last, "refused": refused}.items():
        if isinstance(given, (bytes, str)) or not _are_bytes(given):
            raise ConfigError(f"{what}={given!r}: expected a list of bytes, none of them empty")
    if not samples and not last:
        raise ConfigError(
            f"protocol {spec.name!r} has no samples: give requests as they come over the wire, "
            "or ProtocolSpec.samples"
        )
    if not isinstance(before, bytes):
        raise ConfigError(f"before={before!r}: expected bytes, empty for none")
    functions = {"same": same, "encode": encode, "handle": handle, "is_reply": is_reply}
    for what, function in functions.items():
        if function is not None and not callable(function):
            raise ConfigError(f"{what}={function!r}: expected a function, or None")
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 0:
        raise ConfigError(f"examples={examples!r}: expected a number of random inputs, 0 for none")
    if (
        isinstance(call_limit, bool)
        or not isinstance(call_limit, (int, float))
        or not 0 < call_limit <= MOST_CALL_LIMIT
    ):
        raise ConfigError(
            f"call_limit={call_limit!r}: expected seconds of CPU time, more than 0 and at most "
            f"{MOST_CALL_LIMIT:g}"
        )
    if examples:
        require_hypothesis()
    with Watch(call_limit) as watch:
        subject = Subject(spec, watch, before, same, handle, is_reply)
        suite = Suite(subject, samples, last, refused, encode, examples)
        for name, check in CHECKS.items():
            result = _result(name, check, suite)
            yield result
            if name == "samples" and result.error is not None:
                return


def _are_bytes(given: object) -> bool:
    """Whether it is a list of bytes, none of them empty."""
    return isinstance(given, Collection) and all(
        isinstance(data, bytes) and bool(data) for data in given
    )


def _result(name: str, check: Callable[[Suite], str], suite: Suite) -> CheckResult:
    meaning = (
        " ".join((check.__doc__ or "").replace("``", "").split()).partition(". ")[0].rstrip(".")
    )
    note = ""
    error: ConformanceError | None = None
    try:
        note = check(suite)
    except NotTried as reason:
        return CheckResult(name, meaning, False, str(reason), None)
    except ConformanceError as caught:
        error = caught
    except Stuck:
        error = suite.subject.watch.error()
    if error is not None:
        error.check = name
    return CheckResult(name, meaning, True, note, error)
