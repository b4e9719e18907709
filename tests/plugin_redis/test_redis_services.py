"""Services of own commands: the one of docs/redis.md, and the example of a queue."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kv_server import PATIENCE, eventually
from redis_tables import RawClient, talk

from examples.redis_jobs import commands, queues
from protoserve_redis import WFRedisServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "redis.md"


def block(word: str) -> str:
    """The first block of the document that has a word in it."""
    found = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return next(text for text in found if word in text)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[redis.Redis]:
    """The service of the document, and a client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    program = tmp_path / "service.py"
    program.write_text(block("LIMIT.TAKE").replace("6380", str(port)))
    with subprocess.Popen(
        [sys.executable, "-W", "error", program],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on ")
            with redis.Redis(port=port, protocol=3, decode_responses=True) as client:
                yield client
        finally:
            process.terminate()


def test_the_service_of_the_document_is_short() -> None:
    assert len(block("LIMIT.TAKE").splitlines()) <= 50
    assert len([line for line in block("LIMIT.TAKE").splitlines() if line.strip()]) <= 40


def test_rate_limiter(service: redis.Redis) -> None:
    answers = [service.execute_command("LIMIT.TAKE", "ann", "0", "3") for _ in range(4)]
    assert answers == [[True, 2], [True, 1], [True, 0], [False, 0]]
    assert service.execute_command("LIMIT.TAKE", "bob", "0", "3", "cost", "2") == [True, 1]
    assert service.execute_command("LIMIT.TAKE", "bob", "0", "3", "COST", "2") == [False, 1]
    fast = [service.execute_command("LIMIT.TAKE", "eve", "1e9", "1")[0] for _ in range(5)]
    assert fast == [True] * 5
    for words, match in (
        (("x", "3"), "not a valid float"),
        (("1", "0"), "not an integer"),
        (("1", "3", "COST"), "syntax error"),
        (("1", "3", "COST", "-5"), "not a valid float"),
        (("1", "3", "COST", "-inf"), "not a valid float"),
        (("inf", "3"), "not a valid float"),
        (("-1", "3"), "not a valid float"),
        (("1",), "wrong number of arguments"),
    ):
        with pytest.raises(redis.ResponseError, match=match):
            service.execute_command("LIMIT.TAKE", "ann", *words)


def test_leaderboard(service: redis.Redis) -> None:
    with service.pubsub() as listener:
        listener.subscribe("board:chess")
        listener.get_message(timeout=PATIENCE)
        assert service.execute_command("BOARD.ADD", "chess", "ann", "10") == 10.0
        assert service.execute_command("BOARD.ADD", "chess", "bob", "12.5") == 12.5
        message = listener.get_message(timeout=PATIENCE)
        assert message is not None
        assert message["data"] == "ann"
    for points in ("inf", "-inf"):
        with pytest.raises(redis.ResponseError, match="not a valid float"):
            service.execute_command("BOARD.ADD", "chess", "ann", points)
    assert service.execute_command("BOARD.TOP", "chess") == {"bob": 12.5, "ann": 10.0}
    assert service.execute_command("BOARD.TOP", "chess", "1") == {"bob": 12.5}
    assert service.execute_command("BOARD.TOP", "go") == {}
    with service.pipeline() as pipe:
        pipe.watch("chess")
        service.execute_command("BOARD.ADD", "chess", "ann", "1")
        pipe.multi()
        pipe.execute_command("BOARD.TOP", "chess")
        with pytest.raises(redis.WatchError):
            pipe.execute()
    with pytest.raises(redis.ResponseError, match="wrong number of arguments for"):
        service.execute_command("BOARD.ADD", "chess", "ann", "1", "2")


def test_no_job_is_lost_to_a_worker_that_leaves() -> None:
    with (
        WFRedisServer(commands).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask(b"JOB.TAKE q 0.01") == b"$-1\r\n"
        assert client.ask(b"JOB.TAKE q x").startswith(b"-ERR timeout is not a float")
        for _ in range(3):
            with RawClient(server.address) as worker:
                number = worker.ask(b"CLIENT ID")[1:-2]
                worker.send(b"JOB.TAKE q 0")
                eventually(lambda n=number: b"flags=b" in client.ask(b"CLIENT LIST ID " + n))
            eventually(lambda n=number: client.ask(b"CLIENT LIST ID " + n) == b"$0\r\n\r\n")
        assert client.ask(b"JOB.PUT q one") == b":1\r\n"
        assert client.ask(b"JOB.TAKE q 0") == b"$3\r\none\r\n"
        with RawClient(server.address) as worker:
            worker.send(b"JOB.TAKE q 5")
            client.ask(b"JOB.PUT q two")
            assert worker.reply() == b"$3\r\ntwo\r\n"
    queues.clear()  # they belong to the loop that ends now


def test_nobody_waits_for_a_job_within_a_transaction() -> None:
    with talk(commands) as client:
        for line in (b"MULTI", b"JOB.TAKE q 0", b"JOB.PUT q x", b"JOB.TAKE q 0"):
            client.ask(line)
        assert client.ask(b"EXEC") == b"*3\r\n$-1\r\n:1\r\n$1\r\nx\r\n"
    queues.clear()


def test_a_job_whose_reply_does_not_get_out_goes_back() -> None:
    job = b"x" * 20_000_000
    with WFRedisServer(commands).start("127.0.0.1", 0) as server:
        host, port = server.address
        with redis.Redis(host=host, port=port) as client:
            client.execute_command("JOB.PUT", "q", job)
            with RawClient(server.address) as worker:
                worker.send(b"JOB.TAKE q 0")
                assert worker.sock.recv(1) == b"$"  # it has begun, and is more than fits
                worker.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + bytes(7))
            assert client.execute_command("JOB.TAKE", "q", "10") == job
    queues.clear()
