"""Several pools where one may stand, and what every part of ``ops`` asks of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, TypeAlias, TypeVar

from ..pool import Pool

__all__ = [
    "Pools",
    "Ticker",
    "at_once",
    "duration",
    "failing",
    "is_closed",
    "named",
    "phase",
    "rfc3339",
]

T = TypeVar("T")
Pools: TypeAlias = "Pool[Any] | Iterable[Pool[Any]] | Mapping[str, Pool[Any]]"


def named(pools: Pools) -> dict[str, Pool[Any]]:
    """*pools* by name: one pool, several, or a mapping that gives names of its own.

    Raises ``ValueError`` when there are none, or two with the same name.
    """
    if isinstance(pools, Pool):
        return {pools.name: pools}
    given = pools.items() if isinstance(pools, Mapping) else ((None, pool) for pool in pools)
    found: dict[str, Pool[Any]] = {}
    for name, pool in given:
        if not isinstance(pool, Pool):
            raise ValueError(f"pools: expected a pool or several, not {pools!r}")
        name = pool.name if name is None else name
        if name in found:
            raise ValueError(f"pools: two are named {name!r}; give a mapping of names to pools")
        found[name] = pool
    if not found:
        raise ValueError("pools: expected a pool or several, not none")
    return found


def phase(pool: Pool[Any]) -> str:
    """``new``, ``open`` or ``closed``."""
    return ("new", "open", "closed")[pool._core.phase]


_STALE = 30.0
"""Seconds. As long as a connection is wanted, an attempt follows another sooner."""


def failing(pool: Pool[Any]) -> bool:
    """Whether the last attempt to connect failed, and that is news: when nobody wants a
    connection any more, nobody tries, and an old failure says nothing of now."""
    core, opener = pool._core, pool._house.opener
    if opener.last_error_at <= opener.last_success_at:
        return False
    return core.now() - opener.last_error_at < _STALE or core.connecting > 0


def is_closed(pool: Pool[Any]) -> bool:
    return phase(pool) == "closed"


def at_once(calls: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """The result of each call by its name; they run beside each other, so that
    together they take as long as the slowest."""
    results: dict[str, T] = {}
    (first, call), *others = calls.items()
    threads = [
        threading.Thread(target=lambda n=n, c=c: results.update({n: c()}), daemon=True)
        for n, c in others
    ]
    for thread in threads:
        thread.start()
    results[first] = call()
    for thread in threads:
        thread.join()
    return {name: results[name] for name in calls}


def rfc3339(moment: datetime) -> str:
    """As Go's JSON has it: ``2026-01-31T12:00:00.123456Z``."""
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def duration(seconds: float) -> str:
    """As Go prints a ``time.Duration``: ``1h2m3.5s``, ``1.25ms``, ``0s``."""
    nanoseconds = round(seconds * 1e9)
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for size, unit in ((1, "ns"), (1_000, "µs"), (1_000_000, "ms")):
        if rest < size * 1_000:
            return f"{sign}{_decimal(rest, size)}{unit}"
    minutes, rest = divmod(rest, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{text}{_decimal(rest, 1_000_000_000)}s"


def _decimal(amount: int, unit: int) -> str:
    whole, part = divmod(amount, unit)
    digits = str(part).zfill(len(str(unit)) - 1).rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


class Ticker:
    """A thread that calls *tick* every *interval* seconds until *over* is true.

    A call that comes late does not make those after it come in a bunch.
    """

    _LOOK = 0.5
    """Seconds after which it sees at the latest that it is over."""

    def __init__(
        self, name: str, interval: float, tick: Callable[[], object], over: Callable[[], bool]
    ) -> None:
        self._name = name
        self._interval = interval
        self._tick = tick
        self._over = over
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._pid = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it; again in a forked child, where it is gone. Idempotent."""
        with self._starting:
            if self._pid != os.getpid() and not self._stopped.is_set():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """No call begins from now on; wait for one in progress. Idempotent."""
        self._stopped.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        while not self._over():
            left = due - time.monotonic()
            if self._stopped.wait(max(0.0, min(left, self._LOOK))):
                return
            if left <= self._LOOK and not self._over():
                self._tick()
                due = max(due + self._interval, time.monotonic())
