"""The ceiling of connections holds as the server itself counts, while everything churns."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import (
    FULL,
    Admin,
    Interrupt,
    eventually,
    interrupt,
    report,
    run_threads,
    whole,
)

from fastpool import Pool
from fastpool.testing import LocalPostgres

THREADS = 40
MAX_SIZE = 8
SECONDS = 20.0 if FULL else 5.0

# The server looks at itself, again and again, without a client in between. One look
# takes its time and may count one session that has gone and one that came after it; but
# those that two looks in a row have seen were all there at the moment between them.
WATCH = """
CREATE FUNCTION pg_temp.watch(name text, seconds float, OUT looks int, OUT most int)
LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := clock_timestamp() + make_interval(secs => seconds);
    before int[] := '{}';
    now_seen int[];
    still int;
BEGIN
    looks := 0; most := 0;
    WHILE clock_timestamp() < until LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT array_agg(pid), count(*) FILTER (WHERE pid = ANY (before)) INTO now_seen, still
            FROM pg_stat_activity WHERE application_name = name;
        looks := looks + 1;
        most := greatest(most, still);
        before := now_seen;
    END LOOP;
END $$
"""


class Load:
    """Threads that use a pool for a while, and may be interrupted at it."""

    def __init__(self, pool: Pool[Any]) -> None:
        self.pool = pool
        self.done = 0
        self.interrupted = 0
        self.busy: set[int] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self, seconds: float) -> float:
        """Use the pool from all threads; returns uses per second."""
        began = time.monotonic()
        stop = threading.Timer(seconds, self._over.set)
        stop.start()
        run_threads([self._work] * THREADS, timeout=seconds + 60)
        stop.cancel()
        return self.done / (time.monotonic() - began)

    def _work(self) -> None:
        me, done, interrupted = threading.get_ident(), 0, 0
        while not self._over.is_set():
            try:
                with self.pool.connection(timeout=60) as conn:
                    with self._lock:
                        self.busy.add(me)
                    conn.run("SELECT pg_sleep(0.001)")
                    with self._lock:  # from here on nobody interrupts this thread
                        self.busy.discard(me)
                done += 1
            except Interrupt:
                interrupted += 1
        with self._lock:
            self.done += done
            self.interrupted += interrupted

    def interrupt_one(self) -> None:
        """Interrupt a thread in its query."""
        with self._lock:
            if self.busy:
                interrupt(self.busy.pop())


def drainer(pool: Pool[Any], over: threading.Event) -> None:
    while not over.wait(1.0):
        pool.drain()


def interrupter(load: Load, over: threading.Event) -> None:
    while not over.wait(0.05):
        load.interrupt_one()


def watch(watcher: Admin, name: str, seconds: float, seen: dict[str, int]) -> None:
    rows = watcher.run("SELECT * FROM pg_temp.watch(:name, :seconds)", name=name, seconds=seconds)
    seen["looks"], seen["most"] = rows[0]


def loaded(pool: Pool[Any], watcher: Admin, seconds: float, churn: bool) -> tuple[float, Load, Any]:
    """Load *pool* while the server counts; uses per second, the load, what was counted."""
    load, over, seen = Load(pool), threading.Event(), dict[str, int]()
    pool.open(wait=True)
    with contextlib.ExitStack() as stack:
        stack.callback(over.set)
        helpers = [threading.Thread(target=watch, args=(watcher, pool.name, seconds, seen))]
        if churn:
            helpers.append(threading.Thread(target=drainer, args=(pool, over)))
            helpers.append(threading.Thread(target=interrupter, args=(load, over)))
        for helper in helpers:
            helper.start()
            stack.callback(helper.join)
        stack.callback(over.set)
        rate = load.run(seconds)
    return rate, load, seen


@pytest.mark.slow
@pytest.mark.usefixtures("bystanders_away")
@pytest.mark.filterwarnings("ignore:.* was never released:ResourceWarning")
def test_never_more_than_max_size(make_pool: MakePool, admin: Admin, server: LocalPostgres) -> None:
    """40 threads on 8 connections, with interrupts, drains, short lives and few uses:
    the server never sees a ninth."""
    watcher = Admin(server)
    watcher.run(WATCH)
    try:
        calm = make_pool(min_size=MAX_SIZE, max_size=MAX_SIZE)
        calm_rate, _, calm_seen = loaded(calm, watcher, SECONDS / 4, churn=False)
        calm.close()
        pool = make_pool(
            min_size=MAX_SIZE,
            max_size=MAX_SIZE,
            max_uses=5,
            max_lifetime=0.5,
            connect_concurrency=4,
        )
        rate, load, seen = loaded(pool, watcher, SECONDS, churn=True)
    finally:
        watcher.close()
    stats = pool.stats()
    report(
        f"{rate:.0f} uses/s with churn ({stats.dials} dials, {load.interrupted} interrupts, closed "
        f"{dict(stats.closed)}), {calm_rate:.0f} without; the server looked {seen['looks']} times "
        f"and saw at most {seen['most']}"
    )
    assert calm_seen["most"] == MAX_SIZE
    assert seen["most"] == MAX_SIZE
    assert seen["looks"] > 500
    assert load.interrupted > SECONDS
    assert set(stats.closed) >= {"max_uses", "drained", "broken"}
    assert stats.dial_failures == 0
    eventually(lambda: whole(pool) and pool.stats().size == MAX_SIZE, f"all are back: {pool!r}")
    assert len(admin.backends(pool.name)) == MAX_SIZE
