"""Dials: what comes first is served, what cannot work is said at once, what may is awaited."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, eventually, explained, report, run_threads

from fastpool import ConnectFailed, Pool, PoolTimeout
from fastpool.testing import LocalPostgres
from fastpool.testing.local_postgres import StopMode

PID = "SELECT pg_backend_pid()"


def dsn_of(pg: LocalPostgres, transport: str, *, dbname: str = "postgres", password: str) -> str:
    """A connection string for *pg* by its parts."""
    host = pg.host if transport == "tcp" else quote(str(pg.socket_dir), "")
    return f"postgresql://{pg.user}:{quote(password, '')}@{host}:{pg.port}/{dbname}?sslmode=disable"


@pytest.fixture
def locked_pool(locked_server: LocalPostgres) -> Iterator[Any]:
    """``locked_pool(dsn, **settings)``: a pool on the server with passwords."""
    pools: list[Pool[Any]] = []

    def make(dsn: str = "", **settings: Any) -> Pool[Any]:
        dsn = dsn or dsn_of(locked_server, "tcp", password=locked_server.password or "")
        pools.append(Pool(dsn, **{"min_size": 0, "name": "locked", **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close(timeout=1.0)


def test_returned_connection_beats_the_dial(make_pool: MakePool) -> None:
    """While a dial hangs, the waiter gets what another returns, and the dial ends up idle."""
    dialling, gate = threading.Event(), threading.Event()
    dials: list[int] = []

    def before_connect(params: dict[str, Any]) -> None:
        dials.append(1)
        if len(dials) == 2:
            dialling.set()
            gate.wait(30)

    pool = make_pool(max_size=2, before_connect=before_connect)
    first = pool.acquire()
    pid = first.run(PID)[0][0]
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(pool.acquire)
        assert dialling.wait(10)
        returned = time.perf_counter()
        first.release()
        lease = waiting.result(10)
        took = time.perf_counter() - returned
        assert not gate.is_set()
    assert lease.run(PID)[0][0] == pid
    report(f"served {took * 1e3:.2f} ms after the return, while the dial hung")
    gate.set()
    eventually(lambda: pool.stats().idle == 1, "the dialled connection is idle")
    lease.release()
    stats = pool.stats()
    assert (stats.idle, stats.size, stats.dials, stats.dial_failures) == (2, 2, 2, 0)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_wrong_password(locked_server: LocalPostgres, locked_pool: Any, transport: str) -> None:
    """With nothing established a wrong password is said at once, in the server's words."""
    secret = "not the passwörd"
    pool = locked_pool(dsn_of(locked_server, transport, password=secret))
    began = time.monotonic()
    with pytest.raises(ConnectFailed, match="password authentication failed for user") as caught:
        pool.acquire(timeout=30)
    assert time.monotonic() - began < 5
    assert caught.value.sqlstate == "28P01"
    assert caught.value.__cause__ is not None
    assert secret not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_missing_password(locked_server: LocalPostgres, locked_pool: Any, transport: str) -> None:
    """Without the password that the server asks for, the caller hears that at once."""
    pool = locked_pool(dsn_of(locked_server, transport, password=""))
    with pytest.raises(ConnectFailed, match="password"):
        pool.acquire(timeout=30)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_missing_database(locked_server: LocalPostgres, locked_pool: Any, transport: str) -> None:
    """A database that does not exist fails everyone who waits, at once."""
    password = locked_server.password or ""
    pool = locked_pool(dsn_of(locked_server, transport, dbname="nowhere", password=password))

    def refused() -> str | None:
        with pytest.raises(ConnectFailed, match='database "nowhere" does not exist') as caught:
            pool.acquire(timeout=30)
        return caught.value.sqlstate

    with ThreadPoolExecutor(4) as executor:
        waiting = [executor.submit(refused) for _ in range(4)]
        assert [future.result(10) for future in waiting] == ["3D000"] * 4


def test_waiting_for_what_cannot_come(locked_server: LocalPostgres, locked_pool: Any) -> None:
    """pool.wait() raises the cause at once when the minimum cannot be reached."""
    password = locked_server.password or ""
    pool = locked_pool(
        dsn_of(locked_server, "tcp", dbname="nowhere", password=password), min_size=1
    )
    with pytest.raises(ConnectFailed, match='database "nowhere" does not exist'):
        pool.open(wait=True)


def test_bad_session_setting(make_pool: MakePool) -> None:
    """A setting that the server does not know fails at once and names it."""
    pool = make_pool(session_settings={"no_such_setting": 1})
    with pytest.raises(ConnectFailed, match="no_such_setting") as caught:
        pool.acquire(timeout=30)
    assert caught.value.sqlstate == "42704"


def test_wrong_password_while_one_is_out(locked_server: LocalPostgres, locked_pool: Any) -> None:
    """A password changed under a working pool fails nobody who can wait for a return."""
    admin = Admin(locked_server)
    admin.run("CREATE ROLE worker LOGIN PASSWORD 'first'")
    try:
        dsn = f"postgresql://worker:first@{locked_server.host}:{locked_server.port}/postgres"
        pool = locked_pool(f"{dsn}?sslmode=disable", max_size=2)
        lease = pool.acquire()
        admin.run("ALTER ROLE worker PASSWORD 'second'")
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(pool.acquire)
            eventually(lambda: pool.stats().dial_failures > 0, "the dial failed")
            assert pool.stats().waiting == 1
            with pytest.raises(PoolTimeout) as caught:
                pool.acquire(timeout=0.01)
            assert "28P01" in repr(caught.value.__cause__)
            assert not waiting.done()
            lease.release()
            other = waiting.result(10)
        assert other.run("SELECT 1") == [[1]]
        pool.invalidate(other)
        with pytest.raises(ConnectFailed, match="password authentication failed"):
            pool.acquire(timeout=30)
    finally:
        pool.close()
        admin.run("DROP ROLE worker")
        admin.close()


def test_rotated_password(locked_server: LocalPostgres, locked_pool: Any) -> None:
    """A token that has expired meanwhile is asked for again at once: nobody hears of it."""
    admin = Admin(locked_server)
    admin.run("CREATE ROLE rotating LOGIN PASSWORD 'first'")
    tokens = iter(["first", "first", "second"])
    try:
        dsn = f"postgresql://rotating@{locked_server.host}:{locked_server.port}/postgres"
        pool = locked_pool(f"{dsn}?sslmode=disable", password=lambda: next(tokens), max_size=1)
        lease = pool.acquire()
        admin.run("ALTER ROLE rotating PASSWORD 'second'")
        pool.invalidate(lease)
        assert pool.run("SELECT current_user") == [["rotating"]]
        assert (pool.stats().dials, pool.stats().dial_failures) == (2, 0)
    finally:
        pool.close()
        admin.run("DROP ROLE rotating")
        admin.close()


def test_refused_is_a_timeout(locked_server: LocalPostgres, locked_pool: Any) -> None:
    """While the server is down a caller waits exactly its timeout, and learns why."""
    pool = locked_pool(connect_backoff=0.01, connect_backoff_max=0.05)
    limit = 0.4
    locked_server.stop()
    try:
        lock = threading.Lock()
        lock.acquire()
        overshoots: list[float] = []
        control: list[float] = []
        causes: list[BaseException | None] = []

        def wait_for_lock() -> None:
            began = time.monotonic()
            lock.acquire(timeout=limit)
            control.append(time.monotonic() - began - limit)

        def wait_for_pool() -> None:
            began = time.monotonic()
            with pytest.raises(PoolTimeout, match="last connect error") as caught:
                pool.acquire(timeout=limit)
            overshoots.append(time.monotonic() - began - limit)
            causes.append(caught.value.__cause__)

        run_threads([wait_for_lock, wait_for_pool] * 5)
        for cause in causes:
            assert cause is not None
            assert isinstance(cause.__cause__, ConnectionRefusedError)
        report(
            f"overshoot at most {max(overshoots) * 1e3:.1f} ms, "
            f"a bare lock's {max(control) * 1e3:.1f} ms"
        )
        assert min(overshoots) > -0.01
        assert max(overshoots) <= max(control) + 0.05
    finally:
        locked_server.start()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_recovers_by_itself(locked_server: LocalPostgres, locked_pool: Any, mode: StopMode) -> None:
    """Who waits while the server is down is served when it is back, without a new call."""
    pool = locked_pool(min_size=3, max_size=3)
    pool.open(wait=True)
    locked_server.stop(mode)
    with explained(pool, locked_server), ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(pool.run, "SELECT 1")
        eventually(lambda: pool.stats().dial_failures > 1, "dials fail")
        # Perhaps it is still looking at the dead ones: others have seen them before it.
        eventually(lambda: pool.stats().waiting == 1, "the caller waits")
        locked_server.start()
        assert waiting.result(30) == [[1]]
        eventually(lambda: pool.stats().idle == 3, "the pool is full again")
        for _ in range(20):
            assert pool.run("SELECT 1") == [[1]]


def test_restart_between_two_calls(locked_server: LocalPostgres, locked_pool: Any) -> None:
    """After a restart the very next callers are served, without an error."""
    pool = locked_pool(min_size=4, max_size=4)
    pool.open(wait=True)
    for mode in ("fast", "immediate"):
        locked_server.restart(mode)
        with explained(pool, locked_server):
            for _ in range(20):
                assert pool.run("SELECT 1") == [[1]]


def test_too_many_clients(make_pool: MakePool, admin: Admin, server: LocalPostgres) -> None:
    """A server without free slots is no permanent failure: the pool waits for one."""
    admin.run("CREATE ROLE narrow LOGIN CONNECTION LIMIT 1")
    try:
        dsn = f"postgresql://narrow@{server.host}:{server.port}/postgres?sslmode=disable"
        pool = make_pool(dsn, max_size=2)
        lease = pool.acquire()
        with pytest.raises(PoolTimeout, match="too many connections for role"):
            pool.acquire(timeout=0.3)
        pool.detach(lease).close()
        with pool.connection(timeout=10) as conn:
            assert conn.run("SELECT 1") == [[1]]
        pool.close()
    finally:
        admin.run("DROP ROLE narrow")
