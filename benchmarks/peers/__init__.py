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

from benchmarks.workloads import BLOCKING, PLAIN_ANSWER, REDIS, echo_page, echo_request


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
        "--no-access-log", "--log-level", "warning",
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
events {{ worker_connections 8192; }}
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


def _coroutines(app: str, port: int, directory: Path) -> list[str]:
    return _script("protoserve_server")(f"async-{app}", port, directory)


def _gunicorn(app: str, port: int, directory: Path) -> list[str]:
    return [
        sys.executable, "-m", "gunicorn", f"benchmarks.peers.wsgi:{app}",
        "--bind", f"127.0.0.1:{port}", "--workers", "1", "--worker-class", "gthread",
        "--threads", "20", "--keep-alive", "75", "--no-control-socket",
        "--worker-tmp-dir", str(directory), "--log-level", "warning",
    ]  # fmt: skip


def another_checkout(root: Path) -> Peer:
    """protoserve as it is in another checkout, for a comparison in the same rounds."""

    def command(app: str, port: int, directory: Path) -> list[str]:
        for package in ("protoserve", "plugins/http/protoserve_http"):
            (directory / Path(package).name).symlink_to(root / package)
        # -P: not the working directory's protoserve, although its benchmarks.
        return [
            "env", f"PYTHONPATH={directory}:{Path.cwd()}", sys.executable, "-P", "-m",
            "benchmarks.peers.protoserve_server", app, str(port),
        ]  # fmt: skip

    def version() -> str | None:
        if not (root / "protoserve").is_dir():
            return None
        asked = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        return f"protoserve of {commit or 'another folder'}"

    return Peer(BEFORE, command, version, protocol=BLOCKING)


OURS = "protoserve"
BEFORE = "protoserve before"
ASYNC = "protoserve async"
_SAME = "the handler is a coroutine on the echo page only"

PEERS = [
    Peer(OURS, _script("protoserve_server"), _installed("protoserve", "httptools", "multidict")),
    Peer(
        ASYNC,
        _coroutines,
        _installed("protoserve", "httptools", "uvloop"),
        MappingProxyType(
            dict.fromkeys(("varied", "plaintext", "pipelined", "post"), f"{ASYNC}: {_SAME}")
        ),
    ),
    Peer("uvicorn", _uvicorn, _installed("uvicorn", "httptools", "uvloop")),
    Peer("granian RSGI", _granian("rsgi"), _installed("granian", "uvloop")),
    Peer("granian WSGI", _granian("wsgi"), _installed("granian")),
    Peer(
        "bjoern",
        _script("bjoern_server"),
        _installed("bjoern"),
        MappingProxyType({"pipelined": "bjoern answers only the first of pipelined requests"}),
    ),
    Peer("aiohttp", _script("aiohttp_server"), _installed("aiohttp", "uvloop")),
    Peer(
        "nginx",
        _nginx,
        _nginx_version,
        MappingProxyType({"post": "nginx's `return` echoes no body"}),
    ),
    Peer(REDIS, _script("redis_kv"), _installed("protoserve", "hiredis"), protocol="redis"),
    Peer(
        "hand-written",
        _script("hand_written_redis"),
        _installed("uvloop", "hiredis"),
        protocol="redis",
    ),
    Peer("fakeredis", _script("fakeredis_server"), _installed("fakeredis"), protocol="redis"),
    Peer("redis-server", _redis_server, _redis_server_version, protocol="redis"),
    Peer("waitress", _script("waitress_server"), _installed("waitress"), protocol=BLOCKING),
    Peer("gunicorn gthread", _gunicorn, _installed("gunicorn"), protocol=BLOCKING),
]
