"""The code blocks of README and docs run, and what they link to is there."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
# Its blocks stand on each other, and its shell commands count: tests/sdk/test_tutorial.py.
TUTORIAL = ROOT / "docs" / "write-a-protocol.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
# A block that begins so is a file, which later ones of its document import.
_FILE = re.compile(r"^# ([a-z_]+\.py)\n")
# Which fixed port a block listens on; replaced, so that tests do not collide.
_PORT = re.compile(r"\b(?:8888|9999|6380)\b")


def _blocks() -> list[object]:
    found: list[object] = []
    for path in (path for path in DOCUMENTS if path != TUTORIAL):
        files: dict[str, str] = {}
        for number, match in enumerate(_BLOCK.finditer(path.read_text()), 1):
            found.append(pytest.param(match[1], dict(files), id=f"{path.stem}-{number}"))
            if name := _FILE.match(match[1]):
                files[name[1]] = match[1]
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _await_handler(process: subprocess.Popen[str]) -> None:
    """The block prints its line a moment before it listens for signals."""
    bit = 1 << (signal.SIGTERM - 1)
    status = Path(f"/proc/{process.pid}/status")
    end = time.monotonic() + 10
    while status.exists() and time.monotonic() < end:
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
        if caught is None or int(caught[1], 16) & bit:
            return
        time.sleep(0.005)
    time.sleep(0.5)  # no such file on this system


@pytest.mark.parametrize(("source", "files"), _blocks())
def test_block_runs(source: str, files: dict[str, str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    program = tmp_path / "block.py"
    program.write_text(_PORT.sub(str(_free_port()), source))
    serves = "wait_for_signal()" in source
    process = subprocess.Popen(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            if serves:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("listening on ")
                _await_handler(process)
                process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert not errors


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
