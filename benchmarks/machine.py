"""Facts about the machine that belong beside the figures."""

from __future__ import annotations

import platform
import re
import sysconfig
from pathlib import Path

from benchmarks.processes import CLIENT_CORE, CORES, SERVER_CORE


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
    ]
