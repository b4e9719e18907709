"""Server processes: started on one core, accounted with all their children, always ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

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

    def cpu_seconds(self) -> float:
        """User and system time of the process tree so far, in seconds (10 ms steps)."""
        # utime, stime, and those of children that ended: fields 14 to 17 of proc(5)
        ticks = sum(sum(map(int, fields[11:15])) for fields in self._tree())
        return ticks / TICKS

    def resident_bytes(self) -> int:
        """Resident memory of the process tree, in bytes."""
        return sum(int(fields[21]) for fields in self._tree()) * PAGE

    def _tree(self) -> list[list[str]]:
        """The fields of ``/proc/PID/stat`` after the name, of the whole tree."""
        stats: dict[int, list[str]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    text = (entry / "stat").read_text()
                except OSError:  # it has ended meanwhile
                    continue
                stats[int(entry.name)] = text.rpartition(")")[2].split()
        tree = {self._process.pid}
        while more := {pid for pid, f in stats.items() if int(f[1]) in tree} - tree:
            tree |= more
        return [stats[pid] for pid in tree if pid in stats]

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
