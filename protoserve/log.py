"""The project's logger, from which no exception comes back.

A filter or handler of the application's that raises must not take a connection, a handler
thread or the server with it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any


class _Logger:
    """The methods that are used here of ``logging.getLogger("protoserve")``."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def _log(self, level: int, message: str, *args: object, **options: Any) -> None:
        try:
            self._logger.log(level, message, *args, stacklevel=3, **options)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                sys.stderr.write(f"protoserve: logging {message!r} raised {type(error)!r}\n")

    def debug(self, message: str, *args: object, **options: Any) -> None:
        self._log(logging.DEBUG, message, *args, **options)

    def warning(self, message: str, *args: object, **options: Any) -> None:
        self._log(logging.WARNING, message, *args, **options)

    def error(self, message: str, *args: object, **options: Any) -> None:
        self._log(logging.ERROR, message, *args, **options)

    def exception(self, message: str, *args: object) -> None:
        self._log(logging.ERROR, message, *args, exc_info=True)


logger = _Logger("protoserve")
"""Any thread. What the application's filters and handlers raise is written to stderr."""
