"""Deadlines on a real server: cancelled in time, told the truth, and no neighbour hit."""

# ruff: noqa: PT012, SIM117 - what raises is the end of a block, or a call inside it

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pg8000.native
import pytest
from integration.conftest import MakePool
from integration.kit import FULL, Admin, eventually, report, run_threads, whole
from support import need

import fastpool
from fastpool import DeadlineExceeded, Pool
from fastpool.drivers import _wire
from fastpool.testing import FaultProxy, LocalPostgres, make_certificate

BUDGET = 0.25
PID = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def tls_proxy(
    server: LocalPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FaultProxy]:
    """The server behind TLS."""
    need(shutil.which("openssl") is not None, "there is no openssl command")
    certificate = make_certificate(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])
    with FaultProxy(server, tls=certificate) as proxy:
        yield proxy


@pytest.fixture
def fault(server: LocalPostgres) -> Iterator[FaultProxy]:
    """The server behind a proxy that goes wrong."""
    with FaultProxy(server) as proxy:
        yield proxy


@pytest.fixture(params=["unix", "tcp", "tls"])
def dsn(request: pytest.FixtureRequest, server: LocalPostgres) -> str:
    """One server, three ways to it."""
    if request.param == "tls":
        proxy: FaultProxy = request.getfixturevalue("tls_proxy")
        return f"{proxy.dsn}?sslmode=require"
    return server.unix_dsn if request.param == "unix" else f"{server.dsn}?sslmode=disable"


def control_overshoot() -> float:
    """How late a bare lock's time limit comes on this machine now, in seconds."""
    worst = 0.0
    for _ in range(5):
        lock = threading.Lock()
        lock.acquire()
        began = time.monotonic()
        lock.acquire(timeout=0.05)
        worst = max(worst, time.monotonic() - began - 0.05)
    return worst


@pytest.mark.parametrize("driver", ["native", "dbapi"])
def test_a_statement_is_cancelled_in_time(
    make_pool: MakePool, admin: Admin, dsn: str, driver: str
) -> None:
    """pg_sleep(10) under 200 ms: back by 300 ms, the backend idle by then and good for
    the next query."""
    pool = make_pool(dsn, driver=driver, max_size=1)

    def ask(conn: Any, sql: str) -> Any:
        if driver == "native":
            return conn.run(sql)[0][0]
        cursor = conn.cursor()
        cursor.execute(sql)
        return cursor.fetchall()[0][0]

    with pool.connection() as conn:
        pid = ask(conn, PID)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught, pool.connection(deadline=0.2) as conn:
        ask(conn, "SELECT pg_sleep(10)")
    took = time.monotonic() - began
    assert not admin.running(pid)
    assert caught.value.outcome == "cancelled"
    assert isinstance(caught.value.__cause__, pg8000.native.DatabaseError)
    assert 0.2 <= took < 0.3 + control_overshoot()
    with pool.connection() as conn:
        assert ask(conn, PID) == pid
    assert pool.stats().closed == {}


def random_deadlines(pool: Pool[Any], queries: int, threads: int, times: int) -> Counter[str]:
    """Queries of about a millisecond, *times* as long, whose deadlines fall around their
    end, each followed by the next user's; what became of them."""
    seen: Counter[str] = Counter()
    slow = "SELECT :x::int + 0 * (SELECT count(*) FROM generate_series(1, :n::int))"

    def work(thread: int) -> None:
        draw = random.Random(thread)
        for i in range(queries // threads):
            token = thread * 1_000_000 + i
            outcome = "answered"
            try:
                with pool.connection(deadline=draw.uniform(0, 0.004 * times)) as conn:
                    rows = draw.choice([1, 5000 * times, 20000 * times])
                    assert conn.run(slow, x=token, n=rows) == [[token]]
            except DeadlineExceeded as error:
                outcome = error.outcome
            seen[outcome] += 1
            with pool.connection() as conn:  # the neighbour
                assert conn.run("SELECT :x::int", x=-token) == [[-token]]

    run_threads([lambda n=n: work(n) for n in range(threads)])  # type: ignore[misc]
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tcp", "tls"])
def test_no_cancel_hits_a_neighbour(
    make_pool: MakePool, server: LocalPostgres, way: str, request: pytest.FixtureRequest
) -> None:
    """Deadlines around the end of queries: every answer right, nobody else cancelled."""
    dsn = f"{server.dsn}?sslmode=disable"
    if way == "tls":
        dsn = f"{request.getfixturevalue('tls_proxy').dsn}?sslmode=require"
    pool = make_pool(dsn, max_size=3, min_size=3)
    pool.wait()
    queries = 10_000 if FULL else 2_000
    # A cancel request over TLS takes as long as its handshake.
    seen = random_deadlines(pool, queries, threads=4, times=1 if way == "tcp" else 6)
    report(f"{queries} queries by {way}: {dict(seen)}, closed {pool.stats().closed}")
    assert seen.total() == queries
    assert seen["answered"] > queries / 20
    assert seen["cancelled"] > queries / 1000
    eventually(lambda: whole(pool), "all connections are back")


def test_an_answer_that_comes_after_all(make_pool: MakePool, fault: FaultProxy) -> None:
    """What the server has done before it heard of the cancel is no error."""
    pool = make_pool(f"{fault.dsn}?sslmode=disable", max_size=1)
    fault.drop_cancels()
    with pool.connection(deadline=0.1) as conn:
        assert conn.run("SELECT 7 FROM pg_sleep(0.2)") == [[7]]
    assert fault.counters().cancels == 1


@pytest.mark.slow
def test_the_table_holds_what_was_reported(make_pool: MakePool, admin: Admin) -> None:
    """2 000 autocommit INSERTs under random deadlines: all that were reported done are
    there, besides them only some of those reported unknown."""
    admin.run("CREATE TABLE told (n int PRIMARY KEY)")
    pool = make_pool(max_size=4, cancel_budget=0.002)
    reports: dict[str, set[int]] = {}
    insert = "INSERT INTO told SELECT :n::int FROM generate_series(1, :work::int) GROUP BY 1"

    def work(thread: int) -> None:
        draw = random.Random(thread)
        for i in range(500):
            n, outcome = thread * 500 + i, "done"
            try:
                with pool.connection(timeout=10.0, deadline=draw.uniform(0, 0.006)) as conn:
                    conn.run(insert, n=n, work=draw.choice([1, 5000, 20000]))
            except DeadlineExceeded as error:
                outcome = error.outcome
            reports.setdefault(outcome, set()).add(n)

    try:
        run_threads([lambda n=n: work(n) for n in range(4)])  # type: ignore[misc]
        eventually(lambda: not admin.busy(pool.name), "the last statement has ended")
        there = {n for (n,) in admin.run("SELECT n FROM told")}
        report(f"reported { ({k: len(v) for k, v in reports.items()}) }, there {len(there)}")
        assert sum(map(len, reports.values())) == 2000
        assert reports["done"] <= there
        assert there - reports["done"] <= reports.get("unknown", set())
        assert len(reports["cancelled"]) > 0
    finally:
        admin.run("DROP TABLE told")


def test_a_server_that_answers_nothing(make_pool: MakePool, admin: Admin) -> None:
    """A backend that is stopped cannot even be cancelled: unknown, after the budget."""
    pool = make_pool(max_size=1, close_timeout=0.1)
    with pool.connection() as conn:
        pid = conn.run(PID)[0][0]
    os.kill(pid, signal.SIGSTOP)
    try:
        for sql in ("SELECT 1", f"SELECT length('{'x' * 10_000_000}')"):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded) as caught, pool.connection(deadline=0.2) as conn:
                conn.run(sql)
            took = time.monotonic() - began
            assert caught.value.outcome == "unknown"
            assert 0.2 + BUDGET <= took < 0.2 + BUDGET + 0.2 + control_overshoot()
            os.kill(pid, signal.SIGCONT)
            with pool.connection() as conn:
                pid = conn.run(PID)[0][0]
            os.kill(pid, signal.SIGSTOP)
        assert pool.stats().closed == {"broken": 2}
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def slow_commit(admin: Admin) -> Iterator[Callable[[], list[int]]]:
    """A table whose rows take 0.3 s each to commit; what is in it."""
    admin.run("CREATE TABLE late (n int)")
    admin.run(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END'"
    )
    admin.run(
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION late()"
    )
    yield lambda: [n for (n,) in admin.run("SELECT n FROM late ORDER BY n")]
    admin.run("DROP TABLE late")
    admin.run("DROP FUNCTION late")


def test_a_commit_is_never_cancelled(
    make_pool: MakePool, fault: FaultProxy, slow_commit: Callable[[], list[int]]
) -> None:
    """A COMMIT that runs when the deadline passes gets the budget, and then is unknown;
    no cancel request is sent, not even when its connection is closed."""
    pool = make_pool(f"{fault.dsn}?sslmode=disable", max_size=2, min_size=2)
    pool.wait()
    with pool.transaction(deadline=0.2) as conn:
        conn.run("INSERT INTO late VALUES (1)")
    assert slow_commit() == [1]
    for block in (pool.transaction, pool.connection):
        with pytest.raises(DeadlineExceeded, match="COMMIT was sent") as caught:
            with block(deadline=0.1) as conn:
                if block == pool.connection:
                    conn.run("BEGIN")
                conn.run("INSERT INTO late VALUES (2), (3)")
        assert caught.value.outcome == "unknown"
    conn = pool.acquire()
    with pytest.raises(DeadlineExceeded) as caught, fastpool.deadline(0.1):
        conn.run("BEGIN")
        conn.run("INSERT INTO late VALUES (4), (5)")
        conn.run("COMMIT")
    conn.release()
    assert caught.value.outcome == "unknown"
    eventually(lambda: slow_commit() == [1, 2, 2, 3, 3, 4, 5], "the server has committed")
    assert fault.counters().cancels == 0


@pytest.mark.parametrize("lead", ["/* app='x' */ ", "-- app\n", " /**/\n--\n"])
def test_a_commented_commit_is_one(
    make_pool: MakePool, slow_commit: Callable[[], list[int]], lead: str
) -> None:
    """Comments before it change nothing."""
    pool = make_pool(max_size=1, cancel_budget=5.0)
    with pool.connection(deadline=0.1) as conn:
        conn.run("BEGIN")
        conn.run("INSERT INTO late VALUES (1)")
        conn.run(f"{lead}COMMIT")
    assert slow_commit() == [1]
    with pytest.raises(DeadlineExceeded), pool.connection(deadline=0.0) as conn:
        conn.run(f"{lead}ROLLBACK")  # can always be sent
        conn.run(f"{lead}COMMIT")
    with pytest.raises(DeadlineExceeded), pool.connection(deadline=0.0) as conn:
        conn.run(f"{lead}ROLLBACK; INSERT INTO late VALUES (2)")  # would be more than that
    assert slow_commit() == [1]


@pytest.mark.parametrize(
    ("statement", "may"),
    [
        ("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", True),
        ("alter table only t\n  detach partition p concurrently", True),
        ("DROP INDEX CONCURRENTLY i", True),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", True),
        ("ALTER TABLE t DETACH PARTITION p", False),
        ("SELECT 'vacuum'", False),
    ],
)
def test_what_may_commit_in_its_middle(statement: str, may: bool) -> None:
    """As PostgreSQL's manual says of each."""
    assert bool(_wire._COMMITS.match(statement)) == may


@pytest.mark.parametrize("lead", ["CALL two_steps()", "/* app */ CALL two_steps()"])
def test_a_procedure_may_have_committed(make_pool: MakePool, admin: Admin, lead: str) -> None:
    """A cancelled CALL is not said to have done nothing, except inside a transaction."""
    admin.run("CREATE TABLE steps (n int)")
    admin.run(
        "CREATE PROCEDURE two_steps() LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO steps VALUES (1); COMMIT; PERFORM pg_sleep(10); END'"
    )
    pool = make_pool(max_size=1)
    try:
        with pytest.raises(DeadlineExceeded) as caught, pool.connection(deadline=0.2) as conn:
            conn.run(lead)
        assert caught.value.outcome == "unknown"
        assert admin.run("SELECT n FROM steps") == [[1]]
        with pytest.raises(DeadlineExceeded) as caught, pool.transaction(deadline=0.2) as conn:
            conn.run("DO 'BEGIN PERFORM pg_sleep(10); END'")
        assert caught.value.outcome == "cancelled"
    finally:
        admin.run("DROP PROCEDURE two_steps")
        admin.run("DROP TABLE steps")


@pytest.mark.parametrize("seconds", [4294968.0, 1e10, 1e300])
def test_a_deadline_beyond_the_systems_clocks(make_pool: MakePool, seconds: float) -> None:
    """Longer than poll() can count is still no reason to be late, or early."""
    most = min(seconds, 1e9)  # that a setting takes
    pool = make_pool(max_size=1, connect_timeout=most, cancel_budget=most)
    with pool.connection(deadline=seconds) as conn:
        assert conn.run("SELECT 1 FROM pg_sleep(1)") == [[1]]  # 4294968 s are 704 ms in 32 bits
        conn.cancel(timeout=seconds)  # type: ignore[attr-defined]
    pool.ping(seconds)
    assert pool.stats().closed == {}


def test_a_late_block_is_rolled_back(
    make_pool: MakePool, slow_commit: Callable[[], list[int]]
) -> None:
    """After the deadline a block's COMMIT is not sent, its ROLLBACK is."""
    for driver in ("native", "dbapi"):
        pool = make_pool(driver=driver, max_size=1)
        with pytest.raises(DeadlineExceeded) as caught, pool.transaction(deadline=0.1) as conn:
            conn.execute_simple("INSERT INTO late VALUES (1)")
            eventually(lambda: time.monotonic() > conn._state.deadline, "the deadline")
        assert caught.value.outcome == "not_sent"
        with pool.connection(deadline=0.1) as conn:
            conn.execute_simple("BEGIN")
            conn.execute_simple("INSERT INTO late VALUES (1)")
            with pytest.raises(DeadlineExceeded):
                conn.execute_simple("SELECT pg_sleep(10)")
            with pytest.raises(DeadlineExceeded, match="before the statement"):
                conn.execute_simple("COMMIT")
            conn.execute_simple("ROLLBACK")  # can always be sent
        assert slow_commit() == []
        assert pool.stats().closed == {}


def test_a_deadline_ends_with_its_block(make_pool: MakePool) -> None:
    """What comes after the block has all the time there is, on the same connection."""
    pool = make_pool(max_size=1)
    with pool.connection() as conn:
        with fastpool.deadline(0.1):
            assert conn.run("SELECT 1") == [[1]]
        assert conn.run("SELECT 2 FROM pg_sleep(0.2)") == [[2]]


def test_a_nested_block_under_its_own_deadline(
    make_pool: MakePool, slow_commit: Callable[[], list[int]]
) -> None:
    """What is too late within a savepoint is undone; the transaction goes on."""
    pool = make_pool(max_size=1)
    with pool.transaction() as conn:
        conn.run("CREATE TEMP TABLE kept AS SELECT 1 AS n")
        with pytest.raises(DeadlineExceeded), fastpool.deadline(0.1):
            with conn.transaction():  # type: ignore[attr-defined]
                conn.run("INSERT INTO kept VALUES (2)")
                conn.run("SELECT pg_sleep(10)")
        assert conn.run("SELECT n FROM kept") == [[1]]


def test_copy_under_a_deadline(make_pool: MakePool, admin: Admin, tmp_path: Path) -> None:
    """A COPY that is too late is cancelled in either direction, the connection kept."""
    pool = make_pool(max_size=1)
    endless = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000000)) TO STDOUT"
    with (tmp_path / "out").open("wb") as sink:
        with pytest.raises(DeadlineExceeded) as caught, pool.connection(deadline=0.2) as conn:
            conn.run(endless, stream=sink)
    assert caught.value.outcome == "cancelled"

    def lines() -> Iterator[bytes]:
        while True:
            yield b"1\n"

    with pytest.raises(DeadlineExceeded) as caught, pool.connection(deadline=0.2) as conn:
        conn.run("CREATE TEMP TABLE many (n int)")
        conn.run("COPY many FROM STDIN", stream=lines())
    assert caught.value.outcome == "cancelled"
    assert pool.stats().closed == {}


# -- cancelled by another thread -----------------------------------------------


def test_another_thread_cancels(make_pool: MakePool, admin: Admin, dsn: str) -> None:
    """lease.cancel() ends the statement that runs, and the connection goes on."""
    pool = make_pool(dsn, max_size=1)
    lease = pool.acquire()
    pid = lease.run(PID)[0][0]
    errors: list[BaseException] = []

    def sleep() -> None:
        try:
            lease.run("SELECT pg_sleep(10)")
        except pg8000.native.DatabaseError as error:
            errors.append(error)

    def cancel() -> None:
        eventually(lambda: admin.running(pid), "it runs")
        lease.cancel()

    run_threads([sleep, cancel])
    assert errors[0].args[0]["C"] == "57014"
    assert lease.run(PID) == [[pid]]
    lease.release()
    assert pool.run(PID) == [[pid]]


def test_a_cancel_stays_with_its_lease(make_pool: MakePool) -> None:
    """However a cancel races with the end of its lease, the next user is not hit."""
    pool = make_pool(max_size=1)
    pool.run("SELECT 1")
    draw = random.Random(1)
    cancelled = 0
    for i in range(400):
        lease = pool.acquire()
        ready = threading.Barrier(2)

        def cancel(lease: Any = lease, ready: threading.Barrier = ready) -> None:
            ready.wait(10)
            with contextlib.suppress(fastpool.ConnectionReleased):
                lease.cancel()

        def use(lease: Any = lease, ready: threading.Barrier = ready, i: int = i) -> None:
            nonlocal cancelled
            ready.wait(10)
            try:
                lease.run(
                    "SELECT count(*) FROM generate_series(1, :n::int)",
                    n=draw.choice([1, 2000, 20000]),
                )
            except pg8000.native.DatabaseError:
                cancelled += 1
            lease.release()
            for _ in range(3):
                assert pool.run("SELECT :i::int", i=i) == [[i]]

        run_threads([cancel, use])
    report(f"400 races, {cancelled} statements cancelled, closed {pool.stats().closed}")
    assert cancelled > 0
    assert pool.stats().closed == {}
