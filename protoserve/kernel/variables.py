"""Context variables: each request has a context of its own, wherever its work runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TypeVar

T = TypeVar("T")


def run_in(context: Context, function: Callable[..., T], *args: object) -> T:
    """Call ``function(*args)`` in ``context``; in a copy of it where the context is in use
    at the moment: by the caller itself, or on another thread. Any thread."""
    try:
        return context.run(function, *args)
    except RuntimeError as error:
        traceback = error.__traceback__
        if traceback is not None and traceback.tb_next is not None:
            raise  # the function's, not that of run()
    return context.copy().run(function, *args)
