"""The workloads as RSGI applications, for granian."""

from typing import Any

from benchmarks.peers.page import render

HTML = [("content-type", "text/html; charset=utf-8")]
TEXT = [("content-type", "text/plain")]


async def echo(scope: Any, protocol: Any) -> None:
    line = f"{scope.method} {scope.path} HTTP/{scope.http_version}"
    page = render(line, map(": ".join, scope.headers.items()))
    protocol.response_str(200, HTML, page)


async def plaintext(scope: Any, protocol: Any) -> None:
    protocol.response_bytes(200, TEXT, b"Hello, World!")


async def post(scope: Any, protocol: Any) -> None:
    protocol.response_bytes(200, TEXT, await protocol())
