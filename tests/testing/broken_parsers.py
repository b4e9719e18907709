"""A small protocol that is right, and the same with one fault each."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from protoserve import (
    HOLD,
    NEED_DATA,
    Hold,
    MessageParser,
    NeedData,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
)


class Word:
    """A request; neither equality nor a repr."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


@dataclass
class Reply:
    text: bytes = b""


class WordParser(MessageParser[Word]):
    """Words that end with ``;``. After ``up;`` the connection may go on in another protocol. A
    word with a digit in it is an error."""

    def __init__(self, params: ServerParams) -> None:
        assert params.request_size_limit is not None
        self.limit = params.request_size_limit
        self.held = bytearray()
        self.searched = 0
        self.error: ProtocolError | None = None
        self.holds_back = False
        self.ended = False

    def feed(self, data: bytes) -> None:
        if self.error is None:
            self.held += data

    def feed_eof(self) -> None:
        self.ended = True

    def next_message(self) -> Word | NeedData | Hold:
        if self.holds_back:
            self.holds_back = False
            return HOLD
        text = self.up_to(b";")
        if text is None:
            return NEED_DATA
        if any(character in b"0123456789" for character in text):
            raise self.refuse("a digit")
        self.holds_back = text == b"up"
        return Word(text)

    def up_to(self, delimiter: bytes) -> bytes | None:
        """What comes before it, which is taken away; None where it is not there yet."""
        if self.error is not None:
            raise self.error
        end = self.held.find(delimiter, self.searched)
        size = len(self.held) if end < 0 else end + 1
        if size > self.limit:
            raise self.refuse("too long")
        if end < 0:
            self.searched = size
            return None
        text = bytes(self.held[:end])
        del self.held[:size]
        self.searched = 0
        return text

    def refuse(self, text: str) -> ProtocolError:
        self.held.clear()
        self.error = ProtocolError(text, reply=b"error: %b;" % text.encode())
        return self.error

    @property
    def partial(self) -> bool:
        return bool(self.held)

    def leftover(self) -> bytes:
        return bytes(self.held)


class LosesAByte(WordParser):
    """Takes the last byte of a read for a delimiter that it waits for."""

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        if message is NEED_DATA and self.held.endswith(b"o"):
            del self.held[-1:]
            self.searched = 0
        return message


class SharesState(WordParser):
    """What is held belongs to the class."""

    everybodys = bytearray()

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.held = self.everybodys


class HasNoLimit(WordParser):
    """Holds whatever comes."""

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.limit = 2**62


class LimitsUnfinished(WordParser):
    """A message that comes whole may have any size."""

    def next_message(self) -> Word | NeedData | Hold:
        limit = self.limit
        if b";" in self.held:
            self.limit = 2**62
        try:
            return super().next_message()
        finally:
            self.limit = limit


class HangsAtTheEnd(WordParser):
    """Waits in a loop for bytes that do not come any more."""

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        while self.ended and self.held and message is NEED_DATA:
            pass
        return message


class NeverEnds(WordParser):
    """At the end, what is held is a message, again and again."""

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        if self.ended and self.held and message is NEED_DATA:
            return Word(bytes(self.held))
        return message


class FailsAtTheEnd(WordParser):
    """Its author believed that nobody leaves in the middle."""

    def feed_eof(self) -> None:
        assert not self.held


class IsQuadratic(WordParser):
    """Copies and searches all that is held whenever something comes."""

    def feed(self, data: bytes) -> None:
        if self.error is None:
            self.held = self.held + data
            self.searched = 0


class AnswersOutOfOrder(WordParser):
    """Takes the last message of what is held first."""

    def next_message(self) -> Word | NeedData | Hold:
        if self.held.count(b";") > 1 and not self.holds_back:
            whole, _, rest = bytes(self.held).rpartition(b";")
            others, _, text = whole.rpartition(b";")
            if text.isalpha() and text != b"up":
                self.held = bytearray(others + b";" + rest)
                self.searched = 0
                return Word(text)
        return super().next_message()


class SwallowsTheRest(WordParser):
    """Forgets that the first bytes of the other protocol may have come already."""

    def leftover(self) -> bytes:
        return b""


class ReturnsNone(WordParser):
    """A way through lacks its return."""

    def next_message(self) -> Any:
        message = super().next_message()
        if isinstance(message, Word) and not message.text:
            return None
        return message


class ForgetsItsError(WordParser):
    """Raises it once."""

    def refuse(self, text: str) -> ProtocolError:
        error = super().refuse(text)
        self.error = None
        return error


class IsPartialTooLong(WordParser):
    """Says so after the message, too."""

    begun = False

    def feed(self, data: bytes) -> None:
        self.begun = True
        super().feed(data)

    @property
    def partial(self) -> bool:
        return self.begun


class IsNeverPartial(WordParser):
    """Never says so."""

    @property
    def partial(self) -> bool:
        return False


class HasAMethodPartial(WordParser):
    """Lacks @property."""

    def partial(self) -> bool:  # type: ignore[override]
        return bool(self.held)


class FailsAtOddBytes(WordParser):
    """Believes that all the world sends ASCII."""

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        if isinstance(message, Word) and sum(byte > 127 for byte in message.text) > 1:
            message.text.decode("ascii")
        return message


class ChangesWhatItReturned(WordParser):
    """Hands out one object again and again."""

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.word = Word(b"")

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        if isinstance(message, Word):
            self.word.text = message.text
            return self.word
        self.word.text = b""
        return message


class ErrorsAreEveryones(WordParser):
    """The error of one connection is that of all."""

    everybodys: list[ProtocolError]

    def next_message(self) -> Word | NeedData | Hold:
        if self.everybodys:
            raise self.everybodys[0]
        return super().next_message()

    def refuse(self, text: str) -> ProtocolError:
        self.everybodys.append(super().refuse(text))
        return self.everybodys[0]


class SharesWhatIsReady(WordParser):
    """Messages wait in a queue of the class."""

    ready: deque[object]

    def feed(self, data: bytes) -> None:
        super().feed(data)
        if self.error is None:
            try:
                while (message := super().next_message()) is not NEED_DATA:
                    self.ready.append(message)
            except ProtocolError:
                pass

    def next_message(self) -> Any:
        if self.ready:
            return self.ready.popleft()
        return super().next_message()


class LeavesToTheNext(WordParser):
    """What was held when a connection closed begins the next."""

    left: bytearray

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.held += self.left
        self.left.clear()

    def close(self) -> None:
        if self.error is None:
            self.left[:] = self.held


class KeepsWhatItReturned(WordParser):
    """A history that nobody reads."""

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.history: list[object] = []

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        if message is not NEED_DATA:
            self.history.append(message)
        return message


class IsQuadraticInMessages(WordParser):
    """Goes through all that were, for each."""

    count = 0

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        if isinstance(message, Word):
            self.count += 1
            sum(range(self.count // 8))
        return message


class TakesSoMuchAtOnce(WordParser):
    """A buffer of 16 KiB; who sends more than that at once?"""

    def feed(self, data: bytes) -> None:
        super().feed(data[: 16 * 1024])


class HangsAtTheEndOfTheSecond(WordParser):
    """Nobody leaves in the middle who has sent a message before."""

    count = 0

    def next_message(self) -> Word | NeedData | Hold:
        message = super().next_message()
        if isinstance(message, Word):
            self.count += 1
        while self.ended and self.count and self.held:
            pass
        return message


class SkipsSpaceAfterUp(WordParser):
    """What stands between two words stands before the other protocol, too."""

    def next_message(self) -> Word | NeedData | Hold:
        if self.holds_back:
            self.held = bytearray(self.held.lstrip())
        return super().next_message()


class LeavesSomeOver(WordParser):
    """A buffer of fixed size for what is left."""

    def leftover(self) -> bytes:
        return super().leftover()[:64]


HEADS = [b"a: 1\nb: 2\n\n", b"x: y\n\n", b"\n"]


class HeadParser(MessageParser[list[bytes]]):
    """Fields, each a line, up to an empty one."""

    def __init__(self, params: ServerParams) -> None:
        assert params.request_size_limit is not None
        self.limit = params.request_size_limit
        self.held = bytearray()
        self.searched = 0
        self.size = 0
        self.fields: list[bytes] = []
        self.error: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        if self.error is None:
            self.held += data

    def next_message(self) -> list[bytes] | NeedData:
        if self.error is not None:
            raise self.error
        while True:
            end = self.held.find(b"\n", self.searched)
            size = len(self.held) if end < 0 else end + 1
            if self.size + size > self.limit:
                self.held.clear()
                self.fields = []
                self.error = ProtocolError("too long")
                raise self.error
            if end < 0:
                self.searched = size
                return NEED_DATA
            line = bytes(self.held[:end])
            del self.held[:size]
            self.searched = 0
            self.size += size
            if not line:
                self.size = 0
                return self.made()
            self.field(line)

    def field(self, line: bytes) -> None:
        self.fields.append(line)

    def made(self) -> list[bytes]:
        fields, self.fields = self.fields, []
        return fields

    @property
    def partial(self) -> bool:
        return bool(self.held or self.fields)


class LimitsEachLine(HeadParser):
    """And not all of them."""

    def field(self, line: bytes) -> None:
        super().field(line)
        self.size = 0


class IsQuadraticInLines(HeadParser):
    """Looks at all of them for each."""

    def field(self, line: bytes) -> None:
        super().field(line)
        b"\n".join(self.fields).find(b"::")


class ClearsWhatItReturned(HeadParser):
    """One list for all messages, empty again when the next begins."""

    whole = False

    def next_message(self) -> list[bytes] | NeedData:
        if self.whole and self.held:
            self.fields.clear()
            self.whole = False
        return super().next_message()

    def made(self) -> list[bytes]:
        self.whole = True
        return self.fields

    @property
    def partial(self) -> bool:
        return bool(self.held or (self.fields and not self.whole))


class TakesMemoryFirst(MessageParser[bytes]):
    """Makes room for a frame, and then looks whether it may be so long."""

    def __init__(self, params: ServerParams) -> None:
        assert params.request_size_limit is not None
        self.limit = params.request_size_limit
        self.held = bytearray()
        self.error: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        if self.error is None:
            self.held += data

    def next_message(self) -> bytes | NeedData:
        if self.error is not None:
            raise self.error
        if len(self.held) < 3:
            return NEED_DATA
        end = 3 + int.from_bytes(self.held[:3], "big")
        frame = bytearray(end)
        if end > self.limit:
            self.held.clear()
            self.error = ProtocolError("too long")
            raise self.error
        if len(self.held) < end:
            return NEED_DATA
        frame[:] = self.held[:end]
        del self.held[:end]
        return bytes(frame[3:])

    @property
    def partial(self) -> bool:
        return bool(self.held)


class LengthIsQuadratic(MessageParser[bytes]):
    """A length in digits, a colon, and so many bytes, which are copied whenever some come."""

    def __init__(self, params: ServerParams) -> None:
        assert params.request_size_limit is not None
        self.limit = params.request_size_limit
        self.held = b""
        self.error: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        if self.error is None:
            self.held += data

    def next_message(self) -> bytes | NeedData:
        if self.error is not None:
            raise self.error
        digits, colon, _ = self.held[:9].partition(b":")
        bad = not digits.isdigit() if digits or colon else False
        if bad or (not colon and len(digits) > 8) or int(digits or b"0") + 9 > self.limit:
            self.held = b""
            self.error = ProtocolError("no length, or too large")
            raise self.error
        end = len(digits) + 1 + int(digits or b"0")
        if not colon or len(self.held) < end:
            return NEED_DATA
        message, self.held = self.held[len(digits) + 1 : end], self.held[end:]
        return message

    @property
    def partial(self) -> bool:
        return bool(self.held)


def words(message_in: Any = WordParser, **fields: Any) -> ProtocolSpec[Word, Reply]:
    """The protocol, with that parser."""
    given = {"message_out": lambda reply: reply.text + b";", "response": Reply, **fields}
    return ProtocolSpec(name="words", message_in=message_in, **given)


WORDS = words(samples=(b"a;", b"hello;", b";", b"up;"))
"""As an installed protocol would have it."""
