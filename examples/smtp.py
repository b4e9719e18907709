"""A mail server that keeps what it is sent in memory (RFC 5321, with PIPELINING and SIZE).

Run it with ``python examples/smtp.py``, and send it something:
``swaks --server 127.0.0.1:2525 --to you@example.org``.

The server speaks first; what follows DATA is read as a message or as more commands, as the
reply says, and so is what follows STARTTLS; 421 is its last word when it closes by itself.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from protoserve import (
    HOLD,
    NEED_DATA,
    CloseReason,
    CommConnection,
    Hold,
    MessageParser,
    NeedData,
    ProtocolError,
    ProtocolSpec,
    ServerParams,
    WFServer,
    WFServerTask,
)

HOST = "mail.example.org"
LINE_LIMIT = 2000  # RFC 5321 asks for 512; extensions for more
RECIPIENT_LIMIT = 100


class Mail(NamedTuple):
    """What was delivered."""

    sender: str
    recipients: list[str]
    content: bytes


inbox: list[Mail] = []


@dataclass
class Dialogue:
    """``connection.state``: how far a client has come."""

    greeted: bool = False
    message_follows: bool = False
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)

    def reset(self) -> None:
        self.sender = None
        self.recipients = []


class Command(NamedTuple):
    verb: str
    argument: str


class Message(NamedTuple):
    content: bytes


@dataclass
class Reply:
    code: int = 250
    lines: tuple[str, ...] = ("2.0.0 OK",)

    def encode(self) -> bytes:
        *first, last = self.lines
        lines = [f"{self.code}-{line}" for line in first] + [f"{self.code} {last}"]
        return "".join(f"{line}\r\n" for line in lines).encode()


class SmtpParser(MessageParser[Command | Message]):
    """Command lines, and after a DATA that was answered with 354 a message. Lines end with
    CR LF and with nothing else, or mails could be smuggled in others."""

    def __init__(self, params: ServerParams) -> None:
        self.dialogue = Dialogue()  # shared with the handler: see greet()
        self._size_limit = params.request_size_limit
        self._held = bytearray()
        self._searched = 0  # so many bytes of it hold no end
        self._holds_back = False
        self._in_message = False
        self._fault: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        if self._fault is None:
            self._held += data

    def next_message(self) -> Command | Message | NeedData | Hold:
        if self._holds_back:
            self._holds_back = False
            return HOLD  # the reply decides how the rest is read
        if self.dialogue.message_follows:
            if not self._in_message:
                self._in_message = True
                self._held[:0] = b"\r\n"  # each line, and the dot at the end, follows one
            text = self._up_to(b"\r\n.\r\n", self._size_limit, "552 5.3.4 Message too big")
            if text is None:
                return NEED_DATA
            self._in_message = self.dialogue.message_follows = False
            # A dot at the beginning of a line was doubled.
            return Message(text.replace(b"\r\n.", b"\r\n")[2:] + text[:2])
        line = self._up_to(b"\r\n", LINE_LIMIT, "500 5.5.2 Line too long")
        if line is None:
            return NEED_DATA
        verb, _, argument = line.decode("utf-8", "replace").strip().partition(" ")
        self._holds_back = verb.upper() in ("DATA", "STARTTLS")
        return Command(verb.upper(), argument.strip())

    def _up_to(self, end: bytes, limit: int | None, too_long: str) -> bytes | None:
        """What comes before ``end``, which is taken away; None where it is not there yet."""
        if self._fault is not None:
            raise self._fault
        at = self._held.find(end, max(0, self._searched - len(end)))
        size = len(self._held) if at < 0 else at + len(end)
        if limit is not None and size > limit:
            self._held.clear()
            self._fault = ProtocolError(too_long, reply=f"{too_long}\r\n".encode())
            raise self._fault
        if at < 0:
            self._searched = size
            return None
        found = bytes(self._held[:at])
        del self._held[:size]
        self._searched = 0
        return found

    @property
    def partial(self) -> bool:
        return bool(self._held) or self.dialogue.message_follows


def greet(connection: CommConnection) -> bytes:
    connection.state = connection.parser.dialogue  # type: ignore[attr-defined]
    return f"220 {HOST} ESMTP\r\n".encode()


def last_word(connection: CommConnection, reason: CloseReason) -> bytes:
    return f"421 4.4.2 {HOST} closes: {reason}\r\n".encode()


SMTP_SPEC = ProtocolSpec[Command | Message, Reply](
    name="smtp",
    message_in=SmtpParser,
    message_out=Reply.encode,
    response=Reply,
    greeting=greet,
    farewell=last_word,
    error_response=lambda request, error: Reply(451, ("4.3.0 Internal error",)),
    # RFC 5321, 4.5.3.2.7: at least five minutes.
    params=ServerParams(keep_alive_timeout=300, peer_response_timeout=300, receive_timeout=600),
    url_scheme="smtp",
)

SmtpTask = WFServerTask[Command | Message, Reply]


def process(task: SmtpTask) -> None:
    dialogue: Dialogue = task.connection.state
    if isinstance(task.req, Message):
        inbox.append(Mail(dialogue.sender or "", dialogue.recipients, task.req.content))
        dialogue.reset()
        task.resp = Reply(250, (f"2.0.0 Kept as number {len(inbox)}",))
    else:
        task.resp = answer(task, dialogue, *task.req)


def answer(task: SmtpTask, dialogue: Dialogue, verb: str, argument: str) -> Reply:
    """The reply to a command."""
    match verb:
        case "EHLO" | "HELO" if argument:
            dialogue.greeted = True
            dialogue.reset()
            size = task.server.params.request_size_limit or 0
            extensions = ("PIPELINING", f"SIZE {size}", "8BITMIME", "ENHANCEDSTATUSCODES")
            return Reply(250, (HOST, *extensions) if verb == "EHLO" else (HOST,))
        case "MAIL" if dialogue.greeted and dialogue.sender is None:
            dialogue.sender = path(argument, "FROM")
            if dialogue.sender is not None:
                return Reply(250, ("2.1.0 OK",))
        case "RCPT" if dialogue.sender is not None:
            recipient = path(argument, "TO")
            if len(dialogue.recipients) == RECIPIENT_LIMIT:
                return Reply(452, ("4.5.3 Too many recipients",))
            if recipient:
                dialogue.recipients.append(recipient)
                return Reply(250, ("2.1.5 OK",))
        case "DATA" if dialogue.recipients:
            dialogue.message_follows = True
            return Reply(354, ("Go ahead; end with a line that is a dot",))
        case "MAIL" | "RCPT" | "DATA":
            return Reply(503, ("5.5.1 Not now",))
        case "RSET":
            dialogue.reset()
            return Reply()
        case "NOOP":
            return Reply()
        case "VRFY":
            return Reply(252, ("2.1.5 Try it",))
        case "STARTTLS":
            return Reply(454, ("4.7.0 TLS is not available",))
        case "QUIT":
            task.set_keep_alive(0)
            return Reply(221, ("2.0.0 Bye",))
        case "EHLO" | "HELO":
            pass
        case _:
            return Reply(500, ("5.5.2 Unknown command",))
    return Reply(501, ("5.5.4 Syntax error",))


def path(argument: str, word: str) -> str | None:
    """The address in ``FROM:<a@example.org> SIZE=1``; None where there is none."""
    found = re.match(rf"{word}:\s*<([^<>\s]*)>(?:\s|\Z)", argument, re.IGNORECASE)
    return None if found is None else found[1]


def main() -> None:
    with WFServer(SMTP_SPEC, process).start("127.0.0.1", 2525) as server:
        print(f"listening on {server.url}", flush=True)
        server.wait_for_signal()


if __name__ == "__main__":
    main()
