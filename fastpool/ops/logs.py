"""The pool's figures in the log, every so often."""

from __future__ import annotations

import logging
import weakref
from typing import Any

from .._logs import Log
from ..pool import Pool
from ._pools import Ticker, duration, is_closed

__all__ = ["StatsLogger"]

_log = Log()


class StatsLogger:
    """Logs one line every *interval* seconds, at level INFO of the logger ``fastpool``::

        Pool stats: open=5, in_use=2, idle=3, wait_count=17, wait_duration=1.5s

    The record has the pool's name as ``pool``, and the same figures as attributes
    (``open``, ``in_use``, ``idle``, ``wait_count``, ``wait_duration`` in seconds), for
    handlers that keep them apart. It begins at once and ends with the pool, or by
    :meth:`stop`. It does not keep the pool alive. A forked child needs its own.
    """

    def __init__(self, pool: Pool[Any], interval: float = 60.0) -> None:
        if not interval > 0:
            raise ValueError(f"interval: expected seconds > 0, not {interval!r}")
        ref = weakref.ref(pool)

        def over() -> bool:
            pool = ref()
            return pool is None or is_closed(pool)

        def tick() -> None:
            pool = ref()
            if pool is not None:
                _write(pool)

        self._ticker = Ticker(f"fastpool-stats-{pool.name}", interval, tick, over)
        self._ticker.start()

    def stop(self) -> None:
        """Log no more. Idempotent."""
        self._ticker.stop()

    @property
    def running(self) -> bool:
        """Whether another line can come."""
        return self._ticker.running


def _write(pool: Pool[Any]) -> None:
    stats = pool.stats()
    figures = {
        "open": stats.size,
        "in_use": stats.size - stats.idle,
        "idle": stats.idle,
        "wait_count": stats.waits,
        "wait_duration": stats.wait_time,
    }
    _log.log(
        logging.INFO,
        "stats",
        "Pool stats: open=%d, in_use=%d, idle=%d, wait_count=%d, wait_duration=%s",
        *list(figures.values())[:-1],
        duration(stats.wait_time),
        pool=pool.name,
        **figures,
    )
