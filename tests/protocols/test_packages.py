"""Each of examples/protocols is a complete distribution, whose own tests pass where it stands."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from protocol_packages import FOLDER, PACKAGES

from protoserve import ProtocolSpec

each = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)


def test_every_folder_is_a_package() -> None:
    assert PACKAGES
    assert {path for path in FOLDER.iterdir() if path.is_dir()} == set(PACKAGES)


@each
def test_what_its_pyproject_names_is_there(package: Path) -> None:
    about = tomllib.loads((package / "pyproject.toml").read_text())
    project = about["project"]
    assert project["name"] == f"protoserve-{package.name}"
    assert (package / project["readme"]).read_text().startswith("# ")
    (name,) = project["entry-points"]["protoserve"]
    module, _, attribute = project["entry-points"]["protoserve"][name].partition(":")
    spec = getattr(importlib.import_module(module), attribute)
    assert isinstance(spec, ProtocolSpec)
    assert spec.name == name == package.name
    assert Path(str(sys.modules[module].__file__)).is_relative_to(package)
    wheel = about["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert [(package / path / "__init__.py").is_file() for path in wheel["packages"]] == [True]
    assert spec.demo is not None
    where, _, application = spec.demo.partition(":")
    assert callable(getattr(importlib.import_module(where), application))


@pytest.mark.slow
@each
def test_its_own_tests_pass(package: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=package,
        env={**environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
