"""COMMAND: what commands there are, and what clients need to know of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from protoserve_redis.glob import glob
from protoserve_redis.serialiser import encode
from protoserve_redis.session import session_of
from protoserve_redis.values import Raw, RedisError, SimpleString, decoded

if TYPE_CHECKING:
    from protoserve_redis.command import Command
    from protoserve_redis.commands import CommandTable

_CATEGORIES: Final = (
    "@keyspace", "@read", "@write", "@set", "@sortedset", "@list", "@hash", "@string", "@bitmap",
    "@hyperloglog", "@geo", "@stream", "@pubsub", "@admin", "@fast", "@slow", "@blocking",
    "@dangerous", "@connection", "@transaction", "@scripting",
)  # fmt: skip
"""Redis' categories, in its order."""

_GROUP_CATEGORIES: Final = {
    "generic": "@keyspace",
    "sorted-set": "@sortedset",
    "transactions": "@transaction",
    "pubsub": "",  # the flag says so
}
_MORE_CATEGORIES: Final = {b"COMMAND": ("@connection",), b"INFO": ("@dangerous",)}
_NOT_KEYS: Final = frozenset({b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"SPUBLISH"})
"""What is at the place of keys in these belongs to a shard, and is none."""

_TIPS: Final = {
    "ping": ("request_policy:all_shards", "response_policy:all_succeeded"),
    "info": ("nondeterministic_output", "request_policy:all_shards", "response_policy:special"),
    "client|info": ("nondeterministic_output",),
    "client|list": ("nondeterministic_output",),
    "command": ("nondeterministic_output_order",),
    "command|info": ("nondeterministic_output_order",),
    "command|docs": ("nondeterministic_output_order",),
    "command|list": ("nondeterministic_output_order",),
}
"""What COMMAND tells clients that spread commands over servers."""


def register(table: CommandTable) -> None:
    """Put COMMAND and its subcommands into a table."""
    flags = ("loading", "stale")
    encoded: dict[tuple[bytes, int], Raw] = {}
    changes = table.changes

    def entries(task: Any, known: Iterable[Command | None]) -> list[Raw | None]:
        # Each is made once: a line of a few KB may name thousands of them.
        nonlocal changes
        if changes != table.changes:
            changes = table.changes
            encoded.clear()
        protocol = session_of(task).protocol
        found: list[Raw | None] = []
        for one in known:
            if one is None:
                found.append(None)
                continue
            entry = encoded.get((one.name, protocol))
            if entry is None:
                entry = encoded[one.name, protocol] = Raw(encode(_entry(one), protocol))
            found.append(entry)
        return found

    def about(name: str, arity: int, summary: str = "") -> Callable[[Any], Any]:
        return table.command(name, arity, flags, group="server", summary=summary, since="2.8.13")

    @about("COMMAND", -1, "Describes all commands.")
    def command(task: Any) -> list[Any]:
        return entries(task, table.commands.values())

    @about("COMMAND|COUNT", 2)
    def count(task: Any) -> int:
        return len(table.commands)

    def named(name: bytes) -> Command | None:
        parent, bar, sub = name.upper().partition(b"|")
        found = table.commands.get(parent)
        if found is None or not bar:
            return found
        return (found.subcommands or {}).get(sub)

    @about("COMMAND|INFO", -2)
    def info(task: Any, *names: bytes) -> list[Any]:
        return entries(task, map(named, names) if names else table.commands.values())

    @about("COMMAND|DOCS", -2)
    def docs(task: Any, *names: bytes) -> dict[str, Any]:
        wanted = map(named, names) if names else table.commands.values()
        each = dict.fromkeys(known for known in wanted if known is not None)
        return {known.full_name: _docs(known) for known in each}

    @about("COMMAND|LIST", -2)
    def names_of(task: Any, *args: bytes) -> list[str]:
        every = [*table.commands.values()]
        for known in table.commands.values():
            every.extend((known.subcommands or {}).values())
        if not args:
            return [known.full_name for known in every]
        kind = args[1].upper() if len(args) == 3 and args[0].upper() == b"FILTERBY" else b""
        if kind == b"MODULE":
            return []
        if kind == b"ACLCAT":
            category = "@" + decoded(args[2]).lower()
            return [known.full_name for known in every if category in _categories(known)]
        if kind == b"PATTERN":
            pattern = glob(args[2].lower())
            return [k.full_name for k in every if pattern.match(k.name.lower())]
        raise RedisError("ERR syntax error")

    def keys_in(line: tuple[bytes, ...]) -> tuple[Command, list[bytes]]:
        words = list(line)
        known = table.find(words[0])
        if known is not None and known.subcommands is not None and len(words) > 1:
            known = known.subcommands.get(words[1].upper())
        if known is None:
            raise RedisError("ERR Invalid command specified")
        if known.name in _NOT_KEYS or not (known.keys[0] or known.find_keys is not None):
            raise RedisError("ERR The command has no key arguments")
        if not known.least <= len(words) <= known.most:
            raise RedisError("ERR Invalid number of arguments specified for command")
        try:
            keys = known.keys_of(words)
        except Exception:
            raise RedisError("ERR Invalid arguments specified for command") from None
        must = known.find_keys is not None and "no_mandatory_keys" not in known.flags
        if not keys and must:
            raise RedisError("ERR The command has no key arguments")
        return known, keys

    @about("COMMAND|GETKEYS", -4)
    def getkeys(task: Any, *line: bytes) -> list[bytes]:
        return keys_in(line)[1]

    @about("COMMAND|GETKEYSANDFLAGS", -4)
    def getkeysandflags(task: Any, *line: bytes) -> list[Any]:
        known, keys = keys_in(line)
        return [[key, _in_order(_key_flags(known))] for key in keys]


def _categories(command: Command) -> list[str]:
    """The categories of access control, in the order in which Redis tells them."""
    flags = command.flags
    found = {
        category
        for flag, category in (
            ("write", "@write"),
            # Of scripts it is what they run that reads.
            ("readonly", "" if command.group == "scripting" else "@read"),
            ("admin", "@admin"),
            ("admin", "@dangerous"),
            ("pubsub", "@pubsub"),
            ("blocking", "@blocking"),
        )
        if flag in flags
    }
    found.add("@fast" if "fast" in flags else "@slow")
    found.update(_MORE_CATEGORIES.get(command.name.partition(b"|")[0], ()))
    if command.subcommands is None:  # a container's own is that of its subcommands
        group = _GROUP_CATEGORIES.get(command.group, f"@{command.group}")
        if group in _CATEGORIES:
            found.add(group)
    return [category for category in _CATEGORIES if category in found]


def _in_order(words: Iterable[str]) -> Any:
    """A set in RESP3, an array in RESP2, in one order."""
    return {SimpleString(word): None for word in words}.keys()


def _entry(command: Command) -> list[Any]:
    """One command's ten facts, as COMMAND gives them."""
    first, last, step = command.keys
    specs = [_key_spec(command)] if first else []
    subcommands = [_entry(sub) for sub in (command.subcommands or {}).values()]
    return [
        command.full_name,
        command.arity,
        _in_order(flag for flag in command.flags if flag != "may_replicate"),
        first,
        last,
        step,
        _in_order(_categories(command)),
        dict.fromkeys(_TIPS.get(command.full_name, ())).keys(),
        _Specs(specs),
        _Specs(subcommands),
    ]


class _Specs(set[Any]):
    """A set of things that Python cannot have in one: sent as a set in RESP3."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__()
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _key_flags(command: Command) -> tuple[str, ...]:
    if command.name in _NOT_KEYS:
        return ("not_key",)
    if command.name == b"WATCH":
        return ("RO",)
    return ("RO", "access") if "readonly" in command.flags else ("RW", "access", "update")


def _key_spec(command: Command) -> dict[str, Any]:
    first, last, step = command.keys
    return {
        "flags": _in_order(_key_flags(command)),
        "begin_search": {"type": "index", "spec": {"index": first}},
        "find_keys": {
            "type": "range",
            "spec": {"lastkey": last - first if last > 0 else last, "keystep": step, "limit": 0},
        },
    }


def _docs(command: Command) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "summary": command.summary,
        "since": command.since,
        "group": command.group,
    }
    if command.complexity:
        facts["complexity"] = command.complexity
    if command.subcommands:
        facts["subcommands"] = {sub.full_name: _docs(sub) for sub in command.subcommands.values()}
    return facts
