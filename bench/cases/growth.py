"""How a pool comes into being, and how it grows when everybody comes at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import fastpool

from ..measure import alternate
from ..peers import PEERS, Contender, Spec, contenders, ours
from ..report import Row
from ..stage import Bench

__all__ = ["fill", "spike"]

CONNECT = 0.02
FILLED = 10


def makers() -> dict[str, Callable[[Spec], Contender]]:
    return {"fastpool": lambda spec: ours(spec=spec), **PEERS}


def since(make: Callable[[Spec], Contender], spec: Spec) -> float:
    """Seconds to make a pool and get a connection from it."""
    began = time.perf_counter()
    with contextlib.closing(make(spec)) as pool:
        pool.visit()
        return time.perf_counter() - began


def fill(bench: Bench) -> Iterator[Row]:
    """A cold start: until the first caller has a connection, until all are there; with
    connections that take 20 ms, and with PostgreSQL's."""
    effort = replace(bench.effort, slices=1)
    for what, spec in {
        "first checkout": Spec(FILLED, delay=CONNECT, wait=False),
        f"{FILLED} connections": Spec(FILLED, delay=CONNECT),
    }.items():
        bench.progress(f"cold start, {what}")
        samples: dict[str, Callable[[], float]] = {}
        for name, make in makers().items():
            with contextlib.suppress(ImportError):
                make(Spec(1)).close()
                samples[name] = partial(since, make, spec)
        times = alternate(samples, effort)
        for name, values in times.items():
            bench.record("fill", what=what, pool=name, seconds=median(values))
        yield Row(f"cold start: {what} / one connect", times["fastpool"], [CONNECT] * effort.rounds)
        if "psycopg_pool" in times:
            name = f"cold start: {what} / psycopg_pool"
            yield Row(name, times["fastpool"], times["psycopg_pool"])
    yield from _fill_postgres(bench)


def _fill_postgres(bench: Bench) -> Iterator[Row]:
    dsn = bench.postgres.unix_dsn
    name = f"cold start: {FILLED} connections to PostgreSQL / psycopg_pool"

    def mine() -> float:
        began = time.perf_counter()
        with fastpool.Pool(dsn, min_size=FILLED) as pool:
            pool.wait()
            return time.perf_counter() - began

    try:
        from psycopg_pool import ConnectionPool
    except ImportError:
        yield Row(name, note="psycopg_pool is not installed")
        return

    def theirs() -> float:
        began = time.perf_counter()
        pool: ConnectionPool[Any] = ConnectionPool(dsn, min_size=FILLED, open=True)
        pool.wait()
        taken = time.perf_counter() - began
        pool.close()
        return taken

    times = alternate({"mine": mine, "theirs": theirs}, replace(bench.effort, slices=1))
    yield Row(name, times["mine"], times["theirs"])


def spike(bench: Bench) -> Iterator[Row]:
    """50 callers at once, 5 connections, up to 50; a connect takes 150 ms, a query 2 ms.

    A pool in which everybody waits for the connection that was dialled for him is slow
    and makes 45 more; 5 connections could serve all 50 in 20 ms.
    """
    spec = Spec(50, low=5, delay=min(0.15, bench.effort.load))  # less in a smoke run
    taken: dict[str, list[float]] = {}
    made: dict[str, list[float]] = {}
    rounds = min(3, bench.effort.rounds)  # DBUtils takes 7 s for one
    for number in range(rounds):
        bench.progress(f"spike, round {number + 1} of {rounds}")
        with contenders(spec, both=True) as pools:
            for name, pool in pools.items():
                before = pool.made()
                taken.setdefault(name, []).append(all_at_once(pool, 50, 0.002))
                made.setdefault(name, []).append(float(pool.made() - before))
    for name in taken:
        values = {"seconds": median(taken[name]), "made": median(made[name])}
        bench.record("spike", pool=name, **values)
    for peer in taken:
        if not peer.startswith("fastpool"):
            yield Row(f"spike: last of 50 served / {peer}", taken["fastpool"], taken[peer])
            name = f"spike: connections made / {peer}"
            yield Row(name, made["fastpool"], made[peer], "")


def all_at_once(pool: Contender, callers: int, hold: float) -> float:
    """Seconds until the last of *callers* that come at once has been served."""
    start = threading.Barrier(callers + 1)

    def call() -> None:
        start.wait()
        conn = pool.acquire()
        time.sleep(hold)
        pool.release(conn)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began
