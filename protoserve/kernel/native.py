"""NativeParser: a parser that the engine calls without asking Python, where both are compiled."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic

from mypy_extensions import mypyc_attr

from protoserve.kernel.subtask import lacking
from protoserve.protocol import REQ, MessageParser


@mypyc_attr(allow_interpreted_subclasses=True)
class NativeParser(MessageParser[REQ], Generic[REQ]):
    """A :class:`~protoserve.protocol.MessageParser` for plugins that are compiled by mypyc:
    where the engine is, too, the three methods that each request passes through are called as C
    functions.

    In Python it is a ``MessageParser`` like any other, but for one thing: in the compiled build
    these methods have to return what they say (``feed`` nothing, ``partial`` a ``bool``), or
    ``TypeError`` is raised.
    """

    __slots__ = ()

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """See ``MessageParser``."""
        raise lacking(self, "feed")

    @abstractmethod
    def next_message(self) -> Any:
        """See ``MessageParser``."""
        raise lacking(self, "next_message")

    @property
    @abstractmethod
    def partial(self) -> bool:
        """See ``MessageParser``."""
        raise lacking(self, "partial")
