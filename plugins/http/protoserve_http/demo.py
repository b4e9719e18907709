"""The article's demo: a page that echoes the request line and the headers.

``protoserve run http`` serves it when it is given no application.
"""

from __future__ import annotations

from html import escape

from protoserve_http.server import WFHttpTask


def process(task: WFHttpTask) -> None:
    """Answer with a page of what was asked."""
    req = task.req
    line = f"{req.method} {req.target} HTTP/{req.version}"
    lines = [line, *map(": ".join, req.headers.items())]
    page = escape("\n".join(lines), quote=False).replace("\n", "</p>\n<p>")
    task.resp.headers["Content-Type"] = "text/html; charset=utf-8"
    task.resp.write(f"<!DOCTYPE html>\n<title>Echo</title>\n<p>{page}</p>\n")
