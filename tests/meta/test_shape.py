"""No circles among modules, no class of a hundred things, no endless file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
KERNEL = ROOT / "protoserve" / "kernel"
FOLDERS = {
    "protoserve.kernel": KERNEL,
    "protoserve_redis": ROOT / "plugins" / "redis" / "protoserve_redis",
}
MOST_LINES = 500
MOST_ATTRIBUTES = 30
MOST_METHODS = 25


def _at_run_time(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that are made when the module is."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _at_run_time(other)
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        yield from _at_run_time(child)


def _imported(path: Path, package: str, modules: set[str]) -> set[str]:
    found: set[str] = set()
    for node in _at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [str(node.module), *(f"{node.module}.{a.name}" for a in node.names)]
        found.update(name.removeprefix(f"{package}.") for name in names if name != package)
    return found & modules


def _circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, in order; empty where there are none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(imports[module]):
            if circle := walk(other, [*path, module]):
                return circle
        done.add(module)
        return []

    return next(filter(None, (walk(module, []) for module in sorted(imports))), [])


@pytest.mark.parametrize("package", FOLDERS)
def test_modules_import_each_other_in_one_direction(package: str) -> None:
    paths = {p.stem: p for p in FOLDERS[package].glob("*.py") if p.stem != "__init__"}
    imports = {name: _imported(path, package, set(paths)) for name, path in paths.items()}
    assert any(imports.values())
    assert not _circle(imports)


def test_a_circle_is_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def _attributes(body: ast.ClassDef) -> set[str]:
    """What a class says that its objects have, and what its methods give them."""
    found: set[str] = set()
    for node in ast.walk(body):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            found.add(node.attr)
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found.add(statement.target.id)
    return found


def _methods(body: ast.ClassDef) -> list[str]:
    return [s.name for s in body.body if isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("path", sorted(KERNEL.glob("*.py")), ids=lambda p: p.name)
def test_nothing_grows_without_end(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert len(_attributes(node)) <= MOST_ATTRIBUTES, node.name
            assert len(_methods(node)) <= MOST_METHODS, node.name
