"""The access log as an observer that anybody may subscribe."""

from __future__ import annotations

import errno
import logging
import socket

import pytest

from protoserve.access_log import log_access
from protoserve.events import ConnectionOpened, RequestFinished
from protoserve_http import WFHttpServer, WFHttpTask


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "protoserve.access")
    return caplog


def test_a_line_stays_one_line(lines: pytest.LogCaptureFixture) -> None:
    event = RequestFinished(
        ("::1", 5, 0, 0), 3, 0.5, "SYS_ERROR", errno.EPIPE, {"name": "a\nb c", "empty": ""}
    )
    log_access(event)
    (record,) = lines.records
    assert record.getMessage() == "[::1]:5 #3 'a\\nb c' '' in 500.0 ms SYS_ERROR (EPIPE)"
    assert record.request_name == "a\nb c"  # type: ignore[attr-defined]
    assert (record.request_state, record.seq) == ("SYS_ERROR", 3)  # type: ignore[attr-defined]


def test_other_events_are_passed_over(lines: pytest.LogCaptureFixture) -> None:
    log_access(ConnectionOpened(("127.0.0.1", 5)))
    assert lines.records == []


def ask(server: WFHttpServer, data: bytes) -> None:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(data)
        while client.recv(65536):
            pass


def test_a_server_of_python_s(lines: pytest.LogCaptureFixture) -> None:
    def process(task: WFHttpTask) -> None:
        task.resp.write("page")

    server = WFHttpServer(process)
    server.subscribe(log_access)
    with server.start("127.0.0.1", 0):
        ask(server, b"GET /a HTTP/1.0\r\n\r\n")
        ask(server, b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    served, refused = (record.getMessage().split(" ", 2)[2] for record in lines.records)
    assert served.startswith("GET /a 1.0 200 4 in ")
    assert refused == "GET /a 1.1 400 refused: more than one Host header"
    assert lines.records[0].request_target == "/a"  # type: ignore[attr-defined]
