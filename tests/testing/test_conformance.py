"""check_protocol: what is right passes, and each fault is named."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from broken_parsers import (
    HEADS,
    WORDS,
    AnswersOutOfOrder,
    ChangesWhatItReturned,
    ClearsWhatItReturned,
    ErrorsAreEveryones,
    FailsAtOddBytes,
    FailsAtTheEnd,
    ForgetsItsError,
    HangsAtTheEnd,
    HangsAtTheEndOfTheSecond,
    HasAMethodPartial,
    HasNoLimit,
    HeadParser,
    IsNeverPartial,
    IsPartialTooLong,
    IsQuadratic,
    IsQuadraticInLines,
    IsQuadraticInMessages,
    KeepsWhatItReturned,
    LeavesSomeOver,
    LeavesToTheNext,
    LengthIsQuadratic,
    LimitsEachLine,
    LimitsUnfinished,
    LosesAByte,
    NeverEnds,
    Reply,
    ReturnsNone,
    SharesState,
    SharesWhatIsReady,
    SkipsSpaceAfterUp,
    SwallowsTheRest,
    TakesMemoryFirst,
    TakesSoMuchAtOnce,
    Word,
    WordParser,
    words,
)

from protoserve import (
    HOLD,
    NEED_DATA,
    Arriving,
    CloseReason,
    CommConnection,
    ConfigError,
    Feedback,
    IncomingStream,
    MessageParser,
    ProtocolError,
    ServerParams,
)
from protoserve.framing import (
    FramedParser,
    Parsing,
    encode_prefixed,
    encode_varint,
    fixed,
    lines,
    prefixed,
    varint_prefixed,
)
from protoserve.testing import ConformanceError, check_protocol
from protoserve.testing.conformance import CHECKS, check_results
from protoserve.testing.conformance.watch import Stuck, Watch

SAMPLES = [b"a;", b"hello;", b";", b"up;"]


def fault_of(message_in: Any, samples: Any = SAMPLES, **options: Any) -> ConformanceError:
    options = {"examples": 0, **options}
    with pytest.raises(ConformanceError) as caught:
        check_protocol(words(message_in), samples, **options)
    return caught.value


# -- what is right ---------------------------------------------------------------------


def test_a_correct_protocol_passes() -> None:
    results = list(
        check_results(
            WORDS,
            refused=[b"a1;", b"hello;a2;"],
            encode=lambda word: word.text + b";",
            is_reply=lambda reply: reply.endswith(b";"),
        )
    )
    assert [result.name for result in results] == [*CHECKS]
    assert [result.error for result in results] == [None] * len(CHECKS)
    assert all(result.meaning for result in results)


@pytest.mark.parametrize(
    ("message_in", "samples", "encode"),
    [
        (lines(), [b"a\n", b"hello\r\n", b"\n"], lambda line: line + b"\n"),
        (lines(str), [b"a\n"], None),
        (prefixed(4), [b"\0\0\0\3abc", b"\0\0\0\0"], lambda data: encode_prefixed(data, 4)),
        (varint_prefixed(), [b"\3abc", b"\0", encode_varint(300) + b"x" * 300], None),
        (fixed(4), [b"abcd", b"\0\1\2\3"], bytes),
    ],
    ids=["lines", "text", "prefixed", "varint", "fixed"],
)
def test_ready_framing_passes(message_in: Any, samples: list[bytes], encode: Any) -> None:
    check_protocol(words(message_in), samples, encode=encode, examples=50)


# -- what is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message_in", "check", "text"),
    [
        (LosesAByte, "splits", "depends on how they were split"),
        (SharesState, "separate", "connections share state"),
        (HasNoLimit, "limit", "no limit"),
        (LimitsUnfinished, "limit", "request_size_limit=1, what comes of 3 bytes depends on"),
        (NeverEnds, "ends", "next_message has no end"),
        (FailsAtTheEnd, "ends", "feed_eof raised AssertionError"),
        (IsQuadratic, "linear", "grows with the square of its size"),
        (AnswersOutOfOrder, "order", "in another order"),
        (SwallowsTheRest, "leftover", r"leftover is b'' after HOLD"),
        (ReturnsNone, "samples", "next_message returned None"),
        (ForgetsItsError, "faults", "the error is forgotten"),
        (IsPartialTooLong, "partial", "partial is true after a whole message"),
        (IsNeverPartial, "partial", "partial is false while b'a' is held"),
        (HasAMethodPartial, "samples", "partial is a method"),
        (ChangesWhatItReturned, "samples", "has changed after it was returned"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_is_named(message_in: Any, check: str, text: str) -> None:
    error = fault_of(message_in)
    assert error.check == check
    assert text in error.fault
    assert str(error).startswith(f"{check}: {error.fault}\n")
    assert str(error).endswith(error.remedy)


@pytest.mark.parametrize(
    ("message_in", "check", "text"),
    [
        (KeepsWhatItReturned, "limit", "grows with the messages that it has returned"),
        (IsQuadraticInMessages, "linear", "grows with the square of their number"),
        (TakesSoMuchAtOnce, "order", "not those that they are alone"),
        (SkipsSpaceAfterUp, "leftover", "leftover is b'\\x00' after HOLD, and must be b'\\r"),
        (LeavesSomeOver, "leftover", "after HOLD, and must be b'\\x00\\x01"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_that_shows_in_some_places_is_named(
    message_in: Any, check: str, text: str
) -> None:
    error = fault_of(message_in)
    assert error.check == check
    assert text in error.fault


@pytest.mark.parametrize("refused", [[], [b"a1;"]], ids=["not seen before", "seen before"])
def test_an_error_that_all_connections_share(refused: list[bytes]) -> None:
    class Here(ErrorsAreEveryones):
        everybodys: list[ProtocolError] = []  # noqa: RUF012 - the fault

    error = fault_of(Here, refused=refused)
    assert error.check == "separate"
    assert "connections share state" in error.fault


def test_messages_that_differ_from_one_run_to_the_next() -> None:
    numbers = count()
    error = fault_of(lines(lambda line: (next(numbers), line)), [b"a\n"])
    assert error.check == "separate"
    assert "Or do messages differ from one run to the next" in error.remedy
    check_protocol(
        words(lines(lambda line: (next(numbers), line))),
        [b"a\n"],
        same=lambda one, other: one[1] == other[1],
        examples=0,
    )


def test_messages_that_wait_in_one_queue() -> None:
    class Here(SharesWhatIsReady):
        ready: deque[object] = deque()  # noqa: RUF012 - the fault

    error = fault_of(Here, [b"a;", b"bc;"])
    assert error.check == "separate"
    assert "connections share state: two parsers, fed, and only then asked" in error.fault


def test_what_one_connection_leaves_to_the_next() -> None:
    class Here(LeavesToTheNext):
        left = bytearray()

    error = fault_of(Here)
    assert error.check == "separate"
    assert "connections share state" in error.fault


@pytest.mark.parametrize(
    ("message_in", "check", "text"),
    [
        (LimitsEachLine, "limit", "no limit: "),
        (IsQuadraticInLines, "linear", "grows with the square of its size"),
        (ClearsWhatItReturned, "order", "has changed after it was returned"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_in_messages_of_many_lines_is_named(
    message_in: Any, check: str, text: str
) -> None:
    error = fault_of(message_in, HEADS)
    assert error.check == check
    assert text in error.fault


def test_messages_of_many_lines_pass() -> None:
    check_protocol(words(HeadParser), HEADS, examples=50)


def test_memory_is_not_taken_before_the_limit_is_looked_at() -> None:
    error = fault_of(TakesMemoryFirst, [b"\0\0\3abc", b"\0\0\0"])
    assert error.check == "limit"
    assert "bytes of memory were taken for a message" in error.fault


class Fours(MessageParser[bytes]):
    """Four bytes each; knows no limit."""

    def __init__(self, params: ServerParams) -> None:
        self.held = b""

    def feed(self, data: bytes) -> None:
        self.held += data

    def next_message(self) -> Any:
        if len(self.held) < 4:
            return NEED_DATA
        message, self.held = self.held[:4], self.held[4:]
        return message

    @property
    def partial(self) -> bool:
        return bool(self.held)


@pytest.mark.parametrize(("message_in", "samples"), [(Fours, [b"abcd"]), (fixed(1), [b"a"])])
def test_a_limit_that_nothing_shows_is_not_tried(message_in: Any, samples: list[bytes]) -> None:
    results = check_results(words(message_in), samples, examples=0)
    (result,) = (result for result in results if result.name == "limit")
    assert not result.tried
    assert result.error is None
    assert "nothing shows whether request_size_limit is looked at" in result.note


def test_what_announces_many_bytes_is_measured() -> None:
    error = fault_of(LengthIsQuadratic, [b"3:abc", b"1:x"])
    assert error.check == "linear"
    assert "grows with the square of its size" in error.fault
    assert b"".join(error.fed).startswith(b"4194304:a")


def test_who_traces_afterwards_is_not_stopped() -> None:
    """As a debugger, or coverage, does."""
    code = """
import sys
from protoserve.testing import check_protocol
from protoserve_http import HTTP_SPEC

check_protocol(HTTP_SPEC, examples=0)
lines = 0

def trace(*event):
    global lines
    lines += 1
    return trace

sys.settrace(trace)
exec("for number in range(1000): str(number)")
sys.settrace(None)
print("traced" if lines else "not traced")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("traced\n", 0), done.stderr


def test_a_watch_ends_nothing_that_comes_after_it() -> None:
    class Late(threading.Event):
        """When the watch is over, it finds that a call takes too long."""

        def set(self) -> None:
            if not self.is_set():
                super().set()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Stuck)
                )

    watch = Watch(60)
    watch._over = Late()
    with watch:
        pass
    assert [str(number) for number in range(3)] == ["0", "1", "2"]


def test_a_parser_that_hangs_is_ended() -> None:
    error = fault_of(HangsAtTheEnd, call_limit=0.5)
    assert error.check == "ends"
    assert error.fault.startswith("next_message hangs")
    assert error.fed == (b"a",)
    error = fault_of(HangsAtTheEndOfTheSecond, call_limit=0.5)
    assert error.check == "ends"
    assert error.fed == (b";a",)


def test_the_input_is_short_and_can_be_fed_again() -> None:
    error = fault_of(LosesAByte, [b"long enough to be found;", b"do;"])
    assert error.fed == (b"do", b";")
    assert "  fed:  b'do', b';'\n" in str(error)
    assert "Word(text=b'd')" in str(error)


def test_random_bytes_find_what_samples_do_not() -> None:
    check_protocol(words(FailsAtOddBytes), SAMPLES[:1], examples=0)
    error = fault_of(FailsAtOddBytes, SAMPLES[:1], examples=300)
    assert error.check == "garbage"
    assert "UnicodeDecodeError" in error.fault
    assert len(b"".join(error.fed)) <= 4  # made short


def test_all_that_fails_is_reported() -> None:
    class Bad(IsNeverPartial, SwallowsTheRest):
        pass

    results = check_results(words(Bad), SAMPLES, examples=0)
    assert [result.name for result in results if result.error] == ["partial", "leftover"]


# -- samples and options ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (b"a", "no whole message"),
        (b"a;b;", "gave 2 messages"),
        (b"1;", "refused: a digit"),
    ],
)
def test_samples_that_are_no_messages(sample: bytes, text: str) -> None:
    assert text in fault_of(WordParser, [sample]).fault


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"samples": []}, "has no samples"),
        ({"samples": b"a;"}, "expected a list of bytes"),
        ({"samples": [b""]}, "none of them empty"),
        ({"samples": ["a;"]}, "expected a list of bytes"),
        ({"refused": [1]}, "refused=[1]"),
        ({"samples": 5}, "samples=5: expected a list of bytes"),
        ({"last": None}, "last=None: expected a list of bytes"),
        ({"before": "a"}, "before='a': expected bytes"),
        ({"encode": 1}, "encode=1: expected a function"),
        ({"examples": -1}, "examples=-1: expected a number"),
        ({"examples": "3"}, "examples='3'"),
        ({"examples": 1.5}, "examples=1.5"),
        ({"examples": True}, "examples=True"),
        ({"call_limit": "x"}, "call_limit='x': expected seconds"),
        ({"call_limit": None}, "call_limit=None"),
        ({"call_limit": 0}, "call_limit=0"),
        ({"call_limit": -1}, "call_limit=-1"),
        ({"call_limit": float("nan")}, "call_limit=nan"),
        ({"call_limit": float("inf")}, "call_limit=inf"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_protocol(words(), **{"samples": SAMPLES, **options})
    assert text in str(caught.value)


def test_what_is_checked_is_a_protocol() -> None:
    spec: Any = "x"
    with pytest.raises(ConfigError, match="spec must be a ProtocolSpec, not str"):
        check_protocol(spec)


def test_a_parser_that_ends_the_process() -> None:
    class Exits(WordParser):
        def next_message(self) -> Any:
            if self.held.startswith(b"h"):
                raise SystemExit(3)
            return super().next_message()

    error = fault_of(Exits)
    assert error.check == "samples"
    assert "next_message raised SystemExit: 3" in error.fault


def test_samples_of_the_spec_must_be_bytes() -> None:
    with pytest.raises(ConfigError, match="samples=b'a;'"):
        words(samples=b"a;")


def test_refused_input_must_be_refused() -> None:
    assert "`refused` leads to no" in fault_of(WordParser, refused=[b"a;"]).fault


def test_last_samples_end_the_connection() -> None:
    assert "what follows a sample of `last` is read" in fault_of(WordParser, last=[b"z;"]).fault

    class Quits(WordParser):
        gone = False

        def next_message(self) -> Any:
            message = super().next_message()
            if isinstance(message, Word) and message.text == b"quit":
                self.gone = True
                self.held.clear()
            return message

        def feed(self, data: bytes) -> None:
            if not self.gone:
                super().feed(data)

    check_protocol(words(Quits), SAMPLES, last=[b"quit;"], examples=50)
    error = fault_of(Quits, [*SAMPLES, b"quit;"])
    assert "belongs into last=" in error.remedy


class Tunnel(FramedParser[tuple[str, bytes]]):
    """A handshake of two requests, after which the connection goes on as another protocol."""

    def messages(self) -> Parsing[tuple[str, bytes]]:
        if (yield from self.inbox.exactly(1)) != b"\5":
            raise ProtocolError("another version")
        yield "hello", (yield from self.inbox.prefixed(1))
        yield HOLD
        yield "open", (yield from self.inbox.prefixed(1))
        yield HOLD


class OnlyTunnel(Tunnel):
    """Is an error where it does not."""

    def messages(self) -> Parsing[tuple[str, bytes]]:
        yield from super().messages()
        raise ProtocolError("the tunnel was refused")


HELLO, OPEN = b"\5\2ab", b"\4host"


@pytest.mark.parametrize("message_in", [Tunnel, OnlyTunnel])
def test_a_handshake_that_ends_in_an_upgrade(message_in: Any) -> None:
    whole = {"last": [HELLO + OPEN], "handle": lambda parser, request: None}
    for options in (whole, {"last": [OPEN], "before": HELLO}):
        results = [*check_results(words(message_in), [], examples=50, **options)]
        assert [result.error for result in results] == [None] * len(CHECKS)
        not_tried = {result.name for result in results if not result.tried}
        assert "order" in not_tried
        assert "leftover" not in not_tried
    error = fault_of(OnlyTunnel, [OPEN], before=HELLO)
    assert "a sample is refused: the tunnel was refused" in error.fault
    assert "belongs into last=" in error.remedy


def test_a_handshake_before_each_connection() -> None:
    class Greeted(WordParser):
        greeted = False

        def next_message(self) -> Any:
            message = super().next_message()
            if isinstance(message, Word) and not self.greeted:
                if message.text != b"hello":
                    raise self.refuse("say hello")
                self.greeted = True
            return message

    assert "refused: say hello" in fault_of(Greeted, [b"a;"]).fault
    check_protocol(words(Greeted), [b"a;", b"b;"], before=b"hello;", examples=50)
    assert "`before` is refused" in fault_of(Greeted, [b"a;"], before=b"a;").fault


def test_a_handler_that_tells_the_parser_what_follows() -> None:
    class Text(WordParser):
        """After ``text;`` comes a text up to ``#``, where the reply says so."""

        text_follows = False

        def next_message(self) -> Any:
            if self.holds_back:
                self.holds_back = False
                return HOLD
            if self.text_follows:
                text = self.up_to(b"#")
                if text is None:
                    return NEED_DATA
                self.text_follows = False
                return Word(b"#" + text)
            message = super().next_message()
            if isinstance(message, Word) and message.text == b"text":
                self.holds_back = True
            return message

        @property
        def partial(self) -> bool:
            return bool(self.held) or self.text_follows

    def handle(parser: MessageParser[Any], request: Word) -> None:
        assert isinstance(parser, Text)
        parser.text_follows = request.text == b"text"

    check_protocol(words(Text), [b"a;", b"text;1;2;#"], handle=handle, examples=50)


class Odd:
    """Neither equality nor anything public."""

    def __init__(self, data: bytes) -> None:
        self._data = data


def test_requests_that_cannot_be_compared() -> None:
    assert "class Odd cannot be compared" in fault_of(lines(Odd), [b"a\n"]).fault

    def same(one: Odd, other: Odd) -> bool:
        return one._data == other._data

    check_protocol(words(lines(Odd)), [b"a\n", b"bc\n"], same=same, examples=50)


class Branch:
    """A tree whose leaves know what they are on: looked at without end, it has no end."""

    def __init__(self, text: bytes, parent: Branch | None = None) -> None:
        self.text = text
        self.parent = parent
        self.children = [Branch(text[i : i + 1], self) for i in range(len(text) - 1)]


def test_requests_that_are_trees() -> None:
    samples = [b"a\n", b"x" * 12 + b"\n"]
    check_protocol(words(lines(Branch)), samples, examples=0)

    class Numbered(Branch):
        """The parser's fault shows in a leaf only."""

        made = 0

        def __init__(self, text: bytes) -> None:
            super().__init__(text)
            Numbered.made += 1
            for child in self.children[-1:]:
                child.text = b"%d" % Numbered.made

    assert "connections share state" in fault_of(lines(Numbered), samples).fault


def test_the_round_trip() -> None:
    error = fault_of(WordParser, encode=lambda word: word.text.upper() + b";")
    assert error.check == "round trip"
    assert "Word(text=b'A')" in str(error)


def test_the_round_trip_with_the_end_forgotten() -> None:
    def encode(line: bytes) -> bytes:
        return line

    error = fault_of(lines(), [b"ab\n"], encode=encode)
    assert error.check == "round trip"
    assert error.fed == (b"abab",)
    check_protocol(words(lines()), [b"a\n"], encode=lambda line: [line, b"\n"], examples=0)


@pytest.mark.parametrize("returned", ["text", None, [1]])
def test_what_encode_returns_is_no_bytes(returned: Any) -> None:
    error = fault_of(lines(), [b"a\n"], encode=lambda line: returned)
    assert error.check == "round trip"
    assert "encode, or a piece of what it returned, is at fault: TypeError" in error.fault


# -- what a server says by itself ------------------------------------------------------


def reply_fault(**fields: Any) -> ConformanceError:
    options = {"is_reply": fields.pop("is_reply", None), "examples": 0}
    with pytest.raises(ConformanceError) as caught:
        check_protocol(words(**fields), SAMPLES, **options)
    return caught.value


def _fails(connection: CommConnection, reason: CloseReason) -> bytes:
    if reason is CloseReason.IDLE:
        raise KeyError("no state yet")
    return b""


async def _later(reply: Reply) -> bytes:
    return reply.text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"farewell": _fails}, "the farewell for IDLE raised KeyError"),
        ({"farewell": lambda connection, reason: "bye"}, "the farewell for NO_REQUEST is str"),
        ({"greeting": lambda connection: 1}, "the greeting is int"),
        ({"error_response": lambda request, error: None}, "or message_out of it, raised"),
        ({"message_out": lambda reply: "text"}, "message_out(response()) is str, which"),
        ({"message_out": lambda reply: None}, "message_out(response()) is NoneType, which"),
        ({"message_out": lambda reply: 1 / 0}, "message_out(response()) raised ZeroDivisionError"),
        ({"message_out": _later}, "message_out(response()) is coroutine, which"),
        ({"message_out": lambda reply: iter([b"a", 1])}, "message_out(response()) is int, which"),
        ({"response": lambda: None}, "message_out(response()) raised AttributeError"),
        ({"response": lambda: 1 / 0}, "response() raised ZeroDivisionError"),
    ],
)
def test_what_cannot_be_sent(fields: dict[str, Any], text: str) -> None:
    error = reply_fault(**fields)
    assert error.check == "replies"
    assert text in error.fault


def test_replies_are_judged() -> None:
    def is_reply(reply: bytes) -> bool:
        return not reply.startswith(b"oops")

    def error_response(request: Word, error: BaseException) -> Reply:
        return Reply(b"oops")

    error = reply_fault(error_response=error_response, is_reply=is_reply)
    assert "the reply to a request whose handler failed is not well formed" in error.fault
    error = reply_fault(
        farewell=lambda connection, reason: ProtocolError("late", reply=b"oops"),
        is_reply=is_reply,
    )
    assert "the farewell for NO_REQUEST is not well formed" in error.fault

    def refuses(reply: bytes) -> None:
        raise ValueError("no semicolon")

    error = fault_of(WordParser, refused=[b"1;"], is_reply=refuses)
    assert "'a digit') is not well formed: ValueError: no semicolon" in error.fault


def test_a_response_is_made_anew() -> None:
    one = Reply()
    spec = dataclasses.replace(words(), response=lambda: one)
    with pytest.raises(ConformanceError, match="the same object twice"):
        check_protocol(spec, SAMPLES, examples=0)


# -- the contract's other words --------------------------------------------------------


def test_hold_comes_once() -> None:
    class HoldsTwice(WordParser):
        holds = 0

        def next_message(self) -> Any:
            if self.holds:
                self.holds -= 1
                return HOLD
            message = super().next_message()
            self.holds = 2 if isinstance(message, Word) else 0
            return message

    assert "HOLD twice" in fault_of(HoldsTwice, [b"a;"]).fault


class BodyParser(MessageParser[str]):
    """A digit, and so many bytes that stream in."""

    def __init__(self, params: ServerParams) -> None:
        self.held = b""
        self.left = 0
        self.stream: IncomingStream | None = None
        self.waits = False

    def feed(self, data: bytes) -> None:
        self.held += data

    def next_message(self) -> Any:
        if self.stream is not None:
            piece, self.held = self.held[: self.left], self.held[self.left :]
            self.left -= len(piece)
            self.stream.feed(piece)
            if not self.left:
                self.stream.end()
                self.stream = None
            else:
                return NEED_DATA
        if self.waits:
            self.waits = False
            return Feedback(b"go on;")
        if not self.held:
            return NEED_DATA
        if not self.held[:1].isdigit() or self.held[:1] == b"0":
            raise ProtocolError("no digit")
        self.left = int(self.held[:1])
        self.held = self.held[1:]
        self.stream = IncomingStream()
        self.waits = not self.held  # as it happens to come
        return Arriving(f"{self.left} bytes", self.stream)

    @property
    def partial(self) -> bool:
        return bool(self.held or self.left)


def test_bodies_that_stream_in_and_interim_answers() -> None:
    check_protocol(words(BodyParser), [b"3abc", b"1;"], refused=[b"a"], examples=50)


class RawParser(MessageParser[IncomingStream]):
    """A tunnel: one request, whose body is all that comes."""

    def __init__(self, params: ServerParams) -> None:
        self.stream = IncomingStream()
        self.held = b""
        self.begun = self.ended = False

    def feed(self, data: bytes) -> None:
        self.held += data

    def feed_eof(self) -> None:
        self.ended = True

    def next_message(self) -> Any:
        if self.held and not self.begun:
            self.begun = True
            return Arriving(self.stream, self.stream)
        if self.held:
            self.stream.feed(self.held)
            self.held = b""
        if self.begun and self.ended and not self.stream.over:
            self.stream.end()
        return NEED_DATA

    @property
    def partial(self) -> bool:
        return self.begun


def test_a_tunnel_is_a_body_without_end() -> None:
    check_protocol(words(RawParser), [b"any bytes", b"x" * 2000], examples=50)

    class EachRead(RawParser):
        def next_message(self) -> Any:
            read, self.held = self.held, b""
            return read or NEED_DATA

        @property
        def partial(self) -> bool:
            return False

    assert fault_of(EachRead, [b"any bytes"]).check == "order"


def test_a_body_that_does_not_end_is_no_message() -> None:
    error = fault_of(words(BodyParser).message_in, [b"3ab"])
    assert error.check == "samples"
    assert "a sample is no whole message: its body does not end" in error.fault


def test_a_body_that_is_overtaken() -> None:
    class Early(BodyParser):
        def next_message(self) -> Any:
            return super().next_message() if self.stream is None else "the next"

    assert "was still arriving" in fault_of(Early, [b"3abc"]).fault


@pytest.mark.parametrize(
    "returned", [lambda held: held, lambda held: b"x", lambda held: memoryview(held)]
)
def test_leftover_is_exact(returned: Callable[[bytes], Any]) -> None:
    class Wrong(WordParser):
        def leftover(self) -> Any:
            return returned(b"up;" + bytes(self.held))

    error = fault_of(Wrong)
    assert error.check == "leftover"


def test_without_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'protoserve\[testing\]'"):
        check_protocol(words(), SAMPLES)
    check_protocol(words(), SAMPLES, examples=0)


def test_replies_that_tell_the_time() -> None:
    class Dated(WordParser):
        made = 0

        def __init__(self, params: ServerParams) -> None:
            super().__init__(params)
            Dated.made += 1

        def refuse(self, text: str) -> ProtocolError:
            error = super().refuse(text)
            error.reply = b"%d %b" % (Dated.made // 50, error.reply)  # now and then another
            return error

    check_protocol(words(Dated), SAMPLES, refused=[b"hello;a2;"], examples=100)
    assert Dated.made > 500


def test_replies_that_depend_on_the_split() -> None:
    class Early(WordParser):
        """Says more where it was told less."""

        fed = b""

        def feed(self, data: bytes) -> None:
            self.fed = data
            super().feed(data)

        def refuse(self, text: str) -> ProtocolError:
            error = super().refuse(text)
            error.reply += self.fed
            return error

    error = fault_of(Early, refused=[b"a1;"])
    assert error.check == "splits"
    assert "got:  a ProtocolError, reply b'error: a digit;1;'" in str(error)


def test_long_messages_are_not_shown_whole() -> None:
    error = fault_of(lines(), [b"x" * 100_000 + b"\n"], encode=lambda _: b"y\n")
    assert error.check == "round trip"
    assert "was: [b'xxx" in str(error)
    assert len(str(error)) < 5_000


def test_bytes_are_written_so_that_they_can_be_read() -> None:
    from protoserve.testing.conformance.error import pieces_as_text

    assert pieces_as_text([b"a", b"bc"]) == "b'a', b'bc'"
    assert pieces_as_text([b"a", *[b"x" * 1000] * 5]) == "b'a', 5 times b'x' * 1000"
    assert pieces_as_text([b"%d" % (i % 10) for i in range(20)]) == (
        "b'01234567890123456789', byte by byte"
    )
