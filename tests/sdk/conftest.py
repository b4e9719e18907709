"""What tests of plugins need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_site import Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    site = Site(tmp_path)
    yield site
    for name in site.imported:
        come_on = getattr(sys.modules[name], "come_on", None)
        if come_on is not None:
            come_on.set()  # what a hook waits for that blocks
        del sys.modules[name]
