"""The public surface: what __all__ says is there, documented, and nothing slips in."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

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
