"""The builds of protoserve that are measured: each is a Python that has it installed."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_ASK = """
import importlib.metadata, json, sys, protoserve
print(json.dumps({
    "build": getattr(protoserve, "BUILD", "pure"),
    "versions": [f"{name} {importlib.metadata.version(name)}" for name in sys.argv[1:]],
}))
"""


@dataclass(frozen=True)
class Build:
    """protoserve as the interpreter ``python`` has it, or, with ``tree``, as it is in another
    checkout, which the interpreter has the dependencies for."""

    name: str
    python: Path
    tree: Path | None = None

    def command(self, directory: Path, module: str, *words: str) -> list[str]:
        """Run a module of ``benchmarks`` with this build; ``directory`` is for its imports.

        The working directory's protoserve is left out (``-P``): it may not be this build.
        """
        folders = [ROOT / "benchmarks", ROOT / "examples"]
        if self.tree:
            folders += [self.tree / "protoserve", *self.tree.glob("plugins/*/protoserve_*")]
        for folder in folders:
            link = directory / folder.name
            if not link.is_symlink():
                link.symlink_to(folder)
        path = f"PYTHONPATH={directory}"
        return ["env", path, str(self.python), "-P", "-m", f"benchmarks.{module}", *words]

    def version(self, packages: Sequence[str]) -> str | None:
        """What is installed, and whether it is compiled; ``None`` for nothing."""
        if self.tree:
            asked = ["git", "-C", str(self.tree), "rev-parse", "--short", "HEAD"]
            commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
            return f"protoserve of {commit or 'another folder'}"
        command = [str(self.python), "-P", "-c", _ASK, *packages]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=_without_path(), cwd="/"
            )
        except OSError:
            return None
        if done.returncode:
            return None
        said = json.loads(done.stdout)
        return ", ".join([*said["versions"], said["build"]])

    def stages(self) -> dict[str, float]:
        """What ``benchmarks.stages`` says of this build; ``RuntimeError`` with what went wrong."""
        with tempfile.TemporaryDirectory() as directory:
            command = self.command(Path(directory), "stages", "--json")
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        stages: dict[str, float] = json.loads(done.stdout)
        return stages


def _without_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
