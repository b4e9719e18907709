"""Scripts that stay within their bounds: a part of ``redis_full.py``.

fakeredis runs scripts in one Lua with all its libraries, in which a script reaches the
operating system, Python, and what other scripts find. Here each has its own surroundings
and only what Redis 7.0 gives it; an endless loop is not ended.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from fakeredis._helpers import SimpleError
from fakeredis.commands_mixins.scripting_mixin import LUA_MODULE

LuaError: type[Exception] = LUA_MODULE.LuaError

# Python's objects, such as `redis.call`, can be called but not looked into; an exception,
# which `pcall` of a script may get, tells its text.
_CLOSE = rb"""
function(object)
    local meta = getmetatable(object)
    local tostring, error = tostring, error
    function meta.__index(own, name)
        if name == "err" then return tostring(own) end
        error("it has no fields")
    end
    function meta.__newindex() error("it has no fields") end
    meta.__metatable = false
    getmetatable("").__metatable = false
    string.dump = nil
    for _, name in ipairs({
        "debug", "dofile", "getfenv", "io", "load", "loadfile", "loadstring", "module",
        "newproxy", "os", "package", "python", "require", "setfenv",
    }) do _G[name] = nil end
end
"""

_SURROUNDINGS = rb"""
function(sha1hex, version)
    local all, collect, clock = _G, collectgarbage, os.clock
    local base, libraries = {}, {}
    for _, name in ipairs({
        "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal",
        "rawget", "rawset", "select", "setmetatable", "tonumber", "tostring", "type", "unpack",
        "xpcall", "_VERSION",
    }) do base[name] = all[name] end
    for _, name in ipairs({"cjson", "coroutine", "math", "redis", "string", "table"}) do
        libraries[name] = {}
        for key, value in pairs(all[name]) do libraries[name][key] = value end
    end
    libraries.string.dump = nil
    libraries.os = {clock = clock}
    libraries.redis.sha1hex = function(text) return sha1hex(tostring(text)) end
    libraries.redis.replicate_commands = function() return true end
    libraries.redis.REDIS_VERSION = version

    local error, loadstring, pairs, rawset = error, loadstring, pairs, rawset
    local setfenv, setmetatable, tostring = setfenv, setmetatable, tostring

    local function surroundings()
        return setmetatable({KEYS = all.KEYS, ARGV = all.ARGV}, {
            __index = function(own, name)
                if libraries[name] then
                    -- A copy: what the script does to it is gone with it.
                    local copy = {}
                    for key, item in pairs(libraries[name]) do copy[key] = item end
                    rawset(own, name, copy)
                    return copy
                elseif base[name] == nil then
                    error("Script attempted to access nonexistent global variable '"
                        .. tostring(name) .. "'", 2)
                end
                return base[name]
            end,
            __newindex = function() error("Attempt to modify a readonly table", 2) end,
            __metatable = false,
        })
    end

    return function(script)
        local run, reason = loadstring(script, "@user_script")
        if not run then error(reason, 0) end
        return setfenv(run, surroundings())
    end, collect
end
"""


def close(lua: Any) -> None:
    """Take from a Lua what leads out of it."""
    lua.eval(_CLOSE)(close)


class Sandbox:
    """A Lua of fakeredis, as far as fakeredis uses one, in which each script has surroundings
    of its own."""

    def __init__(self, lua: Any, version: str) -> None:
        self._lua = lua
        self._compile, self._collect = lua.eval(_SURROUNDINGS)(
            lambda text: hashlib.sha1(text).hexdigest().encode(), version.encode()
        )
        close(lua)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lua, name)

    def execute(self, script: bytes | str) -> Any:
        """Run a script, and a line of fakeredis' own. Raises ``SimpleError`` in Redis'
        words."""
        if script == "collectgarbage()":
            return self._collect()
        assert isinstance(script, bytes), script
        try:
            run = self._compile(script)
        except LuaError as error:
            raise SimpleError(
                f"ERR Error compiling script (new function): {_message(error)}"
            ) from None
        try:
            return run()
        except LuaError as error:
            text = _message(error)
            place = re.match(r"user_script:\d+", text)
            where = place.group() if place else "user_script"
            digest = hashlib.sha1(script).hexdigest()
            raise SimpleError(f"ERR {text} script: {digest}, on @{where}.") from None


def _message(error: Exception) -> str:
    return str(error).partition("\nstack traceback")[0]
