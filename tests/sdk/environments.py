"""Environments as clean as a user's, with protoserve installed from a wheel.

But for one thing: the dependencies are links to those that the tests run with, and wheels are
built with the hatchling that is installed here. So pip resolves and installs as usual, and needs
no package index.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """What the command prints; ``variables`` are those of its environment that it has beside
    ours."""
    # What this process was given to find modules is not the environment's.
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(project: Path, into: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", into, cwd=project)
    (wheel,) = into.iterdir()
    return wheel


def dependencies(distribution: str) -> set[str]:
    """The distributions that it needs to run, with theirs."""
    found: set[str] = set()
    for line in metadata.requires(distribution) or ():
        requirement = Requirement(line)
        # Without an extra: a requirement of one is not needed.
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= {requirement.name} | dependencies(requirement.name)
    return found


def link(distribution: str, into: Path) -> None:
    found = metadata.distribution(distribution)
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        (into / top).symlink_to(Path(str(found.locate_file(top))))


def link_commands(distribution: str, python: Path) -> None:
    """Its commands, beside the interpreter that they are for."""
    found = metadata.distribution(distribution)
    scripts = {point.name: point for point in found.entry_points.select(group="console_scripts")}
    for name, point in scripts.items():
        script = python.with_name(name)
        script.write_text(
            f"#!{python}\nimport sys\nfrom {point.module} import {point.attr}\n"
            f"sys.exit({point.attr}())\n"
        )
        script.chmod(0o755)
    for file in found.files or ():
        if file.parts[-2:-1] == ("bin",) and file.name not in scripts:
            python.with_name(file.name).symlink_to(Path(str(file.locate())).resolve())


class Environment:
    def __init__(self, folder: Path, *tools: str) -> None:
        """``tools``: further distributions that are there, with their commands."""
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"
        (site,) = (folder / "lib").glob("python*/site-packages")
        found = {*tools}.union(*map(dependencies, ("protoserve", *tools)))
        # Two spellings of one distribution are one.
        for distribution in {re.sub(r"[-_.]+", "-", name).lower() for name in found}:
            link(distribution, site)
        for tool in tools:
            link_commands(tool, self.bin / "python")

    def install(self, wheel: Path) -> None:
        run(self.bin / "pip", "install", "--no-index", "--disable-pip-version-check", wheel)

    def plugins(self) -> list[dict[str, object]]:
        listed: list[dict[str, object]] = json.loads(self.protoserve("plugins", "--json"))
        return listed

    def protoserve(self, *arguments: str) -> str:
        return run(self.bin / "protoserve", *arguments, cwd=self.bin)


@contextmanager
def serving(
    environment: Environment, *arguments: str, cwd: Path, said: str = ""
) -> Iterator[tuple[str, int]]:
    """Where ``protoserve run`` with these arguments serves; ``said`` is on stderr at the end."""
    program = subprocess.Popen(
        [environment.bin / "protoserve", "run", *arguments, "--bind", "127.0.0.1:0"],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with program:
        try:
            assert program.stdout is not None
            line = program.stdout.readline()
            scheme = arguments[0].replace("_", "-")
            found = re.fullmatch(rf"listening on {scheme}://127\.0\.0\.1:(\d+)\n", line)
            assert found, program.communicate(timeout=20)
            yield "127.0.0.1", int(found[1])
            program.terminate()
            assert program.communicate(timeout=30) == ("", said)
            assert program.returncode == 0
        finally:
            program.kill()


def talk(address: tuple[str, int], *pieces: bytes) -> bytes:
    """What the server says to ``pieces``, sent one by one, until it closes."""
    with socket.create_connection(address, timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))
