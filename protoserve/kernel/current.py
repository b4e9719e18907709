"""Whose work a thread does at the moment, so that it is not made to wait for itself."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from protoserve.kernel.session import CommService


class Current(threading.local):
    """Set where work of a service runs on threads that are not its engine's alone: a series
    that goes on wherever a task of it ended, a function on a compute thread, callbacks."""

    service: CommService | None = None
    """The service that waits for what this thread does; ``None`` for no service."""


CURRENT: Final = Current()
