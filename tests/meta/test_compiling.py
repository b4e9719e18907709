"""What decides whether a wheel is compiled; compiling itself is what the compiled build shows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
import hatch_compile  # noqa: E402

sys.path.remove(str(ROOT))


class Application:
    """Stands for hatchling's, which shows warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


class Metadata:
    """Stands for hatchling's."""

    class core:  # noqa: N801
        dependencies = ("needed>=1",)


class Build:
    """A build of a wheel, or of another target."""

    def __init__(self, target: str = "wheel") -> None:
        self.app = Application()
        app: Any = self.app
        metadata: Any = Metadata()
        self.hook = hatch_compile.CompileHook(
            str(ROOT), {}, None, metadata, str(ROOT), target, app
        )
        self.data: dict[str, Any] = {"force_include": {}}

    def run(self, version: str = "standard") -> list[str]:
        """The warnings."""
        self.hook.initialize(version, self.data)
        return self.app.warnings

    @property
    def is_pure(self) -> bool:
        return self.data == {"force_include": {}}


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -pthread")
    monkeypatch.delenv("PROTOSERVE_PURE", raising=False)
    monkeypatch.delenv("PROTOSERVE_COMPILE", raising=False)


def nothing() -> None:
    """A compiler is there, and what it needs."""


def compiles(root: Path, work: Path) -> dict[str, Path]:
    """In place of the compilers."""
    return {"protoserve_http/parser.so": work / "parser.so"}


def fails(root: Path, work: Path) -> dict[str, Path]:
    """In place of compilers that do not like something."""
    print("a page of errors")
    raise SystemExit("error:\n  command 'gcc' failed")


def test_without_a_compiler_one_line_says_so() -> None:
    build = Build()
    assert build.hook.dependencies() == []
    assert build.run() == [
        "protoserve: pure Python, not compiled: there is no C compiler (no-such-compiler)"
    ]
    assert build.is_pure


def test_where_compiling_fails_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatch_compile, "lacking", nothing)
    monkeypatch.setattr(hatch_compile, "compile_modules", fails)
    build = Build()
    assert build.run() == ["protoserve: pure Python, not compiled: error: command 'gcc' failed"]
    assert build.is_pure


def test_compiling_that_was_asked_for_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSERVE_COMPILE", "1")
    with pytest.raises(RuntimeError, match="there is no C compiler"):
        Build().run()
    monkeypatch.setattr(hatch_compile, "lacking", nothing)
    monkeypatch.setattr(hatch_compile, "compile_modules", fails)
    with pytest.raises(SystemExit):
        Build().run()


@pytest.mark.parametrize("asked", ["0", "1"])
def test_pure_that_was_asked_for_compiles_nothing(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROTOSERVE_PURE", "1")
    monkeypatch.setenv("PROTOSERVE_COMPILE", asked)
    monkeypatch.setattr(hatch_compile, "compile_modules", fails)
    build = Build()
    assert build.hook.dependencies() == []
    assert build.run() == []
    assert build.is_pure


def test_neither_an_editable_install_nor_a_source_distribution_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hatch_compile, "compile_modules", fails)
    assert Build().run("editable") == []
    monkeypatch.setattr(hatch_compile, "lacking", nothing)
    source = Build("sdist")
    assert source.hook.dependencies() == []
    assert source.run() == []
    assert source.is_pure


def test_a_compiled_wheel_is_for_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatch_compile, "lacking", nothing)
    monkeypatch.setattr(hatch_compile, "compile_modules", compiles)
    build = Build()
    assert any(name.startswith("mypy[mypyc]") for name in build.hook.dependencies())
    assert "needed>=1" in build.hook.dependencies()
    assert build.run() == []
    assert not build.data["pure_python"]
    assert build.data["infer_tag"]
    assert [*build.data["force_include"].values()] == ["protoserve_http/parser.so"]


def test_what_is_compiled_is_there() -> None:
    for folder, names in hatch_compile.MODULES.items():
        for name in names:
            assert (ROOT / folder / f"{name}.py").is_file(), f"{folder}/{name}.py"


def test_tracebacks_name_files_as_they_are_installed(tmp_path: Path) -> None:
    file = tmp_path / "__native_some.c"
    call = 'CPy_AddTraceback("{}protoserve_http/parser.py", "feed", 1, CPyStatic_globals);'
    file.write_text(call.format("plugins/http/"))
    hatch_compile.name_as_installed([file])
    assert file.read_text() == call.format("")
