"""What a caller feels, on both cores: ``python -m pytest bench --benchmark-only``.

The cases of a group differ in nothing but the core, so their ratio is what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastpool.testing import StubDriver

from .peers import package


def connection(pool: Any) -> None:
    with pool.connection():
        pass


def acquire_release(pool: Any) -> None:
    pool.acquire().release()


def try_acquire(pool: Any) -> None:
    pool.try_acquire().release()


def run(pool: Any) -> None:
    pool.run("SELECT 1")


def transaction(pool: Any) -> None:
    with pool.transaction():
        pass


def stats(pool: Any) -> None:
    pool.stats()


@contextmanager
def filled(core: str, sockets: bool) -> Iterator[Any]:
    try:
        fastpool = package(core)
    except ImportError as error:
        pytest.skip(str(error))
    driver = StubDriver(sockets=sockets)
    with fastpool.Pool(driver=driver, min_size=1, max_size=1) as pool:
        pool.wait()
        yield pool


@pytest.fixture(params=["c", "python"])
def core(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "case", [connection, acquire_release, try_acquire, run, transaction, stats]
)
def test_case(core: str, case: Callable[[Any], None], benchmark: BenchmarkFixture) -> None:
    """Time one case on one core."""
    benchmark.group = case.__name__
    with filled(core, sockets=False) as pool:
        benchmark(case, pool)


def test_socket_check(core: str, benchmark: BenchmarkFixture) -> None:
    """Time a checkout that asks the connection's socket."""
    benchmark.group = "connection, socket check"
    with filled(core, sockets=True) as pool:
        benchmark(connection, pool)
