"""What clients say and must be told: one class for each protocol."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar

from servers import CHANNEL
from work import ANSWERED, KINDS, LAST, STREAMS, answer

PATIENCE = 20.0
"""Seconds without a byte after which a client counts as hanging."""

_WAIT = 0.25
"""Seconds of one wait."""

T = TypeVar("T")

_tokens = count()


class WrongAnswer(Exception):  # noqa: N818 - what it says is in its name
    """The server said something else than it must."""


class Hanging(Exception):  # noqa: N818
    """Nothing comes, and no end."""


class Ended(Exception):  # noqa: N818
    """The connection ended; ``partial`` when that was within an answer."""

    def __init__(self, how: str, partial: bool) -> None:
        super().__init__(f"{how}{' within an answer' if partial else ''}")
        self.how = how
        self.partial = partial


class Abandoned(Exception):  # noqa: N818
    """The run is over for another reason: nothing can be said of this client."""


@dataclass(frozen=True)
class Exchange:
    """One request."""

    kind: str
    token: bytes
    request: bytes

    def __str__(self) -> str:
        return self.kind


class Dialogue:
    """One connection of a client: bytes out, and answers that are read one by one."""

    kinds: tuple[str, ...] = KINDS
    lacks: tuple[str, ...] = ("pushed",)
    """Steps that it does not have."""
    greeted = False
    """Whether its server speaks first."""
    parts = False
    """Whether its server speaks last."""
    shares = False
    """Whether several requests are in flight."""

    def __init__(self, sock: socket.socket, abandoned: Callable[[], bool]) -> None:
        self.sock = sock
        self._abandoned = abandoned
        self._held = bytearray()
        self._begun = False
        self.heard = False
        """Whether the server said anything."""
        self.farewell = ""
        """The reason for the end, where the server told it."""
        self.ended = False
        """Whether we have ended our side."""
        self.unfinished: Exchange | None = None
        """What was not sent to its end."""
        self.may_end = False
        """Whether the connection may end here, whatever waits for an answer."""

    # -- bytes -------------------------------------------------------------------------

    def fill(self) -> None:
        """Take what has arrived, or wait for it. Raises ``Ended``."""
        size = random.choice((100, 4096, 262_144))
        try:
            data = self._patiently(partial(self.sock.recv, size), "nothing came")
        except OSError as error:
            raise Ended(type(error).__name__, self._partial) from None
        if not data:
            raise Ended("EOF", self._partial)
        self._held += data
        self.heard = True

    def send(self, data: bytes) -> None:
        """Send it. No error when the server has ended the connection: reading tells whether
        it may have."""
        try:
            while data:
                data = data[self._patiently(partial(self.sock.send, data), "nothing was taken") :]
        except ConnectionError:
            return

    def _patiently(self, call: Callable[[], T], otherwise: str) -> T:
        """Call it until it has not timed out. Waits are counted, and not the time: a machine
        that was stopped meanwhile has stopped the server as well."""
        self.sock.settimeout(_WAIT)
        for _ in range(round(PATIENCE / _WAIT)):
            try:
                return call()
            except TimeoutError:
                if self._abandoned():
                    raise Abandoned from None
        raise Hanging(f"{otherwise} for {PATIENCE:g} s")

    def peek(self) -> None:
        """Wait until there is something to read."""
        if not self._held:
            self.fill()

    @property
    def _partial(self) -> bool:
        return self._begun or bool(self._held)

    def line(self, end: bytes = b"\r\n") -> bytes:
        """One line without its end."""
        while (at := self._held.find(end)) < 0:
            self.fill()
        line = bytes(self._held[:at])
        del self._held[: at + len(end)]
        self._begun = True
        return line

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self._held) < size:
            self.fill()
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    def expect(self, got: object, wanted: object, what: str) -> None:
        """Raises ``WrongAnswer`` unless they are equal."""
        if got != wanted:
            raise WrongAnswer(f"{what}: {_short(got)} instead of {_short(wanted)}")

    @property
    def speaker(self) -> Dialogue:
        """What knows how the connection stands."""
        return self

    # -- the protocol ------------------------------------------------------------------

    def exchange(self, rng: random.Random, kinds: tuple[str, ...]) -> Exchange:
        """A request of one of the kinds."""
        raise NotImplementedError

    def is_last(self, exchange: Exchange) -> bool:
        """Whether nothing may be asked after it."""
        return exchange.kind in LAST

    def greeting(self) -> None:
        """What the server says first."""

    def answer(self, asked: Sequence[Exchange]) -> Exchange:
        """Read one answer, and what may precede it; whose it was of those that wait."""
        self._begun = False
        exchange = self._next(asked)
        self._begun = False
        return exchange

    def _next(self, asked: Sequence[Exchange]) -> Exchange:
        self._answer(asked[0])
        return asked[0]

    def _answer(self, exchange: Exchange) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Read up to the end, where only what belongs to no answer may come."""
        self._begun = False
        while True:
            self._unasked()

    def _unasked(self) -> None:
        self.fill()
        raise WrongAnswer(f"after the last answer came {_short(bytes(self._held))}")


def _short(thing: object) -> str:
    text = repr(thing)
    return text if len(text) < 200 else f"{text[:120]} ... {text[-60:]} ({len(text)})"


def new_token() -> bytes:
    """One that no other request has."""
    return b"t%d" % next(_tokens)


class HttpDialogue(Dialogue):
    """HTTP/1.1."""

    def exchange(self, rng: random.Random, kinds: tuple[str, ...]) -> Exchange:
        kind, token = rng.choice(kinds), new_token()
        if rng.random() < 0.3:
            body = b".%d" % rng.randrange(10**9)
            head = f"POST /{kind}/{token.decode()} HTTP/1.1\r\nHost: a\r\nContent-Length: "
            request = head.encode() + b"%d\r\n\r\n%b" % (len(body), body)
            return Exchange(kind, token + body, request)
        request = f"GET /{kind}/{token.decode()} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        return Exchange(kind, token, request)

    def _answer(self, exchange: Exchange) -> None:
        self.judge(exchange, *self._head())

    def judge(
        self, exchange: Exchange, status: int, fields: dict[bytes, bytes]
    ) -> dict[bytes, bytes]:
        """Read the rest; its fields. Raises ``WrongAnswer`` unless it is the answer."""
        if exchange.kind == "push" and status == 103:
            self.expect(fields.get(b"x-token"), exchange.token, "token of the early hints")
            status, fields = self._head()
        if status == 408:
            raise Ended("408", False)
        body = self._body(fields)
        wanted: tuple[int, bytes] = (200, answer(exchange.kind, exchange.token))
        if exchange.kind == "raise":
            wanted = (500, b"Internal Server Error\n")
        self.expect((status, body), wanted, "status and body")
        return fields

    def switch(self, exchange: Exchange) -> bool:
        """Read the reply to a request for another protocol; False when it is refused, since
        the reply is the last."""
        self._begun = False
        status, fields = self._head()
        if exchange.kind == "push" and status == 103:
            self.expect(fields.get(b"x-token"), exchange.token, "token of the early hints")
            status, fields = self._head()
        if status == 503 and exchange.kind in LAST:
            self._body(fields)
            self._begun = False
            return False
        if status in (408, 503):
            raise Ended(str(status), False)
        got = (status, fields.get(b"x-token"))
        self.expect(got, (101, exchange.token), "status and token of the upgrade")
        self._begun = False
        return True

    def _head(self) -> tuple[int, dict[bytes, bytes]]:
        line = self.line()
        words = line.split(b" ")
        if words[0] != b"HTTP/1.1" or len(words) < 3 or not words[1].isdigit():
            raise WrongAnswer(f"status line {_short(line)}")
        fields = {}
        while field := self.line():
            name, _, value = field.partition(b":")
            fields[name.lower()] = value.strip()
        return int(words[1]), fields

    def _body(self, fields: dict[bytes, bytes]) -> bytes:
        if fields.get(b"transfer-encoding") != b"chunked":
            return self.exactly(int(fields[b"content-length"]))
        body = b""
        while size := int(self.line(), 16):
            body += self.exactly(size)
            self.expect(self.exactly(2), b"\r\n", "end of a chunk")
        self.expect(self.line(), b"", "end of the body")
        return body

    def _unasked(self) -> None:
        # To an unfinished request.
        status, fields = self._head()
        if status not in (400, 408):
            raise WrongAnswer(f"after the last answer came one with {status}")
        self._body(fields)
        self._begun = False


class LineDialogue(Dialogue):
    """Lines, with numbered ones that are pushed in between."""

    lacks = ()
    greeted = True

    def __init__(self, sock: socket.socket, abandoned: Callable[[], bool]) -> None:
        super().__init__(sock, abandoned)
        self.pushed = 0

    def exchange(self, rng: random.Random, kinds: tuple[str, ...]) -> Exchange:
        kind, token = rng.choice(kinds), new_token()
        return Exchange(kind, token, b"%b %b\n" % (kind.encode(), token))

    def greeting(self) -> None:
        self.expect(self.line(b"\n"), b"HELLO", "greeting")
        self._begun = False

    def await_push(self) -> None:
        """Until a line is pushed."""
        line = self.line(b"\n")
        self._begun = False
        if not self._is_pushed(line):
            raise WrongAnswer(f"{_short(line)}, which nobody asked for")

    def _is_pushed(self, line: bytes) -> bool:
        if not line.startswith(b"!"):
            return False
        self.expect(line, b"!%d" % self.pushed, "pushed line")
        self.pushed += 1
        self._begun = False
        return True

    def _answer(self, exchange: Exchange) -> None:
        interim = b""
        while True:
            line = self.line(b"\n")
            if self._is_pushed(line):
                self._begun = bool(interim)
            elif line.startswith(b"~"):
                interim += line[1:]
            else:
                break
        self.judge(exchange, line, interim)

    def judge(self, exchange: Exchange, line: bytes, interim: bytes) -> None:
        """Raises ``WrongAnswer`` unless it is the answer, with what came before."""
        wanted = answer(exchange.kind, exchange.token)
        special = {"flood": exchange.token, "raise": b"ERR"}
        self.expect(line, special.get(exchange.kind, wanted), "line")
        whole = {"push": exchange.token, "flood": answer("flood", exchange.token)}
        self.expect(interim, whole.get(exchange.kind, b""), "what came before")

    def _unasked(self) -> None:
        self.await_push()


class RedisDialogue(Dialogue):
    """RESP2."""

    kinds = tuple(kind for kind in KINDS if kind not in ("push", "flood", *STREAMS))
    lacks = ("in-stream", "unread")

    def exchange(self, rng: random.Random, kinds: tuple[str, ...]) -> Exchange:
        kind, token = rng.choice(kinds), new_token()
        name = rng.choice((b"RUN", b"ARUN"))
        if kind == "callback" or (kind == "wait" and name == b"ARUN"):
            name = b"RUN"
        return Exchange(kind, token, command(name, kind.encode(), token))

    def _answer(self, exchange: Exchange) -> None:
        wanted: Any = answer(exchange.kind, exchange.token)
        if exchange.kind == "raise":
            wanted = b"-ERR internal error"
        self.expect(self.value(), wanted, "reply")

    def value(self) -> Any:
        """One value of RESP2; errors and simple strings with their first byte."""
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind in b"+-" and kind:
            return line
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self.exactly(int(rest) + 2)[:-2] if rest != b"-1" else None
        if kind == b"*":
            return [self.value() for _ in range(int(rest))]
        raise WrongAnswer(f"{_short(line)} is not RESP")

    def subscribe(self) -> None:
        """Ask for the news."""
        self.send(command(b"SUBSCRIBE", CHANNEL.encode()))
        self.expect(self.value(), [b"subscribe", CHANNEL.encode(), 1], "confirmation")
        self._begun = False

    def news(self, last: int | None) -> int:
        """The next message, which must follow ``last``."""
        kind, channel, text = self.value()
        self._begun = False
        self.expect((kind, channel), (b"message", CHANNEL.encode()), "message")
        if last is not None:
            self.expect(int(text), last + 1, "number of the message")
        return int(text)

    def unsubscribe(self, last: int | None) -> None:
        """Ask for no more; messages that were on their way may come first."""
        self.send(command(b"UNSUBSCRIBE"))
        while True:
            value = self.value()
            self._begun = False
            if value[0] == b"message":
                if last is not None:
                    self.expect(int(value[2]), last + 1, "number of the message")
                last = int(value[2])
                continue
            self.expect(value, [b"unsubscribe", CHANNEL.encode(), 0], "confirmation")
            return

    def _unasked(self) -> None:
        value = self.value()
        self._begun = False
        if not (isinstance(value, bytes) and value.startswith(b"-ERR Protocol error")):
            raise WrongAnswer(f"after the last reply came {_short(value)}")


def command(*words: bytes) -> bytes:
    """A Redis command as clients send it."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


SMALL = tuple(kind for kind in ANSWERED if kind != "big")
