"""The sizing rule: its worked example, its bounds and its errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpool import sizing
from fastpool.config import PoolConfig
from fastpool.errors import ConfigError
from fastpool.sizing import PoolSize, calculate_pool_size


@pytest.mark.parametrize("cpu_count", [None, 1, 2, 8, 15, 16, 17, 64, 512])
def test_the_worked_example(cpu_count: int | None) -> None:
    """4 instances, 200 connections less 20, 50 operations: 11 and 45 on any machine."""
    assert calculate_pool_size(4, 200, 20, 50, cpu_count) == PoolSize(min_size=11, max_size=45)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # The processor cap needs concurrency < 3 * cpus < share, each strictly.
        ((1, 120, 20, 23, 8), (6, 24)),
        ((1, 120, 20, 24, 8), (25, 100)),
        ((1, 44, 20, 23, 8), (6, 24)),
        ((1, 45, 20, 23, 8), (6, 24)),
        ((1, 43, 20, 23, 8), (5, 23)),
        # A quarter, at least 2, at most max_size.
        ((1, 8, 0, 50, 1), (2, 8)),
        ((1, 12, 0, 50, 1), (3, 12)),
        ((1, 2, 0, 50, 1), (2, 2)),
        ((1, 1, 0, 50, 1), (1, 1)),
        ((3, 10, 1, 50, 1), (2, 3)),
        ((3, 11, 0, 50, 1), (2, 3)),
    ],
)
def test_the_rule(arguments: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Share, cap and minimum at their edges."""
    assert calculate_pool_size(*arguments) == expected


def test_the_processors_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``cpu_count`` the rule asks what this process may use."""
    monkeypatch.setattr(sizing, "_usable_cpus", lambda: 8)
    assert calculate_pool_size(1, 120, 20, 23) == calculate_pool_size(1, 120, 20, 23, 8) == (6, 24)
    monkeypatch.undo()
    assert sizing._usable_cpus() >= 1


@given(
    instances=st.integers(1, 50),
    total=st.integers(1, 2000),
    reserved=st.integers(0, 200),
    concurrency=st.integers(1, 500),
    cpus=st.integers(1, 256),
)
def test_the_result_fits(
    instances: int, total: int, reserved: int, concurrency: int, cpus: int
) -> None:
    """1 <= min <= max <= share, all instances together stay under the server's
    limit, the pool takes the sizes, and only an empty share is refused."""
    share = (total - reserved) // instances
    if share < 1:
        with pytest.raises(ConfigError):
            calculate_pool_size(instances, total, reserved, concurrency, cpus)
        return
    size = calculate_pool_size(instances, total, reserved, concurrency, cpus)
    assert 1 <= size.min_size <= size.max_size <= share
    assert size.max_size == share or concurrency < size.max_size == 3 * cpus
    assert size.max_size * instances + reserved <= total
    config = PoolConfig(**size._asdict())
    assert (config.min_size, config.max_size) == size


GOOD = {
    "app_instances": 4,
    "db_max_connections": 200,
    "reserved_connections": 20,
    "expected_concurrency": 50,
    "cpu_count": 8,
}


@pytest.mark.parametrize("value", [-1, "4", 4.0, True, 2**40])
@pytest.mark.parametrize("name", GOOD)
def test_a_bad_argument_is_named(name: str, value: Any) -> None:
    """Whatever is no sensible integer is refused by the argument's name."""
    with pytest.raises(ConfigError, match=f"^{name} must be an integer") as caught:
        calculate_pool_size(**{**GOOD, name: value})
    assert caught.value.setting == name


@pytest.mark.parametrize("name", sorted(GOOD.keys() - {"reserved_connections"}))
def test_zero_is_refused(name: str) -> None:
    """There is no division by zero and no empty pool; nothing reserved is fine."""
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        calculate_pool_size(**{**GOOD, name: 0})
    assert calculate_pool_size(**{**GOOD, "reserved_connections": 0}).max_size == 50


@pytest.mark.parametrize(
    ("instances", "total", "reserved"), [(4, 20, 20), (4, 20, 30), (11, 30, 20)]
)
def test_nothing_left(instances: int, total: int, reserved: int) -> None:
    """Less than one connection each is an error with the three numbers in it."""
    with pytest.raises(ConfigError) as caught:
        calculate_pool_size(instances, total, reserved, 50)
    for part in (f"app_instances={instances}", f"={total} ", f"={reserved} "):
        assert part in str(caught.value)
    assert caught.value.setting == "db_max_connections"
