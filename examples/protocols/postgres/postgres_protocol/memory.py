"""A database in memory, SQLite's, behind the protocol: ``protoserve run postgres``.

Clients share its tables, and each has its transactions. What is said about a session here is
PostgreSQL's "message flow"; statements are in SQLite's dialect of SQL.
"""

import itertools
import secrets
import sqlite3
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from math import inf, nan
from typing import Any, Final, TypeVar

from postgres_protocol import PostgresTask, Reply
from postgres_protocol.requests import (
    Bind,
    Cancel,
    Close,
    Describe,
    Execute,
    Parse,
    Query,
    Request,
    Startup,
    Sync,
    Terminate,
    Unsupported,
)
from postgres_protocol.sql import Statement, split

PARAMETERS: Final = {
    # What clients take from it is which messages and settings there are.
    "server_version": "14.0 (protoserve)",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
}
NOT_UTF8: Final = 'invalid byte sequence for encoding "UTF8"'
PUSH_SIZE: Final = 64 * 1024
"""Rows go out in pieces of about so many bytes, at the pace at which the client reads."""
VALUE_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of one value, so that no statement makes gigabytes of nothing."""
LONG: Final = 10_000
"""Steps of SQLite's machine that a statement does at least before it is abandoned."""
STATEMENT_LIMIT: Final = 1000
"""Prepared statements, and portals, of one session."""

# Files of the server's, and how SQLite works, are no client's business.
_FORBIDDEN: Final = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA}

_BY_NAME: Final = {
    "SQLITE_CONSTRAINT_UNIQUE": "23505",
    "SQLITE_CONSTRAINT_PRIMARYKEY": "23505",
    "SQLITE_CONSTRAINT_NOTNULL": "23502",
    "SQLITE_CONSTRAINT_FOREIGNKEY": "23503",
    "SQLITE_CONSTRAINT_CHECK": "23514",
    "SQLITE_INTERRUPT": "57014",
    "SQLITE_BUSY": "40001",
    "SQLITE_LOCKED": "40001",
    "SQLITE_TOOBIG": "54000",
    "SQLITE_MISMATCH": "42804",
    "SQLITE_AUTH": "42501",
    "SQLITE_FULL": "53200",
    "SQLITE_NOMEM": "53200",
}
_BY_WORDS: Final = (
    ("syntax error", "42601"),
    ("incomplete input", "42601"),
    ("unrecognized token", "42601"),
    ("no such table", "42P01"),
    ("no such column", "42703"),
    ("no such function", "42883"),
    ("no such savepoint", "3B001"),
    ("already exists", "42P07"),
)


def numeric(data: bytes) -> float:
    """The type ``numeric`` in binary: digits of a base of 10,000."""
    count, weight, sign, _ = struct.unpack_from(">HhHH", data)
    digits = struct.unpack_from(f">{count}H", data, 8)
    if sign not in (0, 0x4000):
        return {0xC000: nan, 0xD000: inf, 0xF000: -inf}[sign]
    number = Decimal(int("0" + "".join(f"{digit:04}" for digit in digits)))
    number = number.scaleb(4 * (weight + 1 - count)) * (-1 if sign else 1)
    return int(number) if number == number.to_integral_value() else float(number)


# Parameters by the OID of their type, in binary and in text. SQLite compares a number and a text
# by their kinds, so that they must be right. Other types are text, and have no binary form.
_BINARY: Final[dict[int, Callable[[bytes], Any]]] = {
    16: lambda data: int(data != b"\0"),
    17: bytes,
    20: lambda data: struct.unpack(">q", data)[0],
    21: lambda data: struct.unpack(">h", data)[0],
    23: lambda data: struct.unpack(">i", data)[0],
    26: lambda data: struct.unpack(">I", data)[0],
    700: lambda data: struct.unpack(">f", data)[0],
    701: lambda data: struct.unpack(">d", data)[0],
    1700: numeric,
}
_TEXT: Final[dict[int, Callable[[str], Any]]] = {
    16: lambda text: int(text[:1] in "tTyY1"),
    17: lambda text: bytes.fromhex(text.removeprefix("\\x")),
    20: int,
    21: int,
    23: int,
    26: int,
    700: float,
    701: float,
    1700: lambda text: int(text) if text.lstrip("-").isdecimal() else float(text),
}
_TEXT_IN_BINARY: Final = {0, 18, 19, 25, 114, 705, 1042, 1043}

KEPT = TypeVar("KEPT")


class SqlError(Exception):
    """What is wrong with a statement, with its SQLSTATE."""

    def __init__(self, sqlstate: str, words: str) -> None:
        super().__init__(words)
        self.sqlstate = sqlstate


def sql_error(error: Exception) -> SqlError:
    """What SQLite, or Python on the way to it, found wrong."""
    words = str(error)
    if isinstance(error, UnicodeEncodeError):
        return SqlError("22021", NOT_UTF8)
    if isinstance(error, sqlite3.ProgrammingError):  # ?, or :name
        return SqlError("42P02", f"parameters are $1, $2 and so on: {words}")
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_INTERRUPT":
        words = "canceling statement due to user request"
    sqlstate = _BY_NAME.get(name)
    if sqlstate is None and name.startswith("SQLITE_CONSTRAINT"):
        sqlstate = "23000"
    if sqlstate is None:
        sqlstate = next((state for part, state in _BY_WORDS if part in words), "42000")
    return SqlError(sqlstate, words)


def value_bytes(value: object) -> bytes | None:
    """A value of SQLite's as PostgreSQL writes it in text."""
    match value:
        case None:
            return None
        case bytes():
            return b"\\x" + value.hex().encode()
        case float() if value in (float("inf"), float("-inf")):
            return b"Infinity" if value > 0 else b"-Infinity"
        case _:
            return str(value).encode()


def parameter(oid: int, form: int, data: bytes | None) -> object:
    """A parameter as SQLite takes it."""
    if data is None:
        return None
    if form == 1 and oid not in _BINARY and oid not in _TEXT_IN_BINARY:
        raise SqlError("0A000", f"binary parameters of type {oid} are not supported")
    try:
        if form == 1 and oid in _BINARY:
            value = _BINARY[oid](data)
        else:
            text = data.decode()
            value = _TEXT[oid](text) if oid in _TEXT else text
    except UnicodeDecodeError:
        raise SqlError("22021", NOT_UTF8) from None
    except (ValueError, LookupError, ArithmeticError, struct.error):
        raise SqlError("22P02", f"invalid input for a parameter of type {oid}") from None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SqlError("22003", "a number of more than 64 bits")
    return value


@dataclass(slots=True)
class Prepared:
    """``statement`` is None where there was nothing but blanks."""

    statement: Statement | None
    types: tuple[int, ...] = ()


@dataclass(slots=True)
class Portal:
    statement: Statement | None
    parameters: dict[str, object] = field(default_factory=dict)
    formats: tuple[int, ...] = ()
    cursor: sqlite3.Cursor | None = None
    tag: str | None = None  # once it is over, where that was told
    over: bool = False

    def close(self) -> None:
        if self.cursor is not None:
            self.cursor.close()


class Session:
    """One client's: called by one handler at a time; ``cancel``, ``abandon`` and ``leave`` on any
    thread."""

    def __init__(self, process: int, connection: sqlite3.Connection) -> None:
        self.process = process
        self.secret = secrets.token_bytes(4)
        self._connection = connection
        self._lock = threading.Lock()
        self._busy = self._left = self._abandoned = False
        connection.set_progress_handler(lambda: self._abandoned, LONG)
        self._statements: dict[str, Prepared] = {}
        self._portals: dict[str, Portal] = {}
        self._block = False  # a transaction was asked for; else it ends with Query or Sync
        self._failed = False  # ... has failed, and awaits its end
        self._skipping = False  # to the next Sync

    # -- its life --------------------------------------------------------------------------

    def __enter__(self) -> "Session":
        with self._lock:
            self._busy = True
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._busy = False
            if self._left:
                self._connection.close()

    def cancel(self) -> None:
        """End the statement that runs, if one does."""
        with self._lock:
            if self._busy and not self._left:
                self._connection.interrupt()

    def abandon(self) -> None:
        """The client asks for nothing more, which over TCP is all that is seen of one that has
        gone. What was asked for is still done, but nothing that takes long."""
        self._abandoned = True

    def leave(self) -> None:
        """The connection has closed."""
        with self._lock:
            self._abandoned = self._left = True
            if not self._busy:
                self._connection.close()

    @property
    def status(self) -> str:
        if self._failed:
            return "E"
        return "T" if self._block else "I"

    # -- requests --------------------------------------------------------------------------

    def answer(self, request: Request, reply: Reply, flush: Callable[[], object]) -> None:
        """Add the answer to ``reply``; ``flush`` is called when there is much of it."""
        if self._skipping and not isinstance(request, (Query, Sync)):
            return
        try:
            match request:
                case Query():
                    self._skipping = False
                    self._query(request.text, reply, flush)
                    self._settle()
                case Parse():
                    self._parse(request)
                    reply.parse_complete()
                case Bind():
                    self._bind(request)
                    reply.bind_complete()
                case Describe():
                    self._describe(request, reply)
                case Execute():
                    self._execute(request, reply, flush)
                case Close():
                    self._close(request)
                    reply.close_complete()
                case Sync():
                    self._skipping = False
                    self._settle()
                case Unsupported():
                    raise SqlError("0A000", f"{request.name} are not supported")
        except (SqlError, sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            fault = error if isinstance(error, SqlError) else sql_error(error)
            reply.error(fault.sqlstate, str(fault))
            self._fail()
            self._skipping = not isinstance(request, (Query, Sync, Unsupported))
        if isinstance(request, (Query, Sync, Unsupported)):
            reply.ready(self.status)

    def _query(self, text: str, reply: Reply, flush: Callable[[], object]) -> None:
        self._statements.pop("", None)
        self._forget("")
        statement = None
        for statement in split(text):
            portal = Portal(statement)
            self._start(portal, reply)
            try:
                if portal.cursor is not None and portal.cursor.description:
                    reply.columns([column[0] for column in portal.cursor.description])
                self._give_rows(portal, 0, reply, flush)
            finally:
                portal.close()
        if statement is None:
            reply.empty_query()

    def _parse(self, request: Parse) -> None:
        statements = list(itertools.islice(split(request.text), 2))
        if len(statements) > 1:
            raise SqlError("42601", "cannot insert multiple commands into a prepared statement")
        if request.name and request.name in self._statements:
            raise SqlError("42P05", f'prepared statement "{request.name}" already exists')
        statement = statements[0] if statements else None
        if statement is not None:
            self._refuse_if_failed(statement)
            if statement.has_rows or statement.change:
                self._check(statement)
        self._keep(self._statements, request.name, Prepared(statement, request.types))

    def _check(self, statement: Statement) -> None:
        """Let SQLite read it, so that it is here that mistakes are told."""
        nothing = dict.fromkeys(map(str, range(1, statement.parameters + 1)))
        explain = "" if statement.verb == "EXPLAIN" else "EXPLAIN "
        self._connection.execute(explain + statement.text, nothing).close()

    def _bind(self, request: Bind) -> None:
        prepared = self._prepared(request.statement)
        statement = prepared.statement
        expected = 0 if statement is None else statement.parameters
        if len(request.values) != expected:
            raise SqlError(
                "08P01",
                f"bind message supplies {len(request.values)} parameters, but prepared "
                f'statement "{request.statement}" requires {expected}',
            )
        if len(request.formats) not in (0, 1, expected):
            raise SqlError("08P01", "bind message has another number of formats than values")
        if not {*request.formats, *request.result_formats} <= {0, 1}:
            raise SqlError("08P01", "a format is 0 for text, or 1 for binary")
        if statement is not None:
            self._refuse_if_failed(statement)
        formats = request.formats or (0,)
        types = prepared.types
        parameters = {
            str(number + 1): parameter(
                types[number] if number < len(types) else 0,
                formats[number if len(formats) > 1 else 0],
                value,
            )
            for number, value in enumerate(request.values)
        }
        if request.portal and request.portal in self._portals:
            raise SqlError("42P03", f'portal "{request.portal}" already exists')
        self._forget(request.portal)
        portal = Portal(statement, parameters, request.result_formats)
        self._keep(self._portals, request.portal, portal)

    def _describe(self, request: Describe, reply: Reply) -> None:
        if request.kind == "S":
            prepared = self._prepared(request.name)
            statement = prepared.statement
            expected = 0 if statement is None else statement.parameters
            known = (*prepared.types, *[0] * expected)[:expected]
            reply.parameter_types(oid or 25 for oid in known)
            parameters: Mapping[str, object] = dict.fromkeys(map(str, range(1, expected + 1)))
            formats: tuple[int, ...] = ()
        else:
            portal = self._portal(request.name)
            statement, parameters, formats = portal.statement, portal.parameters, portal.formats
        if statement is None or not statement.has_rows:
            reply.no_data()
            return
        self._refuse_if_failed(statement)
        names = self._columns(statement, parameters)
        if not names:
            reply.no_data()
            return
        if len(formats) not in (0, 1, len(names)):
            raise SqlError("08P01", f"{len(formats)} result formats for {len(names)} columns")
        reply.columns(names, formats)

    def _columns(self, statement: Statement, parameters: Mapping[str, object]) -> list[str]:
        """The names of its columns, which SQLite tells when it has begun: whatever it did is
        undone."""
        execute = self._connection.execute
        execute("SAVEPOINT protoserve_columns")
        try:
            cursor = execute(statement.text, parameters)
            names = [column[0] for column in cursor.description or ()]
            cursor.close()
        finally:
            if self._connection.in_transaction:
                execute("ROLLBACK TO protoserve_columns")
                execute("RELEASE protoserve_columns")
        return names

    def _execute(self, request: Execute, reply: Reply, flush: Callable[[], object]) -> None:
        portal = self._portal(request.portal)
        if portal.statement is None:
            reply.empty_query()
            return
        if portal.cursor is None and portal.tag is None:
            self._start(portal, reply)
        self._give_rows(portal, max(0, request.limit), reply, flush)

    def _close(self, request: Close) -> None:
        if request.kind == "S":
            self._statements.pop(request.name, None)
        else:
            self._forget(request.name)

    # -- statements ------------------------------------------------------------------------

    def _start(self, portal: Portal, reply: Reply) -> None:
        """Run it up to its first row."""
        statement = portal.statement
        assert statement is not None
        self._refuse_if_failed(statement)
        if statement.transaction:
            portal.tag = self._lead(statement, reply)
            return
        if statement.verb == "DEALLOCATE":
            self._deallocate(statement)
            portal.tag = "DEALLOCATE"
            return
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN")
        portal.cursor = self._connection.execute(statement.text, portal.parameters)

    def _give_rows(
        self, portal: Portal, limit: int, reply: Reply, flush: Callable[[], object]
    ) -> None:
        """So many rows of it, 0 for all, and what follows them."""
        statement, cursor = portal.statement, portal.cursor
        assert statement is not None
        if cursor is None:
            reply.complete(portal.tag or statement.tag(0))
            return
        if not cursor.description:
            reply.complete(statement.tag(0 if portal.over else max(0, cursor.rowcount)))
            portal.over = True
            return
        given = 0
        if not portal.over:
            for row in itertools.islice(cursor, limit or None):
                given += 1
                reply.row([value_bytes(value) for value in row])
                if len(reply.data) >= PUSH_SIZE:
                    flush()
            if limit and given == limit:
                reply.suspended()
                return
            portal.over = True
        reply.complete(statement.tag(given))

    def _lead(self, statement: Statement, reply: Reply) -> str:
        """BEGIN, COMMIT and their like; returns the tag."""
        what = statement.transaction
        if what == "BEGIN":
            if self._block:
                reply.warning("25001", "there is already a transaction in progress")
            elif not self._connection.in_transaction:
                self._connection.execute("BEGIN")
            self._block = True
            return "BEGIN"
        if what in ("COMMIT", "ROLLBACK"):
            if not self._block:
                reply.warning("25P01", "there is no transaction in progress")
            how = "ROLLBACK" if self._failed else what
            self._end(how)
            return how
        if not self._block:
            raise SqlError("25P01", f"{what} can only be used in transaction blocks")
        self._connection.execute(statement.text)
        if what == "ROLLBACK TO":
            self._failed = False
        return statement.verb

    def _end(self, how: str) -> None:
        self._close_portals()
        self._block = self._failed = False
        if self._connection.in_transaction:
            try:
                self._connection.execute(how)
            except sqlite3.Error:  # others are in the way
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _settle(self) -> None:
        """A transaction that nobody asked for is complete."""
        if not self._block:
            self._end("COMMIT")

    def _fail(self) -> None:
        """A statement has failed, and its transaction with it."""
        if self._block:
            self._failed = True
        else:
            self._end("ROLLBACK")

    def _refuse_if_failed(self, statement: Statement) -> None:
        if self._failed and statement.transaction not in ("COMMIT", "ROLLBACK", "ROLLBACK TO"):
            raise SqlError(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
            )

    def _deallocate(self, statement: Statement) -> None:
        name = statement.text.split()[-1]
        name = name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
        if name == "all":
            self._statements.clear()
        elif self._statements.pop(name, None) is None:
            raise SqlError("26000", f'prepared statement "{name}" does not exist')

    # -- what is kept ----------------------------------------------------------------------

    def _prepared(self, name: str) -> Prepared:
        try:
            return self._statements[name]
        except KeyError:
            raise SqlError("26000", f'prepared statement "{name}" does not exist') from None

    def _portal(self, name: str) -> Portal:
        try:
            return self._portals[name]
        except KeyError:
            raise SqlError("34000", f'portal "{name}" does not exist') from None

    @staticmethod
    def _keep(where: dict[str, KEPT], name: str, what: KEPT) -> None:
        if len(where) >= STATEMENT_LIMIT and name not in where:
            raise SqlError("53400", f"more than {STATEMENT_LIMIT} statements or portals")
        where[name] = what

    def _forget(self, name: str) -> None:
        portal = self._portals.pop(name, None)
        if portal is not None:
            portal.close()

    def _close_portals(self) -> None:
        for name in list(self._portals):
            self._forget(name)


class Database:
    """The application: an empty database, which lasts from the server's start to its stop.

    ``lock_timeout``: seconds that a statement waits for others' transactions before it fails
    with 40001. SQLite has one writer at a time, whose commit waits for readers.
    """

    def __init__(self, lock_timeout: float = 5) -> None:
        self._lock_timeout = lock_timeout
        # In memory, and shared by the connections of this process that know the name.
        self._uri = f"file:/protoserve-{secrets.token_hex(8)}?vfs=memdb"
        self._anchor: sqlite3.Connection | None = None  # with the last one the tables would go
        self._sessions: dict[int, Session] = {}
        self._numbers = itertools.count(1)

    def on_start(self, server: object) -> None:
        self._anchor = self._connect()

    def on_stop(self, server: object) -> None:
        assert self._anchor is not None
        self._anchor.close()

    def __call__(self, task: PostgresTask) -> None:
        request, reply = task.req, task.resp
        match request:
            case Startup():
                self._begin(task, request)
            case Cancel():
                session = self._sessions.get(request.process)
                if session and secrets.compare_digest(session.secret, request.secret):
                    session.cancel()
                task.noreply()  # whether or not
            case Terminate():
                task.noreply()
            case _:
                session = task.connection.context
                with session:
                    session.answer(request, reply, lambda: task.push(reply.take()))

    def _begin(self, task: PostgresTask, request: Startup) -> None:
        reply = task.resp
        if not request.parameters.get("user"):
            reply.error("28000", "no user name specified in startup packet", "FATAL")
            task.set_keep_alive(0)
            return
        session = Session(next(self._numbers), self._connect())
        self._sessions[session.process] = session
        task.connection.context = session
        task.connection.on_peer_end(lambda _: session.abandon())
        task.connection.on_close(lambda _: self._leave(session))
        options = [name for name in request.parameters if name.startswith("_pq_.")]
        if request.minor or options:
            reply.negotiate_version(0, options)
        reply.authentication_ok()
        name = request.parameters.get("application_name", "")
        reply.parameters({**PARAMETERS, "application_name": name})
        reply.key(session.process, session.secret)
        reply.ready(session.status)

    def _leave(self, session: Session) -> None:
        del self._sessions[session.process]
        session.leave()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._uri,
            uri=True,
            timeout=self._lock_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.text_factory = lambda data: data.decode(errors="replace")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_LIMIT)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_DENY if action in _FORBIDDEN else sqlite3.SQLITE_OK
        )
        return connection


process: Final = Database()
