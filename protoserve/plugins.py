"""The installed plugins: found by entry point, loaded one by one, each kept apart.

A plugin that is broken in whatever way costs nobody but itself: it is listed with the
reason, and with what to do about it. Nothing here runs on the way of a request.
"""

from __future__ import annotations

import contextvars
import difflib
import functools
import importlib
import inspect
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

import pluggy

from protoserve import hookspecs
from protoserve.declared import declared
from protoserve.errors import ConfigError, PluginError
from protoserve.hookspecs import API_VERSION, PROJECT_NAME
from protoserve.options import own_options
from protoserve.protocol import ProtocolSpec, try_parser

if TYPE_CHECKING:
    from protoserve.events import Event
    from protoserve.server import WFServer

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

_STDLIB: Final = os.path.dirname(os.__file__) + os.sep

_HOOKS: Final = {
    name: tuple(inspect.signature(hook).parameters)
    for name, hook in vars(hookspecs).items()
    if hasattr(hook, f"{PROJECT_NAME}_spec")
}
"""The hooks that there are, with their arguments."""

_REGISTER_PROTOCOLS: Final = hookspecs.protoserve_register_protocols.__name__

HOOK_PATIENCE: Final = 10.0
"""Seconds that a hook is waited for: it is code of others, and nothing else goes on meanwhile."""

_QUIET: Final = 1.0
"""Seconds of them without a word."""

_DOCUMENT: Final = "docs/hooks.md"

_loading: Final = contextvars.ContextVar("protoserve_loading", default=False)
"""Whether a plugin's code runs that is being loaded."""

T = TypeVar("T")


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


def load_protocol(name: str) -> ProtocolSpec[Any, Any, Any]:
    """The protocol that an installed plugin registers as ``name``.

    Imports the plugin whose entry point has that name, and the others only when it does
    not settle the question. Any thread, but not while a plugin is being imported. A
    ``KeyboardInterrupt`` meanwhile has a note that says at which one.
    Raises :class:`~protoserve.errors.PluginError` that says what is installed, or why
    the plugin cannot be used.
    """
    return _registry.load_protocol(name)


def installed_plugins() -> list[InstalledPlugin]:
    """Every installed plugin, usable or not, in the order of precedence. Imports all.

    Any thread, but not while a plugin is being imported.
    """
    return _registry.installed_plugins()


class _UnusableError(Exception):
    """Why a plugin cannot be used, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class _Entry:
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
            name for name in _HOOKS if name != _REGISTER_PROTOCOLS and _impls(self.manager, name)
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


class PluginHooks:
    """What plugins do beside the servers of one program; made by :func:`load_hooks`.

    Whatever a hook does, it goes no further than a line in the log: the server starts, serves
    and stops without that plugin. Any thread; blocks for as long as the hooks do, ten seconds
    at most for each.
    """

    def __init__(self, entries: Iterable[_Entry], patience: float) -> None:
        self._managers = [(str(entry), entry.manager) for entry in entries if entry.manager]
        self._patience = patience

    def observe(self, server: WFServer[Any, Any]) -> None:
        """Subscribe the plugins' observers. Before ``server`` starts."""
        for who, manager in self._managers:
            register = _Registration("observer", _look_at_observer)
            if self._call(
                who, manager, "protoserve_register_observers", register, register=register,
                server=server,
            ):  # fmt: skip
                for observer in register.found:
                    server.subscribe(observer)

    def started(self, server: WFServer[Any, Any]) -> None:
        """Tell them that ``server`` listens."""
        for who, manager in self._managers:
            self._call(who, manager, "protoserve_server_started", server=server)

    def stopped(self, server: WFServer[Any, Any]) -> None:
        """Tell them that ``server`` has stopped; in the other order."""
        for who, manager in reversed(self._managers):
            self._call(who, manager, "protoserve_server_stopped", server=server)

    def _call(
        self,
        who: str,
        manager: pluggy.PluginManager,
        name: str,
        registration: _Registration[Any] | None = None,
        **arguments: object,
    ) -> bool:
        """Whether the hook did what it should."""
        try:
            _call_hook(manager, name, self._patience, registration, **arguments)
        except KeyboardInterrupt:
            raise
        except _UnusableError as fault:
            logger.error("%s: %s; %s", who, fault.reason, fault.remedy)
        except BaseException as error:
            logger.debug("%s: %s raised", who, name, exc_info=True)
            logger.error("%s: %s raised %s; it goes on without it", who, name, describe(error))
        else:
            return True
        return False


def load_hooks(protocol: str | None, names: Iterable[str] = ()) -> PluginHooks:
    """What the plugin that serves ``protocol`` does beside a server, and then the plugins of
    these names, which are those of entry points. ``None``: a protocol that is of no plugin.

    Imports these plugins, and others as ``load_protocol`` does. Any thread, but not while a
    plugin is being imported. Raises :class:`~protoserve.errors.PluginError` for a name that is
    not installed, and for a plugin that cannot be used.
    """
    return _registry.load_hooks(protocol, names)


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
        self,
        distributions: Callable[[], Iterable[metadata.Distribution]] = metadata.distributions,
        patience: float = HOOK_PATIENCE,
    ) -> None:
        self._distributions = distributions
        self._patience = patience
        self._lock = threading.RLock()  # guards what follows
        self._entries: list[_Entry] | None = None
        self._owners: dict[str, _Entry] | None = None

    def load_protocol(self, name: str) -> ProtocolSpec[Any, Any, Any]:
        """See :func:`protoserve.plugins.load_protocol`."""
        _refuse_while_loading()
        with self._lock:
            owner = self._owner(name)
            return next(spec for spec in owner.specs if spec.name == name)

    def load_hooks(self, protocol: str | None, names: Iterable[str] = ()) -> PluginHooks:
        """See :func:`protoserve.plugins.load_hooks`."""
        _refuse_while_loading()
        with self._lock:
            entries = [] if protocol is None else [self._owner(protocol)]
            entries += [self._named(name) for name in names]
        return PluginHooks(dict.fromkeys(entries), self._patience)

    def installed_plugins(self) -> list[InstalledPlugin]:
        """See :func:`protoserve.plugins.installed_plugins`."""
        _refuse_while_loading()
        with self._lock:
            self._settle()
            return [entry.report() for entry in self._find()]

    def _owner(self, name: str) -> _Entry:
        """The plugin that serves the protocol ``name``."""
        if self._owners is None:
            for entry in self._find():
                if entry.name == name:
                    self._load(entry)
                    if entry.plain:
                        return entry
        owners = self._settle()
        if name in owners:
            return owners[name]
        raise PluginError(self._explain(name, owners))

    def _named(self, name: str) -> _Entry:
        """The plugin whose entry point has this name; of several the first that is usable."""
        entries = [entry for entry in self._find() if entry.name == name]
        for entry in entries:
            self._load(entry)
            if entry.specs and not entry.plain:
                self._settle()  # whether it may have its names
            if not entry.reason:
                return entry
        if entries:
            raise PluginError(f"{entries[0]} cannot be used: {entries[0].complaint}")
        known = sorted({entry.name for entry in self._find()})
        close = difflib.get_close_matches(name, known, 1)
        raise PluginError(
            f"no plugin {name!r} is installed; installed: {', '.join(known) or 'none'}"
            + (f"; did you mean {close[0]}?" if close else "")
        )

    def _find(self) -> list[_Entry]:
        if self._entries is None:
            self._entries = sorted(_search(self._distributions()), key=_Entry.order)
        return self._entries

    def _load(self, entry: _Entry) -> None:
        if entry.loaded:
            return
        token = _loading.set(True)
        try:
            _load(entry, self._patience)
        finally:
            _loading.reset(token)

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
                    entry.fail(
                        f"protocol {taken[0]!r} is taken by {owners[taken[0]]}",
                        f"uninstall one of the two, or ask for a release of {entry.distribution} "
                        f"that gives another name{_registered_at(entry)}",
                    )
                owners |= {spec.name: entry for spec in entry.specs}
            self._owners = owners
        return self._owners

    def _explain(self, name: str, owners: dict[str, _Entry]) -> str:
        failed = [entry for entry in self._find() if entry.reason]
        for entry in failed:
            if entry.name == name:
                return f"protocol {name!r}: {entry} cannot be used: {entry.complaint}"
        for entry in self._find():
            if entry.name == name and not entry.specs:
                return (
                    f"{entry} has no protocol; name it beside one: "
                    f"protoserve run PROTOCOL --plugin {name}"
                )
        message = f"no protocol {name!r} is installed"
        message += f"; installed: {', '.join(sorted(owners))}" if owners else ", nor any other"
        if failed:
            names = ", ".join(entry.name for entry in failed)
            message += f"; not usable: {names} (`protoserve plugins` says why)"
        return message


def _refuse_while_loading() -> None:
    if _loading.get():
        raise PluginError(
            "a plugin asked for protocols or plugins while it was being loaded; "
            "do that when they are needed"
        )


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
        folder = _folder(distribution)
        try:
            points = list(distribution.entry_points.select(group=GROUP))
        except Exception as error:
            entry = _Entry("?", name, version, None, folder)
            entry.fail(
                f"its {_ENTRY_POINTS} in {folder} is malformed: {describe(error)}",
                f"reinstall {name}: pip install --force-reinstall {name}",
            )
            yield entry
            continue
        for point in points:
            yield _Entry(point.name, name, version, point, folder)


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


def _load(entry: _Entry, patience: float) -> None:
    """Import a plugin and let it register: all of its protocols, or none and a reason."""
    assert entry.point is not None
    step = f"importing {entry.point.value!r}"
    try:
        if not entry.point.pattern.match(entry.point.value):
            raise _UnusableError(
                f"its entry point {entry.point.value!r} is not module or module:object",
                _entry_point_remedy(entry),
            )
        plugin = entry.point.load()
        _look_at_version(entry, plugin)
        step = "checking its hooks"
        if isinstance(plugin, ProtocolSpec):
            manager = None
            specs = [plugin]
        else:
            manager = _manage(entry, plugin)
            step = _REGISTER_PROTOCOLS
            specs = _register_protocols(entry, manager, patience)
        step = "looking at its protocols"
        for spec in specs:
            _watched(functools.partial(_look_at_spec, entry, spec), patience, step)
    except KeyboardInterrupt as error:
        error.add_note(f"interrupted at {entry}: {step}{_location(_frames(error))}")
        raise
    except _UnusableError as fault:
        entry.fail(fault.reason, fault.remedy)
    except BaseException as error:  # SystemExit too
        logger.debug("%s: %s raised", entry, step, exc_info=True)
        reason, remedy = f"{step} raised {describe(error)}", _remedy(entry, error)
        if other := _declared_for_another(entry):
            reason, remedy = f"{other.reason}; {reason}", other.remedy
        entry.fail(reason, remedy)
    else:
        entry.specs = tuple(specs)
        entry.manager = manager
        entry.loaded = True


def _entry_point_remedy(entry: _Entry) -> str:
    assert entry.point is not None
    return (
        f"reinstall {entry.distribution} (it is in {entry.folder}), or mend the line "
        f"{entry.name} = {entry.point.value!r} of [project.entry-points.{GROUP}] in its "
        "pyproject.toml"
    )


def _authors(entry: _Entry) -> str:
    return (
        f"mend it there, tell the authors of {entry.distribution}, or uninstall it: "
        f"pip uninstall {entry.distribution}"
    )


def _remedy(entry: _Entry, error: BaseException) -> str:
    """What to do about what a plugin raised."""
    assert entry.point is not None
    name = (error.name or "") if isinstance(error, ImportError) else ""
    if name.partition(".")[0] == PROJECT_NAME:
        return (
            f"{entry.distribution} {entry.version} does not fit protoserve {own_version()}, which "
            f"has version {API_VERSION} of the plugin API: upgrade whichever is older "
            f"(pip install --upgrade protoserve {entry.distribution})"
        )
    missing = isinstance(error, ModuleNotFoundError)
    if missing and (entry.point.module == name or entry.point.module.startswith(f"{name}.")):
        return _entry_point_remedy(entry)
    if missing and name:
        return (
            f"install what has the module {name!r}, which {entry.distribution} needs "
            "and should name among its dependencies"
        )
    if isinstance(error, AttributeError) and not _frames(error):
        return _entry_point_remedy(entry)  # the object is not there
    return _authors(entry)


def _look_at_version(entry: _Entry, plugin: object) -> None:
    assert entry.point is not None
    # Of an object, a spec for example, its module may say it.
    module = sys.modules.get(entry.point.module)
    owner: object = plugin if hasattr(plugin, API_VERSION_ATTRIBUTE) else module
    built_for: object = getattr(owner, API_VERSION_ATTRIBUTE, API_VERSION)
    _check_version(entry, built_for, _where_assigned(module, API_VERSION_ATTRIBUTE))


def _declared_for_another(entry: _Entry) -> _UnusableError | None:
    """What is wrong with the version that a plugin's source says it was built for, whether or not
    it can be imported: that may be why it cannot."""
    assert entry.point is not None
    found = declared(entry.point.module, API_VERSION_ATTRIBUTE)
    if found is None:
        return None
    try:
        _check_version(entry, found.value, f" ({found.path}:{found.line})")
    except _UnusableError as fault:
        return fault
    return None


def _check_version(entry: _Entry, built_for: object, where: str) -> None:
    """Raise :class:`_UnusableError` for another version than that of this protoserve."""
    if type(built_for) is not int:
        raise _UnusableError(
            f"{API_VERSION_ATTRIBUTE} is {_one_line(repr(built_for))}{where}: "
            "expected a whole number",
            f"set it to the version of the plugin API that {entry.distribution} was written "
            f"for; that of protoserve {own_version()} is {API_VERSION}",
        )
    if built_for != API_VERSION:
        if built_for > API_VERSION:
            remedy = (
                "upgrade protoserve (pip install --upgrade protoserve), or install an older "
                f"release of {entry.distribution} that is for version {API_VERSION}"
            )
        else:
            remedy = (
                f"upgrade {entry.distribution} (pip install --upgrade {entry.distribution}), "
                f"one that is for version {API_VERSION}"
            )
        raise _UnusableError(
            f"{entry.distribution} {entry.version} was built for version {built_for} of the "
            f"plugin API; this protoserve has version {API_VERSION} (it is protoserve "
            f"{own_version()}){where}",
            remedy,
        )


def _manage(entry: _Entry, plugin: object) -> pluggy.PluginManager:
    """A manager for each: nothing that one plugin leaves in it can reach another."""
    assert entry.point is not None
    routines = {
        name: value
        for name in dir(plugin)
        if inspect.isroutine(value := getattr(plugin, name, None))
    }
    marked = {
        name: value for name, value in routines.items() if hasattr(value, f"{PROJECT_NAME}_impl")
    }
    for name in _HOOKS:
        if name in routines and name not in marked:
            raise _UnusableError(
                f"{name} is not marked with protoserve.hookimpl{_where(routines[name])}",
                "put @hookimpl above it, of: from protoserve import hookimpl",
            )
    if not marked:
        path = _where(plugin) if isinstance(plugin, ModuleType) else ""
        raise _UnusableError(
            f"{kind_of(plugin)} {entry.point.value!r} has no {_REGISTER_PROTOCOLS} that is marked "
            f"with protoserve.hookimpl, nor another hook{path}, and is no ProtocolSpec",
            "let the entry point name a ProtocolSpec, as module:OBJECT, or a module with hooks: "
            f"see {_DOCUMENT} of protoserve",
        )
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, entry.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        message = str(error)
        culprit = next((name for name in marked if f"{name!r}" in message), "")
        if culprit in _HOOKS:
            remedy = f"its arguments are {', '.join(_HOOKS[culprit])}, or some of them"
        else:
            close = difflib.get_close_matches(culprit, _HOOKS, 1, 0.0)
            remedy = f"did you mean {close[0]}?" if close else "name it after a hook"
        where = _where(marked[culprit]) if culprit else ""
        raise _UnusableError(
            f"misspelt or misused hook: {_one_line(message)}{where}",
            f"{remedy}; see {_DOCUMENT} of protoserve",
        ) from error
    return manager


def _impls(manager: pluggy.PluginManager, name: str) -> list[pluggy.HookImpl]:
    found: list[pluggy.HookImpl] = getattr(manager.hook, name).get_hookimpls()
    return found


def _call_hook(
    manager: pluggy.PluginManager,
    name: str,
    patience: float,
    registration: _Registration[Any] | None = None,
    **arguments: object,
) -> None:
    """Call a hook, with ``registration`` as its ``register`` if it has one. Raises
    :class:`_UnusableError` when it blocks or returns something, and what it raises."""
    impls = _impls(manager, name)
    if not impls:
        return
    hook = getattr(manager.hook, name)
    try:
        returned = _watched(functools.partial(hook, **arguments), patience, name)
    finally:
        if registration is not None:
            registration.over = True
    for value in returned:
        close = getattr(value, "close", None)
        if callable(close):
            close()  # a coroutine that nobody awaits would warn
        expected = "None" if registration is None else "calls of register(...)"
        raise _UnusableError(
            f"the hook returned {type(value).__name__}{_where(impls[0].function)}; "
            f"expected {expected}",
            f"let {name} be a plain function that returns nothing",
        )
    if registration is not None and registration.fault is not None:
        raise registration.fault


def _register_protocols(
    entry: _Entry, manager: pluggy.PluginManager, patience: float
) -> list[ProtocolSpec[Any, Any]]:
    register = _Registration[ProtocolSpec[Any, Any]]("ProtocolSpec", _look_at_registered)
    _call_hook(manager, _REGISTER_PROTOCOLS, patience, register, register=register)
    impls = _impls(manager, _REGISTER_PROTOCOLS)
    if impls and not register.found:
        raise _UnusableError(
            "it registered no protocol: call register(spec) in its hook"
            f"{_where(impls[0].function)}",
            "call register(spec) before the hook returns, not in a thread or a callback of it",
        )
    return register.found


def _look_at_registered(spec: object, found: list[ProtocolSpec[Any, Any]]) -> None:
    if not isinstance(spec, ProtocolSpec):
        raise TypeError(f"register({spec!r}): expected a ProtocolSpec")
    if spec.name in [other.name for other in found]:
        raise PluginError(f"protocol {spec.name!r} is registered twice")


def _look_at_observer(observer: object, found: list[Callable[[Event], object]]) -> None:
    if not callable(observer):
        raise TypeError(f"register({observer!r}): an observer is called with each event")


def _look_at_spec(entry: _Entry, spec: ProtocolSpec[Any, Any]) -> None:
    """Raise :class:`_UnusableError` for what would fail with the first connection, or on the
    command line."""
    try:
        own_options(spec.params)
    except ConfigError as error:
        raise _UnusableError(
            f"protocol {spec.name!r}: {error}{_where(type(spec.params))}", _authors(entry)
        ) from error
    try:
        try_parser(spec.name, lambda: spec.message_in(spec.params))
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            return  # it cannot work with the defaults, and will say so to who gives it others
        # Not that of the error, which is raised here.
        where = _location(_frames(cause)) if cause is not None else ""
        raise _UnusableError(
            f"{_one_line(str(error))}{where or _where(spec.message_in)}", _authors(entry)
        ) from error


def _registered_at(entry: _Entry) -> str:
    """Where a plugin registers its protocols, for a message."""
    if entry.manager is None:
        return ""
    impls = _impls(entry.manager, _REGISTER_PROTOCOLS)
    return _where(impls[0].function) if impls else ""


def kind_of(plugin: object) -> str:
    """What it is, for a message."""
    return "module" if isinstance(plugin, ModuleType) else type(plugin).__name__


class _Registration(Generic[T]):
    """The ``register`` of one call of a hook."""

    def __init__(self, what: str, look: Callable[[object, list[T]], None]) -> None:
        self.found: list[T] = []
        self.fault: Exception | None = None
        self.over = False
        self._what = what
        self._look = look

    def __call__(self, item: T) -> None:
        if self.over:
            raise PluginError(
                f"register() was called after the hook had returned; its {self._what} is not used"
            )
        try:
            self._look(item, self.found)
        except Exception as error:
            # Kept: a plugin that catches the exception is not to be registered in part.
            self.fault = error
            raise
        self.found.append(item)


def _watched(call: Callable[[], T], patience: float, what: str) -> T:
    """What ``call`` returns, called in a thread of its own: one that blocks is left behind.
    Raises what it raises, and :class:`_UnusableError` after ``patience`` seconds; before that it
    says in the log what is waited for."""
    outcome: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="protoserve-plugin", daemon=True
    )
    thread.start()
    thread.join(min(patience, _QUIET))
    if thread.is_alive() and patience > _QUIET:
        logger.warning(
            "%s still runs%s; waiting for it, up to %g seconds",
            what,
            _blocked_at(thread),
            patience,
        )
        thread.join(patience - _QUIET)
    if outcome:
        return outcome[0]
    if raised:
        raise raised[0]
    where = _blocked_at(thread)
    raise _UnusableError(
        f"{what} still runs after {patience:g} seconds{where}",
        "what it waits for there does not come: do that later, in a thread of the plugin's own",
    )


def _blocked_at(thread: threading.Thread) -> str:
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return ""
    return _location([(f.filename, f.lineno or 0) for f in traceback.extract_stack(frame)])


def _where(item: object) -> str:
    """The file and line of a function, class or module, for a message; empty if unknown."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(item) if callable(item) else item)  # type: ignore[arg-type]
        if isinstance(item, ModuleType):
            return f" ({path}:1)" if path else ""
        _, line = inspect.getsourcelines(item)  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError):
        return ""
    return f" ({path}:{line})" if path else ""


def _where_assigned(module: ModuleType | None, name: str) -> str:
    """Where a module assigns to a name of its own."""
    try:
        lines, _ = inspect.getsourcelines(module)  # type: ignore[arg-type]
        path = inspect.getsourcefile(module)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
    for number, line in enumerate(lines, 1):
        if re.match(rf"\s*{name}\b", line):
            return f" ({path}:{number})"
    return ""


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """The lines of code that it came through, without those of the import system, pluggy and
    protoserve."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        (frame.filename, frame.lineno or 0)
        for frame in frames
        if not frame.filename.startswith(_PASSING)
    ]


def _location(frames: list[tuple[str, int]]) -> str:
    """The last of them that is neither Python's own nor protoserve's, for a message."""
    for path, line in reversed(frames):
        own = path.startswith(_STDLIB) and "site-packages" not in path
        if not own and not path.startswith(_PASSING):
            return f" ({path}:{line})"
    return ""


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
    where = _frames(error)
    return f"{text} ({where[-1][0]}:{where[-1][1]})" if where else text


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text)


_registry: Final = PluginRegistry()
