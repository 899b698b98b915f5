"""Statements, connects and restarts of a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from statistics import median

import fastpool

from ..clients import clients, one_parameter, select_1, three_statements
from ..measure import Case, interleave, pinned
from ..report import Row, compiled
from ..stage import Bench, Way

__all__ = ["end_to_end", "run", "statement", "tls_connect"]

BACKEND = "SELECT pg_backend_pid()"
TIMES = 10


Sides = tuple[Case, Case, list[int]]
"""What is compared, and the backends that answer."""


def pinned_and_not(
    bench: Bench, name: str, sides: Callable[[], AbstractContextManager[Sides]], limit: float
) -> Iterator[Row]:
    """Left / right pinned to one processor, with its target, and left alone.

    Each round has connections of its own: how a client and its backend fall in step
    differs from pair to pair, and stays.
    """
    effort = replace(bench.effort, rounds=1)
    for together in (True, False):
        times: dict[str, list[float]] = {"left": [], "right": []}
        for _ in range(bench.effort.rounds):
            with sides() as (left, right, pids), pinned(*pids) if together else nullcontext():
                for side, values in interleave({"left": left, "right": right}, effort).items():
                    times[side] += values
        label = name if together else f"{name}, not pinned"
        target = compiled("<=", limit) if together else None
        yield Row(label, times["left"], times["right"], target=target)


def run(bench: Bench) -> Iterator[Row]:
    """What a checkout adds to a statement."""

    @contextmanager
    def sides() -> Iterator[Sides]:
        with fastpool.Pool(bench.postgres.dsn, max_size=1) as pool:

            def each() -> None:
                for _ in range(20):
                    pool.run("SELECT 1")

            def held() -> None:
                with pool.connection() as conn:
                    for _ in range(20):
                        conn.run("SELECT 1")

            yield each, held, [pool.run(BACKEND)[0][0]]

    yield from pinned_and_not(bench, "20 x pool.run / run on a held connection", sides, 1.05)


def statement(bench: Bench) -> Iterator[Row]:
    """A statement with one parameter, on our connection and on pg8000's own."""
    import pg8000.native

    for way, address in bench.ways.items():

        @contextmanager
        def sides(address: Way = address) -> Iterator[Sides]:
            with (
                closing(pg8000.native.Connection(**address.pg8000)) as stock,
                fastpool.Pool(address.dsn, max_size=1) as pool,
                pool.connection() as conn,
            ):
                pids = [conn.run(BACKEND)[0][0], stock.run(BACKEND)[0][0]]
                left, right = (
                    lambda run=side.run: run("SELECT :a::int", a=1) for side in (conn, stock)
                )
                yield left, right, pids

        yield from pinned_and_not(bench, f"one parameter, {way}: ours / pg8000", sides, 0.5)


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
