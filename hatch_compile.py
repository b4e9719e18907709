"""The compiled build: what every request passes through, made C by mypyc.

``PROTOSERVE_COMPILE=1`` in the environment asks for it: a wheel then holds the sources and their
compiled modules, which Python prefers; an editable install is compiled in place. Without it the
build is pure Python. It is an experiment: the whole test suite has not been green on it yet, see
CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = {
    "protoserve": ["server", "upgrade"],
    "protoserve/kernel": [
        "asyncio_host",
        "communicator",
        "deadline",
        "ending",
        "entry",
        "exchanges",
        "habits",
        "handing",
        "incoming",
        "intake",
        "leader_followers",
        "life",
        "output",
        "poller",
        "reading",
        "service",
        "stream",
        "subtask",
        "variables",
        "waiting",
        "wakeup",
    ],
    "protoserve/tasks": ["network"],
    "plugins/http/protoserve_http": [
        "chunks",
        "fields",
        "heads",
        "parser",
        "serialiser",
        "server",
        "streaming",
    ],
    "plugins/redis/protoserve_redis": ["framing", "messages", "parser", "serialiser"],
}
"""What is compiled. What is not is rarely passed, or is what the compiler does not carry: types
derived from C types, data classes, what users refer to weakly."""

GROUP = "protoserve"
"""All of it is one C library, whose parts call each other directly: ``protoserve__mypyc``."""


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    @property
    def _wanted(self) -> bool:
        asked = os.environ.get("PROTOSERVE_COMPILE", "") not in ("", "0")
        return asked and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        """What compiling needs; the types of what we use are looked at, too."""
        if not self._wanted:
            return []
        return ["mypy[mypyc]>=2.4,<2.5", "setuptools>=77", *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds. Raises what the compilers do."""
        if not self._wanted:
            return
        root = Path(self.root)
        work = Path(tempfile.mkdtemp(prefix="protoserve-compile-"))
        libraries = compile_modules(root, work)
        if version == "editable":
            for name, library in libraries.items():
                shutil.copy(library, root / source_of(name))
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for name, library in libraries.items():
            build_data["force_include"][str(library)] = name


def source_of(name: str) -> str:
    """Where a file of the wheel is in the source tree."""
    package = name.partition("/")[0]
    return next(
        (f"{folder}{name[len(package) :]}" for folder in MODULES if Path(folder).name == package),
        name,
    )


def compile_modules(root: Path, work: Path) -> dict[str, Path]:
    """Compile below ``work``; the libraries by their names in a wheel. Raises what the
    compilers do."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    sources = [f"{folder}/{name}.py" for folder, names in MODULES.items() for name in names]
    before = Path.cwd()
    os.chdir(root)  # paths in tracebacks are relative to it
    try:
        extensions = mypycify(
            ["--ignore-missing-imports", *sources],  # what is optional need not be there
            group_name=GROUP,
            target_dir=str(work),
            opt_level="3",
            debug_level="0",
        )
        generated = work / f"__native_{GROUP}.c"
        clear_weak_references(generated)
        add_docstrings(generated, sources)
        command = build_ext(Distribution({"name": GROUP, "ext_modules": extensions}))
        command.build_lib = str(work / "lib")
        command.build_temp = str(work / "objects")
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
    libraries = sorted((work / "lib").rglob("*.so"))
    return {library.relative_to(work / "lib").as_posix(): library for library in libraries}


_DEALLOC = re.compile(r"\w+_dealloc\(\w+ \*self\)\s*\{\s*PyObject_GC_UnTrack\(self\);")


def clear_weak_references(generated: Path) -> None:
    """mypyc 2.4 lets weak references to what has gone live on, and the interpreter crashes."""
    text = generated.read_text(encoding="utf-8")
    clear = "if (Py_TYPE(self)->tp_weaklistoffset) PyObject_ClearWeakRefs((PyObject *)self);"
    text, found = _DEALLOC.subn(rf"\g<0>\n    {clear}", text)
    if not found:
        raise RuntimeError("this mypyc frees objects in another way: look at what it generates")
    generated.write_text(text, encoding="utf-8")


_METHOD = re.compile(r'(\(PyCFunction\)CPyPy_(\w+),[^;{}]*?PyDoc_STR\("(?:[^"\\]|\\.)*)("\))')
_CLASS = re.compile(
    r'(tp_name = "([\w.]+)".*?tp_doc = PyDoc_STR\("(?:[^"\\]|\\.)*)("\))', re.DOTALL
)
_PROPERTY = re.compile(r"(\(getter\)(\w+),\s*(?:\(setter\)\w+|NULL),\s*)NULL(, NULL\})")


def add_docstrings(generated: Path, sources: list[str]) -> None:
    """Put the docstrings where mypyc has only signatures, for ``help()``."""
    docs: dict[str, str] = {}
    for source in sources:
        module = Path(source).with_suffix("").as_posix().removeprefix("plugins/http/")
        parts = module.removeprefix("plugins/redis/").split("/")
        tree = ast.parse(Path(source).read_text(encoding="utf-8"))
        for path, text in docstrings(tree):
            # mypyc leaves out the packages where the rest of a name is clear without.
            for start in range(len(parts)):
                docs["___".join([*parts[start:], *path])] = text
            if len(path) == 1:
                docs[path[0]] = text  # a class goes by its own name

    def with_doc(match: re.Match[str]) -> str:
        return match[1] + c_text(docs.get(match[2], "")) + match[3]

    def with_property_doc(match: re.Match[str]) -> str:
        owner, _, name = match[2].partition("_get_")
        text = docs.get(f"{owner}___{name}", "")
        return f'{match[1]}PyDoc_STR("{c_text(text)}"){match[3]}' if text else match[0]

    text = generated.read_text(encoding="utf-8")
    text = _METHOD.sub(with_doc, text)
    text = _CLASS.sub(with_doc, text)
    generated.write_text(_PROPERTY.sub(with_property_doc, text), encoding="utf-8")


def docstrings(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[list[str], str]]:
    """The functions and classes in it that have one, each with the path to it."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            text = ast.get_docstring(node)
            if text:
                yield [node.name], text
        if isinstance(node, ast.ClassDef):
            for path, text in docstrings(node):
                yield [node.name, *path], text


def c_text(text: str) -> str:
    """The inside of a C string literal."""
    escapes = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("?"): "\\?"}
    plain = text.translate(escapes)
    return "".join(c if c.isascii() else "".join(f"\\{b:03o}" for b in c.encode()) for c in plain)
