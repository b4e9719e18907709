"""A folder of distributions with plugins, as pip leaves them."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from textwrap import dedent

from protoserve.plugins import PluginRegistry

PATIENCE = 3.0
"""Seconds for a hook: what those that block cost here, and many times what the others need."""

GOOD = """
from protoserve import ProtocolSpec, hookimpl
from protoserve.framing import lines

def spec(name):
    return ProtocolSpec(name=name, message_in=lines(), message_out=bytes, response=bytes)

@hookimpl
def protoserve_register_protocols(register):
    for name in {names!r}:
        register(spec(name))
"""


class Site:
    """A folder of distributions, as pip leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: set[str] = set()

    def module(self, source: str) -> str:
        name = f"installed_plugin_{len(self.modules)}_{self.folder.name}"
        (self.folder / f"{name}.py").write_text(dedent(source))
        self.modules.add(name)
        return name

    def distribution(self, name: str, entry_points: str, version: str = "1.0") -> None:
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(entry_points)

    def install(self, distribution: str, name: str, source: str) -> str:
        module = self.module(source)
        self.distribution(distribution, f"[protoserve]\n{name} = {module}\n")
        return module

    def serve(self, distribution: str, name: str, *protocols: str) -> str:
        return self.install(distribution, name, GOOD.format(names=protocols or (name,)))

    def registry(self) -> PluginRegistry:
        return PluginRegistry(
            lambda: metadata.distributions(path=[str(self.folder)]), patience=PATIENCE
        )

    @property
    def imported(self) -> set[str]:
        return self.modules & set(sys.modules)
