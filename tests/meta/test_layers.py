"""Who may import whom: dependencies point one way, and the kernel knows no protocol."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "protoserve"

# A module or package of protoserve, and the others that it may import. The names with a
# slash are packages: all their modules share the row.
CORE = {"errors", "params", "protocol", "events", "log"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "log": set(),
    "params": {"errors"},
    "protocol": {"errors", "params"},
    "framing": {"errors", "params", "protocol"},
    "events": {"log"},
    "access_log": {"events"},
    "kernel/": CORE | {"kernel/"},
    "tasks/": CORE | {"kernel/", "tasks/"},
    "application": CORE | {"kernel/"},
    "run": set(),
    "build": {"kernel/"},
    "stopping": {"log", "kernel/"},
    "signals": set(),
    "upgrade": CORE | {"kernel/"},
    "server": CORE | {"kernel/", "tasks/", "application", "run", "signals", "stopping", "upgrade"},
    "testing/": CORE | {"kernel/", "testing/", "server"},
    "hookspecs": {"protocol"},
    "options": {"errors", "params"},
    "declared": set(),
    "plugins": {"declared", "errors", "hookspecs", "options", "protocol"},
    "scaffold/": {"errors", "hookspecs", "plugins"},
    "checking": CORE | {"testing/"},
    "cli": CORE
    | {
        "access_log",
        "application",
        "build",
        "checking",
        "options",
        "plugins",
        "scaffold/",
        "server",
        "signals",
        "__init__",
    },
    "__main__": {"cli"},
    "__init__": CORE | {"build", "kernel/", "tasks/", "server", "hookspecs", "plugins"},
}

SANS_IO = {"params", "errors", "protocol", "framing"}
INPUT_OUTPUT = {"socket", "ssl", "select", "selectors", "threading", "asyncio", "time", "logging"}

# Packages beyond the standard library, by who may import them.
THIRD_PARTY: dict[str, set[str]] = {
    # uvloop is optional; what the compiler is told comes from mypy_extensions.
    "kernel/": {"uvloop", "mypy_extensions"},
    "tasks/": {"mypy_extensions"},
    "server": {"mypy_extensions"},
    "framing": {"typing_extensions"},  # type checkers only
    "testing/": {"hypothesis"},  # protoserve[testing], when check_protocol is called
    "protocol": {"typing_extensions"},  # likewise
    "hookspecs": {"pluggy"},
    "plugins": {"pluggy"},
    "protoserve_http": {"httptools", "multidict", "mypy_extensions"},
    "protoserve_redis": {"hiredis", "mypy_extensions"},
}


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a file imports, and whether only for types."""
    tree = ast.parse(path.read_text(), str(path))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            assert node.module is not None
            for alias in node.names:
                # `from protoserve import plugins` imports a module too.
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / whole.replace(".", "/")).with_suffix(".py").exists()
                yield (whole if is_module else node.module), id(node) in typing_only


def _row(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.stem if len(relative.parts) == 1 else f"{relative.parts[0]}/"


def _row_of_module(name: str) -> str:
    parts = name.split(".")[1:]
    if not parts:
        return "__init__"
    return f"{parts[0]}/" if (PACKAGE / parts[0]).is_dir() else parts[0]


def _modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("path", _modules(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    row = _row(path)
    assert row in MAY_IMPORT, f"add {row} to the table"
    for name, typing_only in _imports(path):
        top = name.partition(".")[0]
        if top == "protoserve":
            if not typing_only:
                target = _row_of_module(name)
                assert target in MAY_IMPORT[row], f"{path}: may not import {name}"
        else:
            allowed = top in sys.stdlib_module_names or top in THIRD_PARTY.get(row, set())
            assert allowed, f"{path}: may not import {name}"


@pytest.mark.parametrize("name", sorted(SANS_IO))
def test_sans_io(name: str) -> None:
    found = {module.partition(".")[0] for module, _ in _imports(PACKAGE / f"{name}.py")}
    assert not found & INPUT_OUTPUT


@pytest.mark.parametrize("path", _modules(PACKAGE / "kernel"), ids=lambda p: p.name)
def test_kernel_names_no_protocol(path: Path) -> None:
    words = path.read_text().lower()
    for protocol in ("http", "redis", "resp2", "resp3", "pluggy"):
        assert protocol not in words, f"{path} speaks of {protocol}"


def _plugin_modules() -> list[Path]:
    return [p for p in _modules(ROOT / "plugins") if p.suffix == ".py"]


@pytest.mark.parametrize("path", _plugin_modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_import_public_names_only(path: Path) -> None:
    own = path.relative_to(ROOT / "plugins").parts[1]
    for name, _ in _imports(path):
        top = name.partition(".")[0]
        if top == "protoserve":
            # The package itself: its __all__ is the public surface.
            assert name == "protoserve", f"{path}: {name} is not public"
        else:
            assert (
                top == own or top in sys.stdlib_module_names or top in THIRD_PARTY.get(own, set())
            ), f"{path}: may not import {name}"


def test_there_are_plugins() -> None:
    assert {p.relative_to(ROOT / "plugins").parts[0] for p in _plugin_modules()} >= {"http"}


@pytest.mark.parametrize("folder", ["plugins", "plugins/http", "plugins/redis"])
def test_plugin_folders_shadow_nothing(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
