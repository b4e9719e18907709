"""The site: ``make docs``. Every link in it leads somewhere, or it is not built.

Its first page is README.md. Links work in the repository and on the site: those to other pages
are links between pages there, those to other files lead to the repository.
"""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

logger = getLogger(__name__)

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = f"{PROJECT['urls']['Source'].rstrip('/')}/blob/main"

project = PROJECT["name"]
version = release = PROJECT["version"]
author = "the authors of protoserve"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = project
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
nitpicky = True
# Annotations that only type checkers resolve.
nitpick_ignore_regex = [("py:class", r"\w+")]
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_typehints = "description"
autodoc_preserve_defaults = True

# What users import. An object is described where it stands here, not where it is defined.
PUBLIC = ["protoserve", "protoserve.framing", "protoserve.testing"]
PUBLIC += ["protoserve_http", "protoserve_redis"]

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[#)])")


def links(text: str, folder: Path) -> str:
    """The text with links that work on the site; they are relative to the folder now."""

    def lead(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if path == ROOT / "README.md":
            return "/index.md"
        if path.parent == DOCS and path.suffix == ".md":
            return f"/{path.name}"
        # What is not there stays as it is, for the builder to complain about.
        return f"{FILES}/{path.relative_to(ROOT)}" if path.exists() else match[0]

    return LINK.sub(lead, text)


def on_source_read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = links(source[0], (DOCS / page).parent)
    if page == "index":
        readme = ROOT / "README.md"
        app.env.note_dependency(str(readme))
        source[0] = f"{links(readme.read_text(encoding='utf-8'), ROOT)}\n{source[0]}"


def found(name: str) -> Any:
    """The object of this full name, or ``None``."""
    path, rest = name, []
    while path:
        try:
            thing: Any = import_module(path)
        except ImportError:
            path, _, last = path.rpartition(".")
            rest.insert(0, last)
            continue
        for part in rest:
            thing = getattr(thing, part, None)
        return thing
    return None


def public(name: str) -> str:
    """The name under which users have what is defined under this one; empty if they do not."""
    thing = found(name)
    for module in map(import_module, PUBLIC if thing is not None else []):
        for exported in module.__all__:
            if getattr(module, exported) is thing:
                return f"{module.__name__}.{exported}"
    return ""


def on_missing_reference(
    app: Sphinx, env: Any, node: nodes.Element, contents: nodes.Node
) -> nodes.Node | None:
    """Docstrings and annotations name things by the module that defines them."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    owner, _, last = target.rpartition(".")
    # The last: constants are described where they are defined.
    for name in (public(target), f"{public(owner)}.{last}", f"protoserve.protocol.{last}"):
        resolved: nodes.Node | None = env.domains["py"].resolve_xref(
            env, node["refdoc"], app.builder, "obj", name, node, contents
        )
        if resolved is not None:
            return resolved
    # What is there, and is no business of users', is text.
    return contents if found(target) is not None else None


def on_check_consistency(app: Sphinx, env: Any) -> None:
    described = set()
    for name, _, kind, *_ in env.domains["py"].get_objects():
        # Constants are described where they are defined.
        described.add(name.rpartition(".")[2] if kind == "data" else name)
    for module in PUBLIC:
        for name in import_module(module).__all__:
            if not {name, f"{module}.{name}"} & described:
                logger.warning("%s.%s is described on no page of docs/api", module, name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", on_source_read)
    app.connect("missing-reference", on_missing_reference)
    app.connect("env-check-consistency", on_check_consistency)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
