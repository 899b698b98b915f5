"""Health: is the database there, and does the pool get along with it?

:class:`HealthChecker` looks at both and tells everything; :class:`KubernetesProbes`
answers a kubelet. Two rules make them safe to ask often:

*A busy pool is not a broken one.* A check waits behind users for a quarter of its
timeout at most. When it gets no connection because all are in use, and nothing says
that the database is gone, the answer is ``degraded``, status 200. Otherwise load
would turn readiness off, and the remaining instances would get more of it.

*One check at a time.* Whoever asks while one is under way gets its answer, so that
many askers take one connection and not all of them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from .._opener import describe
from ..errors import ConfigError, PoolTimeout, TooManyRequests, seconds
from ..pool import Pool
from ..stats import PoolStats
from ._pools import Pools, at_once, duration, named, rfc3339

__all__ = ["DatabaseHealth", "HealthChecker", "HealthStatus", "KubernetesProbes", "ProbeResult"]

T = TypeVar("T")

_PATIENCE = 0.25
"""The part of its timeout for which a check waits behind users."""
_PAUSE = 0.02
_CUT_OFF = "the server has hung up on every connection in use"


@dataclass(frozen=True)
class DatabaseHealth:
    """What a check saw of one pool and its database."""

    connected: bool
    """The database answered; or the pool is saturated, and nothing says that it is gone."""
    pool_healthy: bool
    """False when every connection that there may be was in use as the check began."""
    total_connections: int
    idle_connections: int
    acquired_connections: int
    message: str | None = None
    """What is wrong, if something is."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without ``message`` when there is none."""
        found: dict[str, Any] = {
            "connected": self.connected,
            "pool_healthy": self.pool_healthy,
            "total_connections": self.total_connections,
            "idle_connections": self.idle_connections,
            "acquired_connections": self.acquired_connections,
        }
        return found if self.message is None else {**found, "message": self.message}


@dataclass(frozen=True)
class HealthStatus:
    """The outcome of :meth:`HealthChecker.check`."""

    status: Literal["healthy", "degraded", "unhealthy"]
    database: DatabaseHealth
    latency: float
    """Seconds that the check took."""
    timestamp: datetime
    """When it began."""

    @property
    def http_status(self) -> int:
        """200, also when degraded, since then it still works; 503 when unhealthy."""
        return 503 if self.status == "unhealthy" else 200

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the latency as Go prints one, the timestamp by RFC 3339."""
        return {
            "status": self.status,
            "database": self.database.as_dict(),
            "latency": duration(self.latency),
            "timestamp": rfc3339(self.timestamp),
        }


class ProbeResult(NamedTuple):
    """What to answer to a probe."""

    http_status: int
    """200, or 503."""
    body: dict[str, Any]
    """For JSON."""


def _some_seconds(name: str, value: float) -> float:
    if seconds(name, value, "not allowed here") == 0:
        raise ConfigError(f"{name}: expected seconds > 0, not {value!r}", setting=name)
    return value


class HealthChecker:
    """Checks one pool and its database.

    *timeout*: seconds for a whole check. Raises ``ConfigError`` when that is none.
    """

    def __init__(self, pool: Pool[Any], timeout: float = 5.0) -> None:
        self._pool = pool
        self._timeout = _some_seconds("timeout", timeout)
        self._check = _Shared(self._look, timeout)

    def check(self) -> HealthStatus:
        """One round trip through the pool, at most the timeout long. Raises nothing
        for a database that is down: that is what the answer says."""
        began = time.monotonic()
        try:
            return self._check()
        except TimeoutError:  # the one that is under way hangs in a hook of the user's
            health = _health(self._pool.stats(), False, "a check has not ended in time")
            waited = time.monotonic() - began
            return HealthStatus("unhealthy", health, waited, datetime.now(timezone.utc))

    def _look(self) -> HealthStatus:
        timestamp, began = datetime.now(timezone.utc), time.monotonic()
        before = self._pool.stats()
        error = _reach(self._pool, self._timeout)
        health = _health(before, error is None, error)
        status: Literal["healthy", "degraded", "unhealthy"] = (
            "unhealthy" if error else "healthy" if health.pool_healthy else "degraded"
        )
        return HealthStatus(status, health, time.monotonic() - began, timestamp)


class KubernetesProbes:
    """Liveness and readiness of an application that needs *pool*, or several pools.

    Not ready until :meth:`set_ready` is called, and after ``set_ready(False)``, the
    first step of a shutdown. For *startup_grace* seconds that is called "starting".
    *timeout*: seconds for the look at the database. Raises ``ConfigError`` when one of
    them is no number of seconds.
    """

    def __init__(self, pool: Pools, startup_grace: float = 30.0, *, timeout: float = 2.0) -> None:
        self._startup_grace = seconds("startup_grace", startup_grace, "none")
        self._began = time.monotonic()
        self._ready = threading.Event()
        self._timeout = _some_seconds("timeout", timeout)
        self._reaches = {
            name: _Shared(partial(_look, pool, timeout), timeout)
            for name, pool in named(pool).items()
        }

    def set_ready(self, ready: bool = True) -> None:
        """Say whether the application wants requests. May be called from any thread."""
        if ready:
            self._ready.set()
        else:
            self._ready.clear()

    def liveness(self) -> ProbeResult:
        """The process runs. Never looks at the database: a restart here would not
        mend it there."""
        uptime = duration(time.monotonic() - self._began)
        return ProbeResult(200, {"status": "alive", "uptime": uptime})

    def readiness(self) -> ProbeResult:
        """Whether requests should come here: ``ready`` or ``degraded``, 200, and
        ``starting`` or ``not_ready``, 503."""
        body: dict[str, Any] = {"timestamp": rfc3339(datetime.now(timezone.utc))}
        if not self._ready.is_set():
            if time.monotonic() - self._began < self._startup_grace:
                body |= {"status": "starting", "message": "application is starting up"}
            else:
                body |= {"status": "not_ready", "message": "application not ready"}
            return ProbeResult(503, body)
        found = at_once({name: partial(_verdict, reach) for name, reach in self._reaches.items()})
        ready = all(one["database"] == "connected" for one in found.values())
        if len(found) == 1:
            body |= next(iter(found.values()))
        else:
            states = {one["status"] for one in found.values()}
            worst = next(s for s in ("not_ready", "degraded", "ready") if s in states)
            body |= {"status": worst, "pools": found}
        return ProbeResult(200 if ready else 503, body)


def _look(pool: Pool[Any], timeout: float) -> tuple[str | None, PoolStats]:
    return _reach(pool, timeout), pool.stats()


def _verdict(reach: _Shared[tuple[str | None, PoolStats]]) -> dict[str, Any]:
    """What a probe says of one pool."""
    try:
        error, stats = reach()
    except TimeoutError:
        error = "a check has not ended in time"
    if error is not None:
        return {"status": "not_ready", "database": "disconnected", "error": error}
    verdict = {"status": "ready", "database": "connected"}
    if _exhausted(stats):
        verdict |= {"status": "degraded", "message": "connection pool near capacity"}
    pool = {"total": stats.size, "idle": stats.idle, "acquired": stats.in_use + stats.checking}
    return {**verdict, "pool": pool}


def _exhausted(stats: PoolStats) -> bool:
    return stats.size >= stats.max_size and stats.idle == 0


def _health(stats: PoolStats, connected: bool, error: str | None) -> DatabaseHealth:
    exhausted = _exhausted(stats)
    return DatabaseHealth(
        connected=connected,
        pool_healthy=not exhausted,
        total_connections=stats.size,
        idle_connections=stats.idle,
        acquired_connections=stats.in_use + stats.checking,
        message=error or ("connection pool exhausted" if exhausted else None),
    )


def _reach(pool: Pool[Any], timeout: float) -> str | None:
    """What is wrong with the way to the database, if something is."""
    ends = time.monotonic() + timeout
    patience = timeout * _PATIENCE
    while True:
        try:
            pool._ping(patience, ends)
        except (PoolTimeout, TooManyRequests) as error:
            if error.__cause__ is not None:
                return describe(error.__cause__)
            stats = pool.stats()
            if _exhausted(stats) and stats.in_use:
                return _CUT_OFF if pool._house.cut_off() else None
            # Not the users': a dial, or the keeper's own work. That may take all the time.
            patience = ends - time.monotonic()
            if patience <= 0:
                return describe(error)
            if isinstance(error, TooManyRequests):  # nobody may wait, not even for a dial
                time.sleep(min(patience, _PAUSE))
        except Exception as error:
            return describe(error)
        else:
            return None


class _Shared(Generic[T]):
    """A call that runs once at a time; who comes meanwhile gets the same result, or
    after *timeout* seconds ``TimeoutError``."""

    def __init__(self, call: Callable[[], T], timeout: float) -> None:
        self._call = call
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: Future[T] | None = None
        self._pid = -1

    def __call__(self) -> T:
        with self._lock:
            # One that was under way at a fork does not end in the child.
            shared = self._running if self._pid == os.getpid() else None
            if shared is None:
                mine: Future[T] = Future()
                self._running, self._pid = mine, os.getpid()
        if shared is not None:
            if not wait([shared], self._timeout).done:
                raise TimeoutError
            return shared.result()
        try:
            mine.set_result(self._call())
        except BaseException:
            mine.set_exception(TimeoutError())  # what struck this thread is not the others'
            raise
        finally:
            self._running = None
        return mine.result()
