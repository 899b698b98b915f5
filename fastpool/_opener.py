"""Dials.

The core says how many connections are lacking, the opener's threads make them,
one at a time each, at most ``connect_concurrency`` at once. A dial belongs to
the pool and not to a caller: it outlives the caller's patience, and whoever
waits takes what comes first, the new connection or a returned one.

After a failure the next dial waits: 50 ms, then twice as long each time, up to
500 ms, with full jitter. A newly arrived caller may cut that short once 50 ms
have passed since the last attempt. A *permanent* failure (a wrong password, no
such database) also fails everybody who waits, in the server's words, unless
connections are established and may come back; it is remembered for a second.

A server that has no room (53300) is not asked for more than is established for
5 s, then for twice as long each time, up to 30 s, or until a dial succeeds: who
waits then waits for a return. One that starts or stops (57P03) gets the
connections to it back, as soon as they are idle.
"""

from __future__ import annotations

import _thread
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ._fork import start_thread
from ._hosts import Hosts, fits
from ._impl import Core, Entry, State
from ._logs import Log
from ._turnaround import Turnaround
from .config import PoolConfig
from .drivers.base import Driver, hang_up
from .errors import ConnectFailed
from .stats import BUCKETS, bucket

__all__ = ["Opener"]

PERMANENT_FOR = 1.0
"""Seconds for which callers get a permanent failure without a new dial."""
_PERMANENT_BACKOFF = 30.0
_PROBE_AFTER = 0.05
_FULL_FOR, _FULL_FOR_AT_MOST = 5.0, 30.0
_SELDOM = 10.0
"""Seconds between two warnings of an outage that goes on."""
_STARTING = 0.002
"""Seconds in which a started thread is expected to show up."""


class Calls:
    """Calls, and the threads that sleep until there is one; none is lost.

    To make one takes no lock that anybody keeps, so it is safe anywhere, and wherever an
    interrupt strikes in it, the next one wakes who sleeps. (The standard library's
    SimpleQueue would do, but up to Python 3.12 its ``get`` may sleep for ever when its
    timeout passes before it has begun to wait.)
    """

    def __init__(self) -> None:
        self._made: deque[None] = deque()
        # asleep: a lock for each, taken until it is to wake. Only its owner takes it out.
        self._asleep: list[_thread.LockType] = []

    def __len__(self) -> int:
        return len(self._made)

    def make(self, most: float = math.inf) -> None:
        """One who sleeps takes it, or the next who would; none is made beyond *most*."""
        if len(self._made) < most:
            self._made.append(None)
        self._rouse()

    def _rouse(self) -> None:
        # The first, unless it is awake by now and sees to the others. C does it in one
        # go, in which no other thread runs, so that nothing fails: to catch an error here
        # could be to catch an interrupt.
        for lock in self._asleep[:1]:
            kind = type(lock)  # another under gevent
            any(map(kind.release, filter(kind.locked, (lock,))))

    def take(self, seconds: float | None) -> bool:
        """Sleep until there is a call, *seconds* have passed (``None``: no limit), or
        for less: another may be quicker. Was there one?"""
        limit = -1 if seconds is None else min(seconds, _thread.TIMEOUT_MAX)
        lock = _thread.allocate_lock()
        lock.acquire()
        self._asleep.append(lock)
        try:
            if not self._made:  # who made one before does not know of this lock
                lock.acquire(True, limit)
        finally:
            self._asleep.remove(lock)
        try:
            self._made.popleft()
        except IndexError:
            return False
        if self._made:
            self._rouse()
        return True


class Opener:
    """The dialling threads of one pool, and what they learnt."""

    def __init__(
        self, core: Core, hosts: Hosts, turnaround: Turnaround, driver: Driver[Any], log: Log
    ) -> None:
        self._core = core
        self._hosts = hosts
        self._turnaround = turnaround
        self._driver = driver
        self._log = log
        self.on_thread: Callable[[], None] = lambda: None
        """Called in each new thread of this pool, before it dials."""
        self._stopped = False
        self._begin()

    def _begin(self) -> None:
        """As at birth; also in a forked child, but for :attr:`_stopped`."""
        self._calls = Calls()
        # running: the threads that have entered and not left, by their own word.
        self._running: set[int] = set()
        self._counting = threading.RLock()  # a finalizer may stop the pool in one of them
        self._started_at = -math.inf
        self._pausing = False  # a fork is being made
        # not_before: no dial before this time, unless a caller asks for a probe.
        self._not_before = 0.0
        self._attempted = -math.inf
        self._failures = 0
        # full_until: the core's ceiling is lowered up to this time; full_for: for so long.
        self._full_until = -math.inf
        self._full_for = 0.0
        self._warned_at = -math.inf
        self.dials = 0
        """Attempts so far, failed ones included."""
        self.dial_failures = 0
        self.created = 0
        """Connections made."""
        self.dial_time = 0.0
        """Seconds spent in dials that ended well."""
        self.dial_histogram = [0] * BUCKETS
        """Of those dials, as the core's of waits."""
        self.last_error: BaseException | None = None
        self.last_error_at = -math.inf
        self.last_success_at = -math.inf
        self.down_since: float | None = None
        self.permanent: BaseException | None = None
        """The last dial's failure, if dialling again would fail the same way."""
        self.encryption: str | None = None
        """Of the last connection made: ``none``, ``unverified`` or ``verified``."""
        self._pooler_found = False
        self.progress = threading.Condition()
        """Notified after each dial."""

    begin_in_child = _begin
    """Begin anew in a forked child: what was being dialled is the parent's."""

    @property
    def config(self) -> PoolConfig:
        return self._turnaround.config

    @property
    def wanted(self) -> bool:
        """Is there something to dial, or a lowered ceiling to lift in time?"""
        return self._core.deficit() > 0 or self._core.ceiling < self._core.max_size

    def wake(self) -> None:
        """A dial may be wanted. Safe anywhere, also in finalizers, in signal
        handlers and where an interrupt strikes: it takes no lock, and whether
        there is a thread is for the threads to say."""
        if self._stopped or self._core.phase == 0:
            return
        if time.monotonic() - self._started_at > _STARTING:
            self._start()
        self._calls.make(len(self._running) + 1)

    def _start(self) -> None:
        """One more thread, unless there are enough; one too many ends at once."""
        if len(self._running) < self.config.connect_concurrency:
            # Before it is: a fork that undoes the start forgets this time.
            self._started_at = time.monotonic()
            try:
                start_thread(self._run)
            except BaseException as error:
                self._started_at = -math.inf
                if not isinstance(error, RuntimeError):
                    raise
                # No room for threads; the next call tries again.
                level = logging.WARNING if self._seldom() else logging.DEBUG
                self._log.log(level, "no_thread", "cannot start a thread: %s", error)

    def stop(self) -> None:
        """End the threads, each when its dial is over. Idempotent."""
        self._stopped = True
        with self._counting:
            for _ in self._running:
                self._calls.make()

    # -- forks -----------------------------------------------------------------

    def pause(self) -> None:
        """End the threads that only wait, each other one when its dial is over."""
        self._pausing = True
        for _ in range(len(self._running)):
            self._calls.make()

    def resume(self) -> None:
        """Go on, in the parent: with threads, if there is something to do."""
        with self._counting:  # who leaves for the fork has left, or stays
            self._pausing = False
        self._started_at = -math.inf  # who was started meanwhile does not show up
        if not self._stopped and self.wanted:
            self._start()

    # -- one thread ------------------------------------------------------------

    def _run(self) -> None:
        if not self._enters():
            return
        try:
            try:
                self.on_thread()
            except RuntimeError as error:  # no room for threads; the next one tries again
                self._log.warning("no_thread", "cannot start a thread: %s", error)
            self._serve()
        finally:
            # However it ends: others must know that this thread is gone.
            with self._counting:
                self._running.discard(_thread.get_ident())

    def _serve(self) -> None:
        while not self._stopped and not self._leaves():
            left = self._not_before - time.monotonic()
            if left > 0:
                self._pause(left)
                continue
            entry = None
            if not (self.failing_fast and self._core.connecting):
                entry = self._core.begin_dial()
            if entry is None:
                self._pause(self._regrow())
                continue
            if not self._failures and self._core.deficit() > 0:
                self._start()
                self.wake()
            try:
                self._attempt(entry)
            except BaseException:  # a driver that misbehaves
                self._core.forget(entry)
                self._not_before = time.monotonic() + _PROBE_AFTER
                self._log.exception("dial_broken", "an attempt to connect went wrong")

    def _enters(self) -> bool:
        with self._counting:
            if self._stopped or self._pausing:
                return False
            if len(self._running) >= self.config.connect_concurrency:
                return False
            self._running.add(_thread.get_ident())
        return True

    def _leaves(self) -> bool:
        """Is this thread one too many, since ``connect_concurrency`` was lowered? Or in
        the way of a fork; or in the child of one that was made in it?"""
        me = _thread.get_ident()
        with self._counting:
            few = len(self._running) <= self.config.connect_concurrency
            if few and not self._pausing and me in self._running:
                return False
            self._running.discard(me)
        if not few:
            self._calls.make()  # what woke this one is for another
        return True

    def _pause(self, seconds: float | None) -> None:
        """Sit out the backoff, or have nothing to do; a call shortens it."""
        if self._calls.take(seconds):
            self._hurry()

    def _regrow(self) -> float | None:
        """Lift the ceiling when it is time; returns the seconds until then."""
        if self._core.ceiling >= self._core.max_size:
            return None
        left = self._full_until - time.monotonic()
        if left <= 0:
            self._core.regrow()
        return max(0.0, left)

    def _shrink(self, now: float) -> None:
        """The server has no room: make do with what is established, for a while."""
        if now >= self._full_until:
            self._full_for = min(max(_FULL_FOR, self._full_for * 2), _FULL_FOR_AT_MOST)
            self._full_until = now + self._full_for
        self._core.shrink()

    def _hurry(self) -> None:
        """Somebody asks: dial soon, whatever is left of the backoff."""
        if self._pausing:
            return  # a fork, not a caller
        pause = _PROBE_AFTER if self.permanent is None else PERMANENT_FOR
        self._not_before = min(self._not_before, self._attempted + pause)

    @property
    def failing_fast(self) -> bool:
        """Down for ``fail_fast_after``: callers do not wait, one probe at a time."""
        limit, since = self.config.fail_fast_after, self.down_since
        return limit is not None and since is not None and time.monotonic() - since >= limit

    @property
    def backoff(self) -> float:
        """Seconds until the next dial may begin, unless a caller asks for one; 0.0: now."""
        return max(0.0, self._not_before - time.monotonic())

    def _attempt(self, entry: Entry) -> None:
        started = self._attempted = time.monotonic()
        self.dials += 1
        if self.failing_fast and self.permanent is None:
            self._core.refuse(self.last_error, math.inf)  # this probe may take long
        try:
            conn, entry.host = self.dial(entry.state, entry.born)
            fd = self._driver.fileno(conn)
        except BaseException as error:
            self._core.forget(entry)
            self._failed(error)
            if self._stopped:
                self._core.house.disposed()  # that was perhaps the last slot
            return
        self._note_encryption(conn)
        self.note_pooler(conn)
        try:
            # Part of the dial: who waits for it should not have another one begun.
            if not self._stopped:
                self._turnaround.prepare(conn, entry.state)
        except BaseException as error:
            self._core.adopt(entry, conn, fd)
            self._core.retire(entry, entry.holder, "after_connect")
            self._failed(error)
            return
        self._failures = 0
        self._not_before = 0.0
        self.last_success_at = time.monotonic()
        self.dial_time += self.last_success_at - started
        self.dial_histogram[bucket(self.last_success_at - started)] += 1
        self.down_since = self.permanent = None
        self._full_until, self._full_for = -math.inf, 0.0
        self._core.regrow()
        self.age(entry)
        # Last of all, and together: in between nobody dials and nobody is served.
        self.created += 1
        if not self._core.adopt(entry, conn, fd):
            hang_up(self._driver, conn)  # forked meanwhile, by this thread itself
            return
        self._core.put(entry)
        self.tell()

    def _note_encryption(self, conn: Any) -> None:
        was, self.encryption = self.encryption, self._driver.encryption(conn)
        if self.encryption == "unverified" != was:
            self._log.warning(
                "unverified",
                "connections are encrypted, but the server does not prove who it is; "
                "sslmode=verify-full makes it",
            )

    @property
    def pooled(self) -> bool:
        """Whether connections lead to a pooler that lends out server sessions: as the
        ``pgbouncer`` setting says, or as one of them has found out."""
        told = self.config.pgbouncer
        return self._pooler_found if told is None else told

    def note_pooler(self, conn: Any) -> None:
        """Tell once if *conn* leads to a pooler; later ones are told so."""
        if self.config.pgbouncer is not None or self._pooler_found:
            return
        if not self._driver.pooled(conn):
            return
        self._pooler_found = True
        self._log.info(
            "pooler_found",
            "there is a pooler before the server, and it is taken to pool transactions; "
            "pgbouncer=True says so at once, False that it pools sessions",
        )
        if self.config.reset == "discard":
            self._log.warning(
                "pooler_found",
                "reset='discard' behind a pooler resets the session that was used only "
                "if the pooler pools sessions",
            )

    def age(self, entry: Entry) -> None:
        """Draw when the connection gets too old. Once, at birth and when the
        limit changes: a draw at each look would undo the jitter."""
        limit, jitter = self.config.max_lifetime, self.config.max_lifetime_jitter
        lifetime = math.inf if limit is None else limit - random.uniform(0, jitter)
        self._core.limit_age(entry, entry.born + lifetime)

    def tell(self) -> None:
        """Let those look who wait for dials."""
        with self.progress:
            self.progress.notify_all()

    def dial(
        self, state: State, began: float | None = None, patience: float = math.inf
    ) -> tuple[Any, int]:
        """Try the hosts in turn, in the calling thread: the connection and the
        host's index. Raises the last one's error, or the first permanent one.
        *began*: when the connection's entry was born, for one of the pool.
        *patience*: seconds, for who has less than each host's ``connect_timeout``."""
        last: BaseException | None = None
        limit = time.monotonic() + patience
        now = self._core.now
        began = now() if began is None else began
        for index, wanted in self._hosts.order(began):
            tried = now()
            self._hosts.trying(index, tried)
            try:
                conn = self._dial_host(state, index, limit)
                self._want_role(conn, index, wanted)
            except Exception as error:
                # One that answers, whatever it says, costs nothing to ask again.
                cost = now() - tried if isinstance(error, TimeoutError) else 0.0
                self._hosts.failed(index, cost, now())
                last = error
                if self._driver.sqlstate(error) == "57P03":
                    self._turnaround.liveness.leaving(index)
                if self._driver.is_permanent(error):
                    break
            else:
                self._hosts.answered(index, began)
                return conn, index
        assert last is not None
        raise last

    def _want_role(self, conn: Any, index: int, wanted: str) -> None:
        """Close *conn* and raise, if its server is not what is *wanted*."""
        if wanted == "any":
            return
        try:
            role = self._driver.role(conn)
        except BaseException:
            hang_up(self._driver, conn)
            raise
        if not fits(role, wanted):
            hang_up(self._driver, conn)
            raise ConnectFailed(
                f"{self._hosts.name(index)} is {'a standby' if role.standby else 'a primary'}"
                f"{', read-only' if role.read_only else ''}: not what "
                f"target_session_attrs={wanted} wants"
            )

    def _dial_host(self, state: State, index: int, limit: float) -> Any:
        """One attempt; two where credentials that can be asked for again were wrong."""
        try:
            return self._dial_once(state, index, limit)
        except Exception as error:
            renewable = self.config.before_connect is not None or self._hosts.asks_password
            if not renewable or self._driver.sqlstate(error) != "28P01":
                raise
            self._log.info("credentials", "asking for credentials again: %s", describe(error))
        return self._dial_once(state, index, limit)

    def _dial_once(self, state: State, index: int, limit: float) -> Any:
        config = self.config
        params = self._hosts.params(index)
        params["application_name"] = (
            config.application_name
            or params.get("application_name")
            or params.get("fallback_application_name")
            or self._log.pool
        )
        params["session_settings"] = dict(config.session_settings)
        params["cancel_budget"] = config.cancel_budget
        params["pgbouncer"] = self.pooled or config.pgbouncer
        if self._hosts.asks_password:
            ask = params["password"]
            params["password"] = self._turnaround.call("password", lambda _: ask(), None)
        if config.before_connect is not None:
            self._turnaround.call("before_connect", config.before_connect, params)
        if config.connect_timeout is not None:
            limit = min(limit, time.monotonic() + config.connect_timeout)
        return self._driver.connect(params, state, limit)

    def _failed(self, error: BaseException) -> None:
        now = time.monotonic()
        config = self.config
        self.dial_failures += 1
        self.last_error, self.last_error_at = error, now
        if self.down_since is None:
            self.down_since = now
        permanent = self._driver.is_permanent(error)
        self.permanent = error if permanent else None
        first, longest = config.connect_backoff, config.connect_backoff_max
        if permanent:
            first, longest = PERMANENT_FOR, _PERMANENT_BACKOFF
        pause = random.uniform(0, min(first * 2.0 ** min(self._failures, 30), longest))
        self._failures += 1
        self._not_before = now + (max(pause, PERMANENT_FOR) if permanent else pause)
        if permanent:
            self._core.refuse(error, self._core.now() + PERMANENT_FOR)
        elif self.failing_fast:
            self._core.refuse(error, math.inf)
        if self._driver.sqlstate(error) == "53300":
            self._shrink(now)
        # The first, and then one now and then: dials fail several times a second.
        self._log.log(
            logging.WARNING if self._seldom(self._failures == 1) else logging.DEBUG,
            "connect_failed",
            "cannot connect (%s failure in a row: %d): %s",
            "permanent" if permanent else "temporary",
            self._failures,
            describe(error),
        )
        self.tell()

    def _seldom(self, first: bool = False) -> bool:
        """Is it time for a warning again? The *first* of its kind always is."""
        now = time.monotonic()
        if not first and now - self._warned_at < _SELDOM:
            return False
        self._warned_at = now
        return True

    def refusal(self, error: BaseException) -> ConnectFailed:
        """A fresh exception for one caller, in the server's words. While the
        pool fails fast, nobody waits: then a refused caller asks for a probe."""
        if self.permanent is None:
            self._core.ask()
            self.wake()
        failed = ConnectFailed(
            f"pool {self._log.pool!r}: cannot connect: {describe(error)}",
            sqlstate=self._driver.sqlstate(error),
        )
        failed.__cause__ = error
        return failed


_STARTUP_HINT = (
    "; session_settings and options travel as start-up parameters, of which PgBouncer takes few: "
    "use ALTER ROLE ... SET on the server instead, or SET LOCAL in each transaction"
)


def describe(error: BaseException) -> str:
    """The server's message out of a driver's error, or the error's own text."""
    first = error.args[0] if error.args else None
    if isinstance(first, dict) and "M" in first:
        hint = _STARTUP_HINT if "startup parameter" in first["M"] else ""
        return f"{first.get('S', 'ERROR')}: {first['M']} ({first.get('C', '?')}){hint}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
