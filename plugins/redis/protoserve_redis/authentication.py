"""AUTH and HELLO: who a client is, and which protocol it speaks."""

from __future__ import annotations

import hmac
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from protoserve_redis.arguments import integer, text_of
from protoserve_redis.clients import check_name
from protoserve_redis.session import session_of
from protoserve_redis.values import OK, RedisError, decoded

if TYPE_CHECKING:
    from protoserve_redis.commands import CommandTable

_WRONGPASS: Final = "WRONGPASS invalid username-password pair or user is disabled."

logger = logging.getLogger("protoserve")


def register(table: CommandTable) -> None:
    """Put AUTH and HELLO into a table."""

    def verify(user: bytes, password: bytes) -> Any:
        """True, something else, or an awaitable of it."""
        if table.authenticate is not None:
            return table.authenticate(decoded(user), decoded(password))
        if user != b"default":
            return False
        return table.password is None or hmac.compare_digest(password, table.password)

    def login(task: Any, user: bytes, right: Any) -> None:
        if right is not True:
            if right is not False:
                # What is merely true, as a tuple of reasons is, lets nobody in.
                logger.error(
                    "authenticate() gave %s for the user %r, which is neither True nor False; "
                    "refused",
                    type(right).__name__,
                    decoded(user),
                )
            raise RedisError(_WRONGPASS)
        session = session_of(task)
        task.limit_unauthenticated(False)
        session.user = decoded(user)
        session.authenticated = True
        session.update()

    async def wait(task: Any, user: bytes, right: Awaitable[Any], then: Callable[[], Any]) -> Any:
        login(task, user, await right)
        return then()

    def authenticated(task: Any, user: bytes, password: bytes, then: Callable[[], Any]) -> Any:
        right = verify(user, password)
        if inspect.isawaitable(right):
            return wait(task, user, right, then)
        login(task, user, right)
        return then()

    flags = ("noscript", "loading", "stale", "fast", "no_auth", "allow_busy")

    @table.command("AUTH", -2, flags, group="connection", summary="Authenticates the connection.")
    def auth(task: Any, *args: bytes) -> Any:
        if len(args) > 2:
            raise RedisError("ERR syntax error")
        if len(args) == 1 and not table.requires_authentication:
            raise RedisError(
                "ERR AUTH <password> called without any password configured for the default "
                "user. Are you sure your configuration is correct?"
            )
        user = args[0] if len(args) == 2 else b"default"
        return authenticated(task, user, args[-1], lambda: OK)

    @table.command(
        "HELLO",
        -1,
        flags,
        group="connection",
        summary="Handshakes with the server.",
        since="6.0.0",
    )
    def hello(task: Any, *args: bytes) -> Any:
        session = session_of(task)
        protocol = 0
        if args:
            protocol = integer(args[0], "ERR Protocol version is not an integer or out of range")
            if protocol not in (2, 3):
                raise RedisError("NOPROTO unsupported protocol version")
        credentials: tuple[bytes, bytes] | None = None
        name: bytes | None = None
        at = 1
        while at < len(args):
            option = args[at].upper()
            left = len(args) - at - 1
            if option == b"AUTH" and left >= 2:
                credentials = (args[at + 1], args[at + 2])
                at += 3
            elif option == b"SETNAME" and left >= 1:
                name = args[at + 1]
                check_name(name)
                at += 2
            else:
                raise RedisError(f"ERR Syntax error in HELLO option '{text_of(args[at])}'")

        def greet() -> Any:
            if not session.authenticated:
                raise RedisError(
                    "NOAUTH HELLO must be called with the client already authenticated, "
                    "otherwise the HELLO AUTH <user> <pass> option can be used to "
                    "authenticate the client and select the RESP protocol version at the same "
                    "time"
                )
            if name is not None:
                session.name = name
            if protocol:
                session.protocol = protocol
            return {
                b"server": b"redis",
                b"version": table.server_version,
                b"proto": session.protocol,
                b"id": session.id,
                b"mode": b"standalone",
                b"role": b"master",
                b"modules": [],
            }

        if credentials is None:
            return greet()
        return authenticated(task, *credentials, greet)
