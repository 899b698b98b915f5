"""What a type checker must see; read by a test, never run."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from fastpool import Lease, Pool, PoolConfig, PoolStats, from_env
from fastpool.drivers import Driver
from fastpool.drivers.pg8000 import DBAPI, DBAPIConnection, Native, NativeConnection
from fastpool.testing import StubConnection, StubDriver

if sys.version_info >= (3, 11):
    from typing import Any, assert_type
else:
    from typing import Any

    from typing_extensions import assert_type


def the_driver_decides(custom: Driver[int]) -> None:
    """The connection's class follows from the driver."""
    assert_type(Pool("host=h"), Pool[NativeConnection])
    assert_type(Pool(driver=Native()), Pool[NativeConnection])
    assert_type(Pool(driver=DBAPI()), Pool[DBAPIConnection])
    assert_type(Pool(driver=StubDriver(), name="orders", max_size=3), Pool[StubConnection])
    assert_type(Pool(driver="dbapi"), Pool[Any])
    assert_type(Pool(driver=custom), Pool[int])
    assert_type(Pool.from_config(PoolConfig(), driver=StubDriver()), Pool[StubConnection])
    assert_type(from_env(), Pool[Any])


def what_callers_get(pool: Pool[StubConnection]) -> None:
    """Blocks give the connection, acquire() gives a lease of it."""
    assert_type(pool.connection(), AbstractContextManager[StubConnection])
    with pool.connection(timeout=1.0) as conn:
        assert_type(conn, StubConnection)
        assert_type(pool.detach(conn), StubConnection)
    with pool.transaction(isolation="serializable", read_only=True) as conn:
        assert_type(conn, StubConnection)
    with pool.within(timeout=1.0).connection() as conn:
        assert_type(conn, StubConnection)
    lease = pool.acquire()
    assert_type(lease, Lease[StubConnection])
    assert_type(lease.driver_connection, StubConnection)
    with lease as conn:
        assert_type(conn, StubConnection)
    with lease.transaction() as conn:
        assert_type(conn, StubConnection)
    pool.release(lease)
    assert_type(pool.try_acquire(), Lease[StubConnection] | None)
    with pool as same:
        assert_type(same, Pool[StubConnection])
    assert_type(pool.stats(), PoolStats)


def what_is_refused(pool: Pool[StubConnection]) -> None:
    """Mistakes that a checker can see."""
    pool.transaction(isolation="snapshot")  # type: ignore[arg-type]
    pool.connection(timeout="1")  # type: ignore[arg-type]
    Pool(driver=object())  # type: ignore[call-overload]
