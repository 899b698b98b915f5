"""Servers that restart, stop, are promoted, or vanish behind a pool that goes on working."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from integration.kit import Admin, eventually, report

from fastpool import Pool, PoolTimeout
from fastpool.drivers.pg8000 import Native
from fastpool.testing import FaultProxy, LocalPostgres
from fastpool.testing.local_postgres import StopMode

PID = "SELECT pg_backend_pid()"
COUNT = 10

MakePool = Callable[..., Pool[Any]]


class PingCounter(Native):
    """Counts the round trips that the pool makes to look after a connection."""

    pings = 0

    def ping(self, conn: Any, timeout: float) -> None:
        self.pings += 1
        super().ping(conn, timeout)


@pytest.fixture(scope="module")
def primary() -> Iterator[LocalPostgres]:
    """A server to be restarted."""
    with LocalPostgres() as server:
        yield server


@pytest.fixture
def pool_of() -> Iterator[MakePool]:
    """``pool_of(*servers or proxies, target=..., **settings)``."""
    pools: list[Pool[Any]] = []

    def make(*servers: Any, target: str = "any", **settings: Any) -> Pool[Any]:
        hosts = ",".join(f"{server.host}:{server.port}" for server in servers)
        dsn = (
            f"postgresql://postgres@{hosts}/postgres?sslmode=disable&target_session_attrs={target}"
        )
        pools.append(Pool(dsn, **{"min_size": 0, "name": f"failover-{len(pools)}", **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close(timeout=1.0)


def connect_time(pool: Pool[Any]) -> float:
    """The control: the slowest of five checkouts that need a dial to the server as it is
    now, in seconds."""
    took = []
    for _ in range(5):
        pool.drain()
        began = time.monotonic()
        with pool.connection():
            took.append(time.monotonic() - began)
    return max(took)


class Load:
    """Threads that use a pool all the time; what goes wrong is kept, by connection."""

    def __init__(self, pool: Pool[Any], threads: int, sql: str = "SELECT 1") -> None:
        self._pool, self._sql = pool, sql
        self._over = threading.Event()
        self.done = 0
        self.errors: list[tuple[int, BaseException]] = []
        """Number of the lease's connection (0: none was given), and what it raised."""
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        while not self._over.is_set():
            number = 0
            try:
                with self._pool.connection() as conn:
                    number = id(conn.driver_connection)
                    conn.run(self._sql)
                self.done += 1
            except Exception as error:
                self.errors.append((number, error))

    def more(self, count: int = 20) -> None:
        """Return when so many more calls have ended well."""
        goal = self.done + count
        eventually(lambda: self.done >= goal, f"{count} calls: {self.errors[-3:]}", 60.0)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


# -- restarts ----------------------------------------------------------------------------


@pytest.fixture
def full_pool(primary: LocalPostgres, pool_of: MakePool) -> Pool[Any]:
    """Ten idle connections."""
    pool = pool_of(primary, min_size=COUNT, max_size=COUNT)
    pool.open(wait=True)
    return pool


def full(pool: Pool[Any]) -> None:
    """Wait until it is, and see that each connection is good."""
    eventually(lambda: pool.stats().idle == COUNT, "the pool is full")
    leases = [pool.acquire() for _ in range(COUNT)]
    for lease in leases:
        assert lease.run("SELECT 1") == [[1]]
        lease.release()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_while_idle(primary: LocalPostgres, full_pool: Pool[Any], mode: StopMode) -> None:
    """Ten idle connections die: nobody sees an error, and the first caller after the
    start is served after one connect."""
    control = connect_time(full_pool)
    took = []
    for _ in range(3):  # a machine with other work may be late once
        full(full_pool)
        primary.restart(mode)
        began = time.monotonic()
        assert full_pool.run("SELECT 1") == [[1]]
        took.append(time.monotonic() - began)
        if took[-1] <= control + 0.1:
            break
    report(f"{mode}: served after {took[-1]:.4f} s; a checkout with a dial takes {control:.4f} s")
    assert min(took) <= control + 0.1
    full(full_pool)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_long_outage(primary: LocalPostgres, full_pool: Pool[Any], mode: StopMode) -> None:
    """Who has waited all the while is served after one pause of the backoff and one connect."""
    full(full_pool)
    control = connect_time(full_pool)
    primary.stop(mode)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(lambda: (full_pool.run("SELECT 1"), time.monotonic()))
        # Five failures in a row: the pause is drawn from its full length.
        eventually(lambda: full_pool._house.opener._failures >= 5, "dials fail")
        primary.start()
        up = time.monotonic()
        rows, served = waiting.result(30)
    report(f"{mode}: served {served - up:.4f} s after the start")
    assert rows == [[1]]
    assert served - up <= control + 0.6
    full(full_pool)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_under_load(primary: LocalPostgres, pool_of: MakePool, mode: StopMode) -> None:
    """At most one error for each connection in use, and none once the server is back."""
    pool = pool_of(primary, max_size=COUNT)
    with Load(pool, 2 * COUNT) as load:
        primary.restart(mode)
        load.more()
        errors = list(load.errors)
        load.more(100)
        assert load.errors == errors
    seen = Counter(number for number, _ in errors)
    report(f"{mode}: {len(errors)} errors")
    assert len(errors) <= COUNT, errors
    assert all(number and count == 1 for number, count in seen.items()), errors


def test_smart_restart(primary: LocalPostgres, pool_of: MakePool) -> None:
    """A smart restart ends although connections are idle and others in use, and nobody
    sees an error: the first dial that is told so lets them go."""
    pool = pool_of(primary, max_size=COUNT)
    leases = [pool.acquire() for _ in range(COUNT // 2)]
    for lease in leases[2:]:
        lease.release()
    with ThreadPoolExecutor(COUNT) as executor:
        restarted = executor.submit(primary.restart, "smart")
        eventually(lambda: "smart shutdown" in primary.log(), "the server begins to stop")
        assert pool.run("SELECT 1") == [[1]]  # sessions go on
        busy = [executor.submit(pool.run, "SELECT pg_sleep(0.2)") for _ in range(COUNT - 1)]
        eventually(lambda: pool.stats().dial_failures, "a dial is told so")
        for lease in leases[:2]:
            assert lease.run("SELECT 1") == [[1]]
            lease.release()
        restarted.result(30)
        for future in busy:
            future.result(30)
    assert pool.stats().closed["drained"] >= COUNT // 2
    assert pool.run("SELECT 1") == [[1]]


def test_one_backend_is_not_the_server(primary: LocalPostgres, pool_of: MakePool) -> None:
    """After pg_terminate_backend of one session the others are pinged once, and kept."""
    driver = PingCounter()
    pool = pool_of(primary, driver=driver, min_size=4, max_size=4)
    pool.open(wait=True)
    admin = Admin(primary)
    before = admin.backends(pool.name)
    victim = pool.run(PID)[0][0]
    admin.kill([victim])
    for _ in range(20):
        assert pool.run(PID)[0][0] != victim
    leases = [pool.acquire() for _ in range(4)]
    served = {lease.run(PID)[0][0] for lease in leases}
    for lease in leases:
        lease.release()
    assert served > before - {victim}
    # The victim's too, when the end of its connection had not quite arrived.
    assert driver.pings <= 4
    assert pool.stats().closed == {"dead": 1}
    admin.close()


# -- roles -------------------------------------------------------------------------------


def test_read_only_transactions_cost_nothing(primary: LocalPostgres, pool_of: MakePool) -> None:
    """1 000 writes in the user's own read-only transactions replace no connection."""
    driver = PingCounter()
    pool = pool_of(primary, target="read-write", driver=driver, min_size=2, max_size=2)
    pool.open(wait=True)
    refused = 0
    for _ in range(1000):
        try:
            with pool.transaction(read_only=True) as conn:
                conn.run("CREATE TABLE nowhere (a int)")
        except Exception as error:
            refused += "25006" in str(error)
    stats = pool.stats()
    assert (refused, stats.created, stats.closed, driver.pings) == (1000, 2, {}, 0)


def test_demoted_server_is_not_served(primary: LocalPostgres, pool_of: MakePool) -> None:
    """A server that turns read-only fails each write on loan once, and nobody afterwards;
    when it takes writes again, so do callers, without a restart."""
    admin = Admin(primary)
    admin.run("CREATE TABLE IF NOT EXISTS written (a int)")
    pool = pool_of(primary, target="read-write", min_size=COUNT, max_size=COUNT)
    pool.open(wait=True)
    write = "INSERT INTO written VALUES (1)"
    pool.run(write)
    admin.run("ALTER SYSTEM SET default_transaction_read_only = on")
    admin.run("SELECT pg_reload_conf()")
    try:
        eventually(lambda: admin.value("SHOW default_transaction_read_only") == "on", "demoted")
        # Each backend reads its settings before its next command.
        with pytest.raises(Exception, match="25006"):
            pool.run(write)
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pool.within(timeout=0.1).run(write)
        assert set(pool.stats().closed) <= {"role", "dead"}
    finally:
        admin.run("SET default_transaction_read_only = off")
        admin.run("ALTER SYSTEM RESET default_transaction_read_only")
        admin.run("SELECT pg_reload_conf()")
    with pool.connection(timeout=5.0) as conn:
        conn.run(write)
    admin.close()


def test_promotion(pool_of: MakePool) -> None:
    """The primary dies under load and its standby is promoted: writes succeed within a
    second, nobody is served a standby, and errors are at most one per connection on loan."""
    with LocalPostgres() as primary, primary.standby() as standby:
        admin = Admin(primary)
        admin.run("CREATE TABLE written (a int)")
        admin.close()
        pool = pool_of(primary, standby, target="read-write", max_size=COUNT)
        with Load(pool, COUNT, "INSERT INTO written VALUES (1)") as load:
            primary.stop("immediate")
            eventually(lambda: pool._house.opener._failures >= 5, "dials fail")
            errors = list(load.errors)
            before = load.done
            standby.promote()
            promoted = time.monotonic()
            eventually(lambda: load.done > before, "a write succeeds")
            took = time.monotonic() - promoted
            load.more(50)
            assert load.errors == errors
        report(f"written {took * 1e3:.0f} ms after the promotion; {len(errors)} errors")
        assert took < 1.0
        assert len(errors) <= COUNT
        assert not [error for _, error in errors if "25006" in str(error)]
        assert pool.run("SELECT pg_is_in_recovery()") == [[False]]


# -- hosts that do not answer --------------------------------------------------------------


def test_first_of_two_hosts_is_a_black_hole(primary: LocalPostgres, pool_of: MakePool) -> None:
    """The second is served within one connect_timeout, and later callers at once."""
    limit = 0.5
    with FaultProxy(primary) as hole:
        pool = pool_of(hole, primary, max_size=COUNT, connect_timeout=limit)
        hole.black_hole()
        began = time.monotonic()
        first = pool.acquire()
        took = time.monotonic() - began
        later = []
        leases = [first]
        for _ in range(COUNT - 1):
            began = time.monotonic()
            leases.append(pool.acquire())
            later.append(time.monotonic() - began)
        for lease in leases:
            assert lease.run("SELECT 1") == [[1]]
            lease.release()
        report(f"first after {took:.3f} s, the slowest later one after {max(later):.3f} s")
        assert took < limit + 0.25
        assert max(later) < limit / 2
        hole.heal()


def test_full_server(pool_of: MakePool) -> None:
    """Without free slots callers share what there is, and few dials are made."""
    with LocalPostgres(settings={"max_connections": 8}) as server:
        pool = pool_of(server, max_size=30, timeout=20.0)
        with Load(pool, 20, "SELECT pg_sleep(0.005)") as load:
            eventually(lambda: pool.stats().dial_failures, "the server is full")
            before = pool.stats()
            load.more(200)
            after = pool.stats()
            assert not load.errors
        report(f"{after.dials - before.dials} dials in 200 calls")
        assert after.dials - before.dials <= 4
        assert pool._core.ceiling < 30
