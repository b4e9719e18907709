"""Framing: where one message ends and the next begins, without input and output.

There are two layers. Ready ``message_in``: :func:`lines`, :func:`delimited`, :func:`prefixed`,
:func:`varint_prefixed`, :func:`fixed`; each takes a function that makes a request of a frame.
And :class:`FramedParser` for protocols of one's own: its ``messages`` says what it waits for, and
the :class:`Inbox` does the rest.

Whatever the peer sends, each is linear in it, and holds no more than the size limit and what
was read at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, cast

from protoserve.errors import ConfigError, ProtocolError
from protoserve.params import ServerParams
from protoserve.protocol import HOLD, NEED_DATA, Feedback, Hold, MessageParser, NeedData

__all__ = [
    "Farewell",
    "FramedParser",
    "Inbox",
    "Parsing",
    "Waiting",
    "delimited",
    "encode_prefixed",
    "encode_varint",
    "fixed",
    "lines",
    "prefixed",
    "varint_prefixed",
]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    REQ = TypeVar("REQ", default=bytes)  # before Python 3.13 for type checkers only
else:
    from typing import TypeVar

    REQ = TypeVar("REQ")

ByteOrder: TypeAlias = Literal["big", "little"]

Waiting: TypeAlias = Generator[NeedData, None, bytes]
"""What the inbox's methods return, for ``yield from``: it gives the bytes once they are there."""

Parsing: TypeAlias = Generator[REQ | NeedData | Feedback | Hold, None, None]
"""What ``messages`` returns: requests, and the contract's other words."""

Farewell: TypeAlias = bytes | Callable[[str], bytes]
"""What is sent before a peer that broke the framing is cut: bytes, or made of the fault's text,
which has no line ends. Empty for no word."""

WIDTHS: Final = range(1, 9)
VARINT_BYTES: Final = 10
"""A varint of 64 bits is that long (protobuf); MQTT's are at most 4."""


class Inbox:
    """The bytes of one connection that are in no message yet. What was waited for stays counted,
    against ``limit`` and for ``leftover``, until its message is yielded.

    ``limit``: bytes that a message may have, its framing included; ``None``: no limit. It may be
    changed at any time. A method that is told a ``limit`` of its own holds to the smaller one.

    Every method raises :class:`~protoserve.errors.ProtocolError` for what is longer, as soon as
    that is known, and :class:`~protoserve.errors.ConfigError` for a width or a limit that cannot
    be one. They may be called by the parser only, on whichever thread that runs.
    """

    __slots__ = ("_at", "_ended", "_held", "_searched", "limit")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._held = bytearray()
        self._at = 0  # so many bytes of it were given to `messages`
        self._searched = 0  # up to there is no delimiter
        self._ended = False

    def __len__(self) -> int:
        """Bytes held that nobody waited for yet."""
        return len(self._held) - self._at

    def until(
        self, delimiter: bytes, *, limit: int | None = None, or_end: bool = False
    ) -> Waiting:
        """What comes before ``delimiter``, which is taken away. ``or_end``: where the peer ends
        its side, what is there (at least a byte) is complete too."""
        if not delimiter:
            raise ConfigError("a delimiter is at least one byte")
        self._searched = self._at
        while True:
            found = self._held.find(delimiter, self._searched)
            if found >= 0:
                end = found + len(delimiter)
                break
            if or_end and self._ended and len(self):
                found = end = len(self._held)
                break
            self._check(len(self._held) + 1, limit)
            # The delimiter may be half there.
            self._searched = max(self._at, len(self._held) - len(delimiter) + 1)
            yield NEED_DATA
        self._check(end, limit)
        data = bytes(memoryview(self._held)[self._at : found])
        self._at = end
        return data

    def exactly(self, size: int, *, limit: int | None = None) -> Waiting:
        """The next ``size`` bytes. Raises ``ValueError`` for less than none."""
        if size < 0:
            raise ValueError(f"a size of {size}: it must not be negative")
        end = self._at + size
        self._check(end, limit)
        while len(self._held) < end:
            yield NEED_DATA
        data = bytes(memoryview(self._held)[self._at : end])
        self._at = end
        return data

    def prefixed(
        self,
        width: int,
        byteorder: ByteOrder = "big",
        *,
        includes_header: bool = False,
        limit: int | None = None,
    ) -> Waiting:
        """As many bytes as the unsigned number of ``width`` bytes in front of them says.
        ``includes_header``: that counts itself too."""
        _check_prefix(width, byteorder)
        size = int.from_bytes((yield from self.exactly(width)), byteorder)
        if includes_header:
            size -= width
            if size < 0:
                raise ProtocolError(f"a length of {size + width}, which counts its {width} bytes")
        return (yield from self.exactly(size, limit=limit))

    def varint_prefixed(
        self, *, max_bytes: int = VARINT_BYTES, limit: int | None = None
    ) -> Waiting:
        """As many bytes as the varint in front of them says: seven bits a byte, the lowest
        first, the top bit of all but the last set (protobuf; MQTT, with four bytes at most)."""
        _check_max_bytes(max_bytes)
        size = shift = 0
        while True:
            (byte,) = yield from self.exactly(1)
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (yield from self.exactly(size, limit=limit))
            shift += 7
            if shift == 7 * max_bytes:
                raise ProtocolError(f"a length of more than {max_bytes} bytes")

    def rest(self, *, limit: int | None = None) -> Waiting:
        """All that comes until the peer ends its side, for messages that end with it. May be
        nothing where something was waited for before; by itself it is at least a byte."""
        while not self._ended or not self._held:
            self._check(len(self._held), limit)
            yield NEED_DATA
        return (yield from self.exactly(len(self), limit=limit))

    def discard(self) -> None:
        """What was taken since the last message is in none, such as a blank line between two."""
        del self._held[: self._at]
        self._at = 0

    def _check(self, end: int, limit: int | None) -> None:
        """A message that reaches to ``end`` is not too long, nor this part of it."""
        if self.limit is not None and end > self.limit:
            _check_limit(self.limit, 0)
            raise ProtocolError(f"message of more than {self.limit} bytes")
        if limit is not None and end - self._at > limit:
            _check_limit(limit, 0)
            raise ProtocolError(f"more than {limit} bytes")

    # -- for the parser --------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        self._held += data

    def _end(self) -> None:
        self._ended = True

    def _clear(self) -> None:
        self._held = bytearray()
        self._at = 0


class FramedParser(MessageParser[REQ], Generic[REQ]):
    """A parser written as what it waits for, from the first message to the last::

        class Shouts(FramedParser[str]):
            def messages(self):
                while True:
                    yield (yield from self.inbox.until(b"\\n")).decode()

    ``partial``, the size limit, ``leftover``, errors that stay and :data:`~protoserve.HOLD` (as
    in ``yield HOLD``) come with it. A :class:`~protoserve.errors.ProtocolError` that
    ``messages`` raises is the peer's fault, and so is a ``ValueError``, which conversions
    raise, a ``UnicodeDecodeError`` among them.
    """

    __slots__ = ("_at_hold", "_fault", "_over", "_steps", "inbox")

    def __init__(self, params: ServerParams, *, limit: int | None = None) -> None:
        """``limit``: bytes of a message, where it is smaller than ``request_size_limit``."""
        _check_limit(limit, 1)
        limits = [size for size in (params.request_size_limit, limit) if size is not None]
        self.inbox = Inbox(min(limits, default=None))
        self._steps: Parsing[REQ] | None = None
        self._fault: Exception | None = None
        self._at_hold = False  # the last answer was HOLD
        self._over = False  # `messages` has ended there: nothing more is read

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in FramedParser.__slots__:
                raise ConfigError(
                    f"{type(self).__qualname__} has no {name} yet: its __init__ must call "
                    "super().__init__(params) before all else"
                )
            return object.__getattribute__(self, name)  # raises what it raised before

    @abstractmethod
    def messages(self) -> Parsing[REQ]:
        """Yield each request. Must wait for something between two, and must not end but after
        ``yield HOLD``, where the connection goes on in another protocol: when it does not, what
        still comes is ignored."""

    def farewell(self, fault: str) -> bytes:
        """What is sent before a peer that did this is cut; by default nothing. Not asked where
        the error has a ``reply`` already."""
        return b""

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer."""
        if self._fault is None and not self._over:
            self.inbox._feed(data)

    def next_message(self) -> REQ | NeedData | Feedback | Hold:
        """The next of ``messages``. Raises ``ProtocolError``, and again on later calls."""
        if self._fault is not None:
            raise self._fault.with_traceback(None)
        if self._over:
            return NEED_DATA
        if self._steps is None:
            self._steps = self.messages()
        at_hold, self._at_hold = self._at_hold, False
        try:
            message = next(self._steps)
        except StopIteration:
            if at_hold:
                self._over = True
                self.inbox._clear()
                return NEED_DATA
            self._fail(
                RuntimeError(
                    f"{type(self).__qualname__}.messages has ended: a loop? Only after `yield "
                    "HOLD` it may"
                )
            )
        except ConfigError as error:  # a bug, though it is a ValueError
            self._fail(error)
        except ProtocolError as error:
            if not error.reply:
                error.reply = self.farewell(" ".join(str(error).split()))
            self._fail(error)
        except ValueError as error:
            text = " ".join(str(error).split())
            self._fail(ProtocolError(text, reply=self.farewell(text)))
        except Exception as error:
            self._fail(error)
        if message is HOLD:
            self._at_hold = True
            return message
        if message is NEED_DATA or isinstance(message, Feedback):
            return message
        if isinstance(message, GeneratorType):
            self._fail(
                TypeError(
                    f"{type(self).__qualname__}.messages yielded {message.__qualname__}() itself, "
                    "not what it gives: put `yield from` before it, as in `line = yield from "
                    "self.inbox.until(...)`"
                )
            )
        self.inbox.discard()
        return message

    @property
    def partial(self) -> bool:
        """Whether anything of a message is held."""
        return bool(self.inbox._held)

    def feed_eof(self) -> None:
        """The peer will send no more: ``Inbox.rest`` and ``until(or_end=True)`` are complete."""
        self.inbox._end()

    def leftover(self) -> bytes:
        """What was fed and is in no message."""
        return bytes(self.inbox._held)

    def close(self) -> None:
        """The connection has closed: ``messages`` is closed, which ends the cycle with it."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        self._fault = None
        self.inbox._clear()

    def _fail(self, error: Exception) -> Any:
        self._fault = error
        self.inbox._clear()
        raise error


MessageIn: TypeAlias = Callable[[ServerParams], MessageParser[REQ]]


class _ReadyParser(FramedParser[REQ]):
    """A frame at a time, each made a request."""

    __slots__ = ("_decode", "_frame", "_words")

    def __init__(
        self,
        params: ServerParams,
        frame: Callable[[Inbox], Waiting],
        decode: Callable[[bytes], REQ],
        limit: int | None,
        words: Farewell,
    ) -> None:
        super().__init__(params, limit=limit)
        self._frame = frame
        self._decode = decode
        self._words = words

    def messages(self) -> Parsing[REQ]:
        while True:
            yield self._decode((yield from self._frame(self.inbox)))

    def farewell(self, fault: str) -> bytes:
        return self._words(fault) if callable(self._words) else self._words


def _ready(
    frame: Callable[[Inbox], Waiting],
    decode: Callable[[bytes], REQ] | None,
    limit: int | None,
    farewell: Farewell,
    least: int = 1,
) -> MessageIn[REQ]:
    if decode is not None and not callable(decode):
        raise ConfigError(
            f"decode={decode!r}: expected a function that makes a request of a frame's bytes, "
            "such as bytes.decode, or None"
        )
    _check_limit(limit, least)
    if not callable(farewell) and not isinstance(farewell, bytes):
        raise ConfigError(
            f"farewell={farewell!r}: expected bytes, or a function that makes them of a text"
        )
    convert = cast("Callable[[bytes], REQ]", bytes) if decode is None else decode

    def message_in(params: ServerParams) -> MessageParser[REQ]:
        return _ReadyParser(params, frame, convert, limit, farewell)

    return message_in


def lines(
    decode: Callable[[bytes], REQ] | None = None,
    *,
    limit: int | None = None,
    farewell: Farewell = b"",
) -> MessageIn[REQ]:
    """Frames are lines that end with LF or CR LF, which are not part of them; the last one may
    end with the connection.

    The same for all the functions here: ``decode`` makes a request of a frame, by default the
    bytes themselves; its ``ValueError`` or ``ProtocolError`` is the peer's fault. ``limit``: the
    bytes of a frame with its framing, where smaller than ``request_size_limit``. ``farewell``:
    what a peer is told that breaks the framing. Raises ``ConfigError`` for what cannot work.
    """

    def frame(inbox: Inbox) -> Waiting:
        return (yield from inbox.until(b"\n", or_end=True)).removesuffix(b"\r")

    return _ready(frame, decode, limit, farewell)


def delimited(
    delimiter: bytes,
    decode: Callable[[bytes], REQ] | None = None,
    *,
    limit: int | None = None,
    farewell: Farewell = b"",
) -> MessageIn[REQ]:
    """Frames end with exactly these bytes, which are not part of them. See :func:`lines`."""
    if not isinstance(delimiter, bytes) or not delimiter:
        raise ConfigError(f"delimiter={delimiter!r}: expected bytes, at least one")
    return _ready(
        lambda inbox: inbox.until(delimiter), decode, limit, farewell, least=len(delimiter)
    )


def prefixed(
    width: int,
    decode: Callable[[bytes], REQ] | None = None,
    *,
    byteorder: ByteOrder = "big",
    includes_header: bool = False,
    limit: int | None = None,
    farewell: Farewell = b"",
) -> MessageIn[REQ]:
    """A frame follows its length, an unsigned number of ``width`` bytes (1 to 8), which is not
    part of it. ``includes_header``: the length counts itself, too. See :func:`lines`."""
    _check_prefix(width, byteorder)

    def frame(inbox: Inbox) -> Waiting:
        return inbox.prefixed(width, byteorder, includes_header=includes_header)

    return _ready(frame, decode, limit, farewell, least=width)


def varint_prefixed(
    decode: Callable[[bytes], REQ] | None = None,
    *,
    max_bytes: int = VARINT_BYTES,
    limit: int | None = None,
    farewell: Farewell = b"",
) -> MessageIn[REQ]:
    """A frame follows its length, a varint of at most ``max_bytes`` bytes, seven bits in each,
    the lowest first, as protobuf's streams have it. See :func:`lines`."""
    _check_max_bytes(max_bytes)
    return _ready(
        lambda inbox: inbox.varint_prefixed(max_bytes=max_bytes), decode, limit, farewell
    )


def fixed(
    size: int,
    decode: Callable[[bytes], REQ] | None = None,
    *,
    farewell: Farewell = b"",
) -> MessageIn[REQ]:
    """Each frame has ``size`` bytes. See :func:`lines`."""
    if not _is_whole(size) or size < 1:
        raise ConfigError(f"size={size!r}: expected a number of bytes, 1 or more")
    return _ready(lambda inbox: inbox.exactly(size), decode, None, farewell)


def encode_prefixed(
    data: bytes,
    width: int,
    byteorder: ByteOrder = "big",
    *,
    includes_header: bool = False,
) -> list[bytes]:
    """What :func:`prefixed` reads, for ``message_out``. Raises ``OverflowError`` where the
    length does not fit into ``width`` bytes, and ``TypeError`` for data that is not bytes."""
    _check_prefix(width, byteorder)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"the data of encode_prefixed is bytes, not {type(data).__name__}")
    size = len(data) + (width if includes_header else 0)
    if size >> 8 * width:
        raise OverflowError(
            f"a length of {size} does not fit into width={width}: it is {(1 << 8 * width) - 1} at "
            "most there"
        )
    return [size.to_bytes(width, byteorder), data]


def encode_varint(number: int) -> bytes:
    """The varint of a number that is not negative, else raises ``ValueError``."""
    if number < 0:
        raise ValueError(f"a varint of {number}: it must not be negative")
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _is_whole(value: object) -> bool:
    """Whether it is an ``int``, and not meant as true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_limit(limit: int | None, least: int) -> None:
    if limit is not None and (not _is_whole(limit) or limit < least):
        raise ConfigError(f"limit={limit!r}: expected a number of bytes, {least} or more, or None")


def _check_max_bytes(max_bytes: int) -> None:
    if not _is_whole(max_bytes) or not 1 <= max_bytes <= VARINT_BYTES:
        raise ConfigError(f"max_bytes={max_bytes!r}: expected 1 to {VARINT_BYTES}")


def _check_prefix(width: int, byteorder: str) -> None:
    if not _is_whole(width) or width not in WIDTHS:
        raise ConfigError(f"width={width!r}: expected 1 to 8 bytes, mostly 1, 2, 4 or 8")
    if byteorder not in ("big", "little"):
        raise ConfigError(f"byteorder={byteorder!r}: expected 'big' or 'little'")
