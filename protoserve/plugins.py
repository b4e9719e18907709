"""The installed plugins: found by entry point, loaded one by one, each kept apart.

A plugin that is broken in whatever way costs nobody but itself: it is listed with the
reason. Nothing here runs on the way of a request.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, Final, Literal

import pluggy

from protoserve import hookspecs
from protoserve.errors import PluginError
from protoserve.hookspecs import API_VERSION, PROJECT_NAME
from protoserve.protocol import ProtocolSpec

logger = logging.getLogger("protoserve")

GROUP: Final = PROJECT_NAME
"""The entry-point group of plugins."""

API_VERSION_ATTRIBUTE: Final = "PROTOSERVE_API_VERSION"

_ENTRY_POINTS: Final = "entry_points.txt"

_PASSING: Final = (
    "<",  # code that is no file: frozen modules, the methods that dataclasses generate
    *(os.path.dirname(path) + os.sep for path in (importlib.__file__, pluggy.__file__, __file__)),
)
"""Where a fault may pass through, and a reader does not look for it."""


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
    """Why it cannot be used, in one line; empty otherwise. A plugin that registers nothing
    has failed, too."""


def load_protocol(name: str) -> ProtocolSpec[Any, Any, Any]:
    """The protocol that an installed plugin registers as ``name``.

    Imports the plugin whose entry point has that name, and the others only when it does
    not settle the question. Any thread, but not while a plugin is being imported.
    Raises :class:`~protoserve.errors.PluginError` that says what is installed, or why
    the plugin cannot be used.
    """
    return _registry.load_protocol(name)


def installed_plugins() -> list[InstalledPlugin]:
    """Every installed plugin, usable or not, in the order of precedence. Imports all.

    Any thread, but not while a plugin is being imported.
    """
    return _registry.installed_plugins()


class _Entry:
    """One entry point, and what loading it gave."""

    __slots__ = ("distribution", "loaded", "name", "point", "reason", "specs", "version")

    def __init__(
        self, name: str, distribution: str, version: str, point: metadata.EntryPoint | None
    ) -> None:
        self.name = name
        self.distribution = distribution
        self.version = version
        self.point = point
        self.loaded = False
        self.specs: tuple[ProtocolSpec[Any, Any], ...] = ()
        self.reason = ""

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version}"

    @property
    def plain(self) -> bool:
        """Whether it registers the protocol of its own name and nothing else."""
        return [spec.name for spec in self.specs] == [self.name]

    def order(self) -> tuple[bool, str, str, str]:
        distribution = _normalized(self.distribution)
        value = self.point.value if self.point else ""
        return (distribution != PROJECT_NAME, self.name, distribution, value)

    def fail(self, reason: str) -> None:
        self.specs = ()
        self.reason = reason
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
        )


class PluginRegistry:
    """The plugins of one set of distributions, and which of them serves which protocol.

    The outcome does not depend on the order in which protocols are asked for:

    * A plugin that registers just the protocol that its entry point is named after has
      that name before any other plugin. That is why one import is enough for it.
    * Otherwise protoserve's own distribution comes first, then the order is that of
      entry point and distribution name.
    * A plugin whose registration fails in one protocol registers none.

    Any thread.
    """

    def __init__(
        self, distributions: Callable[[], Iterable[metadata.Distribution]] = metadata.distributions
    ) -> None:
        self._distributions = distributions
        self._lock = threading.RLock()  # guards what follows
        self._entries: list[_Entry] | None = None
        self._owners: dict[str, _Entry] | None = None
        self._loading = False

    def load_protocol(self, name: str) -> ProtocolSpec[Any, Any, Any]:
        """See :func:`protoserve.plugins.load_protocol`."""
        with self._lock:
            if self._owners is None:
                for entry in self._find():
                    if entry.name == name:
                        self._load(entry)
                        if entry.plain:
                            return entry.specs[0]
            owners = self._settle()
            if name in owners:
                return next(spec for spec in owners[name].specs if spec.name == name)
            raise PluginError(self._explain(name, owners))

    def installed_plugins(self) -> list[InstalledPlugin]:
        """See :func:`protoserve.plugins.installed_plugins`."""
        with self._lock:
            self._settle()
            return [entry.report() for entry in self._find()]

    def _find(self) -> list[_Entry]:
        if self._entries is None:
            self._entries = sorted(_search(self._distributions()), key=_Entry.order)
        return self._entries

    def _load(self, entry: _Entry) -> None:
        if self._loading:
            raise PluginError(
                "a plugin asked for protocols or plugins while it was being loaded; "
                "do that when they are needed"
            )
        if entry.loaded:
            return
        self._loading = True
        try:
            _load(entry)
        finally:
            self._loading = False

    def _settle(self) -> dict[str, _Entry]:
        """Load every plugin, and give each protocol name to one of them."""
        if self._owners is None:
            entries = self._find()
            for entry in entries:
                self._load(entry)
            owners: dict[str, _Entry] = {}
            for entry in sorted(entries, key=lambda entry: not entry.plain):
                taken = [spec.name for spec in entry.specs if spec.name in owners]
                if taken:
                    entry.fail(f"protocol {taken[0]!r} is taken by {owners[taken[0]]}")
                owners |= {spec.name: entry for spec in entry.specs}
            self._owners = owners
        return self._owners

    def _explain(self, name: str, owners: dict[str, _Entry]) -> str:
        failed = [entry for entry in self._find() if entry.reason]
        for entry in failed:
            if entry.name == name:
                return f"protocol {name!r}: {entry} cannot be used: {entry.reason}"
        message = f"no protocol {name!r} is installed"
        message += f"; installed: {', '.join(sorted(owners))}" if owners else ", nor any other"
        if failed:
            names = ", ".join(entry.name for entry in failed)
            message += f"; not usable: {names} (`protoserve plugins` says why)"
        return message


def _normalized(distribution: str) -> str:
    # Two spellings of one distribution: the packaging specification's name normalisation.
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _search(distributions: Iterable[metadata.Distribution]) -> Iterable[_Entry]:
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
        try:
            points = list(distribution.entry_points.select(group=GROUP))
        except Exception as error:
            entry = _Entry("?", name, version, None)
            entry.fail(f"its {_ENTRY_POINTS} is malformed: {describe(error)}")
            yield entry
            continue
        for point in points:
            yield _Entry(point.name, name, version, point)


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        return str(distribution.metadata["Name"] or "?"), str(distribution.version or "?")
    except Exception:
        return "?", "?"


def _load(entry: _Entry) -> None:
    """Import a plugin and let it register: all of its protocols, or none and a reason."""
    assert entry.point is not None
    step = f"importing {entry.point.value!r}"
    try:
        if not entry.point.pattern.match(entry.point.value):
            entry.fail(f"its entry point {entry.point.value!r} is not module or module:object")
            return
        plugin = entry.point.load()
        # Of an object, a spec for example, its module may say it.
        module = sys.modules.get(entry.point.module)
        built_for = getattr(module, API_VERSION_ATTRIBUTE, API_VERSION)
        built_for = getattr(plugin, API_VERSION_ATTRIBUTE, built_for)
        if built_for != API_VERSION:
            entry.fail(
                f"built for version {built_for!r} of the plugin API; "
                f"this protoserve has version {API_VERSION}"
            )
            return
        if isinstance(plugin, ProtocolSpec):
            entry.specs = (plugin,)
            entry.loaded = True
            return
        step = "checking its hooks"
        # A manager for each: nothing that one plugin leaves in it can reach another.
        manager = pluggy.PluginManager(PROJECT_NAME)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin, entry.name)
        manager.check_pending()
        hook = manager.hook.protoserve_register_protocols
        if not hook.get_hookimpls():
            entry.fail(
                f"{kind_of(plugin)} {entry.point.value!r} has no {hook.name} that is marked with "
                "protoserve.hookimpl, and is no ProtocolSpec"
            )
            return
        step = hook.name
        register = _Registration()
        returned = hook(register=register)
        register.finish(returned)
    except KeyboardInterrupt:
        raise
    except pluggy.PluginValidationError as error:
        entry.fail(f"misspelt or misused hook: {_one_line(str(error))}")
    except BaseException as error:  # SystemExit too
        logger.debug("%s: %s raised", entry, step, exc_info=True)
        entry.fail(f"{step} raised {describe(error)}")
    else:
        entry.specs = tuple(register.specs.values())
        entry.loaded = True
        if not entry.specs:
            entry.fail("it registered no protocol: call register(spec) in its hook")


def kind_of(plugin: object) -> str:
    """What it is, for a message."""
    return "module" if isinstance(plugin, ModuleType) else type(plugin).__name__


class _Registration:
    """The ``register`` of one call of the hook."""

    def __init__(self) -> None:
        self.specs: dict[str, ProtocolSpec[Any, Any]] = {}
        self._fault: Exception | None = None
        self._over = False

    def __call__(self, spec: ProtocolSpec[Any, Any]) -> None:
        # Kept: a plugin that catches the exception is not to be registered in part.
        if self._over:
            raise PluginError("register() was called after the hook had returned")
        if not isinstance(spec, ProtocolSpec):
            self._fault = TypeError(f"register({spec!r}): expected a ProtocolSpec")
            raise self._fault
        if spec.name in self.specs:
            self._fault = PluginError(f"protocol {spec.name!r} is registered twice")
            raise self._fault
        self.specs[spec.name] = spec

    def finish(self, returned: list[Any]) -> None:
        self._over = True
        for value in returned:
            close = getattr(value, "close", None)
            if close is not None:
                close()  # a coroutine that nobody awaits would warn
            raise TypeError(
                f"the hook returned {type(value).__name__}; expected calls of register(spec)"
            )
        if self._fault is not None:
            raise self._fault


def describe(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the last line of code outside
    the import system, pluggy and protoserve that it came through."""
    kind = type(error).__name__
    try:
        message = _one_line(error.msg if isinstance(error, SyntaxError) else str(error))
    except Exception:  # a __str__ of its own that fails
        message = ""
    text = f"{kind}: {message}" if message else kind
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({error.filename}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if not frame.filename.startswith(_PASSING)]
    return f"{text} ({where[-1].filename}:{where[-1].lineno})" if where else text


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text)


_registry: Final = PluginRegistry()
