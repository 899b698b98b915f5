"""The verdict of a timeout, on a real server: each cause is told from the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, eventually, run_threads

from fastpool import Pool, PoolDeadlock, PoolTimeout
from fastpool.testing import LocalPostgres


def refusal(pool: Pool[Any], timeout: float) -> PoolTimeout:
    """What a caller in a thread of its own is told, who waits so long in vain."""
    with ThreadPoolExecutor(1) as caller:
        error = caller.submit(pool.acquire, timeout).exception(60)
    assert type(error) is PoolTimeout
    assert "\n" not in str(error)
    return error


def test_long_queries(make_pool: MakePool, admin: Admin) -> None:
    """Holders in a long query: the database is slow, they are active, and no SQL is shown."""
    pool = make_pool(max_size=2, close_timeout=5.0)
    pids: list[int] = []

    def sleep() -> None:
        with pool.connection() as conn:
            pids.append(conn.run("SELECT pg_backend_pid()")[0][0])
            conn.run("SELECT pg_sleep(60), 'se:cr@t'")

    with ThreadPoolExecutor(2) as workers:
        jobs = [workers.submit(sleep) for _ in range(2)]
        try:
            eventually(lambda: len(pids) == 2 and all(map(admin.running, pids)), "both queries run")
            error = refusal(pool, 0.5)
            assert [holder.state for holder in pool.holders()] == ["active", "active"]
        finally:
            admin.kill(pids)
        for job in jobs:
            job.exception(60)
    assert error.verdict == "database slow"
    assert "in 2 of 2 connections a call has run for most of the wait" in str(error)
    assert f"held by: {__file__}:" in str(error)
    assert "pg_sleep" not in str(error)
    assert "se:cr@t" not in str(error)


def test_a_server_that_is_down(locked_server: LocalPostgres, make_pool: MakePool) -> None:
    """A stopped server: the database is down, with the error's words, and no password."""
    pool = make_pool(locked_server.dsn, connect_backoff=0.01)
    assert pool.run("SELECT 1") == [[1]]
    locked_server.stop()
    try:
        error = refusal(pool, 0.5)
    finally:
        locked_server.start()
    assert error.verdict == "database down"
    assert "no attempt to connect has succeeded for" in str(error)
    assert "last connect error: " in str(error)
    assert error.__cause__ is not None
    assert locked_server.password not in str(error)
    eventually(lambda: pool.run("SELECT 1") == [[1]], "the server is back")


@pytest.mark.parametrize("sql", ["SELECT 1", "BEGIN"])
def test_a_leaked_lease(make_pool: MakePool, sql: str) -> None:
    """A connection held for nothing, by a thread that lives: leaked, with its line."""
    pool = make_pool(max_size=1, leak_threshold=0.2)
    lease = pool.acquire()
    lease.run(sql)
    eventually(lambda: pool.holders()[0].age > 0.2, "held for long enough")
    error = refusal(pool, 0.05)
    assert error.verdict == "leaked"
    assert f"leaked: the connection acquired at {__file__}:" in str(error)
    state = "idle in transaction" if sql == "BEGIN" else "idle"
    (holder,) = error.holders
    assert holder.state == state  # type: ignore[attr-defined]
    lease.release()


def test_too_many_users(make_pool: MakePool) -> None:
    """Many short users of few connections: too small, though each is in the database."""
    pool = make_pool(max_size=2, max_waiting=None)
    done = threading.Event()

    def use() -> None:
        while not done.is_set():
            with pool.connection() as conn:
                conn.run("SELECT pg_sleep(0.02)")

    verdicts: list[str | None] = []

    def hurry() -> None:
        """One of a crowd that has no patience."""
        eventually(lambda: pool.stats().waiting >= 14, "a crowd waits")
        while len(verdicts) < 5:
            try:
                pool.acquire(0.1).release()
            except PoolTimeout as error:
                verdicts.append(error.verdict)
        done.set()

    run_threads([hurry, *[use] * 20])
    assert verdicts == ["too small"] * 5


@pytest.mark.parametrize("take", ["connection", "acquire"])
def test_threads_that_acquire_twice(make_pool: MakePool, take: str) -> None:
    """N threads that each want two of N connections: one is told within a second, others go on."""
    count = 5
    pool = make_pool(max_size=count, timeout=30.0)
    acquire: Callable[[], Any] = getattr(pool, take)
    together = threading.Barrier(count)
    outcomes: list[object] = []
    told: list[float] = []

    def work() -> None:
        with acquire():
            together.wait(30)
            began = time.monotonic()
            try:
                with acquire() as second:
                    outcomes.append(second.run("SELECT 2")[0][0])
            except PoolDeadlock as error:
                told.append(time.monotonic() - began)
                outcomes.append(str(error).count("and waits at"))

    run_threads([work] * count)
    assert sorted(outcomes, key=str) == [2] * (count - 1) + [count]
    assert len(told) == 1
    assert told[0] < 1.0


def test_leases_that_cross_threads(make_pool: MakePool) -> None:
    """A dispatcher acquires, workers use and release: no false alarm, whoever waits."""
    pool = make_pool(max_size=3)

    def work(lease: Any, number: int) -> object:
        try:
            return lease.run("SELECT :n::int", n=number)[0][0]
        finally:
            lease.release()

    with ThreadPoolExecutor(2) as workers:
        jobs = [workers.submit(work, pool.acquire(), number) for number in range(300)]
        assert [job.result(60) for job in jobs] == list(range(300))
