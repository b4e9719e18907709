"""The protocol and its statements without a server."""

from __future__ import annotations

import pytest
from postgres_protocol import POSTGRES_SPEC, Reply, Request
from postgres_protocol.requests import (
    Bind,
    Cancel,
    Close,
    Describe,
    Execute,
    Flush,
    Parse,
    Query,
    Startup,
    Sync,
    Terminate,
    Unsupported,
)
from postgres_protocol.sql import split

from protoserve import NEED_DATA, Feedback, MessageParser, ProtocolError, ServerParams
from protoserve.testing import check_protocol


def packet(code: int, content: bytes = b"") -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + content


def message(kind: bytes, content: bytes = b"") -> bytes:
    return kind + (len(content) + 4).to_bytes(4, "big") + content


BEFORE: bytes = packet(3 << 16, b"user\0me\0database\0it\0\0")
"""What each session begins with."""

# Each is one whole request on the wire, of a session that has begun.
REQUESTS: list[tuple[bytes, Request]] = [
    (message(b"Q", b"SELECT 1; SELECT 2\0"), Query("SELECT 1; SELECT 2")),
    (message(b"Q", b"\0"), Query("")),
    (message(b"Q", b"SELECT '\xc3\xbc\xff'\0"), Query("SELECT 'ü\udcff'")),
    (
        message(b"P", b"s1\0SELECT $1\0\0\1\0\0\0\x17"),
        Parse("s1", "SELECT $1", (23,)),
    ),
    (
        message(b"B", b"p\0s1\0\0\1\0\1\0\2\0\0\0\1x\xff\xff\xff\xff\0\1\0\0"),
        Bind("p", "s1", (1,), (b"x", None), (0,)),
    ),
    (message(b"D", b"Ss1\0"), Describe("S", "s1")),
    (message(b"D", b"P\0"), Describe("P", "")),
    (message(b"E", b"p\0\0\0\0\x0a"), Execute("p", 10)),
    (message(b"C", b"Pp\0"), Close("P", "p")),
    (message(b"S"), Sync()),
    (message(b"H"), Flush()),
    (message(b"F", b"\0\0\0\1\0\0"), Unsupported("function calls")),
    (message(b"X"), Terminate()),
]
SAMPLES: list[bytes] = [data for data, _ in REQUESTS]

# After the beginning, and each ends the session.
REFUSED: list[bytes] = [
    b"z",
    b"\0\0\0\x08\x04\xd2\x16\x2f",  # encryption, too late
    b"Q\0\0\0\3",
    b"Q\xff\xff\xff\xff",
    message(b"Q", b"no end"),
    message(b"Q", b"end\0not here"),
    message(b"D", b"Xs1\0"),
    message(b"S", b"x"),
    message(b"B", b"\0\0\0\0\0\1\0\0\0\5x\0\0"),
    message(b"B", b"\0\0\0\0\0\1\xff\xff\xff\xfe\0\0"),
    message(b"E", b"\0\0\0"),
]


def parser_of(data: bytes, params: ServerParams = POSTGRES_SPEC.params) -> MessageParser[Request]:
    parser = POSTGRES_SPEC.message_in(params)
    parser.feed(data)
    return parser


@pytest.mark.parametrize(("sample", "meant"), REQUESTS)
def test_a_request_however_it_is_split(sample: bytes, meant: Request) -> None:
    whole = parser_of(BEFORE + sample)
    assert whole.next_message() == Startup(0, {"user": "me", "database": "it"})
    assert whole.next_message() == meant
    assert whole.next_message() is NEED_DATA
    assert not whole.partial
    split = parser_of(BEFORE)
    split.next_message()
    for byte in sample:
        assert split.next_message() is NEED_DATA
        split.feed(bytes([byte]))
    assert split.next_message() == meant


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused(fault: bytes) -> None:
    parser = parser_of(BEFORE + SAMPLES[0] + fault)
    parser.next_message()
    parser.next_message()
    for _ in range(2):
        with pytest.raises(ProtocolError) as refused:
            parser.next_message()
        assert refused.value.reply[:1] == b"E"
        assert b"SFATAL\0VFATAL\0C08P01\0M" in refused.value.reply


def test_encryption_is_refused_and_asked_for_again() -> None:
    ssl, gss = packet(80877103), packet(80877104)
    parser = parser_of(ssl + gss + BEFORE)
    assert parser.next_message() == Feedback(b"N")
    assert parser.next_message() == Feedback(b"N")
    assert isinstance(parser.next_message(), Startup)
    assert not parser.partial


def test_other_beginnings() -> None:
    assert parser_of(packet(80877102, b"\0\0\0\7abcd")).next_message() == Cancel(7, b"abcd")
    newer = parser_of(packet(3 << 16 | 2, b"user\0me\0_pq_.x\0y\0\0"))
    assert newer.next_message() == Startup(2, {"user": "me", "_pq_.x": "y"})
    for fault in (
        packet(2 << 16, b"user\0me\0\0"),
        packet(3 << 16, b"user\0me\0"),
        packet(3 << 16, b"user\0me\0\0more"),
        packet(80877102, b"\0\0"),
        packet(80877103, b"x"),
        b"\0\0\0\3",
        (10_005).to_bytes(4, "big"),
        b"GET / HTTP/1.1\r\n",
    ):
        with pytest.raises(ProtocolError):
            parser_of(fault).next_message()


def test_what_is_left_of_a_failed_copy_is_passed_over() -> None:
    parser = parser_of(BEFORE + message(b"d", b"data") + message(b"c") + SAMPLES[0])
    parser.next_message()
    assert parser.next_message() == REQUESTS[0][1]


def test_a_message_may_have_the_size_limit_and_no_more() -> None:
    params = POSTGRES_SPEC.params.replace(request_size_limit=1000)
    parser = parser_of(BEFORE + message(b"Q", b"x" * 994 + b"\0"), params)
    parser.next_message()
    assert parser.next_message() == Query("x" * 994)
    parser.feed(message(b"Q", b"x" * 995 + b"\0")[:5])
    with pytest.raises(ProtocolError):
        parser.next_message()


def test_replies_on_the_wire() -> None:
    reply = Reply()
    reply.columns(["a", "ü"], [1, 0])
    reply.row([b"1", None])
    reply.complete("SELECT 1")
    assert reply.take() == (
        b"T\0\0\0\x2f\0\2"
        b"a\0" + bytes(6) + b"\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\1"
        b"\xc3\xbc\0" + bytes(6) + b"\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"
        b"D\0\0\0\x0f\0\2\0\0\0\x011\xff\xff\xff\xff"
        b"C\0\0\0\x0dSELECT 1\0"
    )
    reply.negotiate_version(0, ["_pq_.x"])
    assert reply.take() == b"v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.x\0"
    assert reply.data == b""


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        (" ; -- nothing\n;/* ; */", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1;SELECT 2;", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';', \";\", `;`, [;]; SELECT 2", ["SELECT ';', \";\", `;`, [;]", " SELECT 2"]),
        ("SELECT 'it''s; ' -- a;\n; b", ["SELECT 'it''s; ' -- a;\n", " b"]),
        ("SELECT 'never ends; SELECT 2", ["SELECT 'never ends; SELECT 2"]),
        ("SELECT 1 /* never ends; SELECT 2", ["SELECT 1 /* never ends; SELECT 2"]),
    ],
)
def test_statements_of_a_text(text: str, statements: list[str]) -> None:
    assert [statement.text for statement in split(text)] == statements


@pytest.mark.parametrize(
    ("text", "tag", "has_rows"),
    [
        ("select 1", "SELECT 3", True),
        ("VALUES (1)", "SELECT 3", True),
        ("insert into t values (1)", "INSERT 0 3", False),
        ("INSERT INTO t VALUES ('returning')", "INSERT 0 3", False),
        ("INSERT INTO t VALUES (1) RETURNING a", "INSERT 0 3", True),
        ("REPLACE INTO t VALUES (1)", "INSERT 0 3", False),
        ("WITH a AS (SELECT 1) DELETE FROM t", "DELETE 3", False),
        ("WITH a AS (SELECT replace('a', 'b', 'c')) SELECT * FROM a", "SELECT 3", True),
        ("/* a */ create temp table t (a)", "CREATE TABLE", False),
        ("CREATE UNIQUE INDEX i ON t (a)", "CREATE INDEX", False),
    ],
)
def test_what_a_statement_is(text: str, tag: str, has_rows: bool) -> None:
    (statement,) = split(text)
    assert (statement.tag(3), statement.has_rows) == (tag, has_rows)


def test_the_parameters_of_a_statement() -> None:
    (statement,) = split("SELECT $2, '$9', \"$8\" -- $7\n, $1")
    assert statement.parameters == 2


def test_it_keeps_the_contract() -> None:
    check_protocol(POSTGRES_SPEC, SAMPLES, before=BEFORE, refused=REFUSED)
