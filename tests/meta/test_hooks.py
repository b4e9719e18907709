"""Every hook is documented with its signature, has a contract, and is tested."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pluggy
import pytest

from protoserve import hookspecs

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "hooks.md"
TESTS = ROOT / "tests" / "sdk" / "test_plugin_hooks.py"


def hooks() -> dict[str, Callable[..., object]]:
    """The functions that the module defines: each is a hook."""
    return {
        name: item
        for name, item in vars(hookspecs).items()
        if inspect.isfunction(item) and item.__module__ == hookspecs.__name__
    }


HOOKS = hooks()


def headings() -> list[str]:
    return re.findall(r"^### `(\w+\(.*\))`$", DOCUMENT.read_text(), re.MULTILINE)


def test_there_are_hooks_and_pluggy_knows_them() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    known = {name for name in vars(manager.hook) if not name.startswith("_")}
    assert known == set(HOOKS)
    assert "protoserve_register_protocols" in known
    assert all(name.startswith("protoserve_") for name in known)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_contract(name: str) -> None:
    text = inspect.getdoc(HOOKS[name]) or ""
    for word in ("Called", "once"):
        assert word in text, f"the docstring of {name} says when it is called"
    annotations = HOOKS[name].__annotations__
    assert set(annotations) == {*inspect.signature(HOOKS[name]).parameters, "return"}
    assert annotations["return"] == "None"


def test_each_is_documented_with_its_signature() -> None:
    assert headings() == [
        f"{name}({', '.join(inspect.signature(hook).parameters)})" for name, hook in HOOKS.items()
    ]


@pytest.mark.parametrize("name", HOOKS)
def test_its_example_is_marked_and_has_arguments_of_the_hook(name: str) -> None:
    found = re.findall(rf"^@hookimpl\ndef {name}\((.*)\):", DOCUMENT.read_text(), re.MULTILINE)
    assert found, f"{DOCUMENT.name} has no example of {name}"
    allowed = set(inspect.signature(HOOKS[name]).parameters)
    for arguments in found:
        assert set(filter(None, arguments.split(", "))) <= allowed


@pytest.mark.parametrize("name", HOOKS)
def test_it_is_tested(name: str) -> None:
    """By a test of its name, which implements it and makes a claim."""
    tree = ast.parse(TESTS.read_text())
    (test,) = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == f"test_{name}"
    )
    assert any(isinstance(node, ast.Assert) for node in ast.walk(test))
    assert f"def {name}(" in ast.unparse(test)
