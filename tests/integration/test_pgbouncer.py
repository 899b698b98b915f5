"""Behind a real PgBouncer, in transaction pooling unless a test says otherwise."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pg8000.dbapi
import pg8000.native
import pytest
from drivers.kit import State
from integration.bouncer import PgBouncer
from integration.conftest import MakePool
from integration.kit import Admin, eventually, report, run_threads, whole

import fastpool
from fastpool import ConfigError, ConnectFailed, DeadlineExceeded, Pool, PoolTimeout, RetryPolicy
from fastpool.drivers.pg8000 import DBAPI, Native
from fastpool.testing import LocalPostgres

pytestmark = pytest.mark.system

THREADS = 6
RESULTS = 2_000
SERVERS = 2

Drivers = pytest.mark.parametrize("driver", ["native", "dbapi"])


@pytest.fixture
def bouncer(server: LocalPostgres, make_pool: MakePool) -> Iterator[PgBouncer]:
    """Transaction pooling over two server sessions. It is gone before the pools are:
    it keeps sessions under their names."""
    settings = {"pool_mode": "transaction", "default_pool_size": SERVERS}
    with PgBouncer(server, **settings) as bouncer:
        yield bouncer


@pytest.fixture
def session_bouncer(server: LocalPostgres, make_pool: MakePool) -> Iterator[PgBouncer]:
    """Session pooling."""
    with PgBouncer(server, pool_mode="session") as bouncer:
        yield bouncer


def asked(pool: Pool[Any]) -> None:
    """Open *pool*, of one connection, and wait until its keeper has asked the server."""
    pool.open(wait=True)
    pool._house.keeper.tend()
    eventually(lambda: pool._house.keeper._asked and whole(pool), "asked, and answered")


def found(pool: Pool[Any]) -> Pool[Any]:
    """*pool*, which knows that it is behind a pooler."""
    asked(pool)
    assert pool.stats().pgbouncer
    return pool


def tally(ask: Callable[[int, int], Any]) -> Counter[str]:
    """Ask for RESULTS sums from THREADS threads: how many answers were right, wrong rows,
    or errors. Each statement has a text of its own."""
    numbers = itertools.count(1)
    seen: list[Counter[str]] = [Counter() for _ in range(THREADS)]

    def work(mine: Counter[str]) -> None:
        while (n := next(numbers)) <= RESULTS:
            try:
                rows = ask(n, n * n)
            except (pg8000.native.Error, pg8000.dbapi.Error, AttributeError, IndexError):
                mine["error"] += 1
            else:
                mine["right" if list(map(list, rows)) == [[n + n * n]] else "wrong"] += 1

    run_threads([lambda mine=mine: work(mine) for mine in seen])  # type: ignore[misc]
    return sum(seen, Counter())


@Drivers
def test_no_row_is_wrong(
    bouncer: PgBouncer, make_pool: MakePool, admin: Admin, driver: str
) -> None:
    """2 000 parameterised results, 6 threads over 2 server sessions, none wrong."""
    pool = make_pool(bouncer.dsn, driver=driver, min_size=THREADS, max_size=THREADS)
    pool.open(wait=True)
    if driver == "native":
        seen = tally(lambda a, b: pool.run(f"SELECT :a::int + {b}", a=a))
    else:
        seen = tally(lambda a, b: pool.execute(f"SELECT %s::int + {b}", (a,)))
    assert seen == {"right": RESULTS}
    assert pool.stats().closed == {}
    assert len(admin.backends(pool.name)) <= SERVERS


@Drivers
def test_stock_pg8000_gets_wrong_rows(
    bouncer: PgBouncer, server: LocalPostgres, driver: str
) -> None:
    """In the same harness most of stock pg8000's results are wrong: it can see them."""
    mine = threading.local()
    made: list[Any] = []

    def conn() -> Any:
        if not hasattr(mine, "conn"):
            kind = pg8000.native if driver == "native" else pg8000.dbapi
            mine.conn = kind.Connection(
                server.user, host=server.host, port=bouncer.port, ssl_context=False, timeout=20
            )
            made.append(mine.conn)
            if driver == "dbapi":
                mine.conn.autocommit = True
        return mine.conn

    def ask(a: int, b: int) -> Any:
        if driver == "native":
            return conn().run(f"SELECT :a::int + {b}", a=a)
        cursor = conn().cursor()
        cursor.execute(f"SELECT %s::int + {b}", (a,))
        return cursor.fetchall()

    seen = tally(ask)
    report(f"stock pg8000, {driver}: {dict(seen)}")
    for each in made:
        with contextlib.suppress(pg8000.native.Error, pg8000.dbapi.Error):
            each.close()
    assert seen["right"] < RESULTS / 2
    assert seen["wrong"] > 0


def test_transactions(bouncer: PgBouncer, make_pool: MakePool, admin: Admin) -> None:
    """Blocks, savepoints and repeated transactions keep their server session to the end."""
    pool = make_pool(bouncer.dsn, max_size=THREADS)
    table = "bouncer_transactions"
    admin.run(f"CREATE TABLE {table} (n int PRIMARY KEY, count int)")
    admin.run(f"INSERT INTO {table} VALUES (0, 0)")
    attempts: list[int] = []

    def add(conn: Any) -> None:
        [[pid, count]] = conn.run(f"SELECT pg_backend_pid(), count FROM {table} WHERE n = 0")
        attempts.append(pid)
        [[now, _]] = conn.run(
            f"UPDATE {table} SET count = :c WHERE n = 0 RETURNING pg_backend_pid(), count",
            c=count + 1,
        )
        assert now == pid

    def work() -> None:
        policy = RetryPolicy(max_attempts=100, initial_wait=0.001, max_wait=0.01)
        for _ in range(10):
            pool.run_in_transaction(add, policy=policy, isolation="repeatable read")

    try:
        run_threads([work] * THREADS)
        with pool.transaction() as conn:
            conn.run(f"INSERT INTO {table} VALUES (1, 1)")
            with pytest.raises(pg8000.native.DatabaseError), conn.transaction():
                conn.run(f"INSERT INTO {table} VALUES (2, 2), (1, 1)")
            conn.run("SET LOCAL work_mem = '7MB'")
            assert conn.run("SHOW work_mem") == [["7MB"]]
        assert pool.run("SHOW work_mem") != [["7MB"]]
        lease = pool.acquire()
        lease.run("BEGIN")
        lease.run(f"DELETE FROM {table}")
        lease.release()
        rows = pool.run(f"SELECT n, count FROM {table} ORDER BY n")
        assert rows == [[0, 10 * THREADS], [1, 1]]
        assert len(attempts) >= 10 * THREADS
        assert pool.stats().closed == {}
    finally:
        admin.run(f"DROP TABLE {table}")


@pytest.mark.parametrize("told", [True, None])
def test_what_is_forbidden(
    bouncer: PgBouncer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, told: bool | None
) -> None:
    """prepare(), listen() and a smart reset, whether PgBouncer was named or found."""
    caplog.set_level(logging.INFO)
    pool = found(make_pool(bouncer.dsn, pgbouncer=told, min_size=1, max_size=1))
    with pool.connection() as conn:
        with pytest.raises(ConfigError, match=r"prepare\(\) cannot be used behind PgBouncer"):
            conn.prepare("SELECT 1")
        assert conn.run("SELECT 1") == [[1]]
    with pytest.raises(ConfigError, match="no notification would come through"):
        fastpool.listen(pool, "jobs")
    with pool.connection() as conn:
        first = conn.driver_connection
        conn.run("SET TIME ZONE 'Asia/Tokyo'")  # which PgBouncer keeps for its client
    with pool.connection() as conn:
        assert conn.driver_connection is not first
        assert conn.run("SHOW timezone") != [["Asia/Tokyo"]]
    assert pool.stats().closed == {"session": 1}
    assert len([m for m in caplog.messages if "Use SET LOCAL" in m]) == 1
    assert len([m for m in caplog.messages if "there is a pooler" in m]) == (0 if told else 1)


def test_nobody_elses_session_is_reset(
    bouncer: PgBouncer, make_pool: MakePool, server: LocalPostgres
) -> None:
    """What another client has in the one server session is there after our return."""
    pool = make_pool(bouncer.dsn, pgbouncer=True, max_size=1)
    other = pg8000.native.Connection(
        server.user, host=server.host, port=bouncer.port, ssl_context=False
    )
    other.run("PREPARE theirs AS SELECT 42")
    with pool.connection() as conn:
        conn.run("SET enable_seqscan = off")
    assert pool.run("SELECT name FROM pg_prepared_statements") == [["theirs"]]
    other.close()


def test_start_up_parameters(bouncer: PgBouncer, make_pool: MakePool) -> None:
    """Those it takes work; another one is refused for good, with the way out."""
    taken = {
        "DateStyle": "German",
        "TimeZone": "Asia/Tokyo",
        "standard_conforming_strings": "on",
        "client_encoding": "UTF8",
    }
    pool = make_pool(bouncer.dsn, pgbouncer=True, session_settings=taken)
    assert pool.run("SHOW datestyle") == [["German, DMY"]]
    assert pool.run("SHOW timezone") == [["Asia/Tokyo"]]
    assert pool.run("SHOW application_name") == [[pool.name]]
    for dsn, settings in (
        (bouncer.dsn, {"session_settings": {"statement_timeout": "5s"}}),
        (f"{bouncer.dsn}&options=-cstatement_timeout%3D5s", {}),
    ):
        pool = make_pool(dsn, **settings)
        if "options" in dsn and bouncer.version >= (1, 20):
            continue  # it takes these apart, and refuses by another text
        began = time.monotonic()
        with pytest.raises(ConnectFailed, match=r"startup parameter: .*ALTER ROLE .*SET") as caught:
            pool.run("SELECT 1")
        assert caught.value.sqlstate == "08P01"
        assert time.monotonic() - began < 10
        with pytest.raises(ConfigError, match="PgBouncer refuses"):
            make_pool(dsn, pgbouncer=True, **settings)


def test_finding_out(
    bouncer: PgBouncer,
    session_bouncer: PgBouncer,
    make_pool: MakePool,
    server: LocalPostgres,
) -> None:
    """By each driver, behind PgBouncer and not: over TCP and a unix socket."""
    for driver in ("native", "dbapi"):
        for dsn, pooled in (
            (bouncer.dsn, True),
            (session_bouncer.dsn, True),  # it cannot be told from the other
            (f"{server.dsn}?sslmode=disable", False),
            (server.unix_dsn, False),
        ):
            for told in (None, True, False):
                pool = make_pool(dsn, driver=driver, min_size=1, max_size=1, pgbouncer=told)
                asked(pool)
                expected = pooled if told is None else told
                assert pool.stats().pgbouncer is expected
                with pool.connection() as conn:
                    assert bool(conn.driver_connection._pooled) is expected
                pool.close()


@pytest.mark.parametrize("driver", [Native(), DBAPI()])
def test_the_question_finds_a_key_that_looks_like_a_process_id(
    bouncer: PgBouncer, server: LocalPostgres, driver: Any
) -> None:
    """One in a thousand of PgBouncer's does; a server's own is never in doubt."""

    def dial(port: int) -> Any:
        params = {"host": server.host, "port": port, "user": server.user, "dbname": "postgres"}
        return driver.connect(params, State(leased=True), time.monotonic() + 10)

    made = [dial(bouncer.port) for _ in range(10)]
    assert sum(map(driver.pooled, made)) >= 8
    unlike = made[0]
    unlike._pooled, unlike._backend_key_data = None, (4711).to_bytes(4, "big") + bytes(4)
    driver.idle_limit(unlike)
    assert driver.pooled(unlike)
    direct = dial(server.port)
    made.append(direct)
    assert not driver.pooled(direct)
    driver.idle_limit(direct)
    assert direct._pooled is False
    for conn in made:
        driver.abandon(conn)


@pytest.mark.parametrize("pooled", [True, False])
def test_cancelling(
    bouncer: PgBouncer, make_pool: MakePool, server: LocalPostgres, pooled: bool
) -> None:
    """The query is cancelled; but only a server's own end of the request proves that no later
    one can be hit, so behind PgBouncer the connection is not used again."""
    dsn = bouncer.dsn if pooled else f"{server.dsn}?sslmode=disable"
    pool = make_pool(dsn, pgbouncer=pooled, max_size=1, cancel_budget=5.0)
    with pool.connection() as conn:
        before = conn.driver_connection
    with pytest.raises(DeadlineExceeded) as caught, pool.connection(deadline=1.0) as conn:
        conn.run("SELECT pg_sleep(20)")
    assert caught.value.outcome == "cancelled"
    with pool.connection() as conn:
        assert (conn.driver_connection is before) is not pooled
        assert conn.run("SELECT :x::int", x=1) == [[1]]


def test_session_pooling_is_as_no_pooler(
    session_bouncer: PgBouncer, make_pool: MakePool, admin: Admin
) -> None:
    """With pgbouncer=False all is as without: prepare, notifications, the smart reset."""
    pool = make_pool(session_bouncer.dsn, pgbouncer=False, max_size=1)
    with pool.connection() as conn:
        first = conn.driver_connection
        statement = conn.prepare("SELECT :x::int")
        assert statement.run(x=1) == [[1]]
        conn.run("SET enable_seqscan = off")
    with pool.connection() as conn:
        assert conn.driver_connection is first
        assert conn.run("SHOW enable_seqscan") == [["on"]]
        assert conn.run("SELECT count(*) FROM pg_prepared_statements") == [[0]]
    with fastpool.listen(pool, "jobs") as listener:
        admin.run("NOTIFY jobs, 'one'")
        assert listener.get(timeout=10).payload == "one"


def test_found_session_pooling_leaks_nothing(
    session_bouncer: PgBouncer, make_pool: MakePool
) -> None:
    """A pooler that was found may pool sessions: what was set there reaches no other caller."""
    pool = found(make_pool(session_bouncer.dsn, min_size=1, max_size=1))
    with pool.connection() as conn:
        conn.run("SET enable_seqscan = off")
    for _ in range(3):
        assert pool.run("SHOW enable_seqscan") == [["on"]]


def test_a_server_session_is_killed(bouncer: PgBouncer, make_pool: MakePool, admin: Admin) -> None:
    """Whoever is inside a transaction learns it; everybody else notices nothing."""
    pool = make_pool(bouncer.dsn, max_size=2)

    def kill_mine(conn: Any) -> None:
        admin.kill(conn.run("SELECT pg_backend_pid()")[0])
        conn.run("SELECT 1")

    with pytest.raises(pg8000.native.Error), pool.transaction() as conn:
        kill_mine(conn)
    assert pool.run("SELECT 1") == [[1]]
    with pool.connection() as conn:  # idle, so it holds no server session
        admin.kill(conn.run("SELECT pg_backend_pid()")[0])
        assert conn.run("SELECT :x::int", x=2) == [[2]]
    eventually(lambda: whole(pool), f"all are back: {pool!r}")


def test_pgbouncer_is_restarted(bouncer: PgBouncer, make_pool: MakePool) -> None:
    """Idle connections are found dead at the checkout; no caller sees an error."""
    pool = make_pool(bouncer.dsn, min_size=4, max_size=4)
    pool.open(wait=True)
    for _ in range(3):
        bouncer.restart()
        assert [pool.run("SELECT :x::int", x=x) for x in range(8)] == [[[x]] for x in range(8)]
    bouncer.stop()
    with pytest.raises(PoolTimeout) as caught:
        pool.within(timeout=0.3).run("SELECT 1")
    assert isinstance(caught.value.__cause__, pg8000.native.InterfaceError)
    bouncer.start()
    assert pool.run("SELECT 1") == [[1]]


def test_the_server_behind_is_down_for_a_while(make_pool: MakePool) -> None:
    """PgBouncer's own words for that are no permanent failure: a caller waits it out."""
    with (
        LocalPostgres() as server,
        PgBouncer(server, pool_mode="transaction", client_login_timeout=1) as bouncer,
    ):
        server.stop()
        pool = make_pool(bouncer.dsn, max_size=1)
        answer: list[Any] = []
        caller = threading.Thread(target=lambda: answer.append(pool.run("SELECT 1")))
        caller.start()
        eventually(lambda: pool.stats().dial_failures > 0, "a dial has failed")
        assert "08P01" in str(pool.stats().last_connect_error)
        assert pool._house.opener.permanent is None
        server.start()
        caller.join(30)
        assert answer == [[[1]]]
        pool.close()
