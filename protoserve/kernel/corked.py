"""Corked: the replies of one turn of the poller, which are sent one after the other.

A client that sleeps has to be woken by each reply that reaches it alone, and that costs more
than the sending; of those that are sent together the first wakes it.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

from protoserve.kernel.ending import broken
from protoserve.kernel.life import SHUT
from protoserve.kernel.locking import acquire
from protoserve.kernel.output import JOIN_SIZE
from protoserve.kernel.waiting import settle

if TYPE_CHECKING:
    from protoserve.kernel.communicator import Communicator
    from protoserve.kernel.entry import CommConnEntry

# Names of this module are found faster in the compiled build.
_acquire: Final = acquire
_append: Final = deque.append
_popleft: Final = deque.popleft

PATIENCE: Final = 0.0005
"""Seconds that a reply waits for others: a turn of a busy server is shorter."""


class Corked:
    """Connections of one communicator whose replies are given, and go out when the other events of
    the turn have had theirs.

    Filled by the thread that leads, emptied by any: by the leader at the end of the turn, and
    before a handler that was slow before; as soon as a handler blocks it, by the next. The
    connections' locks are taken here one at a time, with none held.
    """

    __slots__ = ("_communicator", "_entries", "_since")

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._entries: deque[CommConnEntry] = deque()
        self._since = inf

    @property
    def overdue(self) -> bool:
        """Whether the first has waited long enough, whatever was handled meanwhile: ``send`` is to
        be called."""
        return self._communicator.poller.now - self._since > PATIENCE

    def take(self, entry: CommConnEntry, now: float) -> bool:
        """Let the output of a connection wait, whose requests were handled up to ``now``.
        False when it should be sent at once: this is the turn's last event, or there is a
        reason not to wait. With the connection's lock."""
        output = entry.output
        poller = self._communicator.poller
        if (
            not poller.ready
            or entry.life.rung
            or output.size >= JOIN_SIZE
            or output.size >= output.limit
        ):
            return False
        if not output.corked:
            threads = self._communicator.threads
            leader = None
            if threads is not None:
                leader = threads.leader_here()
                if leader is None:
                    return False
            entries = self._entries
            output.corked = True
            _append(entries, entry)
            # Looked at afterwards: a former leader may be sending the others this moment, and
            # either it finds this one, too, or this one is found to be alone.
            if len(entries) <= 1:
                self._since = now
                _append(poller.ready, (self.send, None, 0))
            # Another thread may have become the leader this moment, and wait already.
            if threads is not None and threads.leader is not leader:
                poller.post(self.send, None)
        return True

    def send(self, _: object = None, __: int = 0) -> None:
        """Send all that waits. Any thread, without a lock."""
        self._since = inf
        entries = self._entries
        if not entries:
            return
        now = self._communicator.clock()
        while entries:
            try:
                entry = _popleft(entries)
            except IndexError:  # another thread is at it, too
                break
            _acquire(entry.lock)
            output = entry.output
            output.corked = False
            try:
                if entry.life.rung < SHUT:
                    output.flush(entry)
                    settle(entry, now)
            except BaseException:
                broken(entry)
            entry.release()
        self._communicator.poller.refresh()  # or the next handler would look slow
