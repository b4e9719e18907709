"""Programs in a process of their own, with a time limit: a hang is a failure, no stuck suite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

LIMIT = 25.0
"""Seconds until a program counts as hanging; its threads are shown a little earlier."""

_PROLOGUE = f"""\
import faulthandler, sys
faulthandler.dump_traceback_later({LIMIT - 3}, exit=True)
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
"""


class Said(NamedTuple):
    """What a program wrote to its standard output and standard error."""

    out: str
    log: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def run_alone(program: str, *arguments: str, limit: float = LIMIT) -> Said:
    """Run Python source, which may import what tests here may. Fails when it hangs, or ends
    otherwise than well."""
    # A session of its own, so that children which it forked end with it.
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PROLOGUE + textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            said = Said(*process.communicate(timeout=limit))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"the program hangs; it said: {process.communicate()}")
    assert process.returncode == 0, f"it ended with {process.returncode}: {said.out}\n{said.log}"
    return said
