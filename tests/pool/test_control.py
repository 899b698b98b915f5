"""What is done to a living pool, and what it tells of itself."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pool.kit import PATIENCE, Caller, Clock, Refused, eventually, filled, give_back, leases
from support import knocking

import fastpool
from fastpool import ConfigError, ConnectionReleased, Pool, PoolConfig, PoolTimeout
from fastpool import pool as control
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]


def line(offset: int) -> str:
    """``file:line`` of the line so far from the caller's."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno + offset}"


# -- drain, invalidate, detach -------------------------------------------------------


def test_drain_replaces_every_connection(make: Make, driver: StubDriver) -> None:
    """After drain() idle connections are replaced at once, and those in use when they return."""
    pool = make(min_size=2, max_size=3)
    filled(pool)
    lease = pool.acquire()
    pool.drain()
    assert lease.run("SELECT 1") == "SELECT 1"
    with pool.connection() as conn:
        assert conn.number > 2
    lease.release()
    eventually(lambda: all(conn.closed for conn in driver.connections[:2]))
    pool.wait()
    assert set(pool.stats().closed) == {"drained"}
    held = leases(pool, 3)
    assert min(conn.number for conn in held) > 2
    give_back(held)
    assert driver.most_open <= 3


def test_drain_catches_dials_in_flight(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """A dial begun before drain() ends in nobody's hands; who waited gets a later one."""
    gate = driver.gates["connect"] = threading.Event()
    pool = make(max_size=1)
    waiting = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: driver.counts["connect"] == 1)
    pool.drain()
    gate.set()
    assert waiting.result() == "SELECT 1"
    assert [conn.statements for conn in driver.connections] == [[], ["SELECT 1"]]
    assert driver.connections[0].closed


def test_invalidate_closes(make: Make, driver: StubDriver) -> None:
    """An invalidated connection is released and closed, and the next one is new."""
    pool = make(max_size=1)
    lease = pool.acquire()
    pool.invalidate(lease)
    with pytest.raises(ConnectionReleased):
        lease.run("SELECT 1")
    with pytest.raises(ConnectionReleased):
        pool.invalidate(lease)
    lease.release()
    with pool.connection() as conn:
        assert conn.number == 2
    assert driver.connections[0].closed
    assert pool.stats().closed == {"invalidated": 1}


def test_invalidate_inside_a_block(make: Make, driver: StubDriver) -> None:
    """A block may invalidate its own connection and end well."""
    pool = make()
    with pool.connection() as conn:
        pool.invalidate(conn)
    eventually(lambda: pool.stats().size == 0)
    assert driver.connections[0].closed


def test_detach(make: Make, driver: StubDriver) -> None:
    """A detached connection is its holder's for good; its slot is free, the lease dead."""
    pool = make(max_size=1)
    lease = pool.acquire()
    conn = pool.detach(lease)
    assert conn is driver.connections[0]
    with pytest.raises(ConnectionReleased):
        lease.run("SELECT 1")
    with pool.connection() as other:
        assert other.number == 2
    lease.release()
    pool.close()
    assert conn.run("SELECT 1") == "SELECT 1"
    conn.close()


def test_detach_ends_the_deadline(make: Make) -> None:
    """What is the caller's own has no deadline of the pool's."""
    pool = make(min_size=1)
    filled(pool)
    conn = pool.detach(pool.acquire(deadline=0.0))
    assert conn.run("SELECT 1") == "SELECT 1"
    conn.close()


@pytest.mark.parametrize("method", ["invalidate", "detach"])
def test_released_in_between(make: Make, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """What another thread has given back meanwhile is the next one's, and stays so."""
    pool = make(max_size=1)
    lease = pool.acquire()
    others: list[Any] = []
    found = control._lease

    class Overtaken:
        def _entry_of(self, core: Any) -> Any:
            entry = found(lease)._entry_of(core)
            lease.release()
            others.append(pool.acquire())
            return entry

    monkeypatch.setattr(control, "_lease", lambda conn: Overtaken())
    with contextlib.suppress(ConnectionReleased):
        getattr(pool, method)(lease)
    assert others[0].run("SELECT 1") == "SELECT 1"
    others[0].release()


@pytest.mark.parametrize("timeout", [None, "1", -1, math.nan, True])
@pytest.mark.parametrize("method", ["wait", "ping", "close", "open"])
def test_a_timeout_is_a_number(make: Make, method: str, timeout: Any) -> None:
    """Any other is refused by name, before anything is done."""
    pool = make()
    with pytest.raises(ConfigError, match="timeout: expected seconds"):
        getattr(pool, method)(timeout=timeout)
    assert pool._core.phase == 0


def test_waiting_ends_with_the_deadline(make: Make, driver: StubDriver) -> None:
    """wait() and ping() are over with the deadline around them."""
    driver.gates["connect"] = driver.gates["ping"] = threading.Event()
    pool = make(min_size=1)
    began = time.monotonic()
    with pytest.raises(PoolTimeout), fastpool.deadline(0.05):
        pool.wait()
    driver.gates.pop("connect").set()
    driver.gates["ping"] = threading.Event()
    pool.wait()
    with pytest.raises(TimeoutError), fastpool.deadline(0.05):
        pool.ping()
    assert time.monotonic() - began < 4.0


@pytest.mark.parametrize("method", ["invalidate", "detach", "release"])
def test_only_its_own_leases(make: Make, method: str) -> None:
    """A pool refuses another pool's lease, and what is no lease at all."""
    mine, other = make(), make()
    lease: Any = other.acquire()
    with pytest.raises(ValueError, match="another pool"):
        getattr(mine, method)(lease)
    with pytest.raises(TypeError, match="StubConnection"):
        getattr(mine, method)(lease.driver_connection)
    assert lease.run("SELECT 1") == "SELECT 1"
    lease.release()


# -- reconfigure -----------------------------------------------------------------------


def test_reconfigure_all_or_nothing(make: Make) -> None:
    """One wrong setting among others, and nothing changes."""
    pool = make(max_size=5, timeout=3.0)
    before = pool.config
    for wrong in ({"max_size": 0}, {"nonsense": 1}, {"min_size": 50}, {"max_idle": 9}):
        with pytest.raises(ConfigError):
            pool.reconfigure(timeout=1.0, **wrong)
        assert pool.config is before
    assert pool._core.timeout == 3.0


def test_reconfigure_by_two_threads(make: Make) -> None:
    """Who changes other settings at the same time loses none."""
    pool = make(max_size=5)
    asked, before = threading.Event(), threading.get_ident()
    changing = threading.Thread(target=lambda: (asked.set(), pool.reconfigure(timeout=1.0)))
    configure = pool._core.configure

    def slowly(**settings: Any) -> None:
        if threading.get_ident() == before and not asked.is_set():
            changing.start()
            assert asked.wait(PATIENCE)
            changing.join(0.05)  # it has its chance to be in between
        configure(**settings)

    pool._house.core = Overlay(pool._core, configure=slowly)
    pool.reconfigure(max_size=7)
    changing.join()
    assert (pool.config.max_size, pool.config.timeout) == (7, 1.0)
    assert (pool._core.max_size, pool._core.timeout) == (7, 1.0)


def test_reconfigure_interrupted(make: Make) -> None:
    """Interrupted half way, and nothing has changed."""
    pool = make(max_size=5)
    before, configure = pool.config, pool._core.configure
    strikes = iter([KeyboardInterrupt()])

    def interrupted(**settings: Any) -> None:
        for strike in strikes:
            raise strike
        configure(**settings)

    pool._house.core = Overlay(pool._core, configure=interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.reconfigure(max_size=7)
    assert pool.config is before
    assert pool._core.max_size == 5


class Overlay:
    """An object, with something of it replaced."""

    def __init__(self, under: Any, **instead: Any) -> None:
        self._under = under
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)


def test_a_lower_min_size_ends_the_wait(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Who waits for a pool to be filled is told that less is enough."""
    driver.gates["connect"] = threading.Event()
    pool = make(min_size=2, max_size=2)
    waiting = spawn(lambda: pool.wait(PATIENCE))
    eventually(lambda: pool.stats().connecting > 0 and pool._house.opener.progress._waiters)
    pool.reconfigure(min_size=0)
    waiting.result()
    assert waiting.took < PATIENCE / 2


def test_config_is_what_was_given() -> None:
    """A pool made from a config has an equal one, defaults included."""
    config = PoolConfig(max_size=7, timeout=1.0)
    pool = Pool.from_config(config, "host=h max_size=9", driver=StubDriver(), name="orders")
    assert (pool.config, pool.name) == (config, "orders")
    pool.reconfigure(max_size=3)
    assert pool.config.min_size == 3  # never set by hand, so it follows


def test_settings_in_the_connection_string(make: Make) -> None:
    """The connection string may hold settings; those given by name win."""
    pool = Pool("host=h max_size=9 timeout=4", driver=StubDriver(), timeout=5.0)
    assert (pool.config.max_size, pool.config.timeout) == (9, 5.0)


def test_shrinking(make: Make, driver: StubDriver) -> None:
    """Idle connections beyond a lower max_size close at once, no more than needed."""
    gate = driver.gates["close"] = threading.Event()
    pool = make(max_size=6, close_timeout=1000.0)
    give_back(leases(pool, 6))
    pool.resize(max_size=4)
    assert (pool.stats().idle, pool.stats().closing) == (4, 2)
    gate.set()
    eventually(lambda: pool.stats().size == 4)


def test_shrinking_below_what_is_in_use(make: Make) -> None:
    """Connections in use beyond a lower max_size close at their return, and nobody is cut off."""
    pool = make(max_size=4)
    held = leases(pool, 4)
    pool.resize(max_size=2)
    assert [conn.run("SELECT 1") for conn in held] == ["SELECT 1"] * 4
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    for lease in held:
        lease.release()
        eventually(lambda: pool.stats().closing == 0)
    assert pool.stats().size == 2
    assert pool.stats().closed == {"max_idle": 2}


def test_growing_serves_who_waits(make: Make, spawn: Spawn) -> None:
    """A higher max_size reaches those who wait already, at once."""
    pool = make(max_size=1)
    lease = pool.acquire()
    callers = [spawn(lambda: pool.run("SELECT 1")) for _ in range(3)]
    eventually(lambda: pool.stats().waiting == 3)
    pool.resize(max_size=3)
    for caller in callers:
        assert caller.result() == "SELECT 1"
    lease.release()


def test_a_higher_min_size_fills(make: Make) -> None:
    """More connections to keep are made at once."""
    pool = make()
    pool.open()
    pool.resize(min_size=3)
    pool.wait()
    assert pool.stats().idle == 3


def test_a_lower_max_idle_closes(make: Make) -> None:
    """Idle connections beyond a lower max_idle close at once."""
    pool = make(max_size=5)
    give_back(leases(pool, 5))
    pool.reconfigure(max_idle=1)
    eventually(lambda: pool.stats().size == 1)


def test_a_shorter_lifetime_reaches_present_connections(make: Make, clock: Clock) -> None:
    """A changed lifetime counts from birth for those there are, and is enforced at once."""
    pool = make(min_size=1, max_size=1, max_lifetime=None, check_after_idle=None)
    filled(pool)
    clock.now += 100.0
    pool.reconfigure(max_lifetime=50.0)
    with pool.connection() as conn:
        assert conn.number == 2
    pool.reconfigure(max_lifetime=None)
    clock.now += 1e6
    with pool.connection() as conn:
        assert conn.number == 2


def test_a_shorter_idle_time_is_enforced_at_once(make: Make, clock: Clock) -> None:
    """A changed max_idle_time does not wait for the look that was due under the old one."""
    pool = make(max_size=2, max_idle_time=None, check_after_idle=None, health_check_period=1000.0)
    give_back(leases(pool, 2))
    clock.now += 60.0  # no look is due yet
    pool.reconfigure(max_idle_time=50.0)
    eventually(lambda: pool.stats().closed == {"max_idle_time": 2})


def test_hooks_and_resets_can_be_changed(make: Make, driver: StubDriver) -> None:
    """A hook set on the living pool is called from then on, also for a clean connection."""
    pool = make()
    pool.acquire().release()
    seen: list[int] = []

    def note(conn: StubConnection) -> bool:
        seen.append(conn.number)
        return True

    pool.reconfigure(before_acquire=note, reset="discard")
    pool.acquire().release()
    assert seen == [1]
    assert driver.connections[0].statements == ["DISCARD ALL"]
    pool.reconfigure(before_acquire=None, reset="smart")
    pool.acquire().release()
    assert seen == [1]
    assert driver.connections[0].statements == ["DISCARD ALL"]


def test_a_shorter_timeout_counts_for_the_next_caller(make: Make) -> None:
    """The pool's timeout can be changed while it works."""
    pool = make(max_size=1, timeout=1000.0, deadlock=None)
    with pool.connection():
        pool.reconfigure(timeout=0.01)
        with pytest.raises(PoolTimeout, match=r"0\.01 s"):
            pool.acquire()


# -- ping --------------------------------------------------------------------------------


def test_ping(make: Make, driver: StubDriver) -> None:
    """ping() is one round trip on one connection, which goes back."""
    pool = make()
    pool.ping()
    assert driver.counts["ping"] == 1
    assert pool.stats().idle == 1


def test_ping_that_fails(make: Make, driver: StubDriver) -> None:
    """ping() raises the driver's error, and that connection is not kept."""
    driver.fail("ping", StubError("gone"))
    pool = make()
    with pytest.raises(StubError, match="gone"):
        pool.ping()
    eventually(lambda: pool.stats().size == 0)


def test_ping_has_one_limit(make: Make, driver: StubDriver) -> None:
    """ping() ends with its timeout, whether the connection or the answer does not come."""
    pool = make(max_size=1, close_timeout=0.05)
    with pool.connection(), pytest.raises(PoolTimeout):
        pool.ping(timeout=0.02)
    gate = driver.gates["ping"] = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="ping took too long"):
        pool.ping(timeout=0.05)
    assert time.monotonic() - began < PATIENCE / 2
    gate.set()
    pool.ping()


def test_ping_names_the_connect_error(make: Make, driver: StubDriver) -> None:
    """ping() says why there is no connection."""
    driver.fail("connect", Refused("nobody home"), times=1000)
    with pytest.raises(PoolTimeout, match="nobody home"):
        make().ping(timeout=0.05)


# -- holders -----------------------------------------------------------------------------


def test_holders_name_the_users_line(make: Make) -> None:
    """The site of a holder is the line that asked, however it asked."""
    pool = make()
    pool.acquire().release()
    lease: Any = pool.acquire()
    assert pool.holders()[0].site == line(-1)
    lease.release()
    lease = pool.try_acquire()
    assert pool.holders()[0].site == line(-1)
    lease.release()
    lease = pool.within(timeout=1.0).acquire()
    assert pool.holders()[0].site == line(-1)
    lease.release()
    with pool.connection():
        assert pool.holders()[0].site == line(-1)
    with pool.transaction():
        assert pool.holders()[0].site == line(-1)


def test_holders_see_through_run(make: Make) -> None:
    """The site of a connection that pool.run took is the line that called pool.run."""
    seen: list[str] = []

    def note(conn: StubConnection) -> bool:
        seen.append(pool.holders()[0].site)
        return True

    pool = make(before_acquire=note)
    pool.run("SELECT 1")
    assert seen == [line(-1)]


def test_holders_of_who_waited(make: Make, spawn: Spawn) -> None:
    """A connection that was handed on is held by the thread and the line that waited."""
    pool = make(max_size=1)
    held: list[Any] = [pool.acquire()]
    ready = threading.Event()

    def wait() -> None:
        held.append(pool.acquire())
        ready.set()

    caller = spawn(wait)
    eventually(lambda: pool.stats().waiting == 1)
    held[0].release()
    assert ready.wait(PATIENCE)
    (holder,) = pool.holders()
    assert holder.thread_id == caller.thread.ident
    assert holder.site == f"{__file__}:{inspect.getsourcelines(wait)[1] + 1}"
    held[1].release()
    assert pool.holders() == []


def test_holders_by_age(make: Make, clock: Clock) -> None:
    """The longest holder comes first, with its age and its thread's name."""
    pool = make()
    first: Any = pool.acquire()
    clock.now += 5.0
    second: Any = pool.acquire()
    ages = [holder.age for holder in pool.holders()]
    assert ages == [5.0, 0.0]
    assert "(thread 'MainThread', 5.0 s, idle)" in str(pool.holders()[0])
    first.release()
    second.release()


# -- stats -------------------------------------------------------------------------------


def test_stats_of_a_script(make: Make, clock: Clock, driver: StubDriver, spawn: Spawn) -> None:
    """After a scripted sequence every gauge and counter has its exact value."""
    pool = make(name="orders", min_size=1, max_size=2, max_waiting=1, check_after_idle=None)
    stats = pool.stats()
    assert (stats.size, stats.acquires, stats.dials) == (0, 0, 0)
    filled(pool)
    first: Any = pool.acquire()
    second: Any = pool.acquire()  # waits for a dial
    assert pool.try_acquire() is None
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.001)
    waiting = spawn(lambda: pool.acquire())
    eventually(lambda: pool.stats().waiting == 1)
    clock.now += 2.0
    first.release()
    third = waiting.result()
    stats = pool.stats()
    assert (stats.name, stats.min_size, stats.max_size) == ("orders", 1, 2)
    assert (stats.size, stats.idle, stats.in_use, stats.waiting) == (2, 0, 2, 0)
    assert (stats.connecting, stats.closing, stats.checking) == (0, 0, 0)
    assert (stats.acquires, stats.waits, stats.timeouts) == (3, 3, 2)
    assert (stats.wait_time, stats.served_time) == (2.0, 2.0)
    assert (stats.cancelled, stats.rejected) == (0, 0)
    assert (stats.dials, stats.dial_failures, stats.created) == (2, 0, 2)
    assert stats.last_connect_error is None
    assert sum(stats.wait_histogram) == 3
    assert stats.wait_histogram[21] == 1  # 2 s is below 2**21 us
    assert stats.wait_quantile(1.0) == 2**21 * 1e-6
    assert stats.wait_quantile(0.5) == 1e-6
    pool.invalidate(second)
    third.release()
    eventually(lambda: pool.stats().closed == {"invalidated": 1})
    with pytest.raises(ValueError, match="from 0 to 1"):
        stats.wait_quantile(2.0)


def test_a_cancelled_wait_is_counted(make: Make) -> None:
    """A wait that an exception in its thread ends is counted as cancelled, and as a wait."""

    class Interrupt(BaseException):
        pass

    def interrupt() -> None:
        raise Interrupt

    pool = make(max_size=1, deadlock=None)
    with pool.connection(), knocking(lambda: pool.stats().waiting == 1, interrupt):
        waits = pool.stats().waits
        with pytest.raises(Interrupt):
            pool.acquire(timeout=PATIENCE)
        stats = pool.stats()
    assert (stats.waiting, stats.cancelled, stats.waits) == (0, 1, waits + 1)
    assert stats.as_pgxpool()["canceled_acquire_count"] == 1
    assert pool.stats().idle == 1


def test_as_dbstats(make: Make, clock: Clock) -> None:
    """The nine fields of Go's sql.DBStats, as integers."""
    pool = make(max_size=3, max_idle=1)
    held = leases(pool, 3)
    give_back(held[:2])
    eventually(lambda: pool.stats().size == 2)
    waits = pool.stats().waits
    assert pool.stats().as_dbstats() == {
        "max_open_connections": 3,
        "open_connections": 2,
        "in_use": 1,
        "idle": 1,
        "wait_count": waits,
        "wait_duration_ms": 0,
        "max_idle_closed": 1,
        "max_idle_time_closed": 0,
        "max_lifetime_closed": 0,
    }
    give_back(held[2:])


def test_as_pgxpool(make: Make, clock: Clock, driver: StubDriver) -> None:
    """The twelve fields of Go's pgxpool.Stat, as integers."""
    pool = make(max_size=3)
    held = leases(pool, 2)
    give_back(held[:1])
    waits = pool.stats().waits
    assert pool.stats().as_pgxpool() == {
        "acquire_count": 2,
        "acquire_duration_ms": 0,
        "acquired_conns": 1,
        "canceled_acquire_count": 0,
        "constructing_conns": 0,
        "empty_acquire_count": waits,
        "idle_conns": 1,
        "max_conns": 3,
        "total_conns": 2,
        "new_conns_count": driver.counts["connect"],
        "max_lifetime_destroy_count": 0,
        "max_idle_destroy_count": 0,
    }
    give_back(held[1:])


def test_repr(make: Make) -> None:
    """A pool shows its name, phase and numbers, and no secret."""
    pool = make("host=h password=secret", name="orders", max_size=3)
    assert repr(pool) == "<Pool 'orders' new: size 0/3, idle 0, in use 0, waiting 0>"
    lease = pool.acquire()
    assert repr(pool) == "<Pool 'orders' open: size 1/3, idle 0, in use 1, waiting 0>"
    assert repr(lease) == "<Lease of <StubConnection 1>>"
    lease.release()
    pool.close()
    assert repr(pool) == "<Pool 'orders' closed: size 0/3, idle 0, in use 0, waiting 0>"


def test_pools_are_numbered(make: Make) -> None:
    """Pools without a name get one each."""
    assert make().name != make().name
