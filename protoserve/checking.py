"""What ``protoserve check`` tries, and how it reports."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

from protoserve.errors import ConfigError
from protoserve.protocol import ProtocolSpec
from protoserve.testing.conformance import CHECKS, EXAMPLES, check_results

_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)?", re.DOTALL)
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
    counts = {"ok": 0, "FAILED": 0, "-": 0}
    for result in check_results(
        spec, samples, examples=EXAMPLES if examples is None else examples
    ):
        note = f" ({result.note})" if result.note else ""
        if result.error is not None:
            verdict = "FAILED"
            text = str(result.error).removeprefix(f"{result.name}: ")
        else:
            verdict = "ok" if result.tried else "-"
            text = f"{result.meaning}{note}"
        counts[verdict] += 1
        yield verdict != "FAILED", f"{result.name:{_NAME_WIDTH}}  {verdict:6}  {text}"
    left = len(CHECKS) - counts["ok"] - counts["FAILED"]
    summary = f"{spec.name}: {counts['ok']} properties hold, {counts['FAILED']} do not"
    yield not counts["FAILED"], f"{summary}, {left} not tried" if left else summary
