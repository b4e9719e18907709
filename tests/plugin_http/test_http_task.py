"""HttpServerTask: who stays, who goes, and what HEAD gets."""

from __future__ import annotations

import pytest
from http_exchanges import sent, task_for

GET = "GET / HTTP/1.1|Host: a"
OLD = "GET / HTTP/1.0"


class TestConnection:
    @pytest.mark.parametrize(
        ("head", "keep_alive", "connection"),
        [
            (GET, 75, None),
            (GET + "|Connection: keep-alive", 75, None),
            (GET + "|Connection: close", 0, b"close"),
            (GET + "|Connection: x, CLOSE", 0, b"close"),
            (OLD, 0, b"close"),
            (OLD + "|Connection: close", 0, b"close"),
            (OLD + "|Connection: Keep-Alive", 75, b"keep-alive"),
        ],
    )
    def test_what_the_client_asked(
        self, head: str, keep_alive: float, connection: bytes | None
    ) -> None:
        task = task_for(head)
        assert task.keep_alive == keep_alive
        line, fields, _ = sent(task)
        assert line == b"HTTP/1.1 200 OK"
        assert fields.get(b"Connection") == connection
        assert task.keep_alive == keep_alive

    @pytest.mark.parametrize("head", [GET, OLD + "|Connection: keep-alive"])
    def test_handler_wants_to_close(self, head: str) -> None:
        task = task_for(head)
        task.set_keep_alive(0)
        assert sent(task)[1][b"Connection"] == b"close"

    def test_handler_cannot_keep_a_client_that_leaves(self) -> None:
        task = task_for(GET + "|Connection: close")
        task.set_keep_alive(60)
        assert sent(task)[1][b"Connection"] == b"close"
        assert task.keep_alive == 0

    def test_server_without_keep_alive(self) -> None:
        assert sent(task_for(GET, keep_alive=0))[1][b"Connection"] == b"close"

    def test_server_stops(self) -> None:
        task = task_for(GET, closing=True)
        assert sent(task)[1][b"Connection"] == b"close"
        assert task.keep_alive == 0

    @pytest.mark.parametrize(
        ("said", "connection", "keep_alive"),
        [
            ("close", b"close", 0),
            ("Close", b"close", 0),
            ("X-Hop, close", b"x-hop, close", 0),
            ("keep-alive", b"keep-alive", 75),
            ("X-Hop", b"x-hop", 75),
        ],
    )
    def test_response_says(self, said: str, connection: bytes, keep_alive: float) -> None:
        task = task_for(GET)
        task.resp.headers["Connection"] = said
        assert sent(task)[1][b"Connection"] == connection
        assert task.keep_alive == keep_alive

    def test_response_cannot_promise_to_stay(self) -> None:
        task = task_for(GET + "|Connection: close")
        task.resp.headers["Connection"] = "keep-alive"
        assert sent(task)[1][b"Connection"] == b"close"
        assert task.keep_alive == 0


class TestKeepAliveField:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("timeout=5", 5),
            ("max=9, TIMEOUT = 5", 5),
            ('timeout="5"', 5),
            ("timeout=0", 0),
            ("timeout=300", 75),
            ("timeout=99999999999999999999999", 75),
            ("timeout=-1", 75),
            ("timeout=x", 75),
            ("timeout=", 75),
            ("300", 75),
        ],
    )
    def test_shortens_and_never_extends(self, value: str, seconds: float) -> None:
        assert task_for(f"{GET}|Keep-Alive: {value}").keep_alive == seconds


class TestHead:
    def test_has_the_length_and_not_the_body(self) -> None:
        task = task_for("HEAD / HTTP/1.1|Host: a")
        task.resp.write("hello")
        _, fields, body = sent(task)
        assert fields[b"Content-Length"] == b"5"
        assert body == b""

    def test_of_a_large_body(self) -> None:
        task = task_for("HEAD / HTTP/1.1|Host: a")
        task.resp.write(b"x" * 100_000)
        _, fields, body = sent(task)
        assert fields[b"Content-Length"] == b"100000"
        assert body == b""

    def test_may_state_a_length(self) -> None:
        task = task_for("HEAD / HTTP/1.1|Host: a")
        task.resp.headers["Content-Length"] = "12345"
        assert sent(task)[1][b"Content-Length"] == b"12345"

    def test_without_a_body_written(self) -> None:
        assert b"Content-Length" not in sent(task_for("HEAD / HTTP/1.1|Host: a"))[1]
