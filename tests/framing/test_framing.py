"""Framing: every ready parser and the inbox, whatever way the bytes are split."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protoserve import (
    HOLD,
    NEED_DATA,
    ConfigError,
    Feedback,
    MessageParser,
    ProtocolError,
    ServerParams,
)
from protoserve.framing import (
    FramedParser,
    Inbox,
    Parsing,
    Waiting,
    delimited,
    encode_prefixed,
    encode_varint,
    fixed,
    lines,
    prefixed,
    varint_prefixed,
)
from protoserve.protocol import try_parser

PARAMS = ServerParams(request_size_limit=100)

Encode = Callable[[bytes], bytes]

FRAMINGS: dict[str, tuple[Callable[[ServerParams], MessageParser[bytes]], Encode]] = {
    "lines": (lines(), lambda data: data + b"\n"),
    "lines with CR": (lines(), lambda data: data + b"\r\n"),
    "delimited": (delimited(b"\r\n.\r\n"), lambda data: data + b"\r\n.\r\n"),
    "varint": (varint_prefixed(), lambda data: encode_varint(len(data)) + data),
    "fixed": (fixed(3), lambda data: data),
    "three bytes": (prefixed(3), lambda data: b"".join(encode_prefixed(data, 3))),
}
for width in (1, 2, 4, 8):
    for order in ("big", "little"):
        for whole in (False, True):
            FRAMINGS[f"{width} {order} {whole}"] = (
                prefixed(width, byteorder=order, includes_header=whole),
                lambda data, width=width, order=order, whole=whole: b"".join(  # type: ignore[misc]
                    encode_prefixed(data, width, order, includes_header=whole)
                ),
            )


@pytest.fixture(params=FRAMINGS)
def framing(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def all_of(parser: MessageParser[Any]) -> list[Any]:
    found = []
    while (message := parser.next_message()) is not NEED_DATA:
        found.append(message)
    return found


def in_pieces(parser: MessageParser[Any], data: bytes, size: int) -> list[Any]:
    found = []
    for at in range(0, len(data), size):
        parser.feed(data[at : at + size])
        found += all_of(parser)
    return found


def test_frames_are_found_however_they_are_split(framing: str) -> None:
    make, encode = FRAMINGS[framing]
    frames = [b"abc", b"def", b"\0\x81\r"] if framing == "fixed" else [b"abc", b"", b"\0\x81;"]
    frames *= 5
    data = b"".join(map(encode, frames))
    for size in range(1, len(data) + 1):
        parser = make(PARAMS)
        assert in_pieces(parser, data, size) == frames
        assert not parser.partial
        assert parser.leftover() == b""


def test_partial_and_leftover_at_every_place(framing: str) -> None:
    make, encode = FRAMINGS[framing]
    frame = encode(b"abc")
    for at in range(len(frame)):
        parser = make(PARAMS)
        parser.feed(frame + frame[:at])
        assert all_of(parser) == [b"abc"]
        assert parser.partial == (at > 0)
        assert parser.leftover() == frame[:at]
        parser.feed(frame[at:])
        assert all_of(parser) == [b"abc"]
        assert not parser.partial


@pytest.mark.parametrize("framing", [name for name in FRAMINGS if name != "fixed"])
def test_too_long_is_refused_after_what_came_before(framing: str) -> None:
    make, encode = FRAMINGS[framing]
    room = 100 - len(encode(b""))
    good, bad = encode(b"a" * room), encode(b"a" * (room + 1))
    for size in (1, 7, 1000):
        parser = make(PARAMS)
        assert in_pieces(parser, good, size) == [b"a" * room]
        with pytest.raises(ProtocolError, match=r"more than 100 bytes"):
            in_pieces(parser, bad, size)
        parser.feed(good)
        with pytest.raises(ProtocolError, match=r"more than 100 bytes"):
            parser.next_message()
        assert not parser.partial


def test_a_length_is_refused_before_its_bytes_come() -> None:
    parser = prefixed(4)(PARAMS)
    parser.feed(b"\xff\xff\xff\xff")
    with pytest.raises(ProtocolError, match=r"message of more than 100 bytes"):
        parser.next_message()


def test_an_endless_line_is_not_kept() -> None:
    parser = lines()(PARAMS)
    parser.feed(b"a" * 100)
    with pytest.raises(ProtocolError):
        parser.next_message()
    for _ in range(100):
        parser.feed(b"a" * 100_000)
    assert parser.leftover() == b""


def test_a_limit_of_its_own_and_none_at_all() -> None:
    parser = lines(limit=5)(ServerParams(request_size_limit=None))
    parser.feed(b"four\nfives\n")
    assert parser.next_message() == b"four"
    with pytest.raises(ProtocolError, match=r"more than 5 bytes"):
        parser.next_message()
    without: MessageParser[bytes] = lines()(ServerParams(request_size_limit=None))
    without.feed(b"a" * 1_000_000 + b"\n")
    assert without.next_message() == b"a" * 1_000_000


@pytest.mark.parametrize("words", [b"bye\n", lambda fault: f"bye: {fault}\n".encode()])
def test_the_farewell(words: Any) -> None:
    parser = lines(bytes.decode, limit=50, farewell=words)(PARAMS)
    parser.feed(b"ok\n\xff\n")
    assert parser.next_message() == "ok"
    with pytest.raises(ProtocolError, match=r"can't decode byte 0xff") as error:
        parser.next_message()
    assert error.value.reply.startswith(b"bye")
    assert error.value.reply.count(b"\n") == 1


def test_a_header_that_counts_itself_is_that_long() -> None:
    parser = prefixed(4, includes_header=True)(PARAMS)
    parser.feed(b"\0\0\0\x04\0\0\0\x03")
    assert parser.next_message() == b""
    with pytest.raises(ProtocolError, match=r"a length of 3, which counts its 4 bytes"):
        parser.next_message()


def test_a_varint_that_is_too_long() -> None:
    parser = varint_prefixed(max_bytes=4)(PARAMS)
    parser.feed(b"\x80\x80\x80\x00" + b"\x80\x80\x80\x80")
    assert parser.next_message() == b""  # leading zeros do no harm
    with pytest.raises(ProtocolError, match=r"a length of more than 4 bytes"):
        parser.next_message()


@given(st.integers(0, 2**64 - 1))
def test_varints(number: int) -> None:
    encoded = encode_varint(number)
    assert len(encoded) == max(1, -(-number.bit_length() // 7))
    assert sum((byte & 0x7F) << 7 * at for at, byte in enumerate(encoded)) == number


def test_the_last_line_ends_with_the_connection() -> None:
    parser = lines()(PARAMS)
    parser.feed(b"one\ntwo")
    assert all_of(parser) == [b"one"]
    parser.feed_eof()
    assert all_of(parser) == [b"two"]
    assert all_of(parser) == []
    strict = delimited(b"\n")(PARAMS)
    strict.feed(b"one\ntwo")
    strict.feed_eof()
    assert all_of(strict) == [b"one"]
    assert strict.partial


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lines(limit=0), "limit=0"),
        (lambda: lines(farewell="bye"), "farewell='bye'"),  # type: ignore[arg-type]
        (lambda: delimited(b""), "delimiter=b''"),
        (lambda: delimited("\n"), "delimiter='"),  # type: ignore[arg-type]
        (lambda: prefixed(0), "width=0"),
        (lambda: prefixed(9), "width=9"),
        (lambda: prefixed(2, byteorder="native"), "byteorder='native'"),  # type: ignore[arg-type]
        (lambda: varint_prefixed(max_bytes=11), "max_bytes=11"),
        (lambda: fixed(0), "size=0"),
        (lambda: encode_prefixed(b"", 0), "width=0"),
        (lambda: lines("utf8"), "decode='utf8': expected a function"),  # type: ignore[arg-type,var-annotated]
        (lambda: lines(3), "decode=3"),  # type: ignore[arg-type,var-annotated]
        (lambda: lines(limit="5"), "limit='5'"),  # type: ignore[arg-type]
        (lambda: lines(limit=2.5), "limit=2.5"),  # type: ignore[arg-type]
        (lambda: lines(limit=True), "limit=True"),
        (lambda: lines(limit=-1), "limit=-1"),
        (lambda: delimited(b"ab", limit=1), "limit=1: expected a number of bytes, 2 or more"),
        (lambda: prefixed(4, limit=3), "limit=3: expected a number of bytes, 4 or more"),
        (lambda: prefixed(4.0), "width=4.0"),  # type: ignore[arg-type]
        (lambda: prefixed(True), "width=True"),
        (lambda: prefixed("4"), "width='4'"),  # type: ignore[arg-type]
        (lambda: varint_prefixed(max_bytes=4.0), "max_bytes=4.0"),  # type: ignore[arg-type]
        (lambda: fixed(2.0), "size=2.0"),  # type: ignore[arg-type]
        (lambda: fixed("3"), "size='3'"),  # type: ignore[arg-type]
        (lambda: Mails(PARAMS, limit=-1), "limit=-1"),
        (lambda: Mails(PARAMS, limit=2.5), "limit=2.5"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(make: Any, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert text in str(error.value)


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(OverflowError, match=r"a length of 256 .* width=1: it is 255 at most"):
        encode_prefixed(b"a" * 256, 1)
    assert encode_prefixed(b"a" * 255, 1)[0] == b"\xff"
    with pytest.raises(TypeError, match=r"the data of encode_prefixed is bytes, not str"):
        encode_prefixed("x", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"-1"):
        encode_varint(-1)


# -- parsers of one's own ------------------------------------------------------------------


class Mails(FramedParser[tuple[str, bytes]]):
    """A dialogue: ``DATA`` holds until the reply, then a text follows to its dot."""

    follows = False

    def messages(self) -> Parsing[tuple[str, bytes]]:
        while True:
            line = yield from self.inbox.until(b"\r\n", limit=20)
            if not line:
                self.inbox.discard()
                continue
            if line == b"wait":
                yield Feedback(b"waiting\r\n")
            yield "line", line
            if line == b"DATA":
                yield HOLD
                if self.follows:
                    text = yield from self.inbox.until(b"\r\n.\r\n")
                    yield "text", text
            elif line.startswith(b"rest"):
                yield "rest", (yield from self.inbox.rest())

    def farewell(self, fault: str) -> bytes:
        return f"500 {fault}\r\n".encode()


class Rest(FramedParser[bytes]):
    """A message is what comes until the end."""

    def messages(self) -> Parsing[bytes]:
        while True:
            yield (yield from self.inbox.rest())


@pytest.mark.parametrize("data", [b"", b"abc"])
def test_after_the_rest_there_is_no_message(data: bytes) -> None:
    parser = Rest(PARAMS)
    parser.feed(data)
    assert parser.next_message() is NEED_DATA
    parser.feed_eof()
    if data:
        assert parser.next_message() == data
    assert parser.next_message() is NEED_DATA
    assert parser.next_message() is NEED_DATA
    assert not parser.partial


def test_the_rest_of_a_message_may_be_nothing() -> None:
    class Headed(FramedParser[bytes]):
        def messages(self) -> Parsing[bytes]:
            while True:
                head = yield from self.inbox.until(b":")
                yield head + (yield from self.inbox.rest())

    parser = Headed(PARAMS)
    parser.feed(b"head:")
    assert parser.next_message() is NEED_DATA
    parser.feed_eof()
    assert parser.next_message() == b"head"
    assert parser.next_message() is NEED_DATA


def mails(data: bytes) -> Mails:
    parser = Mails(PARAMS)
    parser.feed(data)
    return parser


@pytest.mark.parametrize("follows", [True, False])
def test_what_follows_depends_on_the_reply(follows: bool) -> None:
    parser = mails(b"DATA\r\nhello\r\n.\r\nquit\r\n")
    assert parser.next_message() == ("line", b"DATA")
    assert parser.next_message() is HOLD
    assert parser.leftover() == b"hello\r\n.\r\nquit\r\n"
    parser.follows = follows
    if follows:
        assert all_of(parser) == [("text", b"hello"), ("line", b"quit")]
    else:
        assert all_of(parser) == [("line", b"hello"), ("line", b"."), ("line", b"quit")]


def test_what_is_between_messages_is_discarded() -> None:
    parser = mails(b"\r\n" * 60 + b"a\r\n" + b"\r\n" * 60)
    assert all_of(parser) == [("line", b"a")]
    assert not parser.partial
    assert parser.leftover() == b""


def test_an_interim_answer_comes_before_its_message_and_keeps_it() -> None:
    parser = mails(b"wait\r\n")
    assert parser.next_message() == Feedback(b"waiting\r\n")
    assert parser.partial
    assert all_of(parser) == [("line", b"wait")]
    assert not parser.partial


def test_the_rest_ends_with_the_connection() -> None:
    parser = mails(b"rest\r\nall of")
    assert all_of(parser) == [("line", b"rest")]
    parser.feed(b" it")
    assert parser.partial
    assert all_of(parser) == []
    parser.feed_eof()
    assert all_of(parser)[0] == ("rest", b"all of it")


def test_a_part_has_a_limit_of_its_own() -> None:
    assert all_of(mails(b"a" * 18 + b"\r\n")) == [("line", b"a" * 18)]
    for data in (b"a" * 19 + b"\r\n", b"a" * 20):
        with pytest.raises(ProtocolError, match=r"more than 20 bytes") as error:
            mails(data).next_message()
        assert error.value.reply == b"500 more than 20 bytes\r\n"


class Odd(FramedParser[bytes]):
    def messages(self) -> Parsing[bytes]:
        kind = yield from self.inbox.exactly(1)
        if kind == b"r":
            raise ProtocolError("refused", reply=b"go away")
        if kind == b"k":
            raise KeyError("a bug")
        yield kind

    def farewell(self, fault: str) -> bytes:
        return b"never"


def test_the_reply_of_an_error_is_kept() -> None:
    parser = Odd(PARAMS)
    parser.feed(b"r")
    for _ in range(2):
        with pytest.raises(ProtocolError, match=r"refused") as error:
            parser.next_message()
        assert error.value.reply == b"go away"


def test_bugs_are_bugs() -> None:
    parser = Odd(PARAMS)
    parser.feed(b"k")
    for _ in range(2):
        with pytest.raises(KeyError, match=r"a bug"):
            parser.next_message()
    ends = Odd(PARAMS)
    ends.feed(b"ab")
    assert ends.next_message() == b"a"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"Odd\.messages has ended"):
            ends.next_message()


def test_an_empty_delimiter_is_a_bug() -> None:
    class Empty(FramedParser[bytes]):
        def messages(self) -> Parsing[bytes]:
            yield (yield from self.inbox.until(b""))

    with pytest.raises(ConfigError, match=r"at least one byte"):
        Empty(PARAMS).next_message()


def test_a_size_below_zero_is_the_peers_fault() -> None:
    class Sized(FramedParser[bytes]):
        def messages(self) -> Parsing[bytes]:
            while True:
                size = yield from self.inbox.until(b" ")
                yield (yield from self.inbox.exactly(int(size)))

    parser = Sized(PARAMS)
    parser.feed(b"1 a-1 b")
    assert parser.next_message() == b"a"
    with pytest.raises(ProtocolError, match=r"a size of -1"):
        parser.next_message()


def test_closing_ends_messages_and_the_cycle() -> None:
    ended = []

    class Watched(FramedParser[bytes]):
        def messages(self) -> Parsing[bytes]:
            try:
                while True:
                    yield (yield from self.inbox.exactly(2))
            finally:
                ended.append(True)

    parser = Watched(PARAMS)
    parser.close()  # before it was asked
    parser = Watched(PARAMS)
    parser.feed(b"abc")
    assert all_of(parser) == [b"ab"]
    before = sys.getrefcount(parser)
    parser.close()
    assert ended == [True]
    assert sys.getrefcount(parser) < before
    assert not parser.partial


def test_messages_take_time_linear_in_their_bytes() -> None:
    """A delimiter is not searched for again in what was searched: the calls are counted."""
    searched = 0

    class Counting(bytearray):
        def find(self, what: Any, start: Any = 0, end: Any = None) -> int:
            nonlocal searched
            searched += len(self) - start
            return super().find(what, start)

    parser = delimited(b"\r\n")(ServerParams(request_size_limit=None))
    parser.inbox._held = Counting()  # type: ignore[attr-defined]
    in_pieces(parser, b"a" * 20_000 + b"\r\n", 1)
    assert searched < 3 * 20_002


class Handshake(FramedParser[bytes]):
    """One line; then the connection goes on in another protocol."""

    def messages(self) -> Parsing[bytes]:
        yield (yield from self.inbox.until(b"\n"))
        yield HOLD


def test_messages_may_end_at_hold() -> None:
    parser = Handshake(PARAMS)
    parser.feed(b"up\nrest")
    assert parser.next_message() == b"up"
    assert parser.next_message() is HOLD
    assert parser.leftover() == b"rest"
    parser.feed(b" of it")
    assert parser.leftover() == b"rest of it"
    for _ in range(2):  # it does not go on: what comes is ignored
        assert parser.next_message() is NEED_DATA
        assert not parser.partial
        assert parser.leftover() == b""
        parser.feed(b"x" * 1000)
    parser.feed_eof()
    assert parser.next_message() is NEED_DATA
    parser.close()


def test_messages_may_not_end_later() -> None:
    class Longer(Handshake):
        def messages(self) -> Parsing[bytes]:
            yield from super().messages()
            yield (yield from self.inbox.until(b"\n"))

    parser = Longer(PARAMS)
    parser.feed(b"up\nmore\n")
    assert [parser.next_message() for _ in range(3)] == [b"up", HOLD, b"more"]
    with pytest.raises(RuntimeError, match=r"Longer\.messages has ended.*Only after `yield HOLD`"):
        parser.next_message()


@pytest.mark.parametrize(
    ("wait", "text"),
    [
        (lambda inbox: inbox.prefixed(0), "width=0"),
        (lambda inbox: inbox.prefixed(9), "width=9"),
        (lambda inbox: inbox.prefixed(2, "native"), "byteorder='native'"),
        (lambda inbox: inbox.varint_prefixed(max_bytes=99), "max_bytes=99"),
        (lambda inbox: inbox.until(b"x", limit=-1), "limit=-1"),
        (lambda inbox: inbox.exactly(1, limit=-1), "limit=-1"),
        (lambda inbox: inbox.rest(limit=-1), "limit=-1"),
        (lambda inbox: (setattr(inbox, "limit", -1), inbox.until(b"x"))[1], "limit=-1"),
    ],
)
def test_what_an_inbox_cannot_wait_for_is_a_bug(
    wait: Callable[[Inbox], Waiting], text: str
) -> None:
    class Waits(FramedParser[bytes]):
        def messages(self) -> Parsing[bytes]:
            while True:
                yield (yield from wait(self.inbox))

    parser = Waits(PARAMS)
    parser.feed(b"abc")
    for _ in range(2):
        with pytest.raises(ConfigError, match=text):
            parser.next_message()


def test_a_forgotten_yield_from_is_a_bug() -> None:
    class Forgets(FramedParser[Any]):
        def messages(self) -> Parsing[Any]:
            while True:
                line = self.inbox.until(b"\n")
                yield line

    parser = Forgets(PARAMS)
    parser.feed(b"a\n")
    for _ in range(2):
        with pytest.raises(TypeError, match=r"Forgets\.messages yielded Inbox\.until\(\) itself"):
            parser.next_message()


def test_a_forgotten_init_of_the_base_is_named() -> None:
    class Forgets(FramedParser[bytes]):
        def __init__(self, params: ServerParams) -> None:
            self.name = "x"

        def messages(self) -> Parsing[bytes]:
            while True:
                yield (yield from self.inbox.until(b"\n"))

    parser = Forgets(PARAMS)
    text = r"Forgets has no \w+ yet: its __init__ must call super\(\).__init__\(params\)"
    calls: list[Callable[[], object]] = [
        lambda: parser.feed(b"a\n"),
        parser.next_message,
        parser.feed_eof,
        parser.leftover,
        parser.close,
        lambda: parser.partial,
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=text):
            call()
    with pytest.raises(ConfigError, match=text):
        try_parser("forgets", lambda: Forgets(PARAMS))
    assert not hasattr(parser, "other")


def test_an_attribute_that_a_property_lacks_is_named() -> None:
    class Lacks(Handshake):
        @property
        def partial(self) -> bool:
            return bool(self.lacking)  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="lacking"):
        _ = Lacks(PARAMS).partial
