"""A protocol in a distribution of its own, installed beside the wheel, is served.

The environment is as clean as a user's, but for one thing: the dependencies are links to
those that the tests run with, and the wheels are built with the hatchling that is
installed here. So pip resolves and installs as usual, and needs no package index.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parent.parent.parent
LINE_PLUGIN = ROOT / "examples" / "line_plugin"

BROKEN = {
    "pyproject.toml": """\
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "protoserve-broken"
        version = "0.3"
        dependencies = ["protoserve"]
        [project.entry-points.protoserve]
        broken = "broken_protocol"
        [tool.hatch.build.targets.wheel]
        only-include = ["broken_protocol.py"]
        """,
    "broken_protocol.py": "raise RuntimeError('this one is broken')\n",
}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    # What this process was given to find modules is not the environment's.
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(project: Path, into: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", into, cwd=project)
    (wheel,) = into.iterdir()
    return wheel


def dependencies(distribution: str) -> set[str]:
    """The distributions that it needs to run, with theirs."""
    found: set[str] = set()
    for line in metadata.requires(distribution) or ():
        requirement = Requirement(line)
        # Without an extra: a requirement of one is not needed.
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= {requirement.name} | dependencies(requirement.name)
    return found


def link(distribution: str, into: Path) -> None:
    found = metadata.distribution(distribution)
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        (into / top).symlink_to(Path(str(found.locate_file(top))))


class Environment:
    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"
        (site,) = (folder / "lib").glob("python*/site-packages")
        for dependency in dependencies("protoserve"):
            link(dependency, site)

    def install(self, wheel: Path) -> None:
        run(self.bin / "pip", "install", "--no-index", "--disable-pip-version-check", wheel)

    def plugins(self) -> list[dict[str, object]]:
        listed: list[dict[str, object]] = json.loads(self.protoserve("plugins", "--json"))
        return listed

    def protoserve(self, *arguments: str) -> str:
        return run(self.bin / "protoserve", *arguments, cwd=self.bin)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.install(build(ROOT, tmp_path_factory.mktemp("protoserve")))
    before = environment.plugins()
    assert [plugin["distribution"] for plugin in before] == ["protoserve"] * len(before)
    environment.install(build(LINE_PLUGIN, tmp_path_factory.mktemp("line")))
    return environment


@pytest.fixture(scope="module")
def with_broken(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    project = tmp_path_factory.mktemp("broken")
    for name, text in BROKEN.items():
        (project / name).write_text(text)
    environment.install(build(project, tmp_path_factory.mktemp("broken-wheel")))
    return environment


@contextmanager
def serving(
    environment: Environment, *arguments: str, cwd: Path, said: str = ""
) -> Iterator[tuple[str, int]]:
    """Where ``protoserve run`` with these arguments serves; ``said`` is on stderr at the end."""
    program = subprocess.Popen(
        [environment.bin / "protoserve", "run", *arguments, "--bind", "127.0.0.1:0"],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with program:
        try:
            assert program.stdout is not None
            line = program.stdout.readline()
            scheme = arguments[0]
            found = re.fullmatch(rf"listening on {scheme}://127\.0\.0\.1:(\d+)\n", line)
            assert found, program.communicate(timeout=20)
            yield "127.0.0.1", int(found[1])
            program.terminate()
            assert program.communicate(timeout=30) == ("", said)
            assert program.returncode == 0
        finally:
            program.kill()


@pytest.fixture
def served(environment: Environment) -> Iterator[tuple[str, int]]:
    with serving(environment, "line", "shout:process", cwd=LINE_PLUGIN) as address:
        yield address


def talk(address: tuple[str, int], *pieces: bytes) -> bytes:
    """What the server says to ``pieces``, sent one by one, until it closes."""
    with socket.create_connection(address, timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


DEMO = "protoserve_http.demo:process"
NO_APPLICATION = f"protoserve: without an application it serves the demo, {DEMO}\n"


@pytest.mark.parametrize("arguments", [("http",), ("http", DEMO)], ids=["alone", "by name"])
def test_the_readme_s_first_command_works_anywhere(
    environment: Environment, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    said = NO_APPLICATION if len(arguments) == 1 else ""
    with serving(environment, *arguments, cwd=tmp_path, said=said) as address:
        page = talk(address, b"GET /hello HTTP/1.0\r\n\r\n")
    assert page.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"<p>GET /hello HTTP/1.0</p>" in page


def test_an_index_shows_links_that_work(environment: Environment) -> None:
    source = (
        "import importlib.metadata as m, json; print(json.dumps(m.metadata('protoserve').json))"
    )
    shown = json.loads(run(environment.bin / "python", "-c", source))
    urls = dict(url.split(", ", 1) for url in shown["project_url"])
    assert {"Source", "Documentation", "Changelog"} <= set(urls)
    links = re.findall(r"\]\(([^)]+)\)", shown["description"])
    base = f"{urls['Source']}/blob/main/"
    assert all(link.startswith(("https://", "#")) for link in links)
    own = [link for link in [*links, *urls.values()] if link.startswith(base)]
    assert len(own) > 10
    for link in own:
        assert (ROOT / link.removeprefix(base).partition("#")[0]).exists(), link
    # Nothing but the links differs from the README of the repository.
    readme = (ROOT / "README.md").read_text()
    assert shown["description"].replace(base, "").strip() == readme.strip()


def test_it_is_listed(environment: Environment) -> None:
    (line,) = (p for p in environment.plugins() if p["name"] == "line")
    assert line == {
        "name": "line",
        "distribution": "protoserve-line",
        "version": "1.0.0",
        "entry_point": "line_protocol.plugin",
        "protocols": ["line"],
        "status": "ok",
        "reason": "",
    }


def test_it_is_served(served: tuple[str, int]) -> None:
    assert talk(served, b"hello\n") == b"HELLO\n"
    assert talk(served, b"one\r\ntwo\nthr", b"ee\n") == b"ONE\nTWO\nTHREE\n"
    assert talk(served, *(bytes([byte]) for byte in "grün\nund\n".encode())) == (
        "GRÜN\nUND\n".encode()
    )
    assert talk(served, b"good\n\xff\nlost\n") == b"GOOD\nerror: not UTF-8\n"
    line = b"x" * (64 * 1024 - 1)
    assert talk(served, line + b"\n") == line.upper() + b"\n"
    assert talk(served, b"good\n", line + b"xx") == b"GOOD\nerror: line too long\n"


def test_a_broken_one_changes_nothing_but_its_own_line(
    environment: Environment, request: pytest.FixtureRequest
) -> None:
    before = environment.plugins()
    table = environment.protoserve("plugins").splitlines()
    request.getfixturevalue("with_broken")
    (broken,) = (p for p in environment.plugins() if p["name"] == "broken")
    assert [p for p in environment.plugins() if p != broken] == before
    assert (broken["distribution"], broken["version"]) == ("protoserve-broken", "0.3")
    assert (broken["status"], broken["protocols"]) == ("failed", [])
    assert "RuntimeError: this one is broken" in str(broken["reason"])
    # The columns are wider now; the words are the same.
    words = [line.split() for line in environment.protoserve("plugins").splitlines()]
    assert [line for line in words if line[0] != "broken"] == [line.split() for line in table]
    served = request.getfixturevalue("served")
    assert talk(served, b"still here\n") == b"STILL HERE\n"
