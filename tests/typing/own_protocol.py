"""What an author of a protocol subclasses, with the types that a checker is to agree with."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from protoserve import (
    NEED_DATA,
    Arriving,
    BindError,
    Buffer,
    CallbackHandle,
    CommConnection,
    CommScheduler,
    CommService,
    CommSession,
    Communicator,
    ConfigError,
    Feedback,
    IncomingStream,
    InstalledPlugin,
    MessageOut,
    MessageParser,
    NativeParser,
    NeedData,
    PluginError,
    Processor,
    ProtocolError,
    ProtocolSpec,
    ProtoserveError,
    ServerParams,
    TaskState,
    Transport,
    UsageError,
    WFNetworkTask,
    WFServer,
    WFServerBase,
    WFServerTask,
    hookimpl,
)


@dataclass
class Answer:
    text: str = ""
    lines: list[str] = field(default_factory=list)


class Lines(MessageParser[str]):
    def __init__(self, params: ServerParams) -> None:
        self.held = b""
        self.eof = False

    def feed(self, data: bytes) -> None:
        self.held += data

    def next_message(self) -> str | NeedData | Feedback:
        if self.held.startswith(b"?"):
            return Wait(b"wait\n")
        line, newline, rest = self.held.partition(b"\n")
        if len(line) > 100:
            raise TooLongError("too long", reply=b"too long\n")
        if not newline:
            return NEED_DATA
        self.held = rest
        return line.decode("latin-1")

    @property
    def partial(self) -> bool:
        return bool(self.held)

    def feed_eof(self) -> None:
        self.eof = True

    def timeout_reply(self) -> bytes:
        return b"too slow\n"


class CompiledLines(NativeParser[str]):
    def __init__(self, params: ServerParams) -> None:
        self.lines = Lines(params)

    def feed(self, data: bytes) -> None:
        self.lines.feed(data)

    def next_message(self) -> str | NeedData | Feedback:
        return self.lines.next_message()

    @property
    def partial(self) -> bool:
        return self.lines.partial


class Wait(Feedback):
    pass


class TooLongError(ProtocolError):
    pass


class LineTask(WFServerTask[str, Answer]):
    def message_in(self, message: str) -> None:
        super().message_in(message.strip())

    def message_out(self) -> MessageOut:
        return [self.req.encode(), self.resp.text.encode()]

    @property
    def words(self) -> list[str]:
        return self.req.split()


class Handle(CallbackHandle): ...


class Body(IncomingStream):
    def first(self) -> bytes:
        return next(self, b"")


class Upload(Arriving[str]):
    def __init__(self, line: str) -> None:
        super().__init__(line, Body())
        self.size_limit = 1 << 30


class LineConnection(CommConnection):
    greeted = False


def whole(answer: Answer) -> bytes:
    return answer.text.encode()


def in_pieces(answer: Answer) -> Iterator[bytes]:
    yield answer.text.encode()


async def in_pieces_later(answer: Answer) -> AsyncIterator[Buffer]:
    yield answer.text.encode()


def make_server(process: Callable[[LineTask], object], params: ServerParams) -> LineServer:
    return LineServer(process, params)


SPEC = ProtocolSpec[str, Answer, LineTask](
    name="line",
    message_in=Lines,
    message_out=whole,
    response=Answer,
    task=LineTask,
    error_response=lambda request, error: Answer("error"),
    server=make_server,
    params=ServerParams(keep_alive_timeout=5, compute_threads=4),
)
STREAMED = ProtocolSpec(
    name="streamed", message_in=Lines, message_out=in_pieces, response=Answer, task=LineTask
)
STREAMED_LATER = ProtocolSpec(
    name="later", message_in=Lines, message_out=in_pieces_later, response=Answer
)


class Spec(ProtocolSpec[str, Answer]):
    pass


class LineServer(WFServer[str, Answer]):
    """``new_session`` returns what ``process`` gets."""

    def __init__(
        self, process: Callable[[LineTask], object], params: ServerParams | None = None
    ) -> None:
        super().__init__(SPEC, process, params)

    def new_session(self, seq: int, conn: CommConnection) -> LineTask:
        task = LineTask(self, self.process, seq, conn)
        task.set_keep_alive(5.0)
        return task

    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> LineConnection:
        return LineConnection(self, communicator, transport, peername)

    def new_parser(self) -> Lines:
        return Lines(self.params)


class PlainServer(WFServer[str, Answer]):
    """Changes the session that it is given."""

    def new_session(self, seq: int, conn: CommConnection) -> WFServerTask[str, Answer]:
        task = super().new_session(seq, conn)
        task.user_data = seq
        return task


def process(task: LineTask) -> None:
    task.resp.text = " ".join(task.words)
    task.set_callback(lambda t: t.state is TaskState.SUCCESS)
    handle: CallbackHandle = task.connection.on_close(lambda conn: None)
    task.user_data = handle


async def process_later(task: LineTask) -> None:
    await task.push(b"soon\n")
    task.resp.text = task.req


def serve() -> None:
    with LineServer(process).start("127.0.0.1", 0) as server:
        port: int = server.address[1]
        server.subscribe(lambda event: None)
        print(server.url, port, server.conn_count)
    server = make_server(process_later, ServerParams()).serve(socket.socket())
    server.stop()


class OfLines(CommService):
    """Connections and parsers, for services with an engine of a server's and without."""

    def new_parser(self) -> Lines:
        return Lines(self.params)

    def new_connection(
        self, communicator: Communicator, transport: Transport, peername: Any
    ) -> CommConnection:
        return CommConnection(self, communicator, transport, peername)


class Engineless(OfLines, WFServerBase):
    def new_session(self, seq: int, conn: CommConnection) -> CommSession:
        return Exchange()


class Service(OfLines):
    def new_session(self, seq: int, conn: CommConnection) -> Exchange:
        return Exchange()

    def handle_unbound(self) -> None:
        pass


class Exchange(CommSession):
    def message_in(self, message: Any) -> None:
        self.message = message

    def message_out(self) -> MessageOut:
        return b"done\n"

    def handle(self, state: TaskState, error: int) -> None:
        pass


class Task(WFNetworkTask[str, Answer]):
    def message_in(self, message: str) -> None:
        self.req = message

    def message_out(self) -> MessageOut:
        return whole(self.resp)

    def handle(self, state: TaskState, error: int) -> None:
        self.state = state

    def dispatch(self) -> None:
        self.subtask_done()


class First(Processor):
    def dispatch(self) -> None:
        super().dispatch()


class Bytes(Transport):
    def fileno(self) -> int:
        return 3


class OwnCommunicator(Communicator):
    pass


class Scheduler(CommScheduler):
    pass


class Params(ServerParams):
    pass


class Plugin(InstalledPlugin):
    pass


class OwnError(ProtoserveError):
    pass


class SettingError(ConfigError):
    pass


class PortError(BindError):
    pass


class MissingError(PluginError):
    pass


class WrongError(UsageError):
    pass


@hookimpl
def protoserve_register_protocols(register: Callable[[ProtocolSpec[Any, Any]], None]) -> None:
    register(SPEC)
    register(STREAMED)
