"""The hooks that a plugin may implement, each with its contract.

A plugin is a module (or object) named by an entry point of the group ``protoserve``; what
has just one protocol may name its ``ProtocolSpec`` there instead.
Hooks run at start-up only, never on the way of a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pluggy

from protoserve.protocol import ProtocolSpec

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

    A plugin that registers nothing is listed as failed. One that has a single protocol may
    do without this hook: an entry point that names the ``ProtocolSpec`` itself, as
    ``module:OBJECT``, is enough.

    Name the entry point after the protocol: then the plugin is imported only when that
    protocol is asked for, and has that name before plugins of other names.

    Called once, in the thread that asked for a protocol, when the plugin is loaded.
    """
