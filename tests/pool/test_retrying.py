"""A pool's calls under a retry policy; the policies themselves: ``test_retry.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastpool import Pool, RetryPolicy
from fastpool.testing import StubDriver

Make = Callable[..., Pool[Any]]


class Serialization(Exception):
    """What a server answers to one of two transactions that collide."""


def policy(attempts: int) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=attempts,
        sleep=lambda seconds: None,
        idempotent=True,
        retry_on=lambda error: isinstance(error, Serialization),
    )


def test_a_transaction_is_tried_again(make: Make, driver: StubDriver) -> None:
    """All of it, until it is done; its result is the caller's."""
    driver.fail("control", Serialization(), times=2)
    pool = make()
    result = pool.run_in_transaction(lambda conn: conn.run("SELECT 1"), policy=policy(3))
    assert result == "SELECT 1"
    assert driver.counts["control"] == 4  # BEGIN three times, COMMIT once


def test_attempts_end(make: Make, driver: StubDriver) -> None:
    """The last attempt's error is the caller's."""
    driver.fail("control", Serialization(), times=2)
    with pytest.raises(Serialization):
        make().run_in_transaction(lambda conn: None, policy=policy(2))
    assert driver.counts["control"] == 2


def test_run_passes_everything_on(make: Make) -> None:
    """The statement and the result are those of the pool's own run()."""
    assert make().retry().run("SELECT 1") == "SELECT 1"


def test_the_site_is_the_users(make: Make) -> None:
    """Who holds a connection is told by the line that asked for the retries."""
    pool = make()
    sites: list[str] = []

    def look(_conn: Any) -> None:
        sites.append(pool.holders()[0].site)

    pool.run_in_transaction(look)
    assert sites[0].startswith(f"{__file__}:")


def test_what_is_no_policy(make: Make) -> None:
    """It is refused at once, before anything is acquired."""
    pool = make()
    for call in (pool.retry, lambda wrong: pool.run_in_transaction(print, policy=wrong)):
        with pytest.raises(TypeError, match="policy: expected a RetryPolicy, not 5"):
            call(5)  # type: ignore[arg-type]
    assert pool.stats().acquires == 0
