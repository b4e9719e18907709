"""examples/protocols/postgres, with psycopg, psql, and bytes of our own."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from loopback import PATIENCE, RawClient, eventually
from postgres_protocol import POSTGRES_SPEC
from postgres_protocol.memory import VALUE_LIMIT, Database
from protocol_packages import program, serving

from protoserve import ServerParams, WFServer

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
MANY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n"


def started(params: ServerParams | None = None, **settings: Any) -> WFServer[Any, Any]:
    return WFServer(POSTGRES_SPEC, Database(**settings), params).start("127.0.0.1", 0)


@pytest.fixture
def server() -> Iterator[WFServer[Any, Any]]:
    with started() as server:
        yield server


def address_of(server: WFServer[Any, Any]) -> str:
    host, port = server.address[:2]
    return f"host={host} port={port} user=me dbname=it connect_timeout=10"


@contextlib.contextmanager
def client_of(server: WFServer[Any, Any], **options: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(address_of(server), **{"autocommit": True, **options}) as client:
        yield client


# -- psycopg -------------------------------------------------------------------------------


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_simple_queries(server: WFServer[Any, Any], sslmode: str) -> None:
    with client_of(server, sslmode=sslmode) as client:
        assert client.info.server_version == 140000
        assert client.info.encoding == "utf-8"
        cursor = client.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)")
        assert cursor.statusmessage == "CREATE TABLE"
        cursor = client.execute("INSERT INTO t VALUES (1, 'ü'), (2, NULL)")
        assert (cursor.statusmessage, cursor.rowcount) == ("INSERT 0 2", 2)
        cursor = client.execute("SELECT id, word AS w FROM t ORDER BY id")
        assert cursor.fetchall() == [("1", "ü"), ("2", None)]
        assert cursor.description is not None
        assert [(c.name, c.type_code) for c in cursor.description] == [("id", 25), ("w", 25)]
        assert client.execute("UPDATE t SET word = 'x'").rowcount == 2
        assert client.execute("DELETE FROM t WHERE id = 1 RETURNING word").fetchall() == [("x",)]
        assert client.execute("").description is None
        assert client.execute("SELECT 1.5, x'00ff', 1e999, -1e999").fetchall() == [
            ("1.5", "\\x00ff", "Infinity", "-Infinity")
        ]
        assert client.execute("DROP TABLE t").statusmessage == "DROP TABLE"


def test_sslmode_require_is_told_that_there_is_none(server: WFServer[Any, Any]) -> None:
    with pytest.raises(psycopg.OperationalError, match="server does not support SSL"):
        psycopg.connect(address_of(server) + " sslmode=require")


def test_several_statements_in_one_query(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        cursor = client.execute("CREATE TABLE t (a); INSERT INTO t VALUES (';'); SELECT a FROM t;")
        assert cursor.statusmessage == "CREATE TABLE"
        assert cursor.nextset()
        assert cursor.rowcount == 1
        assert cursor.nextset()
        assert cursor.fetchall() == [(";",)]
        assert not cursor.nextset()
        # Together or not at all.
        with pytest.raises(psycopg.errors.UndefinedTable):
            client.execute("INSERT INTO t VALUES ('lost'); INSERT INTO missing VALUES (1)")
        client.execute("BEGIN; INSERT INTO t VALUES ('kept'); COMMIT; SELECT 1")
        assert client.execute("SELECT a FROM t").fetchall() == [(";",), ("kept",)]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("prepare", [False, True])
def test_parameters(server: WFServer[Any, Any], prepare: bool, binary: bool) -> None:
    with client_of(server) as client:
        client.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, what)")
        values = [7, -(2**62), 1.5, True, "ü';--", b"\0\xff", None]
        places = "%b" if binary else "%s"
        for number, value in enumerate(values):
            statement = f"INSERT INTO t VALUES ({places}, {places}) RETURNING typeof(what)"
            client.execute(statement, (number, value), prepare=prepare)
        rows = client.execute(
            "SELECT typeof(what), what FROM t WHERE id < %s ORDER BY id", (100,), prepare=prepare
        ).fetchall()
        assert rows == [
            ("integer", "7"),
            ("integer", str(-(2**62))),
            ("real", "1.5"),
            ("integer", "1"),
            ("text", "ü';--"),
            ("blob", "\\x00ff"),
            ("null", None),
        ]
        cursor = client.cursor(binary=True)
        cursor.execute("SELECT %s || %s", ("a", "b"))
        assert cursor.fetchall() == [("ab",)]


def test_other_parameters(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        one = "SELECT %t"
        assert client.execute(one, (datetime.date(2026, 1, 2),)).fetchall() == [("2026-01-02",)]
        for places in ("%t", "%b"):
            for text, shown in (
                ("1.5", "2.5"),
                ("-12345678.25", "-12345677.25"),
                ("1E6", "1000001"),
            ):
                found = client.execute(f"SELECT 1 + {places}", (decimal.Decimal(text),))
                assert float(found.fetchone()[0]) == float(shown)  # type: ignore[index]
        assert client.execute("SELECT %s", (2**63 - 1,)).fetchall() == [(str(2**63 - 1),)]
        with pytest.raises(psycopg.errors.NumericValueOutOfRange):
            client.execute("SELECT %s", (10**30,))
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            client.execute("SELECT %b", (datetime.date(2026, 1, 2),))
        with pytest.raises(psycopg.errors.SyntaxError):
            client.execute("SELECT 1; SELECT %s", (1,))
        with pytest.raises(psycopg.errors.UndefinedParameter):
            client.execute("SELECT ?")
        assert client.execute("SELECT %s", (1,)).fetchall() == [("1",)]


def test_prepared_statements(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        client.prepared_max = 3
        # psycopg prepares by itself what is asked often, and forgets what is not.
        for turn in range(8):
            for statement in range(8):
                for _ in range(2):
                    found = client.execute(f"SELECT %s, {statement}", (turn,), prepare=True)
                    assert found.fetchall() == [(str(turn), str(statement))]
        client.execute("DEALLOCATE ALL")
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            client.execute("DEALLOCATE _pg3_1")


def insert_in_a_pipeline(client: psycopg.Connection[Any], *values: int) -> None:
    with client.pipeline():
        for value in values:
            client.execute("INSERT INTO t VALUES (%s)", (value,))


def test_many_at_once(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        client.execute("CREATE TABLE t (a UNIQUE)")
        with client.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s)", [(n,) for n in range(500)])
            assert cursor.rowcount == 500
        with client.pipeline(), client.cursor() as cursor:
            first = cursor.execute("SELECT count(*) FROM t").fetchone()
            assert first == ("500",)
        # What belongs together fails together.
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert_in_a_pipeline(client, 1000, 1001, 1, 1002)
        assert client.execute("SELECT count(*) FROM t").fetchall() == [("500",)]


def test_a_long_answer_comes_at_the_pace_of_the_reader(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client, client.cursor() as cursor:
        total = sum(int(number) for (number,) in cursor.stream(MANY.format(200_000)))
        assert total == 200_000 * 200_001 // 2


ERRORS = {
    "SELEKT 1": psycopg.errors.SyntaxError,
    "SELECT (": psycopg.errors.SyntaxError,
    "SELECT 'a": psycopg.errors.SyntaxError,
    "SELECT * FROM missing": psycopg.errors.UndefinedTable,
    "SELECT missing FROM t": psycopg.errors.UndefinedColumn,
    "SELECT missing(1)": psycopg.errors.UndefinedFunction,
    "CREATE TABLE t (a)": psycopg.errors.DuplicateTable,
    "INSERT INTO t VALUES (1, 1, 1)": psycopg.errors.UniqueViolation,
    "INSERT INTO t VALUES (3, NULL, 1)": psycopg.errors.NotNullViolation,
    "INSERT INTO t VALUES (3, 3, -1)": psycopg.errors.CheckViolation,
    "INSERT INTO u VALUES (5)": psycopg.errors.ForeignKeyViolation,
    "ATTACH '/tmp/protoserve-test' AS other": psycopg.errors.InsufficientPrivilege,
    "PRAGMA writable_schema = 1": psycopg.errors.InsufficientPrivilege,
    "DEALLOCATE missing": psycopg.errors.InvalidSqlStatementName,
    "SAVEPOINT s": psycopg.errors.NoActiveSqlTransaction,
    f"SELECT zeroblob({VALUE_LIMIT + 1})": psycopg.errors.ProgramLimitExceeded,
    "SELECT zeroblob(1e18)": psycopg.errors.ProgramLimitExceeded,
}


@pytest.mark.parametrize("parameters", [None, ()], ids=["simple", "extended"])
def test_errors_have_their_sqlstate(
    server: WFServer[Any, Any], parameters: tuple[()] | None
) -> None:
    with client_of(server) as client:
        client.execute("CREATE TABLE t (a PRIMARY KEY, b NOT NULL, c CHECK (c > 0))")
        client.execute("CREATE TABLE u (a REFERENCES t)")
        client.execute("INSERT INTO t VALUES (1, 1, 1)")
        for statement, expected in ERRORS.items():
            with pytest.raises(psycopg.Error) as raised:
                client.execute(statement, parameters, prepare=parameters is not None)
            assert isinstance(raised.value, expected), (statement, raised.value)
            assert client.execute("SELECT 1").fetchall() == [("1",)]
            assert client.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_no_file_is_written(server: WFServer[Any, Any], tmp_path: Any) -> None:
    with client_of(server) as client:
        with pytest.raises(psycopg.Error):
            client.execute(f"VACUUM INTO '{tmp_path}/copy'")
        assert list(tmp_path.iterdir()) == []


def test_transactions(server: WFServer[Any, Any]) -> None:
    status = psycopg.pq.TransactionStatus
    with client_of(server, autocommit=False) as client, client_of(server) as other:
        client.execute("CREATE TABLE t (a UNIQUE)")
        assert client.info.transaction_status == status.INTRANS
        client.commit()
        assert client.info.transaction_status == status.IDLE
        client.execute("INSERT INTO t VALUES (1)")
        client.rollback()
        assert other.execute("SELECT count(*) FROM t").fetchall() == [("0",)]
        client.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            client.execute("INSERT INTO t VALUES (%s)", (1,))
        assert client.info.transaction_status == status.INERROR
        for parameters in (None, ()):
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                client.execute("SELECT 1", parameters)
        client.commit()  # which rolls back
        assert other.execute("SELECT count(*) FROM t").fetchall() == [("0",)]
        with client.transaction():
            client.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(psycopg.errors.UniqueViolation), client.transaction():
                client.execute("INSERT INTO t VALUES (2); INSERT INTO t VALUES (1)")
            client.execute("INSERT INTO t VALUES (3)")
        client.commit()
        assert other.execute("SELECT a FROM t ORDER BY a").fetchall() == [("1",), ("3",)]


def test_warnings_about_transactions(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        said: list[str | None] = []
        client.add_notice_handler(lambda notice: said.append(notice.sqlstate))
        client.execute("COMMIT")
        client.execute("BEGIN")
        client.execute("BEGIN")
        client.execute("ROLLBACK")
        client.execute("ROLLBACK")
    assert said == ["25P01", "25001", "25P01"]


def test_who_waits_too_long_for_others_may_try_again() -> None:
    with (
        started(lock_timeout=0.1) as server,
        client_of(server, autocommit=False) as first,
        client_of(server) as second,
    ):
        first.execute("CREATE TABLE t (a)")
        with pytest.raises(psycopg.errors.SerializationFailure):
            second.execute("CREATE TABLE u (a)")
        assert second.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        first.commit()
        second.execute("CREATE TABLE u (a)")


def test_a_statement_is_cancelled_from_another_connection(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        # Again and again: it may come before the statement does.
        over = threading.Event()

        def cancel() -> None:
            while not over.wait(0.05):
                client.cancel_safe(timeout=PATIENCE)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            for parameters in (None, ()):
                with pytest.raises(psycopg.errors.QueryCanceled):
                    client.execute(ENDLESS, parameters)
        finally:
            over.set()
            thread.join()
        eventually(lambda: server.conn_count == 1)
        assert client.execute("SELECT 1").fetchall() == [("1",)]


def test_a_statement_ends_when_its_client_leaves(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        client.pgconn.send_query(ENDLESS.encode())
        client.pgconn.flush()
        client.pgconn.finish()
    # The server could not stop in time else.
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < server.params.shutdown_timeout  # type: ignore[operator]


def test_newer_clients_go_on_with_what_there_is(server: WFServer[Any, Any]) -> None:
    if psycopg.pq.version() < 180000:
        pytest.skip("libpq before 18 speaks no other version")
    with client_of(server, max_protocol_version="3.2") as client:
        assert client.execute("SELECT 1").fetchall() == [("1",)]


def test_the_last_word(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        client.execute("SELECT 1")
        server.shutdown()
        assert select.select([client], [], [], PATIENCE)[0]
        with pytest.raises(psycopg.errors.AdminShutdown, match="the server stopped"):
            client.execute("SELECT 1")
    params = POSTGRES_SPEC.params.replace(keep_alive_timeout=0.1)
    with started(params) as impatient, client_of(impatient) as client:
        eventually(lambda: impatient.conn_count == 0)
        with pytest.raises(psycopg.errors.IdleSessionTimeout):
            client.execute("SELECT 1")


# -- psql ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def psql() -> str:
    return program("psql", "postgresql-client")


def run_psql(
    psql: str, server: WFServer[Any, Any], *arguments: str, said: str = "", code: int = 0
) -> str:
    done = subprocess.run(
        [psql, "--no-psqlrc", "--no-align", "--tuples-only", *arguments, address_of(server)],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PGCLIENTENCODING": "UTF8", "LC_ALL": "C.UTF-8"},
    )
    assert (done.stderr, done.returncode) == (said, code)
    return done.stdout


def test_psql(server: WFServer[Any, Any], psql: str) -> None:
    create = "CREATE TABLE t (a, b)"
    assert run_psql(psql, server, "-c", create) == "CREATE TABLE\n"
    assert run_psql(psql, server, "-c", "INSERT INTO t VALUES (1, 'ü')") == "INSERT 0 1\n"
    shown = run_psql(psql, server, "-c", "SELECT * FROM t; SELECT 2", "-c", "SELECT NULL")
    assert shown == "1|ü\n2\n\n"
    failed = "ERROR:  table t already exists\n"
    assert run_psql(psql, server, "-c", create, said=failed, code=1) == ""
    many = MANY.format(20_000)
    assert len(run_psql(psql, server, "-v", "FETCH_COUNT=0", "-c", many).splitlines()) == 20_000
    one = ("--single-transaction", "-v", "ON_ERROR_STOP=1")
    run_psql(psql, server, *one, "-c", "DELETE FROM t", "-c", create, said=failed, code=1)
    assert run_psql(psql, server, "-c", "SELECT count(*) FROM t") == "1\n"


# -- bytes of our own ----------------------------------------------------------------------


def message(kind: bytes, content: bytes = b"") -> bytes:
    return kind + (len(content) + 4).to_bytes(4, "big") + content


BEGIN = b"\0\0\0\x11\0\3\0\0user\0me\0\0"
SYNC = message(b"S")


class Session(RawClient):
    """Messages come as their kind and content."""

    def __init__(self, server: WFServer[Any, Any], first: bytes = BEGIN) -> None:
        super().__init__(server.address)
        self.send(first)

    def heard(self) -> tuple[bytes, bytes]:
        kind = self._file.read(1)
        size = int.from_bytes(self._file.read(4), "big") - 4
        return kind, self._file.read(size)

    def up_to_ready(self) -> str:
        """The kinds up to ReadyForQuery, and its status."""
        kinds = ""
        while True:
            kind, content = self.heard()
            kinds += kind.decode()
            if kind == b"Z":
                return f"{kinds} {content.decode()}"


def extended(text: bytes, limit: int = 0) -> bytes:
    return (
        message(b"P", b"\0" + text + b"\0\0\0")
        + message(b"B", b"\0\0\0\0\0\0\0\0")
        + message(b"D", b"P\0")
        + message(b"E", b"\0" + limit.to_bytes(4, "big"))
    )


def test_everything_at_once(server: WFServer[Any, Any]) -> None:
    create = extended(b"CREATE TABLE t (a)")
    data = (
        extended(b"INSERT INTO t VALUES (1), (2), (3)")
        + SYNC
        + extended(b"SELECT a FROM t", 2)
        + message(b"H")
        + message(b"E", b"\0\0\0\0\2")
        + message(b"E", b"\0\0\0\0\0")
        + SYNC
        + extended(b"SELECT wrong")
        + extended(b"SELECT 1")
        + SYNC
        + message(b"F", b"\0\0\0\1\0\0\0\0\0\0")
        + message(b"C", b"P\0")
        + message(b"C", b"Smissing\0")
        + message(b"D", b"Smissing\0")
        + message(b"Q", b"\0")
        + message(b"X")
    )
    expected = [
        "12nCZ I",
        "12TDDsDCCZ I",
        "EZ I",
        "EZ I",
        "33EIZ I",
    ]
    with Session(server) as client:
        assert client.up_to_ready() == "R" + "S" * 8 + "KZ I"
        client.send(create + data)
        expected[0] = "12nC" + expected[0]
        assert [client.up_to_ready() for _ in expected] == expected
        assert client.rest() == b""
    with Session(server, BEGIN + data) as client:
        client.end_sending()
        client.up_to_ready()
        expected[0] = "12nCZ I"
        expected[1] = "12TDDsDDsDDCZ I"  # there are six now
        assert [client.up_to_ready() for _ in expected] == expected
        assert client.rest() == b""


def test_a_statement_is_described_and_not_run(server: WFServer[Any, Any]) -> None:
    def prepare(name: bytes, text: bytes, types: bytes = b"\0\0") -> bytes:
        return message(b"P", name + b"\0" + text + b"\0" + types)

    with Session(server) as client:
        client.up_to_ready()
        client.send(message(b"Q", b"CREATE TABLE t (a)\0"))
        assert client.up_to_ready() == "CZ I"
        client.send(
            prepare(b"one", b"SELECT $1 AS a, $2 AS b", b"\0\1\0\0\0\x17")
            + message(b"D", b"Sone\0")
            + prepare(b"two", b"INSERT INTO t VALUES ($1) RETURNING a + 1 AS more")
            + message(b"D", b"Stwo\0")
            + prepare(b"three", b"DELETE FROM t")
            + message(b"D", b"Sthree\0")
            + prepare(b"four", b" -- nothing\n")
            + message(b"D", b"Sfour\0")
            + message(b"B", b"\0four\0\0\0\0\0\0\0")
            + message(b"E", b"\0\0\0\0\0")
            + prepare(b"one", b"SELECT 1")
            + SYNC
            + message(b"Q", b"SELECT a FROM t\0")
        )
        described = [client.heard() for _ in range(15)]
        assert b"".join(kind for kind, _ in described) == b"1tT1tT1tn1tn2IE"
        assert described[1][1] == b"\0\2\0\0\0\x17\0\0\0\x19"
        assert described[2][1].startswith(b"\0\2a\0")
        assert described[5][1].startswith(b"\0\1more\0")
        assert b"C42P05\0" in described[-1][1]
        assert client.up_to_ready() == "Z I"
        assert client.up_to_ready() == "TCZ I"


def test_bytes_that_are_no_text_fail_a_statement_only(server: WFServer[Any, Any]) -> None:
    with Session(server) as client:
        client.up_to_ready()
        client.send(message(b"Q", b"SELECT '\xff'\0"))
        kind, content = client.heard()
        assert (kind, b"C22021\0" in content) == (b"E", True)
        assert client.up_to_ready() == "Z I"
        client.send(message(b"Q", b"SELECT CAST(x'ff' AS TEXT)\0"))
        assert client.up_to_ready() == "TDCZ I"


def test_who_breaks_the_protocol_hears_so(server: WFServer[Any, Any]) -> None:
    for first in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x08\0\2\0\0", BEGIN[:-4] + b"\0" * 4):
        with Session(server, first) as client:
            kind, content = client.heard()
            assert (kind, content[:8]) == (b"E", b"SFATAL\0V")
            assert client.rest() == b""
    with Session(server) as client:
        client.up_to_ready()
        client.send(message(b"Q", b"SELECT 1\0") + b"?")
        assert client.up_to_ready() == "TDCZ I"
        kind, content = client.heard()
        assert b"invalid frontend message type 63" in content
        assert client.rest() == b""
    with Session(server, b"\0\0\0\x09\0\3\0\0\0") as client:  # and who has no name
        kind, content = client.heard()
        assert b"C28000\0" in content
        assert client.rest() == b""


def test_a_wrong_key_cancels_nothing(server: WFServer[Any, Any]) -> None:
    with client_of(server) as client:
        process = client.info.backend_pid.to_bytes(4, "big")
        for key in (process + b"none", b"\0\0\0\0" + b"none", process):
            cancel = (8 + len(key)).to_bytes(4, "big") + (80877102).to_bytes(4, "big") + key
            with Session(server, cancel) as other:
                assert other.rest() == b""
        assert client.execute("SELECT 1").fetchall() == [("1",)]


def test_clients_that_leave_in_the_middle(server: WFServer[Any, Any]) -> None:
    data = BEGIN + extended(b"SELECT 1") + SYNC + message(b"Q", b"BEGIN; SELECT 1\0")
    for cut in range(0, len(data), 3):
        with Session(server, data[:cut]):
            pass
    eventually(lambda: server.conn_count == 0)
    with client_of(server) as client:
        client.execute("CREATE TABLE t (a)")


def test_in_a_loop() -> None:
    database = Database()
    database.on_start(None)
    try:
        with serving(POSTGRES_SPEC, database, "loop") as server, client_of(server) as client:
            assert client.execute("SELECT %s", (1,)).fetchall() == [("1",)]
    finally:
        database.on_stop(None)
