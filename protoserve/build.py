"""Which build of protoserve this is."""

from __future__ import annotations

from typing import Final

from protoserve.kernel import communicator

BUILD: Final = "pure" if communicator.__file__.endswith(".py") else "compiled"
"""``"pure"``: Python; ``"compiled"``: what every request passes through is C.
See docs/compiled.md."""
