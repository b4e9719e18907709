"""The hooks of plugins: each does what its contract says, and a broken one costs nobody."""

from __future__ import annotations

import socket
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from plugin_site import GOOD, Site
from test_cli import end, lines_of, refused, running

from protoserve import PluginError, WFServer, plugins
from protoserve.plugins import PluginHooks, PluginRegistry

ECHO = "examples.http_echo:process"


def answer(task: Any) -> None:
    task.resp = task.req.upper() + b"\n"


def make_server(registry: PluginRegistry) -> WFServer[Any, Any]:
    return WFServer(registry.load_protocol("line"), answer)


def ask(server: WFServer[Any, Any], line: bytes) -> bytes:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(line + b"\n")
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()


def serve(hooks: PluginHooks, server: WFServer[Any, Any]) -> None:
    """As the command does it."""
    hooks.observe(server)
    with server.start("127.0.0.1", 0):
        hooks.started(server)
        assert ask(server, b"hello") == b"HELLO\n"
    hooks.stopped(server)


@pytest.fixture
def registry(site: Site) -> PluginRegistry:
    """With a protocol ``line``."""
    site.serve("good-line", "line")
    return site.registry()


def loaded(site: Site, source: str, name: str = "gauge") -> tuple[PluginRegistry, ModuleType]:
    """A registry with the plugin, and its module, whose ``seen`` is a list."""
    module = site.install(f"some-{name}", name, f"seen = []\n{source}")
    registry = site.registry()
    registry.load_hooks("line", [name])
    return registry, sys.modules[module]


# -- one by one ------------------------------------------------------------------------


def test_protoserve_register_protocols(site: Site) -> None:
    source = """
from protoserve import ProtocolSpec, hookimpl
from protoserve.framing import lines
calls = []

@hookimpl
def protoserve_register_protocols(register):
    calls.append(register)
    for name in ("line", "other"):
        register(
            ProtocolSpec(name=name, message_in=lines(), message_out=bytes, response=bytes)
        )
"""
    module = site.install("two-lines", "line", source)
    registry = site.registry()
    assert [registry.load_protocol(name).name for name in ("other", "line")] == ["other", "line"]
    assert len(sys.modules[module].calls) == 1
    with make_server(registry).start("127.0.0.1", 0) as server:
        assert ask(server, b"hello") == b"HELLO\n"


@pytest.mark.usefixtures("registry")
def test_protoserve_register_observers(site: Site) -> None:
    source = """
from protoserve import hookimpl

@hookimpl
def protoserve_register_observers(register, server):
    assert server.spec.name == "line"
    register(lambda event: seen.append((server, type(event).__name__)))
"""
    registry, module = loaded(site, source)
    hooks = registry.load_hooks("line", ["gauge"])
    servers = [make_server(registry), make_server(registry)]
    for server in servers:
        hooks.observe(server)
        assert len(server.observers) == 1
        with server.start("127.0.0.1", 0):
            assert ask(server, b"hello") == b"HELLO\n"
    for server in servers:
        kinds = [kind for observed, kind in module.seen if observed is server]
        assert kinds[0] == "ListenerStarted"
        assert kinds.count("RequestFinished") == 1
        assert {"ConnectionOpened", "ConnectionClosed", "ListenerStopped"} <= set(kinds)


@pytest.mark.usefixtures("registry")
def test_protoserve_server_started(site: Site) -> None:
    source = """
from protoserve import hookimpl

@hookimpl
def protoserve_server_started(server):
    seen.append(server.url)
"""
    registry, module = loaded(site, source)
    hooks = registry.load_hooks("line", ["gauge"])
    server = make_server(registry)
    hooks.observe(server)
    with server.start("127.0.0.1", 0):
        assert module.seen == []
        hooks.started(server)
        assert module.seen == [server.url]
    hooks.stopped(server)
    assert len(module.seen) == 1


@pytest.mark.usefixtures("registry")
def test_protoserve_server_stopped(site: Site) -> None:
    source = """
from protoserve import hookimpl

@hookimpl
def protoserve_server_stopped(server):
    seen.append((server, server.conn_count, server.stopping))
"""
    registry, module = loaded(site, source)
    server = make_server(registry)
    serve(registry.load_hooks("line", ["gauge"]), server)
    assert module.seen == [(server, 0, True)]


# -- who takes part --------------------------------------------------------------------

ALL = """
from protoserve import hookimpl

@hookimpl
def protoserve_register_observers(register):
    seen.append("observers")

@hookimpl
def protoserve_server_started():
    seen.append("started")

@hookimpl
def protoserve_server_stopped():
    seen.append("stopped")
"""


def test_the_plugin_of_the_protocol_takes_part(site: Site) -> None:
    own = site.install("good-line", "line", "seen = []" + GOOD.format(names=("line",)) + ALL)
    other = site.install("some-gauge", "gauge", "seen = []\n" + ALL)
    registry = site.registry()
    serve(registry.load_hooks("line"), make_server(registry))
    assert sys.modules[own].seen == ["observers", "started", "stopped"]
    assert other not in site.imported, "nobody has asked for it"


@pytest.mark.usefixtures("registry")
def test_a_plugin_that_is_named_twice_takes_part_once(site: Site) -> None:
    registry, module = loaded(site, ALL)
    serve(registry.load_hooks("line", ["gauge", "line", "gauge"]), make_server(registry))
    assert module.seen == ["observers", "started", "stopped"]


@pytest.mark.usefixtures("registry")
def test_the_last_that_started_stops_first(site: Site) -> None:
    order = site.module("seen = []")
    for name in ("one", "two"):
        site.install(f"some-{name}", name, f"from {order} import seen\n" + ALL.replace(
            'seen.append("', f'seen.append("{name} '))  # fmt: skip
    registry = site.registry()
    serve(registry.load_hooks("line", ["one", "two"]), make_server(registry))
    assert sys.modules[order].seen == [
        *("one observers", "two observers", "one started", "two started"),
        *("two stopped", "one stopped"),
    ]


@pytest.mark.usefixtures("registry")
def test_a_plugin_without_a_protocol_is_listed(site: Site) -> None:
    registry, _ = loaded(site, ALL)
    gauge, line = registry.installed_plugins()
    assert (gauge.name, gauge.status, gauge.protocols) == ("gauge", "ok", ())
    assert gauge.hooks == (
        "protoserve_register_observers",
        "protoserve_server_started",
        "protoserve_server_stopped",
    )
    assert line.hooks == ()
    with pytest.raises(PluginError, match=r"has no protocol.* run PROTOCOL --plugin gauge$"):
        registry.load_protocol("gauge")


def test_names_that_cannot_be_used(registry: PluginRegistry, site: Site) -> None:
    with pytest.raises(PluginError) as caught:
        registry.load_hooks("line", ["lime"])
    assert str(caught.value) == (
        "no plugin 'lime' is installed; installed: line; did you mean line?"
    )
    site.install("broken-one", "broken", "1 / 0")
    site.install("greedy", "greedy", GOOD.format(names=("line", "greedy")))
    registry = site.registry()
    with pytest.raises(PluginError, match=r"of broken-one 1\.0 cannot be used: importing"):
        registry.load_hooks("line", ["broken"])
    with pytest.raises(PluginError, match="protocol 'line' is taken by"):
        registry.load_hooks("line", ["greedy"])
    with pytest.raises(PluginError, match="no protocol 'lime'"):
        registry.load_hooks("lime")


# -- broken hooks ----------------------------------------------------------------------

BROKEN = {
    "raises": ("(server):\n  1 / 0", "raised ZeroDivisionError: division by zero"),
    "exits": ("(server):\n  raise SystemExit(3)", "raised SystemExit: 3"),
    "returns": ("(server):\n  return 7", "the hook returned int"),
    "is a coroutine": ("(server): ...", "the hook returned coroutine"),
    "blocks": ("(server):\n  come_on.wait()", "still runs after 3 seconds"),
}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize(
    "hook",
    [
        "protoserve_register_observers",
        "protoserve_server_started",
        "protoserve_server_stopped",
    ],
)
def test_a_broken_hook_costs_a_line_in_the_log(
    site: Site, kind: str, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    body, reason = BROKEN[kind]
    source = "import threading\nfrom protoserve import hookimpl\ncome_on = threading.Event()\n"
    source += f"@hookimpl\n{'async ' * (kind == 'is a coroutine')}def {hook}{body}\n"
    neighbour = site.install("a-neighbour", "neighbour", "seen = []\n" + ALL)
    registry, module = loaded(site, source)
    hooks = registry.load_hooks("line", ["gauge", "neighbour"])
    serve(hooks, make_server(registry))
    (record,) = (r for r in caplog.records if r.levelname == "ERROR")
    text = record.getMessage()
    assert text.startswith("plugin 'gauge' of some-gauge 1.0: ")
    assert reason in text
    assert hook in text
    line = 5 if kind in ("returns", "is a coroutine") else 7  # where it begins, or fails
    assert f"({module.__file__}:{line})" in text
    assert sys.modules[neighbour].seen == ["observers", "started", "stopped"]


OBSERVERS = {
    "no observer": ("register(7)", "raised TypeError: register(7): an observer is called with"),
    "hides its fault": (
        "\n  try: register(None)\n  except TypeError: pass",
        "raised TypeError: register(None)",
    ),
    "raises in between": (
        "\n  register(seen.append)\n  1 / 0",
        "raised ZeroDivisionError: division by zero",
    ),
}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("kind", OBSERVERS)
def test_all_observers_or_none(site: Site, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    body, reason = OBSERVERS[kind]
    source = (
        "from protoserve import hookimpl\n@hookimpl\ndef protoserve_register_observers(register): "
    )
    registry, module = loaded(site, source + body)
    server = make_server(registry)
    serve(registry.load_hooks("line", ["gauge"]), server)
    assert server.observers == ()
    assert module.seen == []
    (record,) = (r for r in caplog.records if r.levelname == "ERROR")
    assert reason in record.getMessage()


@pytest.mark.usefixtures("registry")
def test_an_observer_that_raises_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    source = "from protoserve import hookimpl\n@hookimpl\n"
    source += "def protoserve_register_observers(register): register(lambda event: 1 / 0)"
    registry, _ = loaded(site, source)
    serve(registry.load_hooks("line", ["gauge"]), make_server(registry))
    assert "an observer raised at ListenerStarted" in caplog.text


@pytest.mark.usefixtures("registry")
def test_an_observer_that_is_registered_too_late(site: Site) -> None:
    source = """
from protoserve import hookimpl

@hookimpl
def protoserve_register_observers(register):
    global later
    later = register
"""
    registry, module = loaded(site, source)
    server = make_server(registry)
    registry.load_hooks("line", ["gauge"]).observe(server)
    with pytest.raises(PluginError, match="after the hook had returned; its observer is not used"):
        module.later(print)
    assert server.observers == ()


@pytest.mark.usefixtures("registry")
def test_hooks_run_in_a_thread_of_their_own(site: Site) -> None:
    """So that one that blocks can be left behind."""
    source = "import threading\n" + ALL.replace('"started"', "threading.current_thread()")
    registry, module = loaded(site, source)
    serve(registry.load_hooks("line", ["gauge"]), make_server(registry))
    thread = module.seen[1]
    assert isinstance(thread, threading.Thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_no_hook_of_pluggy_is_called_for_a_request(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("good-line", "line", "seen = []" + GOOD.format(names=("line",)) + ALL)
    registry = site.registry()
    hooks = registry.load_hooks("line")
    server = make_server(registry)
    hooks.observe(server)
    calls = []
    for _, manager in hooks._managers:
        manager.add_hookcall_monitoring(lambda name, *_: calls.append(name), lambda *_: None)
    with server.start("127.0.0.1", 0):
        for _ in range(3):
            assert ask(server, b"hello") == b"HELLO\n"
        assert calls == []
        hooks.started(server)
        assert calls == ["protoserve_server_started"]


# -- the command -----------------------------------------------------------------------

PRINTS = """
from protoserve import hookimpl
from protoserve.events import RequestFinished

count = 0

def observe(event):
    global count
    count += isinstance(event, RequestFinished)

@hookimpl
def protoserve_register_observers(register):
    register(observe)

@hookimpl
def protoserve_server_started(server):
    print("started", server.url, flush=True)

@hookimpl
def protoserve_server_stopped(server):
    print("stopped", count, flush=True)
"""


def test_a_plugin_that_the_command_names(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("some-gauge", "gauge", PRINTS)
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    with running("http", ECHO, "--bind", "127.0.0.1:0", "--plugin", "gauge") as program:
        started, listening = lines_of(program, 2)
        url = listening.removeprefix("listening on ")
        assert started == f"started {url}"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 20) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")
        assert end(program) == (0, "stopped 1\n", "")


def test_of_several_addresses_each_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("some-gauge", "gauge", PRINTS)
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    binds = ("--bind", "127.0.0.1:0", "--bind", "127.0.0.1:0")
    with running("http", ECHO, *binds, "--plugin", "gauge") as program:
        lines = lines_of(program, 4)
        assert [line.split()[0] for line in lines] == ["started"] * 2 + ["listening"] * 2
        assert end(program) == (0, "stopped 0\nstopped 0\n", "")


def test_a_plugin_that_the_command_cannot_use(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.serve("good-line", "line")
    site.install("broken-one", "broken", "1 / 0")
    monkeypatch.setattr(plugins.registry, "_registry", site.registry())
    message = refused(capsys, "line", ECHO, "--plugin", "gauge")
    assert message == "--plugin: no plugin 'gauge' is installed; installed: broken, line"
    message = refused(capsys, "line", ECHO, "--plugin", "broken")
    assert message.startswith(
        "--plugin: plugin 'broken' of broken-one 1.0 cannot be used: importing "
    )
    assert message.endswith("or uninstall it: pip uninstall broken-one")
    # Not that its options are unknown.
    message = refused(capsys, "broken", ECHO, "--loud")
    assert message.startswith("protocol 'broken': plugin 'broken' of broken-one 1.0 cannot be")
