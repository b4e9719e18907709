"""RedisRequest and RedisResponse: the messages that a handler sees."""

from __future__ import annotations

from typing import Any

from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class RedisRequest:
    """A command with its arguments, ``args``: at least one, the command as it was sent."""

    __slots__ = ("args",)

    args: list[bytes]

    def __init__(self, args: list[bytes]) -> None:
        self.args = args

    def __repr__(self) -> str:
        return f"<RedisRequest {self.name!r} with {len(self.args) - 1} arguments>"

    @property
    def name(self) -> str:
        """The command in upper case; bytes above ASCII as Latin-1."""
        # Upper-cased as bytes, which leaves what is not ASCII alone.
        return self.args[0].upper().decode("latin-1")


@mypyc_attr(allow_interpreted_subclasses=True)
class RedisResponse:
    """A reply: ``value``, and ``protocol``, the RESP version it is sent in, 2 or 3.

    ``value`` is what a client is to see: ``None``, bytes-like or ``str`` (sent as UTF-8),
    ``int``, ``float``, ``bool``, a list or tuple, dict, set, or one of this package's
    own: ``OK``, ``RedisError``, ...; ``NO_REPLY`` sends nothing.
    """

    __slots__ = ("protocol", "value")

    value: Any
    protocol: int

    def __init__(self, value: Any = None, protocol: int = 2) -> None:
        self.value = value
        self.protocol = protocol
