"""The values of replies beyond Python's own: what a command returns, or raises."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
"""What Redis holds an integer in: 64 bits with a sign."""


def decoded(data: bytes) -> str:
    """Bytes of a client as text, from which ``encoded`` makes the same again."""
    return data.decode("utf-8", "surrogateescape")


def encoded(text: str) -> bytes:
    """Text as bytes; what ``decoded`` took from a client as it came."""
    return text.encode("utf-8", "surrogateescape")


class SimpleString(str):
    """A status such as ``+OK``; CR and LF in it are sent as spaces."""

    __slots__ = ()


OK: Final = SimpleString("OK")
"""What Redis' commands answer that have been done."""

PONG: Final = SimpleString("PONG")
"""What ``PING`` answers."""

QUEUED: Final = SimpleString("QUEUED")
"""What a command answers that waits for ``EXEC``."""


class RedisError(Exception):
    """An error reply: its text is the line after ``-``, as in ``ERR syntax error``.

    A command raises it, or returns it, also within an array. Clients look at the first
    word, the code, in capitals; a text that begins with none is sent after ``ERR``. CR and
    LF are sent as spaces, those at the ends not at all. Bytes of the client that a
    text quotes are to be decoded with UTF-8 and ``surrogateescape``: so they are sent as
    they came.
    """


class BigNumber(int):
    """An integer of any size: ``(`` in RESP3, its digits as a string in RESP2."""

    __slots__ = ()


class Verbatim(bytes):
    """A text that tells its format, three characters: ``txt`` or ``mkd``. A string in
    RESP2. Raises ``ValueError`` for another length of format."""

    format: str

    def __new__(cls, data: bytes | str, format: str = "txt") -> Verbatim:  # noqa: A002
        """``data`` is encoded as UTF-8 where it is text."""
        if len(format) != 3 or not format.isascii():
            raise ValueError(f"format {format!r}: expected three ASCII characters")
        self = super().__new__(cls, data.encode() if isinstance(data, str) else data)
        self.format = format
        return self


class Push(list[Any]):
    """A message that answers no command, such as one of a channel: ``>`` in RESP3, an
    array in RESP2."""

    __slots__ = ()


class Attributed:
    """A value with attributes, which RESP3 sends before it and RESP2 not at all."""

    __slots__ = ("attributes", "value")

    def __init__(self, value: Any, attributes: Mapping[Any, Any]) -> None:
        self.value = value
        self.attributes = attributes


class Raw(bytes):
    """Bytes that are encoded already, sent as they are."""

    __slots__ = ()


class NullArray(Enum):
    """The type of ``NULL_ARRAY``."""

    NULL_ARRAY = "NULL_ARRAY"


class NoReply(Enum):
    """The type of ``NO_REPLY``."""

    NO_REPLY = "NO_REPLY"


NULL_ARRAY: Final = NullArray.NULL_ARRAY
"""The absent array: ``*-1`` in RESP2, in RESP3 the same null as ``None``."""

NO_REPLY: Final = NoReply.NO_REPLY
"""Nothing is sent for this command, and the connection goes on."""
