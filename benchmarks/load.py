"""Load generators: what sends requests and counts answers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.processes import CLIENT_CORE

CONNECTIONS = 32
RATE = 10_000
"""Requests a second of the second figure, which every server but the slowest can answer."""

_MOST_OF_IT = 0.95
"""The share of a run of wrk that no answer may take: its own limit of 2 s is beyond a short run,
and a server that is slow to some of many connections is not to be left out for that."""

_OPENING, _ENDING = 0.2, 0.1
"""Seconds at the beginning of a fixed rate, and at its end, of which nothing is counted: the
connections are opened, and closed."""

_BEGUN = 0.7
"""The share of what is to be sent in the first five bursts, where one may be late, that is sent
by a load that has begun."""

_COUNTED = re.compile(r"(\d+) (2xx|3xx|4xx|5xx|failed|errored|timeout)")

_SCRIPT = """
local requests = {%s}
local last, n = #requests, 0
request = function()
  n = n %% last + 1
  return requests[n]
end
done = function(summary, latency)
  local e = summary.errors
  local times = {}
  for i = 1, #latency do
    times[i] = string.format("[%%d, %%d]", latency(i))
  end
  io.stderr:write(string.format(
    '{"requests": %%d, "micros": %%d, "socket": %%d, "timeouts": %%d, "status": %%d, '
    .. '"times": [%%s]}', summary.requests, summary.duration, e.connect + e.read + e.write,
    e.timeout, e.status, table.concat(times, ",")))
end
"""


Clock = Callable[[], float]
"""Gives the CPU seconds that the server has taken so far; ``RuntimeError`` when that is lost."""


def _no_clock() -> float:
    return 0.0


@dataclass(frozen=True)
class LoadResult:
    """What a load generator saw in the time that counts, of ``seconds``, in which the server
    took ``cpu``. Times in seconds; ``faults`` is empty for a valid run."""

    requests: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    faults: str = ""


class Load(Protocol):
    """Loads the server on a port of this machine, from the client's core."""

    tool: str
    """The program it needs."""

    def run(self, port: int, seconds: float, clock: Clock = _no_clock) -> LoadResult: ...

    def said(self, seconds: float) -> str:
        """The command, as one types it."""
        ...


class Wrk:
    """wrk: one thread, by default ``CONNECTIONS`` connections. Each of ``requests`` is sent in
    turn, as it is; it may consist of several pipelined ones, which are timed as one."""

    tool = "wrk"

    def __init__(self, requests: Sequence[bytes], connections: int = CONNECTIONS) -> None:
        self._requests = requests
        self._connections = connections

    def run(self, port: int, seconds: float, clock: Clock = _no_clock) -> LoadResult:
        quoted = ",".join(_quote(request) for request in self._requests)
        with tempfile.TemporaryDirectory() as directory:
            script = Path(directory) / "load.lua"
            script.write_text(_SCRIPT % quoted)
            before = clock()
            done = subprocess.run(
                self._command(str(port), seconds, str(script)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + 30,
                preexec_fn=lambda: os.sched_setaffinity(0, {CLIENT_CORE}),
            )
            cpu = clock() - before
        if done.returncode:
            raise RuntimeError(f"wrk ended with {done.returncode}: {done.stderr.strip()}")
        seen = json.loads(done.stderr.splitlines()[-1])
        faults = [
            f"{seen[what]} {what}" for what in ("socket", "timeouts", "status") if seen[what]
        ]
        if not seen["requests"]:
            faults.append("no answers")
        each = max(1, seen["requests"] // self._connections)
        times = _measured(seen["times"], seen["micros"] // each)
        p50, p99 = (_percentile(times, share) / 1e6 for share in (0.5, 0.99))
        spent = seen["micros"] / 1e6
        # wrk calls a time-out what takes more than 2 s; most runs are shorter.
        slowest = max(times, default=0) / 1e6
        if slowest > _MOST_OF_IT * spent:
            faults.append(f"an answer took {slowest:.2f} s of {spent:.2f} s")
        return LoadResult(seen["requests"], spent, cpu, p50, p99, ", ".join(faults))

    def said(self, seconds: float) -> str:
        return shlex.join(self._command("PORT", seconds, "load.lua"))

    def _command(self, port: str, seconds: float, script: str) -> list[str]:
        # wrk takes whole seconds only.
        return [
            "wrk", "-t1", f"-c{self._connections}", f"-d{max(1, round(seconds))}s",
            "-s", script, f"http://127.0.0.1:{port}/",
        ]  # fmt: skip


class H2load:
    """h2load in HTTP/1.1: offers ``rate`` requests a second, whatever the server does.

    Every connection has a timer of its own, of 10 ms at least, and all are started together:
    at 100 requests a second each, every connection sends one request every 10 ms. ``depth``
    requests of a connection may be under way at once. ``paths`` are taken in turn.

    It runs a little longer than the seconds that count, in which all connections are open.
    """

    tool = "h2load"

    def __init__(
        self,
        paths: Sequence[str],
        fields: Mapping[str, str],
        rate: int = RATE,
        connections: int = RATE // 100,
        depth: int = 1,
        body: bytes = b"",
    ) -> None:
        self.rate = rate
        self._paths = paths
        self._fields = fields
        self._connections = connections
        self._depth = depth
        self._body = body

    def run(self, port: int, seconds: float, clock: Clock = _no_clock) -> LoadResult:
        with tempfile.TemporaryDirectory() as directory:
            where = Path(directory)
            (where / "body").write_bytes(self._body)
            uris = [f"http://127.0.0.1:{port}{path}\n" for path in self._paths]
            (where / "uris").write_text("".join(uris))
            command = [*self._command(seconds, directory), f"--log-file={where / 'log'}"]
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {CLIENT_CORE}),
            ) as process:
                try:
                    window = _watch(seconds, clock)
                    said, complaint = process.communicate(timeout=30)
                finally:
                    process.kill()
            if process.returncode:
                raise RuntimeError(f"h2load ended with {process.returncode}: {complaint.strip()}")
            log = (where / "log").read_text()
        times = _answered(log, window)
        numbers = {what: int(n) for n, what in _COUNTED.findall(said)}
        faults = [
            f"{numbers[what]} {what}"
            for what in ("failed", "errored", "timeout", "3xx", "4xx", "5xx")
            if numbers.get(what)
        ]
        if not times:
            faults.append("no answers")
        elif not _had_begun(log, window, self.rate, 5 * max(0.01, self._connections / self.rate)):
            faults.append("the load had not begun when it was counted")
        p50, p99 = (_percentile(times, share) / 1e6 for share in (0.5, 0.99))
        return LoadResult(times.total(), window.seconds, window.cpu, p50, p99, ", ".join(faults))

    def said(self, seconds: float) -> str:
        return shlex.join(self._command(seconds, "."))

    def _command(self, seconds: float, directory: str) -> list[str]:
        each = self.rate / self._connections
        whole = _OPENING + seconds + _ENDING
        command = [
            "h2load", "--h1", "-t1", f"-c{self._connections}", f"-m{self._depth}",
            f"--rps={each:g}", f"-D{round(whole * 1000)}ms",
        ]  # fmt: skip
        for name, value in self._fields.items():
            command += ["-H", f"{name}: {value}"]
        if self._body:
            command += ["-d", f"{directory}/body"]
        return [*command, "-i", f"{directory}/uris"]


class RedisBenchmark:
    """redis-benchmark: ``CONNECTIONS`` connections, one test, ``depth`` commands in a
    pipeline. It counts commands, not seconds: a short run first tells how many."""

    tool = "redis-benchmark"

    def __init__(self, test: str, depth: int) -> None:
        self._test = test
        self._depth = depth

    def run(self, port: int, seconds: float, clock: Clock = _no_clock) -> LoadResult:
        first = self._run(port, 2000 * self._depth, clock)
        count = max(1000, int(first.requests / first.seconds * seconds))
        second = self._run(port, count, clock)
        return LoadResult(
            first.requests + second.requests,
            first.seconds + second.seconds,
            first.cpu + second.cpu,
            second.p50,
            second.p99,
        )

    def said(self, seconds: float) -> str:
        return shlex.join(self._command("PORT", "COUNT"))

    def _command(self, port: str, count: str) -> list[str]:
        return [
            "redis-benchmark", "-h", "127.0.0.1", "-p", port, "-c", str(CONNECTIONS),
            "-n", count, "-t", self._test, "-P", str(self._depth), "--csv",
        ]  # fmt: skip

    def _run(self, port: int, count: int, clock: Clock) -> LoadResult:
        before = clock()
        done = subprocess.run(
            self._command(str(port), str(count)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            preexec_fn=lambda: os.sched_setaffinity(0, {CLIENT_CORE}),
        )
        cpu = clock() - before
        rows = [line for line in done.stdout.splitlines() if line.startswith('"')]
        if done.returncode or len(rows) != 2:
            raise RuntimeError(f"redis-benchmark: {(done.stderr or done.stdout).strip()[-300:]}")
        cells = [cell.strip('"') for cell in rows[1].split('","')]
        p50, p99 = float(cells[4]) / 1e3, float(cells[6]) / 1e3
        return LoadResult(count, count / float(cells[1]), cpu, p50, p99)


@dataclass(frozen=True)
class _Window:
    """The part of a run that counts: from when to when, in seconds since the epoch, and the
    CPU seconds that the server took meanwhile."""

    began: float
    ended: float
    cpu: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def _watch(seconds: float, clock: Clock) -> _Window:
    """Wait until the connections of a load that has just begun are open, and then for
    ``seconds``, which count."""
    time.sleep(_OPENING)
    before, began = clock(), time.time()
    time.sleep(seconds)
    after, ended = clock(), time.time()
    return _Window(began, ended, after - before)


def _answered(log: str, window: _Window) -> Counter[int]:
    """The times in microseconds, and how often each, of the requests in h2load's log that were
    answered with a 2xx in the window."""
    times: Counter[int] = Counter()
    for row in log.splitlines():
        started, status, duration = map(int, row.split("\t")[:3])
        answered = (started + duration) / 1e6
        if status // 100 == 2 and window.began <= answered < window.ended:
            times[duration] += 1
    return times


def _had_begun(log: str, window: _Window, rate: int, first: float) -> bool:
    """Whether as many requests were sent in the ``first`` seconds of the window as at the rate,
    or, to a server that does not keep up, as in the whole of it."""
    starts = [int(row.partition("\t")[0]) / 1e6 - window.began for row in log.splitlines()]
    whole = sum(0 <= start < window.seconds for start in starts)
    usual = min(rate, whole / window.seconds)
    return sum(0 <= start < first for start in starts) >= _BEGUN * usual * first


def _measured(times: Sequence[tuple[int, int]], interval: int) -> dict[int, int]:
    """The times that wrk measured, in microseconds, and how often each.

    wrk adds some: for each time longer than two average intervals between requests, those
    that requests in between might have had. Pipelined requests, of which only the whole
    batch is timed, all look like that, so this is undone, from the largest down.
    """
    counts = dict(times)
    for longer in sorted(counts, reverse=True):
        if longer < 2 * interval:
            break
        for added in range(longer - interval, interval, -interval):
            if added in counts:
                counts[added] -= counts[longer]
    return counts


def _percentile(counts: Mapping[int, int], share: float) -> int:
    left = share * sum(counts.values())
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return 0


def _quote(request: bytes) -> str:
    body = request.decode("ascii").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + body.replace("\r", "\\r").replace("\n", "\\n") + '"'


def missing_tools(loads: Sequence[Load]) -> list[str]:
    """The programs that are needed and not installed."""
    return sorted({load.tool for load in loads if shutil.which(load.tool) is None})
