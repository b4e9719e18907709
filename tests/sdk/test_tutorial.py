"""``docs/write-a-protocol.md``, line by line, as its reader would type it.

A block that begins with ``# NAME`` is that file. In a block of ``console`` each line after ``$``
is a command for one and the same shell, in one folder; below stands what it prints, ``...`` for
anything. A command that ends with ``&`` goes on; it is up when it has printed that, and ``kill``
must end it. The port is replaced by a free one.

Instead of an index pip has the wheel of this repository, and for all else what the tests run
with.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from environments import build, dependencies, link

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parent.parent.parent
TUTORIAL = ROOT / "docs" / "write-a-protocol.md"
LINES_AT_MOST = 60

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([a-z_]+\.(?:py|toml))\n")
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
OVER = "--over--"


class Shell:
    """One bash that is told command after command, without a terminal."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._said = b""

    def run(self, command: str, expected: str) -> None:
        """The command prints this, and does not fail."""
        pattern = re.compile(_pattern(expected))
        # What ends with & has no end to wait for: it is up when it has said so.
        waits = not command.endswith("&")
        end = f"\necho '{OVER}'$?" if waits else ""
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null{end}\n".encode())
        self._bash.stdin.flush()
        if waits:
            said, _, status = self._read(re.compile(rf"(?s)(.*){OVER}(\d+)\n")).partition(OVER)
            assert status == "0\n", f"$ {command}\n{said}"
            assert pattern.fullmatch(said), f"$ {command}\n{said}"
        else:
            self._read(pattern)

    def _read(self, until: re.Pattern[str]) -> str:
        assert self._bash.stdout is not None
        limit = time.monotonic() + 60
        while until.fullmatch(self._said.decode()) is None:
            readable, _, _ = select.select([self._bash.stdout], [], [], limit - time.monotonic())
            data = os.read(self._bash.stdout.fileno(), 65536) if readable else b""
            assert data, f"expected {until.pattern!r}, and there is only:\n{self._said.decode()}"
            self._said += data
        said, self._said = self._said.decode(), b""
        return said

    def close(self) -> None:
        """Whatever is left in it ends, too."""
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        with self._bash:
            self._bash.wait()


def _pattern(expected: str) -> str:
    return "(?s)" + ".*?".join(map(re.escape, expected.split("...")))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    wheels, libraries, folder = (tmp_path / name for name in ("wheels", "libraries", "sums"))
    for new in (wheels, libraries, folder):
        new.mkdir()
    build(ROOT, wheels)
    needed = ["protoserve", "pytest", "hypothesis", "hatchling"]
    for name in {*needed[1:]}.union(*map(dependencies, needed)):
        link(name, libraries)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    environ |= {
        "PATH": f"{Path(sys.executable).parent}:{environ['PATH']}",
        "PYTHONPATH": str(libraries),
        "PYTHONWARNINGS": "error::ResourceWarning",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the option's value: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    shell = Shell(folder, environ)
    try:
        yield shell
    finally:
        shell.close()


def tutorial() -> str:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return TUTORIAL.read_text().replace("9999", str(sock.getsockname()[1]))


def test_it_works_as_it_is_written(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "sums"
    for language, text in BLOCK.findall(tutorial()):
        if language == "console":
            for command, expected in COMMAND.findall(text):
                shell.run(command, expected)
                if command.startswith("kill "):
                    shell.run("wait $!", "")  # status 0: it ended as it should
        elif name := FILE.match(text):
            (folder / name[1]).write_text(text)
        elif language == "python":
            (folder / "tried.py").write_text(text)
            shell.run("python tried.py", "")
            (folder / "tried.py").unlink()


def test_it_is_short() -> None:
    blocks = BLOCK.findall(TUTORIAL.read_text())
    code = "".join(text for language, text in blocks if language in ("python", "toml"))
    lines = [line for line in code.splitlines() if line.strip() and not FILE.match(line + "\n")]
    assert len(lines) < LINES_AT_MOST
