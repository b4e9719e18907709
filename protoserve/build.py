"""Which build of protoserve this is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from protoserve.kernel import communicator

BUILD: Final = "pure" if communicator.__file__.endswith(".py") else "compiled"
"""``"pure"``: Python; ``"compiled"``: what every request passes through is C.
See docs/compiled.md."""


def _refuse_a_mixture() -> None:
    """Raise ``ImportError`` where this is Python, and the protocols' packages that would be
    imported are compiled, with the kernel of another installation inside: so it is in a clone of
    the sources, when something else than the clone is installed."""
    spec = find_spec("protoserve_http") if BUILD == "pure" else None
    if spec is not None and spec.origin is not None:
        here, there = Path(__file__).parent.parent, Path(spec.origin).parent.parent
        if there != here and any(there.glob("protoserve__mypyc.*")):
            raise ImportError(
                f"two installations of protoserve: it is imported from {here}, as Python, and "
                f"protoserve_http from {there}, compiled. Start from another folder than the "
                "sources (python -P leaves the working folder out), or install these: "
                "pip install -e ."
            )


_refuse_a_mixture()
