"""What a module says of itself in its source, for where it cannot be imported."""

from __future__ import annotations

import ast
import sys
import tokenize
from importlib.machinery import ModuleSpec
from typing import NamedTuple

__all__ = ["Declared", "declared"]


class Declared(NamedTuple):
    """A literal that a module assigns to a name, and where."""

    value: object
    path: str
    line: int


def declared(module: str, name: str) -> Declared | None:
    """The last literal that ``module`` assigns to ``name`` at its top level; ``None`` where
    there is none, or no source that can be read. Nothing of it is run, nor of the packages that
    it is in."""
    try:
        path = _source(module)
        if path is None:
            return None
        with tokenize.open(path) as file:
            tree = ast.parse(file.read(), path)
    except Exception:  # what finders of others raise, too
        return None
    found = None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        assert isinstance(node, (ast.Assign, ast.AnnAssign))
        if node.value is None:
            continue
        try:
            found = Declared(ast.literal_eval(node.value), path, node.lineno)
        except ValueError:  # to be computed
            found = None
    return found


def _source(module: str) -> str | None:
    """The file of a module, without an import of the packages above it."""
    where = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        finders = (finder.find_spec(name, where) for finder in sys.meta_path)
        spec = next(filter(None, finders), None)
        if spec is None:
            return None
        where = spec.submodule_search_locations
    return spec.origin if spec is not None and spec.has_location else None
