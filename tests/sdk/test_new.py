"""``protoserve new``: what it writes is installed, green, listed and served, as it was made."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from environments import ROOT, Environment, build, run, serving

from protoserve import InstalledPlugin, scaffold
from protoserve.cli import main
from protoserve.scaffold import FRAMINGS

NAMES = {"lines": "shout", "length": "my-shout", "delimiter": "shout_2"}
EXPECTED = {
    ".github/workflows/ci.yml",
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "shout_protocol/__init__.py",
    "shout_protocol/demo.py",
    "shout_protocol/plugin.py",
    "shout_protocol/protocol.py",
    "shout_protocol/py.typed",
    "tests/test_contract.py",
}


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line in which the command says why not."""
    assert main(["new", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("protoserve: ").rstrip("\n")


def test_there_is_a_name_for_each_framing() -> None:
    assert NAMES.keys() == FRAMINGS.keys()


def test_it_says_what_it_made(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(None))
    assert main(["new", "shout"]) == 0
    assert capsys.readouterr().out == (
        "made shout; the protocol is in shout/shout_protocol/protocol.py. "
        "Next, in an environment of its own:\n"
        "  cd shout\n"
        "  pip install -e '.[dev]'\n"
        "  pytest\n"
        "  protoserve run shout\n"
    )
    assert files(here / "shout") == EXPECTED


class Installed:
    """A distribution with this ``direct_url.json``."""

    version = metadata.version("protoserve")

    def __init__(self, text: str | None) -> None:
        self.text = text

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.text


@pytest.mark.parametrize(
    ("known", "source"),
    [
        ({"url": "file://HERE/my%20clone", "dir_info": {"editable": True}}, "'HERE/my clone'"),
        ({"url": "file://HERE/p.whl", "archive_info": {}}, "HERE/p.whl"),
        ({"url": "https://host/p.whl", "archive_info": {}}, "https://host/p.whl"),
        (
            {"url": "https://host/p", "vcs_info": {"vcs": "git", "commit_id": "4f"}},
            "git+https://host/p@4f",
        ),
        ({"url": "file://HERE/gone", "dir_info": {}}, None),
        ({"url": 1}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_it_says_where_protoserve_is_to_be_had(
    known: object,
    source: str | None,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it did not come from an index, pip would not find it there."""
    (here / "my clone").mkdir()
    (here / "p.whl").touch()
    text = json.dumps(known).replace("HERE", str(here))
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(text))
    assert main(["new", "shout"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [f"  pip install {source}".replace("HERE", str(here))] if source else []
    assert lines[1:] == [
        "  cd shout", *expected, "  pip install -e '.[dev]'", "  pytest", "  protoserve run shout",
    ]  # fmt: skip


@pytest.mark.parametrize("into", ["deeper/and deeper", "."])
def test_into(into: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is made with those above it, or is there and empty."""
    assert main(["new", "--into", into, "shout"]) == 0
    assert f"  cd {shlex.quote(into)}\n" in capsys.readouterr().out
    assert files(here / into) == EXPECTED


@pytest.mark.parametrize("framing", FRAMINGS)
def test_no_name_is_too_long_for_the_format(framing: str, here: Path) -> None:
    """The shortest, and the longest that is taken."""
    for name in ("x", "a" + "-b" * 19 + "c"):
        assert main(["new", name, "--framing", framing]) == 0
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", *here.iterdir()],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_like_that_of_tests(here: Path) -> None:
    """The package and the modules of the tests do not get into each other's way."""
    assert main(["new", "test"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=here / "test",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    modules = [path.stem for path in (here / "test" / "tests").glob("*.py")]
    assert modules
    assert "test_protocol" not in modules  # mypy: a duplicate module


FORM = "expected lower-case letters, digits, - and _, with a letter first and no - or _ last"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Shout", f"name 'Shout': {FORM}, for example shout; did you mean shout?"),
        ("my shout", "; did you mean my-shout?"),
        ("my.shout", "; did you mean my-shout?"),
        ("shout-", "; did you mean shout?"),
        ("_shout", "; did you mean shout?"),
        ("../shout", "; did you mean shout?"),
        ("shöut", "; did you mean sh-ut?"),
        ("2shout", f"name '2shout': {FORM}, for example shout"),
        ("", f"name '': {FORM}, for example shout"),
        ("shout\n", "; did you mean shout?"),
        ("s" * 41, f"name '{'s' * 41}': expected at most 40 characters"),
        (
            "http",
            f"name 'http': protoserve {metadata.version('protoserve')} has a protocol of that "
            "name, which is installed; give another name",
        ),
    ],
)
def test_names_that_cannot_be(
    name: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, name)
    assert line.startswith("name ")
    assert line.endswith(message)
    assert not [*here.iterdir()]


@pytest.mark.parametrize(("name", "protocols"), [("shout", ()), ("other", ("a", "shout"))])
def test_a_name_that_a_plugin_has(
    name: str,
    protocols: tuple[str, ...],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that cannot be used: it would have that protocol, once it can."""
    status = "ok" if protocols else "failed"
    plugin = InstalledPlugin(name, "loud", "1.2", "loud", protocols, status, "")  # type: ignore[arg-type]
    monkeypatch.setattr(scaffold, "installed_plugins", lambda: [plugin])
    assert refused(capsys, "shout").startswith("name 'shout': loud 1.2 has a protocol of that")
    assert not [*here.iterdir()]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_that_is_taken(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = here / "shout" if kind == "file" else here / "shout" / "mine"
    taken.parent.mkdir(exist_ok=True)
    taken.write_text("mine")
    message = "'shout' is there already; give another folder, with --into"
    assert refused(capsys, "shout") == message
    assert refused(capsys, "loud", "--into", "shout") == message
    assert files(here) == {str(taken.relative_to(here))}
    assert taken.read_text() == "mine"


def test_what_cannot_be_written_is_not_half_there(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("mine")
    line = refused(capsys, "shout", "--into", "file/shout", code=1)
    assert line == "cannot write 'file/shout': Not a directory"

    made: list[Path] = []
    opened = Path.open

    def open_some(path: Path, *args: object, **options: object) -> object:
        if path.is_relative_to("a"):
            if len(made) == 5:
                raise OSError(28, "No space left on device", str(path))
            made.append(path)
        return opened(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_some)
    line = refused(capsys, "shout", "--into", "a/b", code=1)
    assert line == "cannot write 'a/b/shout_protocol/demo.py': No space left on device"
    assert len(made) == 5
    assert [path.name for path in here.iterdir()] == ["file"]


# -- as it was made --------------------------------------------------------------------

as_made = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With what the distribution needs to be built and checked."""
    tools = ("hatchling", "hypothesis", "mypy", "pytest", "ruff")
    environment = Environment(tmp_path_factory.mktemp("environment"), *tools)
    environment.install(build(ROOT, tmp_path_factory.mktemp("protoserve")))
    return environment


@pytest.fixture(scope="module", params=FRAMINGS)
def project(
    request: pytest.FixtureRequest,
    environment: Environment,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A distribution, made by the installed command, for which the commands of its CI have
    run. The folder has the protocol's name."""
    name = NAMES[request.param]
    project = tmp_path_factory.mktemp("made") / name
    environment.protoserve("new", name, "--framing", request.param, "--into", str(project))
    workflow = (project / ".github" / "workflows" / "ci.yml").read_text()
    commands = re.findall(r"^      - run: (.+)$", workflow, re.MULTILINE)
    install = "python -m pip install"
    assert commands == [
        f"{install} '.[dev]'", "ruff check .", "ruff format --check .", "mypy", "pytest",
    ]  # fmt: skip
    for command in commands:
        # There is no index here, and what builds it is in the environment.
        command = command.replace(install, f"{install} --no-index --no-build-isolation")
        cache = tmp_path_factory.getbasetemp() / "mypy-of-made"
        path = f"{environment.bin}:/usr/bin:/bin"
        said = run("sh", "-c", command, cwd=project, PATH=path, MYPY_CACHE_DIR=str(cache))
        if command == "mypy":
            assert said == "Success: no issues found in 5 source files\n"
        if command == "pytest":
            assert re.search(r"^=+ \d+ passed in ", said, re.MULTILINE), said
    return project


class TestAsMade:
    pytestmark = as_made

    def test_it_is_listed(self, environment: Environment, project: Path) -> None:
        name = project.name
        (plugin,) = (p for p in environment.plugins() if p["name"] == name)
        package = f"{name.replace('-', '_')}_protocol"
        assert plugin == {
            "name": name,
            "distribution": f"protoserve-{name}",
            "version": "0.1.0",
            "entry_point": f"{package}.plugin",
            "protocols": [name],
            "status": "ok",
            "reason": "",
            "remedy": "",
            "hooks": [],
        }

    def test_it_keeps_the_contract(self, environment: Environment, project: Path) -> None:
        """By its own samples, of which none have to be given."""
        report = environment.protoserve("check", project.name, "--examples", "20")
        assert "(3 messages)" in report.partition("\n")[0]
        assert f"\n{project.name}: " in report
        assert ", 0 do not, " in report.splitlines()[-1]

    def test_it_is_served_as_its_readme_says(
        self, environment: Environment, project: Path, tmp_path: Path
    ) -> None:
        name = project.name
        demo = f"{name.replace('-', '_')}_protocol.demo:process"
        said = f"protoserve: without an application it serves the demo, {demo}\n"
        readme = (project / "README.md").read_text()
        found = re.search(r"^\$ (python3 -c .+)\n(.+)$", readme, re.MULTILINE)
        assert found
        with serving(environment, name, cwd=tmp_path, said=said) as (_, port):
            client = shlex.split(found[1].replace("8888", str(port)))
            assert run(sys.executable, *client[1:], cwd=tmp_path) == f"{found[2]}\n"
