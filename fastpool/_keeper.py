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
* **Pinging.** An idle connection gets a round trip before it has been silent for
  ``check_after_idle``, so that a checkout need not.
* **Watching.** A connection held longer than ``leak_threshold`` is logged once.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Generator
from typing import Any

from ._impl import Core, Entry
from ._opener import Opener
from ._turnaround import Turnaround
from .config import PoolConfig
from .drivers.base import Driver, Wait

__all__ = ["Keeper"]

log = logging.getLogger("fastpool")

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


class Keeper:
    """The maintenance thread of one pool."""

    def __init__(
        self, core: Core, opener: Opener, turnaround: Turnaround, driver: Driver[Any], name: str
    ) -> None:
        self._core = core
        self._opener = opener
        self._turnaround = turnaround
        self._driver = driver
        self._name = name
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._wake_read, select.POLLIN)
        self._closings: set[_Closing] = set()
        self.started = False
        self._stopped = False
        self._asked = False  # about the server's idle_session_timeout
        self._leaks: dict[Entry, int] = {}
        self.closed: dict[str, int] = {}
        """Connections closed so far, by reason."""
        self.ending = False
        """The pool is closed: say so when its last slot is free."""
        self.dropped = False
        """Nobody waits for that: end the thread then."""
        self.emptied = threading.Event()

    @property
    def config(self) -> PoolConfig:
        return self._turnaround.config

    def start(self) -> None:
        """Start the thread."""
        self.started = True
        _thread.start_new_thread(self._run, ())

    def wake(self) -> None:
        """Something is to be closed, or has changed. Safe anywhere."""
        with contextlib.suppress(OSError):  # full: it is awake; closed: it is gone
            self._wake_write.send(b"\0")

    def stop(self) -> None:
        """End the thread; what is still closing is dropped. Idempotent."""
        self._stopped = True
        if self.started:
            self.wake()
        else:
            self._free()

    # -- the thread ------------------------------------------------------------

    def _run(self) -> None:
        due = 0.0
        try:
            while not self._stopped:
                self._take_closings()
                if self._core.now() >= due:
                    due = self._core.now() + self._tend()
                self._sleep(due - self._core.now())
                if self.ending and self._core.size == 0:
                    self.emptied.set()
                    if self.dropped:
                        self._stopped = True
        except BaseException:
            log.exception("pool %r: the maintenance thread died", self._name)
            raise
        finally:
            self._free()

    def _free(self) -> None:
        for closing in self._closings:
            closing.steps.close()
        self._wake_read.close()
        self._wake_write.close()

    def _sleep(self, seconds: float) -> None:
        """Until *seconds* have passed, :meth:`wake`, or a closing can go on."""
        now = time.monotonic()
        for closing in self._closings:
            seconds = min(seconds, closing.deadline - now)
        watched = {closing.fd: closing for closing in self._closings}
        for fd, _ in self._poller.poll(math.ceil(max(0.0, min(seconds, 3600.0)) * 1000)):
            if fd == self._wake_read.fileno():
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
            else:
                self._advance(watched[fd])
        now = time.monotonic()
        for closing in [c for c in self._closings if c.deadline <= now]:
            log.warning(
                "pool %r: a server did not close its side within %g s",
                self._name,
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
                except Exception:
                    log.exception("pool %r: the before_close hook failed", self._name)
            deadline = time.monotonic() + self.config.close_timeout
            closing = _Closing(entry, self._driver.close(entry.conn), deadline)
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
            log.info("pool %r: closing a connection: %s", self._name, error)
            self._end(closing)
        else:
            if fd >= 0:
                closing.fd = fd
                self._poller.register(fd, events)

    def _end(self, closing: _Closing) -> None:
        self._unwatch(closing)
        self._closings.discard(closing)
        closing.steps.close()
        self._core.bury(closing.entry)
        self._opener.wake()

    # -- tending ---------------------------------------------------------------

    def _tend(self) -> float:
        """Do what is due; returns the seconds until the next look."""
        config, core = self.config, self._core
        now = core.now()
        rest = config.health_check_period
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
        if core.deficit() > 0:
            self._opener.wake()
        return max(rest, _SHORTEST)

    def _ask_idle_limit(self, entry: Entry) -> None:
        """Once: does the server end idle sessions before the pool would?"""
        limit = self.config.max_idle_time
        if not self._core.hold(entry):
            return
        self._asked = True
        try:
            ends = self._driver.idle_limit(entry.conn)
        except Exception as error:
            log.info("pool %r: idle_session_timeout is not known: %s", self._name, error)
        else:
            if ends is not None and (limit is None or ends < limit):
                log.warning(
                    "pool %r: the server ends sessions idle for %g s (idle_session_timeout); "
                    "max_idle_time=%s should be less",
                    self._name,
                    ends,
                    limit,
                )
        self._core.put_below(entry)

    def _replace(self, idle: list[Entry], now: float) -> float:
        if self.config.max_lifetime is None:
            return math.inf
        lead = self.config.max_lifetime * _LEAD
        aging = sorted((e for e in idle if e.expires - lead <= now), key=lambda e: e.expires)
        core = self._core
        spare = core.connecting + core.held + core.idle + core.leased - core.min_size
        for entry in aging:
            room = core.size < core.max_size
            if entry.expires <= now or spare > 0 or not room:
                core.retire(entry, 0, "max_lifetime")
                spare -= 1
                if not room:
                    break
        if aging and spare <= 0 and core.size < core.max_size:
            core.ask()
            self._opener.wake()
        return lead / 2

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
                if self._turnaround.alive(entry):
                    self._core.put_below(entry)
                else:
                    self._core.retire(entry, entry.holder, "dead")
        return rest

    def _watch_leaks(self, now: float, limit: float) -> float:
        seen: dict[Entry, int] = {}
        for entry in list(self._core.entries):
            if entry.holder > 1 and now - entry.since >= limit:
                seen[entry] = entry.uses
                if self._leaks.get(entry) != entry.uses:
                    log.warning(
                        "pool %r: a connection has been held for %.1f s, since its acquire at %s "
                        "(thread %d)",
                        self._name,
                        now - entry.since,
                        entry.site(),
                        entry.thread,
                    )
        self._leaks = seen
        return limit / 4
