"""A protocol in a distribution of its own, installed beside the wheel, is served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from environments import ROOT, Environment, build, run, serving, talk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

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


@pytest.fixture
def served(environment: Environment) -> Iterator[tuple[str, int]]:
    with serving(environment, "line", "shout:process", cwd=LINE_PLUGIN) as address:
        yield address


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
        "remedy": "",
        "hooks": [],
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
    assert "RuntimeError: this one is broken (" in str(broken["reason"])
    assert str(broken["reason"]).endswith("broken_protocol.py:1)")
    assert "pip uninstall protoserve-broken" in str(broken["remedy"])
    # The columns are wider now; the words are the same.
    words = [line.split() for line in environment.protoserve("plugins").splitlines()]
    assert [line for line in words if line[0] != "broken"] == [line.split() for line in table]
    served = request.getfixturevalue("served")
    assert talk(served, b"still here\n") == b"STILL HERE\n"
