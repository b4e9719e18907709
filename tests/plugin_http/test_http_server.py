"""WFHttpServer over loopback: the plugin, the engine and real clients together."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from example_modules import EXAMPLES, load

from protoserve.events import RequestRefused
from protoserve_http import HTTP_SPEC, WFHttpServer, WFHttpTask, plugin


def process(task: WFHttpTask) -> None:
    if task.req.path == "/raise":
        raise RuntimeError("a secret")
    if task.req.path == "/split":
        task.resp.headers["Location"] = task.req.query + "\r\nSet-Cookie: x=y"
    if task.req.path == "/pieces":
        task.resp.body = iter(["a", "b"])
        return
    task.resp.write(f"{task.req.method} {task.req.target} {len(task.req.body)}")


@pytest.fixture
def server() -> Iterator[WFHttpServer]:
    with WFHttpServer(process).start("127.0.0.1", 0) as server:
        yield server


def talk(server: WFHttpServer, data: bytes) -> bytes:
    """Everything the server answers to ``data`` until it closes."""
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_keep_alive(server: WFHttpServer) -> None:
    client = HTTPConnection(*server.address, timeout=10)
    for i in range(10):
        client.request("POST", f"/{i}", body=b"x" * i)
        response = client.getresponse()
        assert response.read() == f"POST /{i} {i}".encode()
        assert response.headers["Connection"] is None
    client.close()


def test_pipelined_in_order_then_close(server: WFHttpServer) -> None:
    data = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(50))
    answer = talk(server, data + b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nrest")
    places = [answer.index(b"GET /%d 0" % i) for i in range(50)]
    assert places == sorted(places)
    assert answer.endswith(b"GET /end 0")
    assert answer.count(b"Connection: close\r\n") == 1


def test_farewell_after_good_requests(server: WFHttpServer) -> None:
    answer = talk(server, b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"GET /1 0HTTP/1.1 400 Bad Request\r\n" in answer
    assert answer.endswith(b"\r\n\r\nan HTTP/1.1 request needs a Host header\n")


def test_continue(server: WFHttpServer) -> None:
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(
            b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hi")
        assert b"".join(iter(lambda: sock.recv(65536), b"")).endswith(b"PUT / 2")


def test_methods_are_the_handlers_matter(server: WFHttpServer) -> None:
    client = HTTPConnection(*server.address, timeout=10)
    for method in ("VERSION-CONTROL", "LABEL", "get", "x" * 64):
        client.request(method, "/", body=b"hi")
        assert client.getresponse().read() == f"{method} / 2".encode()
        assert client.sock is not None  # the connection stays
    client.close()


def test_close_wins(server: WFHttpServer) -> None:
    for version, options in (("1.0", "close, keep-alive"), ("1.1", "keep-alive, close")):
        request = f"GET / HTTP/{version}\r\nHost: a\r\nConnection: {options}\r\n\r\n".encode()
        answer = talk(server, request * 2)
        assert answer.count(b"HTTP/1.1 200 OK\r\n") == 1
        assert b"\r\nConnection: close\r\n" in answer


def test_chunk_extensions_smuggle_nothing(server: WFHttpServer) -> None:
    head = b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(server, head + b'1;a="b\r\nX\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n')
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"evil" not in answer


def test_farewell_to_head_has_no_content(server: WFHttpServer) -> None:
    answer = talk(server, b"HEAD /a b HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith(b"\r\n\r\n")


NODE = """
const http = require('http');
const agent = new http.Agent({keepAlive: true, maxSockets: 1});
const ask = (method) => new Promise((done, failed) => {
  const options = {host: '127.0.0.1', port: +process.argv[1], path: '/pieces', method, agent};
  const request = http.request(options, (response) => {
    response.resume();
    response.on('end', () => setImmediate(done, request.reusedSocket));
  });
  request.on('error', failed);
  request.end();
});
(async () => {
  const reused = [];
  for (const method of ['GET', 'HEAD', 'HEAD', 'GET']) reused.push(await ask(method));
  console.log(reused.join(' '));
  agent.destroy();
})();
"""


def test_nodes_agent_keeps_the_connection_after_head(server: WFHttpServer) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    arguments = [node, "-e", NODE, str(server.address[1])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "false true true true\n"


@pytest.mark.parametrize("target", ["/raise", "/split?x"])
def test_failures_become_500(
    server: WFHttpServer, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = HTTPConnection(*server.address, timeout=10)
    client.request("GET", target)
    response = client.getresponse()
    assert response.status == 500
    assert response.read() == b"Internal Server Error\n"
    assert response.headers["Set-Cookie"] is None
    client.request("GET", "/fine")
    assert client.getresponse().read() == b"GET /fine 0"
    client.close()
    assert len(caplog.records) == 1


def test_stopped_server_closes_idle_connections(server: WFHttpServer) -> None:
    client = HTTPConnection(*server.address, timeout=10)
    client.request("GET", "/")
    client.getresponse().read()
    assert server.stop() == 0
    assert client.sock is not None
    assert client.sock.recv(1) == b""
    client.close()


def test_parameters() -> None:
    assert WFHttpServer(process).params is HTTP_SPEC.params
    params = HTTP_SPEC.params.replace(keep_alive_timeout=0)
    with WFHttpServer(process, params).start("127.0.0.1", 0) as server:
        assert server.url == f"http://127.0.0.1:{server.address[1]}"
        assert b"\r\nConnection: close\r\n" in talk(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")


def test_plugin_registers_its_protocol() -> None:
    registered: list[object] = []
    plugin.protoserve_register_protocols(registered.append)
    assert registered == [HTTP_SPEC]


def test_echo_example_escapes() -> None:
    module = load("http_echo")
    with WFHttpServer(module.process).start("127.0.0.1", 0) as server:
        client = HTTPConnection(*server.address, timeout=10)
        client.request("GET", "/?<script>", headers={"X-Name": "<b>&"})
        response = client.getresponse()
        page = response.read().decode()
        client.close()
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<p>GET /?&lt;script&gt; HTTP/1.1</p>" in page
    assert "<p>X-Name: &lt;b&gt;&amp;</p>" in page


@pytest.mark.parametrize("args", [["x"], ["70000"], ["-1"], ["1", "2"]])
def test_echo_example_usage(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert load("http_echo").main(args) == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_echo_example_busy_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        port = sock.getsockname()[1]
        assert load("http_echo").main([str(port)]) == 1
    assert str(port) in capsys.readouterr().err


def test_two_servers_example() -> None:
    program = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "two_servers.py")], stdout=subprocess.PIPE, text=True
    )
    with program:
        try:
            assert program.stdout is not None
            words = program.stdout.readline().replace(",", "").split()
            urls = [word for word in words if word.startswith("http://")]
            pages = []
            for url in urls:
                client = HTTPConnection(url.removeprefix("http://"), timeout=10)
                client.request("GET", "/x")
                pages.append(client.getresponse().read())
                client.close()
            assert pages == [b"the site, /x\n", b"everything is fine\n"]
            program.send_signal(signal.SIGTERM)
            assert program.wait(timeout=20) == 0
        finally:
            program.kill()


def test_a_refusal_tells_nothing_of_what_the_client_sent() -> None:
    events: list[RequestRefused] = []
    server = WFHttpServer(lambda task: None)
    server.subscribe(lambda e: events.append(e) if isinstance(e, RequestRefused) else None)
    odd = b"\x9b31m\x85 GET /admin 200"
    with server.start("127.0.0.1", 0):
        for data in (
            b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b, chunked\r\n\r\n" % odd,
            b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % odd,
            b"GET / HTTP/1.1\r\nHost: a\r\nExpect: %b\r\n\r\n" % odd,
            b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % odd,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\n" % odd,
            b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % odd,
        ):
            with socket.create_connection(server.address, timeout=10) as client:
                client.sendall(data)
                assert b"admin" not in client.makefile("rb").read()
    assert len(events) == 6
    assert all(event.message.isprintable() and event.message.isascii() for event in events)
