"""A check with random bytes, by Hypothesis, which is imported when it is asked for."""

from __future__ import annotations

import re
from typing import Any

from protoserve.params import ServerParams
from protoserve.testing.conformance.error import ConformanceError, NotTried
from protoserve.testing.conformance.run import compared, drive
from protoserve.testing.conformance.suite import Suite, cut, slices

_LONGEST_PART = 256


def require_hypothesis() -> None:
    """Raises ``ModuleNotFoundError`` that says how to install it, where it is missing."""
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "random bytes are made by Hypothesis, which is not installed: "
            "pip install 'protoserve[testing]', or leave them out with examples=0",
            name="hypothesis",
        ) from error


def check_garbage(suite: Suite) -> str:
    """Any bytes, split anywhere, lead to messages or to a ``ProtocolError``, and to the same
    ones. The same inputs each time; one that fails is made short."""
    if not suite.examples:
        raise NotTried("no random inputs are asked for")
    require_hypothesis()
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import errors as hypothesis_errors
    from hypothesis import strategies as st

    limits = [suite.spec.params]
    limits += [params for limit in (16, 256) if (params := suite.params(limit)) is not None]
    parts = st.one_of(st.sampled_from(_parts(suite)), st.binary(max_size=12))

    @settings(
        max_examples=suite.examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(
        data=st.lists(parts, min_size=1, max_size=8).map(b"".join),
        places=st.lists(st.integers(0, 2 * _LONGEST_PART), max_size=3),
        params=st.sampled_from(limits),
    )
    def any_bytes(data: bytes, places: list[int], params: ServerParams) -> None:
        expected = drive(suite.subject, [data], params=params)
        for pieces in (cut(data, places), slices(data, 1)):
            if details := compared(suite.subject, pieces, expected, params):
                size = params.request_size_limit
                raise ConformanceError(
                    "what comes of these bytes depends on how they were split",
                    fed=pieces,
                    details=[*details, f"with request_size_limit={size}"],
                    remedy="Whatever is fed leads to the same messages and the same "
                    "ProtocolError, in whatever pieces it comes.",
                )

    test: Any = any_bytes
    try:
        test()
    except hypothesis_errors.HypothesisException as error:
        raise ConformanceError(
            f"the same bytes do not always lead to the same: {' '.join(str(error).split())}",
            remedy="Do connections share state, or does time or chance decide?",
        ) from error
    return f"{suite.examples} inputs"


def _parts(suite: Suite) -> list[bytes]:
    """What random input is made of: samples, their halves, and the words in them."""
    found: dict[bytes, None] = {}
    for data in [*(sample.data for sample in suite.samples), *suite.refused]:
        if len(data) > _LONGEST_PART:
            data = data[:_LONGEST_PART]
        half = len(data) // 2
        words = re.findall(rb"\w+|\W+", data)
        found.update(dict.fromkeys([data, data[:half], data[half:], data[:-1], *words[:40]]))
    return [part for part in found if part]
