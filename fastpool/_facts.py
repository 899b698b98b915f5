"""What a pool knows when a caller gets nothing: who holds, who waits, how dialling goes.

Looked up when it is asked for. A moment's picture, like all that is only told.
"""

from __future__ import annotations

import dataclasses
import threading
import time

from ._impl import Core, Entry, Waiter
from ._opener import Opener, describe
from .config import PoolConfig
from .drivers.base import BUSY, TRANSACTION
from .stats import Activity, Facts, Holder, Waiting

__all__ = ["entangled", "gather", "holder_of", "holders", "thread_names"]


def gather(core: Core, opener: Opener, config: PoolConfig, waited: float) -> Facts:
    """The facts for a caller who has *waited* so long."""
    now, names = time.monotonic(), thread_names()
    error, seen = opener.last_error, core.snapshot()
    return Facts(
        waited=waited,
        size=seen["size"],
        max_size=seen["max_size"],
        idle=seen["idle"],
        established=seen["held"] + seen["idle"] + seen["leased"],
        holders=tuple(holders(core)),
        waiting=seen["waiting"],
        waiters=tuple(_waiting(waiter, core.now(), names) for waiter in core.waiters()[:1]),
        connecting=seen["connecting"],
        backoff=opener.backoff,
        down_for=None if opener.down_since is None else now - opener.down_since,
        error=None if error is None else describe(error),
        error_age=None if error is None else now - opener.last_error_at,
        error_is_news=opener.last_error_at > opener.last_success_at,
        leak_threshold=config.leak_threshold,
    )


def entangled(facts: Facts, core: Core) -> Facts:
    """The same, with all waiters that hold a connection, instead of the first one."""
    names = thread_names()
    threads = {holder.thread_id for holder in facts.holders}
    waiters = [waiter for waiter in core.waiters() if waiter.thread in threads]
    return dataclasses.replace(
        facts, waiters=tuple(_waiting(waiter, core.now(), names) for waiter in waiters)
    )


def holders(core: Core) -> list[Holder]:
    """Who has a connection now, the longest first."""
    now, names = core.now(), thread_names()
    held = [
        holder_of(entry, now, names)
        for entry in list(core.entries)
        if entry.holder not in (0, 1)  # 1: the pool's own threads
    ]
    return sorted(held, key=lambda holder: -holder.age)


def holder_of(entry: Entry, now: float, names: dict[int | None, str]) -> Holder:
    """Who has that connection, and what happens on it."""
    state, thread, alive = entry.state, entry.thread, not entry.abandoned()
    activity: Activity = "idle in transaction" if state.flags & TRANSACTION else "idle"
    running = None
    if state.flags & BUSY:
        activity, running = "active", max(0.0, time.monotonic() - state.entered)
    return Holder(
        site=entry.site(),
        thread_id=thread,
        thread_name=names.get(thread, "?") if alive else "?",
        age=max(0.0, now - entry.since),
        state=activity,
        running=running,
        alive=alive,
    )


def _waiting(waiter: Waiter, now: float, names: dict[int | None, str]) -> Waiting:
    return Waiting(
        site=waiter.site(),
        thread_id=waiter.thread,
        thread_name=names.get(waiter.thread, "?"),
        age=max(0.0, now - waiter.since),
    )


def thread_names() -> dict[int | None, str]:
    """By identifier, of all threads that the threading module knows."""
    return {thread.ident: thread.name for thread in threading.enumerate()}
