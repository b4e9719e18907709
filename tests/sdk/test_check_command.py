"""The command ``protoserve check``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protoserve.checking import sample_of
from protoserve.cli import main
from protoserve.errors import ConfigError

PROTOCOL = """
from protoserve import ProtocolSpec
from protoserve.framing import lines

print("imported")

class Reply:
    data = b""

def hides_partial(params):
    parser = lines()(params)
    class Hides(type(parser)):
        __slots__ = ()
        partial = property(lambda self: False)
    parser.__class__ = Hides
    return parser

def spec(message_in, **more):
    return ProtocolSpec(name="the", message_in=message_in, message_out=lambda r: r.data,
                        response=Reply, **more)

GOOD = spec(lines(), samples=[b"a\\n"])
BAD = spec(hides_partial, samples=[b"ab\\n"])
BARE = spec(lines())
"""


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with ``the_protocol.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "the_protocol.py").write_text(PROTOCOL)
    yield tmp_path
    sys.modules.pop("the_protocol", None)


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    code = main(["check", *arguments])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_a_protocol_that_holds(protocol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = check(capsys, "the_protocol:GOOD", "--examples", "20")
    assert code == 0
    assert out[0].startswith("samples     ok      Each sample is one whole message")
    assert out[-1] == "the: 12 properties hold, 0 do not, 1 not tried"
    assert len(out) == 14
    assert err == "imported\n"


def test_one_that_does_not(protocol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "the_protocol:BAD", "--examples", "0")
    assert code == 1
    at = out.index("partial     FAILED  partial is false while b'a' is held")
    assert out[at + 1] == "  fed:  b'a'"
    assert out[-1] == "the: 10 properties hold, 1 do not, 2 not tried"


def test_samples_that_are_given(protocol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (protocol / "one").write_bytes(b"from a file\n")
    given = ("--sample", r"typed\r\n", "--sample", r"\xff\n", "--samples", "one")
    code, out, _ = check(capsys, "the_protocol:BARE", "--examples", "0", *given)
    assert code == 0
    assert out[0].endswith("(3 messages)")


def test_a_sample_that_is_none_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, "redis", "--sample", "PING", "--examples", "0")
    assert code == 1
    assert out[0] == "samples     FAILED  a sample is no whole message: nothing came of it"
    assert out[-1] == "redis: 0 properties hold, 1 do not, 12 not tried"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nope"], "no protocol 'nope' is installed"),
        (["the_protocol:BARE"], "protocol 'the' has no samples"),
        (["the_protocol:spec"], "is of type function; expected a ProtocolSpec"),
        (["the_protocol:NOPE"], "has no 'NOPE'"),
        (["the_protocol:"], "expected MODULE:SPEC"),
        (["http", "--samples", "nope"], "cannot read 'nope': No such file"),
        (["http", "--sample", r"a\q"], r"no escape \q"),
        (["http", "--sample", "a\\"], "no escape"),
        (["http", "--sample", ""], "none of them empty"),
    ],
)
def test_what_makes_no_sense(
    protocol: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    code, out, err = check(capsys, *arguments)
    assert code == 2
    assert out == []
    last = err.splitlines()[-1]
    assert last.startswith("protoserve: ")
    assert text in last


def test_without_hypothesis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    code, _, err = check(capsys, "http")
    assert code == 2
    assert err.endswith("pip install 'protoserve[testing]', or leave them out with --examples 0\n")
    assert check(capsys, "http", "--examples", "0")[0] == 0


def test_typed_samples() -> None:
    assert sample_of("a") == b"a"
    assert sample_of(r"\r\n\t\0\\\x00\xFfn") == b"\r\n\t\0\\\x00\xffn"
    assert sample_of("é") == "é".encode()
    with pytest.raises(ConfigError, match="no escape"):
        sample_of(r"\x1")
