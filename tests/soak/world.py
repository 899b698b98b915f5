"""What all parts of a soak share: the pools, the book, the findings."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import re
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pg8000.native

import fastpool
from fastpool.testing import FaultProxy, LocalPostgres

from .ledger import Book

__all__ = ["Admin", "Flaky", "Interrupt", "Target", "World", "kind_of"]


class Interrupt(BaseException):
    """Sent into a thread from outside, at any point."""


class Flaky(Exception):
    """What a hook raises now and then."""


@lru_cache(64)
def _positional(sql: str) -> tuple[str, list[str]]:
    """The same statement for DB-API, and its parameters in order."""
    found = re.compile(r"(?<!:):(\w+)")
    return found.sub("%s", sql), found.findall(sql)


class Target:
    """One pool under test, and what is known of it from outside."""

    def __init__(self, pool: fastpool.Pool[Any], native: bool, proxy: FaultProxy | None) -> None:
        self.pool = pool
        self.native = native
        self.proxy = proxy
        self.name = pool.name
        self.max_size = pool.config.max_size
        self.disturbed = 0.0
        """Until when its network cannot be trusted; infinity while a fault is on."""
        self.most_seen = 0

    def run(self, conn: Any, sql: str, stream: Any = None, **params: Any) -> list[list[Any]]:
        """The rows of *sql* on this kind of connection."""
        if self.native:
            rows = conn.run(sql, stream=stream, **params)
            return [] if rows is None else list(map(list, rows))
        sql, names = _positional(sql)
        cursor = conn.cursor()
        cursor.execute(sql, tuple(params[name] for name in names), stream=stream)
        return [] if cursor.description is None else list(map(list, cursor.fetchall()))

    def call(self, view: Any, sql: str, **params: Any) -> list[list[Any]]:
        """The pool's own shortcut: acquire, run, release."""
        if self.native:
            return list(map(list, view.run(sql, **params) or ()))
        sql, names = _positional(sql)
        return list(map(list, view.execute(sql, tuple(params[name] for name in names))))


class Admin:
    """A plain connection beside the pools, made again after a restart."""

    def __init__(self, server: LocalPostgres, over: Callable[[], bool] = lambda: False) -> None:
        self._server = server
        self._over = over
        self._conn: Any = None

    def run(self, sql: str, stream: Any = None, **params: Any) -> Any:
        """The rows; tried again for 20 s while the server is away."""
        deadline = time.monotonic() + 20
        while True:
            try:
                if self._conn is None:
                    self._conn = pg8000.native.Connection(
                        self._server.user,
                        host=self._server.host,
                        port=self._server.port,
                        database=self._server.dbname,
                        ssl_context=False,
                        application_name="admin",
                        timeout=20,
                    )
                return self._conn.run(sql, stream=stream, **params)
            except Exception as error:
                gone = pg8000.native.InterfaceError, OSError
                code = error.args[0].get("C", "") if _is_report(error) else ""
                if not isinstance(error, gone) and code[:3] != "57P":
                    raise
                self.close()
                if stream is not None:
                    stream.seek(0)
                    stream.truncate()
                if time.monotonic() > deadline or self._over():
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        """Close the connection."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(Exception):
                conn.close()


def _is_report(error: BaseException) -> bool:
    return bool(error.args) and isinstance(error.args[0], dict)


def kind_of(error: BaseException) -> str:
    """A short name, the same for all errors of one kind."""
    name = type(error).__name__
    if _is_report(error):
        return f"{name} {error.args[0].get('C')}"
    outcome = getattr(error, "outcome", None)
    if outcome is not None:
        return f"{name} ({outcome})"
    if isinstance(error, pg8000.native.InterfaceError):
        return f"{name}: {error}"
    return name


class World:
    """One soak."""

    def __init__(self, seed: int, keep_going: bool) -> None:
        self.seed = seed
        self.keep_going = keep_going
        self.began = time.monotonic()
        self.over = threading.Event()
        """No further work."""
        self.calm = threading.Event()
        """No further faults."""
        self.settled_at = math.inf
        """From this time on nothing may fail any more."""
        self.book = Book()
        self.targets: list[Target] = []
        self.findings: list[str] = []
        self.lost_leases = 0
        self.unclosed = 0
        self.errands: Any = None
        self.ear: Any = None
        self._counters: list[tuple[str, Counter[str]]] = []
        self.overshoots: deque[tuple[float, float, float, str]] = deque(maxlen=10_000)
        """Waits that ended in a timeout: begun, ended, seconds too long, what it was."""

    def rng(self, name: str) -> random.Random:
        """Each part draws from its own sequence, so that the others' pace is no matter."""
        return random.Random(f"{self.seed} {name}")

    def counter(self, what: str) -> Counter[str]:
        """A counter for one thread; :meth:`total` adds them up."""
        counter: Counter[str] = Counter()
        self._counters.append((what, counter))
        return counter

    def total(self, what: str) -> Counter[str]:
        """All counters of that name together, as far as they have come."""
        total: Counter[str] = Counter()
        for name, counter in list(self._counters):
            if name == what:
                for key, count in list(counter.items()):
                    total[key] += count
        return total

    def found(self, what: str, error: BaseException | None = None) -> None:
        """Something is wrong. The first finding ends the run."""
        text = f"after {time.monotonic() - self.began:.2f} s: {what}"
        if error is not None:
            told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            text += "\n" + told.rstrip()
        if len(self.findings) < 40:
            self.findings.append(text)
        if not self.keep_going:
            self.over.set()

    def end(self) -> None:
        """Let go of the pools."""
        self.targets.clear()
        self.errands = self.ear = None

    def stacks(self) -> str:
        """Where every thread is."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = []
        for ident, frame in sys._current_frames().items():
            where = "".join(traceback.format_stack(frame)[-8:])
            parts.append(f"-- {names.get(ident, ident)}\n{where}")
        return "\n".join(parts)

    def state(self) -> str:
        """All pools, for evidence."""
        return "\n".join(f"{target.pool!r}; {target.pool.stats()}" for target in self.targets)


class Log(logging.Handler):
    """Takes no lock: a thread that is interrupted in it would keep it for ever."""

    EXPECTED = ("reset_failed", "connect_failed", "hook_failed")

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world
        self._counts = world.counter("log")

    def handle(self, record: logging.LogRecord) -> bool:
        event: str = record.event  # type: ignore[attr-defined]
        self._counts[f"{record.levelname}: {event}"] += 1
        if record.levelno >= logging.ERROR and event not in self.EXPECTED:
            error = record.exc_info[1] if record.exc_info else None
            self._world.found(f"logged: {record.getMessage()}", error)
        return True
