"""The last minutes of some pools, one sample a second, and all that is known now."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import secrets
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..pool import Pool
from ..stats import PoolStats
from ._pools import Ticker, failing, phase

__all__ = ["COLUMNS", "History"]

INTERVAL = 1.0
KEPT = 600
_WINDOW = 10
"""Samples over which the percentiles of the waits are taken."""

COLUMNS = (
    "time",
    "in_use",
    "checking",
    "idle",
    "connecting",
    "closing",
    "waiting",
    "max_size",
    "acquires",
    "waits",
    "timeouts",
    "p50",
    "p95",
    "p99",
)
"""Of a sample: the time (Unix), gauges, counts since the sample before, and percentiles
(seconds, ``None`` where nobody waited)."""

_SETTINGS = (
    "min_size",
    "max_size",
    "min_idle",
    "max_idle",
    "max_waiting",
    "timeout",
    "max_lifetime",
    "max_idle_time",
    "leak_threshold",
)


class _Track:
    """One pool's samples."""

    def __init__(self, stats: PoolStats) -> None:
        self.rows: deque[tuple[float | None, ...]] = deque(maxlen=KEPT)
        self.recent: deque[PoolStats] = deque([stats], maxlen=_WINDOW + 1)

    def add(self, stats: PoolStats) -> None:
        last, first = self.recent[-1], self.recent[0]
        row = {name: getattr(stats, name, None) for name in COLUMNS}
        row |= {n: row[n] - getattr(last, n) for n in ("acquires", "waits", "timeouts")}
        row |= _percentiles(first, stats)
        row["time"] = round(time.time(), 3)
        self.rows.append(tuple(row.values()))
        self.recent.append(stats)


def _percentiles(first: PoolStats, last: PoolStats) -> dict[str, float | None]:
    """Of the waits between two moments."""
    counts = zip(first.wait_histogram, last.wait_histogram, strict=True)
    between = dataclasses.replace(last, wait_histogram=tuple(b - a for a, b in counts))
    waited = any(between.wait_histogram)
    return {
        f"p{round(q * 100)}": between.wait_quantile(q) if waited else None
        for q in (0.5, 0.95, 0.99)
    }


class History:
    """Looks at *pools* from :meth:`start` on."""

    def __init__(self, pools: Mapping[str, Pool[Any]]) -> None:
        self.pools = pools
        self._tracks = {name: _Track(pool.stats()) for name, pool in pools.items()}
        self._taken = 0
        self._run = secrets.token_hex(4)
        self._began = time.time()
        # The thread must not keep this alive, nor with it the pools.
        me = weakref.ref(self)

        def tick() -> None:
            history = me()
            if history is not None:
                history.sample()

        self._ticker = Ticker("fastpool-history", INTERVAL, tick, lambda: me() is None)

    def start(self) -> None:
        """Begin; in a forked child, begin again. Idempotent."""
        self._ticker.start()

    def stop(self) -> None:
        """No more samples. Idempotent."""
        self._ticker.stop()

    def sample(self) -> None:
        """Take one sample now."""
        for name, pool in self.pools.items():
            self._tracks[name].add(pool.stats())
        self._taken += 1

    def everything(
        self, names: list[str], since: int | None = None, run: str | None = None
    ) -> dict[str, Any]:
        """All that is known of the pools *names*, for JSON; of the samples those after
        the number *since* of that *run*, or all."""
        taken = self._taken
        wanted = KEPT if since is None or run != self._run else max(0, taken - since)
        return {
            "process": {
                "pid": os.getpid(),
                "python": platform.python_version(),
                "run": self._run,
                "began": self._began,
            },
            "now": time.time(),
            "samples": taken,
            "interval": INTERVAL,
            "columns": COLUMNS,
            "pools": [self._pool(name, wanted) for name in names],
        }

    def holders(self, name: str) -> list[dict[str, Any]]:
        """Who has a connection, the longest first."""
        return [_as_dict(holder) for holder in self.pools[name].holders()]

    def _pool(self, name: str, wanted: int) -> dict[str, Any]:
        pool, track = self.pools[name], self._tracks[name]
        stats = pool.stats()
        rows = list(track.rows)
        return {
            "name": name,
            "phase": phase(pool),
            "failing": failing(pool),
            "stats": dataclasses.asdict(stats),
            "settings": {name: _finite(getattr(pool.config, name)) for name in _SETTINGS},
            "waits": {"window": _WINDOW * INTERVAL, **_percentiles(track.recent[0], stats)},
            "holders": self.holders(name),
            "history": rows[len(rows) - min(wanted, len(rows)) :],
        }


def _finite(value: float | None) -> float | None:
    return None if value == math.inf else value


def _as_dict(holder: Any) -> dict[str, Any]:
    """Its fields and properties, whatever there is."""
    kind = type(holder)
    names = [field.name for field in dataclasses.fields(kind)]
    names += [name for name, value in vars(kind).items() if isinstance(value, property)]
    return {name: getattr(holder, name) for name in names}
