"""The command table for who builds a service of own commands."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis_tables import talk

from protoserve import ConfigError
from protoserve_redis import (
    NO_REPLY,
    OK,
    Command,
    CommandTable,
    Raw,
    RedisError,
    WFRedisServer,
    WFRedisTask,
    session_of,
)


@pytest.mark.parametrize("atomic", [True, False])
def test_commands_that_wait_for_the_lock_alone_are_not_expected_to_block(atomic: bool) -> None:
    commands = CommandTable(atomic=atomic)
    assert commands.may_block is not atomic
    assert WFRedisServer(commands).habits.learns is not atomic
    assert CommandTable().may_block is False


# -- authentication --------------------------------------------------------------------


class Later:
    """Awaitable, and no coroutine."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value


def future(value: Any) -> asyncio.Future[Any]:
    made = asyncio.get_running_loop().create_future()
    made.set_result(value)
    return made


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


class Truthy:
    def __bool__(self) -> bool:
        return True


ANSWERS: dict[str, tuple[Any, bool]] = {
    "True": (lambda: True, True),
    "False": (lambda: False, False),
    "None": (lambda: None, False),
    "1": (lambda: 1, False),
    "text": (lambda: "no", False),
    "tuple": (lambda: (False, "bad"), False),
    "object": (Truthy, False),
    "a future of another kind": (concurrent.futures.Future, False),
    "coroutine of True": (lambda: later(True), True),
    "coroutine of False": (lambda: later(False), False),
    "coroutine of a tuple": (lambda: later((False, "bad")), False),
    "coroutine of a coroutine": (lambda: Later(Later(True)), False),
    "awaitable of True": (lambda: Later(True), True),
    "awaitable of False": (lambda: Later(False), False),
    "future of True": (lambda: future(True), True),
    "future of False": (lambda: future(False), False),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("line", [b"AUTH u p", b"HELLO 3 AUTH u p"])
def test_only_true_lets_one_in(name: str, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer, right = ANSWERS[name]
    commands = CommandTable(authenticate=lambda user, password: answer())

    @commands.command("NOTHING", 1)
    async def nothing(task: Any) -> None:
        """So that there is a loop, in which futures can be made."""

    with talk(commands) as client:
        reply = client.ask(line)
        assert reply.startswith(b"-WRONGPASS") is not right
        assert client.ask(b"PING") == (
            b"+PONG\r\n" if right else b"-NOAUTH Authentication required.\r\n"
        )
    logged = [record for record in caplog.records if "neither True nor False" in record.message]
    assert bool(logged) is (not right and "False" not in name)


def test_an_authenticate_that_raises_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    def check(user: str, password: str) -> bool:
        raise OSError("the directory does not answer")

    with talk(CommandTable(authenticate=check)) as client:
        assert client.ask(b"AUTH u p") == b"-ERR internal error\r\n"
        assert client.ask(b"PING").startswith(b"-NOAUTH")
    assert "the command auth of the client 127.0.0.1:" in caplog.text


# -- EXEC ------------------------------------------------------------------------------


def failing() -> CommandTable:
    commands = CommandTable()

    @commands.command("RAISE", 1)
    async def boom(task: Any) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("a secret")

    @commands.command("REFUSE", 1)
    async def refuse(task: Any) -> None:
        await asyncio.sleep(0)
        raise RedisError("not now")

    @commands.command("OBJECT", 1)
    def thing(task: Any) -> object:
        return [1, object()]

    @commands.command("LATEOBJECT", 1)
    async def late_thing(task: Any) -> object:
        return object()

    @commands.command("SILENT", 1)
    def silent(task: Any) -> Any:
        return NO_REPLY

    @commands.command("WITHIN", 1)
    def within(task: Any) -> Any:
        return [1, NO_REPLY]

    @commands.command("EMPTY", 1)
    def empty(task: Any) -> Any:
        return [Raw(b"")]

    return commands


@pytest.mark.parametrize(
    "name", [b"RAISE", b"OBJECT", b"LATEOBJECT", b"SILENT", b"WITHIN", b"EMPTY", b"REFUSE"]
)
def test_a_failure_in_exec_is_an_error_in_its_place(name: bytes) -> None:
    error = b"-ERR not now\r\n" if name == b"REFUSE" else b"-ERR internal error\r\n"
    with talk(failing()) as client:
        client.send(b"MULTI\r\nPING a\r\n" + name + b"\r\nPING b\r\n" + name + b"\r\nEXEC")
        assert [client.reply() for _ in range(6)][5] == (
            b"*4\r\n$1\r\na\r\n" + error + b"$1\r\nb\r\n" + error
        )
        assert client.ask(b"PING") == b"+PONG\r\n"


@pytest.mark.parametrize("name", [b"WITHIN", b"EMPTY", b"OBJECT"])
def test_what_cannot_be_sent_is_an_error_and_shifts_nothing(name: bytes) -> None:
    with talk(failing()) as client:
        client.send(name + b"\r\nSILENT\r\nPING")
        assert [client.reply(), client.reply()] == [b"-ERR internal error\r\n", b"+PONG\r\n"]


def test_messages_to_oneself_come_after_what_exec_answers() -> None:
    # Redis 7.0 writes them into the array, which has then one item too many.
    message = b">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\n%b\r\n"
    with talk(CommandTable()) as client:
        client.ask(b"HELLO 3")
        client.ask(b"SUBSCRIBE x")
        client.send(b"MULTI\r\nPUBLISH x 1\r\nPING\r\nPUBLISH x 2\r\nEXEC\r\nPING")
        replies = [client.reply() for _ in range(8)]
        assert replies[4:] == [
            b"*3\r\n:1\r\n+PONG\r\n:1\r\n",
            message % b"1",
            message % b"2",
            b"+PONG\r\n",
        ]
        client.ask(b"UNSUBSCRIBE")
        client.send(b"MULTI\r\nSUBSCRIBE x\r\nPUBLISH x 3\r\nEXEC\r\nPING")
        replies = [client.reply() for _ in range(6)]
        assert replies[3:] == [
            b"*2\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n:1\r\n",
            message % b"3",
            b"+PONG\r\n",
        ]


def test_messages_of_others_wait_for_what_exec_answers() -> None:
    commands = CommandTable()
    begun, go_on = threading.Event(), threading.Event()

    @commands.command("SLOW", 1)
    async def slow(task: Any) -> Any:
        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return OK

    with talk(commands) as client:
        client.ask(b"HELLO 3")
        client.ask(b"SUBSCRIBE x")
        client.send(b"MULTI\r\nPING\r\nSLOW\r\nEXEC\r\nPING last")
        assert begun.wait(10)
        assert [commands.publish("x", str(i)) for i in range(3)] == [1, 1, 1]
        go_on.set()
        replies = [client.reply() for _ in range(8)]
        assert replies[3] == b"*2\r\n+PONG\r\n+OK\r\n"
        assert [reply[-4:-2] for reply in replies[4:7]] == [b"\n0", b"\n1", b"\n2"]
        assert replies[7] == b"$4\r\nlast\r\n"


# -- arguments -------------------------------------------------------------------------


def test_the_most_arguments_are_those_of_the_function(caplog: pytest.LogCaptureFixture) -> None:
    commands = CommandTable()

    @commands.command("TWO", arity=-2)
    def two(task: Any, one: bytes, other: bytes = b"-") -> list[bytes]:
        return [one, other]

    @commands.command("ANY", arity=-1)
    def many(task: Any, *words: bytes) -> int:
        return len(words)

    @commands.command("DERIVED")
    def derived(task: Any, one: bytes, *, flag: bool = False) -> bytes:
        return one

    @commands.command("GROUP|SUB")
    def sub(task: Any, one: bytes = b"", other: bytes = b"") -> bytes:
        return one + other

    wrong = b"-ERR wrong number of arguments for '%b' command\r\n"
    with talk(commands) as client:
        for _ in range(2):
            for line in (b"TWO", b"TWO a b c", b"two a b c d"):
                assert client.ask(line) == wrong % b"two"
            assert client.ask(b"TWO a") == b"*2\r\n$1\r\na\r\n$1\r\n-\r\n"
            assert client.ask(b"DERIVED") == client.ask(b"derived a b") == wrong % b"derived"
            assert client.ask(b"DERIVED a") == b"$1\r\na\r\n"
            assert client.ask(b"GROUP SUB a b") == b"$2\r\nab\r\n"
            assert client.ask(b"GROUP SUB a b c") == wrong % b"group|sub"
            assert client.ask(b"ANY" + 1000 * b" x") == b":1000\r\n"
    assert not caplog.records
    found = {name: commands.commands[name].arity for name in (b"TWO", b"ANY", b"DERIVED")}
    assert found == {b"TWO": -2, b"ANY": -1, b"DERIVED": 2}
    assert (commands.commands[b"GROUP"].subcommands or {})[b"SUB"].arity == -2


def one(task: Any, word: bytes) -> None: ...
def some(task: Any, *words: bytes) -> None: ...
def keyword(task: Any, *, must: bytes) -> None: ...
def nothing() -> None: ...


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"arity": 0}, "arity"),
        ({"arity": "2"}, "arity"),
        ({"arity": True}, "arity"),
        ({"arity": 3}, "allows 3 words"),
        ({"arity": -1}, "allows 1 words"),
        ({"arity": 1, "name": "A|B", "function": some}, "less than the words"),
        ({"function": keyword}, "keyword 'must'"),
        ({"function": nothing}, "task first"),
        ({"function": 5}, "expected a function"),
        ({"flags": "write"}, "several words"),
        ({"flags": b"write"}, "several words"),
        ({"flags": ("write", "reedonly")}, "unknown flag 'reedonly'"),
        ({"keys": (1,)}, "keys="),
        ({"keys": (1, 1)}, "keys="),
        ({"keys": 1}, "keys="),
        ({"keys": (2, 1, 1)}, "keys="),
        ({"keys": (1, 1, 0)}, "keys="),
        ({"keys": (0, 1, 1)}, "keys="),
        ({"keys": (1.0, 1, 1)}, "keys="),
        ({"keys": "abc"}, "keys="),
        ({"name": ""}, "name"),
        ({"name": "A B"}, "name"),
        ({"name": "A|B|C"}, "name"),
        ({"name": "|A"}, "name"),
        ({"name": "A|"}, "name"),
        ({"name": "Ä"}, "name"),
        ({"name": "A\r\n"}, "name"),
        ({"name": 5}, "name"),
    ],
)
def test_registration_refuses_what_cannot_work(arguments: dict[str, Any], match: str) -> None:
    options = {"name": "X", **arguments}
    function = options.pop("function", one)
    commands = CommandTable()
    with pytest.raises(ConfigError, match=match):
        commands.command(**options)(function)
    assert {*commands.commands} == {*CommandTable().commands}


def test_what_can_be_registered() -> None:
    commands = CommandTable()

    class Place:
        def get(self, task: Any, key: bytes) -> bytes:
            return key

        def __call__(self, task: Any, *keys: bytes) -> int:
            return len(keys)

    @functools.wraps(one)
    def wrapper(*words: Any) -> Any:
        return OK

    commands.command("json.get", 2, ["fast", "readonly"], keys=(1, 1, 1))(Place().get)
    commands.command("CALL", -1)(Place())
    commands.command("WRAPPED", -1)(wrapper)
    commands.command("PART", 2)(functools.partial(one))
    commands.command("BUILTIN")(max)
    assert commands.commands[b"JSON.GET"].flags == ("readonly", "fast")
    assert commands.commands[b"BUILTIN"].arity == -1
    assert Command("A|b", some).full_name == "a|b"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"password": 5}, "password"),
        ({"password": ""}, "not empty"),
        ({"password": True}, "password"),
        ({"authenticate": "yes"}, "authenticate"),
        ({"exists": 1}, "exists"),
        ({"databases": "16"}, "databases"),
        ({"databases": True}, "databases"),
        ({"server_version": 7}, "server_version"),
        ({"server_version": "new"}, "server_version"),
    ],
)
def test_a_table_refuses_what_cannot_work(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        CommandTable(**options)


def test_keys_by_a_function() -> None:
    commands = CommandTable()

    def keys(words: list[bytes]) -> list[bytes]:
        return words[2 : 2 + int(words[1])]

    commands.command("CALC", -2, ("readonly",), keys=keys)(some)
    with talk(commands) as client:
        assert client.ask(b"COMMAND GETKEYS CALC 2 a b c") == b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"
        assert client.ask(b"COMMAND GETKEYS CALC 0 a").startswith(b"-ERR The command has no key")
        assert b"+movablekeys" in client.ask(b"COMMAND INFO calc")


def test_commands_can_be_removed() -> None:
    commands = CommandTable()
    assert commands.remove("monitor").name == b"MONITOR"
    assert commands.remove("CLIENT|KILL").name == b"CLIENT|KILL"
    for name in ("MONITOR", "CLIENT|KILL", "PING|X", "NOPE|X"):
        with pytest.raises(KeyError):
            commands.remove(name)
    with talk(commands) as client:
        assert client.ask(b"MONITOR").startswith(b"-ERR unknown command 'MONITOR'")
        assert client.ask(b"mOnitor").startswith(b"-ERR unknown command")
        assert client.ask(b"CLIENT KILL ID 1").startswith(b"-ERR unknown subcommand 'KILL'")
        assert client.ask(b"CLIENT ID").startswith(b":")
        assert b"KILL" not in client.ask(b"CLIENT HELP")


# -- hooks -----------------------------------------------------------------------------


def test_a_guard_refuses() -> None:
    commands = CommandTable()
    seen: list[tuple[str, list[bytes]]] = []

    @commands.command("GET", 2, ("readonly",))
    def get(task: Any, key: bytes) -> bytes:
        return key

    @commands.guard
    def check(task: WFRedisTask, command: Command, words: list[bytes]) -> None:
        seen.append((command.full_name, words))
        if words[-1] == b"secret":
            raise RedisError(f"NOPERM {session_of(task).user} may not {command.full_name} that")
        if words[-1] == b"broken":
            raise RuntimeError("a fault of the guard")

    with talk(commands) as client:
        assert client.ask(b"GET a") == b"$1\r\na\r\n"
        assert client.ask(b"get secret") == b"-NOPERM default may not get that\r\n"
        assert client.ask(b"GET broken") == b"-ERR internal error\r\n"
        client.ask(b"GET")
        client.ask(b"NOPE")
        client.send(b"MULTI\r\nGET a\r\nGET secret\r\nEXEC\r\nPING")
        assert [client.reply() for _ in range(5)][3:] == [
            b"-EXECABORT Transaction discarded because of previous errors.\r\n",
            b"+PONG\r\n",
        ]
    assert [name for name, _ in seen] == [
        "get", "get", "get", "multi", "get", "get", "exec", "ping",
    ]  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
def test_hooks_around_commands(asynchronous: bool) -> None:
    commands = CommandTable()
    order: list[str] = []

    def get(task: Any, key: bytes) -> bytes:
        order.append("get")
        if key == b"bad":
            raise RedisError("ERR bad")
        return key

    async def get_later(task: Any, key: bytes) -> bytes:
        await asyncio.sleep(0)
        return get(task, key)

    commands.command("GET", 2)(get_later if asynchronous else get)

    @commands.around
    def outer(task: Any, command: Command, words: list[bytes], run: Any) -> Any:
        order.append(f"outer {command.full_name}")
        if words[-1] == b"cached":
            return b"from the cache"
        return run()

    @commands.around
    def inner(task: Any, command: Command, words: list[bytes], run: Any) -> Any:
        value = run()
        if not asyncio.iscoroutine(value):
            order.append("inner")
            return value

        async def awaited() -> Any:
            result = await value
            order.append("inner")
            return result

        return awaited()

    with talk(commands) as client:
        assert client.ask(b"GET a") == b"$1\r\na\r\n"
        assert order == ["outer get", "get", "inner"]
        assert client.ask(b"GET cached") == b"$14\r\nfrom the cache\r\n"
        assert client.ask(b"GET bad") == b"-ERR bad\r\n"
        order.clear()
        client.send(b"MULTI\r\nGET a\r\nGET cached\r\nEXEC")
        assert client.reply() == b"+OK\r\n"
        assert [client.reply() for _ in range(3)][2] == (
            b"*2\r\n$1\r\na\r\n$14\r\nfrom the cache\r\n"
        )
        assert [step for step in order if "get" in step] == ["outer get", "get", "outer get"]


def test_hooks_that_are_none() -> None:
    for register in (CommandTable().guard, CommandTable().around):
        with pytest.raises(ConfigError, match="takes a function"):
            register("x")  # type: ignore[arg-type]


def test_the_log_names_command_and_client(caplog: pytest.LogCaptureFixture) -> None:
    commands = failing()

    @commands.command("GROUP|FAIL", 2)
    def fail(task: Any) -> None:
        raise RuntimeError("a secret")

    with caplog.at_level(logging.ERROR, "protoserve"), talk(commands) as client:
        host, port = client.sock.getsockname()
        client.ask(b"GROUP FAIL")
        client.ask(b"RAISE")
    assert [record.message for record in caplog.records] == [
        f"the command group|fail of the client {host}:{port} raised",
        f"the command raise of the client {host}:{port} raised",
    ]


# -- cost ------------------------------------------------------------------------------


def test_what_nobody_uses_costs_nothing() -> None:
    commands = CommandTable()
    assert commands._fast is commands._lookup
    for reason in ("one", "two"):
        commands.detour(reason, on=True)
    assert not commands._fast
    commands.detour("one", on=False)
    commands.command("LATE", 1)(lambda task: OK)
    assert not commands._fast
    commands.detour("two", on=False)
    assert commands._fast is commands._lookup
    assert b"LATE" in commands._fast


def test_functions_that_do_nothing_when_they_are_called() -> None:
    def one(task: Any) -> Iterator[int]:
        yield 1

    async def other(task: Any) -> Any:
        yield 1

    for function in (one, other, functools.partial(one)):
        with pytest.raises(ConfigError, match="a generator"):
            CommandTable().command("X")(function)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"summary": 5}, "summary=5: expected text"),
        ({"group": None}, "group=None: expected text"),
        ({"since": 7.0}, "since=7.0: expected text"),
        ({"complexity": 1}, "complexity=1: expected text"),
        ({"flags": None}, "flags=None: expected several words"),
        ({"flags": ([],)}, "expected several words"),
        ({"flags": 5}, "expected several words"),
        ({"arity": 2, "keys": (5, 5, 1)}, "2 words at most"),
        ({"arity": 2, "keys": (2, -1, 1)}, "2 words at most"),
    ],
)
def test_more_that_cannot_work(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        CommandTable().command("X", **options)(lambda task, *words: OK)


@pytest.mark.parametrize("name", ["atomic", "transactions"])
def test_switches_are_true_or_false(name: str) -> None:
    for value in ("no", None, 0):
        with pytest.raises(ConfigError, match=f"{name}={value!r}: expected True or False"):
            CommandTable(**{name: value})  # type: ignore[arg-type]


def test_info_needs_a_section() -> None:
    for section in (5, dict, None):
        with pytest.raises(ConfigError, match="expected a section's name"):
            CommandTable().info(section)  # type: ignore[arg-type]


def test_arguments_and_subcommands_exclude_each_other() -> None:
    def several(task: Any, *words: bytes) -> Any:
        return OK

    commands = CommandTable()
    commands.command("FOO")(several)
    with pytest.raises(ConfigError, match="command FOO: its function takes arguments"):
        commands.command("FOO|BAR")(several)
    commands.command("BOX|BAR")(several)
    with pytest.raises(ConfigError, match="command BOX: its function takes arguments"):
        commands.command("BOX")(several)
    commands.command("BOX")(lambda task: b"empty")
    with talk(commands) as client:
        assert client.ask(b"BOX") == b"$5\r\nempty\r\n"
        assert client.ask(b"BOX BAR x") == b"+OK\r\n"
        assert client.ask(b"FOO BAR") == b"+OK\r\n"


def test_a_user_s_name_makes_no_fields_of_client_list() -> None:
    with talk(CommandTable(authenticate=lambda user, password: True)) as client:
        name = b"x\nid=7 name=admin"
        client.sock.sendall(b"*3\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n$1\r\np\r\n" % (len(name), name))
        assert client.reply() == b"+OK\r\n"
        listed = client.ask(b"CLIENT LIST")
        assert listed.count(b"id=") == 2
        assert b" user=x_id=7_name=admin " in listed
