"""What a caller feels, on both cores: ``python -m pytest bench --benchmark-only``.

The cases of a group differ in nothing but the core, so their ratio is what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture(params=["c", "python"])
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    try:
        fastpool = package(request.param)
    except ImportError as error:
        pytest.skip(str(error))
    with fastpool.Pool(driver=StubDriver(), min_size=1, max_size=1) as pool:
        pool.wait()
        yield pool


@pytest.mark.parametrize(
    "case", [connection, acquire_release, try_acquire, run, transaction, stats]
)
def test_case(pool: Any, case: Callable[[Any], None], benchmark: BenchmarkFixture) -> None:
    """Time one case on one core."""
    benchmark.group = case.__name__
    benchmark(case, pool)
