"""The installed plugins: found by entry point, loaded one by one, each kept apart.

A plugin that is broken in whatever way costs nobody but itself: it is listed with the
reason, and with what to do about it. Nothing here runs on the way of a request.
"""

from protoserve.plugins.entries import GROUP, InstalledPlugin, own_version
from protoserve.plugins.loading import API_VERSION_ATTRIBUTE
from protoserve.plugins.places import describe, kind_of
from protoserve.plugins.registry import (
    HOOK_PATIENCE,
    PluginHooks,
    PluginRegistry,
    installed_plugins,
    load_hooks,
    load_protocol,
)

__all__ = [
    "API_VERSION_ATTRIBUTE",
    "GROUP",
    "HOOK_PATIENCE",
    "InstalledPlugin",
    "PluginHooks",
    "PluginRegistry",
    "describe",
    "installed_plugins",
    "kind_of",
    "load_hooks",
    "load_protocol",
    "own_version",
]
