"""Dials: those that fail, those that hang, and who is told."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pool.kit import (
    PATIENCE,
    Caller,
    Refused,
    WrongPassword,
    eventually,
    give_back,
    leases,
)

from fastpool import ConnectFailed, Pool, PoolTimeout
from fastpool.testing import StubConnection, StubDriver

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]

FOREVER = 100_000
"""More failures than a test has time for."""


# -- what will not pass by itself ---------------------------------------------------


def test_a_permanent_failure_fails_everybody_at_once(
    make: Make, driver: StubDriver, spawn: Spawn
) -> None:
    """While nothing is established all who wait get the server's words, not a timeout."""
    gate = driver.gates["connect"] = threading.Event()
    driver.fail("connect", WrongPassword("password authentication failed"), times=FOREVER)
    pool = make(name="orders", max_size=3)
    callers = [spawn(lambda: pool.acquire(timeout=1000.0)) for _ in range(5)]
    eventually(lambda: pool.stats().waiting == 5)
    gate.set()
    for caller in callers:
        caller.join()
        assert isinstance(caller.error, ConnectFailed)
        assert "'orders': cannot connect" in str(caller.error)
        assert "password authentication failed" in str(caller.error)
        assert caller.error.sqlstate == "28P01"
        assert isinstance(caller.error.__cause__, WrongPassword)


def test_a_permanent_failure_is_remembered(make: Make, driver: StubDriver) -> None:
    """For a second arrivals get the failure without a new dial."""
    driver.fail("connect", WrongPassword("wrong password"), times=FOREVER)
    pool = make(connect_concurrency=1)
    for _ in range(20):
        with pytest.raises(ConnectFailed, match="wrong password"):
            pool.acquire(timeout=1000.0)
    assert driver.counts["connect"] == 1


def test_a_permanent_failure_is_forgotten(make: Make, driver: StubDriver) -> None:
    """After that second an arrival is worth a new dial."""
    driver.fail("connect", WrongPassword("wrong password"))
    pool = make(connect_concurrency=1)
    with pytest.raises(ConnectFailed):
        pool.acquire()
    failed = time.monotonic()

    def mended() -> bool:
        try:
            pool.acquire(timeout=1000.0).release()
        except ConnectFailed:
            return False
        return True

    eventually(mended)
    assert 0.9 < time.monotonic() - failed < 3.0
    assert driver.counts["connect"] == 2


def test_nobody_fails_while_a_lease_is_out(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """With a connection established callers go on waiting, and get it when it comes back."""
    pool = make(max_size=3)
    lease = pool.acquire()
    driver.fail("connect", WrongPassword("wrong password"), times=FOREVER)
    waiting = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool.stats().dial_failures == 1)
    late = spawn(lambda: pool.run("SELECT 2"))
    eventually(lambda: pool.stats().waiting == 2)
    assert not waiting.ended
    lease.release()
    assert (waiting.result(), late.result()) == ("SELECT 1", "SELECT 2")


def test_who_still_waits_fails_when_the_last_lease_is_lost(
    make: Make, driver: StubDriver, spawn: Spawn
) -> None:
    """When nothing is left to wait for, the next dial's failure reaches who waits."""
    pool = make(max_size=2)
    lease = pool.acquire()
    driver.fail("connect", WrongPassword("wrong password"), times=FOREVER)
    waiting = spawn(lambda: pool.acquire(timeout=1000.0))
    eventually(lambda: pool.stats().dial_failures == 1)
    pool.invalidate(lease)
    with pytest.raises(ConnectFailed, match="wrong password"):
        waiting.result()


def test_a_permanent_failure_is_not_hammered(make: Make, driver: StubDriver) -> None:
    """With a lease out and callers coming, one dial a second is made, not one per caller."""
    pool = make(max_size=2, connect_concurrency=1)
    with pool.connection():
        driver.fail("connect", WrongPassword("wrong password"), times=FOREVER)
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0.02)
    assert driver.counts["connect"] == 2


# -- what may pass -----------------------------------------------------------------


def test_a_transient_failure_ends_at_the_callers_timeout(make: Make, driver: StubDriver) -> None:
    """Callers wait out their own timeout, and its cause is the last connect error."""
    driver.fail("connect", Refused("nobody home"), times=FOREVER)
    pool = make()
    began = time.monotonic()
    with pytest.raises(PoolTimeout, match="last connect error: Refused: nobody home") as caught:
        pool.acquire(timeout=0.2)
    assert time.monotonic() - began >= 0.2
    assert isinstance(caught.value.__cause__, Refused)
    stats = pool.stats()
    assert stats.last_connect_error == "Refused: nobody home"
    assert stats.last_connect_error_age is not None
    assert stats.last_connect_error_age < 10.0


def test_a_failure_before_the_last_success_is_no_cause(make: Make, driver: StubDriver) -> None:
    """A connect error that was overcome does not explain a later timeout."""
    driver.fail("connect", Refused("nobody home"))
    pool = make(max_size=1)
    with pool.connection(), pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.02)
    assert caught.value.__cause__ is None
    assert "connect error" not in str(caught.value)


def test_recovers_by_itself(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Who waits is served when the database is back, and the pool fills again."""
    driver.fail("connect", Refused("nobody home"), times=FOREVER)
    pool = make(min_size=3)
    waiting = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool.stats().dial_failures >= 3)
    driver.heal()
    assert waiting.result() == "SELECT 1"
    pool.wait()
    assert pool.stats().idle == 3


def test_a_failed_dial_is_followed_by_another(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """One failure costs nobody a place: all who wait are served after it."""
    driver.fail("connect", Refused("busy"), times=2)
    pool = make(max_size=2)
    callers = [spawn(lambda: pool.run("SELECT 1")) for _ in range(4)]
    for caller in callers:
        assert caller.result() == "SELECT 1"


def test_few_dials_while_the_database_is_down(make: Make, driver: StubDriver) -> None:
    """The backoff bounds the dials, though callers come all the time."""
    driver.fail("connect", Refused("nobody home"), times=FOREVER)
    pool = make(min_size=2, connect_concurrency=2)
    began = time.monotonic()
    arrivals = 0
    while time.monotonic() - began < 0.5:
        arrivals += 1
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.001)
    elapsed = time.monotonic() - began
    # One probe per 50 ms may be asked for, by each of the two diallers.
    assert driver.counts["connect"] <= 2 * (elapsed / 0.05 + 2)
    assert arrivals > driver.counts["connect"]


def test_backoff_grows(make: Make, driver: StubDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is drawn from nothing to a limit, which doubles up to the greatest."""
    drawn_from: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn_from.append((low, high))
        return low

    monkeypatch.setattr(random, "uniform", draw)
    driver.fail("connect", Refused("nobody home"), times=5)
    pool = make(min_size=1, max_lifetime=None, connect_backoff=0.25, connect_backoff_max=1.5)
    pool.open(wait=True)
    assert drawn_from[:5] == [(0, limit) for limit in (0.25, 0.5, 1.0, 1.5, 1.5)]


def test_a_newcomer_asks_for_a_probe(make: Make, driver: StubDriver) -> None:
    """In a long pause a caller who comes has a dial made, and does not wait the pause out."""
    driver.fail("connect", Refused("nobody home"))
    pool = make(connect_backoff=1000.0, connect_backoff_max=1000.0)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.01)
    began = time.monotonic()
    pool.acquire().release()
    assert time.monotonic() - began < 5.0


def test_connect_timeout(make: Make) -> None:
    """A dial that hangs ends at connect_timeout, and is followed by another."""
    driver = StubDriver()
    gate = driver.gates["connect"] = threading.Event()
    pool = make(driver=driver, connect_timeout=0.05, connect_concurrency=1)
    with pytest.raises(PoolTimeout, match="connect took too long"):
        pool.acquire(timeout=0.5)
    assert driver.counts["connect"] >= 2
    gate.set()
    pool.acquire().release()


def test_no_connect_timeout(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Without connect_timeout a dial may take as long as it likes, beyond its caller's patience."""
    gate = driver.gates["connect"] = threading.Event()
    pool = make(connect_timeout=None)

    def begun() -> int:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.02)
        return driver.counts["connect"]  # 0 if the caller left before the thread came

    eventually(begun)
    gate.set()
    eventually(lambda: pool.stats().idle == 1)
    assert driver.counts["connect"] == 1


def test_fail_fast(make: Make, driver: StubDriver) -> None:
    """Down for fail_fast_after: callers fail at once, and their coming keeps one probe going."""
    driver.fail("connect", Refused("nobody home"), times=FOREVER)
    pool = make(fail_fast_after=0.05, connect_backoff=0.01, connect_backoff_max=0.01)
    with pytest.raises((ConnectFailed, PoolTimeout)):
        pool.acquire(timeout=PATIENCE)
    gate = driver.gates["connect"] = threading.Event()

    def refused() -> bool:
        began = time.monotonic()
        with pytest.raises(ConnectFailed, match="nobody home"):
            pool.acquire(timeout=1000.0)
        return time.monotonic() - began < 1.0

    eventually(lambda: refused() and pool.stats().connecting == 1)
    for _ in range(20):
        assert refused()  # while the probe hangs as well
    assert pool.stats().connecting == 1
    driver.heal()
    gate.set()
    eventually(lambda: pool.stats().idle == 1)
    pool.acquire().release()


def test_fail_fast_one_probe_at_a_time(make: Make, driver: StubDriver) -> None:
    """While it fails fast a pool has one dial in flight, whatever it lacks."""
    driver.fail("connect", Refused("nobody home"), times=FOREVER)
    pool = make(min_size=5, fail_fast_after=0.01, connect_concurrency=4)
    pool.open()
    eventually(lambda: pool._house.opener.failing_fast)
    eventually(lambda: pool.stats().dial_failures >= 4 and pool.stats().connecting == 0)
    gate = driver.gates["connect"] = threading.Event()
    eventually(lambda: pool.stats().connecting == 1)
    end = time.monotonic() + 0.2  # several of the pauses after which another might begin
    while time.monotonic() < end:
        with pytest.raises(ConnectFailed):
            pool.acquire()
        assert pool.stats().connecting == 1
    driver.heal()
    gate.set()
    pool.wait()


# -- whichever comes first -----------------------------------------------------------


def test_a_return_beats_a_dial(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Who waits while a dial is in flight takes what is returned; the dialled one ends idle."""
    pool = make(max_size=2)
    lease = pool.acquire()
    gate = driver.gates["connect"] = threading.Event()
    waiting = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: driver.counts["connect"] == 2)
    lease.release()
    assert waiting.result() == "SELECT 1"
    gate.set()
    eventually(lambda: pool.stats().idle == 2)
    assert driver.connections[0].statements == ["SELECT 1"]
    assert driver.connections[1].statements == []


def test_a_dial_beats_a_return(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """And who waits takes the dialled one when that comes first."""
    pool = make(max_size=2)
    with pool.connection():
        assert spawn(lambda: pool.run("SELECT 1")).result() == "SELECT 1"
    assert driver.connections[1].statements == ["SELECT 1"]


def test_a_returned_one_is_served_while_dials_fail(
    make: Make, driver: StubDriver, spawn: Spawn
) -> None:
    """Failing dials do not keep anybody from a connection that comes back."""
    pool = make(max_size=3)
    lease = pool.acquire()
    driver.fail("connect", Refused("nobody home"), times=FOREVER)
    waiting = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool.stats().dial_failures >= 2)
    lease.release()
    assert waiting.result() == "SELECT 1"


def test_hosts_are_tried_in_turn(make: Make, driver: StubDriver) -> None:
    """The next host is tried at once, and the one that failed comes last from then on."""
    driver.fail("connect", Refused("nobody home"))
    pool = make("host=a,b", connect_concurrency=1)
    give_back(leases(pool, 2))
    assert [params["host"] for params in driver.params] == ["a", "b", "b"]
    assert pool.stats().dial_failures == 0


def test_a_permanent_failure_of_one_host_is_final(make: Make, driver: StubDriver) -> None:
    """A wrong password is not tried on every host."""
    driver.fail("connect", WrongPassword("wrong password"), times=2)
    with pytest.raises(ConnectFailed):
        make("host=a,b", connect_concurrency=1).acquire()
    assert [params["host"] for params in driver.params] == ["a"]


def test_concurrency_changes_on_the_living_pool(make: Make, driver: StubDriver) -> None:
    """connect_concurrency counts from the moment it is changed, upwards and downwards."""
    pool = make(min_size=0, max_size=30, connect_concurrency=4)

    def dialling(count: int) -> bool:
        connecting = pool.stats().connecting
        assert connecting <= count
        return connecting == count

    for concurrency in (4, 1, 3):
        pool.reconfigure(connect_concurrency=concurrency, min_size=0)
        pool.drain()
        eventually(lambda: pool.stats().size == 0)
        gate = driver.gates["connect"] = threading.Event()
        pool.reconfigure(min_size=8)
        pool.open()
        eventually(partial(dialling, concurrency))
        gate.set()
        pool.wait()


def test_failures_are_warned_of_now_and_then(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """The first in a row, and then one in ten seconds: a server may be down for long."""
    caplog.set_level(logging.INFO, "fastpool")
    driver.fail("connect", times=1000)
    pool = make(connect_backoff=0.001, connect_backoff_max=0.002, min_size=1)
    pool.open()
    eventually(lambda: pool.stats().dial_failures > 20)
    said = [r.levelname for r in caplog.records if "cannot connect" in r.getMessage()]
    assert said.count("WARNING") <= 2
    assert len(said) > 20
