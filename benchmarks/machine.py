"""Facts about the machine that belong beside the figures."""

from __future__ import annotations

import platform
import re
import subprocess
import sysconfig
import time
from pathlib import Path

from benchmarks.processes import CLIENT_CORE, CORES, SERVER_CORE

QUIET = 0.03
"""The share of the processors that may be busy before a run."""


def _busy(seconds: float) -> float:
    """The share of the processors' time that others take, the host's other guests among them."""

    def ticks() -> tuple[int, int]:
        times = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(times), times[3] + times[4]  # idle, and waiting for a disk

    whole, idle = ticks()
    time.sleep(seconds)
    whole_after, idle_after = ticks()
    return 1 - (idle_after - idle) / max(1, whole_after - whole)


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
    busy = _busy(2)
    quiet = f"{busy:.1%} busy before the run"
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
        f"The machine was {quiet}" if busy <= QUIET else f"**The machine was {quiet}**",
        f"Load: {_tools()}",
    ]
