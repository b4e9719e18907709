"""protoserve with its defaults: ``APP PORT``; the handlers are functions or coroutines."""

import sys

from benchmarks.peers.work import WORK
from examples.http_echo import process as echo
from protoserve_http import WFHttpServer, WFHttpTask


def plaintext(task: WFHttpTask) -> None:
    task.resp.headers["Content-Type"] = "text/plain"
    task.resp.write(b"Hello, World!")


def post(task: WFHttpTask) -> None:
    task.resp.headers["Content-Type"] = "text/plain"
    task.resp.write(task.req.body)


def blocking(task: WFHttpTask) -> None:
    WORK[task.req.target]()
    task.resp.headers["Content-Type"] = "text/plain"
    task.resp.write(b"Hello, World!")


async def echo_coroutine(task: WFHttpTask) -> None:
    echo(task)


HANDLERS = {
    "echo": echo,
    "plaintext": plaintext,
    "post": post,
    "blocking": blocking,
    "async-echo": echo_coroutine,
}

with WFHttpServer(HANDLERS[sys.argv[1]]).start("127.0.0.1", int(sys.argv[2])) as server:
    server.wait_for_signal()
