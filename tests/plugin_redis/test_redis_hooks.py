"""Hooks of a table that fail, wait, or do not fit, and what commands raise besides errors."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kv_server import eventually
from redis_tables import RawClient, talk, talk_two

from protoserve import ConfigError
from protoserve_redis import OK, REDIS_SPEC, CommandTable, RedisError, WFRedisServer, integer


async def later(*args: Any) -> Any:
    """An async function, wherever a plain one is wanted."""


def items(*args: Any) -> Iterator[Any]:
    yield 1


class Called:
    async def __call__(self, *args: Any) -> Any:
        """An object that is called as an async function is."""


REGISTRATIONS: dict[str, Callable[[Any], Any]] = {
    "guard": lambda hook: CommandTable().guard(hook),
    "around": lambda hook: CommandTable().around(hook),
    "exists": lambda hook: CommandTable(exists=hook),
    "keys": lambda hook: CommandTable().command("X", keys=hook)(lambda task: OK),
    "info": lambda hook: CommandTable().info("x")(hook),
}


@pytest.mark.parametrize("where", REGISTRATIONS)
@pytest.mark.parametrize(
    "hook", [later, items, Called(), functools.partial(later, 1), lambda a, b, c, d, e: OK]
)
def test_hooks_that_would_do_nothing_are_refused(where: str, hook: Any) -> None:
    with pytest.raises(ConfigError, match="function"):
        REGISTRATIONS[where](hook)


def test_authenticate_must_fit() -> None:
    for hook in (lambda user: True, items, 5):
        with pytest.raises(ConfigError, match="authenticate="):
            CommandTable(authenticate=hook)  # type: ignore[arg-type]
    CommandTable(authenticate=later)


def test_a_guard_that_returns_a_coroutine_lets_nobody_through(
    caplog: pytest.LogCaptureFixture,
) -> None:
    commands = CommandTable()
    commands.guard(lambda task, command, words: later())
    with talk(commands) as client:
        assert client.ask(b"PING") == b"-ERR internal error\r\n"
    assert "a guard returned something to await" in caplog.text


def test_exists_that_returns_a_coroutine_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with talk(CommandTable(exists=lambda db, key: later())) as client:
        assert client.ask(b"WATCH k") == b"-ERR internal error\r\n"
    assert "exists() returned something to await" in caplog.text


def test_guards_see_a_command_once_that_a_pause_held() -> None:
    commands = CommandTable()
    seen: list[str] = []

    @commands.command("PUT", flags=("write",))
    def put(task: Any) -> Any:
        return OK

    commands.guard(lambda task, command, words: seen.append(command.full_name))
    with talk_two(commands) as (client, other):
        client.ask(b"CLIENT PAUSE 60000 WRITE")
        other.send(b"PUT")
        eventually(lambda: "put" in seen)
        assert commands.pause.active
        client.ask(b"CLIENT UNPAUSE")
        assert other.reply() == b"+OK\r\n"
    assert seen.count("put") == 1


# -- keys ------------------------------------------------------------------------------


@pytest.mark.parametrize("atomic", [True, False])
def test_keys_that_cannot_be_found(atomic: bool, caplog: pytest.LogCaptureFixture) -> None:
    commands = CommandTable(atomic=atomic)

    @commands.command("SUM", flags=("readonly",), keys=lambda line: line[2 : 2 + int(line[1])])
    def total(task: Any, count: bytes, *keys: bytes) -> int:
        return 7

    @commands.command("STRICT", flags=("readonly",), keys=lambda line: line[2 : 2 + int(line[1])])
    def strict(task: Any, count: bytes, *keys: bytes) -> int:
        return integer(count)

    @commands.command("ODD", flags=("readonly",), keys=lambda line: "text")  # type: ignore[arg-type,return-value]
    def odd(task: Any) -> Any:
        return OK

    @commands.command("LATER", flags=("readonly",), keys=lambda line: [line[9]])
    async def slow(task: Any) -> Any:
        return OK

    with talk(commands) as client:
        assert client.ask(b"COMMAND GETKEYS SUM x y") == (
            b"-ERR Invalid arguments specified for command\r\n"
        )
        client.ask(b"HELLO 3")
        client.ask(b"CLIENT TRACKING ON")
        assert client.ask(b"STRICT x y").startswith(b"-ERR value is not an integer")
        assert caplog.text == ""  # who sends nonsense fills no log
        for line, reply in ((b"SUM x y", b":7\r\n"), (b"ODD", b"+OK\r\n"), (b"LATER", b"+OK\r\n")):
            assert client.ask(line) == reply
            assert f"the command {line.split()[0].lower().decode()} of" in caplog.text
        client.ask(b"MULTI")
        for _ in range(2):
            client.ask(b"SUM x y")
        client.ask(b"PING")
        assert client.ask(b"EXEC") == b"*3\r\n:7\r\n:7\r\n+PONG\r\n"


# -- what is raised ----------------------------------------------------------------------


def cancelled_one() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


def ask_for_what_raises(commands: CommandTable, caplog: pytest.LogCaptureFixture) -> None:
    """The command RAISE is an error alone and in a transaction, logged each time."""
    wrong = b"-ERR internal error\r\n"
    with talk(commands) as client:
        assert client.ask(b"RAISE") == wrong
        client.ask(b"MULTI")
        for line in (b"PING", b"RAISE", b"PING"):
            client.ask(line)
        assert client.ask(b"EXEC") == b"*3\r\n+PONG\r\n" + wrong + b"+PONG\r\n"
    assert caplog.text.count("the command raise of the client") == 2


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit]
)
@pytest.mark.parametrize("hooked", [False, True])
def test_whatever_a_plain_command_raises_is_its_error(
    error: type[BaseException], hooked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    commands = CommandTable()
    if hooked:
        commands.around(lambda task, command, words, run: run())

    @commands.command("RAISE")
    def fail(task: Any) -> None:
        raise error

    ask_for_what_raises(commands, caplog)


@pytest.mark.parametrize("flags", [(), ("blocking",)])
@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, None])
def test_whatever_an_async_command_raises_is_its_error(
    flags: tuple[str, ...],
    error: type[BaseException] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None: something that it awaits was cancelled."""
    commands = CommandTable()

    @commands.command("RAISE", flags=flags)
    async def fail(task: Any) -> None:
        if error is None:
            await cancelled_one()
        await asyncio.sleep(0)
        assert error is not None
        raise error

    ask_for_what_raises(commands, caplog)


def test_a_request_that_is_cut_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    commands = CommandTable()
    began: list[int] = []
    ended: list[str] = []

    @commands.command("NAP")
    async def nap(task: Any) -> None:
        began.append(1)
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("nap")

    @commands.command("NOTE")
    def note(task: Any) -> Any:
        ended.append("note")
        return OK

    caplog.set_level(logging.ERROR)
    params = REDIS_SPEC.params.replace(shutdown_timeout=0.1)
    server = WFRedisServer(commands, params).start("127.0.0.1", 0)
    with RawClient(server.address) as client:
        client.ask(b"MULTI")
        client.ask(b"NAP")
        client.ask(b"NOTE")
        client.send(b"EXEC")
        eventually(lambda: bool(began))
        server.stop()
        assert client.reply() == b""
    assert ended == ["nap"]
    assert "the command nap" not in caplog.text


def test_reply_modes_have_no_place_in_a_transaction(caplog: pytest.LogCaptureFixture) -> None:
    with talk(CommandTable()) as client:
        for mode in (b"SKIP", b"OFF"):
            client.ask(b"MULTI")
            client.ask(b"CLIENT REPLY " + mode)
            client.ask(b"PING")
            refused = b"-ERR CLIENT REPLY OFF and SKIP are not allowed in a transaction\r\n"
            assert client.ask(b"EXEC") == b"*2\r\n" + refused + b"+PONG\r\n"
    assert caplog.text == ""


@pytest.mark.parametrize("value", [None, 10**10, 5.0, True, ["x"]])
def test_what_is_no_message_or_key_is_refused(value: Any) -> None:
    commands = CommandTable()
    for channel, message in ((value, "m"), ("c", value)):
        with pytest.raises(TypeError, match="expected bytes or text"):
            commands.publish(channel, message)
    if value is not None:
        with pytest.raises(TypeError, match="expected bytes or text"):
            commands.touch(0, value)
    with pytest.raises(TypeError, match="a database's number"):
        commands.touch("0", b"key")  # type: ignore[arg-type]
    assert commands.publish(b"c", bytearray(b"x")) == commands.publish("c", memoryview(b"x")) == 0


def test_keys_may_be_anything_bytes_like() -> None:
    commands = CommandTable()
    with talk(commands) as client:
        for key in ("k", b"k", bytearray(b"k"), memoryview(b"k")):
            client.ask(b"WATCH k")
            commands.touch(0, key)  # type: ignore[arg-type]
            client.ask(b"MULTI")
            assert client.ask(b"EXEC") == b"*-1\r\n"


def test_errors_of_redis_from_a_guard_are_sent() -> None:
    commands = CommandTable()

    @commands.guard
    def guard(task: Any, command: Any, words: list[bytes]) -> None:
        raise RedisError("NOPERM no")

    with talk(commands) as client:
        assert client.ask(b"PING") == b"-NOPERM no\r\n"
