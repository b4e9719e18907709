"""What a response becomes that was given to the connection."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, Protocol

from multidict import CIMultiDict

from protoserve import UsageError


class Sent(Enum):
    """What a response that was given to the connection has in place of pieces."""

    WHOLE = 1
    PIECES = 2


SENT_WHOLE: Final = Sent.WHOLE
SENT_PIECES: Final = Sent.PIECES


class Counted(Protocol):
    """Knows how many bytes of a body were given out."""

    sent: int


def lost(what: str) -> str:
    return (
        f"the response is on its way already, and {what} cannot change; have what comes before "
        "the reply on task.series, or yield from an iterator that is the body"
    )


class SentHeaders(CIMultiDict[str]):
    """The header fields of a response that is on its way: to be read only."""

    def _refuse(self, *args: object, **kwargs: object) -> Any:
        raise UsageError(lost("its headers"))

    def copy(self) -> Any:
        """The same fields, to be changed."""
        return CIMultiDict(self)

    __setitem__ = __delitem__ = __ior__ = _refuse
    add = extend = merge = update = setdefault = _refuse
    pop = popone = popall = popitem = clear = _refuse
