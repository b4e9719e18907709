"""Server processes: started on one core, accounted with all their children, always ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]
"""The same core when the machine has one only; the report says so."""


class ServerProcess:
    """A server and its descendants."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._log = log
        self.port = port

    def check(self) -> None:
        """Raise ``RuntimeError`` with the server's last words when it has ended."""
        if self._process.poll() is not None:
            words = self._log.read_text(errors="replace").strip()[-2000:]
            raise RuntimeError(f"the server ended with {self._process.returncode}: {words}")

    def cpu_clock(self) -> Callable[[], float]:
        """Gives the user and system time so far of the processes that there are now, in seconds,
        to the nanosecond; ``RuntimeError`` once one of them has ended, whose time is lost. It is
        quick: it may be read while they are under load."""
        tree = self._tree()
        return lambda: sum(map(_cpu_clock, tree))

    def cpu_seconds(self) -> float:
        """User and system time of the process tree so far, in seconds, to the nanosecond."""
        seconds = 0.0
        for pid in self._tree():
            with suppress(RuntimeError):  # it has ended meanwhile
                seconds += _cpu_clock(pid)
        return seconds

    def resident_bytes(self) -> int:
        """Resident memory of the process tree, in bytes: counted, not the kernel's estimate."""
        return sum(map(_resident, self._tree()))

    def _tree(self) -> set[int]:
        """The process and its descendants."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    text = (entry / "stat").read_text()
                except OSError:  # it has ended meanwhile
                    continue
                parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
        tree = {self._process.pid}
        while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
            tree |= more
        return tree

    def stop(self) -> None:
        """End the whole group, gently first."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(5)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


def _cpu_clock(pid: int) -> float:
    # What clock_getcpuclockid(3) gives on Linux, which Python does not have for processes.
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        raise RuntimeError("a process of the server ended") from None


def _resident(pid: int) -> int:
    try:
        said = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended meanwhile
        return 0
    found = re.search(r"^Rss:\s+(\d+) kB$", said, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, directory: Path) -> Iterator[ServerProcess]:
    """Run ``command`` on the server's core; ended with the block, whatever happens."""
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a group of its own: Ctrl-C is ours to handle
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
    server = ServerProcess(process, port, log)
    try:
        yield server
    finally:
        server.stop()
