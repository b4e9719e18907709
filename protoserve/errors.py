"""The exceptions of protoserve. All derive from :class:`ProtoserveError`."""

from __future__ import annotations

from collections.abc import Mapping


class ProtoserveError(Exception):
    """The base of every exception that protoserve raises on purpose."""


class ConfigError(ProtoserveError, ValueError):
    """A parameter, address or specification is wrong; the message says the remedy."""


class BindError(ProtoserveError, OSError):
    """A server could not listen: port in use, no permission, no such address.

    ``errno`` and ``strerror`` are those of the operating system's error.
    """


class PluginError(ProtoserveError):
    """A plugin or protocol that was asked for by name cannot be used."""


class UsageError(ProtoserveError, RuntimeError):
    """A call that makes no sense now: starting twice, stopping from a handler, ...

    The message says what to do instead.
    """


class ProtocolError(ProtoserveError):
    """The peer broke the protocol, or exceeded a limit of it.

    Raised by :meth:`~protoserve.protocol.MessageParser.next_message` after all good
    messages before the fault were returned. ``reply`` is the protocol's farewell, a
    complete message that is sent before the connection closes; empty for none. ``summary``
    are facts for observers, as ``ProtocolSpec.summary`` gives them: a status, for example.
    """

    def __init__(
        self,
        message: str,
        *,
        reply: bytes = b"",
        summary: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.summary: Mapping[str, object] = {} if summary is None else summary
        if not isinstance(reply, (bytes, bytearray, memoryview)):
            raise TypeError(f"the reply of a ProtocolError is bytes, not {type(reply).__name__}")
        self.reply = reply
