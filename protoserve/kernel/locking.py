"""A connection's lock, and how it is taken and let go on the way of each request."""

from __future__ import annotations

import threading
from typing import Final

# An RLock, because it knows its owner: nobody relies on taking it twice.
new_lock: Final = threading.RLock

# Its methods as functions, which need not be found anew for each lock.
acquire: Final = type(new_lock()).acquire
release: Final = type(new_lock()).release
