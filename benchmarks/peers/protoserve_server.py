"""protoserve with its defaults: ``APP PORT``."""

import sys

from protoserve_http import WFHttpServer, WFHttpTask

from examples.http_echo import process as echo


def plaintext(task: WFHttpTask) -> None:
    task.resp.headers["Content-Type"] = "text/plain"
    task.resp.write(b"Hello, World!")


def post(task: WFHttpTask) -> None:
    task.resp.headers["Content-Type"] = "text/plain"
    task.resp.write(task.req.body)


HANDLERS = {"echo": echo, "plaintext": plaintext, "post": post}

with WFHttpServer(HANDLERS[sys.argv[1]]).start("127.0.0.1", int(sys.argv[2])) as server:
    server.wait_for_signal()
