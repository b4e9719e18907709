"""Where in the files of others a fault is, for messages."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import traceback
from types import ModuleType
from typing import Final

import pluggy

from protoserve import hookspecs

_PASSING: Final = (
    "<",  # code that is no file: frozen modules, the methods that dataclasses generate
    *(
        os.path.dirname(path) + os.sep
        for path in (importlib.__file__, pluggy.__file__, hookspecs.__file__)
    ),
)
"""Where a fault may pass through, and a reader does not look for it."""

_STDLIB: Final = os.path.dirname(os.__file__) + os.sep


def place_of(item: object) -> str:
    """The file and line of a function, class or module, for a message; empty if unknown."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(item) if callable(item) else item)  # type: ignore[arg-type]
        if isinstance(item, ModuleType):
            return f" ({path}:1)" if path else ""
        _, line = inspect.getsourcelines(item)  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError):
        return ""
    return f" ({path}:{line})" if path else ""


def place_assigned(module: ModuleType | None, name: str) -> str:
    """Where a module assigns to a name of its own."""
    try:
        lines, _ = inspect.getsourcelines(module)  # type: ignore[arg-type]
        path = inspect.getsourcefile(module)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
    for number, line in enumerate(lines, 1):
        if re.match(rf"\s*{name}\b", line):
            return f" ({path}:{number})"
    return ""


def frames_of(error: BaseException) -> list[tuple[str, int]]:
    """The lines of code that it came through, without those of the import system, pluggy and
    protoserve."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        (frame.filename, frame.lineno or 0)
        for frame in frames
        if not frame.filename.startswith(_PASSING)
    ]


def last_place(frames: list[tuple[str, int]]) -> str:
    """The last of them that is neither Python's own nor protoserve's, for a message."""
    for path, line in reversed(frames):
        own = path.startswith(_STDLIB) and "site-packages" not in path
        if not own and not path.startswith(_PASSING):
            return f" ({path}:{line})"
    return ""


def describe(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the last line of code outside
    the import system, pluggy and protoserve that it came through."""
    kind = type(error).__name__
    try:
        message = one_line(error.msg if isinstance(error, SyntaxError) else str(error))
    except Exception:  # a __str__ of its own that fails
        message = ""
    text = f"{kind}: {message}" if message else kind
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({error.filename}:{error.lineno})"
    where = frames_of(error)
    return f"{text} ({where[-1][0]}:{where[-1][1]})" if where else text


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text)


def kind_of(plugin: object) -> str:
    """What it is, for a message."""
    return "module" if isinstance(plugin, ModuleType) else type(plugin).__name__
