"""A mail server that keeps what it is sent in memory (RFC 5321, with PIPELINING and SIZE).

The server speaks first; what follows DATA is read as a message or as more commands, as the
reply says, and so is what follows STARTTLS; 421 is its last word when it closes by itself.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from protoserve import (
    HOLD,
    CloseReason,
    CommConnection,
    ProtocolSpec,
    ServerParams,
    WFServerTask,
)
from protoserve.framing import FramedParser, Parsing, Waiting

__all__ = [
    "SMTP_SPEC",
    "Command",
    "Mail",
    "Message",
    "Reply",
    "SmtpParser",
    "SmtpTask",
    "inbox",
    "process",
]

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


class SmtpParser(FramedParser[Command | Message]):
    """Command lines, and after a DATA that was answered with 354 a message. Lines end with
    CR LF and with nothing else, or mails could be smuggled in others."""

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.dialogue = Dialogue()  # shared with the handler: see greet()

    def messages(self) -> Parsing[Command | Message]:
        while True:
            line = yield from self.inbox.until(b"\r\n", limit=LINE_LIMIT)
            verb, _, argument = line.decode("utf-8", "replace").strip().partition(" ")
            yield Command(verb.upper(), argument.strip())
            if verb.upper() in ("DATA", "STARTTLS"):
                yield HOLD  # the reply decides how the rest is read
                if self.dialogue.message_follows:
                    content = yield from self._content()
                    self.dialogue.message_follows = False
                    yield Message(content)

    def _content(self) -> Waiting:
        """The lines up to one that is a dot; another dot at the beginning of one was doubled."""
        content = bytearray()
        while True:
            line = yield from self.inbox.until(b"\r\n")
            if line == b".":
                return bytes(content)
            content += line.removeprefix(b".")
            content += b"\r\n"

    @property
    def partial(self) -> bool:
        # The message has begun with the reply to DATA.
        return super().partial or self.dialogue.message_follows

    def farewell(self, fault: str) -> bytes:
        if self.dialogue.message_follows:
            return b"552 5.3.4 Message too big\r\n"
        return b"500 5.5.2 Line too long\r\n"


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
    demo="smtp_protocol:process",
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
