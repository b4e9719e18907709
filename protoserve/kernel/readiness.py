"""Readiness: what the operating system tells of descriptors, epoll or kqueue."""

from __future__ import annotations

import select
import sys
from typing import Final, Protocol

READABLE: Final = 0x0001
WRITABLE: Final = 0x0004
HANGUP: Final = 0x2000
"""The peer has ended its sending side."""
GONE: Final = 0x0018
"""An error, or both sides are down: there is nobody to send to."""

MOST_EVENTS: Final = 16
"""Events that one wait tells of: what is made for so many requests stays in the processor's
nearest caches until the next."""


class Readiness(Protocol):
    """What the poller needs of the operating system."""

    def add(self, fd: int) -> None: ...
    def remove(self, fd: int) -> None: ...
    def poll(self, timeout: float) -> list[tuple[int, int]]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


if sys.platform == "linux":

    class EpollReadiness:
        """epoll(7), edge-triggered. Its bits are the ones of this module."""

        _INTEREST: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

        def __init__(self) -> None:
            self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)

        def add(self, fd: int) -> None:
            self._epoll.register(fd, self._INTEREST)

        def remove(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return self._epoll.poll(timeout, MOST_EVENTS)

        def fileno(self) -> int:
            return self._epoll.fileno()

        def close(self) -> None:
            self._epoll.close()
else:  # pragma: no cover - BSD and macOS

    class KqueueReadiness:
        """kqueue(2), with ``EV_CLEAR`` as its edge-triggered mode."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def add(self, fd: int) -> None:
            flags = select.KQ_EV_ADD | select.KQ_EV_CLEAR
            self._kqueue.control(
                [
                    select.kevent(fd, select.KQ_FILTER_READ, flags),
                    select.kevent(fd, select.KQ_FILTER_WRITE, flags),
                ],
                0,
            )

        def remove(self, fd: int) -> None:
            for kind in (select.KQ_FILTER_READ, select.KQ_FILTER_WRITE):
                try:
                    self._kqueue.control([select.kevent(fd, kind, select.KQ_EV_DELETE)], 0)
                except FileNotFoundError:
                    continue

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            events = self._kqueue.control(None, 2 * MOST_EVENTS, None if timeout < 0 else timeout)
            masks: dict[int, int] = {}
            for event in events:
                mask = READABLE if event.filter == select.KQ_FILTER_READ else WRITABLE
                if event.flags & select.KQ_EV_EOF:
                    # On the reading side the peer may have ended its sending only.
                    mask |= GONE if event.filter == select.KQ_FILTER_WRITE else HANGUP
                masks[event.ident] = masks.get(event.ident, 0) | mask
            return list(masks.items())

        def fileno(self) -> int:
            return self._kqueue.fileno()

        def close(self) -> None:
            self._kqueue.close()


def open_readiness() -> Readiness:
    """The operating system's mechanism. Raises ``RuntimeError`` where there is none."""
    if sys.platform == "linux":
        return EpollReadiness()
    elif hasattr(select, "kqueue"):  # noqa: RET505 - the type checker needs the branch
        return KqueueReadiness()
    raise RuntimeError(
        f"protoserve needs epoll or kqueue and found neither on {sys.platform!r}; "
        "run it on Linux or macOS"
    )
