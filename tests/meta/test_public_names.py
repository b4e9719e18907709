"""The public surface: what __all__ says is there, documented, and nothing slips in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import protoserve

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ["protoserve", "protoserve_http", "protoserve_redis"]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_whole(name: str) -> None:
    module = importlib.import_module(name)
    names = module.__all__
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert len(set(names)) == len(names)
    for item in names:
        assert getattr(module, item) is not None
    stray = {
        item
        for item, value in vars(module).items()
        if not item.startswith("_") and not inspect.ismodule(value)
    } - {*names}
    assert not stray


@pytest.mark.parametrize("name", PACKAGES)
def test_everything_public_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    bare = []
    for item in module.__all__:
        value = getattr(module, item)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not inspect.getdoc(value):
            bare.append(item)
        if inspect.isclass(value) and value.__module__.partition(".")[0] in PACKAGES:
            for attribute, member in vars(value).items():
                function = member.fget if isinstance(member, property) else member
                if isinstance(function, staticmethod | classmethod):
                    function = function.__func__
                if (
                    not attribute.startswith("_")
                    and inspect.isfunction(function)
                    and not inspect.getdoc(getattr(value, attribute))
                ):
                    bare.append(f"{item}.{attribute}")
    assert not bare


def test_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    text = (ROOT / "pyproject.toml").read_text()
    stated = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert stated is not None
    assert stated[1] == version("protoserve")


@pytest.mark.parametrize("name", PACKAGES)
def test_no_module_stands_where_a_function_is_looked_for(name: str) -> None:
    """``from protoserve.tasks import timer`` gives what ``from protoserve import timer`` does,
    and not the module, which would fail when it is called."""
    package = importlib.import_module(name)
    found = 0
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        parent, _, last = module.name.rpartition(".")
        if last in package.__all__:
            found += 1
            # The module first: importing it binds the name, too.
            importlib.import_module(module.name)
            assert getattr(importlib.import_module(parent), last) is getattr(package, last)
    assert found >= 5 or name != "protoserve"


def test_states_have_workflow_s_values() -> None:
    """``WFTask.h``; 2 is ABORTED there."""
    states = {state.name: state.value for state in protoserve.TaskState}
    assert states == {
        "UNDEFINED": -1,
        "SUCCESS": 0,
        "SYS_ERROR": 1,
        "TOREPLY": 3,
        "NOREPLY": 4,
        "SSL_ERROR": 65,
    }
