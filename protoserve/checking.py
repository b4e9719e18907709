"""What ``protoserve check`` tries, and how it reports."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

from protoserve.errors import ConfigError
from protoserve.protocol import ProtocolSpec
from protoserve.testing.conformance import CHECKS, EXAMPLES, check_results

_ESCAPE: Final = re.compile(rb"\\\\(x[0-9a-fA-F]{2}|.)?", re.DOTALL)
_ESCAPED: Final = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"\\": b"\\"}

_NAME_WIDTH: Final = max(map(len, CHECKS))


def sample_of(text: str) -> bytes:
    """The bytes of a sample that was typed: ``\\r``, ``\\n``, ``\\t``, ``\\0``, ``\\\\`` and
    ``\\xHH`` are one each, other characters UTF-8. Raises ``ConfigError`` for other escapes."""

    def byte(match: re.Match[bytes]) -> bytes:
        name: bytes = match[1] or b""
        if len(name) == 3:
            return bytes.fromhex(name[1:].decode())
        if name not in _ESCAPED:
            raise ConfigError(
                f"{text!r}: no escape {match[0].decode(errors='replace')}; "
                r"there are \r, \n, \t, \0, \\ and \xHH"
            )
        return _ESCAPED[name]

    return _ESCAPE.sub(byte, text.encode("utf-8", "surrogateescape"))


def read_samples(texts: Sequence[str], files: Sequence[str]) -> list[bytes] | None:
    """The samples that were given; ``None`` where none were. Raises ``OSError`` and
    ``ConfigError``."""
    samples = [sample_of(text) for text in texts]
    samples += [Path(file).read_bytes() for file in files]
    return samples or None


def check_lines(
    spec: ProtocolSpec[Any, Any], samples: Sequence[bytes] | None, examples: int | None
) -> Generator[tuple[bool, str], None, None]:
    """A report, as it comes: whether each property holds, and its line, or lines. Raises
    ``ConfigError`` and ``ModuleNotFoundError`` before the first."""
    failed = tried = 0
    for result in check_results(
        spec, samples, examples=EXAMPLES if examples is None else examples
    ):
        tried += 1
        name = result.name.ljust(_NAME_WIDTH)
        if result.error is None:
            note = f" ({result.note})" if result.note else ""
            yield True, f"{name}  ok      {result.meaning}{note}"
        else:
            failed += 1
            text = str(result.error).removeprefix(f"{result.name}: ")
            yield False, f"{name}  FAILED  {text}"
    left = len(CHECKS) - tried
    if failed:
        rest = f"; {left} not tried" if left else ""
        yield False, f"{spec.name}: {failed} of {tried} properties do not hold{rest}"
    else:
        yield True, f"{spec.name}: all {tried} properties hold"
