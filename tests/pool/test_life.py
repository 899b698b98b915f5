"""From the first acquire to the last closed connection."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from pool.kit import PATIENCE, Caller, Refused, WrongPassword, eventually, leases

from fastpool import (
    ConnectFailed,
    ConnectionReleased,
    DeadlineExceeded,
    Pool,
    PoolClosed,
    PoolTimeout,
)
from fastpool.testing import StubConnection, StubDriver

Make = Callable[..., Pool[StubConnection]]
Spawn = Callable[[Callable[[], Any]], Caller]


def test_open_is_idempotent(make: Make, driver: StubDriver) -> None:
    """Opening twice is the same as once."""
    pool = make(min_size=2)
    pool.open(wait=True)
    pool.open()
    with pool:
        assert pool.stats().idle == 2
    assert driver.counts["connect"] == 2


def test_first_acquire_opens(make: Make, driver: StubDriver) -> None:
    """A pool that was never opened opens with the first acquire, and fills."""
    pool = make(min_size=3)
    with pool.connection() as conn:
        conn.run("SELECT 1")
    eventually(lambda: pool.stats().idle == 3)


def test_wait_opens(make: Make) -> None:
    """Waiting for an unopened pool opens it."""
    pool = make(min_size=2)
    pool.wait()
    assert pool.stats().idle == 2


def test_with_closes(make: Make, driver: StubDriver) -> None:
    """The pool's own block opens it and closes it, an exception passes through."""
    with pytest.raises(KeyError), make(min_size=1) as pool:  # noqa: PT012
        pool.wait()
        raise KeyError
    assert driver.connections[0].closed
    assert "closed" in repr(pool)


def test_wait_raises_the_permanent_cause_at_once(make: Make, driver: StubDriver) -> None:
    """wait() does not sit out its timeout on a failure that will not pass."""
    driver.fail("connect", WrongPassword("wrong password"), times=100)
    pool = make(min_size=1)
    with pytest.raises(ConnectFailed, match="wrong password") as caught:
        pool.open(wait=True, timeout=PATIENCE)
    assert isinstance(caught.value.__cause__, WrongPassword)
    assert caught.value.sqlstate == "28P01"


def test_wait_names_the_last_failure(make: Make, driver: StubDriver) -> None:
    """wait() ends with its timeout and the last connect error as the cause; the pool stays open."""
    driver.fail("connect", Refused("nobody home"), times=100)
    pool = make(min_size=1)
    with pytest.raises(PoolTimeout, match="nobody home") as caught:
        pool.open(wait=True, timeout=0.1)
    assert isinstance(caught.value.__cause__, Refused)
    driver.heal()
    pool.wait()
    assert pool.stats().idle == 1


def test_wait_ends_when_the_pool_closes(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """Who waits for the first fill is told when the pool is closed instead."""
    gate = driver.gates["connect"] = threading.Event()
    pool = make(min_size=1, connect_timeout=None)
    waiting = spawn(lambda: pool.open(wait=True, timeout=1000.0))
    eventually(lambda: driver.counts["connect"] == 1)
    closing = spawn(pool.close)
    with pytest.raises(PoolClosed):
        waiting.result()
    gate.set()
    closing.result()


def test_unlimited_waits(make: Make) -> None:
    """math.inf is a timeout like any other for open, wait and close."""
    pool = make(min_size=1)
    pool.open(wait=True, timeout=float("inf"))
    pool.wait(timeout=float("inf"))
    pool.close(timeout=float("inf"))


def test_closed_stays_closed(make: Make) -> None:
    """A closed pool refuses everything, by name, and cannot be opened again."""
    pool = make(name="orders", min_size=1)
    pool.open(wait=True)
    pool.close()
    calls: list[Callable[[], Any]] = [
        pool.open,
        pool.wait,
        pool.acquire,
        pool.try_acquire,
        pool.ping,
        lambda: pool.run("SELECT 1"),
        pool.connection().__enter__,
        pool.transaction().__enter__,
        pool.__enter__,
    ]
    for call in calls:
        with pytest.raises(PoolClosed, match="'orders' is closed"):
            call()


def test_close_before_open(make: Make, driver: StubDriver) -> None:
    """A pool that never was open closes at once, and then stays closed."""
    pool = make(min_size=1)
    pool.close(timeout=0.0)
    with pytest.raises(PoolClosed):
        pool.open()
    assert driver.counts["connect"] == 0


def test_close_twice(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Closing a closed pool does nothing."""
    pool = make(min_size=1)
    pool.open(wait=True)
    pool.close()
    before = pool.stats()
    pool.close()
    assert pool.stats() == before
    assert not caplog.records


def test_close_wakes_all_who_wait(make: Make, spawn: Spawn) -> None:
    """Everyone who waits gets PoolClosed at once, while a lease is still out."""
    pool = make(max_size=1)
    lease = pool.acquire()
    callers = [spawn(lambda: pool.acquire(timeout=1000.0)) for _ in range(5)]
    eventually(lambda: pool.stats().waiting == 5)
    closing = spawn(pool.close)
    for caller in callers:
        with pytest.raises(PoolClosed):
            caller.result()
    assert not closing.ended
    lease.release()
    closing.result()


def test_close_waits_for_leases(make: Make, spawn: Spawn) -> None:
    """A lease that is out when the pool closes stays usable until it comes back."""
    driver = StubDriver()
    pool = make(driver=driver)
    lease = pool.acquire()
    closing = spawn(pool.close)
    eventually(lambda: "closed" in repr(pool))
    assert lease.run("SELECT 1") == "SELECT 1"
    lease.release()
    closing.result()
    assert driver.open_now == 0


def test_two_closers(make: Make, spawn: Spawn) -> None:
    """A second close does not cut the first one short: both end with the last lease."""
    pool = make()
    lease = pool.acquire()
    closers = [spawn(pool.close) for _ in range(2)]
    eventually(lambda: "closed" in repr(pool))
    assert lease.run("SELECT 1") == "SELECT 1"
    assert not any(closer.ended for closer in closers)
    lease.release()
    for closer in closers:
        closer.result()
    assert pool.stats().size == 0


def test_close_with_a_leaked_lease(
    make: Make, driver: StubDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """After its timeout close() names the holders and takes their connections away."""
    pool = make()
    lease = pool.acquire()
    began = time.monotonic()
    pool.close(timeout=0.05)
    assert time.monotonic() - began < 1.0
    assert driver.connections[0].closed
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert re.search(r"closed after 0\.\d+ s with 1 connections still in use", message)
    assert f"{__file__}:" in message
    assert "MainThread" in message
    with pytest.raises(ConnectionReleased):
        lease.run("SELECT 1")
    lease.release()
    assert pool.stats().closed == {"closed": 1}


def test_close_while_a_dial_hangs(
    make: Make, driver: StubDriver, spawn: Spawn, caplog: pytest.LogCaptureFixture
) -> None:
    """close() does not wait longer than its timeout for a dial; what it makes is closed."""
    gate = driver.gates["connect"] = threading.Event()
    pool = make(min_size=1, close_timeout=0.05, connect_timeout=None)
    pool.open()
    eventually(lambda: driver.counts["connect"] == 1)
    pool.close(timeout=0.05)
    gate.set()
    eventually(lambda: pool.stats().size == 0)
    assert driver.connections[0].closed
    assert not caplog.records


def test_close_ends_with_a_dial_that_fails(make: Make, driver: StubDriver, spawn: Spawn) -> None:
    """The last slot may be that of a dial which fails while the pool closes."""
    gate = driver.gates["connect"] = threading.Event()
    driver.fail("connect")
    pool = make(min_size=1)
    pool.open()
    eventually(lambda: driver.counts["connect"] == 1)
    closing = spawn(lambda: pool.close(timeout=1000.0))
    eventually(lambda: "closed" in repr(pool))
    gate.set()
    closing.result()


def test_close_ends_with_a_detached_connection(make: Make, spawn: Spawn) -> None:
    """The last slot may be one whose connection is detached while the pool closes."""
    pool = make()
    lease, other = leases(pool, 2)
    other.release()
    closing = spawn(lambda: pool.close(timeout=1000.0))
    eventually(lambda: pool.stats().closed and pool.stats().size == 1)
    pool.detach(lease).close()
    closing.result()


def test_a_server_that_never_closes(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A slot is free after close_timeout, though the server has not closed its side."""
    driver = StubDriver()
    driver.gates["close"] = threading.Event()
    pool = make(driver=driver, max_size=1, close_timeout=0.05)
    began = time.monotonic()
    pool.invalidate(pool.acquire())
    with pool.connection() as conn:
        assert time.monotonic() - began >= 0.05
        assert conn.number == 2
    assert "did not close its side within 0.05 s" in caplog.text
    assert driver.most_open == 1


def test_a_slot_is_taken_until_the_server_has_closed(
    make: Make, driver: StubDriver, spawn: Spawn
) -> None:
    """No dial begins for a slot whose old connection the server still has."""
    gate = driver.gates["close"] = threading.Event()
    pool = make(max_size=1, close_timeout=1000.0)
    pool.invalidate(pool.acquire())
    waiting = spawn(lambda: pool.run("SELECT 1"))
    eventually(lambda: pool.stats().waiting == 1)
    assert (pool.stats().closing, driver.counts["connect"]) == (1, 1)
    gate.set()
    waiting.result()
    assert driver.most_open == 1


def test_close_that_fails(make: Make, driver: StubDriver) -> None:
    """A close that raises frees its slot as well."""
    driver.fail("close")
    pool = make(max_size=1)
    pool.invalidate(pool.acquire())
    with pool.connection() as conn:
        assert conn.number == 2


# -- without close -----------------------------------------------------------------


def test_a_dropped_pool_ends(driver: StubDriver) -> None:
    """A pool that nobody has any more warns, closes its connections and ends its threads."""
    pool = Pool(driver=driver, min_size=2, name="forgotten")
    pool.open(wait=True)
    house = weakref.ref(pool._house)
    with pytest.warns(ResourceWarning, match="'forgotten' was never closed"):
        del pool
    eventually(lambda: driver.open_now == 0)

    def gone() -> bool:
        gc.collect()
        return house() is None  # which the threads would keep

    eventually(gone)


def test_a_dropped_pool_leaves_its_leases(driver: StubDriver) -> None:
    """A lease outlives its dropped pool; its connection is closed at its return."""
    pool = Pool(driver=driver, min_size=0)
    lease: Any = pool.acquire()
    with pytest.warns(ResourceWarning, match="was never closed"):
        del pool
    assert lease.run("SELECT 1") == "SELECT 1"
    lease.release()
    eventually(lambda: driver.open_now == 0)


def test_a_pool_that_was_never_open_is_dropped_in_silence(driver: StubDriver) -> None:
    """Without a connection or a thread there is nothing to warn of."""
    house = weakref.ref(Pool(driver=driver)._house)
    gc.collect()
    assert house() is None


def test_a_pool_that_was_never_open_cannot_be_any_more(driver: StubDriver) -> None:
    """What is left of a dropped pool opens nothing that nobody could close."""
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(PoolClosed), Pool(driver=driver).connection():
            pass
    assert driver.counts["connect"] == 0
    pool = Pool(driver=driver, min_size=2)
    pool.reconfigure(max_size=7)
    pool.drain()
    assert threading.active_count() == threads
    house = weakref.ref(pool._house)
    del pool
    gc.collect()
    assert house() is None
    assert driver.counts["connect"] == 0


def test_a_dial_that_ends_after_close(driver: StubDriver) -> None:
    """No hook is run on it, and it is closed."""
    calls: list[object] = []
    driver.gates["connect"] = threading.Event()
    pool = Pool(driver=driver, min_size=1, after_connect=calls.append)
    pool.open()
    eventually(lambda: pool.stats().connecting == 1)
    pool.close(0)
    driver.gates["connect"].set()
    eventually(lambda: pool.stats().size == 0)
    assert (calls, driver.open_now, driver.counts["connect"]) == ([], 0, 1)


def test_a_closed_pool_is_collected(driver: StubDriver) -> None:
    """Nothing keeps a closed pool alive."""
    pool = Pool(driver=driver, min_size=2)
    with pool:
        pool.wait()
    house = weakref.ref(pool._house)
    del pool

    def gone() -> bool:
        gc.collect()
        return house() is None

    eventually(gone)


def test_a_closed_pool_in_a_cycle_is_collected(driver: StubDriver) -> None:
    """Whatever of it the collector ends first."""
    for _ in range(20):
        pool: Any = Pool(driver=driver, min_size=1)
        pool.open(wait=True)
        pool.close()
        pool.me = pool._house.me = pool
        del pool
        gc.collect()


def test_a_view_keeps_its_pool(driver: StubDriver) -> None:
    """A pool lives as long as a view of it."""
    view = Pool(driver=driver, min_size=0).within(timeout=PATIENCE)
    gc.collect()
    assert view.run("SELECT 1") == "SELECT 1"
    with pytest.warns(ResourceWarning, match="was never closed"):
        del view
    eventually(lambda: driver.open_now == 0)


def test_a_view_of_a_view(driver: StubDriver) -> None:
    """It has the limits of both, and where they differ its own."""
    with Pool(driver=driver, max_size=1, deadlock=None) as pool, pool.connection():
        timed = pool.within(timeout=0.01)
        for view in (
            timed.within(deadline=PATIENCE),
            pool.within(deadline=PATIENCE).within(timeout=0.01),
        ):
            with pytest.raises(PoolTimeout, match=r"within 0\.01 s"):
                view.acquire()
        with pytest.raises(DeadlineExceeded):
            timed.within(timeout=PATIENCE, deadline=0.01).acquire()


def test_a_lost_lease_comes_back(make: Make) -> None:
    """A lease dropped without release is taken back, with a warning that names its line."""
    pool = make(max_size=1)
    lease = pool.acquire()
    with pytest.warns(ResourceWarning, match=rf"acquired at {__file__}:\d+ was never released"):
        del lease
    assert pool.stats().idle == 1


@pytest.mark.parametrize("state", ["idle", "held", "waiting", "dialling"])
def test_interpreter_exit_with_an_open_pool(state: str) -> None:
    """An open pool neither delays the end of the interpreter nor says anything."""
    script = """
        import sys, threading, time
        from fastpool import Pool
        from fastpool.testing import StubDriver

        driver = StubDriver()
        pool = Pool(driver=driver, min_size=2, max_size=2)
        if sys.argv[1] == "dialling":
            driver.gates["connect"] = threading.Event()
            pool.open()
        else:
            pool.open(wait=True)
        if sys.argv[1] == "held":
            lease = pool.acquire()
        if sys.argv[1] == "waiting":
            leases = [pool.acquire(), pool.acquire()]
            threading.Thread(target=pool.acquire, daemon=True).start()
            while not pool.stats().waiting:
                time.sleep(0.001)
        print(time.time(), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), state],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.time() - float(done.stdout) < 1.0


def test_interpreter_exit_beside_a_thread_that_begins() -> None:
    """The end waits until a started thread runs, which else finds its interpreter freed."""
    script = """
        import _thread, atexit, threading, time

        @atexit.register
        def last():  # registered first, so called last
            print([thread.ident != 0 for thread in _fork._threads])
            try:
                _fork.start_thread(print)
            except RuntimeError as error:
                print(error)

        from fastpool import _fork

        def late(run, args):
            start(lambda: (waited_for.wait(), run(*args)), ())

        def look_again(seconds):
            waited_for.set()
            sleep(seconds)

        waited_for = threading.Event()
        start, sleep = _thread.start_new_thread, time.sleep
        _thread.start_new_thread, time.sleep = late, look_again
        _fork.start_thread(threading.Event().wait)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[True]", "the interpreter is ending"]
