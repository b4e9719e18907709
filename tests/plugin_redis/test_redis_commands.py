"""CommandTable and the connection's commands, in Redis' own words."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_tables import RawClient, table, talk

from protoserve_redis import NO_REPLY, CommandTable, RedisError, WFRedisServer, glob, session_of

# One connection each; sent to a real server as well, where there is one.
CONVERSATIONS: dict[str, list[bytes]] = {
    "errors": [
        b"FOO a b",
        b"foo",
        b'"fo\\no" "a\\r\\nb"',
        b"foo " + b"x" * 100 + b" " + b"y" * 100 + b" z",
        b'"' + b"n" * 200 + b'" a',
        b'foo "\\xff\\xfe"',
        b"get",
        b"gEt a b",
        b"client foo",
        b"client",
        b"CLIENT ID x",
        b"ping a b",
        b"PING hi",
        b"ECHO",
        b"echo \xc3\xa4",
    ],
    "select": [
        b"SELECT a",
        b"SELECT 16",
        b"SELECT -1",
        b"SELECT 01",
        b"SELECT 99999999999999999999",
        b"SET k v",
        b"SELECT 3",
        b"GET k",
        b"SELECT 0",
        b"GET k",
    ],
    "client": [
        b"CLIENT GETNAME",
        b'CLIENT SETNAME "a b"',
        b"CLIENT SETNAME ab",
        b"CLIENT GETNAME",
        b'CLIENT SETNAME ""',
        b"CLIENT GETNAME",
        b"CLIENT LIST TYPE pubsub",
        b"CLIENT LIST TYPE foo",
        b"CLIENT LIST FOO",
        b"CLIENT LIST ID a",
        b"CLIENT KILL 1.2.3.4:5",
        b"CLIENT KILL ID a",
        b"CLIENT KILL ID 0",
        b"CLIENT KILL ID 99999",
        b"CLIENT KILL TYPE foo",
        b"CLIENT KILL ID",
        b"CLIENT KILL FOO 1",
        b"CLIENT KILL SKIPME maybe",
        b"CLIENT NO-EVICT on",
        b"CLIENT NO-EVICT foo",
        b"CLIENT REPLY foo",
        b"CLIENT REPLY ON",
    ],
    "hello": [
        b"HELLO 4",
        b"HELLO 1",
        b"HELLO a",
        b"HELLO 2 FOO",
        b"HELLO 2 AUTH a b",
        b"HELLO 2 AUTH a",
        b'HELLO 2 SETNAME "a b"',
        b"GET missing",
        b"AUTH a",
        b"AUTH a b",
        b"AUTH default b",
        b"AUTH a b c",
        b"AUTH",
        b"RESET",
        b"RESET x",
    ],
    "command": [
        b"COMMAND DOCS foo",
        b"COMMAND GETKEYS get a",
        b"COMMAND GETKEYS mset a 1 b 2",
        b"COMMAND LIST FILTERBY MODULE foo",
        b"COMMAND LIST FILTERBY FOO foo",
        b"COMMAND LIST X",
        b"COMMAND COUNT x",
        b"COMMAND FOO",
        b"COMMAND INFO foo",
    ],
    "quit": [b"QUIT", b""],
    "quit with arguments": [b"quit now please", b""],
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A redis-server of our own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server (a package of every distribution)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address: tuple[str, int] = free.getsockname()
    folder: Path = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        [program, "--port", str(address[1]), "--save", "", "--daemonize", "no"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(1000):
            try:
                socket.create_connection(address, timeout=10).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "redis-server did not start"
                time.sleep(0.01)  # nothing to wait for but the port
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def server() -> Iterator[WFRedisServer]:
    with WFRedisServer(table(server_version="7.0.15")).start("127.0.0.1", 0) as server:
        yield server


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_same_words_as_redis(server: WFRedisServer, real: tuple[str, int], name: str) -> None:
    with RawClient(server.address) as ours, RawClient(real) as theirs:
        for line in CONVERSATIONS[name]:
            if line:
                assert (line, ours.ask(line)) == (line, theirs.ask(line))
            else:
                assert (ours.reply(), theirs.reply()) == (b"", b"")


def test_words_without_redis(server: WFRedisServer) -> None:
    with RawClient(server.address) as client:
        assert client.ask(b"FOO a b") == (
            b"-ERR unknown command 'FOO', with args beginning with: 'a' 'b' \r\n"
        )
        assert client.ask(b"get") == b"-ERR wrong number of arguments for 'get' command\r\n"
        assert client.ask(b"CLIENT x") == b"-ERR unknown subcommand 'x'. Try CLIENT HELP.\r\n"
        assert client.ask(b"HELLO 9") == b"-NOPROTO unsupported protocol version\r\n"
        assert client.ask(b"CLIENT SETINFO x y") == b"-ERR Unrecognized option 'x'\r\n"
        assert b"+SETNAME\r\n" in client.ask(b"CLIENT HELP")


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(server: WFRedisServer, protocol: int) -> None:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=protocol, client_name="me") as client:
        client.set("k", b"v")
        assert client.get("k") == b"v"
        assert client.client_getname() in ("me", b"me")
        me = client.client_info()
        assert me["resp"] == str(protocol)
        assert me["lib-name"].startswith("redis-py")
        assert [int(line["id"]) for line in client.client_list()] == [me["id"]]
        assert client.command_count() == len(client.command())
        assert client.command_getkeys("MSET", "a", 1, "b", 2) in ([b"a", b"b"], ["a", "b"])
        with pytest.raises(redis.ResponseError, match="unknown command 'NOPE'"):
            client.execute_command("NOPE")


def test_lookup_forgets_nothing_and_stays_small() -> None:
    commands = table()
    for i in range(1 << 13):
        spelling = "".join(
            c.upper() if i >> n & 1 else c for n, c in enumerate("punsubscribe")
        ).encode()
        assert commands.find(spelling) is commands.commands[b"PUNSUBSCRIBE"]
    assert len(commands._lookup) <= 4096 + len(commands.commands)
    assert commands.find(b"nothing") is None


def test_async_commands_and_late_errors() -> None:
    commands = CommandTable()

    @commands.command("SLOW", arity=2)
    async def slow(task: Any, word: bytes) -> bytes:
        await asyncio.sleep(0)
        if word == b"fail":
            raise RedisError("ERR late")
        return word

    @commands.command("LATER", arity=1)
    def later(task: Any) -> Any:
        return slow(task, b"later")

    @commands.command("BROKEN", arity=1)
    def broken(task: Any) -> Any:
        raise RuntimeError("a secret")

    with talk(commands) as client:
        client.send(b"SLOW a\r\nSLOW fail\r\nLATER\r\nBROKEN\r\nPING")
        assert client.reply() == b"$1\r\na\r\n"
        assert client.reply() == b"-ERR late\r\n"
        assert client.reply() == b"$5\r\nlater\r\n"
        assert client.reply() == b"-ERR internal error\r\n"
        assert client.reply() == b"+PONG\r\n"


def test_plain_commands_run_one_at_a_time() -> None:
    commands = CommandTable()
    inside = threading.Lock()
    overlaps = []

    @commands.command("WORK", arity=1)
    def work(task: Any) -> int:
        free = inside.acquire(blocking=False)
        overlaps.append(not free)
        time.sleep(0.01)  # longer than a thread may block before it gets a substitute
        if free:
            inside.release()
        return 1

    with WFRedisServer(commands).start("127.0.0.1", 0) as server:
        clients = [RawClient(server.address) for _ in range(4)]
        for client in clients:
            client.send(b"WORK\r\nWORK\r\nWORK")
        for client in clients:
            assert [client.reply() for _ in range(3)] == [b":1\r\n"] * 3
            client.sock.close()
    assert overlaps == [False] * 12


# -- authentication --------------------------------------------------------------------


def test_password() -> None:
    commands = table(password="secret")
    with WFRedisServer(commands).start("127.0.0.1", 0) as server:
        host, port = server.address
        with RawClient(server.address) as client:
            assert client.ask(b"PING") == b"-NOAUTH Authentication required.\r\n"
            assert client.ask(b"foo").startswith(b"-ERR unknown command 'foo'")
            assert client.ask(b"get").startswith(b"-ERR wrong number")
            assert client.ask(b"HELLO 3").startswith(b"-NOAUTH HELLO must be called")
            assert client.ask(b"AUTH wrong").startswith(b"-WRONGPASS invalid username-password")
            assert client.ask(b"HELLO 3 AUTH default wrong").startswith(b"-WRONGPASS")
            assert client.ask(b"AUTH other secret").startswith(b"-WRONGPASS")
        with RawClient(server.address) as client:
            assert client.ask(b"AUTH secret") == b"+OK\r\n"
            assert client.ask(b"PING") == b"+PONG\r\n"
            assert client.ask(b"SET k " + b"x" * 20000) == b"+OK\r\n"
            assert client.ask(b"RESET") == b"+RESET\r\n"
            assert client.ask(b"PING") == b"-NOAUTH Authentication required.\r\n"
        for protocol in (2, 3):
            with redis.Redis(host=host, port=port, password="secret", protocol=protocol) as good:
                assert good.ping()
            with (
                redis.Redis(
                    host=host,
                    port=port,
                    password="no",
                    protocol=protocol,
                    retry=Retry(NoBackoff(), 0),
                ) as bad,
                pytest.raises(redis.AuthenticationError),
            ):
                bad.ping()


def test_limits_before_authentication() -> None:
    with talk(table(password="secret")) as client:
        client.sock.sendall(b"*11\r\n")
        assert client.reply() == b"-ERR Protocol error: unauthenticated multibulk length\r\n"
        assert client.reply() == b""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_authenticate_callback(asynchronous: bool) -> None:
    seen = []

    def check(user: str, password: str) -> bool:
        seen.append((user, password))
        return (user, password) == ("ann", "pw")

    async def check_later(user: str, password: str) -> bool:
        await asyncio.sleep(0)
        return check(user, password)

    commands = CommandTable(authenticate=check_later if asynchronous else check)
    with talk(commands) as client:
        assert client.ask(b"AUTH pw").startswith(b"-WRONGPASS")
        assert client.ask(b"HELLO 3 AUTH ann no").startswith(b"-WRONGPASS")
        assert client.ask(b"HELLO 3 AUTH ann pw SETNAME x").startswith(b"%7\r\n")
        assert client.ask(b"CLIENT GETNAME") == b"$1\r\nx\r\n"
        assert b"user=ann" in client.ask(b"CLIENT INFO")
    assert seen == [("default", "pw"), ("ann", "no"), ("ann", "pw")]


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="databases"):
        CommandTable(databases=0)
    with pytest.raises(ValueError, match="not both"):
        CommandTable(password="x", authenticate=lambda user, password: True)
    with pytest.raises(ValueError, match="arity"):
        CommandTable().command("X", arity=0)


# -- the connection --------------------------------------------------------------------


def test_client_reply(server: WFRedisServer) -> None:
    with RawClient(server.address) as client:
        client.send(b"CLIENT REPLY SKIP\r\nPING a\r\nPING b")
        assert client.reply() == b"$1\r\nb\r\n"
        client.send(b"CLIENT REPLY OFF\r\nPING\r\nfoo\r\nCLIENT REPLY SKIP\r\nCLIENT REPLY ON")
        assert client.reply() == b"+OK\r\n"
        assert client.ask(b"PING") == b"+PONG\r\n"


def test_client_kill(server: WFRedisServer) -> None:
    with RawClient(server.address) as one, RawClient(server.address) as two:
        two_id = two.ask(b"CLIENT ID")[1:-2]
        assert one.ask(b"CLIENT KILL ID " + two_id) == b":1\r\n"
        assert two.reply() == b""
        host, port = one.sock.getsockname()
        assert one.ask(f"CLIENT KILL {host}:{port}".encode()) == b"+OK\r\n"
        assert one.reply() == b""


def test_client_list_forgets_the_closed(server: WFRedisServer) -> None:
    with RawClient(server.address) as watcher:
        for _ in range(3):
            with RawClient(server.address) as client:
                client.ask(b"PING")
        for _ in range(1000):
            lines = watcher.ask(b"CLIENT LIST").count(b"id=")
            if lines == 1:
                return
            time.sleep(0.01)  # the closing of a peer shows to nobody else
    raise AssertionError(f"{lines} clients are listed")


def test_http_is_not_served(server: WFRedisServer) -> None:
    with RawClient(server.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nSET k v")
        assert client.reply() == b""
    with RawClient(server.address) as client:
        assert client.ask(b"GET k") == b"$-1\r\n"


def test_no_reply_and_sessions() -> None:
    commands = CommandTable()

    @commands.command("QUIET", arity=1)
    def quiet(task: Any) -> Any:
        return NO_REPLY

    @commands.command("WHO", arity=1)
    def who(task: Any) -> list[Any]:
        session = session_of(task)
        return [session.db, session.name, session.protocol]

    with talk(commands) as client:
        client.send(b"QUIET\r\nSELECT 2\r\nQUIET\r\nWHO")
        assert client.reply() == b"+OK\r\n"
        assert client.reply() == b"*3\r\n:2\r\n$0\r\n\r\n:2\r\n"


# -- patterns --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (b"", [b""], [b"a"]),
        (b"*", [b"", b"a", b"a\nb"], []),
        (b"a*c", [b"ac", b"abc", b"acc"], [b"a", b"acd", b"bac"]),
        (b"a**b*", [b"ab", b"axbx"], [b"a"]),
        (b"*ab*ab", [b"abab", b"xabxab"], [b"ab", b"aab"]),
        (b"h?llo", [b"hello", b"h\nllo"], [b"hllo", b"heello"]),
        (b"h[ae]llo", [b"hello", b"hallo"], [b"hillo"]),
        (b"h[^e]llo", [b"hallo"], [b"hello", b"hllo"]),
        (b"[c-a]", [b"a", b"b", b"c"], [b"d", b"-"]),
        (b"[a\\]]", [b"a", b"]"], [b"\\"]),
        (b"[ab", [b"a", b"b"], [b"[ab"]),
        (b"[]a", [], [b"a", b"]a"]),
        (b"\\*\\", [b"*\\"], [b"a\\"]),
        (b"a.b+", [b"a.b+"], [b"axb+", b"a.bb"]),
    ],
)
def test_glob(pattern: bytes, yes: list[bytes], no: list[bytes]) -> None:
    assert [data for data in yes if not glob(pattern).match(data)] == []
    assert [data for data in no if glob(pattern).match(data)] == []


def test_glob_does_not_explode() -> None:
    assert not glob(b"*a" * 40 + b"b").match(b"a" * 5000)
