"""The conformance suite: does a protocol keep its contract with the engine?

Nothing here opens a socket. Parsers are driven as the engine drives them, with the samples that
the caller gives, cut, joined, spoiled and made endless.
"""

from protoserve.testing.conformance.checks import (
    CHECKS,
    EXAMPLES,
    CheckResult,
    check_protocol,
    check_results,
)
from protoserve.testing.conformance.error import ConformanceError

__all__ = [
    "CHECKS",
    "EXAMPLES",
    "CheckResult",
    "ConformanceError",
    "check_protocol",
    "check_results",
]
