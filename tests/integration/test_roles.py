"""Several hosts, and the kind of server that is wanted of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fastpool
from fastpool.testing import LocalPostgres


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[LocalPostgres, LocalPostgres]]:
    """A primary and its standby."""
    with LocalPostgres() as primary, primary.standby() as standby:
        yield primary, standby


def address(*servers: LocalPostgres, **params: str) -> str:
    hosts = ",".join(f"{server.host}:{server.port}" for server in servers)
    query = "&".join(f"{name}={value}" for name, value in params.items())
    return f"postgresql://postgres@{hosts}/postgres?{query}"


@pytest.mark.parametrize(
    ("wanted", "standby_first", "on_standby"),
    [
        ("any", True, True),
        ("any", False, False),
        ("read-write", True, False),
        ("primary", True, False),
        ("read-only", False, True),
        ("standby", False, True),
        ("prefer-standby", False, True),
    ],
)
def test_the_server_that_is_wanted(
    pair: tuple[LocalPostgres, LocalPostgres], wanted: str, standby_first: bool, on_standby: bool
) -> None:
    """All six target_session_attrs choose as libpq's do."""
    primary, standby = pair
    servers = (standby, primary) if standby_first else (primary, standby)
    dsn = address(*servers, target_session_attrs=wanted)
    with fastpool.Pool(dsn, max_size=1) as pool:
        assert pool.run("SELECT pg_is_in_recovery()") == [[on_standby]]


def test_prefer_standby_takes_a_primary_when_there_is_no_other(
    pair: tuple[LocalPostgres, LocalPostgres],
) -> None:
    """Preferred is not required."""
    dsn = address(pair[0], target_session_attrs="prefer-standby")
    with fastpool.Pool(dsn, max_size=1) as pool:
        assert pool.run("SELECT pg_is_in_recovery()") == [[False]]


def test_nothing_fits(pair: tuple[LocalPostgres, LocalPostgres]) -> None:
    """The caller is told which server is what, and what was wanted."""
    dsn = address(pair[1], target_session_attrs="read-write")
    with fastpool.Pool(dsn, max_size=1, timeout=0.3) as pool:
        with pytest.raises(fastpool.PoolTimeout, match=r"is a standby, read-only.*read-write"):
            pool.run("SELECT 1")
        assert pool.stats().created == 0


def test_a_dead_host_is_passed_over(pair: tuple[LocalPostgres, LocalPostgres]) -> None:
    """The first host refuses: the second serves, and is tried first from then on."""
    primary, _ = pair
    dsn = f"postgresql://postgres@127.0.0.1:1,127.0.0.1:{primary.port}/postgres"
    with fastpool.Pool(dsn, max_size=2, min_size=2) as pool:
        pool.open(wait=True)
        assert pool.run("SELECT 1") == [[1]]
        assert pool.stats().dial_failures == 0


def test_balance_at_random(pair: tuple[LocalPostgres, LocalPostgres]) -> None:
    """load_balance_hosts=random spreads the connections over the hosts."""
    dsn = address(*pair, load_balance_hosts="random")
    with fastpool.Pool(dsn, min_size=20, max_size=20) as pool:
        pool.open(wait=True)
        leases = [pool.acquire() for _ in range(20)]
        ports = {lease.run("SELECT inet_server_port()")[0][0] for lease in leases}
        for lease in leases:
            lease.release()
        assert ports == {pair[0].port, pair[1].port}
