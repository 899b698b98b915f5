"""One pool's parts, put together, and their answers to the core.

The core asks (``_core.House``); this passes each question to the room that
knows. It does not know :class:`fastpool.Pool`: a pool that is dropped without
``close()`` can be collected, and ends its threads then.
"""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from . import _fork
from ._diagnosis import judge, knot, tell
from ._facts import entangled, gather, holders
from ._hosts import Hosts
from ._impl import Core, Entry, Lease, __impl__
from ._keeper import Keeper
from ._liveness import Liveness
from ._logs import Log
from ._opener import Opener, describe
from ._runtime import poll, threads_are_told_apart
from ._transaction import Transaction
from ._turnaround import DEAD, Turnaround
from .config import PoolConfig
from .conninfo import ConnInfo
from .drivers.base import TRANSACTION, Driver
from .errors import (
    DeadlineExceeded,
    PoolClosed,
    PoolDeadlock,
    PoolTimeout,
    TooManyRequests,
    TransactionAborted,
)
from .stats import Facts, Holder, PoolStats

__all__ = ["House"]

_SELDOM = 10.0
"""Seconds between two warnings that a pool is exhausted."""


class Beside(Protocol):
    """What has a connection of its own beside the pool."""

    def abandon(self) -> None:
        """Close in a forked child, without a word to the server."""


class House:
    """The parts of one pool."""

    def __init__(
        self, conninfo: ConnInfo, driver: Driver[Any], config: PoolConfig, name: str
    ) -> None:
        if config.pgbouncer:
            conninfo.fit_pgbouncer()
        self.name = name
        self._log = Log(name)
        self.driver = driver
        self._conninfo = conninfo
        # When it was said last that callers get nothing; what was handed out at the
        # last deadlock that was logged.
        self._exhausted_at = -math.inf
        self._deadlocked_at = -1
        self._opening = threading.RLock()
        self.listeners: weakref.WeakSet[Beside] = weakref.WeakSet()
        """What has connections beside the pool."""
        self.core = Core()
        hosts = Hosts(conninfo)
        liveness = Liveness(self.core, hosts, driver, self._log)
        self.turnaround = Turnaround(self.core, liveness, driver, config, self._log)
        self.opener = Opener(self.core, hosts, self.turnaround, driver, self._log)
        self.keeper = Keeper(self.core, self.opener, self.turnaround, driver, self._log)
        self.admit = self.turnaround.admit
        self.settle = self.turnaround.settle
        self.finish = self.turnaround.finish
        self.queueing = self.turnaround.queueing
        self.cancel = self.turnaround.cancel
        self.wanted = self.opener.wake
        self.disposed = self.keeper.wake
        self.core.house = self
        self.configure(config)
        _fork.register(self)

    @property
    def config(self) -> PoolConfig:
        """The settings in force."""
        return self.turnaround.config

    def reconfigure(self, settings: Mapping[str, Any]) -> None:
        """Change these *settings* on the live pool; all of them, or none."""
        core = self.core
        with self._opening:  # whoever changes others at this moment
            before = self.config
            config = before.replace(**settings)
            if config.pgbouncer:
                self._conninfo.fit_pgbouncer()
            self.configure(config)
        ages = ("max_lifetime", "max_lifetime_jitter")
        if any(getattr(config, name) != getattr(before, name) for name in ages):
            for entry in list(core.entries):
                self.opener.age(entry)
        for entry in reversed(core.idle_entries()):
            alive = core.connecting + core.held + core.idle + core.leased
            if alive > config.max_size or core.idle > config.max_idle:
                core.retire(entry, 0, "max_idle")
        self.wanted()
        self.keeper.tend()

    def configure(self, config: PoolConfig) -> None:
        """Put *config* in force; it has been checked already."""
        before = self.config
        try:
            self._put_in_force(config)
        except BaseException:  # an interrupt
            self._put_in_force(before)
            raise

    def _put_in_force(self, config: PoolConfig) -> None:
        hooks = (
            config.before_connect,
            config.after_connect,
            config.before_acquire,
            config.after_release,
            config.before_close,
        )
        self.turnaround.config = config
        self.core.configure(
            timeout=config.timeout,
            min_size=config.min_size,
            max_size=config.max_size,
            min_idle=config.min_idle,
            max_idle=config.max_idle,
            max_waiting=-1 if config.max_waiting is None else config.max_waiting,
            max_uses=-1 if config.max_uses is None else config.max_uses,
            check_after=math.inf
            if config.check is None or config.check_after_idle is None
            else config.check_after_idle,
            fifo=config.idle_order == "fifo",
            polls=config.check is not None,
            vets=config.check == "ping"
            or callable(config.reset)
            or any(hook is not None for hook in hooks),
            settles=config.after_release is not None
            or config.reset == "discard"
            or callable(config.reset),
        )

    # -- opening and closing ---------------------------------------------------

    def open(self) -> None:
        """Start serving; nothing happens when that was done before."""
        with self._opening:
            if self.core.phase != 0:
                return
            self.keeper.start()  # first: without it nothing would ever be closed
            self.core.start()
        if self.core.deficit() > 0:
            self.opener.wake()

    def close(self, timeout: float) -> None:
        """Serve no one from now on, wait for leases, then take them away."""
        began = time.monotonic()
        self.drop()
        self.opener.tell()
        emptied = self.keeper.emptied
        if emptied.wait(min(timeout, threading.TIMEOUT_MAX)):
            return
        facts = self.facts(timeout)
        if self.core.retire_leased("closed"):
            verdict = judge(facts)
            self._log.warning(
                "closed_in_use",
                "closed after %.2g s with %d connections still in use %s",
                time.monotonic() - began,
                len(facts.holders),
                # Who is at work in them needs no larger pool for that.
                tell(facts, None if verdict == "too small" else verdict, len(facts.holders)),
            )
        if self.core.size > self.core.connecting:
            emptied.wait(self.config.close_timeout + 1.0)

    def drop(self) -> None:
        """End without waiting for anything. The threads end when the last
        connection is closed."""
        self.core.shut()
        self.opener.stop()
        self.keeper.end()

    # -- forks -----------------------------------------------------------------

    def before_fork(self) -> None:
        """End the threads that only wait."""
        self.opener.pause()
        self.keeper.pause()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        self.keeper.resume()
        self.opener.resume()

    def after_fork_in_child(self) -> None:
        """Begin anew: the connections are the parent's, and its threads are not here.

        An open pool stays open, and has threads again when it is asked for a
        connection; a closed one stays closed. Counters start at zero.
        """
        self._opening = threading.RLock()
        connections = self.core.begin_in_child()
        self.driver.forked()
        for conn in connections:
            try:
                self.driver.abandon(conn)
            except Exception:
                self._log.exception("fork", "a connection of the parent's process")
        self.turnaround.begin_in_child()
        self.opener.begin_in_child()
        self.keeper.begin_in_child()
        self.disposed = self.keeper.wake
        for listener in list(self.listeners):
            listener.abandon()
        if self.core.waiting:  # the thread that forked in a signal handler
            self.wanted()

    # -- answers to the core ---------------------------------------------------

    def transaction(self, lease: Lease, **options: Any) -> Transaction:
        """The context manager behind ``lease.transaction()``."""
        return Transaction(self.turnaround, lease, **options)

    def lost(self, site: str) -> None:
        """Tell of a lease that was dropped without release."""
        if sys.is_finalizing():
            return
        warnings.warn(
            f"pool {self.name!r}: a connection acquired at {site} was never released; "
            "it has been taken back",
            ResourceWarning,
            stacklevel=2,
        )

    def taken(self, entry: Entry) -> BaseException | None:
        """The exception for a block whose connection the closing pool took away."""
        if not entry.state.flags & TRANSACTION:
            return None
        return TransactionAborted(
            f"pool {self.name!r} was closed before the block ended: the connection was "
            "taken away, and its open transaction rolled back"
        )

    def refusal(self, kind: str, timeout: float, waited: float, error: Any) -> BaseException:
        """The exception for a caller who gets nothing."""
        if kind == "closed":
            return PoolClosed(f"pool {self.name!r} is closed")
        if kind == "connect":
            if error is None:  # a dial has succeeded just now
                error = self.opener.last_error
            return self.opener.refusal(error)
        if kind == "crowded":
            return self._crowded()
        facts = self.facts(waited)
        verdict = judge(facts)
        limit = f"within {timeout:g} s"
        if kind == "deadline":
            limit = f"before the deadline, after {waited:.3g} s"
        message = f"no connection {limit} {tell(facts, verdict)}"
        cause = self.opener.last_error if facts.error_is_news else None
        if timeout > 0 and self._seldom():
            self._log.warning("exhausted", "%s", message)
        if kind == "deadline":
            exceeded = DeadlineExceeded(f"pool {self.name!r}: {message}", outcome="not_sent")
            exceeded.__cause__ = cause
            return exceeded
        exhausted = PoolTimeout(
            f"pool {self.name!r}: {message}",
            timeout=timeout,
            waited=waited,
            size=facts.size,
            idle=facts.idle,
            waiting=facts.waiting,
            holders=facts.holders,
            verdict=verdict,
            facts=facts,
        )
        exhausted.__cause__ = cause
        return exhausted

    def _crowded(self) -> TooManyRequests:
        core = self.core
        # Even where nobody may wait, somebody who comes later finds one.
        core.ask()
        self.opener.wake()
        message = f"{core.max_waiting} callers wait already (max_waiting={core.max_waiting})"
        if self._seldom():  # many are refused, each in no time
            facts = self.facts(0.0)
            self._log.warning("exhausted", "%s %s", message, tell(facts, judge(facts)))
        size, idle, waiting = core.size, core.idle, core.waiting
        return TooManyRequests(
            f"pool {self.name!r}: {message}; size {size}/{core.max_size}, "
            f"idle {idle}, waiting {waiting}",
            size=size,
            idle=idle,
            waiting=waiting,
            max_waiting=core.max_waiting,
        )

    def _seldom(self) -> bool:
        """Is it time to log again that callers get nothing?"""
        now = time.monotonic()
        if now - self._exhausted_at < _SELDOM:
            return False
        self._exhausted_at = now
        return True

    def deadlock(self, timeout: float) -> BaseException | None:
        """The exception for a caller whose wait has closed a circle, or ``None``."""
        mode, core = self.config.deadlock, self.core
        if mode is None or not threads_are_told_apart():
            return None
        # A lease that was dropped in a cycle of references is held by nobody, and comes
        # back when the collector finds it.
        gc.collect()
        if core.leased < core.max_size:
            return None
        facts = entangled(self.facts(0.0), core)
        message = knot(facts)
        if mode == "log":
            if self._deadlocked_at != core.acquires:
                self._deadlocked_at = core.acquires
                self._log.warning("deadlock", "%s", message)
            return None
        return PoolDeadlock(
            f"pool {self.name!r}: {message}",
            timeout=round(timeout, 6),  # the difference of two times
            waited=0.0,
            size=facts.size,
            idle=facts.idle,
            waiting=facts.waiting,
            holders=facts.holders,
            facts=facts,
        )

    # -- what is known ---------------------------------------------------------

    def facts(self, waited: float) -> Facts:
        """What is known about why a caller gets nothing, who has *waited* so long."""
        return gather(self.core, self.opener, self.config, waited)

    def holders(self) -> list[Holder]:
        """Who has a connection now, the longest first."""
        return holders(self.core)

    def cut_off(self) -> bool:
        """Whether the kernel knows that the server is gone from every connection that
        is in use. Looks at the sockets and touches nothing."""
        used = [entry for entry in list(self.core.entries) if entry.holder not in (0, 1)]
        return bool(used) and all(e.fd >= 0 and poll(e.fd) & DEAD for e in used)

    def stats(self) -> PoolStats:
        """One consistent snapshot."""
        opener = self.opener
        seen = self.core.snapshot()
        error, now = opener.last_error, time.monotonic()
        return PoolStats(
            name=self.name,
            impl=__impl__,
            size=seen["size"],
            idle=seen["idle"],
            in_use=seen["leased"],
            connecting=seen["connecting"],
            closing=seen["closing"],
            checking=seen["held"],
            waiting=seen["waiting"],
            min_size=seen["min_size"],
            max_size=seen["max_size"],
            acquires=seen["acquires"],
            waits=seen["waits"],
            wait_time=seen["wait_time"],
            served_time=seen["served_time"],
            timeouts=seen["timeouts"],
            cancelled=seen["cancelled"],
            rejected=seen["crowded"],
            wait_histogram=seen["histogram"],
            dials=opener.dials,
            dial_failures=opener.dial_failures,
            created=opener.created,
            dial_time=opener.dial_time,
            dial_histogram=tuple(opener.dial_histogram),
            check_time=self.turnaround.check_time,
            check_histogram=tuple(self.turnaround.check_histogram),
            use_time=seen["use_time"],
            use_histogram=seen["use_histogram"],
            closed=dict(self.keeper.closed),
            encryption=opener.encryption,
            pgbouncer=opener.pooled,
            last_connect_error=None if error is None else describe(error),
            last_connect_error_age=None if error is None else now - opener.last_error_at,
        )
