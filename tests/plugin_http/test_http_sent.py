"""A response that was sent: what would be lost is refused."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest
from http_exchanges import sent, task_for

from protoserve import UsageError, go
from protoserve_http import HttpResponse, WFHttpServer, WFHttpTask, serialise

GET = "GET / HTTP/1.1|Host: a"

CHANGES: list[Callable[[HttpResponse], object]] = [
    lambda resp: resp.write("late"),
    lambda resp: resp.write(b""),
    lambda resp: setattr(resp, "body", b"late"),
    lambda resp: setattr(resp, "body", iter(["late"])),
    lambda resp: setattr(resp, "status", 500),
    lambda resp: setattr(resp, "reason", "Late"),
    lambda resp: setattr(resp, "headers", {"X": "late"}),
    lambda resp: resp.headers.__setitem__("X", "late"),
    lambda resp: resp.headers.__delitem__("A"),
    lambda resp: resp.headers.add("X", "late"),
    lambda resp: resp.headers.extend({"X": "late"}),
    lambda resp: resp.headers.update({"X": "late"}),
    lambda resp: resp.headers.setdefault("X", "late"),
    lambda resp: resp.headers.pop("A"),
    lambda resp: resp.headers.popone("A"),
    lambda resp: resp.headers.popall("A"),
    lambda resp: resp.headers.popitem(),
    lambda resp: resp.headers.clear(),
]


def pieces() -> Iterator[str]:
    yield "in "
    yield "time"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("streamed", [False, True])
def test_no_change(change: Callable[[HttpResponse], object], method: str, streamed: bool) -> None:
    task = task_for(f"{method} / HTTP/1.1|Host: a")
    task.resp.headers["A"] = "1"
    if streamed:
        task.resp.body = pieces()
    else:
        task.resp.write("in time")
    task.message_out()
    with pytest.raises(UsageError, match="on its way already"):
        change(task.resp)
    assert task.resp.status == 200
    assert task.resp.reason == "OK"
    assert list(task.resp.headers.items()) == [("A", "1")]


def test_it_can_be_read() -> None:
    task = task_for(GET)
    task.resp.write("in ")
    task.resp.write("time")
    task.message_out()
    assert task.resp.body == b"in time"
    assert task.resp.headers.get("A") is None
    assert repr(task.resp) == "<HttpResponse 200 OK>"
    headers = task.resp.headers.copy()
    headers["A"] = "1"
    assert "A" not in task.resp.headers


def test_pieces_cannot_be_read_back() -> None:
    task = task_for(GET)
    task.resp.body = pieces()
    task.message_out()
    with pytest.raises(TypeError, match="cannot be read back"):
        _ = task.resp.body


def test_one_response_for_many_requests() -> None:
    page = HttpResponse(404, "nothing here\n", {"Cache-Control": "max-age=60", "Date": "x"})
    replies = []
    for _ in range(3):
        task = task_for(GET)
        task.resp = page
        replies.append(sent(task))
    assert replies == replies[:1] * 3
    assert replies[0][2] == b"nothing here\n"
    assert serialise(page) == serialise(page)


def test_pieces_are_for_one_reply() -> None:
    task, other = task_for(GET), task_for(GET)
    task.resp.body = pieces()
    other.resp = task.resp
    task.message_out()
    with pytest.raises(UsageError, match="a response for each reply"):
        other.message_out()


def test_a_response_that_cannot_be_sent_can_be_mended() -> None:
    task = task_for(GET)
    task.resp.headers["X"] = "a\r\nb"
    with pytest.raises(ValueError, match="'X'"):
        task.message_out()
    task.resp.headers["X"] = "ab"
    assert sent(task)[1][b"X"] == b"ab"


def fetch(server: WFHttpServer) -> HTTPResponse:
    client = HTTPConnection(*server.address, timeout=10)
    client.request("GET", "/")
    response = client.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    client.close()
    return response


class Late:
    """Writes into a response when it is too late, and keeps what is said to that."""

    def __init__(self) -> None:
        self.found: list[object] = []
        self.over = threading.Event()

    def write(self, task: WFHttpTask) -> None:
        try:
            task.resp.write("late")
        except UsageError as error:
            self.found.append(error)
        self.over.set()


def test_in_a_callback() -> None:
    late = Late()

    def process(task: WFHttpTask) -> None:
        task.resp.write("in time")
        task.set_callback(late.write)

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        assert fetch(server).body == b"in time"  # type: ignore[attr-defined]
        assert late.over.wait(10)
    assert len(late.found) == 1


def test_in_a_task_that_nobody_waits_for() -> None:
    late = Late()
    replied = threading.Event()

    def compute(task: WFHttpTask) -> None:
        replied.wait(10)
        late.write(task)

    def process(task: WFHttpTask) -> None:
        task.resp.write("in time")
        go(compute, task).start()  # it should have been pushed on the series

    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        assert fetch(server).body == b"in time"  # type: ignore[attr-defined]
        replied.set()
        assert late.over.wait(10)
    assert len(late.found) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_in_a_body_of_pieces(asynchronous: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its head is made before the first piece is asked for, and there still is a 500."""

    def process(task: WFHttpTask) -> None:
        def pieces() -> Iterator[str]:
            task.resp.headers["X"] = "late"
            yield "a"

        async def async_pieces() -> AsyncIterator[str]:
            task.resp.status = 404
            yield "a"

        task.resp.body = async_pieces() if asynchronous else pieces()

    async def process_async(task: WFHttpTask) -> None:
        process(task)

    with WFHttpServer(process_async if asynchronous else process).start("127.0.0.1", 0) as server:
        assert fetch(server).status == 500
    assert "on its way already" in caplog.text
