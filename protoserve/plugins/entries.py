"""Entry points: what there is to load, and what came of it."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, Literal

import pluggy

from protoserve import hookspecs
from protoserve.hookspecs import PROJECT_NAME
from protoserve.plugins.places import describe, place_of
from protoserve.protocol import ProtocolSpec

logger = logging.getLogger("protoserve")

GROUP: Final = PROJECT_NAME
"""The entry-point group of plugins."""

_ENTRY_POINTS: Final = "entry_points.txt"

HOOKS: Final = {
    name: tuple(inspect.signature(hook).parameters)
    for name, hook in vars(hookspecs).items()
    if hasattr(hook, f"{PROJECT_NAME}_spec")
}
"""The hooks that there are, with their arguments."""

REGISTER_PROTOCOLS: Final = hookspecs.protoserve_register_protocols.__name__


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """What is known of one plugin after it was loaded, or was tried."""

    name: str
    """The entry point's name."""
    distribution: str
    version: str
    """The distribution's version."""
    entry_point: str
    """The module, or ``module:object``, that the entry point names: a plugin, or simply a
    ``ProtocolSpec``."""
    protocols: tuple[str, ...]
    """The names under which its protocols are served; none when it failed."""
    status: Literal["ok", "failed"]
    reason: str
    """Why it cannot be used, in one line, with the file and line where there is one; empty
    otherwise. A plugin that registers nothing has failed, too."""
    remedy: str = ""
    """What to do about that, in one line; empty otherwise."""
    hooks: tuple[str, ...] = ()
    """The hooks that it implements besides ``protoserve_register_protocols``: what it does when
    ``protoserve run`` serves one of its protocols, or is told its name by ``--plugin``."""


class UnusableError(Exception):
    """Why a plugin cannot be used, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Entry:
    """One entry point, and what loading it gave."""

    def __init__(
        self,
        name: str,
        distribution: str,
        version: str,
        point: metadata.EntryPoint | None,
        folder: str,
    ) -> None:
        self.name = name
        self.distribution = distribution
        self.version = version
        self.point = point
        self.folder = folder
        self.loaded = False
        self.specs: tuple[ProtocolSpec[Any, Any], ...] = ()
        self.manager: pluggy.PluginManager | None = None
        self.reason = ""
        self.remedy = ""

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version}"

    @property
    def plain(self) -> bool:
        """Whether it registers the protocol of its own name and nothing else."""
        return [spec.name for spec in self.specs] == [self.name]

    @property
    def hooks(self) -> tuple[str, ...]:
        """Those that it implements, besides that of protocols."""
        if self.manager is None:
            return ()
        return tuple(
            name for name in HOOKS if name != REGISTER_PROTOCOLS and impls_of(self.manager, name)
        )

    @property
    def complaint(self) -> str:
        """What is wrong with it, and what to do."""
        return f"{self.reason}; {self.remedy}"

    def order(self) -> tuple[bool, str, str, str]:
        distribution = _normalized(self.distribution)
        value = self.point.value if self.point else ""
        return (distribution != PROJECT_NAME, self.name, distribution, value)

    def fail(self, reason: str, remedy: str) -> None:
        self.specs = ()
        self.manager = None
        self.reason = reason
        self.remedy = remedy
        self.loaded = True

    def report(self) -> InstalledPlugin:
        return InstalledPlugin(
            self.name,
            self.distribution,
            self.version,
            self.point.value if self.point else "",
            tuple(spec.name for spec in self.specs),
            "failed" if self.reason else "ok",
            self.reason,
            self.remedy,
            self.hooks,
        )


def _normalized(distribution: str) -> str:
    # Two spellings of one distribution: the packaging specification's name normalisation.
    return re.sub(r"[-_.]+", "-", distribution).lower()


def search(distributions: Iterable[metadata.Distribution]) -> Iterable[Entry]:
    # Not importlib.metadata.entry_points(): one malformed file makes that raise for all.
    seen: set[str] = set()
    for distribution in distributions:
        try:
            text = distribution.read_text(_ENTRY_POINTS) or ""
        except Exception:  # unreadable, so nobody can tell whether it has plugins
            logger.debug("cannot read %s of %r", _ENTRY_POINTS, distribution, exc_info=True)
            continue
        if f"[{GROUP}]" not in text:
            continue
        name, version = _identity(distribution)
        # The first on the path is the one that is imported from.
        if _normalized(name) in seen:
            continue
        seen.add(_normalized(name))
        folder = _folder(distribution)
        try:
            points = list(distribution.entry_points.select(group=GROUP))
        except Exception as error:
            entry = Entry("?", name, version, None, folder)
            entry.fail(
                f"its {_ENTRY_POINTS} in {folder} is malformed: {describe(error)}",
                f"reinstall {name}: pip install --force-reinstall {name}",
            )
            yield entry
            continue
        for point in points:
            yield Entry(point.name, name, version, point, folder)


def _folder(distribution: metadata.Distribution) -> str:
    """Where it is installed."""
    try:
        return str(distribution.locate_file(""))
    except Exception:
        return "an unknown folder"


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        return str(distribution.metadata["Name"] or "?"), str(distribution.version or "?")
    except Exception:
        return "?", "?"


def own_version() -> str:
    """protoserve's version."""
    try:
        return metadata.version(PROJECT_NAME)
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "(not installed)"


def impls_of(manager: pluggy.PluginManager, name: str) -> list[pluggy.HookImpl]:
    found: list[pluggy.HookImpl] = getattr(manager.hook, name).get_hookimpls()
    return found


def registered_at(entry: Entry) -> str:
    """Where a plugin registers its protocols, for a message."""
    if entry.manager is None:
        return ""
    impls = impls_of(entry.manager, REGISTER_PROTOCOLS)
    return place_of(impls[0].function) if impls else ""
