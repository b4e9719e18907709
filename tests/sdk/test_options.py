"""A protocol's own parameters are options of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from plugin_site import Site
from test_cli import misused, refused

from protoserve import ConfigError, ServerParams, cli, plugins
from protoserve.cli import main
from protoserve.options import RESERVED, own_options

ECHO = "examples.http_echo:process"


@dataclass(frozen=True, kw_only=True)
class EachKind(ServerParams):
    flag: bool = False
    count: int = 5
    patience: float | None = 2.5
    either: int | float = 1
    word: str = "x"
    language: Literal["en", "de"] = field(default="en", metadata={"help": "of 100% of errors"})
    mapping: dict[str, int] = field(default_factory=dict)
    number: Literal[1, 2] = 1
    _private: int = 1
    counted: int = field(default=3, init=False)
    shared: ClassVar[int] = 7


def test_kinds() -> None:
    found = {o.name: (o.flag, o.kind, o.optional, o.default) for o in own_options(EachKind())}
    assert found == {
        "flag": ("--flag", bool, False, False),
        "count": ("--count", int, False, 5),
        "patience": ("--patience", float, True, 2.5),
        "either": ("--either", float, False, 1),
        "word": ("--word", str, False, "x"),
        "language": ("--language", str, False, "en"),
    }
    (language,) = (o for o in own_options(EachKind()) if o.name == "language")
    assert (language.choices, language.help) == (("en", "de"), "of 100% of errors")
    assert own_options(ServerParams()) == []


def test_defaults_are_the_protocol_s() -> None:
    (count,) = (o for o in own_options(EachKind(count=9)) if o.name == "count")
    assert count.default == 9


def test_one_of_several_words(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli._parser(EachKind())
    assert parser.parse_args(["run", "own", ECHO, "--language", "de"]).language == "de"
    with pytest.raises(SystemExit):
        parser.parse_args(["run", "own", ECHO, "--language", "fr"])
    assert "argument --language: 'fr': expected one of en, de" in capsys.readouterr().err
    shown = " ".join(parser.parse_args(["run", "own"]).parser.format_help().split())
    assert "--language en|de of 100% of errors (default: en)" in shown


def test_what_the_command_has_itself_is_reserved() -> None:
    """Every option and every name that a parsed command line has, besides parameters."""
    args = cli._parser().parse_args(["run", "http", ECHO])
    actions = args.parser._actions
    names = {action.dest for action in actions}
    names |= {
        option.removeprefix("--").replace("-", "_")
        for action in actions
        for option in action.option_strings
        if option.startswith("--")
    }
    names |= {*vars(args), "logging"}  # main() puts that there
    assert names - set(cli._PARAMETERS) == RESERVED


def params(*bases: type, decorate: bool = True, **annotations: Any) -> ServerParams:
    """An instance of a class ``Own`` with these fields, each with the default 0."""
    members = {**dict.fromkeys(annotations, 0), "__annotations__": annotations}
    kind = type("Own", bases or (ServerParams,), members)
    made: ServerParams = (dataclass(frozen=True, kw_only=True)(kind) if decorate else kind)()
    return made


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_name_that_the_command_has(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError) as caught:
        own_options(params(**{name: int}))
    assert str(caught.value) == (
        f"Own.{name}: {flag} is protoserve's own; give the field another name"
    )


def test_a_name_that_another_field_has() -> None:
    with pytest.raises(ConfigError) as caught:
        own_options(params(echo=bool, no_echo=int))
    assert str(caught.value) == (
        "Own.no_echo: --no-echo is what Own.echo is switched off with; give the field another name"
    )
    assert len(own_options(params(echo=int, no_echo=int))) == 2


def test_a_class_that_is_no_data_class() -> None:
    with pytest.raises(ConfigError) as caught:
        own_options(params(decorate=False, extra=int))
    assert str(caught.value) == (
        "Own.extra is no field: put @dataclass(frozen=True, slots=True, kw_only=True) above "
        "class Own, or mark it ClassVar"
    )
    assert own_options(params(decorate=False)) == []


def test_annotations_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"annotations of Own cannot be read \(NameError: name"):
        own_options(params(extra="NotImported"))


SHOUT = """
from dataclasses import dataclass, field
from protoserve import ProtocolSpec, ServerParams, hookimpl
from protoserve.framing import lines

@dataclass(frozen=True, slots=True, kw_only=True)
class Params(ServerParams):
    loud: bool = field(default=False, metadata={"help": "say it in capitals"})
    keep_alive_timeout: float | None = 7.0

@hookimpl
def protoserve_register_protocols(register):
    register(ProtocolSpec(name="shout", message_in=lines(), message_out=bytes,
                          response=bytes, params=Params()))
"""


def test_options_of_an_installed_plugin(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("shout-protocol", "shout", SHOUT)
    site.serve("good-line", "line")
    monkeypatch.setattr(plugins.registry, "_registry", site.registry())
    with pytest.raises(SystemExit):
        main(["run", "shout", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--loud, --no-loud say it in capitals (default: no)" in shown
    assert refused(capsys, "shout", "--loud", "no_such_app:process").startswith("no module")
    # Only of that protocol, and only these.
    message = misused(capsys, "run", "line", ECHO, "--loud")
    assert message.endswith("unrecognized arguments: --loud")
    message = misused(capsys, "run", "shout", ECHO, "--lout")
    assert message.endswith("unrecognized arguments: --lout; did you mean --loud?")


def test_a_plugin_whose_options_clash_is_listed(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = site.install("shout-protocol", "shout", SHOUT.replace("loud", "plugin"))
    monkeypatch.setattr(plugins.registry, "_registry", site.registry())
    message = refused(capsys, "shout", ECHO)
    assert "protocol 'shout': Params.plugin: --plugin is protoserve's own" in message
    assert f"({site.folder / module}.py:6)" in message
    assert main(["plugins"]) == 0
    *_, row, remedy = capsys.readouterr().out.splitlines()
    assert row.split()[:5] == ["shout", "shout-protocol", "1.0", "-", "failed"]
    assert remedy == (
        "shout of shout-protocol 1.0: mend it there, tell the authors of shout-protocol, "
        "or uninstall it: pip uninstall shout-protocol"
    )
