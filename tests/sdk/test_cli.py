"""The command: what it prints, how it ends, and that it says what is wrong in one line."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from protoserve import (
    BUILD,
    SERVER_PARAMS_DEFAULT,
    ConfigError,
    InstalledPlugin,
    ServerParams,
    WFServerBase,
    cli,
)
from protoserve.cli import main

ROOT = Path(__file__).parent.parent.parent
ECHO = "examples.http_echo:process"
ANYTHING = "protoserve_http.demo:process"  # it can be called, and is not
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@contextmanager
def running(*arguments: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [sys.executable, "-m", "protoserve", "run", *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with program:
        try:
            yield program
        finally:
            program.kill()


def url(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line.startswith("listening on "), program.communicate(timeout=20)
    return line.removeprefix("listening on ").rstrip("\n")


def port(program: subprocess.Popen[str]) -> int:
    return int(url(program).rpartition(":")[2])


def end(program: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, str]:
    """The exit code, and what was printed after the first line."""
    program.send_signal(number)
    out, err = program.communicate(timeout=30)
    return program.returncode, out, err


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with an empty application, ``the_app.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "the_app.py"
    sys.modules.pop("the_app", None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line in which the command says why not."""
    assert main(["run", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("protoserve: ")
    return err.removeprefix("protoserve: ").rstrip("\n")


def misused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


# -- serving ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_it_serves_until_a_signal(number: int) -> None:
    with running("http", ECHO, "--bind", "127.0.0.1:0") as program:
        client = http.client.HTTPConnection("127.0.0.1", port(program), timeout=20)
        client.request("GET", "/hello")
        assert b"GET /hello HTTP/1.1" in client.getresponse().read()
        client.close()
        assert end(program, number) == (0, "", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_right_after_the_line_is_graceful(number: int) -> None:
    with running("http", ECHO, "--bind", "127.0.0.1:0") as program:
        port(program)
        assert end(program, number) == (0, "", "")


def test_the_second_signal_cuts_short(app: Path) -> None:
    app.write_text(
        "import time\ndef process(task):\n  print('running', flush=True)\n  time.sleep(600)\n"
    )
    arguments = ("http", "the_app:process", "--bind", "127.0.0.1:0", "--shutdown-timeout", "none")
    with (
        running(*arguments, cwd=app.parent) as program,
        socket.create_connection(("127.0.0.1", port(program)), timeout=20) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        program.send_signal(signal.SIGTERM)
        # The first one was noticed when the listener is gone.
        while probe(client.getpeername()):
            pass
        code, _, err = end(program)
    assert code == 0
    assert re.search(r"cut \d+ connections or requests", err)


def probe(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=20).close()
    except OSError:
        return False
    return True


def test_a_unix_socket(app: Path) -> None:
    path = app.parent / "socket"
    with running("http", ECHO, "--bind", f"unix:{path}") as program:
        assert url(program).endswith(f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        assert end(program) == (0, "", "")
    assert not path.exists()


def test_ipv6(app: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with running("http", ECHO, "--bind", "[::1]:0") as program:
        address = url(program)
        assert address.startswith("http://[::1]:")
        assert probe(("::1", int(address.rpartition(":")[2])))
        assert end(program) == (0, "", "")


def test_parameters_reach_the_server() -> None:
    arguments = ("http", ECHO, "--bind", "127.0.0.1:0")
    with running(*arguments, "--keep-alive-timeout", "0", "--request-size-limit", "1k") as program:
        client = http.client.HTTPConnection("127.0.0.1", port(program), timeout=20)
        client.request("GET", "/")
        response = client.getresponse()
        response.read()
        assert response.headers["Connection"] == "close"
        client.request("POST", "/", body=b"x" * 2000)
        assert client.getresponse().status == 413
        client.close()
        assert end(program) == (0, "", "")


def test_the_access_log_has_a_line_for_each_request() -> None:
    with running("http", ECHO, "--bind", "127.0.0.1:0", "--access-log") as program:
        number = port(program)
        client = http.client.HTTPConnection("127.0.0.1", number, timeout=20)
        for target in "/", "/some?thing":
            client.request("GET", target)
            length = len(client.getresponse().read())
        client.close()
        with socket.create_connection(("127.0.0.1", number), timeout=20) as bad:
            bad.sendall(b"GET / HTTP/1.1\r\nBad field: x\r\n\r\n")
            assert bad.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
        _, out, err = end(program)
    assert out == ""
    first, second, third = err.splitlines()
    assert re.search(r" INFO 127\.0\.0\.1:\d+ #0 GET / 1\.1 200 \d+ in \d+\.\d ms$", first)
    assert f" #1 GET /some?thing 1.1 200 {length} in " in second
    assert re.search(r" #0 GET / 1\.1 400 refused: malformed request", third)


def lines_of(program: subprocess.Popen[str], number: int) -> list[str]:
    assert program.stdout is not None
    return [program.stdout.readline().rstrip("\n") for _ in range(number)]


def get(address: tuple[str, int], target: str = "/") -> bytes:
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize(
    ("bind", "shown"),
    [
        ("0", r"http://0\.0\.0\.0:(\d+) \(every IPv4 interface\)"),
        (":0", r"http://0\.0\.0\.0:(\d+) \(every IPv4 interface\)"),
        ("0.0.0.0:0", r"http://0\.0\.0\.0:(\d+) \(every IPv4 interface\)"),
        ("[::]:0", r"http://\[::\]:(\d+) \(every IPv6 interface\)"),
        ("127.0.0.1:0", r"http://127\.0\.0\.1:(\d+)"),
    ],
)
def test_it_says_what_it_listens_on(bind: str, shown: str) -> None:
    if bind.startswith("[") and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with running("http", ECHO, "--bind", bind) as program:
        found = re.fullmatch(shown, url(program))
        assert found
        host = "::1" if bind.startswith("[") else "127.0.0.1"
        assert get((host, int(found[1]))).startswith(b"HTTP/1.1 200 OK\r\n")
        assert end(program) == (0, "", "")


SEVERAL = """
import os, signal

def process(task):
    if task.req.path == "/stop":
        task.server.shutdown()
    if task.req.path == "/wait":
        print("waiting", flush=True)
        from protoserve import timer
        task.series.push_back(timer(600))
    task.resp.write(f"{os.getpid()} {task.req.path}\\n")
"""


@contextmanager
def several(app: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """One application at three addresses, and where they are."""
    app.write_text(SEVERAL)
    path = app.parent / "socket"
    binds = ("--bind", "127.0.0.1:0", "--bind", f"unix:{path}", "--bind", "127.0.0.1:0")
    with running("http", "the_app:process", *binds, *options, cwd=app.parent) as program:
        first, second, third = lines_of(program, 3)
        assert second == f"listening on http+unix:{path}"
        addresses = [("127.0.0.1", int(line.rpartition(":")[2])) for line in (first, third)]
        yield program, addresses
    assert not path.exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_several_addresses(number: int, app: Path) -> None:
    with several(app) as (program, addresses):
        for address in addresses:
            assert get(address).endswith(f"{program.pid} /\n".encode())
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(app.parent / "socket"))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        assert end(program, number) == (0, "", "")


def test_several_addresses_and_a_signal_right_after_the_line(app: Path) -> None:
    with several(app) as (program, _):
        assert end(program) == (0, "", "")


def test_several_addresses_stop_when_one_does(app: Path) -> None:
    with several(app) as (program, addresses):
        assert get(addresses[1], "/stop").endswith(b" /stop\n")
        assert program.wait(30) == 0
        assert not any(map(probe, addresses))


def test_several_addresses_and_the_second_signal(app: Path) -> None:
    with several(app, "--shutdown-timeout", "none") as (program, addresses):
        with (
            socket.create_connection(addresses[0], timeout=20) as one,
            socket.create_connection(addresses[1], timeout=20) as two,
        ):
            for client in (one, two):
                client.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
            assert lines_of(program, 2) == ["waiting"] * 2
            program.send_signal(signal.SIGTERM)
            while any(map(probe, addresses)):
                pass
            assert program.poll() is None
            code, _, err = end(program)
        assert code == 0
        assert len(re.findall(r"cut \d+ connections or requests", err)) == 2


def test_of_several_addresses_one_is_taken(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = app.parent / "socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        binds = ("--bind", f"unix:{free}", "--bind", address)
        message = refused(capsys, "http", ANYTHING, *binds, code=3)
    assert message.startswith(f"cannot listen on {address}: ")
    assert not free.exists(), "the one that had started has stopped"


def test_the_application_may_stand_anywhere() -> None:
    for words in (
        ("http", "--bind", "127.0.0.1:0", ECHO),
        ("--bind", "127.0.0.1:0", "http", "--backlog", "7", ECHO),
    ):
        args = cli._parser().parse_args(["run", *words])
        assert (args.protocol, args.application) == ("http", ECHO)


# -- the demo --------------------------------------------------------------------------


def test_without_an_application_the_demo_is_served(tmp_path: Path) -> None:
    with running("http", "--bind", "127.0.0.1:0", cwd=tmp_path) as program:
        page = get(("127.0.0.1", port(program)), "/hello?<&>")
        assert page.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"<p>GET /hello?&lt;&amp;&gt; HTTP/1.0</p>" in page
        code, out, err = end(program)
    assert (code, out) == (0, "")
    assert err == (
        "protoserve: without an application it serves the demo, protoserve_http.demo:process\n"
    )


def test_the_demo_by_its_name(tmp_path: Path) -> None:
    arguments = ("http", "protoserve_http.demo:process", "--bind", "127.0.0.1:0")
    with running(*arguments, cwd=tmp_path) as program:
        assert b"<p>GET / HTTP/1.0</p>" in get(("127.0.0.1", port(program)))
        assert end(program) == (0, "", "")


def test_a_protocol_without_a_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "redis") == (
        "MODULE:CALLABLE is missing, and redis has no demo; "
        "for example: protoserve run redis my_app:process"
    )


# -- standard output that cannot be written to -----------------------------------------


def handles_sigterm(pid: int) -> bool:
    """Whether the process has a handler for it; True where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"(?m)^SigCgt:\s*(\w+)$", status)
    assert caught
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("kind", ["no reader", "full", "closed", "the reader leaves"])
def test_it_serves_on_when_it_cannot_say_so(kind: str, app: Path) -> None:
    """Also when the application writes there, and at the end."""
    app.write_text(
        "def process(task):\n  print('x' * 100_000, flush=True)\n  task.resp.write('served')\n"
    )
    if kind == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no such device here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    if kind == "full":
        reader, writer = os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
    command = ["-m", "protoserve", "run", "http", "the_app:process", "--bind"]
    command += [f"127.0.0.1:{number}"]
    if kind == "closed":
        source = "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])"
        command = ["-c", source, sys.executable, *command]
    if kind == "no reader":
        os.close(reader)
    program = subprocess.Popen(
        [sys.executable, *command],
        cwd=app.parent,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    with program:
        try:
            if kind == "the reader leaves":
                assert os.read(reader, 100).startswith(b"listening on ")
            if kind != "no reader":
                os.close(reader)
            assert program.stderr is not None
            if kind in ("no reader", "full"):
                found = re.search("WARNING (.*)$", program.stderr.readline())
                assert found
                start = f"listening on http://127.0.0.1:{number}; cannot say so: "
                assert found[1].startswith(start)
            while not probe(("127.0.0.1", number)):
                assert program.poll() is None, program.communicate()
            reply = get(("127.0.0.1", number))
            # What the application does with a reader that has left is its own affair.
            assert kind == "the reader leaves" or reply.endswith(b"\r\n\r\nserved")
            assert get(("127.0.0.1", number)).startswith(b"HTTP/1.1 ")
            # It says nowhere that it listens for signals, which it does a moment later.
            while not handles_sigterm(program.pid):
                assert program.poll() is None, program.communicate()
            code, _, err = end(program)
        finally:
            program.kill()
    assert code == 0, err
    assert kind == "the reader leaves" or err == ""
    assert "Exception ignored" not in err


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"]])
def test_no_output_at_all(arguments: list[str]) -> None:
    """As ``>&-`` of a shell leaves it: Python has no ``sys.stdout`` then."""
    command = shlex.join([sys.executable, "-m", "protoserve", *arguments])
    done = subprocess.run(
        ["sh", "-c", f"{command} >&-"], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"]])
def test_a_full_device(arguments: list[str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no such device here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "protoserve", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    assert done.returncode == 1
    assert re.fullmatch(
        r"protoserve: cannot write to standard output: .*No space left.*\n", done.stderr
    )


# -- logging ---------------------------------------------------------------------------

FAILS = """
def process(task):
    raise ValueError("a fault")
"""


def logged(app: Path, source: str, *options: str) -> str:
    """What is on stderr after a handler has failed."""
    app.write_text(source + FAILS)
    bind = ("--bind", "127.0.0.1:0", "--access-log")
    with running("http", "the_app:process", *bind, *options, cwd=app.parent) as program:
        assert get(("127.0.0.1", port(program))).startswith(b"HTTP/1.1 500 ")
        return end(program)[2]


def test_without_a_set_up_of_the_application_s_the_command_s_holds(app: Path) -> None:
    text = logged(app, "import logging\nlogging.getLogger('mine').warning('imported')\n")
    assert re.search(r"^\d{4}-\d\d-\d\d .* ERROR .* failed$", text, re.MULTILINE)
    assert text.count("ValueError: a fault") == 1
    assert text.count(" #0 GET / 1.0 500 ") == 1


BASIC = "import logging\nlogging.basicConfig(format='MINE %(levelname)s %(name)s %(message)s')\n"
OWN_HANDLER = """
import logging, sys
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("MINE %(levelname)s %(name)s %(message)s"))
logging.getLogger("protoserve").addHandler(handler)
"""
DICT = """
import logging.config
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": False,
    "formatters": {"mine": {"format": "MINE %(levelname)s %(name)s %(message)s"}},
    "handlers": {"mine": {"class": "logging.StreamHandler", "formatter": "mine"}},
    "root": {"handlers": ["mine"], "level": "WARNING"},
})
"""


# As most write it: what there was before is silenced.
DICT_ALONE = DICT.replace('"disable_existing_loggers": False,', "")
FILE = """
import io, logging.config
logging.config.fileConfig(io.StringIO(\"\"\"
[loggers]
keys=root
[handlers]
keys=mine
[formatters]
keys=mine
[logger_root]
handlers=mine
[handler_mine]
class=StreamHandler
args=()
formatter=mine
[formatter_mine]
format=MINE %(levelname)s %(name)s %(message)s
\"\"\"))
"""
SET_UPS = {
    "basic": BASIC, "handler": OWN_HANDLER, "dict": DICT, "dict alone": DICT_ALONE, "file": FILE,
}  # fmt: skip


@pytest.mark.parametrize("source", SET_UPS.values(), ids=SET_UPS)
def test_a_set_up_that_the_application_made_holds(source: str, app: Path) -> None:
    text = logged(app, source)
    assert text.count("MINE ERROR protoserve ") == 1
    assert text.count("MINE INFO protoserve.access ") == 1
    assert text.count("ValueError: a fault") == 1, "each is written once"
    assert not re.search(r"^\d{4}-\d\d-\d\d ", text, re.MULTILINE)


def test_a_level_for_all_that_the_application_set_holds(app: Path) -> None:
    """Where it says nothing of protoserve's logger."""
    says = "logging.getLogger('protoserve').info('a word')\n"
    info = BASIC.replace("format=", "level='INFO', format=")
    app.write_text(f"{info}def process(task):\n  {says}")
    with running("http", "the_app:process", "--bind", "127.0.0.1:0", cwd=app.parent) as program:
        assert get(("127.0.0.1", port(program))).startswith(b"HTTP/1.1 200 ")
        assert end(program)[2] == "MINE INFO protoserve a word\n"
    assert "a fault" not in logged(app, BASIC.replace("format=", "level='CRITICAL', format="))


def test_a_level_that_the_application_set_holds(app: Path) -> None:
    quiet = "logging.getLogger('protoserve').setLevel(logging.CRITICAL)\n"
    assert "a fault" not in logged(app, BASIC + quiet)
    assert "a fault" not in logged(app, "import logging\n" + quiet)
    # What is asked for on the command line holds all the same.
    assert "MINE ERROR protoserve " in logged(app, BASIC + quiet, "--log-level", "error")


def test_the_set_up_is_undone(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, access = logging.getLogger("protoserve"), logging.getLogger("protoserve.access")

    def state() -> object:
        return log.level, log.propagate, [*log.handlers], access.level, log.disabled

    before = state()
    refused(capsys, "http", "no_such_app:process", "--log-level", "error")
    assert state() == before


# -- what cannot be served -------------------------------------------------------------


def test_an_unknown_protocol_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "htpp", ECHO)
    assert re.fullmatch(r"no protocol 'htpp' is installed; installed: .*\bhttp\b.*", message)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("htpp", ECHO), "; did you mean http?"),
        (("HTTP", ECHO), "; did you mean http?"),
        (("https", ECHO), "; did you mean http? This version serves no TLS"),
        (("rediss", ECHO), "; did you mean redis? This version serves no TLS"),
        (("smtp", ECHO), "redis"),
        (("examples.http_echo:process",), "; did you mean: protoserve run http " + ECHO),
        (("app:process", "redis"), "; did you mean: protoserve run redis app:process"),
    ],
)
def test_a_protocol_that_was_meant(
    words: tuple[str, ...], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *words).endswith(meant)


def test_a_missing_module_says_where_it_looked(
    app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "http", "no_such_app:process")
    assert message.startswith(f"no module 'no_such_app'; looked in: {app.parent}, ")
    assert (
        "looked in: " + json.__path__[0]
        == (refused(capsys, "http", "json.nothing:process").partition("; ")[2])
    )
    assert refused(capsys, "http", "json.tool.sub:process").endswith(
        "json.tool, which is a module, not a package"
    )


@pytest.mark.parametrize("text", ["the_app", "the_app:", ":process", ""])
def test_half_an_application(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected MODULE:CALLABLE" in refused(capsys, "http", text)


def test_a_file_name_is_turned_into_a_module_name(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "http", "./examples/http_echo.py:process")
    assert message.endswith(f"give the module's name: {ECHO}")


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (
            "proces",
            "module 'the_app' has no 'proces'; it has: Site, nothing, pieces, process",
        ),
        ("site.serv", "Site 'the_app:site' has no 'serv'; it has: serve"),
        ("port", "'the_app:port' is of type int and cannot be called"),
        ("site.name", "'the_app:site.name' is of type str and cannot be called"),
        ("site.trouble", "the_app:site.trouble raised OSError: trouble (.*the_app.py:12)"),
        ("Site", "'the_app:Site' is the class Site, and would make an object of each request"),
        ("pieces", "'the_app:pieces' is a generator function"),
        ("nothing", r"'the_app:nothing' takes \(\)"),
    ],
)
def test_what_is_no_callable(
    attribute: str, message: str, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.write_text(
        dedent("""\
        from pathlib import Path
        port = 80
        def process(task): ...
        def _private(task): ...
        def pieces(task): yield
        def nothing(): ...
        class Site:
            name = "site"
            def serve(self, task): ...
            @property
            def trouble(self):
                raise OSError("trouble")
        site = Site()
        """)
    )
    assert re.match(message, refused(capsys, "http", f"the_app:{attribute}"))


def test_a_method_of_an_object(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app.write_text("class Site:\n  def serve(self, task): ...\nsite = Site()\n")
    with running("http", "the_app:site.serve", "--bind", "127.0.0.1:0", cwd=app.parent) as program:
        port(program)
        assert end(program) == (0, "", "")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (the_app.py:2)"),
        ("import no_such_module_here", "No module named 'no_such_module_here' (the_app.py:1)"),
        ("import sys; sys.exit('usage')", "SystemExit: usage (the_app.py:1)"),
        ("x = 1\ndef (:", "SyntaxError: invalid syntax (the_app.py:2)"),
        (
            "from protoserve import ServerParams\n\nServerParams(backlog=0)",
            "ConfigError: backlog=0: expected at least 1 (the_app.py:3)",
        ),
    ],
)
def test_an_application_that_raises_at_import(
    source: str, message: str, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.write_text(source)
    line = refused(capsys, "http", "the_app:process")
    assert line.startswith("importing 'the_app' raised ")
    assert line.replace(f"{app.parent}{os.sep}", "").endswith(message)


def test_the_traceback_is_in_the_debug_log(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app.write_text("1 / 0")
    assert main(["run", "http", "the_app:process", "--log-level", "debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_while_importing_is_no_traceback(
    app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.write_text("raise KeyboardInterrupt")
    assert main(["run", "http", "the_app:process"]) == 130
    assert capsys.readouterr().err == ""


def test_an_interrupt_while_importing_a_plugin_says_which(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        error = KeyboardInterrupt()
        error.add_note("interrupted at plugin 'slow' of slow 1.0")
        raise error

    monkeypatch.setattr(cli, "installed_plugins", interrupted)
    assert main(["plugins"]) == 130
    assert capsys.readouterr() == ("", "protoserve: interrupted at plugin 'slow' of slow 1.0\n")


def test_an_address_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refused(capsys, "http", ANYTHING, "--bind", address, code=3)
    assert message.startswith(f"cannot listen on {address}: ")


def test_no_descriptor_to_start_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(WFServerBase, "start", start)
    message = refused(capsys, "http", ANYTHING, code=3)
    assert "Too many open files" in message


# -- a protocol that is just an object --------------------------------------------------

OWN = """
from dataclasses import dataclass

from protoserve import ProtocolSpec, ServerParams
from protoserve.framing import lines

@dataclass
class Reply:
    text: str = ""

@dataclass(frozen=True, slots=True, kw_only=True)
class Params(ServerParams):
    mark: str = "!"

def message_out(reply):
    return reply.text.encode() + b"\\n"

def make_spec(**more):
    return ProtocolSpec(
        name="own", message_in=lines(bytes.decode), message_out=message_out, response=Reply,
        params=Params(), url_scheme="own", **more,
    )

class Holder:
    spec = make_spec()

SPEC = make_spec()
WITH_DEMO = make_spec(demo="the_app:process")
PORT = 80

def process(task):
    task.resp.text = task.req.upper() + task.server.params.mark
"""


@pytest.fixture
def own(app: Path) -> Path:
    """``the_app.py`` has a protocol."""
    app.write_text(OWN)
    return app


@pytest.mark.parametrize(
    ("words", "reply", "said"),
    [
        (("the_app:SPEC", "the_app:process"), b"HELLO!\n", ""),
        (("the_app:Holder.spec", "the_app:process"), b"HELLO!\n", ""),
        (("the_app:SPEC", "the_app:process", "--mark", "?"), b"HELLO?\n", ""),
        (
            ("--mark", "?", "the_app:WITH_DEMO"),
            b"HELLO?\n",
            "protoserve: without an application it serves the demo, the_app:process\n",
        ),
    ],
)
def test_a_spec_is_served(words: tuple[str, ...], reply: bytes, said: str, own: Path) -> None:
    """Without a distribution."""
    with running(*words, "--bind", "127.0.0.1:0", cwd=own.parent) as program:
        place = url(program)
        assert place.startswith("own://127.0.0.1:")
        address = ("127.0.0.1", int(place.rpartition(":")[2]))
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == reply
        assert end(program) == (0, "", said)


def test_parameters_of_a_spec_are_options(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--bind", "unix:here", "the_app:SPEC", "--help"])
    assert caught.value.code == 0
    assert "parameters of this protocol:\n  --mark TEXT" in capsys.readouterr().out
    message = misused(capsys, "run", "the_app:SPEC", "the_app:process", "--marc", "?")
    assert message.endswith("unrecognized arguments: --marc; did you mean --mark?")


@pytest.mark.parametrize("option", [(), ("--mark", "?")])
def test_a_set_up_of_logging_beside_a_spec_holds(option: tuple[str, ...], own: Path) -> None:
    """Also where an option makes its module be imported early."""
    own.write_text(f"{BASIC}{OWN}    raise ValueError('a fault')\n")
    words = ("the_app:SPEC", "the_app:process", *option, "--bind", "127.0.0.1:0")
    with running(*words, cwd=own.parent) as program:
        with socket.create_connection(("127.0.0.1", port(program)), timeout=20) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b""
        text = end(program)[2]
    assert text.count("MINE ERROR protoserve ") == 1
    assert text.count("ValueError: a fault") == 1


NAME_IT = "where it makes one, write SPEC = {0}(...) in the_app, and give the_app:SPEC"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no_such:SPEC", "the_app:process"), "no module 'no_such'; looked in: "),
        (
            ("the_app:SPCE", "the_app:process"),
            "module 'the_app' has no 'SPCE'; it has: SPEC, WITH_DEMO",
        ),
        (
            ("the_app:PORT.SPEC", "the_app:process"),
            "int 'the_app:PORT' has no 'SPEC'; it has: no ProtocolSpec",
        ),
        (
            ("the_app:PORT", "the_app:process"),
            "'the_app:PORT' is of type int; expected a ProtocolSpec",
        ),
        (
            ("the_app:make_spec", "the_app:process"),
            "'the_app:make_spec' is of type function; expected a ProtocolSpec; "
            + NAME_IT.format("make_spec"),
        ),
        (("the_app:make_spec",), NAME_IT.format("make_spec")),
        (
            ("the_app:make_spec()", "the_app:process"),
            "'the_app:make_spec()': nothing is called here; give what it returns a name in "
            "the_app, as in made = make_spec(), and say the_app:made",
        ),
        (("the_app:SPEC", "the_app:make_process(1)"), "as in made = make_process(1), and say"),
        (
            ("the_app:ProtocolSpec", "the_app:process"),
            "'the_app:ProtocolSpec' is a class; expected a ProtocolSpec; "
            + NAME_IT.format("ProtocolSpec"),
        ),
        (
            ("the_app:process", "the_app:SPEC"),
            "'the_app:process' is of type function; expected a ProtocolSpec; "
            "did you mean: protoserve run the_app:SPEC the_app:process",
        ),
        (("the_app:process",), "; did you mean: protoserve run http the_app:process"),
        (
            ("the_app:process", "the_app:process"),
            "'the_app:process' is of type function; expected a ProtocolSpec",
        ),
        (("the_app:", "the_app:process"), "'the_app:': expected MODULE:SPEC, for example my_"),
        ((":SPEC", "the_app:process"), "':SPEC': expected MODULE:SPEC, for example my_protocol:S"),
        (("./the_app.py:SPEC",), "'./the_app.py' is a file name; give the module's name: the_app"),
        (
            ("the_app:SPEC",),
            "MODULE:CALLABLE is missing, and own has no demo; "
            "for example: protoserve run the_app:SPEC my_app:process",
        ),
        (
            ("the_app:SPEC", "the_app:SPEC"),
            "'the_app:SPEC' is of type ProtocolSpec and cannot be called; expected a function",
        ),
    ],
)
def test_what_is_no_spec(
    words: tuple[str, ...], message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words)


def test_a_spec_that_cannot_be_made(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app.write_text(OWN.replace('name="own"', 'name="Own"'))
    line = refused(capsys, "the_app:SPEC", "the_app:process")
    assert line.startswith("importing 'the_app' raised ConfigError: protocol name 'Own': ")
    assert "the_app.py:" in line


# -- options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:0", ("localhost", 0)),
        ("[::]:65535", ("::", 65535)),
        (":8080", (8080,)),
        ("8080", (8080,)),
        ("unix:/run/a:b", ("unix:/run/a:b",)),
        ("unix:a/b", ("unix:a/b",)),
        ("unix:///run/a", ("unix:/run/a",)),
    ],
)
def test_addresses(text: str, start: tuple[object, ...]) -> None:
    args = cli._parser().parse_args(["run", "http", ECHO, "--bind", text])
    assert args.bind == [start]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("localhost", "expected HOST:PORT"),
        ("a:65536", "port from 0 to 65535"),
        ("a:-1", "port from 0 to 65535"),
        ("a:", "expected HOST:PORT"),
        ("::1:80", "in brackets"),
        ("[]:80", "in brackets"),
        ("[::1]80", "expected HOST:PORT"),
        ("unix:", "the path is missing"),
        ("unix://", "the path is missing"),
        ("unix://run/a", "behind the colon: unix:/run/a, or unix:run/a in the current directory"),
        ("http+unix:///run/a", "leave the scheme out: unix:/run/a"),
        ("127.0.0.1", "the port is missing; expected HOST:PORT, for example 127.0.0.1:8888"),
        ("http://127.0.0.1:8000", "leave the scheme out: 127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "leave the scheme out: 127.0.0.1:8000"),
        ("https://[::1]:8000", "leave the scheme out: [::1]:8000"),
        ("tcp:localhost:8000", "leave the scheme out: localhost:8000"),
        ("http+unix:/run/a", "leave the scheme out: unix:/run/a"),
        ("/run/site.sock", "a Unix socket's path goes behind unix:, as in unix:/run/site.sock"),
        ("udp:", "UDP is not served, only streams: HOST:PORT"),
        ("udp:127.0.0.1:8000", "UDP is not served, only streams: HOST:PORT"),
        ("fd:3", "from Python, with serve(descriptor); here it is HOST:PORT"),
    ],
)
def test_addresses_that_make_no_sense(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in misused(capsys, "run", "http", ECHO, "--bind", text)


@pytest.mark.parametrize("field", fields(ServerParams), ids=lambda f: f.name)
def test_every_parameter_is_an_option(field: object) -> None:
    name = field.name  # type: ignore[attr-defined]
    assert cli._PARAMETERS[name]
    option = f"--{name.replace('_', '-')}"
    args = cli._parser().parse_args(["run", "http", ECHO, option, "7"])
    SERVER_PARAMS_DEFAULT.replace(**{name: getattr(args, name)})
    assert getattr(args, name) == 7
    assert name not in cli._parser().parse_args(["run", "http", ECHO])


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("--send-timeout", "none", None),
        ("--send-timeout", "0.5", 0.5),
        ("--max-connections", "NONE", None),
        ("--request-size-limit", "none", None),
        ("--request-size-limit", "100", 100),
        ("--request-size-limit", "3k", 3 * 1024),
        ("--request-size-limit", "16MiB", 16 * 1024**2),
        ("--request-size-limit", "2 gib", 2 * 1024**3),
    ],
)
def test_values(option: str, text: str, value: object) -> None:
    args = cli._parser().parse_args(["run", "http", ECHO, option, text])
    assert getattr(args, option.strip("-").replace("-", "_")) == value


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--send-timeout", "soon", "expected a number of seconds"),
        ("--max-pipelined", "none", "expected a whole number"),
        ("--backlog", "1.5", "expected a whole number"),
        ("--request-size-limit", "16MB", "KiB, MiB or GiB"),
        ("--request-size-limit", "1.5k", "as a whole number"),
        ("--send", "1", "unrecognized arguments: --send"),
    ],
)
def test_values_that_cannot_be_read(
    option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in misused(capsys, "run", "http", ECHO, option, text)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--send-timeout", "-1", "--send-timeout -1: expected a finite number"),
        ("--receive-timeout", "nan", "--receive-timeout nan: expected a finite number"),
        ("--receive-timeout", "0", "--receive-timeout 0 would end every connection at once; give"),
        ("--shutdown-timeout", "1e10", "--shutdown-timeout 1e+10: expected at most a year"),
        ("--max-pipelined", "0", "--max-pipelined 0: expected at least 1"),
        ("--backlog", "9" * 400, f"--backlog {'9' * 400}: expected less than 2**31"),
        ("--ssl-accept-timeout", "5", "--ssl-accept-timeout: this version serves no TLS"),
    ],
)
def test_values_out_of_range(
    option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "http", ANYTHING, option, text)
    assert line.startswith(message)
    assert "_" not in line, "the name of Python's field"
    assert "None" not in line, "it is none here"


def test_parameters_of_a_protocol_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Of that protocol only, wherever it stands."""
    for words in (
        ("run", "http", "--help"),
        ("run", "--stream-bodies", "--keep-alive-timeout", "5", "http", "-h"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert "parameters of this protocol:\n  --stream-bodies, --no-stream-bodies\n" in shown
        assert "is there, before" in " ".join(shown.split())
    for words in (("run", "--help"), ("run", "redis", "--help"), ("run", "nothing", "--help")):
        with pytest.raises(SystemExit):
            main(words)
        assert "of this protocol" not in capsys.readouterr().out
    message = misused(capsys, "run", "redis", ECHO, "--stream-bodies")
    assert message.endswith("unrecognized arguments: --stream-bodies")
    message = misused(capsys, "run", "http", ECHO, "--stream-body")
    assert message.endswith("did you mean --stream-bodies?")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnParams(ServerParams):
    """With a parameter of each kind."""

    flag: bool = True
    frame_size: int = field(default=3 * 1024**2, metadata={"help": "bytes of one frame"})
    patience: float | None = None
    word: str = "there"
    count: int = 5

    def __post_init__(self) -> None:
        ServerParams.__post_init__(self)
        if self.count < 5:
            raise ConfigError(f"count={self.count!r}: expected at least 5, or None")


def test_kinds_of_own_parameters() -> None:
    parser = cli._parser(OwnParams(count=6))
    words = ["--no-flag", "--frame-size", "4KiB", "--patience", "none", "--word", "x", "--count=7"]
    args = parser.parse_args(["run", "own", ECHO, *words])
    assert cli._changes(args, OwnParams()) == {
        "flag": False, "frame_size": 4096, "patience": None, "word": "x", "count": 7,
    }  # fmt: skip
    shown = " ".join(args.parser.format_help().split())
    assert "--frame-size SIZE bytes of one frame (default: 3MiB)" in shown
    assert "(default: there)" in shown
    assert "(default: 6)" in shown
    assert "none for no limit (default: none)" in shown
    assert cli._changes(parser.parse_args(["run", "own", ECHO]), OwnParams()) == {}
    args = parser.parse_args(["run", "own", ECHO, "--count", "4"])
    with pytest.raises(cli._CommandError, match="--count 4: expected at least 5, or none"):
        cli._changes(args, OwnParams())


def test_streamed_bodies_on_the_command_line(app: Path) -> None:
    app.with_name("streams.py").write_text(
        "def process(task):\n    task.resp.write(str(task.req.stream is not None))\n"
    )
    for options, streams in ((["--stream-bodies"], b"True"), ([], b"False")):
        with running(
            "http", "streams:process", "--bind", "127.0.0.1:0", *options, cwd=app.parent
        ) as program:
            client = http.client.HTTPConnection("127.0.0.1", port(program), timeout=20)
            client.request("POST", "/", body=b"x")
            assert client.getresponse().read() == streams
            client.close()
            assert end(program) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--port", "80"), "; did you mean --bind 127.0.0.1:80?"),
        (("--port=80",), "; did you mean --bind 127.0.0.1:80?"),
        (("-p", "80"), "; did you mean --bind 127.0.0.1:80?"),
        (("-p80",), "; did you mean --bind 127.0.0.1:80?"),
        (("-p=80",), "; did you mean --bind 127.0.0.1:80?"),
        (("-bhere:80",), "; did you mean --bind HOST:PORT?"),
        (("--foo=bar", "--port", "80"), "; did you mean --bind 127.0.0.1:80?"),
        (
            ("--threads", "5", "-x", "-l", "info"),
            "; did you mean --handler-threads and --log-level?",
        ),
        (("--host", "0.0.0.0"), "; did you mean --bind HOST:PORT?"),
        (("--keepalive", "5"), "; did you mean --keep-alive-timeout?"),
        (("--keep-alive-timout", "5"), "; did you mean --keep-alive-timeout?"),
        (("--threads", "5"), "; did you mean --handler-threads?"),
        (("--acces-log",), "; did you mean --access-log?"),
        (("--nothing-like-it", "5"), "unrecognized arguments: --nothing-like-it"),
        (("the_app:process",), "unrecognized arguments: the_app:process"),
    ],
)
def test_an_option_that_was_meant(
    words: tuple[str, ...], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = misused(capsys, "run", "http", ECHO, *words)
    assert message.startswith(f"protoserve run: error: unrecognized arguments: {words[0]}")
    assert message.endswith(meant)
    if words[0].startswith("-"):
        # Before the rest, where a value is taken for the protocol.
        hint = meant.partition(" 127")[0]
        assert hint in misused(capsys, "run", *words, "http", ECHO)


def test_every_name_that_is_suggested_exists() -> None:
    options = cli._parser().parse_args(["run", "http"]).parser._option_string_actions
    assert {meant.split()[0] for meant in cli._OTHER_NAMES.values()} <= set(options)
    assert not set(cli._OTHER_NAMES) & set(options)


def test_no_command_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in misused(capsys)


@pytest.mark.parametrize("command", [[sys.executable, "-m", "protoserve"], ["protoserve"]])
def test_the_command_and_the_module_are_the_same(command: list[str]) -> None:
    folder = Path(sys.executable).parent
    path = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        [*command, "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PATH": path},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"protoserve \d+\.\d+\.\d+ \({BUILD}\)\n", done.stdout)


# -- plugins ---------------------------------------------------------------------------

LISTED = [
    InstalledPlugin("http", "protoserve", "0.1.0", "protoserve_http.plugin", ("http",), "ok", ""),
    InstalledPlugin("ill", "some-ill", "12", "ill", (), "failed", "importing 'ill' raised \udc80"),
]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed() -> list[InstalledPlugin]:
        print("a plugin's own words")
        return LISTED

    monkeypatch.setattr(cli, "installed_plugins", installed)


@pytest.mark.usefixtures("listed")
def test_the_table_of_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "PLUGIN  DISTRIBUTION  VERSION  PROTOCOLS  STATUS  REASON",
        "http    protoserve    0.1.0    http       ok",
        r"ill     some-ill      12       -          failed  importing 'ill' raised \udc80",
    ]
    assert err == "a plugin's own words\n"


@pytest.mark.usefixtures("listed")
def test_the_plugins_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--json"]) == 0
    good, ill = json.loads(capsys.readouterr().out)
    assert good == {
        "name": "http",
        "distribution": "protoserve",
        "version": "0.1.0",
        "entry_point": "protoserve_http.plugin",
        "protocols": ["http"],
        "status": "ok",
        "reason": "",
        "remedy": "",
        "hooks": [],
    }
    assert ill["status"] == "failed"


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"]])
def test_nobody_reads_the_output(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "protoserve", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
