"""Pools on a driver that opens nothing; each must be whole at the end of its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pool.kit import Caller, Clock, eventually

from fastpool import Pool, _house
from fastpool._impl import Core
from fastpool.testing import StubConnection, StubDriver


@pytest.fixture
def driver() -> StubDriver:
    return StubDriver()


@pytest.fixture
def make(driver: StubDriver) -> Iterator[Callable[..., Pool[StubConnection]]]:
    """Makes pools: ``make(**settings)``, on ``driver`` and with ``min_size=0`` unless told."""
    made: list[Pool[StubConnection]] = []
    drivers: set[StubDriver] = set()

    def make(conninfo: str = "", **settings: Any) -> Pool[StubConnection]:
        used = settings.pop("driver", driver)
        pool = Pool(conninfo, driver=used, **{"min_size": 0, "timeout": 10.0, **settings})
        made.append(pool)
        drivers.add(used)
        return pool

    yield make
    for used in drivers:
        # What a test has blocked or broken must not block the end.
        used.heal()
        for gate in used.gates.values():
            gate.set()
    for pool in made:
        pool.close(timeout=1.0)
    eventually(lambda: all(pool._core.size == 0 for pool in made), "all slots free")
    for core in [pool._core for pool in made]:
        assert not core.entries
        assert (core.idle, core.leased, core.held, core.connecting) == (0, 0, 0, 0)
        assert core.waiting == 0
    assert all(used.open_now == 0 for used in drivers)


@pytest.fixture
def spawn() -> Iterator[Callable[[Callable[[], Any]], Caller]]:
    """Starts calls in threads of their own; all must have ended with the test."""
    callers: list[Caller] = []

    def spawn(call: Callable[[], Any]) -> Caller:
        callers.append(Caller(call))
        return callers[-1]

    yield spawn
    for caller in callers:
        caller.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the pools made in this test. ``keeper.tend()`` makes them look."""
    clock = Clock()
    monkeypatch.setattr(_house, "Core", lambda: Core(None, clock))
    return clock
