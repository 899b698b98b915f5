"""One pool's parts, put together, and their answers to the core.

The core asks (``_core.House``); this passes each question to the room that
knows. It does not know :class:`fastpool.Pool`: a pool that is dropped without
``close()`` can be collected, and ends its threads then.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
import warnings
from typing import Any

from ._hosts import Hosts
from ._impl import Core, Lease, __impl__
from ._keeper import Keeper
from ._opener import Opener, describe
from ._runtime import poll
from ._turnaround import DEAD, Transaction, Turnaround
from .config import PoolConfig
from .conninfo import ConnInfo
from .drivers.base import Driver
from .errors import (
    DeadlineExceeded,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
    TransactionAborted,
)
from .stats import Holder, PoolStats

__all__ = ["House"]

log = logging.getLogger("fastpool")


_NAMED = 5
"""Holders that a PoolTimeout's text names; all are in its ``holders``."""


class House:
    """The parts of one pool."""

    def __init__(
        self, conninfo: ConnInfo, driver: Driver[Any], config: PoolConfig, name: str
    ) -> None:
        self.name = name
        self.driver = driver
        self._opening = threading.RLock()
        self.core = Core()
        self.turnaround = Turnaround(self.core, driver, config, name)
        self.opener = Opener(self.core, Hosts(conninfo), self.turnaround, driver, name)
        self.keeper = Keeper(self.core, self.opener, self.turnaround, driver, name)
        self.admit = self.turnaround.admit
        self.settle = self.turnaround.settle
        self.finish = self.turnaround.finish
        self.queueing = self.turnaround.queueing
        self.cancel = self.turnaround.cancel
        self.wanted = self.opener.wake
        self.disposed = self.keeper.wake
        self.core.house = self
        self.configure(config)

    @property
    def config(self) -> PoolConfig:
        """The settings in force."""
        return self.turnaround.config

    def reconfigure(self, config: PoolConfig) -> None:
        """Put *config* in force on the live pool; it has been checked already."""
        core, before = self.core, self.config
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
        self.drop()
        self.opener.tell()
        emptied = self.keeper.emptied
        if emptied.wait(min(timeout, threading.TIMEOUT_MAX)):
            return
        holders = self.holders()
        if self.core.retire_leased("closed"):
            log.warning(
                "pool %r: closed after %g s with %d connections still in use: %s",
                self.name,
                timeout,
                len(holders),
                "; ".join(map(str, holders)),
            )
        if self.core.size > self.core.connecting:
            emptied.wait(self.config.close_timeout + 1.0)

    def drop(self) -> None:
        """End without waiting for anything. The threads end when the last
        connection is closed."""
        self.core.shut()
        self.opener.stop()
        self.keeper.end()

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

    def refusal(self, kind: str, timeout: float, waited: float, error: Any) -> BaseException:
        """The exception for a caller who gets nothing."""
        if kind == "taken":
            return TransactionAborted(
                f"pool {self.name!r} was closed before the block ended: the connection was "
                "taken away, and its open transaction rolled back"
            )
        if kind == "closed":
            return PoolClosed(f"pool {self.name!r} is closed")
        if kind == "connect":
            if error is None:  # a dial has succeeded just now
                error = self.opener.last_error
            return self.opener.refusal(error)
        core = self.core
        numbers = f"size {core.size}/{core.max_size}, idle {core.idle}, waiting {core.waiting}"
        if kind == "crowded":
            # Even where nobody may wait, somebody who comes later finds one.
            core.ask()
            self.opener.wake()
            return TooManyRequests(
                f"pool {self.name!r}: {core.max_waiting} callers wait already "
                f"(max_waiting={core.max_waiting}; {numbers})"
            )
        opener = self.opener
        cause = opener.last_error if opener.last_error_at > opener.last_success_at else None
        why = "" if cause is None else f"; last connect error: {describe(cause)}"
        holders = self.holders()
        if core.connecting:
            why += f"; being dialled: {core.connecting}"
        if holders:
            why += f"; held by: {'; '.join(map(str, holders[:_NAMED]))}"
            why += f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
        if kind == "deadline":
            exceeded = DeadlineExceeded(
                f"pool {self.name!r}: no connection before the deadline, after {waited:.3g} s "
                f"({numbers}){why}",
                outcome="not_sent",
            )
            exceeded.__cause__ = cause
            return exceeded
        exhausted = PoolTimeout(
            f"pool {self.name!r}: no connection within {timeout:g} s ({numbers}){why}",
            timeout=timeout,
            waited=waited,
            size=core.size,
            idle=core.idle,
            waiting=core.waiting,
            holders=tuple(holders),
        )
        exhausted.__cause__ = cause
        return exhausted

    # -- what is known ---------------------------------------------------------

    def holders(self) -> list[Holder]:
        """Who has a connection now, the longest first."""
        now = self.core.now()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        held = [
            Holder(
                site=entry.site(),
                thread_id=entry.thread,
                thread_name=names.get(entry.thread, "?"),
                age=max(0.0, now - entry.since),
            )
            for entry in list(self.core.entries)
            if entry.holder not in (0, 1)  # 1: the pool's own threads
        ]
        return sorted(held, key=lambda holder: -holder.age)

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
            use_time=seen["use_time"],
            use_histogram=seen["use_histogram"],
            closed=dict(self.keeper.closed),
            encryption=opener.encryption,
            last_connect_error=None if error is None else describe(error),
            last_connect_error_age=None if error is None else now - opener.last_error_at,
        )
