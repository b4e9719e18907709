"""The article's demo: a page that echoes the request line and the headers.

Run it with ``python examples/http_echo.py [port]`` or
``protoserve run http examples.http_echo:process --bind 127.0.0.1:8888``.
"""

import sys
from html import escape

from protoserve import BindError
from protoserve_http import WFHttpServer, WFHttpTask


def process(task: WFHttpTask) -> None:
    req = task.req
    line = f"{req.method} {req.target} HTTP/{req.version}"
    lines = [line, *map(": ".join, req.headers.items())]
    page = escape("\n".join(lines), quote=False).replace("\n", "</p>\n<p>")
    task.resp.headers["Content-Type"] = "text/html; charset=utf-8"
    task.resp.write(f"<!DOCTYPE html>\n<title>Echo</title>\n<p>{page}</p>\n")


def main(args: list[str]) -> int:
    port = args[0] if args else "8888"
    if len(args) > 1 or not (port.isascii() and port.isdecimal() and int(port) < 65536):
        print("usage: http_echo.py [port]      port: 0 to 65535, default 8888", file=sys.stderr)
        return 2
    try:
        server = WFHttpServer(process).start(int(port))
    except BindError as error:
        print(f"http_echo.py: {error}", file=sys.stderr)
        return 1
    with server:
        print(f"listening on {server.url}", flush=True)
        server.wait_for_signal()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
