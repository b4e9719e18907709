"""Driving one parser as the engine does, without input and output, and judging each answer."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protoserve.errors import ProtocolError
from protoserve.kernel.incoming import IncomingStream
from protoserve.params import ServerParams
from protoserve.protocol import HOLD, NEED_DATA, Arriving, Feedback, MessageParser, ProtocolSpec
from protoserve.testing.conformance.error import ConformanceError
from protoserve.testing.conformance.messages import Judged, Seen, seen
from protoserve.testing.conformance.watch import Watch

_BUFFERS: Final = (bytes, bytearray, memoryview)
_TRIES: Final = 3

FAULTS: Final = (Exception, SystemExit)
"""What functions of a protocol raise by fault; a key that is pressed is none."""


@dataclass(slots=True)
class Subject:
    """The protocol under test, and what the caller said of it."""

    spec: ProtocolSpec[Any, Any]
    watch: Watch
    before: bytes = b""
    same: Callable[[Any, Any], bool] | None = None
    handle: Callable[[MessageParser[Any], Any], object] | None = None
    is_reply: Callable[[bytes], object] | None = None

    def tell(self, message: Any) -> Any:
        """Something to compare the message by."""
        return seen(message) if self.same is None else Judged(message, self.same)

    def judge_reply(self, reply: bytes, what: str, fed: Sequence[bytes] = ()) -> None:
        """Let the caller's function look at what a client is sent."""
        if self.is_reply is None or not reply:
            return
        try:
            verdict = self.is_reply(reply)
        except FAULTS as error:
            raise ConformanceError(
                f"{what} is not well formed: {described(error)}",
                fed=fed,
                details=[f"reply: {reply!r}"],
                remedy="A client must be able to read it: make it a complete message.",
            ) from error
        if verdict is False:
            raise ConformanceError(
                f"{what} is not well formed",
                fed=fed,
                details=[f"reply: {reply!r}"],
                remedy="A client must be able to read it: make it a complete message.",
            )


def described(error: BaseException) -> str:
    """An exception in one line, with where it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


@dataclass(slots=True)
class Outcome:
    """What must not depend on how the bytes were split."""

    events: list[Any]
    """The messages, and ``HOLD``."""
    fault: bytes | None
    """The farewell of the error that ended it."""
    partial: bool | None
    """Before the peer ended its side; ``None`` after an error."""


def difference(outcome: Outcome, expected: Outcome) -> list[str]:
    """The first thing in which two differ, for people; empty for nothing."""
    for number, (event, other) in enumerate(zip(outcome.events, expected.events, strict=False), 1):
        if event != other:
            return [f"got:  message {number} is {event!r}", f"not:  {other!r}"]
    got, meant = len(outcome.events), len(expected.events)
    if got < meant:
        return [f"got:  {_count(got)}", f"lost: {expected.events[got]!r}"]
    if got > meant:
        return [f"got:  {_count(got)}, not {meant}", f"more: {outcome.events[meant]!r}"]
    if outcome.fault != expected.fault:
        return [f"got:  {_verdict(outcome.fault)}", f"not:  {_verdict(expected.fault)}"]
    if outcome.partial != expected.partial:
        return [f"got:  the same messages, and then partial={outcome.partial}, not the other"]
    return []


def _count(number: int) -> str:
    return "1 message" if number == 1 else f"{number} messages"


def _verdict(fault: bytes | None) -> str:
    if fault is None:
        return "no ProtocolError"
    return f"a ProtocolError, reply {fault!r}" if fault else "a ProtocolError"


class Run:
    """One parser, from the first byte to the last. Raises ``ConformanceError`` as soon as the
    parser does what no parser may, whatever it is fed.

    ``record``: messages are kept to be compared, else counted only.
    """

    def __init__(
        self, subject: Subject, params: ServerParams | None = None, *, record: bool = True
    ) -> None:
        self.fed: list[bytes] = []
        self.events: list[Any] = []
        self.messages: list[Any] = []
        self.count = 0
        """Messages so far."""
        self._returned: list[tuple[Any, Any]] = []
        self.fault: ProtocolError | None = None
        self.held = False
        """``HOLD`` came, and with ``stays`` nothing was asked since."""
        self.stays = False
        """Stay at ``HOLD``: the replies are not given."""
        self._subject = subject
        self._record = record
        self._size = 0
        self._answers = 0
        self._stream: IncomingStream | None = None
        self._body: list[bytes] = []
        self._arriving: Any = None
        self._place = 0
        self._pulled = 0
        spec = subject.spec
        self.parser: MessageParser[Any] = self._call(
            "message_in", spec.message_in, spec.params if params is None else params
        )
        if subject.before:
            self.feed(subject.before)
            if self.fault is not None:
                raise self.broken(
                    f"`before` is refused: {self.fault}", "Give bytes that begin each connection."
                )
            self.events.clear()
            self.messages.clear()
            self._returned.clear()
            self.count = 0

    def broken(self, fault: str, remedy: str, *details: str) -> ConformanceError:
        """What is raised for a fault."""
        return ConformanceError(fault, fed=self.fed, remedy=remedy, details=details)

    # -- what the engine does --------------------------------------------------------------

    def feed(self, data: bytes, *, take: bool = True) -> None:
        """Bytes come in, at least one, and all messages are taken out; without ``take``, later:
        the engine leaves them there while many wait."""
        if not data:
            return
        self.fed.append(data)
        self._size += len(data)
        try:
            self._call("feed", self.parser.feed, data)
        except ProtocolError as error:
            raise self.broken(
                f"feed raised a ProtocolError ({error})",
                "Keep it, and raise it in next_message, once the messages before are returned.",
            ) from error
        if take:
            self.drain()

    def end(self) -> None:
        """The peer ends its side."""
        try:
            self._call("feed_eof", self.parser.feed_eof)
        except ProtocolError as error:
            raise self.broken(
                f"feed_eof raised a ProtocolError ({error})",
                "Keep it, and raise it in next_message.",
            ) from error
        self.drain()
        before = self.count
        self.drain()
        if self.count > before:
            raise self.broken(
                f"after the end, next_message returned NEED_DATA and then {self.messages[-1:]!r}",
                "NEED_DATA means that there is no message until more is fed.",
            )

    def close(self) -> None:
        """The connection has closed."""
        try:
            self._call("close", self.parser.close)
        except ProtocolError as error:
            raise self.broken(f"close raised {described(error)}", "It must not raise.") from error

    def partial(self) -> bool:
        """Whether an unfinished message is held."""
        self._subject.watch.enter(self, "partial")
        try:
            value: object = self.parser.partial
        except FAULTS as error:
            raise self.broken(
                f"partial raised {described(error)}", "It says True or False."
            ) from error
        finally:
            self._subject.watch.leave()
        if isinstance(value, bool):
            return value
        if inspect.ismethod(value):
            raise self.broken("partial is a method, which is always true", "Put @property on it.")
        raise self.broken(f"partial is {value!r}", "It must be True or False: bool(...).")

    def leftover(self) -> bytes:
        """What was fed and is in no message."""
        try:
            data: object = self._call("leftover", self.parser.leftover)
        except ProtocolError as error:
            raise self.broken(
                f"leftover raised {described(error)}", "It must not raise."
            ) from error
        if isinstance(data, bytes):
            return data
        raise self.broken(f"leftover returned {type(data).__name__}", "It must return bytes.")

    @property
    def streaming(self) -> bool:
        """Whether a body has not come to its end."""
        return self._stream is not None

    def outcome(self, partial: bool | None) -> Outcome:
        """What came of it."""
        fault = None if self.fault is None else bytes(self.fault.reply)
        return Outcome(self.events, fault, partial)

    def check_unchanged(self) -> None:
        """Messages are still what they were when they came: their handlers may have them yet."""
        if self._subject.same is not None:
            return
        for message, event in self._returned:
            later = self._tell(message)
            if event != later:
                raise self.broken(
                    "a message has changed after it was returned",
                    "What a message holds must be its own, not what the next is made in: "
                    "bytes(...), or a new list for each.",
                    f"was: {event!r}",
                    f"is:  {later!r}",
                )

    def drain(self) -> None:
        """Take messages until there are none."""
        if self.fault is not None:
            self._ask_after_fault()
            return
        while True:
            try:
                message = self._call("next_message", self.parser.next_message)
            except ProtocolError as error:
                self._pull()  # a body may have ended before
                self._fail(error)
                return
            self._pull()
            if message is NEED_DATA:
                self.held = False
                return
            self._answers += 1
            if self._answers > 16 * self._size + 64:
                raise self.broken(
                    f"next_message has no end: {self._answers} answers to {self._size} bytes",
                    "Take a message out of what is held, and return NEED_DATA when there is "
                    "none; after feed_eof too.",
                )
            if not self._take(message):
                return

    # -- in detail -------------------------------------------------------------------------

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        watch = self._subject.watch
        watch.enter(self, what)
        try:
            return function(*arguments)
        except ProtocolError:
            raise
        except FAULTS as error:
            raise self.broken(
                f"{what} raised {described(error)}",
                "Whatever the peer sends leads to messages, or to a ProtocolError raised by "
                "next_message.",
            ) from error
        finally:
            watch.leave()

    def _take(self, message: Any) -> bool:
        """One answer. False where nothing more is to be asked now."""
        if message is None:
            raise self.broken(
                "next_message returned None",
                "Return NEED_DATA where no message is whole; does some way through it lack a "
                "return?",
            )
        if isinstance(message, Feedback):
            return True  # whether one is due may depend on what has come
        if message is HOLD:
            if self.held:
                raise self.broken(
                    "next_message returned HOLD twice, with no request between",
                    "Return it once; when it is called again, all replies have been given.",
                )
            self.held = True
            self._note(HOLD)
            return not self.stays
        self.held = False
        if self._stream is not None:
            raise self.broken(
                f"next_message returned {message!r} while the body of the request before was "
                "still arriving",
                "End its stream first: stream.end().",
            )
        self.count += 1
        if isinstance(message, Arriving):
            self._stream = message.stream
            self._body = []
            self._pulled = 0
            self._arriving = message.request
            self._place = len(self.events)
            self._note(Seen("Arriving, unfinished", (("request", self._tell(message.request)),)))
            request = message.request
        else:
            request = message
            if self._record:
                self.messages.append(message)
                told = self._tell(message)
                self._returned.append((message, told))
                self._note(told)
        if self._subject.handle is not None:
            self._subject.handle(self.parser, request)
        self._pull()
        return True

    def _tell(self, message: Any) -> Any:
        return self._subject.tell(message) if self._record else None

    def _note(self, event: Any) -> None:
        if self._record:
            self.events.append(event)

    def _pull(self) -> None:
        """Read what has come of a body."""
        stream = self._stream
        if stream is None or (stream.received == self._pulled and not stream.over):
            return
        self._pulled = stream.received
        while piece := stream.pull(_nobody):
            self._body.append(piece)
        if piece is None:
            return
        self._stream = None
        if self._record:
            self.messages.append(self._arriving)
            parts = (("request", self._tell(self._arriving)), ("body", b"".join(self._body)))
            self.events[self._place] = Seen("Arriving", parts)

    def _fail(self, error: ProtocolError) -> None:
        self.fault = error
        if not isinstance(error.reply, _BUFFERS):
            raise self.broken(
                f"the reply of a ProtocolError is {type(error.reply).__name__}",
                "It must be bytes, a complete message; empty for none.",
            )
        if not isinstance(error.summary, Mapping):
            raise self.broken(
                f"the summary of a ProtocolError is {type(error.summary).__name__}",
                "It must be a mapping; empty for no facts.",
            )
        self._subject.judge_reply(
            bytes(error.reply), f"the reply of ProtocolError({str(error)!r})", self.fed
        )
        self._ask_after_fault()

    def _ask_after_fault(self) -> None:
        """Errors stay."""
        first = self.fault
        assert first is not None
        remedy = "Keep the error, and raise it again on each later call of next_message."
        try:
            message = self._call("next_message", self.parser.next_message)
        except ProtocolError as error:
            if str(error) != str(first):  # its reply may tell the time
                raise self.broken(
                    f"next_message raised ProtocolError({str(first)!r}) and then another, "
                    f"ProtocolError({str(error)!r})",
                    remedy,
                ) from error
            return
        raise self.broken(
            f"the error is forgotten: next_message raised ProtocolError({str(first)!r}), and then "
            f"returned {message!r}",
            remedy,
        )


def _nobody() -> None:
    """Who waits for more of a body here: it is asked again."""


def drive(
    subject: Subject,
    pieces: Sequence[bytes],
    *,
    end: bool = True,
    params: ServerParams | None = None,
) -> Outcome:
    """What a new parser makes of ``pieces``; ``end``: and of the end after them."""
    return drive_run(subject, pieces, end=end, params=params)[1]


def drive_run(
    subject: Subject,
    pieces: Sequence[bytes],
    *,
    end: bool = True,
    params: ServerParams | None = None,
) -> tuple[Run, Outcome]:
    """The same, with what it was run on."""
    run = Run(subject, params)
    for piece in pieces:
        run.feed(piece)
    partial = run.partial() if run.fault is None else None
    if end:
        run.end()
    run.close()
    return run, run.outcome(partial)


def compared(
    subject: Subject,
    pieces: Sequence[bytes],
    expected: Outcome,
    params: ServerParams | None = None,
) -> list[str]:
    """In what ``pieces`` differ from ``expected``, which is what they are in one. Replies may tell
    the time: where those of faults differ, both are made again."""
    details: list[str] = []
    for _ in range(_TRIES):
        details = difference(drive(subject, pieces, params=params), expected)
        if not details or expected.fault is None:
            return details
        expected = drive(subject, [b"".join(pieces)], params=params)
    return details
