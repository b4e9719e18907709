"""The hooks that a plugin may implement, each with its contract.

A plugin is a module (or object) named by an entry point of the group ``protoserve``; what
has just one protocol may name its ``ProtocolSpec`` there instead.
Hooks run at start-up and at the stop only, never on the way of a request.
``docs/hooks.md`` has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pluggy

from protoserve.protocol import ProtocolSpec

if TYPE_CHECKING:
    from protoserve.events import Event
    from protoserve.server import WFServer

PROJECT_NAME: Final = "protoserve"
"""The pluggy project name, and the entry-point group that is searched."""

API_VERSION: Final = 1
"""The version of this contract. A plugin that sets ``PROTOSERVE_API_VERSION`` to another
number is listed with that reason and not used."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a plugin's implementations of these hooks."""


@hookspec
def protoserve_register_protocols(register: Callable[[ProtocolSpec[Any, Any]], None]) -> None:
    """Register the plugin's protocols: call ``register(spec)`` once for each.

    ``register`` raises ``TypeError`` for something that is no ``ProtocolSpec``, and
    :class:`~protoserve.errors.PluginError` for a name that this plugin has registered
    already or when the hook has returned. A plugin is registered as a whole: if one
    protocol is refused, here or because another plugin has its name, none is used.

    A plugin that implements this hook and registers nothing is listed as failed. One that has
    a single protocol may do without: an entry point that names the ``ProtocolSpec`` itself, as
    ``module:OBJECT``, is enough.

    Name the entry point after the protocol: then the plugin is imported only when that
    protocol is asked for, and has that name before plugins of other names.

    Called once, when the plugin is loaded, in a thread of its own. One that takes more than ten
    seconds is not waited for.
    """


@hookspec
def protoserve_register_observers(
    register: Callable[[Callable[[Event], object]], None], server: WFServer[Any, Any]
) -> None:
    """Watch a server: call ``register(observer)`` once for each observer, which is then called
    with each :mod:`event <protoserve.events>` of ``server``, as ``server.subscribe`` does it.

    ``register`` raises ``TypeError`` for what cannot be called, and
    :class:`~protoserve.errors.PluginError` when the hook has returned. When the hook raises,
    none of its observers is used, and the server starts all the same.

    Called by ``protoserve run``, for the plugin of the protocol that is served and for those
    that ``--plugin`` names, once for each server, before that starts: its ``params`` and
    ``spec`` are known, its address is not. In a thread of its own; one that takes more than
    ten seconds is not waited for. Observers are called on the engine's threads: see
    :mod:`protoserve.events`.
    """


@hookspec
def protoserve_server_started(server: WFServer[Any, Any]) -> None:
    """A server listens: ``server.url`` is its address. Connections may be there already; what
    is to be ready before the first belongs in ``protoserve_register_observers``.

    Called as that is, once for each start. What it raises is logged; the server goes on.
    """


@hookspec
def protoserve_server_stopped(server: WFServer[Any, Any]) -> None:
    """A server has stopped: the last connection has ended, and the application's ``on_stop``.

    Called as ``protoserve_server_started`` is, once for each call of that, whether it raised
    or not. The place to write what was gathered, and to close what was opened.
    """
