"""The plugins of one environment, and which of them serves which protocol."""

from __future__ import annotations

import contextvars
import difflib
import logging
import threading
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import pluggy

from protoserve.errors import PluginError
from protoserve.plugins.calling import Registration, call_hook
from protoserve.plugins.entries import Entry, InstalledPlugin, UnusableError, registered_at, search
from protoserve.plugins.loading import load_entry
from protoserve.plugins.places import describe
from protoserve.protocol import ProtocolSpec

if TYPE_CHECKING:
    from protoserve.events import Event
    from protoserve.server import WFServer

logger = logging.getLogger("protoserve")

HOOK_PATIENCE: Final = 10.0
"""Seconds that a hook is waited for: it is code of others, and nothing else goes on meanwhile."""

_loading: Final = contextvars.ContextVar("protoserve_loading", default=False)
"""Whether a plugin's code runs that is being loaded."""


class PluginHooks:
    """What plugins do beside the servers of one program; made by :func:`load_hooks`.

    Whatever a hook does, it goes no further than a line in the log: the server starts, serves
    and stops without that plugin. Any thread; blocks for as long as the hooks do, ten seconds
    at most for each.
    """

    def __init__(self, entries: Iterable[Entry], patience: float) -> None:
        self._managers = [(str(entry), entry.manager) for entry in entries if entry.manager]
        self._patience = patience

    def observe(self, server: WFServer[Any, Any]) -> None:
        """Subscribe the plugins' observers. Before ``server`` starts."""
        for who, manager in self._managers:
            register = Registration("observer", _look_at_observer)
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
        registration: Registration[Any] | None = None,
        **arguments: object,
    ) -> bool:
        """Whether the hook did what it should."""
        try:
            call_hook(manager, name, self._patience, registration, **arguments)
        except KeyboardInterrupt:
            raise
        except UnusableError as fault:
            logger.error("%s: %s; %s", who, fault.reason, fault.remedy)
        except BaseException as error:
            logger.debug("%s: %s raised", who, name, exc_info=True)
            logger.error("%s: %s raised %s; it goes on without it", who, name, describe(error))
        else:
            return True
        return False


def _look_at_observer(observer: object, found: list[Callable[[Event], object]]) -> None:
    if not callable(observer):
        raise TypeError(f"register({observer!r}): an observer is called with each event")


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
        self._entries: list[Entry] | None = None
        self._owners: dict[str, Entry] | None = None

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

    def _owner(self, name: str) -> Entry:
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

    def _named(self, name: str) -> Entry:
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

    def _find(self) -> list[Entry]:
        if self._entries is None:
            self._entries = sorted(search(self._distributions()), key=Entry.order)
        return self._entries

    def _load(self, entry: Entry) -> None:
        if entry.loaded:
            return
        token = _loading.set(True)
        try:
            load_entry(entry, self._patience)
        finally:
            _loading.reset(token)

    def _settle(self) -> dict[str, Entry]:
        """Load every plugin, and give each protocol name to one of them."""
        if self._owners is None:
            entries = self._find()
            for entry in entries:
                self._load(entry)
            owners: dict[str, Entry] = {}
            for entry in sorted(entries, key=lambda entry: not entry.plain):
                taken = [spec.name for spec in entry.specs if spec.name in owners]
                if taken:
                    entry.fail(
                        f"protocol {taken[0]!r} is taken by {owners[taken[0]]}",
                        f"uninstall one of the two, or ask for a release of {entry.distribution} "
                        f"that gives another name{registered_at(entry)}",
                    )
                owners |= {spec.name: entry for spec in entry.specs}
            self._owners = owners
        return self._owners

    def _explain(self, name: str, owners: dict[str, Entry]) -> str:
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


_registry: Final = PluginRegistry()


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


def load_hooks(protocol: str | None, names: Iterable[str] = ()) -> PluginHooks:
    """What the plugin that serves ``protocol`` does beside a server, and then the plugins of
    these names, which are those of entry points. ``None``: a protocol that is of no plugin.

    Imports these plugins, and others as ``load_protocol`` does. Any thread, but not while a
    plugin is being imported. Raises :class:`~protoserve.errors.PluginError` for a name that is
    not installed, and for a plugin that cannot be used.
    """
    return _registry.load_hooks(protocol, names)
