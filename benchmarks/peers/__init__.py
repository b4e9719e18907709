"""The servers that are compared: how each is started with one worker, at its best."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from benchmarks.builds import Build
from benchmarks.workloads import (
    BLOCKING,
    PIPELINED,
    PLAIN_ANSWER,
    REDIS,
    echo_page,
    echo_request,
)


@dataclass(frozen=True)
class Peer:
    """One server.

    ``command(app, port, directory)`` gives the command line; files may be written to the
    directory. ``version`` tells what is installed, ``None`` for nothing. ``without`` names
    workloads that the peer cannot serve, and why.
    """

    name: str
    command: Callable[[str, int, Path], list[str]]
    version: Callable[[], str | None]
    without: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    protocol: str = "http"


def _script(module: str) -> Callable[[str, int, Path], list[str]]:
    """A server of ours around a library."""
    return lambda app, port, _: [
        sys.executable,
        "-m",
        f"benchmarks.peers.{module}",
        app,
        str(port),
    ]


def _uvicorn(app: str, port: int, _: Path) -> list[str]:
    return [
        sys.executable, "-m", "uvicorn", f"benchmarks.peers.asgi:{app}", "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--lifespan", "off", "--ws", "none",
        "--no-access-log", "--log-level", "warning", "--timeout-keep-alive", "75",
    ]  # fmt: skip


def _granian(interface: str) -> Callable[[str, int, Path], list[str]]:
    def command(app: str, port: int, _: Path) -> list[str]:
        return [
            sys.executable, "-m", "granian", f"benchmarks.peers.{interface}:{app}",
            "--interface", interface, "--port", str(port), "--workers", "1",
            "--runtime-threads", "1", "--runtime-mode", "st", "--blocking-threads", "1",
            "--loop", "uvloop", "--http", "1", "--no-ws", "--log-level", "warning",
        ]  # fmt: skip

    return command


_NGINX = """
daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75s; default_type text/html;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{body}'; }} }}
}}
"""


def _nginx(app: str, port: int, directory: Path) -> list[str]:
    body = echo_page(echo_request()) if app == "echo" else PLAIN_ANSWER
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, port=port, body=body.decode()))
    return ["nginx", "-p", str(directory), "-e", "stderr", "-c", str(config)]


def _nginx_version() -> str | None:
    if shutil.which("nginx") is None:
        return None
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr
    found = re.search(r"nginx/(\S+)", said)
    return f"nginx {found[1]}" if found else None


def _redis_server(app: str, port: int, directory: Path) -> list[str]:
    return [
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--appendonly", "no", "--dir", str(directory), "--daemonize", "no",
    ]  # fmt: skip


def _redis_server_version() -> str | None:
    if shutil.which("redis-server") is None:
        return None
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"v=(\S+)", said)
    return f"redis-server {found[1]}" if found else None


def _installed(*packages: str) -> Callable[[], str | None]:
    def version() -> str | None:
        try:
            return ", ".join(f"{name} {metadata.version(name)}" for name in packages)
        except metadata.PackageNotFoundError:
            return None

    return version


def _gunicorn(app: str, port: int, directory: Path) -> list[str]:
    return [
        sys.executable, "-m", "gunicorn", f"benchmarks.peers.wsgi:{app}",
        "--bind", f"127.0.0.1:{port}", "--workers", "1", "--worker-class", "gthread",
        "--threads", "20", "--keep-alive", "75", "--no-control-socket",
        "--worker-tmp-dir", str(directory), "--log-level", "warning",
    ]  # fmt: skip


OURS, PURE, BEFORE = "protoserve", "protoserve, pure", "protoserve before"
ASYNC, ASYNC_PURE = "protoserve async", "protoserve async, pure"
REDIS_PURE, REDIS_BEFORE = f"{REDIS}, pure", f"{REDIS} before"


def ours(build: Build, name: str, redis_name: str, async_name: str = "") -> list[Peer]:
    """The servers on one build of protoserve: HTTP, Redis, and handlers that are coroutines."""

    def serves(module: str, prefix: str = "") -> Callable[[str, int, Path], list[str]]:
        return lambda app, port, directory: build.command(
            directory, f"peers.{module}", f"{prefix}{app}", str(port)
        )

    def has(*packages: str) -> Callable[[], str | None]:
        return lambda: build.version(["protoserve", *packages])

    peers = [Peer(name, serves("protoserve_server"), has("httptools", "multidict"))]
    if async_name:
        only = "the handler is a coroutine on the echo page only"
        without = dict.fromkeys(("varied", "plaintext", "pipelined", "post"), only)
        command = serves("protoserve_server", "async-")
        peers.append(
            Peer(async_name, command, has("httptools", "uvloop"), MappingProxyType(without))
        )
    return [*peers, Peer(redis_name, serves("redis_kv"), has("hiredis"), protocol="redis")]


def _left_out(*workloads: str, **why: str) -> Mapping[str, str]:
    """Why a peer is not measured in some workloads."""
    return MappingProxyType(dict.fromkeys(workloads, "left out, for a shorter run") | why)


OTHERS = [
    Peer("uvicorn", _uvicorn, _installed("uvicorn", "httptools", "uvloop")),
    Peer(
        "granian RSGI",
        _granian("rsgi"),
        _installed("granian", "uvloop"),
        _left_out("echo", "pipelined"),
    ),
    Peer(
        "bjoern",
        _script("bjoern_server"),
        _installed("bjoern"),
        _left_out(pipelined="it answers only the first of pipelined requests"),
    ),
    Peer("fastpysgi", _script("fastpysgi_server"), _installed("fastpysgi")),
    Peer(
        "aiohttp",
        _script("aiohttp_server"),
        _installed("aiohttp", "uvloop"),
        _left_out("echo", "plaintext", "pipelined", "post"),
    ),
    Peer(
        "nginx",
        _nginx,
        _nginx_version,
        _left_out("echo", "pipelined", post="its `return` echoes no body"),
    ),
    Peer(
        "fakeredis",
        _script("fakeredis_server"),
        _installed("fakeredis"),
        _left_out(f"redis-set-{PIPELINED}", f"redis-get-{PIPELINED}"),
        protocol="redis",
    ),
    Peer("redis-server", _redis_server, _redis_server_version, protocol="redis"),
    Peer("waitress", _script("waitress_server"), _installed("waitress"), protocol=BLOCKING),
    Peer("gunicorn gthread", _gunicorn, _installed("gunicorn"), protocol=BLOCKING),
]


def all_peers(compiled: Path, pure: Path, before: Path | None = None) -> list[Peer]:
    """Every server. ``compiled`` and ``pure`` are interpreters with a build of protoserve;
    ``before`` is another checkout of it, which the interpreter of the pure one runs."""
    both = zip(
        ours(Build(OURS, compiled), OURS, REDIS, ASYNC),
        ours(Build(PURE, pure), PURE, REDIS_PURE, ASYNC_PURE),
        strict=True,
    )
    peers = [peer for pair in both for peer in pair]
    if before:
        peers += ours(Build(BEFORE, pure, before), BEFORE, REDIS_BEFORE)
    return peers + OTHERS
