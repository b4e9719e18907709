"""``mypy --strict`` agrees with what authors write: the files of this folder and
``examples/line_plugin`` and of ``examples/protocols`` are checked as a user's own, against the
installed package. So does pyright, where it is installed (``pip install pyright``, which needs
node)."""

from __future__ import annotations

import ast
import enum
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from protocol_packages import PACKAGES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
LINE_PLUGIN = HERE.parent.parent / "examples" / "line_plugin"
FILES = sorted(HERE.glob("own_*.py"))

Mypy = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> Mypy:
    cache = tmp_path_factory.mktemp("mypy")  # shared: the package is read once

    def run(*paths: Path | str, cwd: Path) -> tuple[int, str]:
        done = subprocess.run(
            # No settings but --strict: not those of this project.
            [sys.executable, "-m", "mypy", "--strict", "--config-file=",
             "--cache-dir", cache, *paths],
            cwd=cwd, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def test_subclasses_and_applications(mypy: Mypy, tmp_path: Path) -> None:
    code, text = mypy(*FILES, cwd=tmp_path)
    assert code == 0, text
    assert text == f"Success: no issues found in {len(FILES)} source files\n"


def test_the_example_of_a_plugin(mypy: Mypy) -> None:
    code, text = mypy("line_protocol", "shout.py", cwd=LINE_PLUGIN)
    assert code == 0, text
    assert text == "Success: no issues found in 3 source files\n"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_the_examples_of_protocols(mypy: Mypy, package: Path) -> None:
    code, text = mypy(f"{package.name}_protocol", cwd=package)
    assert code == 0, text


def pyright(*paths: Path | str, cwd: Path) -> list[tuple[str, str]]:
    """The file name and message of each error."""
    # The latter is the same with a node of its own, and so comes by pip alone.
    name = next(filter(importlib.util.find_spec, ("pyright", "basedpyright")), None)
    if name is None:
        pytest.skip("pyright is not installed: pip install basedpyright")
    (cwd / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    done = subprocess.run(
        [sys.executable, "-m", name, "--outputjson", "--pythonpath", sys.executable, *paths],
        cwd=cwd, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode in (0, 1), f"pyright did not run\n{done.stdout}\n{done.stderr}"
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] > 0
    return [
        (Path(item["file"]).name, item["message"])
        for item in found["generalDiagnostics"]
        if item["severity"] == "error"
    ]


HANDLERS = ("own_handlers.py", "own_protocol.py")


def test_handlers_in_pyright(tmp_path: Path) -> None:
    for name in HANDLERS:
        (tmp_path / name).write_text((HERE / name).read_text())
    assert pyright(*HANDLERS, cwd=tmp_path) == []


# What each of the next begins with.
_LINES = """
from own_protocol import Answer, Lines, LineTask, whole
from protoserve import ProtocolSpec, WFServer, WFServerTask
SPEC = ProtocolSpec[str, Answer](
    name="plain", message_in=Lines, message_out=whole, response=Answer)
TASKS = ProtocolSpec(
    name="tasks", message_in=Lines, message_out=whole, response=Answer, task=LineTask)
"""

WRONG_HANDLERS = {
    "a function for other requests": (
        """
        def process(task: WFServerTask[bytes, Answer]) -> None: ...
        WFServer(SPEC, process)
        """,
        'expected "Callable[[WFServerTask[str, Answer]], object]"',
    ),
    "a coroutine function for other requests": (
        """
        async def process(task: WFServerTask[bytes, Answer]) -> None: ...
        WFServer(SPEC, process)
        """,
        'expected "Callable[[WFServerTask[str, Answer]], object]"',
    ),
    "a function for other responses": (
        """
        def process(task: WFServerTask[str, str]) -> None: ...
        WFServer(SPEC, process)
        """,
        'expected "Callable[[WFServerTask[str, Answer]], object]"',
    ),
    "a coroutine function for other responses": (
        """
        async def process(task: WFServerTask[str, str]) -> None: ...
        WFServer(SPEC, process)
        """,
        'expected "Callable[[WFServerTask[str, Answer]], object]"',
    ),
    "a task class that the spec has not": (
        """
        def process(task: LineTask) -> None: ...
        WFServer(SPEC, process)
        """,
        'expected "Callable[[WFServerTask[str, Answer]], object]"',
    ),
    "other requests than those of the spec's task class": (
        """
        async def process(task: WFServerTask[bytes, Answer]) -> None: ...
        WFServer(TASKS, process)
        """,
        'expected "Callable[[LineTask], object]"',
    ),
    "a lambda that takes the request for something else": (
        "WFServer(SPEC, lambda task: task.req.no_such_method())",
        '"str" has no attribute "no_such_method"',
    ),
    "a lambda that takes the response for something else": (
        "WFServer(SPEC, lambda task: task.resp.no_such_method())",
        '"Answer" has no attribute "no_such_method"',
    ),
    "a function that takes the request for something else": (
        """
        def process(task: WFServerTask[str, Answer]) -> None:
            task.resp.lines.append(task.req.encode())
        """,
        'incompatible type "bytes"; expected "str"',
    ),
    "a coroutine that takes the response for something else": (
        """
        async def process(task: LineTask) -> None:
            task.resp.text = task.words
        """,
        'expression has type "list[str]", variable has type "str"',
    ),
    "a server of another protocol": (
        """
        class Server(WFServer[bytes, Answer]):
            def __init__(self) -> None:
                super().__init__(SPEC, lambda task: None)
        """,
        'incompatible type "ProtocolSpec[str, Answer',
    ),
    "a task class for other requests": (
        """
        class Task(WFServerTask[bytes, Answer]): ...
        ProtocolSpec[str, Answer](
            name="plain", message_in=Lines, message_out=whole, response=Answer, task=Task)
        """,
        'expected "type[WFServerTask[str, Answer]] | None"',
    ),
    "a parser of other requests": (
        """
        ProtocolSpec[bytes, Answer](
            name="plain", message_in=Lines, message_out=whole, response=Answer)
        """,
        'expected "Callable[[ServerParams], MessageParser[bytes]]"',
    ),
    "an upgrade to a handler of another protocol": (
        """
        from protoserve_http import WFHttpTask
        def process(task: WFHttpTask) -> None:
            task.upgrade(SPEC, process)
        """,
        'expected "Callable[[WFServerTask[str, Answer]], object]"',
    ),
}


def write_wrong_handlers(folder: Path) -> None:
    (folder / "own_protocol.py").write_text((HERE / "own_protocol.py").read_text())
    for number, (source, _) in enumerate(WRONG_HANDLERS.values()):
        (folder / f"wrong_{number}.py").write_text(_LINES + textwrap.dedent(source))


def test_wrong_handlers_are_found(mypy: Mypy, tmp_path: Path) -> None:
    write_wrong_handlers(tmp_path)
    code, text = mypy(".", cwd=tmp_path)
    assert code == 1
    errors = [line for line in text.splitlines() if ": error: " in line]
    for number, (kind, (_, message)) in enumerate(WRONG_HANDLERS.items()):
        found = [line for line in errors if line.startswith(f"wrong_{number}.py:")]
        assert len(found) == 1, (kind, text)
        assert message in found[0], (kind, found)
    assert len(errors) == len(WRONG_HANDLERS), text


def test_wrong_handlers_in_pyright(tmp_path: Path) -> None:
    write_wrong_handlers(tmp_path)
    names = {name for name, _ in pyright(".", cwd=tmp_path)}
    assert names == {f"wrong_{number}.py" for number in range(len(WRONG_HANDLERS))}


WRONG = {
    "a session that process cannot get": (
        """
        from protoserve import CommConnection, CommSession
        from protoserve_http import WFHttpServer
        class Server(WFHttpServer):
            def new_session(self, seq: int, conn: CommConnection) -> CommSession:
                raise NotImplementedError
        """,
        'incompatible with return type "HttpServerTask"',
    ),
    "a handler of another protocol": (
        """
        from protoserve_http import WFHttpServer
        from protoserve_redis import WFRedisTask
        def process(task: WFRedisTask) -> None: ...
        WFHttpServer(process)
        """,
        'has incompatible type "Callable[[RedisServerTask], None]"',
    ),
    "a result of another type": (
        """
        from protoserve import go
        async def work() -> None:
            text: str = await go(len, "word")
        """,
        'expected "Callable[..., str]"',
    ),
}


def test_what_is_wrong_is_found(mypy: Mypy, tmp_path: Path) -> None:
    for number, (source, _) in enumerate(WRONG.values()):
        (tmp_path / f"wrong_{number}.py").write_text(textwrap.dedent(source))
    code, text = mypy(".", cwd=tmp_path)
    assert code == 1
    lines = text.splitlines()
    for number, (kind, (_, message)) in enumerate(WRONG.items()):
        assert any(f"wrong_{number}.py" in line and message in line for line in lines), kind
    assert {line.partition(":")[0] for line in lines if ": error: " in line} == {
        f"wrong_{number}.py" for number in range(len(WRONG))
    }


def bases() -> set[str]:
    """The names of the classes that the files subclass."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    found.add(ast.unparse(base).partition("[")[0])
    return found


def test_a_subclass_of_each_public_class_is_among_them() -> None:
    protoserve = importlib.import_module("protoserve")
    classes = {
        name
        for name in protoserve.__all__
        if inspect.isclass(cls := getattr(protoserve, name)) and not issubclass(cls, enum.Enum)
    }
    assert classes - bases() == set()


# In what a user gets or passes on, and does not call or make.
INTERNAL = {
    "CommConnEntry",  # the engine's half of a connection
    "Engine",  # the scheduler's dealings with what drives pollers
    "Poller",  # the communicator is made with one
    "Spoken",  # between task.upgrade and the engine
    "Stream",  # the communicator's dealings with replies in pieces
    "HeaderBlock",  # requests are made by their parser
}


@pytest.mark.parametrize("package", ["protoserve", "protoserve_http", "protoserve_redis"])
def test_what_stands_in_public_signatures_is_public(package: str) -> None:
    module = importlib.import_module(package)
    public = {*module.__all__, *importlib.import_module("protoserve").__all__, *INTERNAL}
    public |= set(vars(importlib.import_module("protoserve.events")))
    hidden: dict[str, set[str]] = {}
    for name in module.__all__:
        item = getattr(module, name)
        functions = [item]
        if inspect.isclass(item):
            members = inspect.getmembers(item)
            functions = [
                getattr(member, "fget", None) or member
                for attribute, member in members
                if not attribute.startswith("_") or attribute == "__init__"
            ]
        for function in functions:
            if not inspect.isfunction(function):
                continue
            for annotation in function.__annotations__.values():
                for word in re.findall(r"\w+", str(annotation)):
                    found = function.__globals__.get(word)
                    source = inspect.getsource(inspect.getmodule(function) or module)
                    ours = getattr(found, "__module__", "").startswith("protoserve") or (
                        # Imported for the checker only.
                        found is None
                        and re.search(rf"^    from protoserve.* import {word}$", source, re.M)
                    )
                    private = isinstance(found, typing.TypeVar) or word.startswith("_")
                    if ours and not private and word not in public:
                        hidden.setdefault(word, set()).add(f"{name}.{function.__name__}")
    assert not hidden
