"""The pools that are compared, each behind the same few functions.

All get connections to nothing, as cheap as that pool allows: what is measured is the
pool. A peer that is not installed is left out.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import fastpool
from fastpool.testing import StubDriver

__all__ = ["PEERS", "Contender", "contenders", "ours", "package", "visit"]


@dataclass(frozen=True)
class Contender:
    """One pool, filled."""

    visit: Callable[[], None]
    """One checkout and return, as its users write it."""
    acquire: Callable[[], Any]
    release: Callable[[Any], object]
    close: Callable[[], object]


def visit(pool: Any) -> Callable[[], None]:
    """One checkout in a function of its own, so that each call has a fresh frame."""

    def visit() -> None:
        with pool.connection():
            pass

    return visit


@cache
def package(core: str) -> Any:
    """The package on the core named: the one imported, or a copy of its own beside it.

    Raises ImportError where that core is not there.
    """
    if core == fastpool.__impl__:
        return fastpool
    with patch.dict(sys.modules), patch.dict(os.environ, FASTPOOL_IMPL=core):
        for name in list(sys.modules):
            if name.partition(".")[0] == "fastpool":
                del sys.modules[name]
        return importlib.import_module("fastpool")


def ours(core: str = fastpool.__impl__, size: int | None = None) -> Contender:
    """Our pool with default settings, or with exactly *size* connections."""
    settings = {} if size is None else {"min_size": size, "max_size": size}
    pool = package(core).Pool(driver=StubDriver(), **settings)
    pool.open(wait=True)
    return Contender(visit(pool), pool.acquire, pool.release, pool.close)


class _Connection:
    """A connection to nothing, with what the peers ask of one."""

    class pgconn:
        transaction_status = 0  # idle

    @classmethod
    def connect(cls, *args: object, **kwargs: object) -> _Connection:
        return cls()

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Module:
    """What DBUtils asks of a DB-API module."""

    threadsafety = 2
    OperationalError = InterfaceError = InternalError = Exception
    connect = _Connection.connect


def _psycopg_pool(size: int) -> Contender:
    from psycopg_pool import ConnectionPool

    connection: Any = _Connection
    pool = ConnectionPool(connection_class=connection, min_size=size, max_size=size, open=True)
    pool.wait()
    return Contender(visit(pool), pool.getconn, pool.putconn, pool.close)


def _sqlalchemy(size: int) -> Contender:
    from sqlalchemy.pool import QueuePool

    creator: Any = _Connection
    pool = QueuePool(creator, pool_size=size, max_overflow=0)
    for conn in [pool.connect() for _ in range(size)]:
        conn.close()

    def connect_and_close() -> None:
        pool.connect().close()

    return Contender(connect_and_close, pool.connect, lambda conn: conn.close(), pool.dispose)


def _dbutils(size: int) -> Contender:
    dbutils = importlib.import_module("dbutils.pooled_db")  # has no types
    sizes = {"mincached": size, "maxcached": size, "maxconnections": size}
    pool = dbutils.PooledDB(_Module, blocking=True, **sizes)
    return Contender(visit(pool), pool.connection, lambda conn: conn.close(), pool.close)


PEERS = {"psycopg_pool": _psycopg_pool, "SQLAlchemy": _sqlalchemy, "DBUtils": _dbutils}


@contextmanager
def contenders(size: int) -> Iterator[dict[str, Contender]]:
    """Our pool, called ``fastpool``, and the peers there are, *size* connections each."""
    with ExitStack() as stack:
        pools = {"fastpool": ours(size=size)}
        for name, make in PEERS.items():
            with suppress(ImportError):
                pools[name] = make(size)
        for pool in pools.values():
            stack.callback(pool.close)
        yield pools
