"""examples/protocols/smtp, with the standard library's client, swaks, and bytes of our own."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import struct
import subprocess
from collections.abc import Iterator
from email.message import EmailMessage
from types import ModuleType
from typing import Any

import pytest
import smtp_protocol
from loopback import PATIENCE, RawClient, eventually
from protocol_packages import program, serving

from protoserve import ServerParams, WFServer

RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(smtp_protocol, "inbox", [])
    return smtp_protocol


@pytest.fixture(params=["threads", "loop"])
def server(request: pytest.FixtureRequest, example: ModuleType) -> Iterator[WFServer[Any, Any]]:
    with serving(example.SMTP_SPEC, example.process, request.param) as server:
        yield server


def client_of(server: WFServer[Any, Any]) -> smtplib.SMTP:
    return smtplib.SMTP(*server.address[:2], local_hostname="here", timeout=PATIENCE)


def replies(client: RawClient, count: int) -> list[int]:
    """The codes of so many replies, each of one line or several."""
    codes = []
    while len(codes) < count:
        line = client._file.readline()
        assert line.endswith(b"\r\n"), line
        if line[3:4] == b" ":
            codes.append(int(line[:3]))
    return codes


def test_smtplib_sends_mail(server: WFServer[Any, Any], example: ModuleType) -> None:
    mail = EmailMessage()
    mail["Subject"] = "dots"
    mail.set_content(".\n..\n.begins with a dot\nends with one.\n\n.\n")
    with client_of(server) as client:
        assert client.ehlo()[0] == 250
        assert client.has_extn("pipelining")
        assert not client.has_extn("starttls")
        assert int(client.esmtp_features["size"]) == server.params.request_size_limit
        for number in range(3):
            sender = f"a{number}@example.org"
            assert client.send_message(mail, sender, ["b@x.org", "c@x.org"]) == {}
        assert client.noop()[0] == 250
        assert client.rset()[0] == 250
        assert client.verify("you")[0] == 252
    assert [kept.sender for kept in example.inbox] == [f"a{n}@example.org" for n in range(3)]
    assert {tuple(kept.recipients) for kept in example.inbox} == {("b@x.org", "c@x.org")}
    wire = mail.as_bytes(policy=mail.policy.clone(linesep="\r\n"))
    assert {kept.content for kept in example.inbox} == {wire}


@pytest.mark.parametrize("more", [[], ["--pipeline"]], ids=["one by one", "pipelined"])
def test_swaks_sends_mail(
    server: WFServer[Any, Any], example: ModuleType, more: list[str]
) -> None:
    swaks = program("swaks", "swaks")
    host, port = server.address[:2]
    done = subprocess.run(
        [swaks, "--server", host, "--port", str(port), "--helo", "here", *more,
         "--from", "a@example.org", "--to", "b@example.org,c@example.org",
         "--header", "Subject: from swaks", "--body", "one\n.two\n..\nthree\n"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "221 2.0.0 Bye" in done.stdout
    (mail,) = example.inbox
    assert mail[:2] == ("a@example.org", ["b@example.org", "c@example.org"])
    assert b"\r\nSubject: from swaks\r\n" in mail.content
    assert b"\r\n\r\none\r\n.two\r\n..\r\nthree\r\n" in mail.content


def test_smtplib_hears_what_is_wrong(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        assert client.docmd("MAIL", "FROM:<a@x.org>")[0] == 503
        assert client.docmd("EHLO")[0] == 501
        assert client.ehlo()[0] == 250
        assert client.docmd("MAIL", "FROM:<a b>")[0] == 501
        assert client.docmd("DATA")[0] == 503
        assert client.docmd("MAIL", "FROM:<a@x.org>")[0] == 250
        assert client.docmd("RCPT", "TO: b@x.org")[0] == 501
        assert client.docmd("MAIL", "FROM:<a@x.org>")[0] == 503
        assert client.docmd("BREW", "coffee")[0] == 500
        with pytest.raises(smtplib.SMTPNotSupportedError):
            client.starttls()
        assert client.docmd("STARTTLS")[0] == 454
        assert client.noop()[0] == 250


PIPELINED = (
    b"EHLO here\r\nMAIL FROM:<a@x.org> SIZE=10\r\nRCPT TO:<b@x.org>\r\nDATA\r\n"
    b"first\r\n..\r\nRSET\r\n.\r\n"
    b"MAIL FROM:<>\r\nRCPT TO:<c@x.org>\r\nDATA\r\n.\r\n"
    b"STARTTLS\r\nNOOP\r\nDATA\r\nNOOP\r\nQUIT\r\nNOOP\r\n"
)


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("half_closed", [False, True])
def test_everything_at_once(
    server: WFServer[Any, Any], example: ModuleType, bytewise: bool, half_closed: bool
) -> None:
    with RawClient(server.address) as client:
        if bytewise:
            # What is sent after the answer to QUIT finds nobody.
            client.send_bytewise(PIPELINED.removesuffix(b"NOOP\r\n"))
        else:
            client.send(PIPELINED)
        if half_closed:
            with contextlib.suppress(OSError):  # it has ended
                client.end_sending()
        assert replies(client, 15) == [
            *(220, 250, 250, 250, 354, 250),
            *(250, 250, 354, 250),
            *(454, 250, 503, 250, 221),
        ]
        assert client.rest() == b""
    assert example.inbox == [
        ("a@x.org", ["b@x.org"], b"first\r\n.\r\nRSET\r\n"),
        ("", ["c@x.org"], b""),
    ]


@pytest.mark.parametrize("end", [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r"])
def test_no_mail_is_smuggled_in_another(
    server: WFServer[Any, Any], example: ModuleType, end: bytes
) -> None:
    smuggled = b"text" + end + b"MAIL FROM:<evil@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\nmore\r\n"
    with RawClient(server.address) as client:
        client.send(b"EHLO here\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n")
        client.send(smuggled + b".\r\nQUIT\r\n")
        assert replies(client, 7)[-2:] == [250, 221]
    unstuffed = smuggled.replace(b"\r\n.", b"\r\n")
    assert [(kept.sender, kept.content) for kept in example.inbox] == [("a@x.org", unstuffed)]


def params(example: ModuleType, **changes: Any) -> ServerParams:
    return example.SMTP_SPEC.params.replace(**changes)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("asked", "codes", "times"),
    [
        (b"", [220], {"peer_response_timeout": 0.2}),
        (b"EHLO here\r\n", [220, 250], {"keep_alive_timeout": 0.2}),
        (b"EHLO here\r\nNOOP", [220, 250], {"peer_response_timeout": 0.2}),
        (
            b"EHLO a\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\ntext",
            [220, 250, 250, 250, 354],
            {"receive_timeout": 0.2},
        ),
        (
            b"EHLO a\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n",
            [220, 250, 250, 250, 354],
            {"receive_timeout": 0.2},
        ),
    ],
    ids=["nothing", "idle", "a command", "a message", "no message"],
)
def test_421_for_a_client_that_is_too_slow(
    example: ModuleType, asked: bytes, codes: list[int], times: dict[str, float]
) -> None:
    spec = example.SMTP_SPEC
    with (
        WFServer(spec, example.process, params(example, **times)).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(asked)
        assert replies(client, len(codes) + 1) == [*codes, 421]
        assert client.rest() == b""
    assert example.inbox == []


def test_421_when_the_server_stops(server: WFServer[Any, Any], example: ModuleType) -> None:
    client = client_of(server)
    client.ehlo()
    client.mail("a@x.org")
    with RawClient(server.address) as other:
        assert replies(other, 1) == [220]
        other.send(b"EHLO b\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\ntext\r\n")
        assert replies(other, 4) == [250, 250, 250, 354]
        server.shutdown()
        code, text = client.getreply()
        assert code == 421
        assert b"the server stopped" in text
        client.close()
        # What is being received may arrive.
        other.send(b".\r\n")
        assert replies(other, 2) == [250, 421]
        assert other.rest() == b""
    assert server.stop() == 0
    assert len(example.inbox) == 1


def test_421_for_one_that_makes_room(example: ModuleType) -> None:
    server = WFServer(example.SMTP_SPEC, example.process, params(example, max_connections=1))
    with server.start("127.0.0.1", 0), RawClient(server.address) as first:
        first.send(b"EHLO a\r\n")
        assert replies(first, 2) == [220, 250]
        with client_of(server) as second:
            assert second.ehlo()[0] == 250
            assert replies(first, 1) == [421]


def test_limits(server: WFServer[Any, Any], example: ModuleType) -> None:
    with RawClient(server.address) as client:
        client.send(b"NOOP " + b"x" * 3000)
        assert replies(client, 2) == [220, 500]
        assert client.rest() == b""
    with RawClient(server.address) as client:
        client.send(b"EHLO a\r\nMAIL FROM:<a@x.org>\r\n" + b"RCPT TO:<b@x.org>\r\n" * 101)
        assert replies(client, 104)[-2:] == [250, 452]
    small = params(example, request_size_limit=5000)
    with (
        WFServer(example.SMTP_SPEC, example.process, small).start("127.0.0.1", 0) as limited,
        RawClient(limited.address) as client,
    ):
        client.send(b"EHLO a\r\nMAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n")
        client.send(b"x" * 10_000)
        assert replies(client, 6) == [220, 250, 250, 250, 354, 552]
        assert client.rest() == b""
    assert example.inbox == []


def test_clients_that_leave_in_the_middle(server: WFServer[Any, Any], example: ModuleType) -> None:
    for cut in range(len(PIPELINED)):
        with RawClient(server.address) as client:
            client.send(PIPELINED[:cut])
            if cut % 2:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    eventually(lambda: server.conn_count == 0)
    with client_of(server) as client:
        assert client.sendmail("a@x.org", ["b@x.org"], "text\r\n") == {}
    assert example.inbox[-1] == ("a@x.org", ["b@x.org"], b"text\r\n")
