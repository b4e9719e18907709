"""A new distribution for a protocol of one's own: what ``protoserve new`` writes.

The files are those of ``templates``, with what depends on the name and the framing filled in.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from protoserve.errors import ConfigError
from protoserve.hookspecs import API_VERSION, PROJECT_NAME
from protoserve.plugins import installed_plugins

__all__ = ["FRAMINGS", "Framing", "new_distribution", "own_source"]

_NAME: Final = re.compile(r"[a-z]([a-z0-9_-]*[a-z0-9])?\Z")
_LONGEST_NAME: Final = 40  # no line of the templates is too long then

_FILES: Final = {
    ".github/workflows/ci.yml": "ci.yml.in",
    ".gitignore": "gitignore.in",
    "README.md": "README.md.in",
    "pyproject.toml": "pyproject.toml.in",
    "$package/__init__.py": "init.py.in",
    "$package/demo.py": "demo.py.in",
    "$package/plugin.py": "plugin.py.in",
    "$package/protocol.py": "protocol.py.in",
    "$package/py.typed": "py.typed.in",
    "tests/test_contract.py": "test_contract.py.in",
}
"""What is written, and the template of each. No module of the tests may be called like a package,
which ends with ``_protocol``."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How messages are told apart; what differs in the files that are written."""

    summary: str
    """What a message is."""
    names: str
    """What the protocol imports of ``protoserve.framing``."""
    constants: str
    message_in: str
    message_out: str
    frame: str
    """What the test makes of the bytes of a text."""
    hello: str
    """A request, as Python and shell read it."""
    hello_reply: str
    more: str
    """Further requests, as Python reads them."""


FRAMINGS: Final = {
    "lines": Framing(
        summary="a line, which ends with LF or CR LF",
        names="lines",
        constants="",
        message_in="lines(parse, farewell=farewell)",
        message_out='" ".join(response.text.splitlines()).encode() + b"\\n"',
        frame='text + b"\\n"',
        hello='b"hello\\n"',
        hello_reply=r"b'HELLO\n'",
        more=r'b"two words\n", b"gr\xc3\xbcn\n"',
    ),
    "length": Framing(
        summary="its length in four bytes, the highest first, and so many bytes",
        names="encode_prefixed, prefixed",
        constants="",
        message_in="prefixed(4, parse, farewell=farewell)",
        message_out='b"".join(encode_prefixed(response.text.encode(), 4))',
        frame='len(text).to_bytes(4, "big") + text',
        hello='b"\\0\\0\\0\\5hello"',
        hello_reply=r"b'\x00\x00\x00\x05HELLO'",
        more=r'b"\0\0\0\x09two words", b"\0\0\0\5gr\xc3\xbcn"',
    ),
    "delimiter": Framing(
        summary="all that comes before a zero byte",
        names="delimited",
        constants='\nDELIMITER: Final = b"\\0"\n',
        message_in="delimited(DELIMITER, parse, farewell=farewell)",
        message_out='response.text.encode().replace(DELIMITER, b" ") + DELIMITER',
        frame='text + b"\\0"',
        hello='b"hello\\0"',
        hello_reply=r"b'HELLO\x00'",
        more=r'b"two words\0", b"gr\xc3\xbcn\0"',
    ),
}
"""By their names on the command line."""


def new_distribution(name: str, framing: Framing, folder: Path) -> list[Path]:
    """Write a distribution with the protocol ``name`` into ``folder``, which is made, unless it
    is there and empty; returns the files.

    Raises :class:`~protoserve.errors.ConfigError` for a name that cannot be or is taken, and
    for a folder that is, ``OSError`` where it cannot be written. Nothing is left then.
    Imports every plugin, to see whose the name is.
    """
    _check_name(name)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} is there already; give another folder, with --into")
    values = {
        "name": name,
        "distribution": f"protoserve-{name}",
        "package": f"{name.replace('-', '_')}_protocol",
        "scheme": name.replace("_", "-"),  # which has no _, by RFC 3986 3.1
        "api_version": str(API_VERSION),
        **asdict(framing),
    }
    templates = resources.files(__name__) / "templates"
    files: dict[Path, str] = {}
    for path, template in _FILES.items():
        text = (templates / template).read_text(encoding="utf-8")
        target = folder / Template(path).substitute(values)
        files[target] = Template(text).substitute(values)
    _write(files)
    return list(files)


def own_source() -> str | None:
    """What pip is to be given to install protoserve as it is installed here: a path or a URL;
    ``None`` where its name will do, since it came from an index, and where that is not known.
    Source: the direct_url.json of the packaging specifications."""
    try:
        text = metadata.distribution(PROJECT_NAME).read_text("direct_url.json")
        known = json.loads(text or "{}")
        url = known["url"]
        if vcs := known.get("vcs_info"):
            return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
        parts = urlsplit(url)
        if parts.scheme != "file":
            return str(url)
        path = Path(url2pathname(parts.path))
        return str(path) if path.exists() else None
    except (metadata.PackageNotFoundError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        meant = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-_")
        hint = f"; did you mean {meant}?" if _NAME.match(meant) else ""
        raise ConfigError(
            f"name {name!r}: expected lower-case letters, digits, - and _, with a letter first "
            f"and no - or _ last, for example shout{hint}"
        )
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"name {name!r}: expected at most {_LONGEST_NAME} characters")
    for plugin in installed_plugins():
        if name in plugin.protocols or name == plugin.name:
            raise ConfigError(
                f"name {name!r}: {plugin.distribution} {plugin.version} has a protocol of that "
                "name, which is installed; give another name"
            )


def _write(files: dict[Path, str]) -> None:
    """All of them, or none."""
    with ExitStack() as undo:
        for path, text in files.items():
            for folder in reversed(path.parents):
                if not folder.exists():
                    folder.mkdir()
                    undo.callback(folder.rmdir)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                undo.callback(path.unlink)
                file.write(text)
        undo.pop_all()
