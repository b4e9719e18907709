"""Whose work a thread does at the moment, so that it is not made to wait for itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from protoserve.kernel.service import CommService


class Current(threading.local):
    """Set where work of a service runs on threads that are not its engine's alone: a series
    that goes on wherever a task of it ended, a function on a compute thread, callbacks."""

    service: CommService | None = None
    """The service that waits for what this thread does; ``None`` for no service."""

    @contextlib.contextmanager
    def working_for(self, service: CommService) -> Iterator[None]:
        """The service waits for what is done within."""
        before = self.service
        self.service = service
        try:
            yield
        finally:
            self.service = before


CURRENT: Final = Current()
