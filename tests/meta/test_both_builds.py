"""What users expect of the compiled build as of the pure one: docs/compiled.md."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib
import inspect
import os
import pickle
import pydoc
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
from loopback import RawClient, get

import protoserve
import protoserve_redis
from protoserve import (
    NEED_DATA,
    BindError,
    CommConnection,
    CommSession,
    ConfigError,
    MessageOut,
    PluginError,
    ProtocolError,
    ProtocolSpec,
    ProtoserveError,
    ServerParams,
    SubTask,
    TaskState,
    UsageError,
    WFNetworkTask,
    WFServer,
)
from protoserve.framing import lines
from protoserve.testing import MemoryEngine
from protoserve_http import HTTP_SPEC, HttpRequestParser, HttpServerTask, WFHttpServer
from protoserve_redis import REDIS_SPEC, RedisError, RedisParser, RedisRequest

PACKAGES = ["protoserve", "protoserve_http", "protoserve_redis"]
COMPILED = protoserve.BUILD == "compiled"
LINES = ProtocolSpec[bytes, bytes](
    name="lines", message_in=lines(), message_out=bytes, response=bytes
)


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    engine = MemoryEngine()
    yield engine
    engine.close()


def process(task: HttpServerTask) -> None:
    if task.req.path == "/broken":
        raise LookupError("the handler's own")
    task.resp.write(task.req.path)


# -- tracebacks ------------------------------------------------------------------------------


def source_of(package: str, module: str) -> Path:
    return Path(importlib.import_module(package).__path__[0], f"{module}.py")


def test_a_traceback_names_files_functions_and_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        WFHttpServer(5)  # type: ignore[arg-type]
    frames = [
        frame
        for frame in traceback.extract_tb(caught.tb)
        if frame.name == "__init__" and frame.filename.endswith("/server.py")
    ]
    lines = []
    for frame, package in zip(frames, ["protoserve_http", "protoserve"], strict=True):
        path = source_of(package, "server")
        # Compiled code names it from the folder of packages on.
        assert frame.filename == (f"{package}/server.py" if COMPILED else str(path))
        assert frame.lineno is not None
        lines.append(path.read_text(encoding="utf-8").splitlines()[frame.lineno - 1].strip())
    assert lines[0].startswith("super().__init__(HTTP_SPEC, ")
    assert lines[1] == "look_at_handler(process)"


def test_the_log_shows_where_a_handler_raised(caplog: pytest.LogCaptureFixture) -> None:
    with WFHttpServer(process).start("127.0.0.1", 0) as server, RawClient(server.address) as c:
        assert c.ask("/broken").status == 500
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    *_, last = traceback.extract_tb(record.exc_info[2])
    assert (last.filename, last.name) == (__file__, "process")
    assert last.line == 'raise LookupError("the handler\'s own")'


# -- help --------------------------------------------------------------------------------------


def documented() -> Iterator[tuple[type, str, str]]:
    """The public methods and properties of our public classes that have a docstring in the
    source, and that."""
    for top in PACKAGES:
        module = importlib.import_module(top)
        for cls in {getattr(module, name) for name in module.__all__}:
            if not inspect.isclass(cls) or cls.__module__.partition(".")[0] not in PACKAGES:
                continue
            package, _, name = cls.__module__.rpartition(".")
            for node in ast.walk(ast.parse(source_of(package, name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                    for member in node.body:
                        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
                            text = ast.get_docstring(member)
                            if text and not member.name.startswith("_"):
                                yield cls, member.name, text


def test_help_shows_the_docstrings() -> None:
    seen = 0
    for cls, name, text in documented():
        assert inspect.getdoc(getattr(cls, name)) == text, (cls, name)
        seen += 1
    assert seen > 100
    for cls in (WFHttpServer, WFServer, HttpRequestParser, RedisParser):
        shown = pydoc.render_doc(cls, renderer=pydoc.plaintext)
        assert (inspect.getdoc(cls) or "?").partition("\n")[0] in shown


def test_help_shows_the_parameters() -> None:
    signature = inspect.signature(WFHttpServer)
    assert [*signature.parameters] == ["process", "params", "on_start", "on_stop"]
    assert signature.parameters["params"].default is None
    assert signature.parameters["on_stop"].kind is inspect.Parameter.KEYWORD_ONLY
    assert next(iter(inspect.signature(WFServer.stop).parameters)) == "self"


# -- pickling ----------------------------------------------------------------------------------

ERRORS = [
    ProtoserveError("message"),
    ConfigError("message"),
    BindError(98, "in use"),
    PluginError("message"),
    UsageError("message"),
    ProtocolError("message", reply=b"reply", summary={"status": 400}),
    RedisError("ERR message"),
]


def test_every_exception_is_among_them() -> None:
    public = [
        value
        for module in (protoserve, protoserve_redis)
        for name in module.__all__
        if inspect.isclass(value := getattr(module, name)) and issubclass(value, Exception)
    ]
    assert {type(error) for error in ERRORS} == {*public}


def facts(error: BaseException) -> list[object]:
    return [type(error), error.args, str(error), vars(error)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_exceptions_pickle(error: Exception) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert facts(pickle.loads(pickle.dumps(error, protocol))) == facts(error)
    assert facts(copy.copy(error)) == facts(error)


REFUSED = """
import pickle, sys
from protoserve import ProtocolError
from protoserve_http import HTTP_SPEC, HttpRequestParser

parser = HttpRequestParser(HTTP_SPEC.params)
parser.feed(b"no request\\r\\n\\r\\n")
try:
    parser.next_message()
except ProtocolError as error:
    sys.stdout.buffer.write(pickle.dumps(error))
"""


def test_what_a_parser_raises_comes_out_of_another_process() -> None:
    command = [sys.executable, "-c", REFUSED]
    error = pickle.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert type(error).__module__.partition(".")[0] in PACKAGES
    assert isinstance(error, ProtocolError)
    assert error.reply.startswith(b"HTTP/1.1 400 ")
    assert error.summary["status"] == 400


# -- subclassing -------------------------------------------------------------------------------


class Marking(HttpRequestParser):
    """A parser of one's own, with attributes of its own."""

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.fed = 0

    def feed(self, data: bytes) -> None:
        self.fed += len(data)
        super().feed(data)


class Counting(HttpServerTask):
    """A task of one's own."""

    def message_out(self) -> MessageOut:
        self.resp.headers["X-Seq"] = str(self.seq)
        return super().message_out()


class Own(WFHttpServer):
    """A server of one's own."""

    says = "own"

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.parsers: list[Marking] = []

    def answer(self, task: HttpServerTask) -> None:
        task.resp.write(f"{self.says} {self.parsers[-1].fed}")

    def new_parser(self) -> Marking:
        self.parsers.append(Marking(self.params))
        return self.parsers[-1]

    def new_session(self, seq: int, conn: CommConnection) -> Counting:
        return Counting(self, self.process, seq, conn)


def test_own_server_parser_and_task() -> None:
    with Own().start("127.0.0.1", 0) as server, RawClient(server.address) as client:
        for seq in range(3):
            reply = client.ask()
            assert reply.body == b"own %d" % ((seq + 1) * len(get()))
            assert reply.headers["x-seq"] == str(seq)


class OwnRedis(RedisParser):
    """As a user would count what comes."""

    def __init__(self, params: ServerParams) -> None:
        super().__init__(params)
        self.seen: list[object] = []

    def next_message(self) -> Any:
        message = super().next_message()
        self.seen.append(message)
        return message


def test_own_redis_parser() -> None:
    parser = OwnRedis(REDIS_SPEC.params)
    parser.feed(b"*1\r\n$4\r\nPING\r\n")
    request = parser.next_message()
    assert isinstance(request, RedisRequest)
    assert parser.next_message() is NEED_DATA
    assert parser.seen == [request, NEED_DATA]


class Exchange(CommSession):
    """A session with nothing but what the engine needs."""

    keep_alive = 5.0  # of all of them

    def __init__(self, conn: CommConnection) -> None:
        self.conn = conn

    @property
    def connection(self) -> CommConnection:  # type: ignore[override]
        return self.conn

    def message_in(self, message: bytes) -> None:
        self.message = message

    def message_out(self) -> bytes:
        return self.message.upper() + b"\n"

    def handle(self, state: TaskState, error: int) -> None:
        if state is TaskState.TOREPLY:
            self.conn.communicator.reply(self)


class Brief(Exchange):
    keep_alive = 0.0


@pytest.mark.parametrize("kind", [Exchange, Brief])
def test_own_session(kind: type[Exchange], engine: MemoryEngine) -> None:
    class Server(WFServer[bytes, bytes]):
        def new_session(self, seq: int, conn: CommConnection) -> Any:
            return kind(conn)

    peer = engine.connect(Server(LINES, print))
    peer.send(b"a\nb\n")
    engine.run()
    assert peer.received == (b"A\n" if kind is Brief else b"A\nB\n")
    assert peer.eof == (kind is Brief)


class Answer(WFNetworkTask[bytes, bytes]):
    """A task of a network, and nothing more."""

    def __init__(self, conn: CommConnection) -> None:
        self.connection = conn
        self.keep_alive = None

    def message_in(self, message: bytes) -> None:
        self.req = message

    def message_out(self) -> bytes:
        return b"last\n" if self.closing else b"one of many\n"

    def dispatch(self) -> None:
        self.connection.communicator.reply(self)

    def handle(self, state: TaskState, error: int) -> None:
        if state is TaskState.TOREPLY:
            self.dispatch()


def test_own_network_task(engine: MemoryEngine) -> None:
    class Server(WFServer[bytes, bytes]):
        def new_session(self, seq: int, conn: CommConnection) -> Any:
            return Answer(conn)

    server = Server(LINES, print)
    peer = engine.connect(server)
    peer.send(b"a\n")
    engine.run()
    server.stopping = True
    peer.send(b"b\n")
    engine.run()
    assert peer.received == b"one of many\nlast\n"


class Traced(HttpServerTask):
    """What a tracing library does something to."""


def test_code_around_handle_that_was_put_there_later_may_use_the_connection() -> None:
    held: list[bool] = []

    def traced(self: Traced, state: TaskState, error: int) -> None:
        HttpServerTask.handle(self, state, error)
        held.append(self.connection.entry.locked_here)
        self.connection.on_close(print).cancel()

    class Server(WFHttpServer):
        def new_session(self, seq: int, conn: CommConnection) -> Traced:
            return Traced(self, self.process, seq, conn)

    with (
        mock.patch.object(Traced, "handle", traced),
        Server(process).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        for _ in range(3):
            assert client.ask("/x").body == b"/x"
    assert held
    assert not any(held)


def test_a_spec_that_is_replaced_is_the_server_s(engine: MemoryEngine) -> None:
    server = WFServer(LINES, lambda task: None)
    server.spec = dataclasses.replace(LINES, response=lambda: b"another\n")
    peer = engine.connect(server)
    peer.send(b"a\n")
    engine.run()
    assert peer.received == b"another\n"


def test_a_task_without_dispatch_is_refused() -> None:
    class Forgetful(SubTask):
        pass

    with pytest.raises((TypeError, NotImplementedError), match=r"Forgetful.* dispatch"):
        Forgetful().dispatch()  # type: ignore[abstract]


@pytest.mark.parametrize("method", ["message_in", "message_out", "handle"])
def test_a_session_without_its_methods_is_refused(method: str) -> None:
    methods: dict[str, Any] = {"message_in": print, "message_out": bytes, "handle": print}
    del methods[method]
    kind = type("Forgetful", (CommSession,), methods)
    arguments = {"message_in": [b""], "message_out": [], "handle": [TaskState.TOREPLY, 0]}
    with pytest.raises((TypeError, NotImplementedError), match=rf"Forgetful.* {method}"):
        getattr(kind(), method)(*arguments[method])


# -- mocks -------------------------------------------------------------------------------------


def test_a_handler_is_called_with_a_mock() -> None:
    task = mock.create_autospec(HttpServerTask, instance=True)
    task.req.path = "/path"
    process(task)
    task.resp.write.assert_called_once_with("/path")
    with pytest.raises(AttributeError):
        task.no_such_thing  # noqa: B018


def test_a_server_is_passed_as_a_mock() -> None:
    server = mock.create_autospec(WFHttpServer, instance=True)
    server.stop()
    if not COMPILED:  # unittest.mock looks at the signatures of Python functions only
        with pytest.raises(TypeError):
            server.stop("now")
    with pytest.raises(AttributeError):
        server.no_such_thing  # noqa: B018
    assert isinstance(server, WFHttpServer)


def test_a_method_of_one_s_own_class_is_replaced() -> None:
    with (
        Own().start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
        mock.patch.object(Counting, "message_out", autospec=True) as message_out,
    ):
        message_out.return_value = b"HTTP/1.1 299 Mocked\r\nContent-Length: 0\r\n\r\n"
        assert client.ask().status == 299
        (task,) = message_out.call_args.args
        assert isinstance(task, Counting)


def test_what_the_user_s_module_calls_is_replaced() -> None:
    with (
        mock.patch(f"{__name__}.look_up", return_value="mocked") as look_up,
        WFHttpServer(looking).start("127.0.0.1", 0) as server,
        RawClient(server.address) as client,
    ):
        assert client.ask("/name").body == b"mocked"
    look_up.assert_called_once_with("/name")


def look_up(path: str) -> str:
    raise AssertionError(f"{path} is to be mocked")


def looking(task: HttpServerTask) -> None:
    task.resp.write(look_up(task.req.path))


# -- looking inside ----------------------------------------------------------------------------


def test_a_debugger_sees_what_is_python() -> None:
    seen: set[str] = set()

    def trace(frame: FrameType, event: str, _: object) -> None:
        seen.add("/".join(Path(frame.f_code.co_filename).parts[-2:]))

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parser = HttpRequestParser(HTTP_SPEC.params)
        parser.feed(get())
        parser.next_message()
        parser.close()
        OwnRedis(REDIS_SPEC.params).next_message()
    finally:
        sys.settrace(before)
    assert f"meta/{Path(__file__).name}" in seen, "the user's own code always"
    assert ("protoserve_http/parser.py" in seen) is not COMPILED


def test_two_installations_are_told_apart(tmp_path: Path) -> None:
    """In a clone of the sources, where something else is installed, compiled."""
    source = Path(protoserve.__file__).parent
    clone, installed = tmp_path / "clone", tmp_path / "installed"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(source, clone / "protoserve", ignore=ignore)
    (installed / "protoserve_http").mkdir(parents=True)
    (installed / "protoserve_http" / "__init__.py").touch()
    path = os.pathsep.join(map(str, (clone, installed)))
    command = [sys.executable, "-c", "import protoserve; print(protoserve.BUILD)"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert run().stdout == "pure\n"
    (installed / "protoserve__mypyc.cpython-311-x86_64-linux-gnu.so").touch()
    refused = run()
    assert refused.returncode == 1
    *_, last = refused.stderr.splitlines()
    assert last.startswith("ImportError: two installations of protoserve:")
    assert str(clone) in last
    assert str(installed) in last
    assert "pip install -e ." in last
