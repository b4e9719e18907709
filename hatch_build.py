"""The long description of the distribution: README.md with links that work on an index.

In the repository they are relative, and lead to the files of the revision that is looked at.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)]+\))")


class ReadmeHook(MetadataHookInterface):
    """Puts the repository's address, ``project.urls.Source``, before relative links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling when it builds."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata["urls"]["Source"].rstrip("/")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": _LINK.sub(rf"\g<1>{source}/blob/main/\g<2>", text),
        }
