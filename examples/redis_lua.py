"""Scripts that stay within their bounds: a part of ``redis_full.py``.

fakeredis runs scripts in one Lua with all its libraries, in which a script reaches the
operating system, Python, and what other scripts find. Here each has its own surroundings
and only what Redis 7.0 gives it; an endless loop is not ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from fakeredis._helpers import SimpleError
from fakeredis.commands_mixins.scripting_mixin import LUA_MODULE, _convert_redis_arg

LuaError: type[Exception] = LUA_MODULE.LuaError

NOT_COMPILED = "ERR Error compiling script (new function)"
"""What an error's text begins with."""

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

# What a script returns, without its metatables, which would run scripts' code for a look
# into it. A table within itself is too deep.
_PLAIN = rb"""
    local next, rawget, type = next, rawget, type
    local function plain(value, depth)
        if type(value) ~= "table" then return value end
        if depth == 100 then error("reached lua stack limit", 0) end
        local copy = {}
        for _, name in ipairs({"ok", "err", "double"}) do copy[name] = rawget(value, name) end
        local map = rawget(value, "map")
        if type(map) == "table" then
            copy.map = {}
            for key, item in next, map do copy.map[key] = plain(item, depth + 1) end
        end
        local place = 1
        while rawget(value, place) ~= nil do
            copy[place] = plain(rawget(value, place), depth + 1)
            place = place + 1
        end
        return copy
    end
"""

_SURROUNDINGS = (
    rb"""
function(version, call, call_protected, sha1hex, text_of)
"""
    + _PLAIN
    + rb"""
    local all, collect, clock = _G, collectgarbage, os.clock
    local getinfo, pcall, select, xpcall = debug.getinfo, pcall, select, xpcall
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
    -- Python's, not Lua's own, whose tail calls would leave no trace of the line.
    libraries.redis.sha1hex = sha1hex
    libraries.redis.call = call
    libraries.redis.pcall = call_protected
    libraries.redis.replicate_commands = function() return true end
    libraries.redis.REDIS_VERSION = version

    local error, loadstring, pairs, rawset = error, loadstring, pairs, rawset
    local getmetatable, setfenv, setmetatable = getmetatable, setfenv, setmetatable
    local tostring = tostring

    local function caught(ok, reason, ...)
        if ok then
            return ok, reason, ...
        elseif type(reason) == "userdata" then
            return ok, text_of(reason) or error(reason)
        elseif type(reason) == "table" then
            return ok, rawget(reason, "err") or reason
        end
        return ok, reason
    end
    base.pcall = function(...) return caught(pcall(...)) end

    local function failed(reason)
        local level, line = 2, nil
        while not line do
            local info = getinfo(level, "Sl")
            if not info then break end
            line = info.source == "@user_script" and info.currentline
            level = level + 1
        end
        if type(reason) == "userdata" then
            reason = {err = text_of(reason), exception = reason}
        elseif type(reason) ~= "table" then
            reason = {err = "ERR " .. tostring(reason)}
        end
        return {err = rawget(reason, "err"), line = line, exception = rawget(reason, "exception")}
    end

    local function ended(ok, value)
        if ok then value = plain(value, 0) end
        return ok, value
    end

    local function readonly() error("Attempt to modify a readonly table", 2) end
    base.rawset = function(table, ...)
        if getmetatable(table) == false then error("Attempt to modify a readonly table", 0) end
        return rawset(table, ...)
    end
    local views = {}
    for name, library in pairs(libraries) do
        views[name] = {__index = library, __newindex = readonly, __metatable = false}
    end

    local function surroundings()
        return setmetatable({KEYS = all.KEYS, ARGV = all.ARGV}, {
            __index = function(own, name)
                if views[name] then
                    -- A new one: what the script does to it is gone with it.
                    local view = setmetatable({}, views[name])
                    rawset(own, name, view)
                    return view
                elseif name == "_G" then
                    return own
                elseif base[name] == nil then
                    error("Script attempted to access nonexistent global variable '"
                        .. tostring(name) .. "'", 2)
                end
                return base[name]
            end,
            __newindex = readonly,
            __metatable = false,
        })
    end

    return function(script)
        local run, reason = loadstring(script, "@user_script")
        if not run then error(reason, 0) end
        return setfenv(run, surroundings())
    end, function(run) return ended(xpcall(run, failed)) end, collect
end
"""
)

_FLAGS = {"no-writes", "allow-oom", "allow-stale", "no-cluster", "allow-cross-slot-keys"}


def flags_of(script: bytes) -> set[str] | None:
    """The flags in the first line of a script, ``#!lua flags=no-writes``; None where it has no
    such line. Raises ``SimpleError`` for one that is wrong."""
    if not script.startswith(b"#!"):
        return None
    first, newline, _ = script.partition(b"\n")
    if not newline:
        raise SimpleError("ERR Invalid script shebang")
    engine, *options = first.decode("utf-8", "surrogateescape").split()
    if engine != "#!lua":
        raise SimpleError(f"ERR Unexpected engine in script shebang: {engine}")
    flags: set[str] = set()
    for option in options:
        if not option.startswith("flags="):
            raise SimpleError(f"ERR Unknown lua shebang option: {option}")
        flags.update(option.removeprefix("flags=").split(","))
    if unknown := flags - _FLAGS - {""}:
        raise SimpleError(f"ERR Unexpected flag in script shebang: {min(unknown)}")
    return flags


def undressed(lua: Any) -> Any:
    """A function of a Lua: what a function of a library returns, without metatables."""
    return lua.eval(
        b"(function()" + _PLAIN + b"return function(value) return plain(value, 0) end end)()"
    )


def close(lua: Any) -> None:
    """Take from a Lua what leads out of it."""
    lua.eval(_CLOSE)(close)


class Sandbox:
    """A Lua of fakeredis, as far as fakeredis uses one, in which each script has surroundings
    of its own. ``call(*words)`` is ``redis.call``, and raises ``SimpleError``."""

    def __init__(self, lua: Any, version: str, call: Callable[..., Any]) -> None:
        self._lua = lua

        def call_protected(*words: Any) -> Any:
            try:
                return call(*words)
            except SimpleError as error:
                return lua.table_from({b"err": _text_of(error)})

        self._compile, self._run, self._collect = lua.eval(_SURROUNDINGS)(
            version.encode(), call, call_protected, _sha1hex, _text_of
        )
        close(lua)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lua, name)

    def compiled(self, script: bytes) -> Any:
        """A script as a function. Raises ``SimpleError`` for what is none."""
        # Without its first line, whose end stays: lines are counted.
        body = script if flags_of(script) is None else script[script.index(b"\n") :]
        try:
            return self._compile(body)
        except LuaError as error:
            raise SimpleError(f"{NOT_COMPILED}: {_message(error)}") from None

    def execute(self, script: bytes | str) -> Any:
        """Run a script, and a line of fakeredis' own. Raises ``SimpleError`` in Redis'
        words."""
        if script == "collectgarbage()":
            return self._collect()
        assert isinstance(script, bytes), script
        run = self.compiled(script)
        try:
            ended, value = self._run(run)
        except LuaError as error:  # of what it returned
            raise SimpleError(f"ERR {_message(error)}") from None
        if ended:
            return value
        text, line = value[b"err"], value[b"line"]
        if isinstance(value[b"exception"], Exception) and text is None:
            raise value[b"exception"]
        if not isinstance(text, bytes):
            text = b"ERR unknown error"
        where = f"user_script:{line}" if line else "user_script"
        digest = hashlib.sha1(script).hexdigest()
        words = text.decode("utf-8", "surrogateescape")
        raise SimpleError(f"{words} script: {digest}, on @{where}.")


def _text_of(error: Exception) -> bytes | None:
    """What a script sees of an error; None for one that is none of Redis'."""
    if not isinstance(error, SimpleError):
        return None
    return error.value.encode("utf-8", "surrogateescape")


def _sha1hex(*words: Any) -> bytes:
    if len(words) != 1:
        raise SimpleError("ERR wrong number of arguments")
    return hashlib.sha1(_convert_redis_arg(words[0])).hexdigest().encode()


def _message(error: Exception) -> str:
    return str(error).partition("\nstack traceback")[0]
