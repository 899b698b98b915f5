"""Where others win: pg8000 is written in Python and prepares nothing twice."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import fastpool

from ..clients import Script, clients
from ..measure import Case, interleave, pinned
from ..report import Row
from ..stage import Bench, Way

__all__ = ["others"]

ROWS = 1000

plan_heavy: Script = [
    (
        "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid"
        " JOIN pg_namespace tn ON tn.oid = t.typnamespace LEFT JOIN pg_index i"
        " ON i.indrelid = c.oid LEFT JOIN pg_constraint k ON k.conrelid = c.oid"
        " LEFT JOIN pg_description d ON d.objoid = c.oid WHERE c.oid = {}::int",
        (1259,),
    )
]
large_result: Script = [
    (
        "SELECT n, n::text, n::float8 / 3, now() + n * interval '1 second'"
        " FROM generate_series(1, 5000) n",
        (),
    )
]


def others(bench: Bench) -> Iterator[Row]:
    """A statement that is dear to plan, 1 000 inserts by ``executemany``, and 5 000
    rows of four columns."""
    way = bench.ways["unix"]
    effort = replace(bench.effort, slices=min(3, bench.effort.slices))
    times: dict[str, dict[str, list[float]]] = {}
    with pinned(*way.pids):
        with clients(way) as found:
            for what, script in {"plan-heavy": plan_heavy, "5 000 rows": large_result}.items():
                bench.progress(what)
                cases: dict[str, Case] = {
                    name: partial(client, script, 1) for name, client in found.items()
                }
                for case in cases.values():
                    for _ in range(12):  # a driver prepares after 5, the server plans after 5
                        case()
                times[what] = interleave(cases, effort)
        with ExitStack() as stack:
            bench.progress("executemany")
            times["executemany"] = interleave(executemany(stack, way), effort)
    for what, sides in times.items():
        for name, values in sides.items():
            bench.record("others", what=what, client=name, seconds=median(values))
        for peer in ("psycopg_pool", "asyncpg"):
            if peer in sides:
                yield Row(f"{what}: fastpool / {peer}", sides["fastpool"], sides[peer])


def executemany(stack: ExitStack, way: Way) -> dict[str, Case]:
    """1 000 inserts in one transaction, by each driver's own means."""
    data = [(n, f"name {n}") for n in range(ROWS)]
    table = "CREATE TEMP TABLE bench_rows (a int, b text)"
    insert = "INSERT INTO bench_rows VALUES (%s, %s)"
    cases: dict[str, Case] = {}

    pool = stack.enter_context(fastpool.Pool(way.dsn, driver="dbapi", max_size=1))
    lease = pool.acquire()
    stack.callback(lease.release)

    def by_cursor(conn: Any) -> Case:
        cursor = conn.cursor()
        cursor.execute(table)

        def insert_all() -> None:
            cursor.executemany(insert, data)
            conn.rollback()

        conn.commit()
        return insert_all

    cases["fastpool"] = by_cursor(lease)
    with suppress(ImportError):
        import psycopg

        cases["psycopg_pool"] = by_cursor(stack.enter_context(psycopg.connect(way.dsn)))
    with suppress(ImportError):
        cases["asyncpg"] = _asyncpg(stack, way, table, data)
    return cases


def _asyncpg(stack: ExitStack, way: Way, table: str, data: list[tuple[int, str]]) -> Case:
    asyncpg = importlib.import_module("asyncpg")
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    conn = loop.run_until_complete(asyncpg.connect(way.dsn))
    stack.callback(lambda: loop.run_until_complete(conn.close()))
    loop.run_until_complete(conn.execute(table))

    async def insert_all() -> None:
        transaction = conn.transaction()
        await transaction.start()
        await conn.executemany("INSERT INTO bench_rows VALUES ($1, $2)", data)
        await transaction.rollback()

    return lambda: loop.run_until_complete(insert_all())
