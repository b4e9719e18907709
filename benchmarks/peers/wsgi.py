"""The workloads as WSGI applications, for bjoern, fastpysgi, waitress and gunicorn."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from benchmarks.peers.page import render
from benchmarks.peers.work import WORK

StartResponse = Callable[[str, list[tuple[str, str]]], object]


@lru_cache(maxsize=256)
def field_name(key: str) -> str:
    """The header's name for ``HTTP_SOME_NAME``."""
    return key[5:].replace("_", "-").title()


def reply(start_response: StartResponse, kind: str, body: bytes) -> list[bytes]:
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def echo(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['SERVER_PROTOCOL']}"
    fields = [
        f"{field_name(key)}: {value}" for key, value in environ.items() if key[:5] == "HTTP_"
    ]
    return reply(start_response, "text/html; charset=utf-8", render(line, fields).encode())


def plaintext(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    return reply(start_response, "text/plain", b"Hello, World!")


def post(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    return reply(start_response, "text/plain", environ["wsgi.input"].read())


def blocking(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    WORK[environ["PATH_INFO"]]()
    return reply(start_response, "text/plain", b"Hello, World!")
