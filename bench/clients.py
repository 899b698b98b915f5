"""What users would run statements with: drivers, held or behind a pool.

Each client runs a *script*, statements with their parameters, a number of times. So
asyncpg takes part too: its event loop is entered once for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import fastpool

from .peers import CORES, OTHER_CORE, package
from .stage import Way

__all__ = ["Client", "Script", "clients", "one_parameter", "select_1", "three_statements"]

Statement = tuple[str, tuple[Any, ...]]
"""A statement, its parameters written ``{}``, and their values."""
Script = Sequence[Statement]
Client = Callable[[Script, int], None]
"""Run a script so many times. One of several statements is a transaction."""

select_1: Script = [("SELECT 1", ())]
one_parameter: Script = [("SELECT {}::int", (1,))]
three_statements: Script = [("SELECT {}::int", (n,)) for n in range(3)]


def native(run: Callable[..., Any], script: Script) -> None:
    for text, values in script:
        names = [f"p{n}" for n in range(len(values))]
        run(text.format(*(f":{name}" for name in names)), **dict(zip(names, values, strict=True)))


def dbapi(execute: Callable[..., Any], script: Script) -> None:
    for text, values in script:
        execute(text.format(*["%s"] * len(values)), *([values] if values else []))


def fastpool_pooled(core: str, way: Way) -> tuple[Client, Callable[[], None]]:
    pool = package(core).Pool(way.dsn, min_size=1, max_size=1)

    def run(script: Script, times: int) -> None:
        for _ in range(times):
            if len(script) > 1:
                with pool.transaction() as conn:
                    native(conn.run, script)
            else:
                native(pool.run, script)

    return run, pool.close


def fastpool_held(way: Way) -> tuple[Client, Callable[[], None]]:
    stack = ExitStack()
    pool = stack.enter_context(fastpool.Pool(way.dsn, max_size=1))
    lease = pool.acquire()
    stack.callback(lease.release)

    def run(script: Script, times: int) -> None:
        for _ in range(times):
            if len(script) > 1:
                with lease.transaction() as conn:
                    native(conn.run, script)
            else:
                native(lease.run, script)

    return run, stack.close


def pg8000_held(way: Way) -> tuple[Client, Callable[[], None]]:
    import pg8000.native

    conn = pg8000.native.Connection(**way.pg8000)

    def run(script: Script, times: int) -> None:
        for _ in range(times):
            if len(script) > 1:
                conn.run("BEGIN")
                native(conn.run, script)
                conn.run("COMMIT")
            else:
                native(conn.run, script)

    return run, conn.close


def pg8000_pooled(way: Way) -> tuple[Client, Callable[[], None]]:
    """Behind SQLAlchemy's pool, the usual way to pool it."""
    import pg8000.dbapi
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(lambda: pg8000.dbapi.connect(**way.pg8000), pool_size=1, max_overflow=0)

    def run(script: Script, times: int) -> None:
        for _ in range(times):
            conn: Any = pool.connect()
            conn.driver_connection.autocommit = len(script) == 1
            dbapi(conn.cursor().execute, script)
            if len(script) > 1:
                conn.commit()
            conn.close()

    return run, pool.dispose


def psycopg_held(way: Way) -> tuple[Client, Callable[[], None]]:
    import psycopg

    conn = psycopg.connect(way.dsn, autocommit=True)

    def run(script: Script, times: int) -> None:
        for _ in range(times):
            with conn.transaction() if len(script) > 1 else contextlib.nullcontext():
                dbapi(conn.execute, script)

    return run, conn.close


def psycopg_pooled(way: Way) -> tuple[Client, Callable[[], None]]:
    from psycopg_pool import ConnectionPool

    options = {"autocommit": True}
    pool: ConnectionPool[Any] = ConnectionPool(
        way.dsn, kwargs=options, min_size=1, max_size=1, open=True
    )
    pool.wait()

    def run(script: Script, times: int) -> None:
        for _ in range(times):
            with ExitStack() as stack:
                conn = stack.enter_context(pool.connection())
                if len(script) > 1:
                    stack.enter_context(conn.transaction())
                dbapi(conn.execute, script)

    return run, pool.close


def asyncpg_pooled(way: Way) -> tuple[Client, Callable[[], None]]:
    asyncpg = importlib.import_module("asyncpg")  # has no types
    loop = asyncio.new_event_loop()

    async def create() -> Any:
        return await asyncpg.create_pool(way.dsn, min_size=1, max_size=1)

    pool = loop.run_until_complete(create())

    async def once(script: Script) -> None:
        async with pool.acquire() as conn, contextlib.AsyncExitStack() as stack:
            if len(script) > 1:
                await stack.enter_async_context(conn.transaction())
            for text, values in script:
                await conn.fetch(text.format(*(f"${n + 1}" for n in range(len(values)))), *values)

    async def often(script: Script, times: int) -> None:
        for _ in range(times):
            await once(script)

    def close() -> None:
        loop.run_until_complete(pool.close())
        loop.close()

    return lambda script, times: loop.run_until_complete(often(script, times)), close


@contextmanager
def clients(way: Way) -> Iterator[dict[str, Client]]:
    """All there are, connected."""
    makers: dict[str, Callable[[Way], tuple[Client, Callable[[], None]]]] = {
        "fastpool": lambda way: fastpool_pooled(fastpool.__impl__, way),
        OTHER_CORE: lambda way: fastpool_pooled(CORES[OTHER_CORE], way),
        "fastpool, held": fastpool_held,
        "pg8000, held": pg8000_held,
        "pg8000 + SQLAlchemy": pg8000_pooled,
        "psycopg, held": psycopg_held,
        "psycopg_pool": psycopg_pooled,
        "asyncpg": asyncpg_pooled,
    }
    with ExitStack() as stack:
        found = {}
        for name, make in makers.items():
            with suppress(ImportError):
                found[name], close = make(way)
                stack.callback(close)
        yield found
