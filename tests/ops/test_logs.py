"""The periodic line of figures, and its end."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
from pool.kit import eventually, filled, give_back, leases

import fastpool
from fastpool import Pool
from fastpool.ops import StatsLogger
from fastpool.testing import StubDriver

Make = Callable[..., Pool[Any]]


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.getMessage().startswith("Pool stats")]


def test_line(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The line has the seeds' form, and its figures are attributes of the record."""
    caplog.set_level(logging.INFO, "fastpool")
    pool = make(name="orders", min_size=2, max_size=2)
    filled(pool)
    held = leases(pool, 1)
    figures = StatsLogger(pool, 0.01)
    eventually(lambda: len(lines(caplog)) >= 2)
    figures.stop()
    record = lines(caplog)[0]
    assert record.getMessage() == (
        "Pool stats: open=2, in_use=1, idle=1, wait_count=0, wait_duration=0s"
    )
    assert (record.levelno, record.name) == (logging.INFO, "fastpool")
    assert (record.pool, record.open, record.in_use, record.idle) == ("orders", 2, 1, 1)  # type: ignore[attr-defined]
    assert (record.event, record.wait_count, record.wait_duration) == ("stats", 0, 0.0)  # type: ignore[attr-defined]
    give_back(held)


def test_stop(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """After stop no line comes; stopping twice is fine."""
    caplog.set_level(logging.INFO, "fastpool")
    figures = StatsLogger(make(), 0.01)
    eventually(lambda: lines(caplog))
    figures.stop()
    assert not figures.running
    caplog.clear()
    figures.stop()
    assert not lines(caplog)


def test_ends_with_the_pool(make: Make) -> None:
    """It ends when the pool is closed, however long the interval."""
    pool = make()
    figures = StatsLogger(pool, 3600.0)
    assert figures.running
    pool.close()
    eventually(lambda: not figures.running)


def test_keeps_no_pool_alive() -> None:
    """A pool that nobody has any more is collected, and its logger ends."""
    figures = StatsLogger(Pool(driver=StubDriver()), 3600.0)
    gc.collect()
    eventually(lambda: not figures.running)


@pytest.mark.parametrize("interval", [0, -1.0])
def test_bad_interval(make: Make, interval: float) -> None:
    """An interval of nothing is refused."""
    with pytest.raises(ValueError, match="interval"):
        StatsLogger(make(), interval)


def test_the_logger_is_quiet() -> None:
    """A program that configures no logging sees nothing of ours."""
    handlers = logging.getLogger("fastpool").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers), fastpool
