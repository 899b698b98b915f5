"""Connections that the server ended while they were idle, and queries that were interrupted."""

# ruff: noqa: PT012 - what raises is the end of a block, or a call inside it

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import Admin, Interrupt, eventually, plain_dsn, run_threads, whole
from support import knocking

from fastpool.drivers.pg8000 import Native
from fastpool.testing import FaultProxy, LocalPostgres

PID = "SELECT pg_backend_pid()"


class PingCounter(Native):
    """Counts the round trips that the pool makes to look after a connection."""

    pings = 0

    def ping(self, conn: Any, timeout: float) -> None:
        self.pings += 1
        super().ping(conn, timeout)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_terminated_while_idle(
    make_pool: MakePool, admin: Admin, server: LocalPostgres, transport: str
) -> None:
    """Ten backends are killed while idle: nobody gets one or an error, and no ping is sent."""
    driver = PingCounter()
    dsn = server.unix_dsn if transport == "unix" else f"{server.dsn}?sslmode=disable"
    pool = make_pool(dsn, driver=driver, min_size=10, max_size=10)
    pool.open(wait=True)
    killed = admin.backends(pool.name)
    assert len(killed) == 10
    for _ in range(100):
        assert pool.run(PID)[0][0] in killed
    admin.kill(killed)

    leases = [pool.acquire() for _ in range(10)]
    served = {lease.run(PID)[0][0] for lease in leases}
    for lease in leases:
        lease.release()
    assert len(served) == 10
    assert not served & killed
    run_threads([lambda: [pool.run("SELECT 1") for _ in range(20)]] * 8)
    assert driver.pings == 0
    assert pool.stats().closed == {"dead": 10}


def test_terminated_while_idle_by_the_server_itself(make_pool: MakePool, admin: Admin) -> None:
    """idle_session_timeout ends idle connections: the next caller gets a live one."""
    pool = make_pool(max_size=1, session_settings={"idle_session_timeout": "300ms"})
    first = pool.run(PID)[0][0]
    eventually(lambda: not admin.alive(first), "the server ended the session")
    assert pool.run(PID)[0][0] != first


def test_pinged_only_by_the_keeper(make_pool: MakePool) -> None:
    """Idle connections are pinged in time by the keeper, so that checkouts need not."""
    driver = PingCounter()
    pool = make_pool(driver=driver, min_size=2, max_size=2, check_after_idle=0.2)
    pool.open(wait=True)
    eventually(lambda: driver.pings >= 4, "the keeper pings")
    for _ in range(20):
        pings, acquires = driver.pings, pool.stats().acquires
        pool.run("SELECT 1")
        if driver.pings == pings:
            return  # the keeper was not at work just then
        assert pool.stats().acquires == acquires + 1
    pytest.fail("each of 20 checkouts saw a ping")


def test_check_none_finds_out_late(make_pool: MakePool, admin: Admin) -> None:
    """With check=None a dead connection is served, fails its user, and is not kept."""
    pool = make_pool(max_size=1, check=None)
    killed = pool.run(PID)[0][0]
    admin.kill([killed])
    with pytest.raises(Exception, match="network error"):
        served = pool.run(PID)[0][0]
        pytest.fail(f"{killed} was killed, {served} served; {pool.stats()}")
    assert pool.run("SELECT 1") == [[1]]


def test_terminated_in_use(make_pool: MakePool, admin: Admin) -> None:
    """A backend killed under its user fails that user, and the slot is free again."""
    pool = make_pool(max_size=1)
    with pytest.raises(Exception, match="network error") as caught, pool.connection() as conn:
        admin.kill([conn.run(PID)[0][0]])
        conn.run("SELECT 1")
    assert "57P01" in str(caught.value.__cause__)
    assert pool.run("SELECT 1") == [[1]]


@pytest.mark.parametrize("driver", ["native", "dbapi"])
def test_interrupted_query_is_cancelled(make_pool: MakePool, admin: Admin, driver: str) -> None:
    """Ctrl-C in a query of a minute: its backend is gone at once, and the slot is free."""
    pool = make_pool(driver=driver, max_size=1)
    pids: list[int] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    with (
        knocking(lambda: pids and "pg_sleep" in admin.running(pids[0]), interrupt),
        pytest.raises(KeyboardInterrupt),
        pool.connection() as conn,
    ):
        [[pid]] = conn.driver_connection.execute_simple(PID).rows
        pids.append(pid)
        if driver == "native":
            conn.run("SELECT pg_sleep(60)")
        else:
            conn.cursor().execute("SELECT pg_sleep(60)")
    eventually(lambda: not admin.alive(pid), "the backend is gone", timeout=5)
    eventually(lambda: whole(pool), "the slot is free")


def test_cut_in_a_query(make_pool: MakePool, proxy: FaultProxy, admin: Admin) -> None:
    """A connection that something on the way has cut: its user hears of it, the query that
    still runs on the server is cancelled, and the slot is free."""
    pool = make_pool(plain_dsn(proxy), max_size=1)

    def cut(pid: int) -> None:
        eventually(lambda: "pg_sleep" in admin.running(pid), "the query runs")
        proxy.reset()  # a server that waits in a query does not look

    with pytest.raises(Exception, match="network error"), pool.connection() as conn:
        pid = conn.run(PID)[0][0]
        cutter = threading.Thread(target=cut, args=(pid,))
        cutter.start()
        conn.run("SELECT pg_sleep(60)")
    cutter.join()
    assert pool.run("SELECT 1") == [[1]]
    eventually(lambda: admin.running(pid) == "", "the query has ended", timeout=5)
    proxy.close()


@pytest.fixture
def _no_collection() -> Iterator[None]:
    """No garbage is collected meanwhile: its finalizers would be interrupted as well."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.filterwarnings("ignore:.* was never released:ResourceWarning")
@pytest.mark.parametrize("accident", ["", "BEGIN", "SET work_mem = '7MB'", "cut"])
def test_interrupt_at_each_step_of_a_release(make_pool: MakePool, accident: str) -> None:
    """Wherever an interrupt ends a release, the next caller gets a connection at once."""
    pool = make_pool(max_size=1)
    events = 0

    def profiler(frame: Any, event: str, argument: Any) -> None:
        # The two moments of a call at which the interpreter delivers interrupts.
        nonlocal events
        if event in ("call", "c_return"):
            events -= 1
            if events == 0:
                raise Interrupt

    for step in range(1, 1000):
        lease = pool.acquire(timeout=5)
        if accident == "cut":
            lease.driver_connection._usock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(Exception, match="network error"):
                lease.run("SELECT 1")
        elif accident:
            lease.run(accident)
        events = step
        sys.setprofile(profiler)
        try:
            lease.release()
        except Interrupt:
            continue
        finally:
            sys.setprofile(None)
            del lease
        break
    assert step < 1000
    with pool.connection(timeout=5) as conn:
        assert conn.run("SHOW work_mem") != [["7MB"]]
        assert conn.run("SELECT pg_current_xact_id_if_assigned() IS NULL") == [[True]]
