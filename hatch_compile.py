"""The compiled build: what every request passes through, made C by mypyc.

A wheel, and so ``pip install .``, is compiled where there is a C compiler, and pure Python where
there is none, or where it fails, which one line says. A compiled wheel holds the sources and
their compiled modules, which Python prefers. In the environment ``PROTOSERVE_PURE=1`` asks for
pure Python, ``PROTOSERVE_COMPILE=1`` for an error instead of a wheel that is not compiled; with
the latter an editable install, else pure, is compiled in place.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = {
    "protoserve": ["server", "upgrade"],
    "protoserve/kernel": [
        "communicator",
        "corked",
        "deadline",
        "descriptor",
        "ending",
        "entry",
        "exchanges",
        "habits",
        "handing",
        "incoming",
        "intake",
        "leader_followers",
        "life",
        "native",
        "output",
        "poller",
        "reading",
        "service",
        "session",
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
        "judge",
        "lines",
        "messages",
        "parser",
        "serialiser",
        "server",
        "streaming",
    ],
    "plugins/redis/protoserve_redis": [
        "dispatch",
        "framing",
        "messages",
        "parser",
        "serialiser",
        "server",
        "session",
    ],
}
"""What is compiled. What is not is rarely passed, or is what the compiler does not carry: types
derived from C types, data classes, what users refer to weakly, and coroutines that await where
an exception is handled: mypyc 2.4 does not keep what is handled apart from other coroutines'."""

GROUP = "protoserve"
"""All of it is one C library, whose parts call each other directly: ``protoserve__mypyc``."""

HIDDEN = [] if sys.platform == "win32" else ["-fvisibility=hidden"]
"""... not by way of the dynamic linker, as if others could put their own in between."""


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    @property
    def _wanted(self) -> bool:
        return self.target_name == "wheel" and not is_set("PROTOSERVE_PURE")

    def dependencies(self) -> list[str]:
        """What compiling needs; the types of what we use are looked at, too."""
        if not self._wanted or (lacking() and not is_set("PROTOSERVE_COMPILE")):
            return []
        return ["mypy[mypyc]>=2.4,<2.5", "setuptools>=77", *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds. Raises what the compilers do, if compiling was
        asked for."""
        asked = is_set("PROTOSERVE_COMPILE")
        if not self._wanted or (version == "editable" and not asked):
            return
        root = Path(self.root)
        work = Path(tempfile.mkdtemp(prefix="protoserve-compile-"))
        atexit.register(shutil.rmtree, work, ignore_errors=True)  # hatchling reads from there
        try:
            if (reason := lacking()) is not None:
                raise RuntimeError(reason)
            libraries = compile_modules(root, work)
        except (Exception, SystemExit) as error:  # mypyc exits
            if asked:
                raise
            reason = " ".join(str(error).split())
            self.app.display_warning(f"protoserve: pure Python, not compiled: {reason}")
            return
        if version == "editable":
            for name, library in libraries.items():
                shutil.copy(library, root / source_of(name))
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for name, library in libraries.items():
            build_data["force_include"][str(library)] = name


def is_set(variable: str) -> bool:
    """Whether the environment says so."""
    return os.environ.get(variable, "") not in ("", "0")


def lacking() -> str | None:
    """What of a C compiler for extensions is missing here, if anything."""
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} is fast without"
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(compiler.split()[0]) is None:
        return f"there is no C compiler ({compiler.split()[0]})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else f"Python's C headers are missing ({header.name})"


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
    from setuptools._distutils.ccompiler import CCompiler
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
            multi_file=True,  # so that all processors have something to compile
        )
        for extension in extensions:
            extension.extra_compile_args += HIDDEN
        generated = sorted(work.glob("__native_*.c"))
        clear_weak_references(generated)
        name_as_installed(generated)
        add_docstrings(generated, sources)
        show_docstrings_of_coroutines(work / "function_wrapper.c")
        command = build_ext(Distribution({"name": GROUP, "ext_modules": extensions}))
        command.build_lib = str(work / "lib")
        command.build_temp = str(work / "objects")
        command.ensure_finalized()
        with in_parallel(CCompiler):
            command.run()
    finally:
        os.chdir(before)
    libraries = sorted((work / "lib").rglob("*.so"))
    return {library.relative_to(work / "lib").as_posix(): library for library in libraries}


@contextlib.contextmanager
def in_parallel(compiler: Any) -> Iterator[None]:
    """Meanwhile the sources of an extension are compiled by all processors."""
    compile_all = compiler.compile

    def compile_each(self: Any, sources: list[str], **options: Any) -> list[str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = pool.map(lambda source: compile_all(self, [source], **options), sources)
            return [path for paths in objects for path in paths]

    compiler.compile = compile_each
    try:
        yield
    finally:
        compiler.compile = compile_all


_DEALLOC = re.compile(r"\w+_dealloc\(\w+ \*self\)\s*\{\s*PyObject_GC_UnTrack\(self\);")


def clear_weak_references(generated: list[Path]) -> None:
    """mypyc 2.4 lets weak references to what has gone live on, and the interpreter crashes."""
    clear = "if (Py_TYPE(self)->tp_weaklistoffset) PyObject_ClearWeakRefs((PyObject *)self);"
    places = 0
    for path in generated:
        text, found = _DEALLOC.subn(rf"\g<0>\n    {clear}", path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        places += found
    if not places:
        raise RuntimeError("this mypyc frees objects in another way: look at what it generates")


_SOURCE = re.compile(r'"plugins/\w+/(?=[\w/]+\.py")')


def name_as_installed(generated: list[Path]) -> None:
    """Tracebacks name the plugins' files as they are in a wheel, not in the source tree."""
    for path in generated:
        text = path.read_text(encoding="utf-8")
        path.write_text(_SOURCE.sub('"', text), encoding="utf-8")


_METHOD = re.compile(r'(\(PyCFunction\)CPyPy_(\w+),[^;{}]*?PyDoc_STR\("(?:[^"\\]|\\.)*)("\))')
_NO_SIGNATURE = re.compile(r"(\(PyCFunction\)CPyPy_(\w+),[^;{}]*?PyDoc_STR\()NULL(\))")
_CLASS = re.compile(
    r'(tp_name = "([\w.]+)".*?tp_doc = PyDoc_STR\("(?:[^"\\]|\\.)*)("\))', re.DOTALL
)
_PROPERTY = re.compile(r"(\(getter\)(\w+),\s*(?:\(setter\)\w+|NULL),\s*)NULL(, NULL\})")


def add_docstrings(generated: list[Path], sources: list[str]) -> None:
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

    def with_only_doc(match: re.Match[str]) -> str:
        text = docs.get(match[2], "")
        return f'{match[1]}"{c_text(text)}"{match[3]}' if text else match[0]

    def with_property_doc(match: re.Match[str]) -> str:
        owner, _, name = match[2].partition("_get_")
        text = docs.get(f"{owner}___{name}", "")
        return f'{match[1]}PyDoc_STR("{c_text(text)}"){match[3]}' if text else match[0]

    for path in generated:
        text = path.read_text(encoding="utf-8")
        text = _METHOD.sub(with_doc, text)
        text = _NO_SIGNATURE.sub(with_only_doc, text)
        text = _CLASS.sub(with_doc, text)
        path.write_text(_PROPERTY.sub(with_property_doc, text), encoding="utf-8")


_GETSETS = "static PyGetSetDef CPyFunction_getsets[] = {"
_GET_DOC = """
static PyObject *CPyFunction_get_doc(PyObject *function, void *context) {
    const char *doc = ((PyCFunctionObject *)function)->m_ml->ml_doc;
    const char *end = doc ? strstr(doc, "\\n--\\n\\n") : NULL;
    return end && end[5] ? PyUnicode_FromString(end + 5) : Py_NewRef(Py_None);
}
"""


def show_docstrings_of_coroutines(wrapper: Path) -> None:
    """What mypyc 2.4 wraps coroutine functions in keeps their docstrings to itself."""
    text = wrapper.read_text(encoding="utf-8")
    table = _GETSETS + '\n    {"__doc__", (getter)CPyFunction_get_doc, NULL, NULL, NULL},'
    wrapper.write_text(text.replace(_GETSETS, f"{_GET_DOC}\n{table}"), encoding="utf-8")


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
