"""Transactions: what is committed, what is rolled back, and what nobody knows."""

# ruff: noqa: PT012 - what raises is the end of a block, or a call inside it

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, eventually

from fastpool import Pool, TransactionAborted
from fastpool.drivers.pg8000 import DBAPI

PID = "SELECT pg_backend_pid()"


class Client:
    """One way to talk, for both drivers."""

    def __init__(self, pool: Pool[Any], driver: str) -> None:
        self.pool = pool
        self.driver = driver

    def run(self, conn: Any, sql: str) -> Any:
        """The rows of *sql*."""
        if self.driver == "native":
            return conn.run(sql)
        cursor = conn.cursor()
        cursor.execute(sql)
        return [] if cursor.description is None else [list(row) for row in cursor.fetchall()]

    def value(self, conn: Any, sql: str) -> Any:
        """The first value of *sql*'s answer."""
        return self.run(conn, sql)[0][0]

    def insert(self, conn: Any, n: int) -> None:
        """Put *n* into the table."""
        self.run(conn, f"INSERT INTO kept VALUES ({n})")


@pytest.fixture(params=["native", "dbapi"])
def client(make_pool: MakePool, request: pytest.FixtureRequest) -> Client:
    """A pool with one connection, for each driver."""
    return Client(make_pool(driver=request.param, max_size=1), request.param)


@pytest.fixture(autouse=True)
def kept(admin: Admin) -> Iterator[Any]:
    """A table, and a function that tells what is committed in it."""
    admin.run("CREATE TABLE kept (n int)")
    yield lambda: [n for (n,) in admin.run("SELECT n FROM kept ORDER BY n")]
    admin.run("DROP TABLE kept")


def test_clean_exit_commits(client: Client, kept: Any) -> None:
    """A block that ends well is committed, with an explicit transaction or without."""
    with client.pool.connection() as conn:
        if client.driver == "native":
            conn.run("BEGIN")
        client.insert(conn, 1)
        assert kept() == []
    assert kept() == [1]
    with client.pool.transaction() as conn:
        client.insert(conn, 2)
        assert kept() == [1]
    assert kept() == [1, 2]
    if client.driver == "native":
        client.pool.run("INSERT INTO kept VALUES (3)")
    else:
        client.pool.execute("INSERT INTO kept VALUES (%s)", (3,))
    assert kept() == [1, 2, 3]


def test_exception_rolls_back(client: Client, kept: Any) -> None:
    """A block that raises leaves nothing, and the connection is clean for the next."""
    for block in (client.pool.connection, client.pool.transaction):
        with pytest.raises(ArithmeticError), block() as conn:
            if client.driver == "native" and block == client.pool.connection:
                conn.run("BEGIN")
            client.insert(conn, 1)
            raise ArithmeticError
        with client.pool.connection() as conn:
            assert client.value(conn, "SELECT pg_current_xact_id_if_assigned() IS NULL")
    assert kept() == []
    assert client.pool.stats().closed == {}


def test_release_rolls_back(client: Client, kept: Any) -> None:
    """acquire() and release() commit nothing."""
    lease = client.pool.acquire()
    if client.driver == "native":
        lease.run("BEGIN")
    client.insert(lease, 1)
    lease.release()
    assert kept() == []


@pytest.mark.parametrize("block", ["connection", "transaction"])
def test_clean_exit_of_an_aborted_transaction(client: Client, kept: Any, block: str) -> None:
    """A failure that the block swallowed cannot be committed: TransactionAborted says so."""
    with pytest.raises(TransactionAborted) as caught, getattr(client.pool, block)() as conn:
        if client.driver == "native" and block == "connection":
            conn.run("BEGIN")
        client.insert(conn, 1)
        with pytest.raises(Exception, match="42601"):
            client.run(conn, "SELEKT")
    assert caught.value.outcome == "rolled_back"
    assert kept() == []
    with client.pool.connection() as conn:
        assert client.value(conn, "SELECT 1") == 1
    assert client.pool.stats().closed == {}


def test_nested(client: Client, kept: Any) -> None:
    """Inner transactions are savepoints: each is kept or undone by itself."""
    with client.pool.acquire() as lease, lease.transaction():
        client.insert(lease, 1)
        with pytest.raises(ArithmeticError), lease.transaction():
            client.insert(lease, 2)
            raise ArithmeticError
        with lease.transaction():
            client.insert(lease, 3)
            with pytest.raises(TransactionAborted), lease.transaction():  # noqa: SIM117
                with pytest.raises(Exception, match="42601"):
                    client.run(lease, "SELEKT")
            client.insert(lease, 4)
        assert kept() == []
    assert kept() == [1, 3, 4]


def test_user_commit_inside(client: Client, kept: Any) -> None:
    """The block's end has nothing to do when its user has committed or rolled back."""
    with client.pool.transaction() as conn:
        client.insert(conn, 1)
        if client.driver == "native":
            conn.run("COMMIT")
        else:
            conn.commit()
        assert kept() == [1]
    with client.pool.transaction() as conn:
        client.insert(conn, 2)
        if client.driver == "native":
            conn.run("ROLLBACK")
        else:
            conn.rollback()
    assert kept() == [1]
    assert client.pool.stats().closed == {}


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, ("read committed", "off", "off")),
        ({"isolation": "serializable"}, ("serializable", "off", "off")),
        ({"isolation": "repeatable read"}, ("repeatable read", "off", "off")),
        ({"read_only": True}, ("read committed", "on", "off")),
        ({"isolation": "serializable", "read_only": True, "deferrable": True},
         ("serializable", "on", "on")),
    ],
    ids=str,
)  # fmt: skip
def test_modes_reach_the_server(client: Client, options: Any, shown: tuple[str, ...]) -> None:
    """isolation, read_only and deferrable hold in the transaction, and not after it."""
    sql = (
        "SELECT current_setting('transaction_isolation'), "
        "current_setting('transaction_read_only'), current_setting('transaction_deferrable')"
    )
    with client.pool.transaction(**options) as conn:
        assert tuple(client.run(conn, sql)[0]) == shown
    with client.pool.transaction() as conn:
        assert tuple(client.run(conn, sql)[0]) == ("read committed", "off", "off")


def test_modes_can_be_switched_back(make_pool: MakePool) -> None:
    """read_only=False writes although the session is read-only by default."""
    pool = make_pool(session_settings={"default_transaction_read_only": "on"})
    with pytest.raises(Exception, match="25006"):
        pool.run("CREATE TABLE forbidden ()")
    with pool.transaction(read_only=False) as conn:
        conn.run("CREATE TEMPORARY TABLE allowed () ON COMMIT DROP")


def test_wrong_isolation(client: Client) -> None:
    """A word that is no isolation level is refused before anything is sent."""
    with pytest.raises(ValueError, match="isolation"), client.pool.transaction(isolation="none"):  # type: ignore[arg-type]
        pytest.fail("not reached")


def test_serialization_failure_passes_through(client: Client, admin: Admin, kept: Any) -> None:
    """A COMMIT that the server refuses raises the server's error, and nothing is kept."""
    admin.run("CREATE TABLE parent (id int PRIMARY KEY)")
    admin.run("CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    try:
        with pytest.raises(Exception, match="23503"), client.pool.transaction() as conn:
            client.insert(conn, 1)
            client.run(conn, "INSERT INTO child VALUES (7)")
        assert kept() == []
        with client.pool.connection() as conn:
            assert client.value(conn, "SELECT 1") == 1
        assert client.pool.stats().closed == {}
    finally:
        admin.run("DROP TABLE child, parent")


@pytest.fixture
def slow_commit(admin: Admin) -> Iterator[None]:
    """Each INSERT into ``kept`` makes its COMMIT take a minute."""
    admin.run(
        "CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$"
    )
    admin.run(
        "CREATE CONSTRAINT TRIGGER stalling AFTER INSERT ON kept DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION stall()"
    )
    yield
    admin.run("DROP FUNCTION stall CASCADE")


@pytest.mark.usefixtures("slow_commit")
@pytest.mark.parametrize("block", ["connection", "transaction"])
def test_killed_at_commit(client: Client, admin: Admin, block: str) -> None:
    """Nobody knows what became of a COMMIT that got no answer: outcome="unknown"."""
    killer: list[threading.Thread] = []

    def kill_at_commit(pid: int) -> None:
        eventually(lambda: admin.running(pid) == "COMMIT", "the COMMIT runs")
        admin.kill([pid])

    with pytest.raises(TransactionAborted) as caught, getattr(client.pool, block)() as conn:
        if client.driver == "native" and block == "connection":
            conn.run("BEGIN")
        client.insert(conn, 1)
        pid = client.value(conn, PID)
        killer.append(threading.Thread(target=kill_at_commit, args=(pid,)))
        killer[0].start()
    killer[0].join()
    assert caught.value.outcome == "unknown"
    assert caught.value.__cause__ is not None
    with client.pool.connection() as conn:
        assert client.value(conn, "SELECT 1") == 1


def test_dbapi_autocommit(make_pool: MakePool, kept: Any) -> None:
    """DBAPI(autocommit=True) opens no transaction; each statement stands for itself."""
    pool = make_pool(driver=DBAPI(autocommit=True), max_size=1)
    with pytest.raises(ArithmeticError), pool.connection() as conn:
        conn.cursor().execute("INSERT INTO kept VALUES (1)")
        raise ArithmeticError
    assert kept() == [1]
    with pytest.raises(ArithmeticError), pool.transaction() as conn:
        conn.cursor().execute("INSERT INTO kept VALUES (2)")
        raise ArithmeticError
    assert kept() == [1]
