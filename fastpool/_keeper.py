"""Keeps the pool in shape: one thread, asleep until something is due.

* **Closing.** A retired connection is closed here, off the caller's thread, in
  steps that never block (:meth:`Driver.close`), all of them at once. Its slot is
  free when the server has closed its side, at the latest after ``close_timeout``:
  so the server never counts more connections than ``max_size``.
* **Replacing.** A connection near the end of its life is replaced before it
  expires: the new one first where there is room, else the old one first, one at
  a time.
* **Trimming.** Idle for longer than ``max_idle_time``: closed, down to
  ``min_size`` and ``min_idle``, the coldest first.
* **Sorting out.** What is seen to be dead is closed, at least once every
  ``health_check_period``.
* **Pinging.** An idle connection gets a round trip before it has been silent for
  ``check_after_idle``, so that a checkout need not.
* **Watching.** A connection held longer than ``leak_threshold`` is logged once.
"""

from __future__ import annotations

import functools
import io
import math
import os
import select
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from ._diagnosis import standing
from ._facts import holder_of, thread_names
from ._fork import start_thread
from ._impl import Core, Entry
from ._logs import Log
from ._opener import Opener
from ._turnaround import DEAD, Turnaround
from .config import PoolConfig
from .drivers.base import Driver, Wait

__all__ = ["Keeper"]

# lead: how long before its end a connection is replaced, as a part of the limit.
_LEAD = 0.1
_SHORTEST = 0.01


class _Closing:
    """One connection on its way out."""

    def __init__(self, entry: Entry, steps: Generator[Wait, None, None], deadline: float) -> None:
        self.entry = entry
        self.steps = steps
        self.deadline = deadline
        self.fd = -1


class _Bell:
    """Wakes the thread. Its descriptors live as long as somebody could ring:
    one that was closed earlier might be another's by then."""

    def __init__(self) -> None:
        near, far = os.pipe()
        os.set_blocking(near, False)
        os.set_blocking(far, False)
        # Not theirs to close: they may be collected first, and would complain.
        self._near = io.FileIO(near, closefd=False)
        self._far = io.FileIO(far, "w", closefd=False)
        self.fd, self._far_fd = near, far
        # C from end to end: at the entry of a Python function an interrupt may come,
        # and then nobody would close what the interrupted thread has retired. A full
        # pipe is no error here: the thread is awake.
        self.ring = functools.partial(self._far.write, b"\0")

    def hush(self) -> None:
        self._near.read(4096)

    # At interpreter exit the names of this module may be gone already.
    def close(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "_far_fd") and not self._far.closed:
            self._far.close()  # a late ring raises, and reaches no descriptor
            close(self.fd)
            close(self._far_fd)

    __del__ = close


class Keeper:
    """The maintenance thread of one pool."""

    def __init__(
        self, core: Core, opener: Opener, turnaround: Turnaround, driver: Driver[Any], log: Log
    ) -> None:
        self._core = core
        self._opener = opener
        self._turnaround = turnaround
        self._driver = driver
        self._log = log
        self._ending = False
        self._begin()
        # Where a fork has ended the thread, a dial is what needs it again.
        opener.on_thread = self.start

    def _begin(self) -> None:
        """As at birth; also in a forked child, but for :attr:`_ending`."""
        self._bell = _Bell()
        self.wake = self._bell.ring
        """Something is to be closed, or has changed. Safe anywhere."""
        self._poller = select.poll()
        self._poller.register(self._bell.fd, select.POLLIN)
        self._closings: set[_Closing] = set()
        self._starting = threading.RLock()
        # running: what the running thread was given, and it alone.
        self._running: object = None
        self._started = False
        self._pausing = False  # a fork is being made
        self._due = 0.0
        self._asked = False  # about the server's idle_session_timeout
        self._leaks: dict[Entry, int] = {}
        self.closed: dict[str, int] = {}
        """Connections closed so far, by reason."""
        self.emptied = threading.Event()
        """The pool is closed, its last slot is free, and the thread has ended."""

    @property
    def config(self) -> PoolConfig:
        return self._turnaround.config

    def start(self) -> None:
        """Start the thread, unless it runs, or after the fork that is being made."""
        with self._starting:
            if self._running is None and not self._pausing and not self.emptied.is_set():
                mine = object()
                start_thread(functools.partial(self._run, mine))
                self._running = mine
            self._started = True

    def tend(self) -> None:
        """Look at everything now: settings have changed."""
        self._due = 0.0
        self.wake()

    def end(self) -> None:
        """The pool is closed: end the thread when the last slot is free. Idempotent."""
        self._ending = True
        if self._started:
            self.wake()
        else:
            self.emptied.set()

    # -- forks -----------------------------------------------------------------

    def pause(self) -> None:
        """End the thread when it next has time; what it has begun is kept."""
        self._pausing = True
        self.wake()

    def resume(self) -> None:
        """Go on, in the parent."""
        with self._starting:
            self._pausing = False
        if self._started:
            try:
                self.start()
            except RuntimeError as error:  # no room; the next thread that dials tries again
                self._log.warning("no_thread", "cannot start a thread: %s", error)

    def begin_in_child(self) -> None:
        """Begin anew in a forked child: what was being closed is the parent's."""
        closings, bell = self._closings, self._bell
        self._begin()
        bell.close()
        closings.clear()
        if self._ending:
            self.emptied.set()

    # -- the thread ------------------------------------------------------------

    def _run(self, mine: object) -> None:
        try:
            while True:
                if self._leaves(mine):
                    return
                self._take_closings()  # some end at once
                if self._ending and self._core.size == 0:
                    break
                if self._core.now() >= self._due:
                    self._due = math.inf  # unless somebody asks for less meanwhile
                    self._due = min(self._due, self._core.now() + self._tend())
                else:  # the bell, which looking may have hushed, is answered first
                    self._sleep(self._due - self._core.now())
        except BaseException:
            self._log.exception("keeper_died", "the maintenance thread died")
            self.emptied.set()
            raise
        self.emptied.set()

    def _leaves(self, mine: object) -> bool:
        """Is a fork being made, or was one, and this its child?"""
        with self._starting:
            if self._pausing and self._running is mine:
                self._running = None
            return self._running is not mine

    def _sleep(self, seconds: float) -> None:
        """Until *seconds* have passed, :meth:`wake`, or a closing can go on."""
        now = time.monotonic()
        for closing in self._closings:
            seconds = min(seconds, closing.deadline - now)
        watched = {closing.fd: closing for closing in self._closings}
        for fd, _ in self._poller.poll(math.ceil(max(0.0, min(seconds, 3600.0)) * 1000)):
            if fd == self._bell.fd:
                self._bell.hush()
            else:
                self._advance(watched[fd])
        now = time.monotonic()
        for closing in [c for c in self._closings if c.deadline <= now]:
            self._log.warning(
                "slow_close",
                "a server did not close its side within %g s",
                self.config.close_timeout,
            )
            self._end(closing)

    # -- closing ---------------------------------------------------------------

    def _take_closings(self) -> None:
        while True:
            try:
                entry = self._core.closing.popleft()
            except IndexError:
                return
            self.closed[entry.reason] = self.closed.get(entry.reason, 0) + 1
            hook = self.config.before_close
            if hook is not None:
                try:
                    self._turnaround.call("before_close", hook, entry.conn)
                except BaseException:  # nobody else would hear of it
                    self._log.exception("hook_failed", "the before_close hook failed")
            deadline = time.monotonic() + self.config.close_timeout
            try:
                steps = self._driver.close(entry.conn)
            except Exception:  # a driver that misbehaves must not cost the slot
                self._log.exception("close_failed", "a connection could not be closed")
                self._core.bury(entry)
                self._opener.wake()
                continue
            closing = _Closing(entry, steps, deadline)
            self._closings.add(closing)
            self._advance(closing)

    def _unwatch(self, closing: _Closing) -> None:
        if closing.fd >= 0:
            self._poller.unregister(closing.fd)
            closing.fd = -1

    def _advance(self, closing: _Closing) -> None:
        """Take the next step; over, or failed: the slot is free."""
        self._unwatch(closing)  # first: the step may close the descriptor
        try:
            fd, events = next(closing.steps)
        except StopIteration:
            self._end(closing)
        except Exception as error:
            self._log.info("close_failed", "closing a connection: %s", error)
            self._end(closing)
        else:
            if fd >= 0:
                closing.fd = fd
                self._poller.register(fd, events)

    def _end(self, closing: _Closing) -> None:
        self._unwatch(closing)
        self._closings.discard(closing)
        try:
            closing.steps.close()
        except Exception:  # a driver that misbehaves must not cost the slot
            self._log.exception("close_failed", "a connection could not be closed")
        self._core.bury(closing.entry)
        self._opener.wake()

    # -- tending ---------------------------------------------------------------

    def _tend(self) -> float:
        """Do what is due; returns the seconds until the next look."""
        self._opener.tell()  # who waits for a size may wait for another now
        config, core = self.config, self._core
        now = core.now()
        rest = config.health_check_period
        if config.check is not None:
            self._sort_out()
        idle = core.idle_entries()
        if idle and not self._asked:
            self._ask_idle_limit(idle[-1])
        rest = min(rest, self._replace(idle, now))
        if config.max_idle_time is not None:
            rest = min(rest, self._trim(idle, now, config.max_idle_time))
        if config.check is not None and config.check_after_idle is not None:
            rest = min(rest, self._ping(idle, now, config.check_after_idle))
        if config.leak_threshold is not None:
            rest = min(rest, self._watch_leaks(now, config.leak_threshold))
        if self._opener.wanted:
            self._opener.wake()
        return max(rest, _SHORTEST)

    def _ask_idle_limit(self, entry: Entry) -> None:
        """Once: does the server end idle sessions before the pool would? And is there
        a pooler before it that has not shown?"""
        limit = self.config.max_idle_time
        if not self._core.hold(entry):
            return
        self._asked = True
        try:
            ends = self._driver.idle_limit(entry.conn)
        except Exception as error:
            self._log.info("idle_limit", "idle_session_timeout is not known: %s", error)
        else:
            self._opener.note_pooler(entry.conn)
            if ends is not None and (limit is None or ends < limit):
                self._turnaround.liveness.ends_idle(f"ends sessions idle for {ends:g} s")
        self._core.put_below(entry)

    def _sort_out(self) -> None:
        """Close what the kernel knows to be dead."""
        for entry in self._core.idle_entries():
            # Descriptors are closed by this thread alone.
            if self._turnaround.events(entry) & DEAD and self._core.retire(entry, 0, "dead"):
                self._turnaround.liveness.lost(entry)

    def _replace(self, idle: list[Entry], now: float) -> float:
        if self.config.max_lifetime is None:
            return math.inf
        lead = self.config.max_lifetime * _LEAD
        aging = sorted((e for e in idle if e.expires - lead <= now), key=lambda e: e.expires)
        core = self._core
        spare = core.held + core.idle + core.leased - core.min_size
        for entry in aging:
            full = core.held + core.idle + core.leased >= core.ceiling
            if entry.expires <= now or spare > 0 or full:
                core.retire(entry, 0, "max_lifetime")
                spare -= 1
        if aging and spare <= 0 and core.size < core.ceiling:
            core.ask()
            self._opener.wake()
        rest = min([lead / 2, *(e.expires - lead - now for e in idle if e not in aging)])
        if aging:
            # Those born together go one by one, in two looks each, all in time.
            rest = min(rest, (aging[0].expires - now) / (2 * len(aging) + 1))
        return rest

    def _trim(self, idle: list[Entry], now: float, limit: float) -> float:
        core = self._core
        surplus = min(
            core.idle + core.leased + core.held - core.min_size, core.idle - core.min_idle
        )
        for entry in sorted(idle, key=lambda e: e.since):
            if now - entry.since < limit:
                return entry.since + limit - now
            if surplus > 0 and core.retire(entry, 0, "max_idle_time"):
                surplus -= 1
        return limit

    def _ping(self, idle: list[Entry], now: float, limit: float) -> float:
        rest = limit / 2
        for entry in idle:
            if entry.due - limit / 2 > now:
                rest = min(rest, entry.due - limit / 2 - now)
            elif entry.expires > now and self._core.hold(entry):
                reason = self._turnaround.examine(entry, self.config.ping_timeout)
                if reason is None:
                    self._core.put_below(entry)
                else:
                    self._core.retire(entry, entry.holder, reason)
                # The next answer may take long too; who closes need not wait for it.
                self._take_closings()
                self._sleep(0.0)
        return rest

    def _watch_leaks(self, now: float, limit: float) -> float:
        seen: dict[Entry, int] = {}
        names = thread_names()
        for entry in list(self._core.entries):
            if entry.holder > 1 and now - entry.since >= limit:
                seen[entry] = entry.uses
                if self._leaks.get(entry) != entry.uses:
                    holder = holder_of(entry, now, names)
                    self._log.warning(
                        "leak",
                        "a connection has been held for %.1f s, since its acquire at %s",
                        holder.age,
                        standing(holder),
                    )
        self._leaks = seen
        return limit / 4
