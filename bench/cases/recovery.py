"""The server restarts under load: who is served again when."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fastpool
from fastpool.testing import LocalPostgres

from ..report import Row
from ..stage import Bench

__all__ = ["recovery"]

THREADS = 8
CONNECTIONS = 4
PATIENCE = 1.0
STEP = 0.02
"""Seconds of one point of the timeline."""

Query = Callable[[], object]


def _fastpool(dsn: str) -> tuple[Query, Callable[[], object]]:
    pool = fastpool.Pool(
        dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, timeout=PATIENCE, close_timeout=0.1
    )
    pool.open(wait=True)
    return lambda: pool.run("SELECT 1"), pool.close


def _psycopg_pool(dsn: str, check: bool) -> tuple[Query, Callable[[], object]]:
    from psycopg_pool import ConnectionPool

    pool: ConnectionPool[Any] = ConnectionPool(
        dsn,
        min_size=CONNECTIONS,
        timeout=PATIENCE,
        kwargs={"autocommit": True},
        check=ConnectionPool.check_connection if check else None,
        open=True,
    )
    pool.wait()

    def query() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT 1")

    return query, pool.close


def _sqlalchemy(dsn: str) -> tuple[Query, Callable[[], object]]:
    from sqlalchemy import create_engine

    url = dsn.replace("postgresql://", "postgresql+pg8000://")
    engine = create_engine(
        url,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=PATIENCE,
        pool_pre_ping=True,
        connect_args={"ssl_context": False},
    )

    def query() -> None:
        with engine.connect() as conn:
            conn.exec_driver_sql("SELECT 1")

    return query, engine.dispose


POOLS: dict[str, Callable[[str], tuple[Query, Callable[[], object]]]] = {
    "fastpool": _fastpool,
    "psycopg_pool": lambda dsn: _psycopg_pool(dsn, False),
    "psycopg_pool, check": lambda dsn: _psycopg_pool(dsn, True),
    "SQLAlchemy, pre_ping": _sqlalchemy,
}


@dataclass
class _Outcome:
    """Times in seconds since the load began."""

    down: float = 0.0
    up: float = 0.0
    done: list[tuple[float, int, bool, float]] = field(default_factory=list)
    """When an attempt ended, whose it was, whether it went well, how long it took."""

    @property
    def served_again(self) -> float:
        """From the server's being up until the last thread has been served."""
        first: dict[int, float] = {}
        for at, thread, well, _ in self.done:
            if well and at > self.up:
                first.setdefault(thread, at)
        late = max(first.values(), default=self.up)
        return (late if len(first) == THREADS else self.done[-1][0]) - self.up

    @property
    def errors_after(self) -> int:
        """Attempts begun and failed since the server has been up."""
        return sum(not well and at - took > self.up for at, _, well, took in self.done)

    @property
    def longest(self) -> float:
        return max(took for *_, took in self.done)


def _restart(server: LocalPostgres, query: Query, after: float) -> _Outcome:
    outcome = _Outcome()
    over = False
    began = time.perf_counter()

    def work(number: int) -> None:
        while not over:
            asked = time.perf_counter()
            well = False
            with contextlib.suppress(Exception):  # whatever a driver raises: not served
                query()
                well = True
            ended = time.perf_counter()
            outcome.done.append((ended - began, number, well, ended - asked))
            time.sleep(0.002)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    outcome.down = time.perf_counter() - began
    server.stop("immediate")
    time.sleep(0.3)
    server.start()
    outcome.up = time.perf_counter() - began
    time.sleep(after)
    over = True
    for thread in threads:
        thread.join()
    return outcome


def recovery(bench: Bench) -> Iterator[Row]:
    """8 threads, 4 connections; the server crashes, is away for 0.3 s, and is back."""
    after = min(2.0, 10 * bench.effort.load)
    again: dict[str, list[float]] = {}
    # A server of its own: those of the others would lose their connections.
    with LocalPostgres(settings={"max_connections": 50}) as server:
        for number in range(min(3, bench.effort.rounds)):
            for name, make in POOLS.items():
                bench.progress(f"recovery, {name}, round {number + 1}")
                try:
                    query, close = make(server.dsn)
                except ImportError:
                    continue
                outcome = _restart(server, query, after)
                close()
                again.setdefault(name, []).append(outcome.served_again)
                if number == 0:
                    _record(bench, name, outcome)
    for peer, values in again.items():
        if peer != "fastpool":
            yield Row(f"restart: last thread served again / {peer}", again["fastpool"], values)


def _record(bench: Bench, pool: str, outcome: _Outcome) -> None:
    summary = {"served_again": outcome.served_again, "errors_after": outcome.errors_after}
    bench.record("recovery", pool=pool, longest=outcome.longest, **summary)
    end = int(max(at for at, *_ in outcome.done) / STEP) + 1
    for step in range(end):
        inside = [well for at, _, well, _ in outcome.done if step * STEP <= at < (step + 1) * STEP]
        point = {"second": step * STEP - outcome.up, "served": sum(inside) / STEP}
        bench.record("timeline", pool=pool, **point, failed=(len(inside) - sum(inside)) / STEP)
