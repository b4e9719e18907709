"""aiohttp.web on uvloop: ``APP PORT``."""

import sys

import uvloop
from aiohttp import web

from benchmarks.peers.page import render


async def echo(request: web.Request) -> web.Response:
    line = f"{request.method} {request.raw_path} HTTP/{request.version[0]}.{request.version[1]}"
    page = render(line, map(": ".join, request.headers.items()))
    return web.Response(text=page, content_type="text/html")


async def plaintext(request: web.Request) -> web.Response:
    return web.Response(body=b"Hello, World!", content_type="text/plain")


async def post(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type="text/plain")


ROUTES = {
    "echo": [web.get("/hello", echo), web.get("/{page:hello-.*}", echo)],
    "plaintext": [web.get("/", plaintext)],
    "post": [web.post("/", post)],
}

application = web.Application()
application.add_routes(ROUTES[sys.argv[1]])
web.run_app(
    application,
    host="127.0.0.1",
    port=int(sys.argv[2]),
    access_log=None,
    print=None,
    loop=uvloop.new_event_loop(),
)
