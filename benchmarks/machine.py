"""Facts about the machine that belong beside the figures."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import CLIENT_CORE, CORES, SERVER_CORE, ServerProcess

QUIET = 0.03
"""The share of the processors that others may take before the figures say little."""

_IDLE = (3, 4)
"""Idle, and waiting for a disk: which of the times in ``/proc/stat``; the eighth is what other
guests of the same host took."""


class Others:
    """The share of the processors that is taken by what this process did not start.
    ``servers`` are those that still run when the share is asked for."""

    def __init__(self, servers: Sequence[ServerProcess] = ()) -> None:
        self._servers = servers
        self._began = self._now()

    def share(self) -> float:
        """Since this was made; clients that still run count as others."""
        whole, busy, ours = (
            now - then for now, then in zip(self._now(), self._began, strict=True)
        )
        return max(0.0, busy - ours) / whole if whole else 0.0

    def _now(self) -> tuple[float, float, float]:
        words = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        times = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
        used = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        ours = sum(usage.ru_utime + usage.ru_stime for usage in used)
        ours += sum(server.cpu_seconds() for server in self._servers)
        return sum(times), sum(times) - sum(times[n] for n in _IDLE), ours


def _tools() -> str:
    """The load generators' versions."""
    said = []
    for command in (["wrk", "-v"], ["h2load", "--version"], ["redis-benchmark", "--version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError:
            continue
        found = re.search(r"\d+\.\d+[\w.]*", done.stdout)
        said.append(f"{command[0]} {found[0] if found else ''}".strip())
    return ", ".join(said)


def facts() -> list[str]:
    """One fact a line."""

    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    cores = f"server on core {SERVER_CORE}, client on core {CLIENT_CORE}"
    if SERVER_CORE == CLIENT_CORE:
        cores = "**one core only**: server and client share it, so rates and p99 say little"
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    release = re.match(r"\d+\.\d+", platform.release())
    return [
        f"CPU: {found[1] if found else platform.machine()}, {len(CORES)} cores; {cores}",
        f"{platform.system()} {release[0] if release else ''}, "
        f"{platform.python_implementation()} {platform.python_version()}"
        + ("" if optimised else " (built without profile-guided optimisation)"),
        f"Load: {_tools()}",
    ]
