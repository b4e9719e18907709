"""Discovery: what is installed is found, and a broken plugin costs nobody but itself."""

from __future__ import annotations

import itertools
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata

import pytest
from plugin_site import GOOD, Site

from protoserve import InstalledPlugin, PluginError, installed_plugins, load_protocol, plugins
from protoserve.plugins import PluginRegistry
from protoserve.plugins.declared import declared


def owner(registry: PluginRegistry, protocol: str) -> str | None:
    found = [p for p in registry.installed_plugins() if protocol in p.protocols]
    assert len(found) <= 1
    return found[0].distribution if found else None


def only(registry: PluginRegistry, distribution: str) -> InstalledPlugin:
    (found,) = (p for p in registry.installed_plugins() if p.distribution == distribution)
    return found


def test_a_plugin_is_listed_and_loaded(site: Site) -> None:
    module = site.serve("good-line", "line")
    registry = site.registry()
    assert registry.installed_plugins() == [
        InstalledPlugin("line", "good-line", "1.0", module, ("line",), "ok", "")
    ]
    assert registry.load_protocol("line").name == "line"
    assert registry.load_protocol("line") is registry.load_protocol("line")


def test_the_bundled_plugins_are_found_through_their_entry_points() -> None:
    bundled = [p for p in installed_plugins() if p.distribution == "protoserve"]
    assert "http" in [p.name for p in bundled]
    # Just the protocol of its own name: that is what gives it the name before any other.
    assert [p.protocols for p in bundled] == [(p.name,) for p in bundled]
    assert load_protocol("http").url_scheme == "http"


# -- broken plugins --------------------------------------------------------------------

HOOK = "from protoserve import hookimpl\n@hookimpl\ndef protoserve_register_protocols"
SPEC = "from protoserve import ProtocolSpec\nfrom protoserve.framing import lines\n"
SPEC += "spec = ProtocolSpec(name='broken', "
SPEC += "message_in=lines(), message_out=bytes, response=bytes)\n"

BROKEN = {
    "raises at import": ("1 / 0", "ZeroDivisionError: division by zero ("),
    "exits at import": ("import sys\nsys.exit('bye')", "SystemExit: bye ("),
    "raises BaseException": ("class E(BaseException): ...\nraise E", "raised E ("),
    "does not parse": ("def (:", "SyntaxError: "),
    "misses a dependency": ("import no_such_module_here", "No module named 'no_such_module_here'"),
    "message of many lines": (
        "raise ValueError('one\\ntwo\\x1b[31m')",
        "ValueError: one two?[31m",
    ),
    "message that raises": (
        "class E(Exception):\n  def __str__(self): raise ValueError\nraise E()",
        "raised E (",
    ),
    "misspelt hook": (
        "from protoserve import hookimpl\n@hookimpl\n"
        "def protoserve_register_protocol(register): ...",
        "unknown hook 'protoserve_register_protocol'",
    ),
    "misspelt argument": (HOOK + "(registrar): ...", "{'registrar'}"),
    "forgotten mark": ("def protoserve_register_protocols(register): ...", "marked with"),
    "empty": ("", "has no protoserve_register_protocols that is marked"),
    "registers nothing": (HOOK + "(register): pass", "it registered no protocol: call register"),
    "forgets to register": (
        SPEC + HOOK + "(register):\n  for spec in (): register(spec)",
        "it registered no protocol",
    ),
    "an invalid setting": (
        "from protoserve import ServerParams\nx = 1\nparams = ServerParams(backlog=0)",
        "backlog=0: expected at least 1 (",
    ),
    "newer API": (
        "PROTOSERVE_API_VERSION = 2\n" + HOOK + "(register): ...",
        "broken-one 1.0 was built for version 2 of the plugin API; "
        f"this protoserve has version 1 (it is protoserve {metadata.version('protoserve')}) (",
    ),
    "older API": (
        "PROTOSERVE_API_VERSION = 0\n" + HOOK + "(register): ...",
        "broken-one 1.0 was built for version 0 of the plugin API; "
        f"this protoserve has version 1 (it is protoserve {metadata.version('protoserve')}) (",
    ),
    "no number for the API": (
        "PROTOSERVE_API_VERSION = '1'\n" + HOOK + "(register): ...",
        "PROTOSERVE_API_VERSION is '1' (",
    ),
    "a name that this protoserve has not": (
        "from protoserve import FromTheFuture",
        "ImportError: cannot import name 'FromTheFuture' from 'protoserve'",
    ),
    "newer API, above an import that fails": (
        "PROTOSERVE_API_VERSION = 2\nfrom protoserve import FromTheFuture",
        "broken-one 1.0 was built for version 2 of the plugin API; "
        f"this protoserve has version 1 (it is protoserve {metadata.version('protoserve')}) (",
    ),
    "newer API, below an import that fails": (
        "from protoserve import FromTheFuture\n\nPROTOSERVE_API_VERSION: int = 2",
        "; importing 'installed_plugin_",
    ),
    "this API, below an import that fails": (
        "from protoserve import FromTheFuture\nPROTOSERVE_API_VERSION = 1",
        "' raised ImportError: cannot import name 'FromTheFuture' from 'protoserve'",
    ),
    "one of its hooks without a mark": (
        SPEC + HOOK + "(register): register(spec)\ndef protoserve_server_started(server): ...",
        "protoserve_server_started is not marked with protoserve.hookimpl (",
    ),
    "a parser that raises in its constructor": (
        "from protoserve import ProtocolSpec, hookimpl\nclass Parser:\n"
        "  def __init__(self, params):\n    1 / 0\n"
        "@hookimpl\ndef protoserve_register_protocols(register):\n"
        "  register(ProtocolSpec(name='broken', message_in=Parser, message_out=bytes,"
        " response=bytes))",
        "protocol 'broken': message_in raised ZeroDivisionError('division by zero')",
    ),
    "a parser of the wrong type": (
        "from protoserve import ProtocolSpec, hookimpl\nclass Parser:\n"
        "  def __init__(self, params): ...\n"
        "@hookimpl\ndef protoserve_register_protocols(register):\n"
        "  register(ProtocolSpec(name='broken', message_in=Parser, message_out=bytes,"
        " response=bytes))",
        "message_in made a Parser, which has no method feed()",
    ),
    "wrong types in the spec": (
        "from protoserve import ProtocolSpec\nx = 1\n"
        "ProtocolSpec(name='broken', message_in=1, message_out=bytes, response=bytes)",
        "protocol 'broken': message_in must be callable, not int (",
    ),
    "forgotten brackets": (
        SPEC.replace("lines()", "lines"),
        "protocol 'broken': message_in is a function that makes a message_in; "
        "did you mean lines()? (",
    ),
    "an option that is taken": (
        "from dataclasses import dataclass\n"
        "from protoserve import ProtocolSpec, ServerParams, hookimpl\n"
        "from protoserve.framing import lines\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Params(ServerParams):\n  bind: int = 1\n"
        "@hookimpl\ndef protoserve_register_protocols(register):\n"
        "  register(ProtocolSpec(name='broken', message_in=lines(), message_out=bytes,"
        " response=bytes, params=Params()))",
        "protocol 'broken': Params.bind: --bind is protoserve's own; give the field another name",
    ),
    "a hook that blocks": (
        "import threading\ncome_on = threading.Event()\n"
        + HOOK
        + "(register):\n  come_on.wait()\n  register(None)",
        "protoserve_register_protocols still runs after",
    ),
    "registers in a thread that is late": (
        "import threading\n"
        + SPEC
        + HOOK
        + "(register):\n  global later\n  later = threading.Thread(target=register, args=[spec])",
        "it registered no protocol: call register",
    ),
    "hook raises": (HOOK + "(register): raise KeyError('k')", "KeyError: 'k' ("),
    "hook exits": (HOOK + "(register): raise SystemExit", "SystemExit ("),
    "registers no spec": (HOOK + "(register): register('http')", "expected a ProtocolSpec"),
    "registers the class": (
        SPEC + HOOK + "(register): register(ProtocolSpec)",
        "expected a ProtocolSpec",
    ),
    "registers an invalid spec": (
        SPEC + HOOK + "(register): register(ProtocolSpec(name='Bad Name', message_in=list,"
        " message_out=bytes, response=bytes))",
        "protocol name 'Bad Name'",
    ),
    "registers twice": (
        SPEC + HOOK + "(register):\n  register(spec)\n  register(spec)",
        "protocol 'broken' is registered twice",
    ),
    "hides its fault": (
        SPEC
        + HOOK
        + "(register):\n  register(spec)\n  try: register(None)\n  except Exception: pass",
        "expected a ProtocolSpec",
    ),
    "returns": (SPEC + HOOK + "(register): return spec", "the hook returned ProtocolSpec"),
    "coroutine": (
        "from protoserve import hookimpl\n@hookimpl\n"
        "async def protoserve_register_protocols(register): ...",
        "the hook returned coroutine",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_changes_nothing_but_its_own_line(site: Site, kind: str) -> None:
    site.serve("a-bystander", "first")
    site.serve("z-bystander", "zero")
    before = site.registry().installed_plugins()
    source, reason = BROKEN[kind]
    module = site.install("broken-one", "broken", source)

    registry = site.registry()
    listed = registry.installed_plugins()
    assert [p for p in listed if p.distribution != "broken-one"] == before
    (broken,) = (p for p in listed if p.distribution == "broken-one")
    assert (broken.name, broken.version, broken.status) == ("broken", "1.0", "failed")
    assert broken.protocols == ()
    assert reason in broken.reason
    assert broken.reason.isprintable()
    # ... and says where, and what to do.
    assert re.search(rf"\({re.escape(str(site.folder / module))}\.py:\d+\)", broken.reason), broken
    assert broken.remedy
    assert broken.remedy.isprintable()
    assert registry.load_protocol("zero").name == "zero"

    with pytest.raises(PluginError) as caught:
        site.registry().load_protocol("broken")
    assert reason in str(caught.value)
    assert broken.remedy in str(caught.value)
    assert "broken-one 1.0" in str(caught.value)


REMEDIES = {
    "raises at import": "tell the authors of broken-one",
    "misses a dependency": "install what has the module 'no_such_module_here'",
    "misspelt hook": "did you mean protoserve_register_protocols?",
    "misspelt argument": "its arguments are register",
    "forgotten mark": "put @hookimpl above it",
    "newer API": "pip install --upgrade protoserve), or install an older release of broken-one",
    "newer API, below an import that fails": "pip install --upgrade protoserve), or install",
    "this API, below an import that fails": "which has version 1 of the plugin API: upgrade",
    "older API": "pip install --upgrade broken-one",
    "no number for the API": f"that of protoserve {metadata.version('protoserve')} is 1",
    "a name that this protoserve has not": (
        f"broken-one 1.0 does not fit protoserve {metadata.version('protoserve')}, "
        "which has version 1 of the plugin API"
    ),
    "a hook that blocks": "do that later, in a thread of the plugin's own",
    "registers in a thread that is late": "before the hook returns, not in a thread",
    "returns": "a plain function that returns nothing",
    "empty": "let the entry point name a ProtocolSpec",
}


@pytest.mark.parametrize("kind", REMEDIES)
def test_what_to_do_about_a_broken_plugin(site: Site, kind: str) -> None:
    site.install("broken-one", "broken", BROKEN[kind][0])
    registry = site.registry()
    assert REMEDIES[kind] in only(registry, "broken-one").remedy


LINES = {
    "misspelt hook": 2,
    "misspelt argument": 2,
    "forgotten mark": 1,
    "newer API": 1,
    "newer API, below an import that fails": 3,
    "hook raises": 3,
    "a parser that raises in its constructor": 4,
    "a parser of the wrong type": 2,
    "wrong types in the spec": 3,
    "forgotten brackets": 3,
    "an option that is taken": 4,
    "a hook that blocks": 6,
    "empty": 1,
}


@pytest.mark.parametrize("kind", LINES)
def test_the_line_of_a_broken_plugin(site: Site, kind: str) -> None:
    module = site.install("broken-one", "broken", BROKEN[kind][0])
    reason = only(site.registry(), "broken-one").reason
    assert f"({site.folder / module}.py:{LINES[kind]})" in reason


def test_all_the_broken_ones_at_once_cost_the_others_nothing(site: Site) -> None:
    """Beside them everything that works works, whoever is asked for first."""
    for number, (source, _) in enumerate(BROKEN.values()):
        site.install(f"broken-{number}", f"broken{number}", source)
    site.serve("good-line", "line")
    site.serve("family", "family", "uncle", "aunt")
    registry = site.registry()
    assert registry.load_protocol("aunt").name == "aunt"
    assert registry.load_protocol("line").name == "line"
    listed = registry.installed_plugins()
    assert {p.distribution for p in listed if p.status == "ok"} == {"good-line", "family"}
    assert len(listed) == len(BROKEN) + 2
    assert all(p.remedy for p in listed if p.status == "failed")


def test_a_protocol_that_needs_a_setting_is_no_broken_one(site: Site) -> None:
    """It says itself what is missing, to who starts it."""
    source = """
    from protoserve import ConfigError, ProtocolSpec, hookimpl

    class Parser:
        def __init__(self, params):
            raise ConfigError("give --secret a value")

    @hookimpl
    def protoserve_register_protocols(register):
        register(ProtocolSpec(name="line", message_in=Parser, message_out=bytes, response=bytes))
    """
    site.install("needy", "line", source)
    assert only(site.registry(), "needy").status == "ok"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_plugin", "importing 'no_such_plugin' raised ModuleNotFoundError"),
        ("json:no_such_object", "has no attribute 'no_such_object'"),
        ("no module", "its entry point 'no module' is not module or module:object"),
    ],
)
def test_an_entry_point_that_leads_nowhere(site: Site, value: str, reason: str) -> None:
    site.serve("good-line", "line")
    site.distribution("lost", f"[protoserve]\nlost = {value}\n")
    registry = site.registry()
    lost = only(registry, "lost")
    assert reason in lost.reason
    assert str(site.folder) in lost.remedy
    assert f"lost = {value!r} of [project.entry-points.protoserve]" in lost.remedy
    assert owner(registry, "line") == "good-line"


def test_a_malformed_entry_points_file(site: Site) -> None:
    site.serve("good-line", "line")
    site.distribution("malformed", "[protoserve]\nno equals sign\n")
    site.distribution("elsewhere", "[console_scripts]\nno equals sign\n")
    registry = site.registry()
    assert f"its entry_points.txt in {site.folder} is malformed" in (
        only(registry, "malformed").reason
    )
    assert "pip install --force-reinstall malformed" in only(registry, "malformed").remedy
    assert [p.distribution for p in registry.installed_plugins()] == ["malformed", "good-line"]


def test_where_a_plugin_failed_is_said(site: Site) -> None:
    module = site.install("broken-one", "broken", "x = 1\n\nraise ValueError('why')")
    reason = only(site.registry(), "broken-one").reason
    assert reason.endswith(f"raised ValueError: why ({site.folder / module}.py:3)")


CODE_OF_NO_FILE = {
    "a dataclass": "from protoserve import ServerParams\n\nServerParams(backlog=0)",
    "its own dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass D:\n  x: int\n"
        "  def __post_init__(self): raise ValueError\nD(1)"
    ),
    "exec": "x = 1\n\nexec('1 / 0')",
}


@pytest.mark.parametrize("kind", CODE_OF_NO_FILE)
def test_where_a_plugin_failed_is_a_file(site: Site, kind: str) -> None:
    """Not ``<string>:13``, the ``__init__`` that dataclasses generate."""
    module = site.install("broken-one", "broken", CODE_OF_NO_FILE[kind])
    reason = only(site.registry(), "broken-one").reason
    line = 5 if kind == "its own dataclass" else 3
    assert reason.endswith(f"({site.folder / module}.py:{line})")


def test_an_entry_point_that_names_the_spec_itself(site: Site) -> None:
    spec = SPEC.replace("spec =", "SPEC =").replace("broken", "line")
    module = site.module(spec)
    site.distribution("short", f"[protoserve]\nline = {module}:SPEC\n")
    newer = site.module(spec + "PROTOSERVE_API_VERSION = 2\n")
    site.distribution("newer", f"[protoserve]\nother = {newer}:SPEC\n")
    registry = site.registry()
    assert registry.load_protocol("line") is sys.modules[module].SPEC
    assert only(registry, "short") == InstalledPlugin(
        "line", "short", "1.0", f"{module}:SPEC", ("line",), "ok", ""
    )
    assert "built for version 2 of the plugin API" in only(registry, "newer").reason


def test_a_version_in_a_package_that_cannot_be_imported(site: Site) -> None:
    """It is read in the module that the entry point names, though the package above it fails."""
    name = site.module("").replace("installed", "packaged")
    package = site.folder / name
    package.mkdir()
    (package / "__init__.py").write_text("from protoserve import FromTheFuture")
    (package / "plugin.py").write_text("from . import spec\nPROTOSERVE_API_VERSION = 3\n")
    site.distribution("packaged", f"[protoserve]\nother = {name}.plugin\n")
    reason = only(site.registry(), "packaged").reason
    assert reason.startswith("packaged 1.0 was built for version 3 of the plugin API; ")
    assert f"({package / 'plugin.py'}:2); importing '{name}.plugin' raised ImportError" in reason


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("VERSION = 1\nVERSION = 2", 2),
        ("VERSION: int = 2", 2),
        ("VERSION: int", None),
        ("VERSION = OTHER = '2'", "2"),
        ("VERSION = 1\nVERSION = max(1, 2)", None),
        ("def f():\n  VERSION = 2", None),
        ("VERSION = 2\ndef (:", None),
        ("", None),
    ],
)
def test_what_a_source_declares(site: Site, source: str, value: object) -> None:
    found = declared(site.module(source), "VERSION")
    assert (found and found.value) == value
    assert not site.imported


@pytest.mark.parametrize("module", ["no_such_module", "sys", "json.no.such", ".", ""])
def test_what_has_no_source_declares_nothing(module: str) -> None:
    assert declared(module, "VERSION") is None


def test_an_entry_point_that_names_some_object(site: Site) -> None:
    module = site.module("from pathlib import Path\npath = Path()\nclass Parser: ...")
    site.distribution("one", f"[protoserve]\none = {module}:path.parts\n")
    site.distribution("two", f"[protoserve]\ntwo = {module}:Parser\n")
    for name, what in (
        ("one", f"tuple '{module}:path.parts'"),
        ("two", f"type '{module}:Parser'"),
    ):
        reason = only(site.registry(), name).reason
        assert reason.startswith(f"{what} has no protoserve_register_protocols")
        assert reason.endswith("and is no ProtocolSpec")


def test_an_interrupt_is_no_failure_of_the_plugin(site: Site) -> None:
    module = site.module("raise KeyboardInterrupt")
    site.distribution("slow", f"[protoserve]\nline = {module}\n")
    registry = site.registry()
    path = site.folder / f"{module}.py"
    with pytest.raises(KeyboardInterrupt) as caught:
        registry.load_protocol("line")
    assert caught.value.__notes__ == [
        f"interrupted at plugin 'line' of slow 1.0: importing '{module}' ({path}:1)"
    ]
    path.write_text(GOOD.format(names=("line",)))
    assert registry.load_protocol("line").name == "line"


def test_a_hook_that_takes_its_time_is_named_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when it has been given up: this one goes on as soon as there is that word."""
    source = (
        "import threading\ncome_on = threading.Event()\n"
        + SPEC
        + HOOK
        + "(register):\n  come_on.wait()\n  register(spec)"
    )
    module = site.install("slow-one", "slow", source)
    said: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            sys.modules[module].come_on.set()

    monkeypatch.setattr(plugins.calling.logger, "handlers", [Listening(logging.WARNING)])
    assert only(site.registry(), "slow-one").status == "ok"
    (line,) = said
    assert line == (
        f"protoserve_register_protocols still runs ({site.folder / module}.py:9); "
        "waiting for it, up to 3 seconds"
    )


def test_registering_after_the_hook_is_refused(site: Site) -> None:
    source = SPEC + HOOK + "(register):\n  global later\n  later = register\n  register(spec)"
    module = site.install("late", "late", source)
    registry = site.registry()
    assert only(registry, "late").status == "ok"
    with pytest.raises(PluginError, match="after the hook had returned"):
        sys.modules[module].later(object())


def test_a_plugin_that_asks_for_protocols_while_it_is_imported(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("eager", "eager", "import protoserve\nprotoserve.load_protocol('eager')")
    monkeypatch.setattr(plugins.registry, "_registry", site.registry())
    (eager,) = installed_plugins()
    assert "while it was being loaded" in eager.reason


# -- who gets a name -------------------------------------------------------------------


def test_only_the_plugin_that_is_asked_for_is_imported(site: Site) -> None:
    asked = site.serve("one", "line")
    site.serve("two", "other")
    site.install("broken-one", "broken", "1 / 0")
    site.registry().load_protocol("line")
    assert site.imported == {asked}


def test_a_protocol_under_another_entry_point_name_is_found(site: Site) -> None:
    site.serve("family", "family", "uncle", "aunt")
    registry = site.registry()
    assert registry.load_protocol("aunt").name == "aunt"
    assert only(registry, "family").protocols == ("uncle", "aunt")


def test_two_distributions_with_one_entry_point_name(site: Site) -> None:
    site.serve("zebra", "line")
    site.serve("aardvark", "line")
    for registry in (site.registry(), PluginRegistry(lambda: reversed(list(find(site))))):
        winner, loser = registry.installed_plugins()
        assert (winner.distribution, winner.protocols) == ("aardvark", ("line",))
        assert (loser.distribution, loser.protocols) == ("zebra", ())
        assert loser.reason == "protocol 'line' is taken by plugin 'line' of aardvark 1.0"
        assert loser.remedy.startswith("uninstall one of the two")
        assert re.search(r"\.py:\d+\)$", loser.remedy), "where it registers it"


def find(site: Site) -> Iterator[metadata.Distribution]:
    return iter(metadata.distributions(path=[str(site.folder)]))


def test_the_second_serves_when_the_first_is_broken(site: Site) -> None:
    site.install("aardvark", "line", "1 / 0")
    site.serve("zebra", "line")
    assert site.registry().load_protocol("line").name == "line"
    assert owner(site.registry(), "line") == "zebra"


def test_nobody_takes_a_name_from_protoserve_itself(site: Site) -> None:
    site.serve("protoserve", "http")
    site.serve("aardvark", "http")
    assert owner(site.registry(), "http") == "protoserve"


def test_a_plugin_of_the_name_goes_before_others(site: Site) -> None:
    site.serve("aardvark", "all", "all", "line")
    site.serve("zebra", "line")
    registry = site.registry()
    assert owner(registry, "line") == "zebra"
    # All or nothing: what it could have had is not served either.
    assert only(registry, "aardvark").protocols == ()
    assert only(registry, "aardvark").reason.startswith("protocol 'line' is taken")
    with pytest.raises(PluginError, match=r"protocol 'all'.*is taken by plugin 'line'"):
        registry.load_protocol("all")


def test_the_outcome_does_not_depend_on_who_asks_first(site: Site) -> None:
    site.serve("one", "a", "a", "x")
    site.serve("two", "b", "b", "x")
    site.serve("three", "c")
    site.serve("four", "d", "c", "d")
    outcomes = []
    for order in itertools.permutations("abcdx"):
        registry = site.registry()
        for name in order:
            with_name = ask(registry.load_protocol, name)
            assert with_name == (name in "acx"), (order, name)
        outcomes.append(registry.installed_plugins())
    assert all(outcome == outcomes[0] for outcome in outcomes)


def ask(load: Callable[[str], object], name: str) -> bool:
    try:
        load(name)
    except PluginError:
        return False
    return True


def test_of_one_distribution_twice_the_first_on_the_path_counts(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shadowed = Site(tmp_path_factory.mktemp("shadowed"))
    shadowed.distribution("good-line", "[protoserve]\nline = elsewhere\n", version="0.9")
    site.serve("Good.Line", "line")
    folders = [str(site.folder), str(shadowed.folder)]
    (found,) = PluginRegistry(lambda: metadata.distributions(path=folders)).installed_plugins()
    assert (found.distribution, found.version, found.status) == ("Good.Line", "1.0", "ok")


def test_what_is_installed_is_named(site: Site) -> None:
    with pytest.raises(PluginError) as caught:
        site.registry().load_protocol("htpp")
    assert str(caught.value) == "no protocol 'htpp' is installed, nor any other"
    site.serve("one", "line")
    site.serve("two", "http")
    with pytest.raises(PluginError) as caught:
        site.registry().load_protocol("htpp")
    assert str(caught.value) == "no protocol 'htpp' is installed; installed: http, line"
    site.install("broken-one", "broken", "1 / 0")
    with pytest.raises(PluginError, match="installed: http, line; not usable: broken"):
        site.registry().load_protocol("htpp")


def test_threads_that_ask_at_once_load_once(site: Site) -> None:
    module = site.install(
        "counted", "line", GOOD.format(names=("line",)) + "\n    calls.append(1)\n\ncalls = []\n"
    )
    registry = site.registry()
    start = threading.Barrier(6)
    found = []

    def load() -> None:
        start.wait(10)
        found.append(registry.load_protocol("line"))

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 6
    assert set(map(id, found)) == {id(found[0])}
    assert sys.modules[module].calls == [1]
