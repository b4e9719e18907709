"""A small protocol that is right, and the same with one fault each."""

from __future__ import annotations

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


def words(message_in: Any = WordParser, **fields: Any) -> ProtocolSpec[Word, Reply]:
    """The protocol, with that parser."""
    return ProtocolSpec(
        name="words",
        message_in=message_in,
        message_out=lambda reply: reply.text + b";",
        response=Reply,
        **fields,
    )


WORDS = words(samples=(b"a;", b"hello;", b";", b"up;"))
"""As an installed protocol would have it."""
