"""Habits: which handlers block, learnt while they run.

A handler that blocks should be called after another thread has been promoted to lead; one
that computes gains nothing by that, nor does one whose thread the system took from the CPU.
The difference shows in the clock of the thread's own CPU time and in its count of voluntary
context switches. Both are system calls, and are read only where a handler was slow before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from itertools import count
from math import inf
from time import thread_time
from typing import Final

if sys.platform == "linux":
    from resource import RUSAGE_THREAD, getrusage

SLOW: Final = 0.0002
"""Seconds after which a call counts as slow, and off the CPU after which it blocked: a
change of threads costs some tens of microseconds."""

_MEMORY: Final = 64
"""Calls after which it is forgotten that a handler blocks, unless it did again."""

_SUSPICION: Final = 8
"""Calls that are watched because one before them was slow."""

_PROOF: Final = 2
"""Times that a handler must be seen off the CPU: once may be a busy machine's doing."""

_LATELY: Final = 0.01
"""Seconds in which two calls must be slow that have nothing else in common. One alone may be a
busy machine's doing, which takes a thread from the CPU now and then."""

_AGAIN: Final = 1.0
"""The same for two calls of one key."""

_ROUND: Final = 512
"""Calls after which it is looked whether ``_AGAIN`` has passed."""

_MOST_SLOW: Final = 100
"""Keys of slow calls that are kept."""

_MOST_KEYS: Final = 1000
"""Habits kept at once; where keys are of endless variety, all start anew."""


class _Others:
    __slots__ = ()


OTHERS: Final = _Others()
"""The key of all handlers that have no habit of their own."""


class Habit:
    """What one kind of call is used to. Any thread; a count that two threads miss together
    costs one thread change."""

    __slots__ = ("_age", "_left", "_seen", "missed")

    def __init__(self) -> None:
        self.missed = False
        """There was no call since it was looked for those that do not come."""
        self._age = 0
        self._left = 0
        self._seen = 0

    @property
    def blocks(self) -> bool:
        """Whether the next call is expected to block."""
        return self._left > 0

    def expect_blocking(self) -> None:
        """It blocks: that was seen from outside."""
        self._age = 0
        self._seen = _PROOF
        self._left = _MEMORY

    def note(self, slow: bool, blocked: bool) -> bool:
        """A call has ended. Returns whether there is nothing worth to remember."""
        self.missed = False
        if blocked:
            self._age = 0
            self._seen += 1
            if self._seen >= _PROOF:
                self._left = _MEMORY
            return False
        if slow:
            # It computes. What looks like blocking may be waiting for the interpreter, which
            # other threads compute in: no reason to bring in more of them.
            self._seen = 0
            self._left //= 2
        elif self._left:
            self._left -= 1
        self._age += 1
        return self._age >= (_MEMORY if self._seen >= _PROOF else _SUSPICION)


class Watch:
    """What one call does, from its beginning on. Of the calling thread."""

    __slots__ = ("_began", "_clock", "_cpu", "_switches")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._switches = _voluntary_switches()
        self._cpu = thread_time()
        self._began = clock()

    def end(self) -> tuple[float, bool, bool]:
        """The time; whether the call was slow by its own doing, because it computed or
        blocked; whether it blocked."""
        now = self._clock()
        spent = now - self._began
        if spent <= SLOW:
            return now, False, False
        cpu = thread_time() - self._cpu
        blocked = spent - cpu > SLOW and _voluntary_switches() != self._switches
        # Otherwise the system took the thread from the CPU, which says nothing of the call.
        return now, blocked or cpu > SLOW, blocked


if sys.platform == "linux":

    def _voluntary_switches() -> int:
        return getrusage(RUSAGE_THREAD).ru_nvcsw
else:  # pragma: no cover - others count them for the process only
    _calls = count()

    def _voluntary_switches() -> int:
        return next(_calls)


class Habits:
    """The habits of one server's handlers, by the protocol's key for a request.

    ``known`` is empty until handlers were slow, the same one twice or two at nearly the same time,
    or the monitor saw one; the rest is used only then. Where handlers are said never to block,
    nothing is learnt (``learns``). Any thread.
    """

    __slots__ = ("_asked", "_looked_at", "_slow", "_slow_at", "known", "learns")

    def __init__(self) -> None:
        self.learns = True
        self.known: dict[Hashable, Habit] = {}
        self._asked = 0  # since it was looked
        self._looked_at = -inf  # for those that do not come
        self._slow: dict[Hashable, float] = {}  # when one was, by key
        self._slow_at = -inf  # when any was

    def of(self, key: Hashable, now: float) -> Habit | None:
        """The habit of this key, or else that of all who have none of their own. ``now``: seconds
        of the poller's clock, here and below."""
        known = self.known
        self._asked += 1
        if self._asked >= _ROUND:
            self._asked = 0
            if now - self._looked_at >= _AGAIN:
                self._looked_at = now
                self._forget_missing()
        return known.get(key) or known.get(OTHERS)

    def _forget_missing(self) -> None:
        """While anything is known every request is asked for its key: not for what does not come
        again, and is not expected to block."""
        for key, habit in list(self.known.items()):
            if habit.missed and not habit.blocks:
                self.known.pop(key, None)
            habit.missed = True

    def slow(self, key: Hashable, now: float) -> None:
        """A call that was not watched was slow. One alone may be the system's doing."""
        if not self.learns:
            return
        again = now - self._slow.get(key, -inf) < _AGAIN
        lately = now - self._slow_at < _LATELY
        if len(self._slow) >= _MOST_SLOW:
            self._slow.clear()
        self._slow[key] = self._slow_at = now
        known = self.known
        # Of one that is known the monitor has seen more.
        if again and key not in known:
            self._know(key).note(True, False)
        if (again or lately) and OTHERS not in known:
            self._know(OTHERS).note(True, False)

    def _know(self, key: Hashable) -> Habit:
        known = self.known
        if len(known) >= _MOST_KEYS:
            others = known.get(OTHERS)
            known.clear()
            if others is not None:
                known[OTHERS] = others
        return known.setdefault(key, Habit())

    def note(self, key: Hashable, slow: bool, blocked: bool) -> None:
        """A call that was watched has ended: whether it was slow, and whether off the CPU."""
        known = self.known
        own = known.get(key)
        if own is not None:
            if own.note(slow, blocked):
                known.pop(key, None)
            return
        others = known.get(OTHERS)
        if others is None:
            if not blocked:
                return
            others = self._know(OTHERS)
        # One that is fast among others that block, or blocks among fast ones, is to be known.
        if blocked or others.blocks:
            self._know(key).note(slow, blocked)
        if others.note(slow, blocked):
            known.pop(OTHERS, None)

    def surprise(self, key: Hashable) -> None:
        """A call of this key was seen to block while it does: so may those behind it."""
        if not self.learns:
            return
        for whose in (key, OTHERS):
            self._know(whose).expect_blocking()
