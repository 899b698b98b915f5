"""The pools that are compared, each behind the same few functions.

All get connections to nothing, as cheap as that pool allows: what is measured is the
pool. A peer that is not installed is left out.
"""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import fastpool
from fastpool.testing import StubDriver

__all__ = [
    "CORES",
    "OTHER_CORE",
    "PEERS",
    "Contender",
    "Spec",
    "contenders",
    "ours",
    "package",
    "visit",
]

OTHER_CORE = "fastpool, interpreted" if fastpool.__impl__ == "c" else "fastpool, compiled"
CORES = {"fastpool": fastpool.__impl__, OTHER_CORE: "python" if fastpool.__impl__ == "c" else "c"}
"""How our two cores are called in a comparison; the first is the one that is in force."""


@dataclass(frozen=True)
class Spec:
    """How a pool is to be made: *low* to *high* connections, each of which takes *delay*
    seconds to make; callers wait *timeout* seconds."""

    high: int
    low: int | None = None
    """None: as many as *high*."""
    delay: float = 0.0
    timeout: float = 30.0
    wait: bool = True
    """Return when the pool is filled."""

    @property
    def least(self) -> int:
        return self.high if self.low is None else self.low


@dataclass(frozen=True)
class Contender:
    """One pool."""

    visit: Callable[[], None]
    """One checkout and return, as its users write it."""
    acquire: Callable[[], Any]
    release: Callable[[Any], object]
    close: Callable[[], object]
    made: Callable[[], int] = lambda: 0
    """Connections made so far, those that are being made included."""


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


def ours(core: str = fastpool.__impl__, spec: Spec | None = None) -> Contender:
    """Our pool, with default settings or as *spec* says."""
    settings: dict[str, Any] = {}
    if spec is not None:
        settings = {"min_size": spec.least, "max_size": spec.high, "timeout": spec.timeout}
    driver = StubDriver(0.0 if spec is None else spec.delay)
    pool = package(core).Pool(driver=driver, **settings)
    pool.open(wait=spec is None or spec.wait)
    made = partial(driver.counts.__getitem__, "connect")
    return Contender(visit(pool), pool.acquire, pool.release, pool.close, made)


class _Fake:
    """A connection to nothing, with what the peers ask of one."""

    class pgconn:
        transaction_status = 0  # idle

    made = 0
    delay = 0.0
    _lock = threading.Lock()

    @classmethod
    def connect(cls, *args: object, **kwargs: object) -> _Fake:
        with cls._lock:
            cls.made += 1
        if cls.delay:
            time.sleep(cls.delay)
        return cls()

    def __enter__(self) -> _Fake:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


def _fake(spec: Spec) -> Any:
    """A class of connections that counts its own."""
    return type("Fake", (_Fake,), {"delay": spec.delay})


def _psycopg_pool(spec: Spec) -> Contender:
    from psycopg_pool import ConnectionPool

    fake = _fake(spec)
    pool: Any = ConnectionPool(
        connection_class=fake,
        min_size=spec.least,
        max_size=spec.high,
        timeout=spec.timeout,
        open=True,
    )
    if spec.wait:
        pool.wait()
    return Contender(visit(pool), pool.getconn, pool.putconn, pool.close, lambda: fake.made)


def _sqlalchemy(spec: Spec) -> Contender:
    from sqlalchemy.pool import QueuePool

    fake, low = _fake(spec), spec.least
    extra = spec.high - low
    pool = QueuePool(fake.connect, pool_size=low, max_overflow=extra, timeout=spec.timeout)
    if spec.wait:
        for conn in [pool.connect() for _ in range(low)]:
            conn.close()

    def connect_and_close() -> None:
        pool.connect().close()

    return Contender(
        connect_and_close,
        pool.connect,
        lambda conn: conn.close(),
        pool.dispose,
        lambda: int(fake.made),
    )


def _dbutils(spec: Spec) -> Contender:
    dbutils = importlib.import_module("dbutils.pooled_db")  # has no types
    fake = _fake(spec)
    errors = dict.fromkeys(("OperationalError", "InterfaceError", "InternalError"), Exception)
    module = type("Module", (), {"threadsafety": 2, "connect": fake.connect, **errors})
    sizes = {"mincached": spec.least, "maxcached": spec.high, "maxconnections": spec.high}
    pool = dbutils.PooledDB(module, blocking=True, **sizes)
    return Contender(
        visit(pool), pool.connection, lambda conn: conn.close(), pool.close, lambda: fake.made
    )


def _queue(spec: Spec) -> Contender:
    """No pool: objects in a ``queue.Queue``, which does nothing but pass them on."""
    stock: queue.Queue[object] = queue.Queue()
    for _ in range(spec.high):
        stock.put(object())
    get, put = partial(stock.get, timeout=spec.timeout), stock.put

    def get_and_put() -> None:
        conn = get()
        try:
            pass
        finally:
            put(conn)

    return Contender(get_and_put, get, put, lambda: None)


def _lock(spec: Spec) -> Contender:
    """No pool: a lock, for what can be had by one connection."""
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    return Contender(locked, lock.acquire, lambda _: lock.release(), lambda: None)


PEERS = {"psycopg_pool": _psycopg_pool, "SQLAlchemy": _sqlalchemy, "DBUtils": _dbutils}
BARE = {"queue.Queue": _queue, "lock": _lock}


@contextmanager
def contenders(
    spec: Spec, *, both: bool = False, bare: bool = False
) -> Iterator[dict[str, Contender]]:
    """Our pool, called ``fastpool``, and the peers there are, made as *spec* says.

    *both*: our other core too, if it is there. *bare*: what is no pool as well.
    """
    makers: dict[str, Callable[[Spec], Contender]] = {"fastpool": lambda spec: ours(spec=spec)}
    if both:
        makers[OTHER_CORE] = lambda spec: ours(CORES[OTHER_CORE], spec)
    makers.update(PEERS)
    if bare:
        makers.update(BARE)
    if spec.high > 1:
        makers.pop("lock", None)
    with ExitStack() as stack:
        pools = {}
        for name, make in makers.items():
            with suppress(ImportError):
                pools[name] = make(spec)
                stack.callback(pools[name].close)
        yield pools
