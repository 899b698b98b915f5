"""Connections that get old, idle for long, die, or are held for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pool.kit import Caller, Clock, eventually, filled, give_back, leases

from fastpool import Pool
from fastpool.testing import StubConnection, StubDriver

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]

QUIET: dict[str, Any] = {"max_idle_time": None, "check_after_idle": None}
"""Nothing but the lifetime and the sockets is looked at."""


def pass_time(pool: Pool[StubConnection], clock: Clock, seconds: float) -> None:
    """Move the clock, and let the keeper look."""
    clock.now += seconds
    pool._house.keeper.tend()


def expiries(pool: Pool[StubConnection]) -> list[float]:
    return [entry.expires for entry in pool._core.entries]


def test_lifetime_is_drawn_once(make: Make, clock: Clock) -> None:
    """Each connection's end is drawn once, in [max_lifetime - jitter, max_lifetime]."""
    pool = make(min_size=20, max_lifetime=100.0, max_lifetime_jitter=0.5, **QUIET)
    filled(pool)
    drawn = expiries(pool)
    assert all(1099.5 <= expires <= 1100.0 for expires in drawn)
    assert len(set(drawn)) > 1
    pass_time(pool, clock, 1.0)
    give_back(leases(pool, 5))
    pool.reconfigure(timeout=1.0)
    assert set(expiries(pool)) == set(drawn)


def test_no_lifetime(make: Make, clock: Clock) -> None:
    """Without max_lifetime a connection stays as long as it works."""
    pool = make(min_size=1, max_size=1, max_lifetime=None, **QUIET)
    filled(pool)
    pass_time(pool, clock, 1e9)
    with pool.connection() as conn:
        assert conn.number == 1


def test_never_handed_out_over_age(make: Make, clock: Clock, spawn: Spawn) -> None:
    """An over-age connection is given neither to who comes nor to who waits."""
    pool = make(max_size=1, max_lifetime=10.0, max_lifetime_jitter=0.0, timeout=None, **QUIET)
    pool.acquire().release()
    clock.now += 10.0
    lease = pool.acquire()
    assert lease.number == 2
    waits = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool.stats().waiting == 1)
    clock.now += 10.0
    lease.release()
    waits.result()
    with pool.connection() as conn:
        assert conn.number == 3
    eventually(lambda: pool.stats().closed == {"max_lifetime": 2})


def test_replaced_before_it_expires(make: Make, clock: Clock, driver: StubDriver) -> None:
    """Below max_size the new connection is there before the old one goes."""
    pool = make(min_size=2, max_size=3, max_lifetime=100.0, max_lifetime_jitter=0.0, **QUIET)
    filled(pool)
    gate = driver.gates["connect"] = threading.Event()
    pass_time(pool, clock, 95.0)
    eventually(lambda: driver.counts["connect"] == 3)
    pass_time(pool, clock, 1.0)
    assert pool.stats().idle == 2  # nothing goes before the new one has come
    gate.set()

    def renewed() -> bool:
        pool._house.keeper.tend()
        return {conn.number for conn in driver.connections if not conn.closed} == {3, 4}

    eventually(renewed)
    assert driver.most_open == 3
    assert pool.stats().closed == {"max_lifetime": 2}


def test_replaced_one_at_a_time_when_full(make: Make, clock: Clock, driver: StubDriver) -> None:
    """At max_size the old one goes first, and never two of them at once."""
    pool = make(min_size=3, max_size=3, max_lifetime=100.0, max_lifetime_jitter=0.0, **QUIET)
    filled(pool)
    gate = driver.gates["connect"] = threading.Event()
    pass_time(pool, clock, 95.0)
    eventually(lambda: driver.counts["connect"] == 4)
    assert pool.stats().idle == 2
    gate.set()

    def renewed() -> bool:
        pool._house.keeper.tend()
        assert pool.stats().idle >= 1
        return {conn.number for conn in driver.connections if not conn.closed} == {4, 5, 6}

    eventually(renewed)
    assert driver.most_open == 3


def test_all_are_replaced_in_time(make: Make, driver: StubDriver) -> None:
    """Connections born together are all replaced before they expire."""
    pool = make(min_size=5, max_size=6, max_lifetime=1.5, max_lifetime_jitter=0.0, **QUIET)
    filled(pool)
    expired = max(expiries(pool))
    eventually(lambda: min(expiries(pool)) > expired)
    assert pool._core.now() < expired


def test_idle_ones_are_trimmed(make: Make, clock: Clock) -> None:
    """What was idle for max_idle_time is closed, down to min_size, the coldest first."""
    pool = make(min_size=2, max_size=6, max_idle_time=10.0, check_after_idle=None)
    held = leases(pool, 6)
    give_back(held[:3])
    clock.now += 5.0
    give_back(held[3:])
    pass_time(pool, clock, 5.0)
    eventually(lambda: pool.stats().size == 3)
    pass_time(pool, clock, 5.0)
    eventually(lambda: pool.stats().size == 2)
    assert pool.stats().closed == {"max_idle_time": 4}


def test_trimming_leaves_min_idle(make: Make, clock: Clock) -> None:
    """Trimming stops at min_idle, on top of what is in use."""
    pool = make(min_idle=2, max_size=6, max_idle_time=10.0, check_after_idle=None)
    held = leases(pool, 6)
    give_back(held[1:])
    pass_time(pool, clock, 10.0)
    eventually(lambda: pool.stats().size == 3)
    pass_time(pool, clock, 10.0)
    assert pool.stats().idle == 2
    give_back(held[:1])


def test_use_starts_idleness_anew(make: Make, clock: Clock) -> None:
    """Idleness counts from the last return, not from birth."""
    pool = make(max_size=1, max_idle_time=10.0, check_after_idle=None)
    pool.acquire().release()
    for _ in range(3):
        pass_time(pool, clock, 9.0)
        with pool.connection() as conn:
            assert conn.number == 1


def test_idle_ones_are_pinged_in_the_background(
    make: Make, clock: Clock, driver: StubDriver
) -> None:
    """The keeper pings before check_after_idle has passed, so a checkout does not."""
    pool = make(min_size=2, max_size=2, check_after_idle=10.0)
    filled(pool)

    def pinged(before: int) -> bool:
        return driver.counts["ping"] > before

    for _ in range(3):
        pings = driver.counts["ping"]
        pass_time(pool, clock, 6.0)
        eventually(partial(pinged, pings))
        eventually(lambda: pool.stats().idle == 2)
    pings = driver.counts["ping"]
    clock.now += 3.0
    give_back(leases(pool, 2))
    assert driver.counts["ping"] == pings


def test_a_checkout_pings_what_nobody_has(make: Make, clock: Clock, driver: StubDriver) -> None:
    """A connection silent for check_after_idle is pinged by the checkout itself."""
    pool = make(check_after_idle=10.0)
    pool.acquire().release()
    eventually(lambda: pool.stats().idle == 1)
    clock.now += 11.0
    driver.connections[0].kill()
    with pool.connection() as conn:
        assert conn.number == 2
    assert driver.counts["ping"] == 1


def test_what_fails_its_ping_is_replaced(make: Make, clock: Clock, driver: StubDriver) -> None:
    """An idle connection without an answer is closed and replaced, with nobody asking."""
    pool = make(min_size=2, max_size=2, check_after_idle=10.0, ping_timeout=0.02)
    filled(pool)
    driver.fail("ping")
    pass_time(pool, clock, 6.0)
    eventually(lambda: driver.counts["connect"] == 3)
    eventually(lambda: pool.stats().idle == 2)
    assert pool.stats().closed == {"dead": 1}


def test_closing_does_not_wait_for_pings(make: Make, clock: Clock, driver: StubDriver) -> None:
    """While idle connections are pinged in vain, one after the other, slots are freed."""
    pool = make(min_size=5, max_size=6, check_after_idle=10.0, ping_timeout=0.1)
    filled(pool)
    driver.gates["ping"] = threading.Event()
    held = leases(pool, 1)
    pass_time(pool, clock, 6.0)
    eventually(lambda: driver.counts["ping"] == 1)
    pool.invalidate(held[0])
    eventually(lambda: held[0] and driver.counts["close"] >= 1)
    assert driver.counts["ping"] < 4


def test_health_check_period(make: Make) -> None:
    """At least once per health_check_period the dead are replaced, with nobody asking."""
    driver = StubDriver(sockets=True)
    pool = make(driver=driver, min_size=2, health_check_period=0.02, max_lifetime=None, **QUIET)
    filled(pool)
    for conn in driver.connections[:2]:
        conn.kill()
    eventually(lambda: driver.counts["connect"] == 4)
    eventually(lambda: pool.stats().idle == 2 and pool.stats().closed == {"dead": 2})


def test_a_leak_is_logged_once(make: Make, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A holder older than leak_threshold is logged once, with the line of its acquire."""
    pool = make(leak_threshold=5.0, check_after_idle=None)
    lease = pool.acquire()
    looks = 0

    def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        pass_time(pool, clock, seconds)
        # A reply to a message that the keeper can only give after its look.
        other = pool.acquire()
        pool.invalidate(other)
        eventually(lambda: pool.stats().closed.get("invalidated") == looks)
        pool._house.keeper.tend()

    look(4.0)
    assert not caplog.records
    look(1.0)
    eventually(lambda: caplog.records)
    look(10.0)
    look(10.0)
    (record,) = caplog.records
    assert "has been held for 5.0 s" in record.getMessage()
    assert f"{__file__}:" in record.getMessage()
    lease.release()
    second = pool.acquire()
    look(5.0)
    eventually(lambda: len(caplog.records) == 2)
    second.release()


def test_the_servers_own_limit(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that ends idle sessions before max_idle_time does is warned of, once."""
    driver.idle_session_timeout = 60.0
    pool = make(min_size=2, max_idle_time=300.0)
    filled(pool)
    pool._house.keeper.tend()
    eventually(lambda: caplog.records)
    pool._house.keeper.tend()
    pool.drain()
    eventually(lambda: driver.counts["close"] == 2)
    (record,) = caplog.records
    assert "idle_session_timeout" in record.getMessage()
