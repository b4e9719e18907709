"""Servers over a transport that holds more than one read of it gives."""

from __future__ import annotations

import pytest
from loopback import RawClient, get, post
from record_transport import RecordTransport

from protoserve.kernel import service
from protoserve_http import WFHttpServer, WFHttpTask


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "SocketTransport", RecordTransport)


def size(task: WFHttpTask) -> None:
    task.resp.write(str(len(task.req.body)))


@pytest.mark.parametrize("length", [16 * 1024, 60_003, 200_001])
def test_a_request_of_several_records(length: int) -> None:
    with (
        WFHttpServer(size).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        for _ in range(3):
            client.send(post("/", b"x" * length) + get())
            assert client.reply().body == str(length).encode()
            assert client.reply().body == b"0"


def test_many_requests_in_one_read_of_the_socket() -> None:
    with (
        WFHttpServer(size).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        client.send(get() * 3000)
        for _ in range(3000):
            assert client.reply().body == b"0"
