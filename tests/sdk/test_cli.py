"""The command: what it prints, how it ends, and that it says what is wrong in one line."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from textwrap import dedent

import pytest

from protoserve import SERVER_PARAMS_DEFAULT, InstalledPlugin, ServerParams, WFServerBase, cli
from protoserve.cli import main

ROOT = Path(__file__).parent.parent.parent
ECHO = "examples.http_echo:process"
ANYTHING = "protoserve_http:HttpResponse"  # it can be called, and is not
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
        client = http.client.HTTPConnection("127.0.0.1", port(program), timeout=20)
        for _ in range(2):
            client.request("GET", "/")
            client.getresponse().read()
        client.close()
        _, out, err = end(program)
    assert out == ""
    first, second = err.splitlines()
    assert re.search(r" INFO 127\.0\.0\.1:\d+ request 0: SUCCESS in \d+\.\d ms$", first)
    assert " request 1: SUCCESS" in second


# -- what cannot be served -------------------------------------------------------------


def test_an_unknown_protocol_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "htpp", ECHO)
    assert re.fullmatch(r"no protocol 'htpp' is installed; installed: .*\bhttp\b.*", message)


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
        ("proces", "module 'the_app' has no 'proces'; it has: Site, process"),
        ("site.serv", "Site 'the_app:site' has no 'serv'; it has: serve"),
        ("port", "'the_app:port' is of type int and cannot be called"),
        ("site.name", "'the_app:site.name' is of type str and cannot be called"),
        ("site.trouble", "the_app:site.trouble raised OSError: trouble (.*the_app.py:10)"),
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
    ],
)
def test_addresses(text: str, start: tuple[object, ...]) -> None:
    args = cli._parser().parse_args(["run", "http", ECHO, "--bind", text])
    assert args.bind == start


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
        ("--send-timeout", "-1", "send_timeout=-1.0: expected a finite number"),
        ("--receive-timeout", "nan", "receive_timeout=nan: expected a finite number"),
        ("--max-pipelined", "0", "max_pipelined=0: expected at least 1"),
    ],
)
def test_values_out_of_range(
    option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "http", ANYTHING, option, text).startswith(message)


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
    assert re.fullmatch(r"protoserve \d+\.\d+\.\d+\n", done.stdout)


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
    }
    assert ill["status"] == "failed"


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"], ["run", "http", ECHO]])
def test_nobody_reads_the_output(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    if arguments[0] == "run":
        arguments = [*arguments, "--bind", "127.0.0.1:0"]
    command = [sys.executable, "-m", "protoserve", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
