"""INFO: what the server tells of itself, as clients and their libraries look for it."""

from __future__ import annotations

import os
import platform
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protoserve import ConfigError
from protoserve_redis.command import check_hook
from protoserve_redis.values import Verbatim

if TYPE_CHECKING:
    from protoserve_redis.commands import CommandTable

Facts = Callable[[], Mapping[str, Any]]
"""Returns the lines of a section of INFO, name by value."""

F = TypeVar("F", bound=Facts)

_EVERY: Final = frozenset({"all", "everything", "default"})


class Information:
    """The sections of INFO, each from functions that give their facts when they are asked.
    They are called under the table's lock."""

    def __init__(self, table: CommandTable) -> None:
        self._table = table
        self._began = time.time()
        self._run_id = secrets.token_hex(20)
        self._sections: dict[str, list[Facts]] = {}
        for section, facts in (
            ("server", self._server),
            ("clients", self._clients),
            ("memory", self._memory),
            ("persistence", self._persistence),
            ("stats", self._stats),
            ("replication", self._replication),
            ("cpu", self._cpu),
            ("modules", dict),
            ("cluster", lambda: {"cluster_enabled": 0}),
            ("keyspace", dict),
        ):
            self._sections[section] = [facts]

    def add(self, section: str) -> Callable[[F], F]:
        """Add facts to a section; a new one comes last. Raises ``ConfigError`` for what is
        no name of a section, or no function."""
        if not isinstance(section, str):
            raise ConfigError(
                f'info({section!r}): expected a section\'s name, as in @commands.info("keyspace")'
            )

        def register(facts: F) -> F:
            check_hook(f"info({section!r})", facts, 0)
            self._sections.setdefault(section.lower(), []).append(facts)
            return facts

        return register

    def text(self, wanted: tuple[str, ...]) -> str:
        """The sections that are wanted, all by default."""
        every = not wanted or not _EVERY.isdisjoint(wanted)
        shown = []
        for section, parts in self._sections.items():
            if every or section in wanted:
                lines = [f"# {section.capitalize() if section != 'cpu' else 'CPU'}"]
                for facts in parts:
                    lines += [f"{name}:{value}" for name, value in facts().items()]
                shown.append("\r\n".join(lines) + "\r\n")
        return "\r\n".join(shown)

    def _server(self) -> dict[str, Any]:
        up = int(time.time() - self._began)
        system = platform.uname()
        return {
            "redis_version": self._table.server_version,
            "redis_git_sha1": "00000000",
            "redis_git_dirty": 0,
            "redis_build_id": "0",
            "redis_mode": "standalone",
            "os": f"{system.system} {system.release} {system.machine}",
            "arch_bits": 64 if sys.maxsize > 2**32 else 32,
            "process_id": os.getpid(),
            "run_id": self._run_id,
            "tcp_port": self._port(),
            "server_time_usec": time.time_ns() // 1000,
            "uptime_in_seconds": up,
            "uptime_in_days": up // 86400,
            "hz": 10,
            "configured_hz": 10,
            "executable": sys.executable,
            "config_file": "",
        }

    def _port(self) -> int:
        for connection in self._table.connections():
            address = getattr(connection.service, "address", None)
            if isinstance(address, tuple):
                return int(address[1])
        return 0

    def _clients(self) -> dict[str, Any]:
        connections = self._table.connections()
        # Not those that have left, and of whom what they waited for does not know yet.
        blocked = [c for c in connections if c.state.blocked is not None and not c.peer_ended]
        return {
            "connected_clients": len(connections),
            "cluster_connections": 0,
            "maxclients": _most(connections),
            "blocked_clients": len(blocked) + self._table.pause.waiting,
            "tracking_clients": len(self._table.tracking.clients),
        }

    def _memory(self) -> dict[str, Any]:
        used = _resident()
        return {
            "used_memory": used,
            "used_memory_human": _human(used),
            "used_memory_rss": used,
            "used_memory_rss_human": _human(used),
            "maxmemory": 0,
            "maxmemory_human": "0B",
            "maxmemory_policy": "noeviction",
        }

    def _persistence(self) -> dict[str, Any]:
        return {
            "loading": 0,
            "async_loading": 0,
            "rdb_changes_since_last_save": 0,
            "rdb_bgsave_in_progress": 0,
            "rdb_last_save_time": int(self._began),
            "rdb_last_bgsave_status": "ok",
            "aof_enabled": 0,
            "aof_rewrite_in_progress": 0,
        }

    def _stats(self) -> dict[str, Any]:
        subscriptions = self._table.subscriptions
        connections, requests = self._table.served()
        return {
            "total_connections_received": connections,
            "total_commands_processed": requests,
            "pubsub_channels": len(subscriptions.channels),
            "pubsub_patterns": len(subscriptions.patterns),
            "pubsubshard_channels": len(subscriptions.shards),
            "tracking_total_keys": self._table.tracking.key_count,
            "tracking_total_items": self._table.tracking.item_count,
            "tracking_total_prefixes": self._table.tracking.prefix_count,
        }

    def _replication(self) -> dict[str, Any]:
        return {
            "role": "master",
            "connected_slaves": 0,
            "master_failover_state": "no-failover",
            "master_replid": self._run_id,
            "master_replid2": "0" * 40,
            "master_repl_offset": 0,
            "second_repl_offset": -1,
            "repl_backlog_active": 0,
        }

    def _cpu(self) -> dict[str, Any]:
        times = os.times()
        return {
            "used_cpu_sys": f"{times.system:.6f}",
            "used_cpu_user": f"{times.user:.6f}",
            "used_cpu_sys_children": f"{times.children_system:.6f}",
            "used_cpu_user_children": f"{times.children_user:.6f}",
        }


def _most(connections: list[Any]) -> int:
    for connection in connections:
        most = connection.service.params.max_connections
        return 0 if most is None else int(most)
    return 0


def _resident() -> int:
    """Bytes that the process has in memory, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _human(size: float) -> str:
    if size < 1024:
        return f"{size:.0f}B"
    units = iter("KMGT")
    unit = next(units)
    size /= 1024
    while size >= 1024 and unit != "T":
        size /= 1024
        unit = next(units)
    return f"{size:.2f}{unit}"


def register(table: CommandTable) -> None:
    """Put INFO into a table."""

    @table.command(
        "INFO",
        -1,
        ("loading", "stale"),
        group="server",
        summary="Tells about the server.",
    )
    def info(task: Any, *sections: bytes) -> Any:
        wanted = tuple(section.decode("latin-1").lower() for section in sections)
        return Verbatim(table.information.text(wanted))
