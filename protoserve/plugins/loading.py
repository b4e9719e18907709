"""Loading one plugin: all of its protocols, or none and a reason."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import sys
from types import ModuleType
from typing import Any, Final, TypeVar

import pluggy

from protoserve import hookspecs
from protoserve.errors import ConfigError, PluginError
from protoserve.hookspecs import API_VERSION, PROJECT_NAME
from protoserve.options import own_options
from protoserve.plugins.calling import Registration, call_hook, watched
from protoserve.plugins.declared import declared
from protoserve.plugins.entries import (
    GROUP,
    HOOKS,
    REGISTER_PROTOCOLS,
    Entry,
    UnusableError,
    impls_of,
    own_version,
)
from protoserve.plugins.places import (
    describe,
    frames_of,
    kind_of,
    last_place,
    one_line,
    place_assigned,
    place_of,
)
from protoserve.protocol import ProtocolSpec, try_parser

logger = logging.getLogger("protoserve")

API_VERSION_ATTRIBUTE: Final = "PROTOSERVE_API_VERSION"

_DOCUMENT: Final = "docs/hooks.md"

T = TypeVar("T")


def load_entry(entry: Entry, patience: float) -> None:
    """Import a plugin and let it register: all of its protocols, or none and a reason."""
    assert entry.point is not None
    step = f"importing {entry.point.value!r}"
    try:
        if not entry.point.pattern.match(entry.point.value):
            raise UnusableError(
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
            step = REGISTER_PROTOCOLS
            specs = _register_protocols(entry, manager, patience)
        step = "looking at its protocols"
        for spec in specs:
            watched(functools.partial(_look_at_spec, entry, spec), patience, step)
    except KeyboardInterrupt as error:
        error.add_note(f"interrupted at {entry}: {step}{last_place(frames_of(error))}")
        raise
    except UnusableError as fault:
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


def _entry_point_remedy(entry: Entry) -> str:
    assert entry.point is not None
    return (
        f"reinstall {entry.distribution} (it is in {entry.folder}), or mend the line "
        f"{entry.name} = {entry.point.value!r} of [project.entry-points.{GROUP}] in its "
        "pyproject.toml"
    )


def _authors(entry: Entry) -> str:
    return (
        f"mend it there, tell the authors of {entry.distribution}, or uninstall it: "
        f"pip uninstall {entry.distribution}"
    )


def _remedy(entry: Entry, error: BaseException) -> str:
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
    if isinstance(error, AttributeError) and not frames_of(error):
        return _entry_point_remedy(entry)  # the object is not there
    return _authors(entry)


def _look_at_version(entry: Entry, plugin: object) -> None:
    assert entry.point is not None
    # Of an object, a spec for example, its module may say it.
    module = sys.modules.get(entry.point.module)
    owner: object = plugin if hasattr(plugin, API_VERSION_ATTRIBUTE) else module
    built_for: object = getattr(owner, API_VERSION_ATTRIBUTE, API_VERSION)
    _check_version(entry, built_for, place_assigned(module, API_VERSION_ATTRIBUTE))


def _declared_for_another(entry: Entry) -> UnusableError | None:
    """What is wrong with the version that a plugin's source says it was built for, whether or not
    it can be imported: that may be why it cannot."""
    assert entry.point is not None
    found = declared(entry.point.module, API_VERSION_ATTRIBUTE)
    if found is None:
        return None
    try:
        _check_version(entry, found.value, f" ({found.path}:{found.line})")
    except UnusableError as fault:
        return fault
    return None


def _check_version(entry: Entry, built_for: object, where: str) -> None:
    """Raise :class:`UnusableError` for another version than that of this protoserve."""
    if type(built_for) is not int:
        raise UnusableError(
            f"{API_VERSION_ATTRIBUTE} is {one_line(repr(built_for))}{where}: "
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
        raise UnusableError(
            f"{entry.distribution} {entry.version} was built for version {built_for} of the "
            f"plugin API; this protoserve has version {API_VERSION} (it is protoserve "
            f"{own_version()}){where}",
            remedy,
        )


def _manage(entry: Entry, plugin: object) -> pluggy.PluginManager:
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
    for name in HOOKS:
        if name in routines and name not in marked:
            raise UnusableError(
                f"{name} is not marked with protoserve.hookimpl{place_of(routines[name])}",
                "put @hookimpl above it, of: from protoserve import hookimpl",
            )
    if not marked:
        path = place_of(plugin) if isinstance(plugin, ModuleType) else ""
        raise UnusableError(
            f"{kind_of(plugin)} {entry.point.value!r} has no {REGISTER_PROTOCOLS} that is marked "
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
        if culprit in HOOKS:
            remedy = f"its arguments are {', '.join(HOOKS[culprit])}, or some of them"
        else:
            close = difflib.get_close_matches(culprit, HOOKS, 1, 0.0)
            remedy = f"did you mean {close[0]}?" if close else "name it after a hook"
        where = place_of(marked[culprit]) if culprit else ""
        raise UnusableError(
            f"misspelt or misused hook: {one_line(message)}{where}",
            f"{remedy}; see {_DOCUMENT} of protoserve",
        ) from error
    return manager


def _register_protocols(
    entry: Entry, manager: pluggy.PluginManager, patience: float
) -> list[ProtocolSpec[Any, Any]]:
    register = Registration[ProtocolSpec[Any, Any]]("ProtocolSpec", _look_at_registered)
    call_hook(manager, REGISTER_PROTOCOLS, patience, register, register=register)
    impls = impls_of(manager, REGISTER_PROTOCOLS)
    if impls and not register.found:
        raise UnusableError(
            "it registered no protocol: call register(spec) in its hook"
            f"{place_of(impls[0].function)}",
            "call register(spec) before the hook returns, not in a thread or a callback of it",
        )
    return register.found


def _look_at_registered(spec: object, found: list[ProtocolSpec[Any, Any]]) -> None:
    if not isinstance(spec, ProtocolSpec):
        raise TypeError(f"register({spec!r}): expected a ProtocolSpec")
    if spec.name in [other.name for other in found]:
        raise PluginError(f"protocol {spec.name!r} is registered twice")


def _look_at_spec(entry: Entry, spec: ProtocolSpec[Any, Any]) -> None:
    """Raise :class:`UnusableError` for what would fail with the first connection, or on the
    command line."""
    try:
        own_options(spec.params)
    except ConfigError as error:
        raise UnusableError(
            f"protocol {spec.name!r}: {error}{place_of(type(spec.params))}", _authors(entry)
        ) from error
    try:
        try_parser(spec.name, lambda: spec.message_in(spec.params))
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            return  # it cannot work with the defaults, and will say so to who gives it others
        # Not that of the error, which is raised here.
        where = last_place(frames_of(cause)) if cause is not None else ""
        raise UnusableError(
            f"{one_line(str(error))}{where or place_of(spec.message_in)}", _authors(entry)
        ) from error
