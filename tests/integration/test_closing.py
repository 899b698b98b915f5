"""After close() the server has no session of the pool any more, whatever was going on."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, eventually, plain_dsn

from fastpool import ConnectionReleased, PoolClosed
from fastpool.testing import FaultProxy

PID = "SELECT pg_backend_pid()"


@pytest.mark.parametrize("driver", ["native", "dbapi"])
def test_nothing_is_left(make_pool: MakePool, admin: Admin, driver: str) -> None:
    """When close() returns, the server counts no session of this pool: without waiting."""
    pool = make_pool(driver=driver, min_size=5, max_size=5)
    pool.open(wait=True)
    assert len(admin.backends(pool.name)) == 5
    pool.close()
    assert admin.backends(pool.name) == set()
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_close_waits_for_a_lease(make_pool: MakePool, admin: Admin) -> None:
    """A connection in use is closed when it comes back, and close() returns then."""
    pool = make_pool(max_size=2)
    lease = pool.acquire()
    closing = threading.Thread(target=pool.close)
    closing.start()
    eventually(lambda: "closed" in repr(pool), "the pool is closing")
    assert lease.run("SELECT 1") == [[1]]
    assert closing.is_alive()
    lease.release()
    closing.join(5)
    assert not closing.is_alive()
    assert admin.backends(pool.name) == set()


@pytest.mark.parametrize("end", ["killed", "detached", "invalidated"])
def test_close_ends_with_the_last_lease(make_pool: MakePool, admin: Admin, end: str) -> None:
    """However the last lease goes, close() returns at once and not at some later tick."""
    pool = make_pool(max_size=2)
    lease = pool.acquire()
    pid = lease.run(PID)[0][0]
    closing = threading.Thread(target=pool.close)
    closing.start()
    eventually(lambda: "closed" in repr(pool), "the pool is closing")
    if end == "killed":
        admin.kill([pid])
        with pytest.raises(Exception, match="network error"):
            lease.run("SELECT 1")
        lease.release()
    elif end == "detached":
        pool.detach(lease).close()
    else:
        pool.invalidate(lease)
    closing.join(3)
    assert not closing.is_alive()


def test_leaked_query_is_cancelled(
    make_pool: MakePool, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """A query of a minute under a leaked lease ends with close(timeout=0.2), on both sides."""
    pool = make_pool(max_size=2)
    outcome: list[BaseException] = []
    pids: list[int] = []

    def leak() -> None:
        lease = pool.acquire()
        pids.append(lease.run(PID)[0][0])
        try:
            lease.run("SELECT pg_sleep(60)")
        except Exception as error:
            outcome.append(error)
        with pytest.raises(ConnectionReleased):
            lease.run("SELECT 1")
        lease.release()

    leaker = threading.Thread(target=leak)
    leaker.start()
    eventually(lambda: pids and "pg_sleep" in admin.running(pids[0]), "the query runs")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "fastpool"):
        pool.close(timeout=0.2)
    took = time.monotonic() - began
    leaker.join(10)
    assert not leaker.is_alive()
    assert len(outcome) == 1
    assert not admin.alive(pids[0])
    assert 0.2 <= took < 3
    assert "test_closing.py" in caplog.text


def test_detached_stays_usable(make_pool: MakePool, admin: Admin) -> None:
    """A detached connection is its holder's, and the pool dials another in its place."""
    pool = make_pool(max_size=1)
    lease = pool.acquire()
    pid = lease.run(PID)[0][0]
    conn = pool.detach(lease)
    with pytest.raises(ConnectionReleased):
        lease.run("SELECT 1")
    assert pool.run(PID)[0][0] != pid
    pool.close()
    assert conn.run(PID) == [[pid]]
    assert admin.backends(pool.name) == {pid}
    conn.close()


def test_slot_is_free_when_the_server_says_so(make_pool: MakePool, admin: Admin) -> None:
    """With one slot and every connection closed after use, the server never counts two."""
    pool = make_pool(max_size=1, max_uses=1)
    for _ in range(50):
        with pool.connection() as conn:
            (pid,) = conn.run(PID)[0]
            assert admin.backends(pool.name) == {pid}


def test_a_server_that_does_not_close(proxy: FaultProxy, make_pool: MakePool) -> None:
    """Behind a proxy that keeps dead connections open, close_timeout frees the slot."""
    pool = make_pool(plain_dsn(proxy), max_size=1, close_timeout=0.2)
    lease: Any = pool.acquire()
    proxy.black_hole()
    began = time.monotonic()
    pool.invalidate(lease)
    eventually(lambda: pool.stats().size == 0, "the slot is free")
    assert 0.15 < time.monotonic() - began < 3
    pool.close()
    proxy.close()
