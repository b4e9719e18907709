"""What an application makes of the HTTP plugin's classes."""

from __future__ import annotations

from protoserve import CommConnection, MessageOut, ServerParams, go, timer
from protoserve_http import (
    HTTP_SPEC,
    HttpParams,
    HttpRequest,
    HttpRequestParser,
    HttpResponse,
    HttpServerTask,
    WFHttpServer,
    WFHttpServerTask,
    WFHttpTask,
)


class Request(HttpRequest): ...


class Response(HttpResponse): ...


class Parser(HttpRequestParser): ...


class Task(HttpServerTask):
    def message_in(self, message: HttpRequest) -> None:
        super().message_in(message)
        self.resp.headers["Server"] = "own"

    def message_out(self) -> MessageOut:
        return super().message_out()


class Server(WFHttpServer):
    """Changes the session that it is given, as ``process`` gets it."""

    def new_session(self, seq: int, conn: CommConnection) -> WFHttpTask:
        task = super().new_session(seq, conn)
        if task.req.method == "HEAD":
            task.set_keep_alive(0)
        return task


class OwnTasks(WFHttpServer):
    def new_session(self, seq: int, conn: CommConnection) -> Task:
        return Task(self, self.process, seq, conn)


def process(task: WFHttpTask) -> None:
    same: WFHttpServerTask = task
    same.series.push_back(timer(0.1))
    same.series.push_back(go(len, "word", callback=lambda t: task.resp.write(str(t.result))))


async def process_later(task: WFHttpTask) -> None:
    task.resp.write(str(await go(len, task.req.target)))


def serve(params: ServerParams) -> None:
    params = HTTP_SPEC.params.replace(keep_alive_timeout=3)
    with Server(process, params).start(0) as server:
        server.wait_for_signal()


async def serve_later() -> None:
    async with OwnTasks(process_later).start("127.0.0.1", 0) as server:
        print(server.url)


class Uploads(WFHttpServer):
    """Requests whose bodies stream in, each with settings of its own."""

    def new_session(self, seq: int, conn: CommConnection) -> WFHttpTask:
        if conn.arriving is not None:
            conn.arriving.size_limit = 10**9
            conn.arriving.receive_timeout = None
            conn.arriving.streams = conn.arriving.request.method == "PUT"
        return super().new_session(seq, conn)


def count(task: WFHttpTask) -> None:
    stream = task.req.stream
    size = len(task.req.body) if stream is None else sum(len(piece) for piece in stream)
    task.resp.write(str(size))


async def pass_on(task: WFHttpTask) -> None:
    stream = task.req.stream
    if stream is not None:
        first = await anext(stream)
        task.resp.body = stream if first else await stream.aread()


uploads = Uploads(count, HttpParams(stream_bodies=True).replace(max_connections=5))
same: HttpParams = HttpParams().replace(stream_bodies=True)
