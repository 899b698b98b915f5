"""Everything at once, and whole afterwards. ``STRESS_SECONDS`` makes it longer."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from pool.kit import PATIENCE, Refused, eventually

from fastpool import (
    ConnectFailed,
    ConnectionReleased,
    Pool,
    PoolTimeout,
    TooManyRequests,
    TransactionAborted,
)
from fastpool.testing import StubConnection, StubDriver, StubError

Make = Callable[..., Pool[StubConnection]]

SECONDS = float(os.environ.get("STRESS_SECONDS", "1.5"))
THREADS = 8
MAX_SIZE = 4

EXPECTED = (
    ConnectFailed,
    ConnectionReleased,
    PoolTimeout,
    Refused,
    StubError,
    TooManyRequests,
    TransactionAborted,
)


class Interrupt(BaseException):
    """Sent into a thread from outside, at any point."""


def work(pool: Pool[StubConnection], rng: random.Random) -> None:
    """One turn of a caller, of one of many kinds."""
    conn: Any
    kind = rng.randrange(12)
    timeout = rng.choice([0, 0.001, 0.01, 1.0])
    if kind < 5:
        with pool.connection(timeout) as conn:
            owner = threading.get_ident()
            conn.driver_connection.owner = owner
            conn.run(rng.choice(["SELECT 1", "BEGIN", "SET a = 1", "NOTICE"]))
            if rng.random() < 0.1:
                time.sleep(0.001)
            # Nobody else has had it meanwhile.
            assert conn.driver_connection.owner == owner
    elif kind < 7:
        with pool.transaction(timeout) as conn, conn.transaction():
            conn.run(rng.choice(["SELECT 1", "FAIL", "COMMIT", "LOSE"]))
    elif kind == 7:
        pool.invalidate(pool.acquire(timeout))
    elif kind == 8:
        lease = pool.try_acquire()
        if lease is not None:
            lease.driver_connection.kill()
            lease.release()
    elif kind == 9:
        pool.within(timeout=timeout).ping()
    elif kind == 10:
        pool.acquire(timeout)  # forgotten: its finalizer gives it back
    elif rng.random() < 0.1:
        pool.drain()
    else:
        pool.within(timeout=timeout).run("SELECT 1")


def settled(pool: Pool[StubConnection]) -> bool:
    seen = pool.stats()
    return (
        seen.in_use == seen.connecting == seen.closing == seen.checking == seen.waiting == 0
        and seen.size == seen.idle == len(pool._core.idle_entries())
    )


@pytest.mark.usefixtures("bystanders_away")
@pytest.mark.parametrize("interrupts", [False, True])
def test_whole_after_everything(
    make: Make, monkeypatch: pytest.MonkeyPatch, interrupts: bool
) -> None:
    """With deaths, drains, resets, failures and interrupts the limit holds and no slot is lost."""
    driver = StubDriver(sockets=True)
    pool = make(
        driver=driver,
        min_size=1,
        max_size=MAX_SIZE,
        min_idle=1,
        max_idle=3,
        max_waiting=6,
        max_uses=20,
        max_lifetime=0.1,
        max_idle_time=0.05,
        health_check_period=0.02,
        check_after_idle=0.05,
        leak_threshold=0.01,
        connect_backoff=0.001,
        connect_backoff_max=0.01,
        close_timeout=0.05,
    )
    if interrupts:
        # One that lands in a finalizer can go nowhere else, one outside of call() neither.
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
        monkeypatch.setattr(threading, "excepthook", lambda args: None)
    unexpected: list[BaseException] = []
    stop = threading.Event()

    def call(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            try:
                with contextlib.suppress(*EXPECTED):
                    work(pool, rng)
            except Interrupt:
                pass
            except BaseException as error:
                unexpected.append(error)
                return

    try:
        # Leases that are dropped on purpose, or by an interrupt, are told of.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            threads = [threading.Thread(target=call, args=(seed,)) for seed in range(THREADS)]
            for thread in threads:
                thread.start()
            rng = random.Random(-1)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                driver.fail(rng.choice(["connect", "ping", "control", "discard"]), Refused("no"))
                if interrupts:
                    target = rng.choice(threads).ident
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(target or 0), ctypes.py_object(Interrupt)
                    )
                seen = pool.stats()
                assert seen.size <= MAX_SIZE
                parts = seen.idle + seen.in_use + seen.connecting + seen.closing + seen.checking
                assert seen.size == parts
                time.sleep(0.001)
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()
            driver.heal()
            gc.collect()
            eventually(lambda: settled(pool), f"whole: {pool.stats()}")
    finally:
        stop.set()
    assert not unexpected
    assert driver.most_open <= MAX_SIZE
    # All slots can be used, and each connection by one holder.
    held = [pool.acquire(PATIENCE) for _ in range(MAX_SIZE)]
    assert len({lease.number for lease in held}) == MAX_SIZE
    for lease in held:
        lease.release()
    eventually(lambda: pool.stats().in_use == 0)


def test_churn_serves_everybody(make: Make, driver: StubDriver) -> None:
    """With connections that last for one use nobody starves and no one is left waiting."""
    pool = make(max_size=3, max_uses=1, timeout=PATIENCE)
    served = [0] * THREADS

    def call(number: int) -> None:
        for _ in range(30):
            with pool.connection() as conn:
                conn.run("SELECT 1")
            served[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert served == [30] * THREADS
    assert driver.most_open <= 3
    eventually(lambda: pool.stats().closed.get("max_uses") == pool.stats().acquires)
