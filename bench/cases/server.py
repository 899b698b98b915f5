"""Statements, connects and restarts of a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import fastpool

from ..clients import clients, one_parameter, select_1, three_statements
from ..measure import Case, interleave, pinned
from ..report import Row, compiled
from ..stage import Bench

__all__ = ["end_to_end", "run", "statement", "tls_connect"]

BACKEND = "SELECT pg_backend_pid()"
TIMES = 10


def pinned_and_not(
    bench: Bench, name: str, left: Case, right: Case, pids: list[int], limit: float
) -> Iterator[Row]:
    """*left* / *right* pinned to one processor, with its target, and left alone."""
    cases = {"left": left, "right": right}
    with pinned(*pids):
        times = interleave(cases, bench.effort)
    yield Row(name, times["left"], times["right"], target=compiled("<=", limit))
    times = interleave(cases, bench.effort)
    yield Row(f"{name}, not pinned", times["left"], times["right"])


def run(bench: Bench) -> Iterator[Row]:
    """What a checkout adds to a statement."""
    with fastpool.Pool(bench.postgres.dsn, max_size=1) as pool:

        def each() -> None:
            for _ in range(20):
                pool.run("SELECT 1")

        def held() -> None:
            with pool.connection() as conn:
                for _ in range(20):
                    conn.run("SELECT 1")

        name = "20 x pool.run / run on a held connection"
        yield from pinned_and_not(bench, name, each, held, [pool.run(BACKEND)[0][0]], 1.05)


def statement(bench: Bench) -> Iterator[Row]:
    """A statement with one parameter, on our connection and on pg8000's own."""
    import pg8000.native

    for way, address in bench.ways.items():
        stock = pg8000.native.Connection(**address.pg8000)
        with fastpool.Pool(address.dsn, max_size=1) as pool, pool.connection() as conn:
            pids = [conn.run(BACKEND)[0][0], stock.run(BACKEND)[0][0]]
            left, right = (
                lambda run=side.run: run("SELECT :a::int", a=1) for side in (conn, stock)
            )
            name = f"one parameter, {way}: ours / pg8000"
            yield from pinned_and_not(bench, name, left, right, pids, 0.5)
        stock.close()


def tls_connect(bench: Bench) -> Iterator[Row]:
    """A connection over TLS from nothing: asked of a pool, and made by pg8000."""
    import pg8000.native

    way = bench.ways["TLS"]
    with fastpool.Pool(way.dsn, min_size=0, max_size=1) as pool:

        def ours() -> None:
            pool.detach(pool.acquire()).close()

        def stock() -> None:
            pg8000.native.Connection(**way.pg8000).close()

        cases: dict[str, Case] = {"ours": ours, "stock": stock}
        times = interleave(cases, replace(bench.effort, slices=min(5, bench.effort.slices)))
    name = "TLS connect: ours / pg8000"
    yield Row(name, times["ours"], times["stock"], target=compiled("<=", 0.25))


def end_to_end(bench: Bench) -> Iterator[Row]:
    """What users would run statements with, over unix socket, TCP and TLS."""
    scripts = {
        "SELECT 1": select_1,
        "one parameter": one_parameter,
        "transaction of three": three_statements,
    }
    # A client's time varies more than one slice can tell, and there are many of them.
    effort = replace(bench.effort, slices=min(5, bench.effort.slices))
    for way, address in bench.ways.items():
        with pinned(*address.pids), clients(address) as found:
            for what, script in scripts.items():
                bench.progress(f"{what} over {way}")
                cases = {name: partial(run, script, TIMES) for name, run in found.items()}
                times = interleave(cases, effort)
                for name, values in times.items():
                    seconds = median(values) / TIMES
                    bench.record("statements", way=way, what=what, client=name, seconds=seconds)
                for peer in ("pg8000 + SQLAlchemy", "psycopg_pool", "asyncpg"):
                    if peer in times:
                        name = f"{what}, {way}: fastpool / {peer}"
                        left, right = ([t / TIMES for t in times[n]] for n in ("fastpool", peer))
                        yield Row(name, left, right)
