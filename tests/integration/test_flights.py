"""How often the pool and its connections wait for the server, counted on the wire."""

# ruff: noqa: PT012 - what raises is the end of a block, or a call inside it

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from integration.conftest import MakePool
from integration.kit import plain_dsn

from fastpool import Pool
from fastpool.testing import FaultProxy


@pytest.fixture
def flights(proxy: FaultProxy) -> Callable[[Callable[[], object]], int]:
    """``flights(action)``: the round trips that *action* makes."""

    def counted(action: Callable[[], object]) -> int:
        before = proxy.counters().flights
        action()
        return proxy.counters().flights - before

    return counted


def warm(make_pool: MakePool, proxy: FaultProxy, **settings: Any) -> Pool[Any]:
    """A pool whose one connection is there."""
    pool = make_pool(plain_dsn(proxy), max_size=1, **settings)
    pool.ping()
    return pool


def test_run(make_pool: MakePool, proxy: FaultProxy, flights: Any) -> None:
    """One flight per statement through the pool, with parameters or without; none beside it."""
    pool = warm(make_pool, proxy)
    assert flights(lambda: pool.run("SELECT 1")) == 1
    assert flights(lambda: pool.run("SELECT :x::int", x=1)) == 1
    assert flights(lambda: pool.run("SELECT :a::text, :b::int", a="a" * 20000, b=2)) == 1

    def many() -> None:
        with pool.connection() as conn:
            for n in range(10):
                assert conn.run("SELECT :n::int", n=n) == [[n]]

    assert flights(many) == 10
    assert flights(lambda: pool.acquire().release()) == 0


def test_transaction(make_pool: MakePool, proxy: FaultProxy, flights: Any) -> None:
    """BEGIN, the statement, COMMIT: three."""
    pool = warm(make_pool, proxy)

    def committed() -> None:
        with pool.transaction() as conn:
            conn.run("SELECT :x::int", x=1)

    def rolled_back() -> None:
        with pytest.raises(ArithmeticError), pool.transaction() as conn:
            conn.run("SELECT :x::int", x=1)
            raise ArithmeticError

    assert flights(committed) == 3
    assert flights(rolled_back) == 3


def test_dbapi(make_pool: MakePool, proxy: FaultProxy, flights: Any) -> None:
    """A DB-API statement: begin, the statement, commit; nothing for a connection not used."""
    pool = warm(make_pool, proxy, driver="dbapi")
    assert flights(lambda: pool.execute("SELECT %s::int", (1,))) == 3
    assert flights(lambda: pool.acquire().release()) == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"check": "ping"}, 2), ({"reset": "discard"}, 2), ({"check": None}, 1)],
    ids=str,
)
def test_what_settings_cost(
    make_pool: MakePool, proxy: FaultProxy, flights: Any, settings: dict[str, Any], expected: int
) -> None:
    """A ping at each checkout and a reset at each return cost one flight each."""
    pool = warm(make_pool, proxy, **settings)
    assert flights(lambda: pool.run("SELECT :x::int", x=1)) == expected


def test_smart_reset_costs_nothing_when_clean(
    make_pool: MakePool, proxy: FaultProxy, flights: Any
) -> None:
    """DISCARD ALL is sent after a SET, and only then."""
    pool = warm(make_pool, proxy)
    assert flights(lambda: pool.run("SET work_mem = '7MB'")) == 2
    assert flights(lambda: pool.run("SHOW work_mem")) == 1


def test_connect(make_pool: MakePool, proxy: FaultProxy, flights: Any) -> None:
    """A connection, its session settings included, takes one flight without authentication."""
    pool = make_pool(plain_dsn(proxy), session_settings={"work_mem": "7MB", "app.label": "x"})
    assert flights(lambda: pool.acquire().release()) == 1
