"""The parser without a server: what it makes of lines, and of what follows DATA."""

from __future__ import annotations

import pytest
from smtp_protocol import SMTP_SPEC, Command, Message, SmtpParser

from protoserve import HOLD, NEED_DATA, ProtocolError, ServerParams
from protoserve.testing import check_protocol

# Each is one whole request on the wire, where no message was asked for.
SAMPLES: list[bytes] = [
    b"EHLO here\r\n",
    b"HELO here\r\n",
    b"MAIL FROM:<a@example.org> SIZE=10\r\n",
    b"RCPT TO:<b@example.org>\r\n",
    b"VRFY you\r\n",
    b"NOOP\r\n",
    b"RSET\r\n",
    b"QUIT\r\n",
    b"\r\n",
    b"\xff\n.\r \r\n",
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_is_one_command_however_it_is_split(sample: bytes) -> None:
    whole = SmtpParser(ServerParams())
    whole.feed(sample)
    command = whole.next_message()
    assert isinstance(command, Command)
    assert whole.next_message() is NEED_DATA
    assert not whole.partial
    split = SmtpParser(ServerParams())
    for byte in sample:
        assert split.next_message() is NEED_DATA
        split.feed(bytes([byte]))
    assert split.next_message() == command


def after_data(data: bytes, *, limit: int = 1000) -> SmtpParser:
    parser = SmtpParser(ServerParams(request_size_limit=limit))
    parser.feed(b"data\r\n" + data)
    assert parser.next_message() == Command("DATA", "")
    assert parser.next_message() is HOLD
    return parser


@pytest.mark.parametrize(
    ("wire", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a\r\n..\r\n...b\r\n.c\r\n.\r\n", b"a\r\n.\r\n..b\r\nc\r\n"),
        (b"a\n.\nb\r.\rc\r\n.\r\n", b"a\n.\nb\r.\rc\r\n"),
    ],
)
def test_a_message(wire: bytes, content: bytes) -> None:
    parser = after_data(wire + b"NOOP\r\n")
    parser.dialogue.message_follows = True
    assert parser.next_message() == Message(content)
    assert parser.next_message() == Command("NOOP", "")
    assert parser.next_message() is NEED_DATA
    assert not parser.partial


def test_no_message_where_the_reply_did_not_ask_for_one() -> None:
    parser = after_data(b".\r\n")
    assert parser.next_message() == Command(".", "")


def test_a_message_that_is_waited_for_has_begun() -> None:
    parser = after_data(b"")
    parser.dialogue.message_follows = True
    assert parser.next_message() is NEED_DATA
    assert parser.partial


def test_limits() -> None:
    parser = after_data(b"x" * 95 + b"\r\n.\r\n", limit=100)
    parser.dialogue.message_follows = True
    assert parser.next_message() == Message(b"x" * 95 + b"\r\n")
    parser = after_data(b"x" * 96 + b"\r\n.\r\n", limit=100)
    parser.dialogue.message_follows = True
    with pytest.raises(ProtocolError) as caught:
        parser.next_message()
    assert caught.value.reply == b"552 5.3.4 Message too big\r\n"
    parser = SmtpParser(ServerParams())
    parser.feed(b"NOOP " + b"x" * 2000)
    with pytest.raises(ProtocolError) as caught:
        parser.next_message()
    assert caught.value.reply == b"500 5.5.2 Line too long\r\n"


def test_it_keeps_the_contract() -> None:
    check_protocol(SMTP_SPEC, SAMPLES)
